"""Noise schedule, and reverse process with fixed draws: a deterministic function of the image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from dal_jax._errors import InputError
from dal_jax._typing import Array, Float, PyTree


@dataclass(frozen=True)
class Schedule:
    """Linear noise schedule: `beta_t` from `beta_start` to `beta_end` over `num_levels` levels.

    Raises:
        InputError: The betas do not satisfy 0 < beta_start <= beta_end < 1, or no levels.

    Example:
        >>> Schedule(num_levels=2, beta_start=0.5, beta_end=0.5).alpha_bar.tolist()
        [1.0, 0.5, 0.25]

    Source: Ho et al., arXiv 2006.11239, section 4.
    """

    num_levels: int = 1000
    beta_start: float = 1e-4  # variance of the noise that the first level adds
    beta_end: float = 0.02  # variance of the noise that the last level adds

    def __post_init__(self) -> None:
        if self.num_levels < 1:
            raise InputError(f"num_levels: got {self.num_levels}, expected a positive number")
        if not 0.0 < self.beta_start <= self.beta_end < 1.0:
            raise InputError(
                f"beta_start, beta_end: got {self.beta_start}, {self.beta_end}, "
                "expected 0 < beta_start <= beta_end < 1"
            )

    @property
    def alpha_bar(self) -> Float[np.ndarray, " levels_and_one"]:
        """Shares of signal (num_levels + 1,): entry 0 is 1, level t uses entry t + 1."""
        beta = np.linspace(self.beta_start, self.beta_end, self.num_levels)
        return np.concatenate([[1.0], np.cumprod(1.0 - beta)])


class Coefficients(NamedTuple):
    """Affine steps `x <- keep x + denoise eps + draw e` of the reverse process, float64.

    Example:
        >>> coefficients = ReverseConfig(start=20, steps=3).coefficients(Schedule())
        >>> coefficients.levels.tolist(), coefficients.keep.shape
        ([20.0, 10.0, 0.0], (3,))

    Source: Song et al., arXiv 2010.02502, equations 12 and 16.
    """

    start_keep: float  # the input becomes start_keep x + start_draw e_0
    start_draw: float
    levels: np.ndarray  # (steps,), the level at which each step calls the network
    keep: np.ndarray  # (steps,), factor of the image
    denoise: np.ndarray  # (steps,), factor of the predicted noise
    draw: np.ndarray  # (steps,), factor of the step's draw


@dataclass(frozen=True)
class ReverseConfig:
    """Reverse process: from level `start` to 0 in `steps` evenly spaced steps.

    `eta` is the share of fresh noise: 0 is deterministic without draws, 1 is that of DDPM.

    Raises:
        InputError: Start, steps or eta out of range.

    Example:
        >>> ReverseConfig(start=460, steps=5).levels
        (460, 345, 230, 115, 0)

    Source: Song et al., arXiv 2010.02502, equations 12 and 16.
    """

    start: int = 460  # level that the image is noised to
    steps: int = 5  # calls of the network
    eta: float = 1.0  # share of fresh noise, 0 to 1

    def __post_init__(self) -> None:
        if self.start < 0:
            raise InputError(f"start: got {self.start}, expected a level of 0 or above")
        if not 1 <= self.steps <= self.start + 1:
            raise InputError(f"steps: got {self.steps}, expected 1 to start + 1 = {self.start + 1}")
        if not 0.0 <= self.eta <= 1.0:
            raise InputError(f"eta: got {self.eta}, expected 0 to 1")

    @property
    def levels(self) -> tuple[int, ...]:
        """Levels at which the network is called, `start` first."""
        return tuple(int(t) for t in np.rint(np.linspace(self.start, 0, self.steps)))

    def coefficients(self, schedule: Schedule) -> Coefficients:
        """Compute the affine coefficients of the steps.

        From level with share a to the next with share n: `c1 = eta sqrt((1-a/n)(1-n)/(1-a))`,
        `c2 = sqrt(1-n-c1^2)`, `x <- sqrt(n/a) x + (c2 - sqrt(n (1-a)/a)) eps + c1 e`.

        Args:
            schedule: Schedule with more than `start` levels.

        Returns:
            Coefficients, numpy float64.

        Raises:
            InputError: `start` is not a level of the schedule.

        Source: Song et al., arXiv 2010.02502, equations 12 and 16.
        """
        if self.start >= schedule.num_levels:
            raise InputError(
                f"start: got {self.start}, expected a level below {schedule.num_levels}"
            )
        levels = np.array(self.levels)
        share = schedule.alpha_bar[levels + 1]
        # After the last step no noise is left: the next share is alpha_bar[0] = 1.
        following = np.append(share[1:], 1.0)
        draw = self.eta * np.sqrt((1.0 - share / following) * (1.0 - following) / (1.0 - share))
        fresh = np.sqrt(np.maximum(1.0 - following - draw**2, 0.0))
        return Coefficients(
            start_keep=float(np.sqrt(share[0])),
            start_draw=float(np.sqrt(1.0 - share[0])),
            levels=levels.astype(np.float64),
            keep=np.sqrt(following / share),
            denoise=fresh - np.sqrt(following * (1.0 - share) / share),
            draw=draw,
        )


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
