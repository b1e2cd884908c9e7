"""The noise added to an image so that selection leaves evidence for the test."""

import hashlib
from typing import Any

import numpy as np

from dal_jax._errors import InputError
from dal_jax._typing import Float
from dal_jax.inference import Noise

# Default gamma: the best compromise of power, localization and interval lengths in
# experiments/specs/gammas.toml (docs/results.md).
GAMMA = 0.5
# Range of gamma: less has no effect, more leaves nothing of the image to be seen.
LEAST, MOST = 1e-3, 1e3
# This constant separates these random numbers from others of the same seed.
STREAM = 1507_06739


def randomization(
    noise: Noise, shape: tuple[int, ...], gamma: float, seed: int, name: str | int = 0
) -> Float[np.ndarray, "H W C"]:
    """Draw the noise added to one image before a localizer sees it: `omega ~ N(0, gamma^2 Sigma)`.

    Args:
        noise: Covariance Sigma of one image; it must be one that can be sampled.
        shape: Shape (H, W, C) of the image.
        gamma: Standard deviation of omega in units of the noise's, above 0.
        seed: Seed of the run, 0 or above.
        name: Name of the image, or its number: images of different names have independent draws. It
            must not depend on the image's pixels.

    Returns:
        Noise (H, W, C) in units of the image; the same for the same arguments.

    Raises:
        InputError: The noise cannot be sampled.

    Example:
        >>> from dal_jax.noise import iid
        >>> one, other = (randomization(iid(1.0), (8, 8, 1), 0.5, 0, name) for name in "ab")
        >>> bool(np.any(one == other)), bool(0.3 < one.std() < 0.7)
        (False, True)

    Source: Tian and Taylor, Annals of Statistics 46, 2018.
    """
    check_sampled(noise)
    kind = "number" if isinstance(name, int | np.integer) else "name"
    text = f"{kind} {name}".encode("utf-8", "surrogatepass")  # names of files may hold any bytes
    words = np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), "<u4").tolist()
    rng = np.random.default_rng([seed, STREAM, *words])
    return gamma * noise.sample(rng, tuple(shape))  # type: ignore[attr-defined]


def check_sampled(noise: Noise) -> None:
    """Refuse a covariance that cannot be sampled by an `InputError`."""
    if not hasattr(noise, "sample"):
        raise InputError(
            f"noise is of type {type(noise).__name__} without `sample`, expected a covariance that "
            "can be sampled: its noise is added to the image (tests with randomization 0 add none)"
        )


def check_randomization(gamma: Any, name: str = "randomization", none: bool = True) -> None:
    """Refuse an invalid gamma by an `InputError`, and also 0 unless `none` is true."""
    number = isinstance(gamma, int | float | np.integer | np.floating)
    number = number and not isinstance(gamma, bool)
    if not number or not (LEAST <= gamma <= MOST or (none and gamma == 0)):
        expected = f"{'0 or ' if none else ''}a number from {LEAST:g} to {MOST:g}"
        raise InputError(f"{name} is {gamma!r}, expected {expected}")
