"""One line to be searched: a localizer's score along it and the region that was observed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dal_jax._arrays import cast_floats
from dal_jax._typing import Array, Float, PyTree
from dal_jax.search._selection import Picked


class LineProblem(NamedTuple):
    """Where along `base + direction z` is the region the observed one?

    Example:
        >>> from dal_jax.search import pick
        >>> bright, along = lambda params, draws, x: x[..., 0], np.array([[[1.0], [0.0]]])
        >>> picked = pick(np.array([[2.0, 0.0]]), 1.0)  # at z = 2
        >>> problem = LineProblem(bright, (), (), 1.0, 0 * along, along, picked, 2.0)
        >>> bool(problem.membership(operands(problem, "float32"), jnp.float32(0.5))[0])  # 0.5 < 1
        False
    """

    score_fn: Callable[..., Any]  # (params, draws, x (H, W, C)) -> (H, W)
    params: PyTree  # of the score
    draws: PyTree  # fixed random numbers of the score
    threshold: float  # of the score
    base: Float[np.ndarray, "H W C"]  # independent of the statistic
    direction: Float[np.ndarray, "H W C"]  # per standard deviation of the statistic
    picked: Picked  # at z_obs
    z_obs: float  # observed statistic in units of its standard deviation

    @property
    def membership(self) -> "Membership":
        """What tells whether the observed region is picked at a point of the line."""
        return Membership(self.score_fn, bool(self.picked.rest.any()))


@dataclass(frozen=True)
class Membership:
    """(operands, z) -> (whether the region is the observed one, the score map).

    Example:
        >>> from dal_jax.search import pick
        >>> bright, along = lambda params, draws, x: x[..., 0], np.array([[[1.0], [0.0]]])
        >>> picked = pick(np.array([[2.0, 0.0]]), 1.0)  # at z = 2
        >>> problem = LineProblem(bright, (), (), 1.0, 0 * along, along, picked, 2.0)
        >>> at = operands(problem, "float32"), jnp.float32(3.0)
        >>> same, score = Membership(bright)(*at)
        >>> bool(same), score.tolist()
        (True, [[3.0, 0.0]])
    """

    score_fn: Callable[..., Any]  # (params, draws, x (H, W, C)) -> (H, W)
    rest: bool = False  # whether there are pixels that need only not be the highest

    def __call__(self, operands: Any, z: Array) -> tuple[Array, Array]:
        """Evaluates at one point of the line.

        Args:
            operands: what `operands` returned.
            z: standardized, a scalar of the same dtype.

        Returns:
            (bool, (H, W)): whether the observed region is picked there, and the score.
        """
        params, draws, base, direction, picked, threshold = operands
        score = self.score_fn(params, draws, base + direction * z)
        flagged = score > threshold
        same = jnp.all(jnp.where(picked.region, flagged, ~(flagged & picked.rim)))
        if self.rest:
            highest = jnp.max(jnp.where(picked.region, score, threshold))
            level = score == highest
            first = jnp.argmax(level & picked.region)  # `pick` takes the first of equals
            later = jnp.arange(score.size).reshape(score.shape) > first
            same &= jnp.all((score < highest) | (level & later) | ~picked.rest)
        return same, score


def operands(problem: LineProblem, dtype: Any) -> Any:
    """The arrays of a problem, floating ones in one dtype.

    Args:
        problem: the line.
        dtype: floating dtype to compute in.

    Returns:
        What `Membership` takes first.

    Example:
        >>> from dal_jax.search import pick
        >>> bright, along = lambda params, draws, x: x[..., 0], np.array([[[1.0], [0.0]]])
        >>> picked = pick(np.array([[2.0, 0.0]]), 1.0)  # at z = 2
        >>> problem = LineProblem(bright, (), (), 1.0, 0 * along, along, picked, 2.0)
        >>> _, _, base, _, _, threshold = operands(problem, "float32")
        >>> base.dtype.name, threshold.dtype.name
        ('float32', 'float32')
    """
    arrays = (problem.params, problem.draws, problem.base, problem.direction)
    return (*cast_floats(arrays, dtype), problem.picked, np.asarray(problem.threshold, dtype))


def described(tree: Any) -> tuple[Any, tuple[Any, ...]]:
    """A hashable description of a pytree of arrays: its structure, shapes and dtypes.

    Args:
        tree: of arrays.

    Returns:
        (structure, ((shape, dtype), ...)); `undescribed` turns it into shapes to trace with.
    """
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((tuple(np.shape(v)), np.dtype(v.dtype).name) for v in leaves)


def undescribed(description: tuple[Any, tuple[Any, ...]]) -> Any:
    """The pytree of `jax.ShapeDtypeStruct` that a description stands for.

    Args:
        description: from `described`.

    Returns:
        A tree to trace functions with.
    """
    structure, leaves = description
    return structure.unflatten([jax.ShapeDtypeStruct(s, np.dtype(d)) for s, d in leaves])
