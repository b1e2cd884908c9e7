"""A reverse process level by level, for localizers that observe or steer its steps."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dal_jax._typing import Array, PyTree
from dal_jax.diffusion import ReverseConfig, Schedule


class ReverseStep(NamedTuple):
    """Arrays of one step of a reverse process or, with a leading axis, of all steps."""

    level: Array  # t, at which the network is called
    condition: PyTree  # effect of the level on the network
    signal: Array  # sqrt(alpha_bar_t)
    noise: Array  # sqrt(1 - alpha_bar_t)
    keep: Array  # factors of the step, as in `Coefficients`
    denoise: Array
    draw: Array


def reverse_steps(
    denoiser: Any, schedule: Schedule, reverse: ReverseConfig, dtype: Any
) -> ReverseStep:
    """Compute the steps of a reverse process.

    Args:
        denoiser: Network with `conditions(levels)`, from `dal_jax.models.denoiser`.
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
    """Add noise to an image up to a level: `sqrt(ab) x + sqrt(1 - ab) noise`."""
    return step.signal * x + step.noise * noise


def clean_image(step: ReverseStep, x: Array, eps: Array) -> Array:
    """Return the clean image of x given its noise: `(x - sqrt(1 - ab) eps) / sqrt(ab)`."""
    return (x - step.noise * eps) / step.signal


def next_image(step: ReverseStep, x: Array, eps: Array, draw: Array | None = None) -> Array:
    """Return the image at the next level: `keep x + denoise eps + draw e`.

    Without draws the last term is left out. The result equals `sqrt(ab_s) x0 + c2 eps + c1 e` with
    x0 of `clean_image`.
    """
    following = step.keep * x + step.denoise * eps
    return following if draw is None else following + step.draw * draw
