"""A covariance given as a matrix: the only operator that stores n x n numbers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import solve_triangular

from dal_jax._errors import InputError
from dal_jax._typing import Float
from dal_jax.noise._covariance import Covariance, Exact, _batch

# Asymmetry up to this share of the largest entry is rounding (float32 files) and averaged out.
_ASYMMETRY = 1e-6


def dense(matrix: ArrayLike) -> Covariance:
    """Returns noise with an explicit covariance matrix of the flattened image.

    Args:
        matrix: (n, n), n = H*W*C, row by row, channels last; symmetric and positive definite.

    Returns:
        Covariance for images of n values.

    Raises:
        InputError: not square, not finite, not symmetric or not positive definite.

    Example:
        >>> dense([[2.0, 1.0], [1.0, 2.0]]).apply(np.array([[[1.0], [0.0]]])).ravel().tolist()
        [2.0, 1.0]
    """
    return _Dense(*_checked(matrix, "matrix"))


@dataclass(frozen=True, eq=False)
class _Dense(Exact):
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
    """Returns a covariance matrix and its lower Cholesky factor; InputError where it is none."""
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
