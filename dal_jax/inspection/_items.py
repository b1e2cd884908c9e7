"""The views of a folder's images as tests of a run."""

import sys
from collections.abc import Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dal_jax._dal_test import ImageToTest, QueuedImage
from dal_jax._errors import InputError
from dal_jax.images import DataSet, Fitted, Sample, Views, foreign, read_sample, views
from dal_jax.inspection._learn import picture_of
from dal_jax.inspection._profile import Profile

# The items of one image come one after the other: so many images are kept for the next item.
_KEPT = 2


class ViewRef(NamedTuple):
    """One view to be tested, or the first of an image that cannot be read."""

    sample: Sample
    view: int  # number of the view in its image
    num_views: int


class Reader:
    """Reads samples and cuts their views, the latest ones once.

    Args:
        data: the samples' data set.
        fitted: the preparation.
        seen: digests of pictures that training has seen, which are refused.

    Example:
        >>> import tempfile
        >>> from dal_jax.images import Preparation, fit, open_data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/a.npy", np.arange(64.0).reshape(8, 8, 1) ** 3)
        ...     data = open_data(folder, "folder")
        ...     fitted = fit(Preparation(size=4), [read_sample(data, data.samples[0])[0]])
        ...     reader = Reader(data, fitted)
        ...     image, mask, found = reader.read(data.samples[0])
        >>> image.shape, mask is None, found.pixels.shape
        ((8, 8, 1), True, (1, 4, 4, 1))
    """

    def __init__(self, data: DataSet, fitted: Fitted, seen: Container[str] = ()):
        self._data, self.fitted, self._seen = data, fitted, seen
        self._kept: dict[str, tuple[np.ndarray, np.ndarray | None, Views]] = {}
        self._counts: dict[str, int] = {}

    def read(self, sample: Sample) -> tuple[np.ndarray, np.ndarray | None, Views]:
        """Reads a sample.

        Args:
            sample: of the data set.

        Returns:
            Its image (H, W, C), its mask bool (H, W) or None, and its views.

        Raises:
            InputError: the file cannot be read, training has seen the picture, the preparation
                refuses the image, or its pixels are in other units than training's.
        """
        if sample.name not in self._kept:
            image, mask = read_sample(self._data, sample)
            if picture_of(image) in self._seen:
                raise InputError(f"image {sample.name!r}: a picture that training has seen")
            found = views(self.fitted, image)
            foreign(self.fitted, image)
            while len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[sample.name] = image, mask, found
        return self._kept[sample.name]

    def num_views(self, sample: Sample) -> int:
        """Counts the views of a sample; only tiles need the image, which is read once for that.

        Args:
            sample: of the data set.

        Returns:
            The number; 1 for an image that cannot be read.
        """
        if self.fitted.preparation.view != "tile":
            return 1
        if sample.name not in self._counts:
            try:
                self._counts[sample.name] = len(self.read(sample)[2].pixels)
            except InputError:
                self._counts[sample.name] = 1  # said when its turn comes
        return self._counts[sample.name]


def to_test(data: DataSet, profile: Profile) -> list[Sample]:
    """The samples of a folder that the model has never seen; how many others there are is told.

    Args:
        data: the folder.
        profile: of the model.

    Returns:
        Its test samples, all samples if it has no split, but none of a group of the profile's.

    Raises:
        InputError: none are left.

    Example:
        >>> from dal_jax.images import Preparation
        >>> from dal_jax.inspection import Source
        >>> from dal_jax.noise import iid
        >>> fitted = Fitted(Preparation(size=4), 1, (0.0, 0.5, 1.0), (0.0,), 1.0, 20)
        >>> views, roles = np.zeros((2, 4, 4, 1)), {"train": ("a", "b")}
        >>> profile = Profile(Source(), fitted, "iid", iid(2.0), views, 0.5, "peak", 0.02, roles, 0)
        >>> samples = [Sample(name, Path(name), "test", "unknown", None, name) for name in "abc"]
        >>> [sample.name for sample in to_test(DataSet(Path(), "folder", tuple(samples)), profile)]
        ['c']
    """
    seen = {group for groups in profile.roles.values() for group in groups}
    listed = [s for s in data.samples if s.split == "test"]
    samples = [s for s in listed if s.group not in seen]
    told = f"{len(listed) - len(samples)} of {len(listed)} test images are of groups that training"
    if not samples:
        raise InputError(f"folder {str(data.root)!r}: no image to be tested, {told} has seen")
    if len(samples) < len(listed):
        print(f"{told} has seen: left out", file=sys.stderr)
    return samples


def view_items(reader: Reader, samples: Sequence[Sample]) -> list[ViewRef]:
    """Lists the views of samples; with one view an image nothing is read.

    Args:
        reader: of the samples.
        samples: to be tested.

    Returns:
        The views, image by image.
    """
    counts = [(sample, reader.num_views(sample)) for sample in samples]
    return [ViewRef(sample, view, count) for sample, count in counts for view in range(count)]


def as_items(
    reader: Reader,
    listed: Sequence[ViewRef],
    references: Mapping[str, np.ndarray],
    level: float | None = None,
) -> list[QueuedImage]:
    """Makes tests of views.

    Args:
        reader: of the samples.
        listed: what to test.
        references: (K, H, W, C) of each group.
        level: for all views of an image together: each of V is decided at level / V; or None.

    Returns:
        Items for `run_tests`, known by name and size of the file.
    """
    return [
        QueuedImage(
            _name(one),
            _size(one.sample.path),
            partial(_case, reader, one, references[one.sample.group], level),
        )
        for one in listed
    ]


def _name(one: ViewRef) -> str:
    return one.sample.name if one.num_views == 1 else f"{one.sample.name}@{one.view}"


def _size(path: Path) -> Any:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _case(reader: Reader, one: ViewRef, references: np.ndarray, level: float | None) -> ImageToTest:
    where = reader.fitted.shown if reader.fitted.foreground else None
    own = None if level is None else level / one.num_views
    return ImageToTest(
        reader.read(one.sample)[2].pixels[one.view], references, where=where, level=own
    )
