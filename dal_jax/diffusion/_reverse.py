"""The reverse process with fixed draws: a deterministic function of the image."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from dal_jax._errors import InputError
from dal_jax._typing import Array, Float, PyTree
from dal_jax.diffusion._schedule import ReverseConfig, Schedule


def reverse_process(
    denoise: Callable[[Array, Any], Array],
    x: Float[Array, "*B H W C"],
    draws: Array | np.ndarray,
    schedule: Schedule,
    reverse: ReverseConfig,
    conditions: PyTree = None,
) -> Float[Array, "*B H W C"]:
    """Add noise to an image up to level `start` and denoise it step by step.

    `x <- keep x + denoise eps(x, level) + draw e_k`, coefficients as in `ReverseConfig`.

    Args:
        denoise: (x, level) -> predicted noise, of the shape and dtype of x.
        x: (H, W, C) or (B, H, W, C), real.
        draws: (1 + steps, H, W, C) standard normal; row 0 noises the input, row k feeds step k.
        schedule: The noise schedule.
        reverse: Start, steps and eta.
        conditions: Arrays (steps, ...) whose rows `denoise` takes in place of the level, so that
            values that depend on the level alone are not computed in every step; None stands for
            the levels.

    Returns:
        The reconstruction, of the shape and dtype of x.

    Raises:
        InputError: The draws do not fit the image and the steps.

    Example:
        >>> x, reverse = jnp.ones((4, 4, 1)), ReverseConfig(start=20, steps=2, eta=0.0)
        >>> draws = np.zeros((3, 4, 4, 1))  # no noise is added and none predicted: the image itself
        >>> made = reverse_process(lambda x, level: 0 * x, x, draws, Schedule(), reverse)
        >>> np.allclose(made, x, atol=1e-5)
        True

    Source: Katsuoka et al., arXiv 2402.11789, section 2; Song et al., arXiv 2010.02502, eq. 12.
    """
    expected = (1 + reverse.steps, *x.shape[-3:])
    if draws.shape != expected:
        raise InputError(f"draws: got shape {draws.shape}, expected {expected}")
    c = reverse.coefficients(schedule)
    number = x.dtype.type
    draws = jnp.asarray(draws, x.dtype)

    def step(y: Array, row: tuple[Any, ...]) -> tuple[Array, None]:
        condition, keep, factor, noise = row
        return keep * y + factor * denoise(y, condition) + noise, None

    # The products with the draws do not move with x, so they are taken outside of the loop.
    noise = jnp.asarray(c.draw, x.dtype)[:, None, None, None] * draws[1:]
    conditions = jnp.asarray(c.levels, x.dtype) if conditions is None else conditions
    rows = (conditions, jnp.asarray(c.keep, x.dtype), jnp.asarray(c.denoise, x.dtype), noise)
    start = number(c.start_keep) * x + number(c.start_draw) * draws[0]
    return lax.scan(step, start, rows)[0]
