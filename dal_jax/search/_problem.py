"""A line to be searched: a localizer's score along it, and the observed region."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dal_jax._arrays import cast_floats
from dal_jax._typing import Array, Float, PyTree
from dal_jax.search._selection import SelectedRegion


class LineProblem(NamedTuple):
    """Search for the part of `base + direction z` on which the region is the observed one.

    Example:
        >>> from dal_jax.search import select_region
        >>> bright, along = lambda params, draws, x: x[..., 0], np.array([[[1.0], [0.0]]])
        >>> selected = select_region(np.array([[2.0, 0.0]]), 1.0)  # at z = 2
        >>> problem = LineProblem(bright, (), (), 1.0, 0 * along, along, selected, 2.0)
        >>> bool(problem.membership(operands(problem, "float32"), jnp.float32(0.5))[0])  # 0.5 < 1
        False
    """

    score_fn: Callable[..., Any]  # (params, draws, x (H, W, C)) -> (H, W)
    params: PyTree  # of the score
    draws: PyTree  # fixed random numbers of the score
    threshold: float  # of the score
    base: Float[np.ndarray, "H W C"]  # independent of the statistic
    direction: Float[np.ndarray, "H W C"]  # per standard deviation of the statistic
    selected: SelectedRegion  # at z_obs
    z_obs: float  # observed statistic in units of its standard deviation

    @property
    def membership(self) -> "Membership":
        """Function that decides whether the observed region is selected at a point of the line."""
        return Membership(self.score_fn, bool(self.selected.must_stay_lower.any()))


@dataclass(frozen=True)
class Membership:
    """Function (operands, z) -> (whether the region is the observed one, the score map).

    Example:
        >>> from dal_jax.search import select_region
        >>> bright, along = lambda params, draws, x: x[..., 0], np.array([[[1.0], [0.0]]])
        >>> selected = select_region(np.array([[2.0, 0.0]]), 1.0)  # at z = 2
        >>> problem = LineProblem(bright, (), (), 1.0, 0 * along, along, selected, 2.0)
        >>> at = operands(problem, "float32"), jnp.float32(3.0)
        >>> same, score = Membership(bright)(*at)
        >>> bool(same), score.tolist()
        (True, [[3.0, 0.0]])
    """

    score_fn: Callable[..., Any]  # (params, draws, x (H, W, C)) -> (H, W)
    must_stay_lower: bool = False  # whether any pixel must only score below the region's highest

    def __call__(self, operands: Any, z: Array) -> tuple[Array, Array]:
        """Evaluate at one point of the line.

        Args:
            operands: Arrays from the function `operands`.
            z: Standardized point, a scalar of the same dtype.

        Returns:
            (bool, (H, W)): whether the observed region is selected there, and the score.
        """
        params, draws, base, direction, selected, threshold = operands
        score = self.score_fn(params, draws, base + direction * z)
        flagged = score > threshold
        same = jnp.all(jnp.where(selected.region, flagged, ~(flagged & selected.must_not_flag)))
        if self.must_stay_lower:
            highest = jnp.max(jnp.where(selected.region, score, threshold))
            level = score == highest
            first = jnp.argmax(level & selected.region)  # `select_region` takes the first of equals
            later = jnp.arange(score.size).reshape(score.shape) > first
            same &= jnp.all((score < highest) | (level & later) | ~selected.must_stay_lower)
        return same, score


def operands(problem: LineProblem, dtype: Any) -> Any:
    """Return the arrays of a problem, with one floating dtype.

    Args:
        problem: Problem of the line.
        dtype: Floating dtype of the computation.

    Returns:
        The first argument of a `Membership`.

    Example:
        >>> from dal_jax.search import select_region
        >>> bright, along = lambda params, draws, x: x[..., 0], np.array([[[1.0], [0.0]]])
        >>> selected = select_region(np.array([[2.0, 0.0]]), 1.0)  # at z = 2
        >>> problem = LineProblem(bright, (), (), 1.0, 0 * along, along, selected, 2.0)
        >>> _, _, base, _, _, threshold = operands(problem, "float32")
        >>> base.dtype.name, threshold.dtype.name
        ('float32', 'float32')
    """
    arrays = (problem.params, problem.draws, problem.base, problem.direction)
    return (*cast_floats(arrays, dtype), problem.selected, np.asarray(problem.threshold, dtype))


def tree_spec(tree: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a hashable description of a pytree of arrays: its structure, shapes and dtypes.

    Args:
        tree: Pytree of arrays.

    Returns:
        (structure, ((shape, dtype), ...)); `tree_from_spec` turns it into shapes to trace with.
    """
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((tuple(np.shape(v)), np.dtype(v.dtype).name) for v in leaves)


def tree_from_spec(description: tuple[Any, tuple[Any, ...]]) -> Any:
    """Return the pytree of `jax.ShapeDtypeStruct` that a description stands for.

    Args:
        description: Description from `tree_spec`.

    Returns:
        A tree to trace functions with.
    """
    structure, leaves = description
    return structure.unflatten([jax.ShapeDtypeStruct(s, np.dtype(d)) for s, d in leaves])
