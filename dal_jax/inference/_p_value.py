"""Selective p-values of a truncated normal statistic, with bounds for what was not searched."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.special import expit

from dal_jax._errors import InputError
from dal_jax.inference._intervals import (
    Intervals,
    as_intervals,
    complement,
    intersect,
    log_total_mass,
)
from dal_jax.inference._randomized import LEAST_SPREAD, NO_PERTURBATION, Perturbation, normal_split

ALTERNATIVES = ("two-sided", "equal-tailed", "greater", "less")
PROCEDURES = ("by", "bh")  # of false discovery rates

# z_obs may miss its interval by this share of max(1, |z_obs|): the rounding of a window's end.
_EDGE = 1e-9


class SelectiveP(NamedTuple):
    """A selective p-value with bounds on its value after a complete search.

    Example:
        >>> bounds = selective_p(2.0, [1.0, 2.5], searched=[-1.5, 2.5])
        >>> bounds.low < bounds.p < bounds.high
        True
    """

    p: float  # from the part of the truncation set known so far; NaN when it is not valid
    low: float  # p if the unsearched rest lies in the truncation in the least favourable way
    high: float  # ... and in the most favourable way; low <= p <= high


def selective_p(
    z_obs: float,
    truncation: ArrayLike,
    searched: ArrayLike,
    alternative: str = "two-sided",
    perturbation: Perturbation = NO_PERTURBATION,
    mean: float = 0.0,
) -> SelectiveP:
    """Return the p-value of z_obs under N(0, 1), with bounds, given that selection saw a set Z.

    Selection saw `V = T + e`: the statistic itself, or a noisier one with `e ~ N(0, spread^2)`
    where selection was randomized. With A the values at least as extreme as z_obs,
    `p = P(T in A | V in Z)`: A is `|t| >= |z_obs|` for "two-sided", `t >= z_obs` for "greater",
    `t <= z_obs` for "less"; "equal-tailed" is `2 min(F, 1 - F)` with F the p-value of "less". Only
    the part of Z inside `searched` is known. p falls when unsearched values with T outside A join
    Z, and rises when values with T in A join it: all of the former give `low`, all of the latter
    `high`. F can take every value between its bounds, so that for "equal-tailed" the same rule
    holds for `min(1, 2 min(less, greater))`.

    Args:
        z_obs: Observed statistic in units of its standard deviation.
        truncation: (k, 2) set Z in the same units; only its part inside `searched` counts.
        searched: (m, 2) part of the line where membership in Z is known.
        alternative: "two-sided", "equal-tailed", "greater" or "less".
        perturbation: Noise that was added to the statistic for the selection; none by default.
        mean: Mean of T in its standard deviations, 0 under the null; one-sided alternatives only.

    Returns:
        SelectiveP(p, low, high), all in [0, 1]; all NaN when z_obs is not finite, or when
        `z_obs + shift`, which selection saw, is not in the searched part of Z.

    Raises:
        InputError: Unknown alternative, or invalid intervals.

    Example:
        >>> [round(v, 4) for v in selective_p(2.0, [[1.0, 3.0]], [[-4.0, 4.0]])]
        [0.136, 0.136, 0.1364]
        >>> seen = Perturbation(spread=0.5, shift=0.1)  # selection was randomized
        >>> p = selective_p(2.0, [[1.0, 3.0]], [[-4.0, 4.0]], perturbation=seen)
        >>> [round(v, 4) for v in p]
        [0.1059, 0.1059, 0.1076]

    Source: Katsuoka et al., arXiv 2402.11789 (p); Tian and Taylor, Annals of Statistics 46, 2018
    (randomized selection).
    """
    seen, spread = z_obs + perturbation.shift, perturbation.spread

    def split(part: Intervals, tails: Intervals) -> tuple[float, float]:
        if spread >= LEAST_SPREAD:
            return normal_split(part, tails, spread, mean)
        inner, outer = intersect(part, tails), intersect(part, complement(tails))
        return log_total_mass(inner - mean), log_total_mass(outer - mean)

    return p_of_split(split, z_obs, seen, truncation, searched, alternative)


def p_of_split(
    split: Callable[[Intervals, Intervals], tuple[float, float]],
    z_obs: float,
    seen: float,
    truncation: ArrayLike,
    searched: ArrayLike,
    alternative: str,
) -> SelectiveP:
    """Return the p-value and its bounds under any law.

    Args:
        split: Function (part, tails) -> log probabilities that selection saw a value in the part
            with the statistic in the tails, and with the statistic outside of them.
        z_obs: Observed statistic.
        seen: Value of the statistic that selection saw.
        truncation: Truncation set, as in `selective_p`.
        searched: Searched part of the line, as in `selective_p`.
        alternative: Alternative hypothesis, as in `selective_p`.

    Returns:
        The p-value with its bounds.

    Raises:
        InputError: The same conditions as in `selective_p`.
    """
    check_alternative(alternative)
    if alternative == "equal-tailed":
        less, greater = (
            p_of_split(split, z_obs, seen, truncation, searched, side)
            for side in ("less", "greater")
        )
        return SelectiveP(*np.minimum(1.0, 2 * np.minimum(less, greater)).tolist())
    inside = as_intervals(searched)
    known, unknown = intersect(as_intervals(truncation), inside), complement(inside)
    if not holds(known, seen):
        return SelectiveP(np.nan, np.nan, np.nan)
    tails = _tails(z_obs, alternative)
    return of_masses(*split(known, tails), *split(unknown, tails))


def of_masses(extreme: float, rest: float, more_extreme: float, more_rest: float) -> SelectiveP:
    """Return the p-value and its bounds from log probabilities.

    Args:
        extreme: Log probability of the known truncation set, with a statistic at least as extreme.
        rest: Log probability of the known truncation set, with any other statistic.
        more_extreme: Log probability of the unsearched part, with a statistic at least as extreme.
        more_rest: Log probability of the unsearched part, with any other statistic.

    Returns:
        SelectiveP(p, low, high).
    """
    return SelectiveP(
        _share(extreme, rest),
        _share(extreme, np.logaddexp(rest, more_rest)),
        _share(np.logaddexp(extreme, more_extreme), rest),
    )


def decision(bounds: SelectiveP, alpha: float) -> Literal["reject", "accept", "undecided"]:
    """Return the decision of the test at level alpha, as far as the bounds on p determine it.

    Args:
        bounds: Bounds on a p-value; the test rejects when p <= alpha.
        alpha: Level in (0, 1).

    Returns:
        "reject" when high <= alpha, "accept" when low > alpha, "undecided" otherwise (and for NaN).

    Raises:
        InputError: `alpha` is not in (0, 1).

    Example:
        >>> decision(SelectiveP(p=0.02, low=0.01, high=0.03), alpha=0.05)
        'reject'
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha: got {alpha!r}, expected a level between 0 and 1")
    if bounds.high <= alpha:
        return "reject"
    return "accept" if bounds.low > alpha else "undecided"


def holm(p_values: Sequence[SelectiveP]) -> list[SelectiveP]:
    """Adjust p-values of several hypotheses, to be compared with the level of Holm's procedure.

    The i-th smallest of m becomes `max_{j <= i} min(1, (m - j + 1) p_(j))`. The chance that any
    true hypothesis is rejected is at most alpha, whatever the dependence. Each adjusted p-value
    grows with every p-value, so that bounds give bounds.

    Args:
        p_values: P-values of m hypotheses, with bounds; a NaN counts as 1 for the others.

    Returns:
        The adjusted p-values, in the same order; NaN stays NaN.

    Example:
        >>> [round(p.p, 3) for p in holm([SelectiveP(p, p, p) for p in (0.03, 0.01, 0.04)])]
        [0.06, 0.03, 0.06]

    Source: Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    values = np.array(p_values, np.float64).reshape(-1, 3)
    known = np.where(np.isnan(values), 1.0, values)
    order = np.argsort(known, axis=0, kind="stable")
    factors = np.arange(len(values), 0, -1)[:, None]
    stepped = np.maximum.accumulate(factors * np.take_along_axis(known, order, 0), axis=0)
    adjusted = np.empty_like(known)
    np.put_along_axis(adjusted, order, np.minimum(1.0, stepped), 0)
    adjusted[np.isnan(values)] = np.nan
    return [SelectiveP(*row) for row in adjusted.tolist()]


def discovery_q(p_values: ArrayLike, method: str = "by") -> list[float]:
    """Return the false discovery rate at which each of many hypotheses would be rejected.

    Among the hypotheses with `q <= rate` the expected share of false rejections is at most the
    rate: by Benjamini and Yekutieli's procedure for any dependence of the tests, by Benjamini and
    Hochberg's for independent tests, such as those that share neither references nor an image.

    Args:
        p_values: (m,) upper bounds on p, in [0, 1]; NaN where nothing was tested. m may be 0.
        method: "by" or "bh".

    Returns:
        q of each hypothesis; NaN where p is NaN.

    Raises:
        InputError: Unknown method, another shape, or a value that is no p-value.

    Example:
        >>> [round(q, 3) for q in discovery_q([0.01, float("nan"), 0.02], "bh")]
        [0.02, nan, 0.02]

    Source: Benjamini and Hochberg, JRSS B 57, 1995; Benjamini and Yekutieli, Annals of Statistics
    29, 2001.
    """
    check_procedure("method", method)
    try:
        q_values = np.array(p_values, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError("p_values is not an array of numbers, expected shape (m,)") from error
    if q_values.ndim != 1:
        raise InputError(f"p_values has shape {q_values.shape}, expected (m,)")
    known = ~np.isnan(q_values)
    odd = q_values[known & ~((q_values >= 0) & (q_values <= 1))]
    if odd.size:
        raise InputError(f"p_values hold {odd[0]:g}, expected numbers from 0 to 1, or NaN")
    if known.any():
        q_values[known] = stats.false_discovery_control(q_values[known], method=method)
    return q_values.tolist()


def check_procedure(name: str, procedure: str) -> None:
    """Refuse an unknown name of a procedure for q-values.

    Args:
        name: Name of the argument, for the error.
        procedure: Name to check, one of those that `discovery_q` takes.

    Raises:
        InputError: The procedure is unknown.

    Example:
        >>> check_procedure("procedure", "by")
    """
    if procedure not in PROCEDURES:
        raise InputError(f"{name}: got {procedure!r}, expected one of {', '.join(PROCEDURES)}")


def check_level(name: str, level: float) -> None:
    """Refuse a level that is not strictly between 0 and 1.

    Args:
        name: Name of the argument, for the error.
        level: Level of a decision, or confidence of an interval.

    Raises:
        InputError: The level is out of range.

    Example:
        >>> check_level("alpha", 0.05)
    """
    if not 0 < level < 1:
        raise InputError(f"{name}: got {level!r}, expected a level between 0 and 1")


def check_alternative(alternative: str) -> None:
    """Refuse an unknown name of an alternative.

    Args:
        alternative: Name to check, one of `ALTERNATIVES`.

    Raises:
        InputError: The alternative is unknown.

    Example:
        >>> check_alternative("greater")
    """
    if alternative not in ALTERNATIVES:
        raise InputError(
            f"alternative: got {alternative!r}, expected one of {', '.join(ALTERNATIVES)}"
        )


def holds(known: Intervals, z_obs: float) -> bool:
    """Return whether a truncation set holds the observed value, to rounding."""
    if not np.isfinite(z_obs):
        return False
    slack = _EDGE * max(1.0, abs(z_obs))
    return bool(np.any((known[:, 0] - slack <= z_obs) & (z_obs <= known[:, 1] + slack)))


def _tails(z_obs: float, alternative: str) -> Intervals:
    """Return the values at least as extreme as z_obs."""
    if alternative == "two-sided":
        return as_intervals([[-np.inf, -abs(z_obs)], [abs(z_obs), np.inf]])
    return as_intervals([z_obs, np.inf] if alternative == "greater" else [-np.inf, z_obs])


def _share(log_part: float, log_rest: float) -> float:
    """Return part / (part + rest) from logarithms; small shares keep their digits."""
    with np.errstate(invalid="ignore"):  # two empty parts give NaN
        return float(expit(np.float64(log_part) - log_rest))
