"""Noise whose covariance is a product of those along rows, columns and channels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import solve_triangular

from dal_jax._errors import InputError
from dal_jax._typing import Float
from dal_jax.noise._covariance import Covariance, Exact, _batch
from dal_jax.noise._dense import _checked


def kronecker(rows: ArrayLike, columns: ArrayLike, channels: ArrayLike = ((1.0,),)) -> Covariance:
    """Returns separable noise, `Sigma = A (x) B (x) C`: `Cov(e_yxc, e_YXD) = A_yY B_xX C_cD`.

    Applied in O(n (H + W + C)), whitened exactly by the Cholesky factors. Toeplitz factors
    (`scipy.linalg.toeplitz`) give a stationary, separable covariance.

    Args:
        rows: (H, H) covariance A between rows, symmetric and positive definite.
        columns: (W, W) covariance B between columns.
        channels: (C, C) covariance C between channels, by default one of variance 1.

    Returns:
        Covariance for images of shape (H, W, C), in the product of the three units.

    Raises:
        InputError: a factor that is no covariance matrix.

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
class _Kronecker(Exact):
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
