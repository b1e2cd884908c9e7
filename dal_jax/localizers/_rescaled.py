"""A localizer that brings every image to unit deviation before it scores it."""

from dataclasses import dataclass

import jax.numpy as jnp

from dal_jax._typing import Array, PyTree
from dal_jax.localizers._localizer import Localizer, MapFunction


@dataclass(frozen=True)
class _Rescaled:
    function: MapFunction

    def __call__(self, params: PyTree, draws: PyTree, x: Array) -> Array:
        return self.function(params, draws, x / jnp.sqrt(jnp.mean(x**2)))


def with_rescaling(localizer: Localizer) -> Localizer:
    """Makes the division by an image's own deviation a part of the localizer.

    `score'(x) = score(x / sqrt(mean x^2))`, the mean over pixels and channels. An image that was
    divided by its own deviation has the same score as before. Along the line of a test its
    deviation changes; the new localizer divides anew at each point, as it would for an image that
    came like that. The score is no longer piecewise affine: adaptive engine only.

    Args:
        localizer: for images (H, W, C) of mean 0 and deviation 1.

    Returns:
        One whose score does not depend on an image's scale; NaN for an image of zeros.

    Example:
        >>> from dal_jax.localizers import from_score
        >>> localizer = from_score(lambda params, draws, x: abs(x[..., 0]), (1, 2, 1), 1.0)
        >>> with_rescaling(localizer).score([[[3.0], [-3.0]]]).tolist()
        [[1.0, 1.0]]
    """
    score, reconstruct = _Rescaled(localizer.score_fn), _Rescaled(localizer.reconstruct_fn)
    return localizer._replace(score_fn=score, reconstruct_fn=reconstruct)
