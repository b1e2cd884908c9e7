"""Tests of every image of a folder; the maps of its views are kept on disk and put together."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np

from dal_jax._dal_test import QueuedImage, TestOptions, TestResult, run_tests
from dal_jax._errors import InputError
from dal_jax._typing import Bool
from dal_jax.images import Sample, Views, atomic_path, cut, enlarge, foreign, mask_views, stitch
from dal_jax.inspection._items import Reader, ViewRef, as_items, view_items
from dal_jax.inspection._learn import picture_of
from dal_jax.inspection._profile import Profile, check_options
from dal_jax.localizers import Localizer
from dal_jax.runs import Host

MAPS = "maps"
# Of a row: its region's box in the image, pixels; the last two are past its end.
_BOX = ("top", "left", "bottom", "right")


class Inspected(NamedTuple):
    """One image after its tests.

    Example:
        >>> sample = Sample("a.png", Path("a.png"), "test", "unknown", None, "a")
        >>> one = Inspected(sample, [], *[None] * 6)  # a file that could not be read
        >>> one.sample.name, one.image is None
        ('a.png', True)
    """

    sample: Sample
    rows: list[dict[str, Any]]  # of its views
    image: np.ndarray | None  # (H, W, C) as read; None: it could not be
    mask: np.ndarray | None  # (H, W) bool, where known
    score: np.ndarray | None  # (H, W), NaN outside the views
    region: np.ndarray | None  # (H, W) bool, flagged pixels
    significant: np.ndarray | None  # (H, W) bool, those in regions called significant
    p_adjusted: np.ndarray | None  # (H, W) the adjusted p of the region a pixel is in, else NaN


def test_samples(
    directory: Path,
    localizer: Localizer,
    profile: Profile,
    reader: Reader,
    samples: Sequence[Sample],
    options: TestOptions,
    *,
    host: Host,
    devices: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[ViewRef, dict[str, Any]]]:
    """Tests all views of samples in a run directory, where their maps are kept, too.

    Args:
        directory: of the run.
        localizer: of the profile.
        profile: of the model.
        reader: of the samples.
        samples: to be tested.
        options: of the tests; their level is for all views of an image together.
        host: this process.
        devices: to use.
        batch_size: tests under way at a time; None fills the devices.
        progress: called with (done, of how many).

    Returns:
        Each view and its record.

    Raises:
        InputError: the directory of another run, or options of another region than the profile's.
        RunError: the disk is full, or another process was lost.

    Example:
        >>> reader = Reader(data, profile.fitted)  # doctest: +SKIP
        >>> samples = to_test(data, profile)  # doctest: +SKIP
        >>> here = (Path("runs"), localizer, profile, reader, samples)  # doctest: +SKIP
        >>> tested = test_samples(*here, TestOptions(), host=Host(0, 1))  # doctest: +SKIP
        >>> {item.sample for item, _ in tested} == set(samples)  # doctest: +SKIP
        True
    """
    check_options(options, profile)
    listed = view_items(reader, samples)
    own = profile.references_of([one.sample.group for one in listed])
    items = as_items(reader, listed, own, options.level)
    numbers = {item.name: number for number, item in enumerate(items)}
    run = run_tests(
        directory,
        localizer,
        items,
        profile.tested_noise,
        options,
        host=host,
        shared=profile.references,
        devices=devices,
        batch_size=batch_size,
        progress=None if progress is None else lambda done, _: progress(done, len(items)),
        keep=lambda item, result: _keep_maps(directory, numbers[item.name], item, result),
    )
    return list(zip(listed, run.finished().values(), strict=True))


test_samples.__test__ = False  # type: ignore[attr-defined]


def _keep_maps(directory: Path, number: int, item: QueuedImage, result: TestResult) -> None:
    if result.status.value == "INVALID_INPUT":
        return
    with atomic_path(_maps_path(directory, number)) as temporary:
        np.savez(temporary, score=result.score.astype(np.float32), region=_labels(result))


def _labels(result: TestResult) -> np.ndarray:
    """The region as numbers of the rows' components, from 1; of one region all 1."""
    labels = result.region.astype(np.int32)
    for number, part in enumerate(result.components, 1):
        labels[part.region] = number
    return labels


def _maps_path(directory: Path, number: int) -> Path:
    return directory / f".{MAPS}" / f"{number // 1000:04d}" / f"{number:08d}.npz"


def assemble_images(
    directory: Path,
    reader: Reader,
    profile: Profile,
    tested: Sequence[tuple[ViewRef, dict[str, Any]]],
    rows: Sequence[dict[str, Any]],
) -> Iterator[Inspected]:
    """Puts the views of each image together again, one image at a time.

    Args:
        directory: of the run.
        reader: of the samples.
        profile: of the model.
        tested: views and records, all views of an image side by side.
        rows: of the views and their components, in the same order.

    Yields:
        The images in order.

    Raises:
        InputError: the maps of a view are missing or damaged.

    Example:
        >>> rows = rows_of(tested, None, InspectOptions())  # doctest: +SKIP
        >>> images = assemble_images(Path("runs"), reader, profile, tested, rows)  # doctest: +SKIP
        >>> [one.sample for one in images] == samples  # doctest: +SKIP
        True
    """
    start, end, pictures = 0, 0, dict[str, str]()
    for _, of_image in groupby(rows, key=lambda row: row["name"]):
        start, item = end, tested[end][0]
        end = start + item.num_views
        more = {"warning": "; ".join(profile.warnings), "touches_mask": None, **dict.fromkeys(_BOX)}
        own = [{**row, **more} for row in of_image]
        try:
            image, mask, found = reader.read(item.sample)
        except InputError:
            yield Inspected(item.sample, own, *[None] * 6)
            continue
        told = [*profile.warnings, foreign(profile.fitted, image)]
        first = pictures.setdefault(picture_of(image) or item.sample.name, item.sample.name)
        if first != item.sample.name:
            told.append(f"the same picture as {first}")
        for row in own:
            row["warning"] = "; ".join(filter(None, told))
        inside = mask_views(profile.fitted, mask, found) if mask is not None else None
        maps = [
            _load_maps(directory, number, profile, tested[number][1]["status"])
            for number in range(start, end)
        ]
        for row in own:
            region = _region_of(row, maps)
            hit = inside is not None and bool((inside[row["view"]] & region).any())
            row["touches_mask"] = hit if inside is not None and inside.any() else None
        yield _together(item.sample, own, image, mask, found, maps, profile)


def _region_of(
    row: dict[str, Any], maps: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Bool[np.ndarray, "H W"]:
    labels = maps[row["view"]][1]
    return labels == row["component"] if row["component"] else labels > 0


def _together(
    sample: Sample,
    rows: list[dict[str, Any]],
    image: np.ndarray,
    mask: np.ndarray | None,
    found: Views,
    maps: Sequence[tuple[np.ndarray, np.ndarray]],
    profile: Profile,
) -> Inspected:
    shape = image.shape[:2]
    scores = np.stack([score for score, _ in maps])
    regions = np.stack([labels > 0 for _, labels in maps]).astype(float)
    called = np.zeros_like(regions)
    p_adjusted = np.full(shape, np.nan)
    for row in rows:
        view, region = row["view"], _region_of(row, maps).astype(float)
        if row["decision"] == "significant":
            called[view] += region
        corner, extent = found.corners[view], found.extents[view]
        covered = enlarge(region, extent) > 0
        row |= _box(covered, corner)
        part = cut(p_adjusted, corner, extent)
        own = np.where(covered, row["p_adjusted"], np.nan)
        np.fmin(part, own, out=part)  # of tiles that overlap the smaller
    score = stitch(profile.fitted, scores, found, shape)
    flagged = stitch(profile.fitted, regions, found, shape, fill=0.0) >= 0.5
    marked = stitch(profile.fitted, called, found, shape, fill=0.0) >= 0.5
    return Inspected(sample, rows, image, mask, score, flagged, marked, p_adjusted)


def _box(covered: Bool[np.ndarray, "h w"], corner: np.ndarray) -> dict[str, int | None]:
    """Where a region lies in its image, pixels; none for an empty one."""
    if not covered.any():
        return dict.fromkeys(_BOX)
    pixels = np.argwhere(covered)
    low, high = pixels.min(axis=0) + corner, pixels.max(axis=0) + corner + 1
    return dict(zip(_BOX, np.concatenate([low, high]).tolist(), strict=True))


def _load_maps(
    directory: Path, number: int, profile: Profile, status: str
) -> tuple[np.ndarray, np.ndarray]:
    if status == "INVALID_INPUT":  # none were kept
        size = profile.fitted.preparation.size
        return np.full((size, size), np.nan), np.zeros((size, size), np.int32)
    path = _maps_path(directory, number)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as held:
            return held["score"].astype(np.float64), held["region"]
    except (OSError, ValueError, LookupError, BadZipFile, ZlibError) as error:
        raise InputError(
            f"maps {str(path)!r}: missing or damaged, test again in another directory"
        ) from error
