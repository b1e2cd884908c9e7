"""The result of the test of one image."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dal_jax._errors import InputError
from dal_jax._typing import Bool, Float
from dal_jax.inference import (
    Effect,
    Line,
    SelectiveP,
    as_intervals,
    bonferroni_log10_p,
    holm,
    naive_p,
    over_conditioned_p,
)
from dal_jax.search import SearchResult, Status, misjudged_length

# Fields of a result that are maps; a record holds the region as runs of pixels and no other map.
MAPS = ("region", "score", "reconstruction")
# Two computations of one test agree to this tolerance, relative to 1 or to the larger number, in
# all fields but those of SEARCH, which depend on the points that the search happened to evaluate:
# of these only the bounds on p are compared. The same images in batches of another composition, on
# other devices or processors, give other roundings, of 1e-15 in what float64 settles.
TOLERANCE = 1e-9
SEARCH = frozenset(
    [
        "p_value",
        "p_low",
        "p_high",
        "permutation_p",
        "truncation",
        "searched",
        "num_windows",
        "num_evaluations",
        "spacing",
        "num_checks",
        "num_disagreements",
        "misjudged_length",
        "estimate",
        "ci_low",
        "ci_high",
        "p_holm",
        "p_holm_low",
        "p_holm_high",
        "seconds",
    ]
)


# The status of an image is the worst of its components.
_SEVERITY = [Status.OK, Status.NOT_CONVERGED, Status.TIE, Status.NON_FINITE]


class TestResult(NamedTuple):
    """Result of the test of one image; numbers that are not valid are NaN.

    Example:
        >>> from dal_jax import dal_test, from_score
        >>> brightness = from_score(lambda params, draws, x: x[..., 0], (2, 2, 1), 2.5)
        >>> result = dal_test(brightness, np.ones((2, 2, 1)), np.zeros((2, 2, 1)), "iid:1.0")
        >>> result.status.value, result.p_value  # nothing is brighter than 2.5
        ('NO_REGION', nan)
    """

    p_value: float  # selective; from the part of the truncation set found by the search
    p_low: float  # p_low <= p <= p_high whatever the unsearched part of the line holds
    p_high: float
    naive_p: float  # as if the region had been chosen beforehand: not valid
    bonferroni_log10_p: float  # log10, over all 2^n regions
    over_conditioned_p: float  # valid but weak: also given the first window; NaN where that is
    statistic: float  # difference of means inside the region, in units of the image
    sd: float  # its standard deviation, in units of the image
    region: Bool[np.ndarray, "H W"]  # tested pixels
    score: Float[np.ndarray, "H W"]
    reconstruction: Float[np.ndarray, "H W C"]
    truncation: Float[np.ndarray, "k 2"]  # of statistic + added, where the region is the same
    searched: Float[np.ndarray, "m 2"]  # where that is known; both in units of the image
    window: Float[np.ndarray, " 2"]  # the first window; units of the statistic; NaN if not computed
    engine: str
    num_windows: int  # affine pieces visited; exact engines only
    num_evaluations: int  # evaluations of the score function
    status: Status
    seconds: float  # wall time from start to end, with compilation and concurrent tests
    permutation_p: float = math.nan  # valid if pixels are exchangeable; NaN if not requested
    spacing: float = math.nan  # widest undivided cell, units of the statistic; adaptive only
    num_checks: int = 0  # random points that were all as predicted in the end; adaptive only
    num_disagreements: int = 0  # of any check, with those that were followed up; adaptive only
    misjudged_length: float = math.nan  # bound on its share of the searched z, from checks alone
    num_ties: int = 0  # pixels decided by rounding: their score is the threshold to 1e-12
    message: str = ""  # reason, where the status is INVALID_INPUT
    randomization: float = 0.0  # gamma: noise added for the selection, in deviations of the noise
    seed: int = 0  # of the added noise, with the image's name, and of the random checks
    added: float = math.nan  # change of the statistic by the added noise, in units of the image
    added_sd: float = math.nan  # standard deviation of that change, in units of the image
    estimate: float = math.nan  # of the mean difference, median-unbiased, in units of the image
    ci_low: float = math.nan  # ends of its confidence interval, the widest that the search
    ci_high: float = math.nan  # allows; they may be infinite without randomization
    p_holm: float = math.nan  # of a component: Holm's adjusted p over those of the image,
    p_holm_low: float = math.nan  # with bounds
    p_holm_high: float = math.nan
    components: tuple["TestResult", ...] = ()  # result of each component, with region "components"

    __test__ = False  # the name makes pytest take it for a test case


def empty_result(
    score: Float[np.ndarray, "H W"],
    reconstruction: Float[np.ndarray, "H W C"],
    region: Bool[np.ndarray, "H W"],
    engine: str,
    status: Status = Status.NO_REGION,
    message: str = "",
) -> TestResult:
    """Return a result without a test.

    Args:
        score: Score map (H, W).
        reconstruction: Reconstruction (H, W, C).
        region: Mask (H, W) of the tested pixels.
        engine: Engine, as in `dal_test`.
        status: Reason why there is no test.
        message: The reason in words.

    Returns:
        The result, with NaN for its numbers.
    """
    none, nan = as_intervals([]), math.nan
    return TestResult(
        p_value=nan,
        p_low=nan,
        p_high=nan,
        naive_p=nan,
        bonferroni_log10_p=nan,
        over_conditioned_p=nan,
        statistic=nan,
        sd=nan,
        region=region,
        score=score,
        reconstruction=reconstruction,
        truncation=none,
        searched=none,
        window=np.full(2, nan),
        engine=engine,
        num_windows=0,
        num_evaluations=0,
        status=status,
        seconds=nan,
        message=message,
        added=nan,
        added_sd=nan,
    )


def with_search(
    empty: TestResult,
    line: Line,
    searched: SearchResult,
    window: np.ndarray,
    alternative: str,
    interval: Effect,
) -> TestResult:
    """Add the result of the search of a line.

    Args:
        empty: Result from `empty_result`.
        line: Line that was searched.
        searched: Result of the search, standardized.
        window: First window (2,), standardized, or NaN.
        alternative: Alternative of the test.
        interval: Estimate and interval of the mean difference, in standard deviations.

    Returns:
        The result.
    """
    over_conditioned = math.nan  # where no window was computed
    if not np.isnan(window).any():
        over_conditioned = over_conditioned_p(
            line.standardized, window * line.perturbation.scale, alternative, line.perturbation
        )
    return empty._replace(
        p_value=searched.bounds.p,
        p_low=searched.bounds.low,
        p_high=searched.bounds.high,
        naive_p=naive_p(line.standardized, alternative),
        bonferroni_log10_p=bonferroni_log10_p(line.standardized, empty.region.size, alternative),
        over_conditioned_p=over_conditioned,
        statistic=line.statistic,
        sd=line.sd,
        truncation=searched.truncation * line.unit,
        searched=searched.searched * line.unit,
        window=window * line.unit,
        num_windows=searched.num_windows,
        num_evaluations=searched.num_evaluations,
        status=searched.status,
        added=line.perturbation.shift * line.sd,
        added_sd=line.perturbation.spread * line.sd,
        estimate=interval.estimate * line.sd,
        ci_low=interval.low * line.sd,
        ci_high=interval.high * line.sd,
    )


def with_components(empty: TestResult, found: Sequence[TestResult]) -> TestResult:
    """Return the result of an image whose components were tested, given all flagged pixels.

    Args:
        empty: Result of the image from `empty_result`.
        found: Result of each component from `with_search`.

    Returns:
        The image's result. Its p-values are the smallest of Holm's adjusted ones, which test
        whether there is any anomaly at all; Bonferroni's are over all regions already. Fields that
        belong to one component are NaN.
    """
    adjusted = holm([SelectiveP(part.p_value, part.p_low, part.p_high) for part in found])
    parts = tuple(
        part._replace(p_holm=p.p, p_holm_low=p.low, p_holm_high=p.high)
        for part, p in zip(found, adjusted, strict=True)
    )
    status = max((part.status for part in parts), key=_SEVERITY.index)
    result = empty._replace(
        naive_p=_least(parts, "naive_p", len(parts)),
        bonferroni_log10_p=_least(parts, "bonferroni_log10_p"),
        over_conditioned_p=_least(parts, "over_conditioned_p", len(parts)),
        num_windows=sum(part.num_windows for part in parts),
        num_evaluations=sum(part.num_evaluations for part in parts),
        status=status,
        spacing=float(np.max([part.spacing for part in parts])),  # NaN stays
        num_checks=sum(part.num_checks for part in parts),
        num_disagreements=sum(part.num_disagreements for part in parts),
        components=parts,
    )
    if parts[0].engine == "adaptive":
        result = result._replace(
            misjudged_length=misjudged_length(result.num_checks, result.num_disagreements)
        )
    if _SEVERITY.index(status) > _SEVERITY.index(Status.NOT_CONVERGED):
        return result
    return result._replace(
        p_value=_least(parts, "p_holm"),
        p_low=_least(parts, "p_holm_low"),
        p_high=_least(parts, "p_holm_high"),
    )


def _least(parts: Sequence[TestResult], name: str, factor: int = 1) -> float:
    least = factor * np.min([getattr(part, name) for part in parts])
    return float(np.minimum(1.0, least))  # NaN stays


def parts_of_record(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records of the tested parts of an image: its components, or its one region.

    Args:
        record: Record of an image from `as_record`.

    Returns:
        Records, at least one.

    Example:
        >>> parts_of_record({"name": "a.png", "components": []})
        [{'name': 'a.png', 'components': []}]
    """
    return record.get("components") or [record]


def as_record(result: TestResult) -> dict[str, Any]:
    """Return a result without its maps, as plain Python values.

    Args:
        result: Result of a test.

    Returns:
        The fields. `region` is stored as runs [start, length] of flagged pixels in row-major order
        beside `region_shape`; of the score only its maximum `max_score` is kept, and the
        reconstruction is left out.

    Example:
        >>> score = np.array([[3.0, 1.0]])
        >>> result = empty_result(score, score[..., None], score > 2.5, "adaptive")
        >>> record = as_record(result)
        >>> record["region"], record["region_shape"], record["max_score"]
        ([[0, 1]], [1, 2], 3.0)
    """
    record: dict[str, Any] = {}
    for name, value in result._asdict().items():
        if name == "components":
            record[name] = [as_record(part) for part in value]
        elif name not in MAPS:
            record[name] = value.tolist() if isinstance(value, np.ndarray) else value
    record["status"] = result.status.value
    record["region"] = run_lengths(result.region)
    record["region_shape"] = list(result.region.shape)
    record["max_score"] = float(np.max(result.score))
    return record


def contradiction(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """Compare two records of one test, perhaps computed in other batches or on other processors.

    Args:
        one: Record from `as_record`, perhaps with more keys.
        other: Record of the same test.

    Returns:
        A key in which the records differ by more than rounding, or "p_value" where their bounds on
        p do not overlap; None where the records agree.

    Example:
        >>> one = {"status": "OK", "statistic": 2.0, "p_low": 0.02, "p_high": 0.03}
        >>> contradiction(one, {**one, "statistic": 2.0 + 1e-15, "p_low": 0.01})
        >>> contradiction(one, {**one, "p_low": 0.1, "p_high": 0.2})
        'p_value'
    """
    for key in sorted((one.keys() | other.keys()) - SEARCH - {"components"}):
        if (key in one) != (key in other) or not _close(one[key], other[key]):
            return key
    parts, others = one.get("components", []), other.get("components", [])
    if len(parts) != len(others):
        return "components"
    key = next(filter(None, map(contradiction, parts, others)), None)
    if key is not None:
        return key
    low, high = (np.array([r[name] for r in (one, other)], float) for name in ("p_low", "p_high"))
    if np.isnan(low).all():
        return None
    return None if low.max() <= high.min() + TOLERANCE else "p_value"  # one NaN: they differ


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_close, one, other))
    if isinstance(one, float) and isinstance(other, float):
        if math.isnan(one) or math.isnan(other):
            return math.isnan(one) and math.isnan(other)
        return one == other or abs(one - other) <= TOLERANCE * max(1.0, abs(one), abs(other))
    return bool(one == other)


def run_lengths(region: np.ndarray) -> list[list[int]]:
    """Encode a region as runs of flagged pixels in row-major order.

    Args:
        region: Mask, bool (H, W).

    Returns:
        Pairs [start, length]: pixels start, ..., start + length - 1 of the flattened region.

    Example:
        >>> run_lengths(np.array([[True, True], [False, True]]))
        [[0, 2], [3, 1]]
    """
    flags = np.concatenate([[0], np.asarray(region, bool).ravel(), [0]]).astype(np.int8)
    edges = np.diff(flags)
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return [[int(a), int(b - a)] for a, b in zip(starts, ends, strict=True)]


def region_of(runs: Sequence[Sequence[int]], shape: Sequence[int]) -> Bool[np.ndarray, "H W"]:
    """Decode the runs of `run_lengths`.

    Args:
        runs: Pairs [start, length] of the flattened region.
        shape: Shape (H, W) of the region.

    Returns:
        The region, bool (H, W).

    Raises:
        InputError: A run leaves the shape.

    Example:
        >>> region_of([[0, 2], [3, 1]], (2, 2)).tolist()
        [[True, True], [False, True]]
    """
    region = np.zeros(math.prod(shape), bool)
    for start, length in runs:
        if not 0 <= start <= start + length <= region.size:
            raise InputError(f"runs hold [{start}, {length}], expected them within {region.size}")
        region[start : start + length] = True
    return region.reshape(tuple(shape))
