"""Each covariance operator with its matrix, built in another way than the operator does it."""

from collections.abc import Callable
from itertools import product

import numpy as np
from scipy.linalg import toeplitz as toeplitz_matrix

from dal_jax.noise import (
    Covariance,
    ar1,
    circulant,
    dense,
    diagonal,
    iid,
    kronecker,
    low_rank,
    scaled,
    stationary,
    toeplitz,
)

SHAPE = (2, 3, 2)
SIZE = 12
CHANNELS = np.array([[1.0, 0.6], [0.6, 2.0]])


def positive(size: int, seed: int = 0) -> np.ndarray:
    """Returns a positive definite matrix."""
    factor = np.random.default_rng(seed).standard_normal((size, size))
    return factor @ factor.T / size + np.eye(size)


def table(sides: tuple[int, int], channels: np.ndarray, length: float = 1.5) -> np.ndarray:
    """Returns the lags of a tilted Gaussian bump, times a covariance of the channels."""
    lags = [np.where(2 * np.arange(n) <= n, np.arange(n), np.arange(n) - n) for n in sides]
    y, x = np.meshgrid(*lags, indexing="ij")
    # At half of an even side, l and -l are one place: only an even function fits there.
    tilt = np.where((2 * np.abs(y) < sides[0]) & (2 * np.abs(x) < sides[1]), 0.4 * x * y, 0.0)
    base = np.exp(-(y**2 + x**2 + tilt) / length**2)
    return base[:, :, None, None] * channels


def asymmetric_channels(sides: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Returns a spectrum (P, Q, 2, 2) whose channels depend on each other one way round."""
    rng = np.random.default_rng(seed)
    kernels = rng.standard_normal((*sides, 2, 2))
    waves = np.fft.fft2(kernels, axes=(0, 1))
    return waves @ np.conj(np.swapaxes(waves, 2, 3)) / kernels[..., 0, 0].size


def lag_matrix(lags: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the matrix of a table of lags, entry by entry."""
    places = list(product(*map(range, shape)))
    return np.array(
        [
            [lags[(y - v) % lags.shape[0], (x - u) % lags.shape[1], c, d] for v, u, d in places]
            for y, x, c in places
        ]
    )


def _basic() -> dict[str, tuple[Covariance, np.ndarray]]:
    variance = np.random.default_rng(0).uniform(0.2, 3.0, SHAPE)
    matrix, powers = positive(SIZE), np.arange(SIZE)
    return {
        "iid": (iid(1.5), 2.25 * np.eye(SIZE)),
        "diagonal": (diagonal(variance), np.diag(variance.ravel())),
        "ar1": (ar1(0.5, 2.0), 4 * toeplitz_matrix(0.5**powers)),
        "ar1 negative": (ar1(-0.9, 1.0), toeplitz_matrix((-0.9) ** powers)),
        "ar1 zero": (ar1(0.0, 1.0), np.eye(SIZE)),
        "dense": (dense(matrix), matrix),
    }


def _structured() -> dict[str, tuple[Covariance, np.ndarray]]:
    rng = np.random.default_rng(1)
    variance = rng.uniform(0.2, 3.0, SHAPE)
    factors = rng.standard_normal((3, *SHAPE))
    flat = factors.reshape(3, -1)
    lags = np.exp(-np.arange(SIZE + 3) / 3) * np.cos(np.arange(SIZE + 3))
    matrices = positive(2, 1), positive(3, 2), positive(2, 3)
    scale = rng.uniform(0.5, 2.0, SHAPE)
    product_matrix = np.kron(np.kron(matrices[0], matrices[1]), matrices[2])
    return {
        "toeplitz": (toeplitz(lags), toeplitz_matrix(lags[:SIZE])),
        "low rank": (low_rank(factors, variance), flat.T @ flat + np.diag(variance.ravel())),
        "kronecker": (kronecker(*matrices), product_matrix),
        "scaled": (scaled(kronecker(*matrices), 0.5), 0.25 * product_matrix),
        "scaled by a map": (
            scaled(toeplitz(lags), scale),
            np.outer(scale, scale) * toeplitz_matrix(lags[:SIZE]),
        ),
    }


def _spectral() -> dict[str, tuple[Covariance, np.ndarray]]:
    lags = table((4, 6), CHANNELS, 0.9)
    spectrum = asymmetric_channels((5, 7))
    general = np.fft.ifft2(spectrum, axes=(0, 1)).real
    around = np.fft.ifft2(asymmetric_channels((2, 3), 1), axes=(0, 1)).real
    return {
        "stationary": (stationary(lags), lag_matrix(lags, SHAPE)),
        "stationary channels": (stationary(spectrum=spectrum), lag_matrix(general, SHAPE)),
        "circulant": (circulant(around), lag_matrix(around, SHAPE)),
    }


def cases() -> dict[str, tuple[Covariance, np.ndarray]]:
    """Returns every operator on images of SHAPE, with its matrix."""
    return {**_basic(), **_structured(), **_spectral()}


# One operator of each kind for a given size (H, W, C).
BUILDERS: dict[str, Callable[[tuple[int, int, int]], Covariance]] = {
    "iid": lambda shape: iid(0.7),
    "diagonal": lambda shape: diagonal(np.linspace(0.5, 2.0, int(np.prod(shape))).reshape(shape)),
    "ar1": lambda shape: ar1(0.8, 1.3),
    "toeplitz": lambda shape: toeplitz(0.7 ** np.arange(np.prod(shape))),
    "stationary": lambda shape: stationary(
        table((2 * shape[0], 2 * shape[1]), np.eye(shape[2]) + 0.3), clip=True
    ),
    "low rank": lambda shape: low_rank(
        np.random.default_rng(0).standard_normal((2, *shape)), np.full(shape, 0.5)
    ),
    "kronecker": lambda shape: kronecker(*(positive(side, side) for side in shape)),
    "dense": lambda shape: dense(positive(int(np.prod(shape)))),
    "scaled": lambda shape: scaled(
        ar1(0.3, 1.0), np.linspace(0.5, 2.0, shape[1])[None, :, None] * np.ones(shape)
    ),
}
