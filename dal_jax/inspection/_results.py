"""Results of tested images, for each view or component and for each image, and their tables."""

import json
import math
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dal_jax._dal_test import parts_of_record
from dal_jax._errors import InputError
from dal_jax._files import csv_text, write_text
from dal_jax.images import Sample
from dal_jax.inference import SelectiveP, check_procedure, discovery_q
from dal_jax.inspection._calibration import (
    METHODS,
    Calibration,
    over_components,
    p_with_sigma,
    raw_p_values,
)
from dal_jax.report import NO_REGION, NOT_SIGNIFICANT, NOT_VALID, SIGNIFICANT, UNDECIDED
from dal_jax.runs import encode

TABLE, ROWS = "results.csv", "rows.jsonl"
# Methods whose p-values may decide; the others test another null or are not valid.
DECIDING = ("selective", "inflated", "heavy_tails", "conformal")
# Factors of the noise's standard deviation for which the raw p-value is also given.
SIGMA = (0.8, 1.25)
# Column of each method. The column of a recalibrated p-value holds its upper bound, and a column
# with the suffix LOW the lower one. The bounds of the raw p-value are in `p_low` and `p_high`.
LOW = "_low"
COLUMNS = {method: f"p_{method}" for method in METHODS}
COLUMNS |= {"selective": "p_value", "naive": "naive_p"}
BOX = ("top", "left", "bottom", "right")
# Fields of a result that the record of a test has under the same names.
_COPIED = (
    *("status", "bonferroni_log10_p", "over_conditioned_p", "permutation_p", "num_ties"),
    *("statistic", "sd", "estimate", "ci_low", "ci_high", "max_score", "message"),
)
# Decisions in order of precedence: that of an image is the first that any of its views has.
_TELLING = (SIGNIFICANT, UNDECIDED, NOT_VALID, NOT_SIGNIFICANT, NO_REGION)


@dataclass(frozen=True)
class InspectOptions:
    """Options of decisions: level, deciding p-value, procedure for q-values and alternative.

    Raises:
        InputError: A field is out of range or unknown.

    Example:
        >>> options = InspectOptions(decide_by="conformal")
        >>> options.alpha, options.decide_by
        (0.05, 'conformal')
    """

    alpha: float = 0.05  # level for all views of an image together
    decide_by: str = "selective"  # one of `DECIDING`: selective, inflated, heavy_tails, conformal
    discoveries: str = "by"  # procedure for q-values, "by" or "bh", see `discovery_q`
    alternative: str = "two-sided"  # alternative hypothesis of the tests

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise InputError(f"alpha: got {self.alpha}, expected a level in (0, 1)")
        if self.decide_by not in DECIDING:
            known = ", ".join(DECIDING)
            raise InputError(f"decide_by: got {self.decide_by!r}, expected one of {known}")
        check_procedure("discoveries", self.discoveries)


class ViewRef(NamedTuple):
    """Reference to a view to be tested, or to an image that cannot be read, as its view 0.

    Example:
        >>> sample = Sample("a.png", Path("a.png"), "test", "unknown", None, "a")
        >>> ViewRef(sample, view=0, num_views=4).num_views
        4
    """

    sample: Sample
    view: int  # number of the view in its image, from 0
    num_views: int  # number of views of the image
    key: str = ""  # key of its record and maps in the run, once it is queued


class ViewResult(NamedTuple):
    """Results of one view, or of one component of a view: a row of results.csv.

    Example:
        >>> p = dict.fromkeys(METHODS, SelectiveP(0.02, 0.01, 0.03))
        >>> one = ViewResult("a.png", 0, 1, 0, 0, "unknown", "a", "OK", p=p)
        >>> one.table_p("selective"), one.table_p("inflated"), one.as_row()["p_low"]
        (0.02, 0.03, 0.01)
    """

    name: str  # name of the image
    view: int  # number of the view in its image, from 0
    views: int  # number of views of the image
    component: int  # number of the component in its view, from 1; 0 if the view has one region
    components: int  # number of components of the view; 0 if it has one region
    label: str
    group: str  # physical object
    status: str  # status of the test
    decision: str = ""  # see `decide`
    p_adjusted: float = math.nan  # upper bound, adjusted for all components and views of the image
    q_value: float = math.nan  # false discovery rate at which the region would be rejected
    p: Mapping[str, SelectiveP] = {}  # by method, see `METHODS`; NaN if there is none
    p_sigma: Mapping[float, SelectiveP] = {}  # raw p by factor of the noise's standard deviation
    bonferroni_log10_p: float = math.nan  # log10, over all regions
    over_conditioned_p: float = math.nan  # given the first window, too; NaN if not computed
    permutation_p: float = math.nan  # NaN if not requested
    num_tested: int = 0  # number of pixels of the region
    num_ties: int = 0  # number of pixels that rounding may add to the region or remove from it
    statistic: float = math.nan  # in units of the view, like `sd` and `estimate`
    sd: float = math.nan  # standard deviation of the statistic
    z: float = math.nan  # statistic / sd
    estimate: float = math.nan  # estimate of the mean difference, with its confidence interval
    ci_low: float = math.nan
    ci_high: float = math.nan
    max_score: float = math.nan
    message: str = ""  # reason why there is no result
    warning: str = ""  # warning about the image
    touches_mask: bool | None = None  # whether the region touches a defect; None if none is marked
    # (top, left, bottom, right) in the image, pixels, the last two excluded; None without a pixel
    box: tuple[int, int, int, int] | None = None

    def table_p(self, method: str) -> float:
        """Return the p-value that the table shows: the raw p-value, or the upper bound of another.

        Args:
            method: Method, a key of `METHODS`.

        Returns:
            The p-value; NaN if there is none.
        """
        return self.p[method].p if method == "selective" else self.p[method].high

    def as_row(self) -> dict[str, Any]:
        """Return the result as a row of the table.

        Returns:
            Plain values by column, in the order of the columns.
        """
        row: dict[str, Any] = {}
        for field, value in self._asdict().items():
            row |= _CELLS[field](value) if field in _CELLS else {field: value}
        return row


def _p_cells(p: Mapping[str, SelectiveP]) -> dict[str, float]:
    raw = p["selective"]
    cells = {"p_value": raw.p, "p_low": raw.low, "p_high": raw.high}
    for method, column in COLUMNS.items():
        if method != "selective":
            cells[column] = p[method].high
        if method in DECIDING[1:]:  # the search leaves no bounds on the other p-values
            cells[column + LOW] = p[method].low
    return cells


def _sigma_cells(p: Mapping[float, SelectiveP]) -> dict[str, float]:
    cells = {}
    for factor, bounds in p.items():
        cells |= {f"p_sigma_{factor:g}": bounds.high, f"p_sigma_{factor:g}{LOW}": bounds.low}
    return cells


def _box_cells(box: tuple[int, int, int, int] | None) -> dict[str, int | None]:
    return dict(zip(BOX, box or (None,) * len(BOX), strict=True))


# Functions that spread a field of a result over several columns.
_CELLS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "p": _p_cells,
    "p_sigma": _sigma_cells,
    "box": _box_cells,
}


class ImageResult(NamedTuple):
    """Results of one image: a row of images.csv.

    Example:
        >>> ImageResult("a.png", "unknown", "a", "no region", math.nan, 4, 0, 0, 0).views
        4
    """

    name: str
    label: str
    group: str  # physical object
    decision: str  # decision of highest precedence among its views and components
    p_adjusted: float  # smallest adjusted p-value of its views and components
    views: int  # number of views
    views_with_region: int
    views_significant: int
    views_without_result: int
    message: str = ""
    warning: str = ""


def check_decider(decide_by: str, calibration: Calibration | None) -> None:
    """Raise an `InputError` for a recalibrated p-value of a model without a calibration."""
    if calibration is None and decide_by != "selective":
        raise InputError(
            f"decide_by: got {decide_by!r}, expected 'selective' for a model without a "
            "calibration: run dal-jax calibrate"
        )


def view_results(
    tested: Sequence[tuple[ViewRef, dict[str, Any]]],
    calibration: Calibration | None,
    options: InspectOptions,
) -> list[ViewResult]:
    """Compute all p-values of each view, or of each of its components, and decide on it.

    In an image of V views each view is decided at level alpha / V (Bonferroni), and the components
    of a view by Holm's adjusted p-values. The chance that any region of a normal image is called
    significant is at most alpha.

    Args:
        tested: Views and the records of their tests.
        calibration: Calibration of the model; None for raw p-values alone.
        options: Deciding p-value, level, and procedure for q-values.

    Returns:
        Results in the order of the views.

    Raises:
        InputError: A recalibrated p-value is to decide and there is no calibration.

    Example:
        >>> sample = Sample("a.png", Path("a.png"), "test", "unknown", None, "a")
        >>> from dal_jax import as_record, dal_test, from_score
        >>> brightness = from_score(lambda params, draws, x: x[..., 0], (2, 2, 1), 2.5)
        >>> result = dal_test(brightness, np.ones((2, 2, 1)), np.zeros((2, 2, 1)), "iid:1.0")
        >>> tested = [(ViewRef(sample, 0, 1), as_record(result))]
        >>> one = view_results(tested, None, InspectOptions())[0]
        >>> one.name, one.decision, one.num_tested
        ('a.png', 'no region', 0)
    """
    check_decider(options.decide_by, calibration)
    views = []
    for item, record in tested:
        parts = parts_of_record(record)
        numbers = range(1, len(parts) + 1) if record.get("components") else [0]
        for number, part in zip(numbers, parts, strict=True):
            views.append(_view(item, number, max(numbers), part, calibration, options.alternative))
    q_values = discovery_q([one.p[options.decide_by].high for one in views], options.discoveries)
    return [
        one._replace(
            decision=decide(one.status, p[1:], options.alpha, one.views),
            p_adjusted=float(np.minimum(1.0, one.views * p.high)),  # NaN stays
            q_value=q,
        )
        for one, p, q in zip(views, adjusted_p(views, options.decide_by), q_values, strict=True)
    ]


def _view(
    item: ViewRef,
    component: int,
    components: int,
    record: dict[str, Any],
    calibration: Calibration | None,
    alternative: str,
) -> ViewResult:
    sample = item.sample
    usable = calibration is not None and record["status"] not in ("INVALID_INPUT", "NON_FINITE")
    return ViewResult(
        name=sample.name,
        view=item.view,
        views=item.num_views,
        component=component,
        components=components,
        label=sample.label,
        group=sample.group,
        p=calibration.p_values(record) if calibration and usable else raw_p_values(record),
        p_sigma={factor: p_with_sigma(record, factor, alternative) for factor in SIGMA},
        num_tested=sum(length for _, length in record["region"]),
        z=record["statistic"] / record["sd"],
        **{name: record[name] for name in _COPIED},
    )


def adjusted_p(views: Sequence[ViewResult], method: str) -> list[SelectiveP]:
    """Adjust the p-values of regions for the number of components of their view.

    Args:
        views: Results, those of each view in succession.
        method: Method, a key of `METHODS`.

    Returns:
        P-value of each result with bounds, not adjusted for the number of views; NaN if there is
        none.
    """
    found: list[SelectiveP] = []
    for _, own in groupby(views, key=lambda one: (one.name, one.view)):
        found += over_components(method, [one.p[method] for one in own])
    return found


def image_result(views: Sequence[ViewResult]) -> ImageResult:
    """Summarize the results of the views of an image and of their components.

    Args:
        views: Results of one image, one or more.

    Returns:
        The decision of highest precedence ("significant", "undecided", "no valid result", "not
        significant", "no region"), the smallest adjusted p-value, and counts.

    Example:
        >>> one = ViewResult("a.png", 0, 2, 0, 0, "unknown", "a", "NO_REGION", "no region")
        >>> other = one._replace(view=1, decision="significant", p_adjusted=0.01, num_tested=5)
        >>> found = image_result([one, other])
        >>> found.decision, found.p_adjusted, found.views_with_region
        ('significant', 0.01, 1)
    """
    first = views[0]
    p = np.array([one.p_adjusted for one in views], float)
    return ImageResult(
        first.name,
        first.label,
        first.group,
        min((one.decision for one in views), key=_TELLING.index),
        float(np.nanmin(p)) if not np.isnan(p).all() else math.nan,
        _count(views),
        _count([one for one in views if one.num_tested > 0]),
        _count([one for one in views if one.decision == SIGNIFICANT]),
        _count([one for one in views if one.decision == NOT_VALID]),
        next((one.message for one in views if one.message), ""),
        first.warning,
    )


def _count(views: Sequence[ViewResult]) -> int:
    return len({(one.name, one.view) for one in views})


class Tally(NamedTuple):
    """Numbers of images, views, regions and decisions in a table.

    Example:
        >>> Tally(1, 2, 0, {"no region": 2}, "2 views of 1 image: 2 no region").views
        2
    """

    images: int
    views: int
    regions: int  # number of flagged regions, each in a row of its own
    decisions: dict[str, int]  # number of rows by decision: regions, and views without a region
    words: str  # the same counts in words


def tally(views: Sequence[ViewResult]) -> Tally:
    """Count images, views, regions and decisions.

    Args:
        views: Results of one or more images; a view has one, or one for each component.

    Returns:
        The counts, and the same in words.

    Example:
        >>> one = ViewResult("a.png", 0, 1, 0, 0, "unknown", "a", "NO_REGION", "no region")
        >>> tally([one]).words
        '1 view of 1 image: 1 no region'
    """
    flagged = [one for one in views if one.num_tested > 0]
    images, count = len({one.name for one in views}), _count(views)
    words = f"{_plural(count, 'view')} of {_plural(images, 'image')}"
    if any(one.component for one in views):
        empty = _decisions([one for one in views if one.num_tested <= 0])
        words = f"{_plural(len(flagged), 'region')} of {words}: {_listed(_decisions(flagged))}"
        words += f"; views without regions: {_listed(empty)}" if empty else ""
    else:
        words += f": {_listed(_decisions(views))}"
    return Tally(images, count, len(flagged), _decisions(views), words)


def _decisions(views: Sequence[ViewResult]) -> dict[str, int]:
    counts = Counter(one.decision for one in views)
    known = [decision for decision in _TELLING if counts[decision]]
    return {decision: counts[decision] for decision in (*known, *sorted({*counts} - {*_TELLING}))}


def _listed(decisions: dict[str, int]) -> str:
    return ", ".join(f"{count} {decision}" for decision, count in decisions.items())


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)


def decide(status: str, bounds: tuple[float, float], alpha: float, num_views: int) -> str:
    """Decide on a view at level alpha / num_views.

    Args:
        status: Status of the test.
        bounds: Lower and upper bound on the deciding p-value; NaN if there is none.
        alpha: Level for all views of an image together.
        num_views: Number of views of the image.

    Returns:
        "significant", "not significant", "undecided", "no region" or "no valid result".

    Example:
        >>> decide("OK", (0.01, 0.02), alpha=0.05, num_views=2)
        'significant'
    """
    if status == "NO_REGION":
        return NO_REGION
    if np.isnan(bounds[0]):
        return NOT_VALID
    if num_views * bounds[1] <= alpha:
        return SIGNIFICANT
    return NOT_SIGNIFICANT if num_views * bounds[0] > alpha else UNDECIDED


def region_number(one: ViewResult) -> str:
    """Return the number of a component in pictures, preceded by its view's if there are several.

    Args:
        one: Result of a component or view.

    Returns:
        Text such as "2", or "5.2" in view 5; "" if the view has one region.
    """
    if not one.component:
        return ""
    return f"{one.view}.{one.component}" if one.views > 1 else f"{one.component}"


def picture_name(name: str, names: Container[str]) -> str:
    """Return the name of an image's picture: `a.png` for a.png, and `b.jpg.png` for b.jpg.

    Args:
        name: Name of the image.
        names: Names of all images of the table. If `a` is among them, its picture is `a.png`, and
            that of a.png is `a.png.png`.

    Returns:
        Path below the folder of pictures, unique for each image.
    """
    own = name.endswith(".png") and name.removesuffix(".png") not in names
    return name if own else f"{name}.png"


def write_views(directory: Path, views: Sequence[ViewResult]) -> None:
    """Write results.csv and rows.jsonl, each whole or not at all.

    Args:
        directory: Directory of the results.
        views: Results of views and components.

    Raises:
        InputError: A file cannot be written.
    """
    rows = [one.as_row() for one in views]
    write_text(directory / TABLE, csv_text(rows))
    lines = [json.dumps(encode(row), allow_nan=False, ensure_ascii=False) for row in rows]
    write_text(directory / ROWS, "".join(f"{line}\n" for line in lines))
