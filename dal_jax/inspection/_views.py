"""Views of the tested images: reading and cutting, the queue of tests, and reassembly."""

import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

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
    footprint,
    foreign,
    mask_views,
    read_image,
    read_sample,
    stitch,
    views,
)
from dal_jax.inspection._profile import Profile
from dal_jax.inspection._results import ViewRef, ViewResult
from dal_jax.report import SIGNIFICANT
from dal_jax.runs import fingerprint

MAPS = "maps"
# Images are kept in memory until they take more than this, bytes; later ones are read again.
_KEPT = 64 * 2**20


def picture_of(image: Float[np.ndarray, "H W C"]) -> str:
    """Return a digest of an image's pixels, which identifies copies of a picture.

    Args:
        image: (H, W, C) image as read from its file.

    Returns:
        16 hexadecimal digits; "" for an image without contrast.
    """
    if not np.ptp(image):
        return ""
    pixels = np.ascontiguousarray(image, np.float64)
    digest = sha256(str(pixels.shape).encode())
    digest.update(pixels.data)
    return digest.hexdigest()[:16]


def open_image(path: Path, shape: Sequence[int]) -> Float[np.ndarray, "H W C"]:
    """Read an image that a model takes as it is.

    Args:
        path: Path of the image file.
        shape: Shape (H, W, C) of the model's images.

    Returns:
        Image (H, W, C), float64.

    Raises:
        InputError: The image cannot be read, has another shape, or is not finite.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/a.npy", np.ones((2, 3)))
        ...     open_image(Path(folder, "a.npy"), (2, 3, 1)).shape
        (2, 3, 1)
    """
    image, expected = read_image(path), tuple(shape)
    if not np.isfinite(image).all():
        raise InputError(f"image {str(path)!r}: holds NaN or infinite pixels")
    if image.shape != expected:
        raise InputError(f"image {str(path)!r}: shape {image.shape}, the model takes {expected}")
    return image


class ImageReader:
    """Reader of images that are tested as they are, which caches the first 64 MiB and the latest.

    Args:
        shape: Shape (H, W, C) of the model's images.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/a.npy", np.ones((2, 3)))
        ...     sample = Sample("a", Path(folder, "a.npy"), "test", "unknown", None, "a")
        ...     image, mask, found = ImageReader((2, 3, 1)).read(sample)
        >>> image.shape, mask is None, found.pixels.shape
        ((2, 3, 1), True, (1, 2, 3, 1))
    """

    fitted: Fitted | None = None  # fitted preparation; None for images without one
    warnings: tuple[str, ...] = ()  # warnings about the model, given with each image

    def __init__(self, shape: Sequence[int]):
        self.shape = tuple(shape)  # of a view
        self._kept: dict[str, tuple[np.ndarray, np.ndarray | None, Views]] = {}
        self._num_bytes = 0  # size of the cache
        self._latest = ""
        self.pictures: dict[str, str] = {}  # digest of each image that was read, by its name

    def read(self, sample: Sample) -> tuple[np.ndarray, np.ndarray | None, Views]:
        """Read a sample.

        Args:
            sample: Sample to read.

        Returns:
            Image (H, W, C) of the sample, its mask, bool (H, W), or None, and its views.

        Raises:
            InputError: The image cannot be read, or cannot be tested.
        """
        if sample.name not in self._kept:
            self._kept.pop(self._latest, None)  # before there are two large images
            self._keep(sample.name, *self._read(sample))
        return self._kept[sample.name]

    def _read(self, sample: Sample) -> tuple[np.ndarray, np.ndarray | None, Views]:
        image, ones = open_image(sample.path, self.shape), np.ones((1, *self.shape[:2]), bool)
        self.pictures[sample.name] = picture_of(image)
        sides = np.array([self.shape[:2]])
        return image, None, Views(image[None], np.zeros((1, 2), int), sides, np.ones(1), ones)

    def _keep(self, name: str, image: np.ndarray, mask: np.ndarray | None, found: Views) -> None:
        """Keep the first images up to the limit, and the latest image for its next view."""
        size = image.nbytes + found.pixels.nbytes
        if self._num_bytes + size > _KEPT:
            self._latest = name
        else:
            self._num_bytes += size
        self._kept[name] = image, mask, found

    def num_views(self, sample: Sample) -> int:
        """Return the number of views of a sample."""
        return 1


class Reader(ImageReader):
    """Reader of the samples of a data set, which prepares and cuts them into views.

    Args:
        data: Data set of the samples.
        fitted: Fitted preparation.
        seen: Digests of pictures that training has seen, which are refused.
        warnings: Warnings about the model, given with each image.

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

    def __init__(
        self,
        data: DataSet,
        fitted: Fitted,
        seen: Container[str] = (),
        warnings: Sequence[str] = (),
    ):
        size = fitted.preparation.size
        super().__init__((size, size, fitted.channels))
        self.fitted, self.warnings = fitted, tuple(warnings)
        self._data, self._fitted, self._seen = data, fitted, seen
        self._counts: dict[str, int] = {}

    def _read(self, sample: Sample) -> tuple[np.ndarray, np.ndarray | None, Views]:
        image, mask = read_sample(self._data, sample)
        self.pictures[sample.name] = picture_of(image)
        if self.pictures[sample.name] in self._seen:
            raise InputError(
                f"image {sample.name!r}: a picture that training or calibration has seen"
            )
        found = views(self._fitted, image)
        foreign(self._fitted, image)  # refuses pixels in other units than those of training
        return image, mask, found

    def num_views(self, sample: Sample) -> int:
        """Return the number of views of a sample; the image is read for tiles alone, and once.

        Args:
            sample: Sample of the data set.

        Returns:
            Number of views; 1 for an image that cannot be read.
        """
        if self._fitted.preparation.view != "tile":
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


def list_views(reader: ImageReader, samples: Sequence[Sample]) -> list[ViewRef]:
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
    reader: ImageReader,
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
        Images for `run_tests`, identified by name; those of a data set also by size of the file,
        which would take hours for a million images in each of many processes, number of views, and
        references.
    """
    digests = {id(shared): fingerprint(shared) for shared in references.values()}
    return [
        QueuedImage(
            _name(one),
            None
            if reader.fitted is None
            else (_size(one.sample.path), digests[id(references[one.sample.group])], one.num_views),
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


def _load(
    reader: ImageReader, one: ViewRef, references: np.ndarray, level: float | None
) -> ImageToTest:
    fitted, pixels = reader.fitted, reader.read(one.sample)[2].pixels[one.view]
    where = fitted.shown if fitted is not None and fitted.foreground else None
    own = None if level is None else level / one.num_views
    return ImageToTest(pixels, references, where=where, level=own)


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


def keep_maps(directory: Path, key: str, result: TestResult, picture: str) -> None:
    """Write the score and the region of a view, for `assemble_images`.

    Args:
        directory: Directory of the run.
        key: Key of the view in the run.
        result: Result of its test.
        picture: Digest of its image, see `ImageReader.pictures`.

    Raises:
        InputError: The file cannot be written.
    """
    labels = result.region.astype(np.int32)  # numbers of the components, from 1
    for component, part in enumerate(result.components, 1):
        labels[part.region] = component
    with atomic_path(_maps_path(directory, key)) as temporary:
        score = result.score.astype(np.float32)
        np.savez(temporary, score=score, region=labels, picture=picture)


def _maps_path(directory: Path, key: str) -> Path:
    return directory / f".{MAPS}" / key[:2] / f"{key}.npz"


def _load_maps(
    directory: Path, key: str, shape: tuple[int, ...], status: str
) -> tuple[np.ndarray, np.ndarray, str | None]:
    """Return score, region and picture of a view; None for that of a view that was refused."""
    if status == "INVALID_INPUT":  # no maps were written
        return np.full(shape[:2], np.nan), np.zeros(shape[:2], np.int32), None
    path, advice = _maps_path(directory, key), "test again in another directory"
    with file_errors(path, "maps", advice=advice):
        held = read_arrays(path, "maps", advice=advice)
        return held["score"].astype(np.float64), held["region"], str(held["picture"])


def assemble_images(
    directory: Path,
    reader: ImageReader,
    tested: Sequence[tuple[ViewRef, dict[str, Any]]],
    results: Sequence[ViewResult],
) -> Iterator[AssembledImage]:
    """Assemble the views of each image, one image at a time.

    Args:
        directory: Directory of the run.
        reader: Reader of the samples.
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
        try:
            read = reader.read(item.sample)
        except InputError:
            was_read = any(record["status"] != "INVALID_INPUT" for _, record in tested[start:end])
            gone = "the file cannot be read any more" * was_read
            warning = "; ".join(filter(None, (*reader.warnings, gone)))
            yield AssembledImage(item.sample, [o._replace(warning=warning) for o in of_image])
            continue
        picture = reader.pictures[item.sample.name]
        first = pictures.setdefault(picture or name, name)
        copy = f"the same picture as {first}" if first != name else ""
        strange = "" if reader.fitted is None else foreign(reader.fitted, read[0])
        maps = [
            _load_maps(directory, view.key, reader.shape, record["status"])
            for view, record in tested[start:end]
        ]
        changed = any(tested not in (None, picture) for *_, tested in maps)
        other = "the file has changed since its test: test into another directory" * changed
        warning = "; ".join(filter(None, (*reader.warnings, strange, copy, other)))
        own = [one._replace(warning=warning) for one in of_image]
        together = _together(item.sample, own, *read, [one[:2] for one in maps], reader.fitted)
        del read  # two large images are never in memory at once
        yield together
        del together


def _together(
    sample: Sample,
    own: Sequence[ViewResult],
    image: np.ndarray,
    mask: np.ndarray | None,
    found: Views,
    maps: Sequence[tuple[np.ndarray, np.ndarray]],
    fitted: Fitted | None,
) -> AssembledImage:
    shape = image.shape[:2]
    inside = None if mask is None or fitted is None else mask_views(fitted, mask, found)
    defects = inside if inside is not None and inside.any() else None
    scores = np.stack([score for score, _ in maps])
    regions = np.stack([labels > 0 for _, labels in maps]).astype(float)
    called = np.zeros_like(regions)
    for one in own:
        if one.decision == SIGNIFICANT:
            called[one.view] += _region_of(one, maps)
    if fitted is None:  # the only view is the image
        score, flagged, marked = scores[0], regions[0] > 0, called[0] > 0
    else:
        score = stitch(fitted, scores, found, shape)
        flagged = stitch(fitted, regions, found, shape, fill=0.0) >= 0.5
        marked = stitch(fitted, called, found, shape, fill=0.0) >= 0.5
    p_adjusted, placed = np.full(shape, np.nan), []
    for one in own:
        region = _region_of(one, maps)
        corner, extent = found.corners[one.view], found.extents[one.view]
        covered = footprint(region, extent)
        part = cut(p_adjusted, corner, extent)
        # Where tiles overlap, the smaller p-value counts.
        np.fmin(part, np.where(covered, one.p_adjusted, np.nan), out=part)
        for pixels in [flagged, marked][: 1 + (one.decision == SIGNIFICANT)]:
            shown = cut(pixels, corner, extent)
            if not (shown & covered).any():  # nothing of the region is left: it must be seen
                shown |= covered
        touches = None if defects is None else bool((defects[one.view] & region).any())
        placed.append(one._replace(touches_mask=touches, box=_box(covered, corner)))
    return AssembledImage(sample, placed, image, mask, score, flagged, marked, p_adjusted)


def _region_of(
    one: ViewResult, maps: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Bool[np.ndarray, "h w"]:
    labels = maps[one.view][1]
    return labels == one.component if one.component else labels > 0


def _box(covered: Bool[np.ndarray, "h w"], corner: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return the bounding box of a region in its image, pixels; None for an empty region."""
    top, left = corner.tolist()
    for rows, columns in ndimage.find_objects(covered.astype(np.int8)):
        return top + rows.start, left + columns.start, top + rows.stop, left + columns.stop
    return None
