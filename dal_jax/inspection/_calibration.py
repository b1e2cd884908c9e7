"""How far the p-values of a profile can be trusted: tests of held-out normal images."""

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
FORMAT = 2  # of the file
# Of what has a p-value within bounds.
_TESTED = ("OK", "NOT_CONVERGED")
# What each p-value is, in words; "raw" is what the others are shown beside, never in place of.
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
    """What held-out normal images taught, for p-values of further images.

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

    inflated: NullLaw  # normal, its standard deviation fitted
    heavy_tails: NullLaw  # Student's, its scale and degrees of freedom fitted
    selective: Ranks  # raw p-values of normal views, the smallest of their components that have one
    naive: tuple[float, ...]  # naive p-values of the same views
    score: tuple[float, ...]  # minus the maximum score of normal views, also without a region
    score_weights: tuple[float, ...]  # of each, see `conformal_p`
    num_views: int  # with and without a region
    num_groups: int  # physical objects that they are of
    decide_by: str = "selective"  # whose p-values decide unless others are asked for
    unchecked: bool = False  # too few normal views to tell whether raw p-values hold the level

    @property
    def deciding(self) -> tuple[NullLaw | Ranks, ...]:
        """What p-values that may decide are recalibrated by."""
        return self.inflated, self.heavy_tails, self.selective

    def p_values(self, record: dict[str, Any]) -> dict[str, SelectiveP]:
        """All p-values of one tested region, with bounds for what was not searched.

        Args:
            record: of a view's one region or of a component, `as_record` with `max_score`.

        Returns:
            p by method, see `METHODS`; NaN without a region.
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
    """Adjusts the p-values of all components of a view for their number.

    Args:
        method: see `METHODS`.
        p_values: of each component, one or more.

    Returns:
        Holm's adjusted ones; ranks as they are, since they are ranks among the smallest of each
        normal view.
    """
    return list(p_values) if method in _RANKS else holm(p_values)


def smallest_p(method: str, p_values: Sequence[SelectiveP]) -> SelectiveP:
    """The p-value of a view: the smallest adjusted one of its components.

    Args:
        method: as in `over_components`.
        p_values: as in `over_components`.

    Returns:
        p with bounds; NaN where all are.
    """
    adjusted = np.array(over_components(method, p_values))
    return SelectiveP(*np.fmin.reduce(adjusted, axis=0).tolist())


def view_p_values(calibration: Calibration, record: dict[str, Any]) -> dict[str, SelectiveP]:
    """All p-values of one tested view.

    Args:
        calibration: of the model.
        record: of the view.

    Returns:
        p by method; with components the smallest adjusted ones.
    """
    own = [calibration.p_values(part) for part in parts_of_record(record)]
    return {method: smallest_p(method, [p[method] for p in own]) for method in METHODS}


def tested_parts(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What of a view has a p-value: its components, or its one region.

    Args:
        record: of the view.

    Returns:
        Their records; none where nothing was flagged, or nothing of it could be tested.
    """
    return [part for part in parts_of_record(record) if part["status"] in _TESTED]


def view_p(record: dict[str, Any]) -> SelectiveP:
    """The raw p-value of a view, as the table has it.

    Args:
        record: of the view.

    Returns:
        p with bounds; with components the smallest adjusted one of those that have one.
    """
    return smallest_p("selective", [raw_p_values(p)["selective"] for p in parts_of_record(record)])


class Rate(NamedTuple):
    """How often a method calls a normal view significant."""

    method: str
    alpha: float
    rejected: int
    tested: int
    rate: float
    standard_error: float  # clustered by physical object
    low: float  # 95% interval, clustered; 0 and 1 with one physical object
    high: float


def raw_p_values(record: dict[str, Any]) -> dict[str, SelectiveP]:
    """The p-values of one tested region that need no calibration.

    Args:
        record: of a view's one region or of a component.

    Returns:
        By method, with bounds; NaN where there is none.
    """
    found = dict.fromkeys(METHODS, _known(float("nan")))
    raw = SelectiveP(record["p_value"], record["p_low"], record["p_high"])
    return found | {"selective": raw, "naive": _known(record["naive_p"])}


def _known(p: float) -> SelectiveP:
    return SelectiveP(p, p, p)


def observed_of(record: dict[str, Any]) -> Observed:
    """What recalibration needs of a record.

    Args:
        record: of a view with one region, or of a component.

    Returns:
        The observation, standardized.
    """
    sd = record["sd"]
    return Observed(
        record["statistic"] / sd,
        as_intervals(record["truncation"]) / sd,
        as_intervals(record["searched"]) / sd,
        Perturbation(record.get("added_sd", 0.0) / sd, record.get("added", 0.0) / sd),
    )


def p_with_sigma(record: dict[str, Any], factor: float) -> SelectiveP:
    """The raw p-value, with bounds, if the noise's deviation were another; no new search.

    Args:
        record: of a view's one region or of a component.
        factor: of the standard deviation.

    Returns:
        p; NaN where there is none.
    """
    if record["status"] not in _TESTED:
        return _known(float("nan"))
    return NullLaw(factor).p_value(observed_of(record))


def fit_calibration(records: Sequence[dict[str, Any]], groups: Sequence[str]) -> Calibration:
    """Fits the laws and keeps the p-values of normal views.

    A component without a p-value (TIE) counts as one with p = 1, as in the table of tested views:
    ranks hold only if normal and tested views have their smallest p by the same rule.

    Args:
        records: of normal views, with `max_score`.
        groups: the physical object of each.

    Returns:
        The calibration.

    Raises:
        InputError: no view has a region.
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
    sizes = Counter(groups)  # views without a region count, too
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
    """P-values of normal views, each by a calibration that never saw its physical object.

    Args:
        records: of normal views, with `max_score`.
        groups: the physical object of each.
        seed: of the folds.

    Returns:
        (m,) p-values by method, the upper bound of each, which is what decides; NaN for views
        without a region.
    """
    folds = _folds(groups, seed)

    def fit(others: np.ndarray) -> Calibration:
        own: list[str] = [groups[int(k)] for k in others]
        return fit_calibration([records[k] for k in others], own)

    found = cross_fit(folds, fit, lambda fitted, k: view_p_values(fitted, records[k]))
    return {method: np.array([one[method].high for one in found]) for method in METHODS}


def rates(p_values: dict[str, Float[np.ndarray, " m"]], groups: Sequence[str]) -> list[Rate]:
    """False calls on normal views at each level, with errors clustered by physical object.

    Args:
        p_values: by method; NaN where there was nothing to test.
        groups: the physical object of each view.

    Returns:
        A rate for each method and level, among the views that have a p-value.
    """
    out = []
    for method, p in p_values.items():
        known = ~np.isnan(p)
        own = [group for group, use in zip(groups, known, strict=True) if use]
        for alpha in LEVELS:
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
                    max(0.0, low),  # the order makes 0 and 1 of NaN: nothing is known
                    min(1.0, high),
                )
            )
    return out


def uniformity(p: Float[np.ndarray, " m"]) -> float:
    """Kolmogorov-Smirnov p of uniformity, as if the views were independent.

    Args:
        p: p-values, NaN left out.

    Returns:
        p; NaN if there are none.
    """
    known = p[~np.isnan(p)]
    return float(stats.kstest(known, "uniform").pvalue) if len(known) else float("nan")


def save_calibration(directory: Path, calibration: Calibration, facts: dict[str, Any]) -> None:
    """Writes a calibration beside the model, whole or not at all.

    Args:
        directory: of the model.
        calibration: to be kept.
        facts: what else was found, JSON values.

    Raises:
        InputError: the file cannot be written.
    """
    held = encode({"format": FORMAT, **asdict(calibration), "found": facts})
    text = json.dumps(held, indent=1, allow_nan=False)
    write_text(directory / RECORD, text + "\n")


def load_calibration(directory: Path) -> Calibration | None:
    """Reads what `save_calibration` wrote.

    Args:
        directory: of the model.

    Returns:
        The calibration; None if there is none.

    Raises:
        CheckpointError: the file is damaged, or of an earlier version, whose inflation may have
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
    try:
        facts = decode(json.loads(path.read_text()))
        earlier = facts["format"] != FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged, run dal-jax calibrate again") from error
    if earlier:
        raise CheckpointError(
            f"{path}: of an earlier version, whose recalibrated p-values may be too small; remove "
            "the folder calibration beside it and run dal-jax calibrate again"
        )
    try:
        return Calibration(
            inflated=NullLaw(**facts["inflated"]),
            heavy_tails=NullLaw(**facts["heavy_tails"]),
            selective=Ranks(**{name: tuple(p) for name, p in facts["selective"].items()}),
            **{name: tuple(facts[name]) for name in ("naive", "score", "score_weights")},
            num_views=int(facts["num_views"]),
            num_groups=int(facts["num_groups"]),
            decide_by={name: name for name in METHODS}[facts.get("decide_by", "selective")],
            unchecked=bool(facts.get("unchecked", False)),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged, run dal-jax calibrate again") from error


def _folds(groups: Sequence[str], seed: int) -> Int[np.ndarray, " m"]:
    parts = split_groups(groups, [1.0] * min(FOLDS, len(set(groups))), seed)
    folds = np.empty(len(groups), int)
    for number, part in enumerate(parts):
        folds[part] = number
    return folds
