"""What every exact engine returns for a few parts of a line."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from dal_jax.inference import Intervals, union


class EngineResult(NamedTuple):
    """The observed region's part of the line, within the parts that were asked for.

    Example:
        >>> from dal_jax.inference import as_intervals
        >>> none = as_intervals([])
        >>> left = EngineResult(as_intervals([-1.0, 0.0]), none, 1, 2, True)
        >>> (left + EngineResult(as_intervals([0.0, 2.0]), none, 1, 2, True)).inside.tolist()
        [[-1.0, 2.0]]
    """

    inside: Intervals  # (k, 2) standardized z: the region is the observed one
    gaps: Intervals  # (g, 2) standardized z: skipped; membership is not known there
    num_windows: int  # affine pieces met
    num_evaluations: int  # of the score function, whatever it carried along
    finite: bool  # False: the score was NaN or infinite somewhere

    def __add__(self, other: "EngineResult") -> "EngineResult":  # type: ignore[override]
        """Both together."""
        return EngineResult(
            union(self.inside, other.inside),
            union(self.gaps, other.gaps),
            self.num_windows + other.num_windows,
            self.num_evaluations + other.num_evaluations,
            self.finite and other.finite,
        )


class Engine(Protocol):
    """Finds the observed region's part of the line.

    Example:
        >>> from dal_jax.inference import as_intervals, intersect
        >>> def engine(parts):  # the region is the observed one where z > 1
        ...     inside = intersect(as_intervals(list(parts)), as_intervals([1.0, 9.0]))
        ...     return EngineResult(inside, as_intervals([]), 1, 1, True)
        >>> engine([(-2.0, 2.0)]).inside.tolist()
        [[1.0, 2.0]]
    """

    def __call__(self, parts: Sequence[tuple[float, float]]) -> EngineResult:
        """Searches parts of the line.

        Args:
            parts: (lo, hi) pairs, standardized z, disjoint, ascending, finite.

        Returns:
            What was found within them.
        """
        ...
