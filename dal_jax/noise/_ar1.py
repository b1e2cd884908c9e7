"""Noise correlated along the flattened image: autoregressive, or stationary without its matrix."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import solve_banded

from dal_jax._errors import InputError
from dal_jax._typing import Float
from dal_jax.noise._covariance import Covariance, Whitening, _batch, _check_sigma


def ar1(rho: float, sigma: float) -> Covariance:
    """Return noise of a first-order autoregression: `Sigma_ij = sigma^2 rho^|i - j|`.

    i and j index the flattened image (H*W*C,), row by row, channels last. `Sigma v` is the sum of a
    forward and a backward recursion, O(n) for n = H*W*C.

    Args:
        rho: Correlation of neighbours, -1 < rho < 1.
        sigma: Standard deviation in units of the image, > 0.

    Returns:
        The covariance, for images of any size.

    Raises:
        InputError: The argument rho or sigma is out of range.

    Example:
        >>> ar1(0.5, 1.0).apply(np.array([[[1.0], [0.0], [0.0]]])).ravel().tolist()
        [1.0, 0.5, 0.25]

    Source: Katsuoka et al., arXiv 2402.11789 (with rho = 0.5, sigma = 1).
    """
    if not -1 < rho < 1:
        raise InputError(f"rho is {rho!r}, expected a correlation between -1 and 1, both excluded")
    _check_sigma(sigma)
    return _Ar1(float(rho), float(sigma))


@dataclass(frozen=True)
class _Ar1(Whitening):
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
        """Return `u_i = sum_{j <= i} rho^(i - j) v_j`, that is `u_i = rho u_{i-1} + v_i`."""
        bands = np.stack([np.ones(len(v)), np.full(len(v), -self.rho)])
        return np.asarray(solve_banded((1, 0), bands, v, check_finite=False))


def toeplitz(autocovariance: ArrayLike) -> Covariance:
    """Return noise whose covariance depends on the distance along the flattened image.

    `Sigma_ij = autocovariance[|i - j|]`, where i and j index the flattened image (H*W*C,), row by
    row, channels last, as in `ar1`. It is applied by FFT in O(n log n); whitened, sampled and
    checked by the Durbin-Levinson recursion in O(n^2) time and O(n) memory. For noise that is
    stationary along rows and columns separately, give `kronecker` two Toeplitz matrices, or use
    `stationary`.

    Args:
        autocovariance: Covariances (L,) at lags 0 to L - 1, in squared units of the image.

    Returns:
        The covariance, for images of up to L values.

    Raises:
        InputError: The number of axes is wrong, values are not finite, or the matrix is not
            positive definite.

    Example:
        >>> toeplitz([1.0, 0.5]).apply(np.ones((1, 2, 1))).ravel().tolist()
        [1.5, 1.5]

    Source: Durbin, Rev. Int. Stat. Inst. 28 (1960) 233-244.
    """
    lags = np.array(autocovariance, dtype=np.float64)
    if lags.ndim != 1 or lags.size == 0:
        raise InputError(f"autocovariance has shape {lags.shape}, expected (L,)")
    if not np.all(np.isfinite(lags)):
        raise InputError("autocovariance holds a NaN or infinite value, expected finite values")
    return _Toeplitz(lags, np.array([variance for _, variance in _predictions(lags)]))


@dataclass(frozen=True, eq=False)
class _Toeplitz(Whitening):
    autocovariance: Float[np.ndarray, " L"]
    innovations: Float[np.ndarray, " L"]  # variance of each value given those before it

    def apply(self, v: Float[np.ndarray, "H W C"]) -> Float[np.ndarray, "H W C"]:
        self.check(v.shape)
        n, lags = v.size, self.autocovariance[: v.size]
        size = 1 << (2 * n - 1).bit_length()
        circle = np.zeros(size)
        circle[:n], circle[size - n + 1 :] = lags, lags[:0:-1]
        product = np.fft.irfft(np.fft.rfft(circle) * np.fft.rfft(v.ravel(), size), size)
        return product[:n].reshape(v.shape)

    def check(self, shape: tuple[int, ...]) -> None:
        n, known = int(np.prod(shape)), len(self.autocovariance)
        if n > known:
            raise InputError(f"noise has {known} lags, the image {shape} needs {n}")

    def sample(
        self, rng: np.random.Generator, shape: tuple[int, int, int]
    ) -> Float[np.ndarray, "H W C"]:
        self.check(shape)
        values = rng.standard_normal(int(np.prod(shape)))
        for k, (weights, variance) in enumerate(_predictions(self.autocovariance[: values.size])):
            values[k] = np.sqrt(variance) * values[k] + weights @ values[:k]
        return values.reshape(shape)

    def whiten(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N H W C"]:
        values = _batch(self, images)
        flat = values.reshape(len(values), -1)
        steps = np.empty_like(flat)
        for k, (weights, variance) in enumerate(_predictions(self.autocovariance[: flat.shape[1]])):
            steps[:, k] = (flat[:, k] - flat[:, :k] @ weights) / np.sqrt(variance)
        return steps.reshape(values.shape)

    def log_determinant(self, shape: tuple[int, ...]) -> float:
        self.check(shape)
        return float(np.sum(np.log(self.innovations[: int(np.prod(shape))])))


def _predictions(lags: Float[np.ndarray, " n"]) -> Iterator[tuple[np.ndarray, float]]:
    """Yield for each k the weights of values 0..k-1 that predict value k, and the variance left.

    An InputError reports a variance that is not positive: the matrix is not positive definite.
    """
    weights, variance = np.empty(0), float(lags[0])
    for k in range(len(lags)):
        if k:
            partial = float(lags[k] - lags[1:k] @ weights) / variance
            weights = np.concatenate([[partial], weights - partial * weights[::-1]])
            variance *= (1 - partial) * (1 + partial)
        if not variance > 0:
            raise InputError(f"autocovariance is not positive definite from lag {k} on")
        yield weights, variance
