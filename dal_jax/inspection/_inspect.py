"""Tests of every image of a folder: a row of a table for each view, and its maps on disk."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dal_jax._errors import InputError
from dal_jax._options import TestOptions
from dal_jax._result import TestResult
from dal_jax._test_run import Item, run_tests
from dal_jax.images import Sample, Views, atomic_path, mask_views, stitch
from dal_jax.inspection._calibration import METHODS, Calibration
from dal_jax.inspection._items import Reader, ViewItem, as_items, view_items
from dal_jax.inspection._profile import Profile
from dal_jax.localizers import Localizer
from dal_jax.runs import Host, encode

# Methods whose p-values may decide; the others test another null or are not valid.
DECIDING = ("selective", "inflated", "heavy_tails", "conformal")
MAPS = "maps"
# Of a row, by method.
COLUMNS = {method: "p_value" if method == "selective" else f"p_{method}" for method in METHODS}


@dataclass(frozen=True)
class InspectOptions:
    """How decisions are made.

    Raises:
        InputError: a value does not fit.
    """

    alpha: float = 0.05
    decide_by: str = "selective"

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise InputError(f"alpha is {self.alpha}, expected a level in (0, 1)")
        if self.decide_by not in DECIDING:
            known = ", ".join(DECIDING)
            raise InputError(f"decide_by is {self.decide_by!r}, expected one of {known}")


class Inspected(NamedTuple):
    """One image after its tests."""

    sample: Sample
    rows: list[dict[str, Any]]  # of its views
    image: np.ndarray | None  # (H, W, C) as read; None: it could not be
    mask: np.ndarray | None  # (H, W) bool, where known
    score: np.ndarray | None  # (H, W), NaN outside the views
    region: np.ndarray | None  # (H, W) bool, flagged pixels
    significant: np.ndarray | None  # (H, W) bool, those in regions called significant


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
) -> list[tuple[ViewItem, dict[str, Any]]]:
    """Tests all views of samples in a run directory, where their maps are kept, too.

    Args:
        directory: of the run.
        localizer: of the profile.
        profile: of the model.
        reader: of the samples.
        samples: to be tested.
        options: of the tests.
        host: this process.
        devices: to use.
        batch_size: tests under way at a time; None fills the devices.
        progress: called with (done, of how many).

    Returns:
        Each view and its record.

    Raises:
        InputError: the directory of another run.
        RunError: the disk is full, or another process was lost.
    """
    listed = view_items(reader, samples)
    items = as_items(reader, listed, profile.references)
    numbers = {item.name: number for number, item in enumerate(items)}
    run = run_tests(
        directory,
        localizer,
        items,
        profile.noise,
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


def _keep_maps(directory: Path, number: int, item: Item, result: TestResult) -> None:
    if result.status.value == "INVALID_INPUT":
        return
    with atomic_path(_maps_path(directory, number)) as temporary:
        np.savez(temporary, score=result.score.astype(np.float32), region=result.region)


def _maps_path(directory: Path, number: int) -> Path:
    return directory / f".{MAPS}" / f"{number // 1000:04d}" / f"{number:08d}.npz"


def rows_of(
    tested: Sequence[tuple[ViewItem, dict[str, Any]]],
    calibration: Calibration | None,
    options: InspectOptions,
) -> list[dict[str, Any]]:
    """A row for each view: what happened, every p-value, the decision.

    Args:
        tested: views and records.
        calibration: of the model; None: only raw p-values.
        options: which p-value decides, and at what level.

    Returns:
        Rows in the order of the views.

    Raises:
        InputError: a recalibrated p-value is to decide and there is no calibration.
    """
    if calibration is None and options.decide_by != "selective":
        raise InputError(
            f"decide_by is {options.decide_by!r}, expected 'selective' for a model without a "
            "calibration: run dal-jax calibrate"
        )
    return [_row(item, record, calibration, options) for item, record in tested]


def _row(
    item: ViewItem,
    record: dict[str, Any],
    calibration: Calibration | None,
    options: InspectOptions,
) -> dict[str, Any]:
    sample, sd = item.sample, record["sd"]
    nan = float("nan")
    p = dict.fromkeys(METHODS, nan)
    if calibration is not None and record["status"] not in ("INVALID_INPUT", "NON_FINITE"):
        p |= calibration.p_values(record)
    p |= {"selective": record["p_value"], "naive": record["naive_p"]}
    bounds: tuple[float, float] = (record["p_low"], record["p_high"])
    if options.decide_by != "selective":
        bounds = p[options.decide_by], p[options.decide_by]
    return {
        "name": sample.name,
        "view": item.view,
        "views": item.num_views,
        "label": sample.label,
        "group": sample.group,
        "status": record["status"],
        "decision": decide(record["status"], bounds, options.alpha),
        "p_value": p["selective"],
        "p_low": record["p_low"],
        "p_high": record["p_high"],
        **{column: p[method] for method, column in COLUMNS.items() if method != "selective"},
        "num_flagged": sum(length for _, length in record["region"]),
        "statistic": record["statistic"],
        "sd": sd,
        "z": record["statistic"] / sd,
        "max_score": record["max_score"],
        "message": record["message"],
    }


def decide(status: str, bounds: tuple[float, float], alpha: float) -> str:
    """What is said of a view.

    Args:
        status: of its test.
        bounds: of the p-value that decides; NaN where there is none.
        alpha: level.

    Returns:
        "significant", "not significant", "undecided", "no region" or "no valid result".
    """
    if status == "NO_REGION":
        return "no region"
    if np.isnan(bounds[0]):
        return "no valid result"
    if bounds[1] <= alpha:
        return "significant"
    return "not significant" if bounds[0] > alpha else "undecided"


def inspected(
    directory: Path,
    reader: Reader,
    profile: Profile,
    tested: Sequence[tuple[ViewItem, dict[str, Any]]],
    rows: Sequence[dict[str, Any]],
) -> Iterator[Inspected]:
    """Puts the views of each image together again, one image at a time.

    Args:
        directory: of the run.
        reader: of the samples.
        profile: of the model.
        tested: views and records, all views of an image side by side.
        rows: of the views.

    Yields:
        The images in order.
    """
    start = 0
    while start < len(tested):
        item = tested[start][0]
        end = start + item.num_views
        own = [{**row, "touches_mask": None} for row in rows[start:end]]
        try:
            image, mask, found = reader.read(item.sample)
        except InputError:
            yield Inspected(item.sample, own, None, None, None, None, None)
            start = end
            continue
        inside = mask_views(profile.fitted, mask, found) if mask is not None else None
        maps = [_load_maps(directory, number, profile) for number in range(start, end)]
        for view, row in enumerate(own):
            hit = inside is not None and bool((inside[view] & maps[view][1]).any())
            row["touches_mask"] = hit if inside is not None and inside.any() else None
        yield _together(item.sample, own, image, mask, found, maps, profile)
        start = end


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
    called = np.array([row["decision"] == "significant" for row in rows])
    scores = np.stack([score for score, _ in maps])
    regions = np.stack([region for _, region in maps]).astype(float)
    score = stitch(profile.fitted, scores, found, shape)
    flagged = stitch(profile.fitted, regions, found, shape, fill=0.0) >= 0.5
    marked = stitch(profile.fitted, regions * called[:, None, None], found, shape, fill=0.0) >= 0.5
    return Inspected(sample, rows, image, mask, score, flagged, marked)


def _load_maps(directory: Path, number: int, profile: Profile) -> tuple[np.ndarray, np.ndarray]:
    path = _maps_path(directory, number)
    size = profile.fitted.preparation.size
    if not path.is_file():
        return np.full((size, size), np.nan), np.zeros((size, size), bool)
    with np.load(path, allow_pickle=False) as held:
        return held["score"].astype(np.float64), held["region"]


def write_rows(directory: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows as results.csv and rows.jsonl, whole or not at all.

    Args:
        directory: where.
        rows: with the same keys.
    """
    with (
        atomic_path(directory / "results.csv") as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    with (
        atomic_path(directory / "rows.jsonl") as temporary,
        open(temporary, "w", encoding="utf-8") as file,
    ):
        for row in rows:
            file.write(json.dumps(encode(row), allow_nan=False, ensure_ascii=False) + "\n")


def _cell(value: Any) -> Any:
    # A name that begins like a formula must not become one in a spreadsheet.
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value
