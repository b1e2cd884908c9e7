"""Data thinning: two independent halves of one image, one to select a region, one to test it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from dal_jax._dal_test._inputs import TestOptions, check_randomization, randomization
from dal_jax._errors import InputError
from dal_jax._typing import Bool, Float
from dal_jax.inference import Noise, check_level, naive_p, region_line


class Thinned(NamedTuple):
    """An image split by noise into two independent ones.

    Example:
        >>> from dal_jax.noise import iid
        >>> halves = thinned(np.zeros((8, 8, 1)), iid(1.0), 0.5)
        >>> halves.seen.shape, halves.gamma
        ((8, 8, 1), 0.5)
    """

    seen: Float[np.ndarray, "H W C"]  # x + omega, for a detector
    kept: Float[np.ndarray, "H W C"]  # x - omega / gamma^2, for the test
    gamma: float  # standard deviation of omega in units of the noise's


class ThinnedTest(NamedTuple):
    """Result of the test of a region, in units of the image.

    Example:
        >>> ThinnedTest(0.03, 2.2, 1.0, 0.2, 4.2).p_value
        0.03
    """

    p_value: float
    statistic: float  # difference of means in the kept half: an unbiased estimate
    sd: float  # its standard deviation
    ci_low: float  # ends of its confidence interval
    ci_high: float


def thinned(
    x: ArrayLike, noise: Noise, gamma: float, *, seed: int = 0, name: str | int = 0
) -> Thinned:
    """Split an image into one that a detector may see and one that tests its regions.

    With `omega ~ N(0, gamma^2 Sigma)`, `x + omega` and `x - omega / gamma^2` are independent of one
    another: whatever region any program flags in the first, a plain test of it in the second is
    valid. No line is searched, so that the detector need not be a localizer of this package.

    Args:
        x: Image (H, W, C), finite.
        noise: Covariance Sigma of its noise; it must be one that can be sampled.
        gamma: Standard deviation of the added noise in units of the noise's, from .001 to 1000. The
            larger it is, the less the detector sees and the more evidence the test has.
        seed: Seed, 0 or above, chosen before the image is seen.
        name: Name of the image, or its number: images with the same seed and different names are
            split independently.

    Returns:
        Thinned(seen, kept, gamma), with arrays in float64.

    Raises:
        InputError: An argument does not fit.

    Example:
        >>> from dal_jax.noise import iid
        >>> x = np.zeros((8, 8, 1))
        >>> x[2:4, 2:4] = 3.0
        >>> halves = thinned(x, iid(0.5), 0.5)
        >>> region = halves.seen[..., 0] > 1.5  # any detector at all
        >>> thinned_test(halves, region, np.zeros((8, 8, 1)), iid(0.5)).p_value < 0.001
        True

    Source: Neufeld, Dharamshi, Gao and Witten, arXiv 2301.07276.
    """
    image = np.asarray(x, np.float64)
    if image.ndim != 3 or not np.isfinite(image).all():
        raise InputError(f"x has shape {image.shape}, expected (H, W, C) of finite pixels")
    check_randomization(gamma, "gamma", none=False)
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"seed: got {seed!r}, expected a whole number of 0 or above")
    noise.check(image.shape)
    omega = randomization(noise, image.shape, gamma, seed, name)
    return Thinned(image + omega, image - omega / gamma**2, float(gamma))


def thinned_test(
    halves: Thinned,
    region: Bool[np.ndarray, "H W"],
    x_ref: ArrayLike,
    noise: Noise,
    *,
    alternative: str = TestOptions.alternative,
    confidence: float = TestOptions.confidence,
) -> ThinnedTest:
    """Test whether a region selected in the seen half differs from references.

    `T = nu . (kept - mean_k x_ref_k)` with `nu = 1_M / (|M| C)` is normal, whatever M the seen half
    led to, with the variance `nu' Sigma nu (1 + 1 / gamma^2 + 1 / K)`.

    Args:
        halves: Halves of the image from `thinned`.
        region: Flagged pixels M, bool (H, W), not empty. It may depend on the seen half alone.
        x_ref: Reference (H, W, C), or (K, H, W, C) independent ones to be averaged, which the
            detector did not see.
        noise: Covariance Sigma, the one used to split the image.
        alternative: "two-sided", "equal-tailed", "greater" or "less".
        confidence: Confidence of the interval, in (0, 1).

    Returns:
        ThinnedTest(p_value, statistic, sd, ci_low, ci_high).

    Raises:
        InputError: An argument does not fit.

    Example:
        >>> from dal_jax.noise import iid
        >>> halves = thinned(np.full((4, 4, 1), 2.0), iid(1.0), 1.0)
        >>> region = np.ones((4, 4), bool)  # fixed: allowed, too
        >>> found = thinned_test(halves, region, np.zeros((4, 4, 1)), iid(1.0))
        >>> bool(found.ci_low < 2.0 < found.ci_high)
        True

    Source: Neufeld, Dharamshi, Gao and Witten, arXiv 2301.07276.
    """
    check_level("confidence", confidence)
    line = region_line(halves.kept, x_ref, region, noise)
    references = np.asarray(x_ref)
    count = len(references) if references.ndim == 4 else 1
    sd = line.sd * float(np.sqrt(1 + 1 / halves.gamma**2 / (1 + 1 / count)))
    half = float(-ndtri((1 - confidence) / 2)) * sd
    return ThinnedTest(
        naive_p(line.statistic / sd, alternative),
        line.statistic,
        sd,
        line.statistic - half,
        line.statistic + half,
    )
