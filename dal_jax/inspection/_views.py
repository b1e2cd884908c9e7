"""Views of a folder's images: reading and cutting, the queue of tests, and reassembly."""

import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dal_jax._dal_test import ImageToTest, QueuedImage, TestResult
from dal_jax._errors import InputError
from dal_jax._files import file_errors, read_arrays
from dal_jax._typing import Bool, Float
from dal_jax.images import (
    DataSet,
    Fitted,
    Sample,
    Views,
    atomic_path,
    cut,
    enlarge,
    foreign,
    mask_views,
    read_sample,
    stitch,
    views,
)
from dal_jax.inspection._learn import picture_of
from dal_jax.inspection._profile import Profile
from dal_jax.inspection._results import ViewRef, ViewResult
from dal_jax.report import SIGNIFICANT

MAPS = "maps"
# Images are kept in memory until they take more than this, bytes; later ones are read again.
_KEPT = 64 * 2**20


class Reader:
    """Reader of samples and their views, which caches the first 64 MiB and the latest image.

    Args:
        data: Data set of the samples.
        fitted: Fitted preparation.
        seen: Digests of pictures that training has seen, which are refused.

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
        self._num_bytes = 0  # size of the cache
        self._latest = ""
        self._counts: dict[str, int] = {}

    def read(self, sample: Sample) -> tuple[np.ndarray, np.ndarray | None, Views]:
        """Read a sample.

        Args:
            sample: Sample of the data set.

        Returns:
            Image (H, W, C) of the sample, its mask, bool (H, W), or None, and its views.

        Raises:
            InputError: The file cannot be read, training has seen the picture, the preparation
                refuses the image, or its pixels are in other units than those of training.
        """
        if sample.name not in self._kept:
            image, mask = read_sample(self._data, sample)
            if picture_of(image) in self._seen:
                raise InputError(f"image {sample.name!r}: a picture that training has seen")
            found = views(self.fitted, image)
            foreign(self.fitted, image)
            self._keep(sample.name, image, mask, found)
        return self._kept[sample.name]

    def _keep(self, name: str, image: np.ndarray, mask: np.ndarray | None, found: Views) -> None:
        """Keep the first images up to the limit, and the latest image for its next view."""
        if self._num_bytes > _KEPT:
            self._kept.pop(self._latest, None)
            self._latest = name
        self._num_bytes += image.nbytes + found.pixels.nbytes
        self._kept[name] = image, mask, found

    def num_views(self, sample: Sample) -> int:
        """Return the number of views of a sample; the image is read for tiles alone, and once.

        Args:
            sample: Sample of the data set.

        Returns:
            Number of views; 1 for an image that cannot be read.
        """
        if self.fitted.preparation.view != "tile":
            return 1
        if sample.name not in self._counts:
            try:
                self._counts[sample.name] = len(self.read(sample)[2].pixels)
            except InputError:
                self._counts[sample.name] = 1  # reported when the image is tested
        return self._counts[sample.name]


def to_test(data: DataSet, profile: Profile) -> list[Sample]:
    """List the test samples that training has not seen, and print the number of the others.

    Args:
        data: Data set of the folder.
        profile: Profile of the model.

    Returns:
        Test samples of the data set, or all samples if it has no split, except those whose group
        is in the profile.

    Raises:
        InputError: No sample is left.

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


def list_views(reader: Reader, samples: Sequence[Sample]) -> list[ViewRef]:
    """List the views of samples; if every image has one view, no file is read.

    Args:
        reader: Reader of the samples.
        samples: Samples to test.

    Returns:
        References to the views, image by image.
    """
    counts = [(sample, reader.num_views(sample)) for sample in samples]
    return [ViewRef(sample, view, count) for sample, count in counts for view in range(count)]


def queue_views(
    reader: Reader,
    listed: Sequence[ViewRef],
    references: Mapping[str, np.ndarray],
    level: float | None = None,
) -> list[QueuedImage]:
    """Queue views for their tests.

    Args:
        reader: Reader of the samples.
        listed: Views to test.
        references: References (K, H, W, C) of each group.
        level: Level for all views of an image together, so that each of V views is decided at
            level / V; None for no level.

    Returns:
        Images for `run_tests`, identified by name and size of the file.
    """
    return [
        QueuedImage(
            _name(one),
            _size(one.sample.path),
            partial(_load, reader, one, references[one.sample.group], level),
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


def _load(reader: Reader, one: ViewRef, references: np.ndarray, level: float | None) -> ImageToTest:
    where = reader.fitted.shown if reader.fitted.foreground else None
    own = None if level is None else level / one.num_views
    return ImageToTest(
        reader.read(one.sample)[2].pixels[one.view], references, where=where, level=own
    )


class AssembledImage(NamedTuple):
    """Image with the results of its tests; without maps if the file could not be read.

    Example:
        >>> sample = Sample("a.png", Path("a.png"), "test", "unknown", None, "a")
        >>> one = AssembledImage(sample, [])  # a file that could not be read
        >>> one.sample.name, one.image is None
        ('a.png', True)
    """

    sample: Sample
    views: list[ViewResult]  # results of its views and their components
    image: Float[np.ndarray, "H W C"] | None = None  # image as read from the file
    mask: Bool[np.ndarray, "H W"] | None = None  # labelled defects; None if there is no mask
    score: Float[np.ndarray, "H W"] | None = None  # NaN outside the views
    region: Bool[np.ndarray, "H W"] | None = None  # flagged pixels
    significant: Bool[np.ndarray, "H W"] | None = None  # pixels of significant regions
    p_adjusted: Float[np.ndarray, "H W"] | None = None  # p of the pixel's region; NaN outside


def keep_maps(directory: Path, number: int, result: TestResult) -> None:
    """Write the score and the region of a view, for `assemble_images`.

    Args:
        directory: Directory of the run.
        number: Number of the view in the run.
        result: Result of its test; for an invalid input nothing is written.

    Raises:
        InputError: The file cannot be written.
    """
    if result.status.value == "INVALID_INPUT":
        return
    labels = result.region.astype(np.int32)  # numbers of the components, from 1
    for component, part in enumerate(result.components, 1):
        labels[part.region] = component
    with atomic_path(_maps_path(directory, number)) as temporary:
        np.savez(temporary, score=result.score.astype(np.float32), region=labels)


def _maps_path(directory: Path, number: int) -> Path:
    return directory / f".{MAPS}" / f"{number // 1000:04d}" / f"{number:08d}.npz"


def _load_maps(
    directory: Path, number: int, profile: Profile, status: str
) -> tuple[np.ndarray, np.ndarray]:
    if status == "INVALID_INPUT":  # no maps were written
        size = profile.fitted.preparation.size
        return np.full((size, size), np.nan), np.zeros((size, size), np.int32)
    path = _maps_path(directory, number)
    advice = "test again in another directory"
    with file_errors(path, "maps", advice=advice):
        held = read_arrays(path, "maps", advice=advice)
        return held["score"].astype(np.float64), held["region"]


def assemble_images(
    directory: Path,
    reader: Reader,
    profile: Profile,
    tested: Sequence[tuple[ViewRef, dict[str, Any]]],
    results: Sequence[ViewResult],
) -> Iterator[AssembledImage]:
    """Assemble the views of each image, one image at a time.

    Args:
        directory: Directory of the run.
        reader: Reader of the samples.
        profile: Profile of the model.
        tested: Views and the records of their tests, all views of an image in succession.
        results: Results of the views and their components, in the same order.

    Yields:
        The images in order; their results have the fields warning, box and touches_mask.

    Raises:
        InputError: The maps of a view are missing or damaged.
    """
    end, pictures = 0, dict[str, str]()
    for name, of_image in groupby(results, key=lambda one: one.name):
        start, (item, _) = end, tested[end]
        end = start + item.num_views
        warnings = [*profile.warnings]
        try:
            read = reader.read(item.sample)
        except InputError:
            warning = "; ".join(warnings)
            yield AssembledImage(item.sample, [o._replace(warning=warning) for o in of_image])
            continue
        warnings.append(foreign(profile.fitted, read[0]))
        first = pictures.setdefault(picture_of(read[0]) or name, name)
        if first != name:
            warnings.append(f"the same picture as {first}")
        warning = "; ".join(filter(None, warnings))
        own = [one._replace(warning=warning) for one in of_image]
        maps = [
            _load_maps(directory, number, profile, tested[number][1]["status"])
            for number in range(start, end)
        ]
        yield _together(item.sample, own, *read, maps, profile)


def _together(
    sample: Sample,
    own: Sequence[ViewResult],
    image: np.ndarray,
    mask: np.ndarray | None,
    found: Views,
    maps: Sequence[tuple[np.ndarray, np.ndarray]],
    profile: Profile,
) -> AssembledImage:
    fitted, shape = profile.fitted, image.shape[:2]
    inside = None if mask is None else mask_views(fitted, mask, found)
    defects = inside if inside is not None and inside.any() else None
    scores = np.stack([score for score, _ in maps])
    regions = np.stack([labels > 0 for _, labels in maps]).astype(float)
    called = np.zeros_like(regions)
    p_adjusted = np.full(shape, np.nan)
    placed = []
    for one in own:
        labels, corner, extent = maps[one.view][1], found.corners[one.view], found.extents[one.view]
        region = labels == one.component if one.component else labels > 0
        if one.decision == SIGNIFICANT:
            called[one.view] += region
        covered = enlarge(region.astype(float), extent) > 0
        part = cut(p_adjusted, corner, extent)
        # Where tiles overlap, the smaller p-value counts.
        np.fmin(part, np.where(covered, one.p_adjusted, np.nan), out=part)
        touches = None if defects is None else bool((defects[one.view] & region).any())
        placed.append(one._replace(touches_mask=touches, box=_box(covered, corner)))
    score = stitch(fitted, scores, found, shape)
    flagged = stitch(fitted, regions, found, shape, fill=0.0) >= 0.5
    marked = stitch(fitted, called, found, shape, fill=0.0) >= 0.5
    return AssembledImage(sample, placed, image, mask, score, flagged, marked, p_adjusted)


def _box(covered: Bool[np.ndarray, "h w"], corner: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return the bounding box of a region in its image, pixels; None for an empty region."""
    if not covered.any():
        return None
    pixels = np.argwhere(covered)
    (top, left), (bottom, right) = pixels.min(axis=0) + corner, pixels.max(axis=0) + corner + 1
    return int(top), int(left), int(bottom), int(right)
