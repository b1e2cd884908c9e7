"""The table of a tested folder: what happened to each view, component and image."""

import csv
import json
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dal_jax._dal_test import parts_of_record
from dal_jax._errors import InputError
from dal_jax.images import atomic_path
from dal_jax.inference import SelectiveP, check_procedure, discovery_q
from dal_jax.inspection._calibration import (
    METHODS,
    Calibration,
    over_components,
    p_with_sigma,
    raw_p_values,
)
from dal_jax.inspection._items import ViewRef
from dal_jax.runs import encode

# Methods whose p-values may decide; the others test another null or are not valid.
DECIDING = ("selective", "inflated", "heavy_tails", "conformal")
# The raw p-value is also given for the noise's standard deviation times these.
SIGMA = (0.8, 1.25)
# Of a row, by method: a recalibrated p-value is given by its upper bound, with LOW in a column
# beside it. The raw one has `p_low` and `p_high` beside it.
LOW = "_low"
COLUMNS = {method: f"p_{method}" for method in METHODS}
COLUMNS |= {"selective": "p_value", "naive": "naive_p"}
# What can be said of a view, the most telling first.
_TELLING = ("significant", "undecided", "no valid result", "not significant", "no region")


@dataclass(frozen=True)
class InspectOptions:
    """How decisions are made.

    Raises:
        InputError: a value does not fit.

    Example:
        >>> options = InspectOptions(decide_by="conformal")
        >>> options.alpha, options.decide_by
        (0.05, 'conformal')
    """

    alpha: float = 0.05  # level for all views of an image together
    decide_by: str = "selective"  # one of `DECIDING`: selective, inflated, heavy_tails, conformal
    discoveries: str = "by"  # how q-values are computed, see `discovery_q`: by or bh

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise InputError(f"alpha is {self.alpha}, expected a level in (0, 1)")
        if self.decide_by not in DECIDING:
            known = ", ".join(DECIDING)
            raise InputError(f"decide_by is {self.decide_by!r}, expected one of {known}")
        check_procedure("discoveries", self.discoveries)


def rows_of(
    tested: Sequence[tuple[ViewRef, dict[str, Any]]],
    calibration: Calibration | None,
    options: InspectOptions,
) -> list[dict[str, Any]]:
    """A row for each view, or component of one: what happened, every p-value, the decision.

    Of an image of V views each decision is at level alpha / V (Bonferroni), of the components of a
    view by Holm's adjusted p-values: the chance that any of a normal image is called significant is
    alpha at most.

    Args:
        tested: views and records.
        calibration: of the model; None: only raw p-values.
        options: which p-value decides, and at what level.

    Returns:
        Rows in the order of the views.

    Raises:
        InputError: a recalibrated p-value is to decide and there is no calibration.

    Example:
        >>> from dal_jax.images import Sample
        >>> sample = Sample("a.png", Path("a.png"), "test", "unknown", None, "a")
        >>> keys = ("p_value", "p_low", "p_high", "naive_p", "statistic", "sd", "estimate")
        >>> none = dict.fromkeys((*keys, "ci_low", "ci_high"), np.nan)
        >>> record = {"status": "NO_REGION", "region": [], "max_score": 0.4, "message": "", **none}
        >>> row = rows_of([(ViewRef(sample, 0, 1), record)], None, InspectOptions())[0]
        >>> row["name"], row["decision"], row["num_tested"]
        ('a.png', 'no region', 0)
    """
    if calibration is None and options.decide_by != "selective":
        raise InputError(
            f"decide_by is {options.decide_by!r}, expected 'selective' for a model without a "
            "calibration: run dal-jax calibrate"
        )
    rows = []
    for item, record in tested:
        parts = parts_of_record(record)
        numbers = range(1, len(parts) + 1) if record.get("components") else [0]
        for number, part in zip(numbers, parts, strict=True):
            rows.append(_row(item, number, max(numbers), part, calibration))
    for row, p in zip(rows, adjusted_p(rows, options.decide_by), strict=True):
        row["decision"] = decide(row["status"], p[1:], options.alpha, row["views"])
        row["p_adjusted"] = float(np.minimum(1.0, row["views"] * p.high))  # NaN stays
    upper = [_bounds_of(row, options.decide_by).high for row in rows]
    q_values = discovery_q(upper, options.discoveries)
    for row, q in zip(rows, q_values, strict=True):
        row["q_value"] = q
    return rows


def _row(
    item: ViewRef,
    component: int,
    components: int,
    record: dict[str, Any],
    calibration: Calibration | None,
) -> dict[str, Any]:
    sample, sd = item.sample, record["sd"]
    usable = calibration is not None and record["status"] not in ("INVALID_INPUT", "NON_FINITE")
    p = calibration.p_values(record) if calibration and usable else raw_p_values(record)
    return {
        "name": sample.name,
        "view": item.view,
        "views": item.num_views,
        "component": component,  # of the view, from 1; 0: the view has one region
        "components": components,
        "label": sample.label,
        "group": sample.group,
        "status": record["status"],
        "decision": "",  # with the next two, once all rows are there
        "p_adjusted": np.nan,
        "q_value": np.nan,
        "p_value": record["p_value"],
        "p_low": record["p_low"],
        "p_high": record["p_high"],
        **_columns(p, record),
        "num_tested": sum(length for _, length in record["region"]),
        "statistic": record["statistic"],
        "sd": sd,
        "z": record["statistic"] / sd,
        "estimate": record["estimate"],
        "ci_low": record["ci_low"],
        "ci_high": record["ci_high"],
        "max_score": record["max_score"],
        "message": record["message"],
    }


def _columns(p: dict[str, SelectiveP], record: dict[str, Any]) -> dict[str, float]:
    """The p-values beside the raw one, and lower bounds of those that a search may leave open."""
    found: dict[str, float] = {}
    for method, column in COLUMNS.items():
        if method != "selective":
            found[column] = p[method].high
        if method in DECIDING[1:]:
            found[column + LOW] = p[method].low
    for factor in SIGMA:
        bounds = p_with_sigma(record, factor)
        found |= {f"p_sigma_{factor:g}": bounds.high, f"p_sigma_{factor:g}{LOW}": bounds.low}
    return found


def adjusted_p(rows: Sequence[dict[str, Any]], method: str) -> list[SelectiveP]:
    """The p-values of rows with bounds, adjusted for the number of components of their view.

    Args:
        rows: from `rows_of`, all of a view side by side.
        method: one of `COLUMNS`.

    Returns:
        p of each row; NaN where there is none. They are not yet adjusted for the number of views.
    """
    found: list[SelectiveP] = []
    for _, own in groupby(rows, key=lambda row: (row["name"], row["view"])):
        found += over_components(method, [_bounds_of(row, method) for row in own])
    return found


def _bounds_of(row: dict[str, Any], method: str) -> SelectiveP:
    """The p-value of a row, and the bounds on which a method decides."""
    if method == "selective":
        return SelectiveP(row["p_value"], row["p_low"], row["p_high"])
    high = row[COLUMNS[method]]
    return SelectiveP(high, row[COLUMNS[method] + LOW] if method in DECIDING else high, high)


def image_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row for an image, of those of its views and their components.

    Args:
        rows: of one image, from `rows_of`.

    Returns:
        The most telling decision of its views, the smallest adjusted p-value, and counts.

    Example:
        >>> row = {"name": "a.png", "label": "unknown", "group": "a", "decision": "no region",
        ...        "p_adjusted": np.nan, "num_tested": 0, "message": "", "view": 0}
        >>> more = {"decision": "significant", "p_adjusted": 0.01, "num_tested": 5, "view": 1}
        >>> found = image_row([row, {**row, **more}])
        >>> found["decision"], found["p_adjusted"], found["views_with_region"]
        ('significant', 0.01, 1)
    """
    first = rows[0]
    p = np.array([row["p_adjusted"] for row in rows], float)
    telling = min(rows, key=lambda row: _TELLING.index(row["decision"]))
    return {
        **{key: first[key] for key in ("name", "label", "group")},
        "decision": telling["decision"],
        "p_adjusted": float(np.nanmin(p)) if not np.isnan(p).all() else float("nan"),
        "views": _views(rows),
        "views_with_region": _views([row for row in rows if row["num_tested"] > 0]),
        "views_significant": _views([r for r in rows if r["decision"] == "significant"]),
        "views_without_result": _views([r for r in rows if r["decision"] == "no valid result"]),
        "message": next((row["message"] for row in rows if row["message"]), ""),
        "warning": first.get("warning", ""),
    }


def _views(rows: Sequence[dict[str, Any]]) -> int:
    return len({(row["name"], row["view"]) for row in rows})


class Tally(NamedTuple):
    """How many there are of what in a table."""

    images: int
    views: int
    regions: int  # flagged, each in a row of its own
    decisions: dict[str, int]  # rows by decision: regions, and views without one
    words: str


def tally(rows: Sequence[dict[str, Any]]) -> Tally:
    """Counts images, views, regions and decisions; a view has a row, or one for each component.

    Args:
        rows: of one image or more.

    Returns:
        The counts, and the same in words.
    """
    images, views = len({row["name"] for row in rows}), _views(rows)
    flagged = [row for row in rows if row["num_tested"] > 0]
    words = f"{_plural(views, 'view')} of {_plural(images, 'image')}"
    if any(row["component"] for row in rows):
        empty = _decisions([row for row in rows if row["num_tested"] <= 0])
        words = f"{_plural(len(flagged), 'region')} of {words}: {_listed(_decisions(flagged))}"
        words += f"; views without regions: {_listed(empty)}" if empty else ""
    else:
        words += f": {_listed(_decisions(rows))}"
    return Tally(images, views, len(flagged), _decisions(rows), words)


def _decisions(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    counts = Counter(row["decision"] for row in rows)
    known = [decision for decision in _TELLING if counts[decision]]
    return {decision: counts[decision] for decision in (*known, *sorted({*counts} - {*_TELLING}))}


def _listed(decisions: dict[str, int]) -> str:
    return ", ".join(f"{count} {decision}" for decision, count in decisions.items())


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)


def decide(status: str, bounds: tuple[float, float], alpha: float, num_views: int) -> str:
    """What is said of a view, at level alpha / num_views.

    Args:
        status: of its test.
        bounds: of the p-value that decides; NaN where there is none.
        alpha: level for all views of an image together.
        num_views: of the image.

    Returns:
        "significant", "not significant", "undecided", "no region" or "no valid result".
    """
    if status == "NO_REGION":
        return "no region"
    if np.isnan(bounds[0]):
        return "no valid result"
    if num_views * bounds[1] <= alpha:
        return "significant"
    return "not significant" if num_views * bounds[0] > alpha else "undecided"


def region_number(row: dict[str, Any]) -> str:
    """What a component is called in pictures: its number, after that of its view if it has several.

    Args:
        row: of a component.

    Returns:
        "2", or "5.2" in view 5; "" where the view has one region.
    """
    if not row["component"]:
        return ""
    return f"{row['view']}.{row['component']}" if row["views"] > 1 else f"{row['component']}"


def picture_name(name: str, names: Container[str]) -> str:
    """Names the picture of an image: `a.png` is that of a.png, `b.jpg.png` that of b.jpg.

    Args:
        name: of the image.
        names: of all images of the table: where `a` is among them, its picture is `a.png`, and that
            of a.png `a.png.png`.

    Returns:
        The name below the folder of pictures, another one for each image.
    """
    own = name.endswith(".png") and name.removesuffix(".png") not in names
    return name if own else f"{name}.png"


def write_rows(directory: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes results.csv and rows.jsonl, a row a view, each whole or not at all.

    Args:
        directory: where.
        rows: with the same keys.

    Raises:
        InputError: a file cannot be written, or a row holds what JSON cannot.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_rows(Path(folder), [{"name": "a.png", "p_value": float("nan")}])
        ...     print(Path(folder, "rows.jsonl").read_text().strip())
        {"name": "a.png", "p_value": {"$float": "nan"}}
    """
    write_csv(directory / "results.csv", rows)
    with (
        atomic_path(directory / "rows.jsonl") as temporary,
        open(temporary, "w", encoding="utf-8") as file,
    ):
        for row in rows:
            file.write(json.dumps(encode(row), allow_nan=False, ensure_ascii=False) + "\n")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes a table, whole or not at all; no text becomes a formula of a spreadsheet.

    Args:
        path: of the file.
        rows: with the same keys.

    Raises:
        InputError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_csv(Path(folder, "t.csv"), [{"name": "=1+1", "p_value": 0.5}])
        ...     print(Path(folder, "t.csv").read_text().split())
        ['name,p_value', "'=1+1,0.5"]
    """
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    # A name that begins like a formula must not become one in a spreadsheet.
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value
