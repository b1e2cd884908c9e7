"""Calibration of p-values, fitted to tests of held-out normal images."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from dal_jax._dal_test import parts_of_record
from dal_jax._errors import CheckpointError, InputError
from dal_jax._files import file_errors, read_json
from dal_jax._typing import Float, Int
from dal_jax.images import cluster_interval, cluster_standard_error, split_groups, write_text
from dal_jax.inference import (
    NullLaw,
    Observed,
    Perturbation,
    Ranks,
    SelectiveP,
    as_intervals,
    conformal_p,
    cross_fit,
    heavy_tails,
    holm,
    inflation,
    recalibrate,
)
from dal_jax.runs import decode, encode

RECORD = "calibration.json"
LEVELS = (0.01, 0.05, 0.10)
FOLDS = 5
FORMAT = 2  # version of the file format
_ADVICE = "run dal-jax calibrate again"
# Statuses of regions that have a p-value with bounds.
_TESTED = ("OK", "NOT_CONVERGED")
# Description of each p-value; the raw one is always shown, and the others stand beside it.
METHODS = {
    "selective": "raw: the noise model as fitted",
    "inflated": "selective, standard deviation of the statistic times a factor of 1 or more",
    "heavy_tails": "selective, statistic of a Student law, or raw where that is larger",
    "conformal": "rank of the raw selective p among those of normal objects",
    "naive": "not valid: forgets that the region was chosen",
    "conformal_naive": "rank of the naive p; null: the view is exchangeable with normal views",
    "conformal_score": "rank of the maximum score; null: the same",
}
_RANKS = ("conformal", "conformal_naive", "conformal_score")


@dataclass(frozen=True)
class Calibration:
    """Recalibrations fitted to held-out normal images, for p-values of further images.

    Example:
        >>> p, one = (0.1, 0.4, 0.9), (1.0, 1.0, 1.0)
        >>> laws, ranks = (NullLaw(1.2), NullLaw(1.1, 5.0)), Ranks(p, p, p, one)
        >>> held = Calibration(*laws, ranks, p, p, one, 3, 3)
        >>> record = {"status": "OK", "p_value": 0.14, "p_low": 0.13, "p_high": 0.15}
        >>> record |= {"naive_p": 0.05, "max_score": 1.5, "sd": 1.0}
        >>> record |= {"statistic": 2.0, "truncation": [[1.0, 3.0]], "searched": [[-4.0, 4.0]]}
        >>> p = held.p_values(record)
        >>> p["conformal"].high, p["inflated"].high > p["selective"].high
        (0.5, True)
    """

    inflated: NullLaw  # normal law with a fitted standard deviation
    heavy_tails: NullLaw  # Student's law with fitted scale and degrees of freedom
    selective: Ranks  # raw p of each normal view with a region, the smallest of its components
    naive: tuple[float, ...]  # naive p-values of the same views
    score: tuple[float, ...]  # minus the maximum score of normal views, also without a region
    score_weights: tuple[float, ...]  # weight of each score, see `conformal_p`
    num_views: int  # number of normal views, with and without a region
    num_groups: int  # number of physical objects that the views show
    decide_by: str = "selective"  # method that decides unless another one is requested
    unchecked: bool = False  # too few normal views to check whether raw p-values hold the level
    object_scores: tuple[float, ...] = ()  # largest score of the first image of each object
    added: tuple[str, ...] = ()  # digests of images that joined those that training held out

    @property
    def deciding(self) -> tuple[NullLaw | Ranks, ...]:
        """Recalibrations of the p-values that may decide."""
        return self.inflated, self.heavy_tails, self.selective

    def p_values(self, record: dict[str, Any]) -> dict[str, SelectiveP]:
        """Return all p-values of one tested region, with bounds for what was not searched.

        Args:
            record: Record of a view's one region or of a component: `as_record` with `max_score`.

        Returns:
            P-values by method, see `METHODS`; NaN without a region.
        """
        found = raw_p_values(record)
        found["conformal_score"] = _known(
            conformal_p(self.score, -record["max_score"], self.score_weights)
        )
        if record["status"] in _TESTED:
            observed, weights = observed_of(record), self.selective.weights
            found |= {
                "inflated": recalibrate(self.inflated, observed),
                "heavy_tails": recalibrate(self.heavy_tails, observed),
                "conformal": self.selective.rank(found["selective"]),
                "conformal_naive": _known(conformal_p(self.naive, record["naive_p"], weights)),
            }
        return found


def over_components(method: str, p_values: Sequence[SelectiveP]) -> list[SelectiveP]:
    """Adjust the p-values of all components of a view for the number of components.

    Args:
        method: Method, a key of `METHODS`.
        p_values: P-values of the components, one or more.

    Returns:
        Holm's adjusted p-values; conformal ones unchanged, since they are ranks among the smallest
        p-value of each normal view.
    """
    return list(p_values) if method in _RANKS else holm(p_values)


def smallest_p(method: str, p_values: Sequence[SelectiveP]) -> SelectiveP:
    """Return the p-value of a view: the smallest adjusted p-value of its components.

    Args:
        method: Method, as in `over_components`.
        p_values: P-values of the components, as in `over_components`.

    Returns:
        The p-value with bounds; NaN if all are NaN.
    """
    adjusted = np.array(over_components(method, p_values))
    return SelectiveP(*np.fmin.reduce(adjusted, axis=0).tolist())


def view_p_values(calibration: Calibration, record: dict[str, Any]) -> dict[str, SelectiveP]:
    """Return all p-values of one tested view.

    Args:
        calibration: Calibration of the model.
        record: Record of the view.

    Returns:
        P-values by method; if the view has components, the smallest adjusted p-value of each
        method.
    """
    own = [calibration.p_values(part) for part in parts_of_record(record)]
    return {method: smallest_p(method, [p[method] for p in own]) for method in METHODS}


def tested_parts(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of a view that have a p-value: its components, or its one region.

    Args:
        record: Record of the view.

    Returns:
        Records of the parts; empty if nothing was flagged, or if no flagged part could be tested.
    """
    return [part for part in parts_of_record(record) if part["status"] in _TESTED]


def view_p(record: dict[str, Any]) -> SelectiveP:
    """Return the raw p-value of a view.

    Args:
        record: Record of the view.

    Returns:
        The p-value with bounds; if the view has components, the smallest of the adjusted p-values
        that are numbers.
    """
    return smallest_p("selective", [raw_p_values(p)["selective"] for p in parts_of_record(record)])


class Rate(NamedTuple):
    """Rate at which a method calls normal views significant."""

    method: str
    alpha: float  # level
    rejected: int  # number of views called significant
    tested: int  # number of views that have a p-value
    rate: float
    standard_error: float  # clustered by physical object
    low: float  # 95% interval, clustered by physical object; 0 and 1 for one object
    high: float


def raw_p_values(record: dict[str, Any]) -> dict[str, SelectiveP]:
    """Return the p-values of one tested region that need no calibration.

    Args:
        record: Record of a view's one region or of a component.

    Returns:
        P-values by method, with bounds; NaN for methods that need a calibration.
    """
    found = dict.fromkeys(METHODS, _known(float("nan")))
    raw = SelectiveP(record["p_value"], record["p_low"], record["p_high"])
    return found | {"selective": raw, "naive": _known(record["naive_p"])}


def _known(p: float) -> SelectiveP:
    return SelectiveP(p, p, p)


def observed_of(record: dict[str, Any]) -> Observed:
    """Return the observation that is recalibrated, in standard deviations of the statistic.

    Args:
        record: Record of a view with one region, or of a component.

    Returns:
        Statistic, truncation set, searched part and randomization, standardized.
    """
    sd = record["sd"]
    return Observed(
        record["statistic"] / sd,
        as_intervals(record["truncation"]) / sd,
        as_intervals(record["searched"]) / sd,
        Perturbation(record.get("added_sd", 0.0) / sd, record.get("added", 0.0) / sd),
    )


def p_with_sigma(
    record: dict[str, Any], factor: float, alternative: str = "two-sided"
) -> SelectiveP:
    """Return the raw p-value under noise of another standard deviation, without a new search.

    Args:
        record: Record of a view's one region or of a component.
        factor: Factor of the noise's standard deviation.
        alternative: Alternative hypothesis of the test.

    Returns:
        The p-value with bounds; NaN if the region has none.
    """
    if record["status"] not in _TESTED:
        return _known(float("nan"))
    return NullLaw(factor).p_value(observed_of(record), alternative)


def fit_calibration(records: Sequence[dict[str, Any]], groups: Sequence[str]) -> Calibration:
    """Fit a calibration to the tests of normal views.

    A component without a p-value (TIE) counts as one with p = 1, as in the table of tested views.
    Ranks are valid only if the smallest p-value of normal and of tested views follows the same
    rule.

    Args:
        records: Records of normal views, with `max_score`.
        groups: Physical object of each view.

    Returns:
        The calibration.

    Raises:
        InputError: No view has a region.
    """
    parts = {k: own for k, record in enumerate(records) if (own := tested_parts(record))}
    regions = [
        (groups[k], observed_of(part))
        for k, own in parts.items()
        for part in own
        if part["status"] == "OK"
    ]
    if not regions:
        raise InputError(
            f"none of {len(records)} normal views has a tested region, expected some to calibrate "
            "with: more normal images, or training with a larger flag_share"
        )
    observed = [one for _, one in regions]
    sizes = Counter(groups)  # views without a region are included
    scored = [k for k, record in enumerate(records) if np.isfinite(record["max_score"])]
    low, p, high = (
        tuple(min(part[name] for part in own) for own in parts.values())
        for name in ("p_low", "p_value", "p_high")
    )
    return Calibration(
        inflation(observed),
        heavy_tails(observed, [group for group, _ in regions]),
        Ranks(p, low, high, tuple(1 / sizes[groups[k]] for k in parts)),
        tuple(min(part["naive_p"] for part in own) for own in parts.values()),
        tuple(-records[k]["max_score"] for k in scored),
        tuple(1 / sizes[groups[k]] for k in scored),
        len(records),
        len(sizes),
    )


def cross_fitted_p(
    records: Sequence[dict[str, Any]], groups: Sequence[str], seed: int
) -> dict[str, Float[np.ndarray, " m"]]:
    """Return p-values of normal views by calibrations fitted without the view's physical object.

    Args:
        records: Records of m normal views, with `max_score`.
        groups: Physical object of each view.
        seed: Seed of the folds.

    Returns:
        Upper bounds on the p-values, (m,) by method; decisions use these bounds. NaN for views
        without a region.
    """
    folds = _folds(groups, seed)

    def fit(others: np.ndarray) -> Calibration:
        own: list[str] = [groups[int(k)] for k in others]
        return fit_calibration([records[k] for k in others], own)

    found = cross_fit(folds, fit, lambda fitted, k: view_p_values(fitted, records[k]))
    return {method: np.array([one[method].high for one in found]) for method in METHODS}


def rates(
    p_values: dict[str, Float[np.ndarray, " m"]],
    groups: Sequence[str],
    levels: Sequence[float] = LEVELS,
) -> list[Rate]:
    """Return the rates of false calls on normal views, with errors clustered by physical object.

    Args:
        p_values: P-values (m,) by method; NaN where nothing was tested.
        groups: Physical object of each of the m views.
        levels: Levels in (0, 1).

    Returns:
        A rate for each method and level, among the views that have a p-value.
    """
    out = []
    for method, p in p_values.items():
        known = ~np.isnan(p)
        own = [group for group, use in zip(groups, known, strict=True) if use]
        for alpha in levels:
            if not own:
                continue
            called = (p[known] <= alpha).astype(float)
            low, high = cluster_interval(called, own)
            out.append(
                Rate(
                    method,
                    alpha,
                    int(called.sum()),
                    len(called),
                    float(called.mean()),
                    cluster_standard_error(called, own),
                    max(0.0, low),  # this order of arguments turns NaN into 0, and into 1 below
                    min(1.0, high),
                )
            )
    return out


def uniformity(p: Float[np.ndarray, " m"]) -> float:
    """Return the Kolmogorov-Smirnov p-value of uniformity, as if the views were independent.

    Args:
        p: (m,) p-values; NaN entries are ignored.

    Returns:
        The p-value of the Kolmogorov-Smirnov test; NaN if all entries are NaN.
    """
    known = p[~np.isnan(p)]
    return float(stats.kstest(known, "uniform").pvalue) if len(known) else float("nan")


def save_calibration(directory: Path, calibration: Calibration, facts: dict[str, Any]) -> None:
    """Write a calibration as calibration.json, whole or not at all.

    Args:
        directory: Directory of the file, in general that of the model.
        calibration: Calibration to write.
        facts: Further results of the calibration, JSON values.

    Raises:
        InputError: The file cannot be written.
    """
    held = encode({"format": FORMAT, **asdict(calibration), "found": facts})
    text = json.dumps(held, indent=1, allow_nan=False)
    write_text(directory / RECORD, text + "\n")


def load_calibration(directory: Path) -> Calibration | None:
    """Read a calibration that `save_calibration` wrote.

    Args:
        directory: Directory of the model.

    Returns:
        The calibration; None if the model has none.

    Raises:
        CheckpointError: The file is damaged, or of an earlier version, whose inflation may have
            been below 1 and which ranked every view as if it were an object.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(load_calibration(Path(folder)))  # a model that was not calibrated
        None
    """
    path = directory / RECORD
    if not path.is_file():
        return None
    with file_errors(path, "calibration", CheckpointError, _ADVICE):
        facts = decode(read_json(path, "calibration", CheckpointError, _ADVICE))
        if facts["format"] != FORMAT:
            raise CheckpointError(
                f"calibration {str(path)!r}: of an earlier version, whose recalibrated p-values "
                f"may be too small; remove the folder calibration beside it and {_ADVICE}"
            )
        return Calibration(
            inflated=NullLaw(**facts["inflated"]),
            heavy_tails=NullLaw(**facts["heavy_tails"]),
            selective=Ranks(**{name: tuple(p) for name, p in facts["selective"].items()}),
            **{name: tuple(facts[name]) for name in ("naive", "score", "score_weights")},
            num_views=int(facts["num_views"]),
            num_groups=int(facts["num_groups"]),
            decide_by={name: name for name in METHODS}[facts.get("decide_by", "selective")],
            unchecked=bool(facts.get("unchecked", False)),
            object_scores=tuple(facts.get("object_scores", ())),
            added=tuple(facts.get("added", ())),
        )


def _folds(groups: Sequence[str], seed: int) -> Int[np.ndarray, " m"]:
    parts = split_groups(groups, [1.0] * min(FOLDS, len(set(groups))), seed)
    folds = np.empty(len(groups), int)
    for number, part in enumerate(parts):
        folds[part] = number
    return folds
