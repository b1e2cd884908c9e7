"""Exact engines for parts of a line, and the sweep, which finds all windows at once.

It computes in float64, or in float32 with float64 around everything that decides. The scan, which
visits the windows of many lines, is in `_scan.py`.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from dal_jax._compat import exact_arithmetic
from dal_jax.affine import Sweep, Swept, sweep
from dal_jax.inference import Intervals, as_intervals, contains, intersect, subtract, union
from dal_jax.search._selection import (
    LineProblem,
    Membership,
    margins,
    operands,
    tree_from_spec,
    tree_spec,
)

# A float32 sweep places ends within 4e-6 of the float64 ones (measured on the reference cases).
POLISH_WIDTH = 2e-5
# Scores this close to the threshold (relative to it, or to 1) are evaluated again in float64; or
# this close in errors of the float32 score at the observed image, if that is further.
SUSPECT, SUSPECT_ERRORS = 1e-5, 8.0
# Number and factor of the extensions of a polished part whose ends contradict the float32 sweep.
POLISH_ROUNDS, POLISH_GROWTH = 6, 8.0


class EngineResult(NamedTuple):
    """The observed region's part of the line, within the requested parts.

    Example:
        >>> from dal_jax.inference import as_intervals
        >>> none = as_intervals([])
        >>> left = EngineResult(as_intervals([-1.0, 0.0]), none, 1, 2, True)
        >>> (left + EngineResult(as_intervals([0.0, 2.0]), none, 1, 2, True)).inside.tolist()
        [[-1.0, 2.0]]
    """

    inside: Intervals  # (k, 2) standardized z: the region is the observed one
    gaps: Intervals  # (g, 2) standardized z: skipped, with unknown membership
    num_windows: int  # affine pieces visited
    num_evaluations: int  # of the score function, with or without slopes
    finite: bool  # False: the score was NaN or infinite somewhere

    def __add__(self, other: "EngineResult") -> "EngineResult":  # type: ignore[override]
        """Return the union of two results."""
        return EngineResult(
            union(self.inside, other.inside),
            union(self.gaps, other.gaps),
            self.num_windows + other.num_windows,
            self.num_evaluations + other.num_evaluations,
            self.finite and other.finite,
        )


class Engine(Protocol):
    """Function that finds the observed region's part of the line.

    Example:
        >>> from dal_jax.inference import as_intervals, intersect
        >>> def engine(parts):  # the region is the observed one where z > 1
        ...     inside = intersect(as_intervals(list(parts)), as_intervals([1.0, 9.0]))
        ...     return EngineResult(inside, as_intervals([]), 1, 1, True)
        >>> engine([(-2.0, 2.0)]).inside.tolist()
        [[1.0, 2.0]]
    """

    def __call__(self, parts: Sequence[tuple[float, float]]) -> EngineResult:
        """Search parts of the line.

        Args:
            parts: (lo, hi) pairs, standardized z, disjoint, ascending, finite.

        Returns:
            The result within these parts.
        """
        ...


@lru_cache(maxsize=32)
def _prepare(membership: Membership, description: Any, dtype: str) -> Sweep:
    shape = jax.ShapeDtypeStruct((), np.dtype(dtype))
    return sweep(membership, tree_from_spec(description), shape)


@lru_cache(maxsize=32)
def _evaluation(membership: Membership) -> Any:
    return jax.jit(membership)


class SweepEngine:
    """Engine that sweeps parts of one line in one precision.

    Args:
        problem: Problem of the line.
        dtype: "float64", or "float32" for a float32 sweep that is polished in float64.

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
        self._sweep = _prepare(problem.membership, tree_spec(self._values), dtype)
        self._statics = self._sweep.bind(self._values)
        self._suspect = SUSPECT * max(1.0, problem.threshold)
        self._exact_engine = SweepEngine(problem) if dtype == "float32" else None
        if self._exact_engine is not None:
            error = np.nan_to_num(np.abs(self._score() - self._exact_engine._score())).max()
            self._suspect = max(self._suspect, SUSPECT_ERRORS * float(error))

    @exact_arithmetic()
    def __call__(self, parts: Sequence[tuple[float, float]]) -> EngineResult:
        """Search parts of the line.

        Args:
            parts: (lo, hi) pairs, standardized z, disjoint, ascending, finite.

        Returns:
            The result within these parts.
        """
        found, suspects = self._run(parts)
        if self._exact_engine is None:
            return found
        if not found.finite:  # perhaps only because float32 overflows
            return self._exact_engine(parts)
        return _polish(self._exact_engine, found, suspects, parts)

    def _score(self) -> np.ndarray:
        """Return the score map of the observed image, in this engine's precision."""
        z = np.asarray(self._problem.z_obs, self._values[-1].dtype)
        return np.asarray(_evaluation(self._problem.membership)(self._values, z)[1], np.float64)

    @np.errstate(invalid="ignore", over="ignore")  # non-finite values are detected below
    def _run(self, parts: Sequence[tuple[float, float]]) -> tuple[EngineResult, np.ndarray]:
        """Return the result, and the nodes at which rounding of the score may decide."""
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
    """Return the runs of open intervals on which the region is the observed one."""
    inside = same[:-1] & ~swept.closed
    # Intervals of width zero between two inside ones do not interrupt a run.
    keep = swept.z[1:] > swept.z[:-1]
    inside, lo, hi = inside[keep], swept.z[:-1][keep], swept.z[1:][keep]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8)))
    return np.stack([lo[edges[::2]], hi[edges[1::2] - 1]], axis=1)


def _polish(
    exact_engine: SweepEngine,
    found: EngineResult,
    suspects: np.ndarray,
    parts: Sequence[tuple[float, float]],
) -> EngineResult:
    """Replace the result around its ends and near misses by that of the float64 sweep.

    A polished part grows while float64 contradicts float32 at its border; after some rounds it is
    left as a gap.
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
        exact, _ = exact_engine._run([(float(lo), float(hi)) for lo, hi in around])
        total = EngineResult(
            union(subtract(found.inside, around), exact.inside),
            total.gaps,
            total.num_windows,
            total.num_evaluations + exact.num_evaluations,
            exact.finite,
        )
        doubtful = _contradictions(around, exact.inside, found.inside, limits)
        if not len(doubtful):
            return total
        wrong = (centres[:, None] >= doubtful[:, 0]) & (centres[:, None] <= doubtful[:, 1])
        width = np.where(wrong.any(1), POLISH_GROWTH * width, width)
    return total._replace(inside=subtract(total.inside, doubtful), gaps=doubtful)


def _contradictions(
    around: Intervals, exact: Intervals, rough: Intervals, limits: Intervals
) -> Intervals:
    """Return the polished parts at whose border float32 and float64 disagree."""
    step = 1e-3 * (around[:, 1] - around[:, 0])
    wrong = np.zeros(len(around), bool)
    for border, inwards in ((around[:, 0], step), (around[:, 1], -step)):
        free = ~np.isin(border, limits)
        differs = contains(exact, border + inwards) != contains(rough, border - inwards)
        wrong |= free & differs
    return around[wrong]
