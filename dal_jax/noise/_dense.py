"""Covariances given as matrices: of images, of rows, columns and channels, or of low rank."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import solve_triangular

from dal_jax._errors import InputError
from dal_jax._typing import Float
from dal_jax.noise._covariance import Covariance, Whitening, _batch, _check_map, _positive_map

# Asymmetry up to this share of the largest entry is rounding (float32 files) and averaged out.
_ASYMMETRY = 1e-6


def dense(matrix: ArrayLike) -> Covariance:
    """Return noise with an explicit covariance matrix of the flattened image.

    Args:
        matrix: Matrix (n, n), n = H*W*C, row by row, channels last; symmetric and positive
            definite.

    Returns:
        The covariance, for images of n values.

    Raises:
        InputError: The matrix is not square, not finite, not symmetric or not positive definite.

    Example:
        >>> dense([[2.0, 1.0], [1.0, 2.0]]).apply(np.array([[[1.0], [0.0]]])).ravel().tolist()
        [2.0, 1.0]
    """
    return _Dense(*_checked(matrix, "matrix"))


@dataclass(frozen=True, eq=False)
class _Dense(Whitening):
    matrix: Float[np.ndarray, "n n"]
    factor: Float[np.ndarray, "n n"]  # lower Cholesky factor

    def apply(self, v: Float[np.ndarray, "H W C"]) -> Float[np.ndarray, "H W C"]:
        self.check(v.shape)
        return (self.matrix @ v.ravel()).reshape(v.shape)

    def check(self, shape: tuple[int, ...]) -> None:
        n = int(np.prod(shape))
        if n != len(self.matrix):
            raise InputError(
                f"noise has a matrix {self.matrix.shape}, the image {shape} needs ({n}, {n})"
            )

    def sample(
        self, rng: np.random.Generator, shape: tuple[int, int, int]
    ) -> Float[np.ndarray, "H W C"]:
        self.check(shape)
        return (self.factor @ rng.standard_normal(len(self.factor))).reshape(shape)

    def whiten(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N H W C"]:
        values = _batch(self, images)
        flat = values.reshape(len(values), -1)
        return solve_triangular(self.factor, flat.T, lower=True).T.reshape(values.shape)

    def log_determinant(self, shape: tuple[int, ...]) -> float:
        self.check(shape)
        return 2 * float(np.sum(np.log(np.diag(self.factor))))


def _checked(
    matrix: ArrayLike, name: str
) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]]:
    """Return a covariance matrix and its lower Cholesky factor; refuse any other matrix."""
    sigma = np.array(matrix, dtype=np.float64)
    if sigma.ndim != 2 or sigma.shape[0] != sigma.shape[1] or sigma.size == 0:
        raise InputError(f"{name} has shape {sigma.shape}, expected (n, n)")
    if not np.all(np.isfinite(sigma)):
        raise InputError(f"{name} holds a NaN or infinite entry, expected finite covariances")
    asymmetry = float(np.max(np.abs(sigma - sigma.T)))
    if asymmetry > _ASYMMETRY * float(np.max(np.abs(sigma))):
        raise InputError(f"{name} is not symmetric: entries differ by up to {asymmetry:.3g}")
    sigma = (sigma + sigma.T) / 2
    try:
        return sigma, np.linalg.cholesky(sigma)
    except np.linalg.LinAlgError:
        raise InputError(
            f"{name} {sigma.shape} is not positive definite, expected a covariance matrix"
        ) from None


def kronecker(rows: ArrayLike, columns: ArrayLike, channels: ArrayLike = ((1.0,),)) -> Covariance:
    """Return separable noise, `Sigma = A (x) B (x) C`: `Cov(e_yxc, e_YXD) = A_yY B_xX C_cD`.

    It is applied in O(n (H + W + C)) and whitened exactly by the Cholesky factors. Toeplitz factors
    (`scipy.linalg.toeplitz`) give a stationary, separable covariance.

    Args:
        rows: Covariance A (H, H) between rows, symmetric and positive definite.
        columns: Covariance B (W, W) between columns, likewise.
        channels: Covariance C (C, C) between channels, likewise; by default one channel of variance
            1.

    Returns:
        The covariance, for images of shape (H, W, C), in the product of the three units.

    Raises:
        InputError: A factor is no covariance matrix.

    Example:
        >>> noise = kronecker(np.eye(2), 4 * np.eye(3))
        >>> noise.apply(np.ones((2, 3, 1))).max().item()
        4.0

    Source: Dutilleul, J. Stat. Comput. Simul. 64 (1999) 105-123.
    """
    named = {"rows": rows, "columns": columns, "channels": channels}
    (a, b, c), roots = zip(*(_checked(matrix, name) for name, matrix in named.items()), strict=True)
    return _Kronecker(a, b, c, roots)


@dataclass(frozen=True, eq=False)
class _Kronecker(Whitening):
    rows: Float[np.ndarray, "H H"]
    columns: Float[np.ndarray, "W W"]
    channels: Float[np.ndarray, "C C"]
    roots: tuple[np.ndarray, ...]  # lower Cholesky factors of the three

    def apply(self, v: Float[np.ndarray, "H W C"]) -> Float[np.ndarray, "H W C"]:
        self.check(v.shape)
        return _multiply((self.rows, self.columns, self.channels), v)

    def check(self, shape: tuple[int, ...]) -> None:
        size = tuple(len(root) for root in self.roots)
        if tuple(shape) != size:
            raise InputError(f"noise has factors for images {size}, the image is {shape}")

    def sample(
        self, rng: np.random.Generator, shape: tuple[int, int, int]
    ) -> Float[np.ndarray, "H W C"]:
        self.check(shape)
        return _multiply(self.roots, rng.standard_normal(shape))

    def whiten(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N H W C"]:
        values = _batch(self, images)
        for axis, root in enumerate(self.roots, start=1):
            front = np.moveaxis(values, axis, 0)
            solved = solve_triangular(root, front.reshape(len(root), -1), lower=True)
            values = np.moveaxis(solved.reshape(front.shape), 0, axis)
        return values

    def log_determinant(self, shape: tuple[int, ...]) -> float:
        self.check(shape)
        n = int(np.prod(shape))
        logs = (2 * np.sum(np.log(np.diag(root))) * n / len(root) for root in self.roots)
        return float(sum(logs))


def _multiply(
    matrices: tuple[np.ndarray, ...], v: Float[np.ndarray, "H W C"]
) -> Float[np.ndarray, "H W C"]:
    rows, columns, channels = matrices
    return np.einsum("yY,xX,cD,YXD->yxc", rows, columns, channels, v, optimize=True)


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
