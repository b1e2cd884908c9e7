"""A reverse process taken level by level, for localizers that look at it or steer it on the way."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dal_jax._typing import Array, PyTree
from dal_jax.diffusion import ReverseConfig, Schedule


class ReverseStep(NamedTuple):
    """What one step needs; with a leading axis, all steps of a reverse process."""

    level: Array  # t, at which the network is called
    condition: PyTree  # what the level does to the network
    signal: Array  # sqrt(alpha_bar_t)
    noise: Array  # sqrt(1 - alpha_bar_t)
    keep: Array  # factors of the step, as in `Coefficients`
    denoise: Array
    draw: Array


def reverse_steps(
    denoiser: Any, schedule: Schedule, reverse: ReverseConfig, dtype: Any
) -> ReverseStep:
    """Work out the steps of a reverse process.

    Args:
        denoiser: With `conditions(levels)`, from `dal_jax.models.denoiser`.
        schedule: The noise schedule.
        reverse: Start, steps and eta.
        dtype: Type of the computation.

    Returns:
        The steps, each array with a leading axis, the highest level first; ready for `lax.scan`.

    Source: Song et al., arXiv 2010.02502, equations 12 and 16.
    """
    c = reverse.coefficients(schedule)
    share = schedule.alpha_bar[np.asarray(reverse.levels) + 1]
    numbers = (c.levels, np.sqrt(share), np.sqrt(1.0 - share), c.keep, c.denoise, c.draw)
    level, signal, noise, keep, factor, draw = (jnp.asarray(v, dtype) for v in numbers)
    return ReverseStep(level, denoiser.conditions(c.levels), signal, noise, keep, factor, draw)


def add_noise(step: ReverseStep, x: Array, noise: Array) -> Array:
    """Noise an image to a level: `sqrt(ab) x + sqrt(1 - ab) noise`."""
    return step.signal * x + step.noise * noise


def clean_image(step: ReverseStep, x: Array, eps: Array) -> Array:
    """The image behind a noised one, given its noise: `(x - sqrt(1 - ab) eps) / sqrt(ab)`."""
    return (x - step.noise * eps) / step.signal


def next_image(step: ReverseStep, x: Array, eps: Array, draw: Array | None = None) -> Array:
    """Go to the next level: `keep x + denoise eps + draw e`; without draws the last is left out.

    It equals `sqrt(ab_s) x0 + c2 eps + c1 e` with x0 of `clean_image`.
    """
    following = step.keep * x + step.denoise * eps
    return following if draw is None else following + step.draw * draw
