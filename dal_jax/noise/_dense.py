"""Covariances given as matrices: of the flattened image, or of rows, columns and channels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import solve_triangular

from dal_jax._errors import InputError
from dal_jax._typing import Float
from dal_jax.noise._covariance import Covariance, Whitening, _batch

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
