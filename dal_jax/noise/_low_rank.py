"""Noise of a few common patterns plus independent noise, in memory of a few images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dal_jax._errors import InputError
from dal_jax._typing import Float
from dal_jax.noise._covariance import Covariance, Whitening, _batch, _check_map, _positive_map


def low_rank(factors: ArrayLike, variance: ArrayLike) -> Covariance:
    """Return noise of r patterns plus independent noise: `Sigma = U'U + diag(variance)`.

    The noise is `sum_k g_k U_k + sqrt(variance) h`, with g and h standard normal. Sigma is applied
    in O(r n) for n = H*W*C, and whitened exactly by a symmetric matrix through the r singular
    values of U diag(variance)^(-1/2).

    Args:
        factors: Patterns U (r, H, W, C), r >= 1, in units of the image.
        variance: Variances (H, W, C) of the independent part, in squared units of the image, > 0.

    Returns:
        The covariance, for images of that size.

    Raises:
        InputError: Shapes do not fit, or values are out of range.

    Example:
        >>> noise = low_rank(np.ones((1, 1, 2, 1)), np.ones((1, 2, 1)))
        >>> noise.apply(np.ones((1, 2, 1))).ravel().tolist()
        [3.0, 3.0]

    Source: Tipping and Bishop, J. R. Statist. Soc. B 61 (1999) 611-622 (with one variance).
    """
    own = _positive_map(variance, "variance")
    patterns = np.array(factors, dtype=np.float64)
    if patterns.ndim != 4 or patterns.shape[1:] != own.shape or len(patterns) == 0:
        raise InputError(f"factors has shape {patterns.shape}, expected (r, ...) of {own.shape}")
    if not np.all(np.isfinite(patterns)):
        raise InputError("factors holds a NaN or infinite value, expected finite values")
    return _LowRank(patterns, own)


@dataclass(frozen=True, eq=False)
class _LowRank(Whitening):
    factors: Float[np.ndarray, "r H W C"]
    variance: Float[np.ndarray, "H W C"]

    def apply(self, v: Float[np.ndarray, "H W C"]) -> Float[np.ndarray, "H W C"]:
        self.check(v.shape)
        weights = np.tensordot(self.factors, v, axes=3)
        return np.tensordot(weights, self.factors, axes=1) + self.variance * v

    def check(self, shape: tuple[int, ...]) -> None:
        _check_map(self.variance, "variances", shape)

    def sample(
        self, rng: np.random.Generator, shape: tuple[int, int, int]
    ) -> Float[np.ndarray, "H W C"]:
        self.check(shape)
        common = np.tensordot(rng.standard_normal(len(self.factors)), self.factors, axes=1)
        return common + np.sqrt(self.variance) * rng.standard_normal(shape)

    def whiten(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N H W C"]:
        values = _batch(self, images) / np.sqrt(self.variance)
        flat = values.reshape(len(values), -1)
        singular, patterns = self._singular()
        # (I + V'V)^(-1/2) = I + Q diag((1 + s^2)^(-1/2) - 1) Q', with V = P diag(s) Q'
        shrink = 1 / np.sqrt(1 + singular**2) - 1
        return (flat + (flat @ patterns.T * shrink) @ patterns).reshape(values.shape)

    def log_determinant(self, shape: tuple[int, ...]) -> float:
        self.check(shape)
        singular, _ = self._singular()
        return float(np.sum(np.log(self.variance)) + np.sum(np.log1p(singular**2)))

    def _singular(self) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k n"]]:
        relative = self.factors / np.sqrt(self.variance)
        flat = relative.reshape(len(relative), -1)
        _, singular, patterns = np.linalg.svd(flat, full_matrices=False)
        return singular, patterns
