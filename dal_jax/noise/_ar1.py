"""Noise correlated along the flattened image, in linear time and memory."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_banded

from dal_jax._errors import InputError
from dal_jax._typing import Float
from dal_jax.noise._covariance import Covariance, Exact, _batch, _check_sigma


def ar1(rho: float, sigma: float) -> Covariance:
    """Returns noise of a first-order autoregression: `Sigma_ij = sigma^2 rho^|i - j|`.

    i and j index the flattened image (H*W*C,), row by row, channels last. `Sigma v` is the sum of
    a forward and a backward recursion, O(n) for n = H*W*C.

    Args:
        rho: correlation of neighbours, -1 < rho < 1.
        sigma: standard deviation, in units of the image, > 0.

    Returns:
        Covariance for images of any size.

    Raises:
        InputError: rho or sigma out of range.

    Example:
        >>> ar1(0.5, 1.0).apply(np.array([[[1.0], [0.0], [0.0]]])).ravel().tolist()
        [1.0, 0.5, 0.25]

    Source: Katsuoka et al., arXiv 2402.11789 (there rho = 0.5, sigma = 1).
    """
    if not -1 < rho < 1:
        raise InputError(f"rho is {rho!r}, expected a correlation between -1 and 1, both excluded")
    _check_sigma(sigma)
    return _Ar1(float(rho), float(sigma))


@dataclass(frozen=True)
class _Ar1(Exact):
    rho: float
    sigma: float

    def apply(self, v: Float[np.ndarray, "H W C"]) -> Float[np.ndarray, "H W C"]:
        flat = np.asarray(v, dtype=np.float64).ravel()
        before, after = self._accumulate(flat), self._accumulate(flat[::-1])[::-1]
        return self.sigma**2 * (before + after - flat).reshape(v.shape)

    def check(self, shape: tuple[int, ...]) -> None:
        pass  # any size fits

    def sample(
        self, rng: np.random.Generator, shape: tuple[int, int, int]
    ) -> Float[np.ndarray, "H W C"]:
        steps = rng.standard_normal(int(np.prod(shape)))
        steps[1:] *= np.sqrt((1 - self.rho) * (1 + self.rho))
        return self.sigma * self._accumulate(steps).reshape(shape)

    def whiten(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N H W C"]:
        values = _batch(self, images)
        flat = values.reshape(len(values), -1) / self.sigma
        steps = flat.copy()
        steps[:, 1:] -= self.rho * flat[:, :-1]
        steps[:, 1:] /= np.sqrt((1 - self.rho) * (1 + self.rho))
        return steps.reshape(values.shape)

    def log_determinant(self, shape: tuple[int, ...]) -> float:
        n = int(np.prod(shape))
        innovation = np.log1p(-self.rho) + np.log1p(self.rho)  # log of 1 - rho^2
        return float(2 * n * np.log(self.sigma) + (n - 1) * innovation)

    def _accumulate(self, v: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Returns `u_i = sum_{j <= i} rho^(i - j) v_j`, that is `u_i = rho u_{i-1} + v_i`."""
        bands = np.stack([np.ones(len(v)), np.full(len(v), -self.rho)])
        return np.asarray(solve_banded((1, 0), bands, v, check_finite=False))
