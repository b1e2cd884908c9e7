"""The sweep as an exact engine: in float64, or in float32 with what decides redone in float64."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from dal_jax._compat import exact_arithmetic
from dal_jax.affine import Sweep, Swept, sweep
from dal_jax.inference import Intervals, as_intervals, contains, intersect, subtract, union
from dal_jax.search._engine import EngineResult
from dal_jax.search._problem import LineProblem, Membership, operands, tree_from_spec, tree_spec
from dal_jax.search._selection import margins

# A float32 sweep places ends within 4e-6 of the float64 ones (measured on the reference cases).
POLISH_WIDTH = 2e-5
# Scores this close to the threshold (relative to it, or 1) are looked at again in float64; or
# this many times the error of the float32 score at the observed image, if that is more.
SUSPECT, SUSPECT_ERRORS = 1e-5, 8.0
# The parts to be polished grow this often, this fast, while their ends contradict the float32.
POLISH_ROUNDS, POLISH_GROWTH = 6, 8.0


@lru_cache(maxsize=32)
def _prepared(membership: Membership, description: Any, dtype: str) -> Sweep:
    shape = jax.ShapeDtypeStruct((), np.dtype(dtype))
    return sweep(membership, tree_from_spec(description), shape)


@lru_cache(maxsize=32)
def _evaluation(membership: Membership) -> Any:
    return jax.jit(membership)


class SweepEngine:
    """Sweeps parts of one line in one precision.

    Args:
        problem: the line.
        dtype: "float64", or "float32" to polish what a float32 sweep finds.

    Example:
        >>> from dal_jax.search import select_region
        >>> bright, along = lambda params, draws, x: x[..., 0], np.array([[[1.0], [0.0]]])
        >>> selected = select_region(np.array([[2.0, 0.0]]), 1.0)  # at z = 2
        >>> problem = LineProblem(bright, (), (), 1.0, 0 * along, along, selected, 2.0)
        >>> SweepEngine(problem)([(-4.0, 4.0)]).inside.round(6).tolist()
        [[1.0, 4.0]]
    """

    @exact_arithmetic()
    def __init__(self, problem: LineProblem, dtype: str = "float64"):
        self._problem, self._values = problem, operands(problem, dtype)
        self._sweep = _prepared(problem.membership, tree_spec(self._values), dtype)
        self._statics = self._sweep.bind(self._values)
        self._suspect = SUSPECT * max(1.0, problem.threshold)
        self._judge = SweepEngine(problem) if dtype == "float32" else None
        if self._judge is not None:
            error = np.nan_to_num(np.abs(self._score() - self._judge._score())).max()
            self._suspect = max(self._suspect, SUSPECT_ERRORS * float(error))

    @exact_arithmetic()
    def __call__(self, parts: Sequence[tuple[float, float]]) -> EngineResult:
        """Searches parts of the line.

        Args:
            parts: (lo, hi) pairs, standardized z, disjoint, ascending, finite.

        Returns:
            What was found within them.
        """
        found, suspects = self._run(parts)
        if self._judge is None:
            return found
        if not found.finite:  # perhaps only because float32 overflows
            return self._judge(parts)
        return _polished(self._judge, found, suspects, parts)

    def _score(self) -> np.ndarray:
        """The score map of the observed image, in this engine's precision."""
        z = np.asarray(self._problem.z_obs, self._values[-1].dtype)
        return np.asarray(_evaluation(self._problem.membership)(self._values, z)[1], np.float64)

    @np.errstate(invalid="ignore", over="ignore")  # what is not finite is found out below
    def _run(self, parts: Sequence[tuple[float, float]]) -> tuple[EngineResult, np.ndarray]:
        """What is found, and the nodes at which the score is within rounding of deciding."""
        inside, suspects, windows, evaluations, finite = [], [], 0, 0, True
        for swept in self._sweep.run(self._statics, parts):
            same, score = swept.outputs
            inside.append(_intervals(swept, same))
            margin = margins(score, self._problem.threshold, self._problem.selected).margin
            near = np.abs(margin.min(axis=1)) < self._suspect
            suspects.append(swept.z[near])
            windows += int((~swept.closed).sum())
            evaluations += len(swept.z)
            finite &= bool(np.isfinite(score).all())
        merged = as_intervals(np.concatenate(inside))
        found = EngineResult(merged, as_intervals([]), windows, evaluations, finite)
        return found, np.concatenate(suspects)


def _intervals(swept: Swept, same: np.ndarray) -> np.ndarray:
    """Runs of open intervals on which the region is the observed one."""
    inside = same[:-1] & ~swept.closed
    # Intervals of width zero between two inside ones do not interrupt a run.
    keep = swept.z[1:] > swept.z[:-1]
    inside, lo, hi = inside[keep], swept.z[:-1][keep], swept.z[1:][keep]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8)))
    return np.stack([lo[edges[::2]], hi[edges[1::2] - 1]], axis=1)


def _polished(
    judge: SweepEngine,
    found: EngineResult,
    suspects: np.ndarray,
    parts: Sequence[tuple[float, float]],
) -> EngineResult:
    """Replaces what was found around its ends and near misses by what float64 finds there.

    Where float64 contradicts float32 at the border of a polished part, that part grows; if it
    still does after some rounds, the part is left as a gap.
    """
    limits = as_intervals(list(parts))
    at_limit = np.isin(found.inside, limits)
    centres = np.concatenate([found.inside[~at_limit], suspects])
    width = POLISH_WIDTH * np.maximum(1.0, np.abs(centres))
    total, doubtful = found, as_intervals([])
    for _ in range(POLISH_ROUNDS):
        if not centres.size:
            return total
        around = as_intervals(np.stack([centres - width, centres + width], axis=1))
        around = intersect(around, limits)
        exact, _ = judge._run([(float(lo), float(hi)) for lo, hi in around])
        total = EngineResult(
            union(subtract(found.inside, around), exact.inside),
            total.gaps,
            total.num_windows,
            total.num_evaluations + exact.num_evaluations,
            exact.finite,
        )
        doubtful = _contradicted(around, exact.inside, found.inside, limits)
        if not len(doubtful):
            return total
        wrong = (centres[:, None] >= doubtful[:, 0]) & (centres[:, None] <= doubtful[:, 1])
        width = np.where(wrong.any(1), POLISH_GROWTH * width, width)
    return total._replace(inside=subtract(total.inside, doubtful), gaps=doubtful)


def _contradicted(
    around: Intervals, exact: Intervals, rough: Intervals, limits: Intervals
) -> Intervals:
    """The polished parts at a border of which float32 and float64 disagree."""
    step = 1e-3 * (around[:, 1] - around[:, 0])
    wrong = np.zeros(len(around), bool)
    for border, inwards in ((around[:, 0], step), (around[:, 1], -step)):
        free = ~np.isin(border, limits)
        differs = contains(exact, border + inwards) != contains(rough, border - inwards)
        wrong |= free & differs
    return around[wrong]
