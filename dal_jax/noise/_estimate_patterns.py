"""Stationary, low-rank and Kronecker covariances estimated from a sample of images."""

import numpy as np

from dal_jax._errors import InputError
from dal_jax._typing import Float
from dal_jax.noise._covariance import Covariance
from dal_jax.noise._kronecker import kronecker
from dal_jax.noise._low_rank import low_rank
from dal_jax.noise._sample import WeightedDeviations
from dal_jax.noise._spectrum import clip_spectrum
from dal_jax.noise._stationary import stationary

# Two images leave an estimated intensity at 0; this little keeps matrices positive definite.
LEAST_SHRINKAGE = 1e-3
_CHUNK = 2**21  # complex numbers transformed at a time, 32 MB
_ROUNDS = 200  # of the alternation between the Kronecker factors
_SETTLED = 1e-8  # relative change of the factors at which it ends


def stationary_from(sample: WeightedDeviations, shrinkage: float) -> Covariance:
    """Returns stationary noise with the tapered sample autocovariance of the images.

    `R(l) = w(l) sum_p d(p + l) d(p)' / (number of pixels p)`, w the Tukey-Hanning window
    `(1 + cos(pi |l| / side)) / 2` along both axes; what stays negative in its spectrum on the
    torus of twice the sides is set to zero and the variance restored. A share `shrinkage` of the
    covariance of one pixel is moved to lag 0.

    Args:
        sample: deviations of the images.
        shrinkage: in [0, 1], to be above 0 for a spectrum without zeros.

    Returns:
        Covariance for images of up to this size.

    Raises:
        InputError: a channel without variance.

    Source: Priestley, Spectral Analysis and Time Series (1981), section 6.2.3; this project (two
    dimensions, clipping).
    """
    deviations = sample.scaled()
    height, width = deviations.shape[1:3]
    table = np.fft.ifft2(_cross_spectrum(deviations), axes=(0, 1)).real
    table *= np.outer(_window(height), _window(width))[:, :, None, None]
    variances = np.diagonal(table[0, 0]).copy()
    if not np.all(variances > 0):
        raise InputError("images do not vary in a channel, expected variance > 0")
    table = (1 - shrinkage) * clip_spectrum(table)
    table[0, 0] += np.diag(variances - np.diagonal(table[0, 0]))
    return stationary(table)


def low_rank_from(sample: WeightedDeviations, rank: int | None, shrinkage: float) -> Covariance:
    """Returns the leading principal components of the images plus independent noise.

    `Sigma = (1 - a) L + diag(S - (1 - a) L)`, `L = sum_k (w_k - v) q_k q_k'` over the rank largest
    eigenvalues w of the sample covariance S, v the mean of the others: each pixel keeps its
    variance.

    Args:
        sample: deviations of the images.
        rank: number of components, 1 to the lesser of G - 1 and n - 1 for G groups; None: 20 or
            as many of them as half the groups and half the values allow.
        shrinkage: a in [0, 1], to be above 0 where rank is large.

    Returns:
        Covariance for images of this size.

    Raises:
        InputError: rank out of range, or a pixel without variance.

    Source: Tipping and Bishop, J. R. Statist. Soc. B 61 (1999) 611-622, equation 7; the variance
    of each pixel this project.
    """
    shape = sample.deviations.shape[1:]
    flat = sample.scaled().reshape(len(sample.weights), -1)
    most = min(sample.count, flat.shape[1]) - 1
    rank = max(1, min(20, (most + 1) // 2)) if rank is None else rank
    if not 1 <= rank <= most:
        raise InputError(f"rank is {rank!r}, expected 1 to {most} for these images")
    variances = np.sum(flat**2, axis=0)
    if not np.all(variances > 0):
        still = int(np.argmin(variances))
        raise InputError(f"images do not vary in value {still} of each, expected variance > 0")
    _, singular, components = np.linalg.svd(flat, full_matrices=False)
    rest = (np.sum(variances) - np.sum(singular[:rank] ** 2)) / (flat.shape[1] - rank)
    scales = np.sqrt((1 - shrinkage) * np.maximum(singular[:rank] ** 2 - rest, 0))
    factors = components[:rank] * scales[:, None]
    own = variances - np.sum(factors**2, axis=0)
    least = max(shrinkage, np.finfo(float).eps)
    return low_rank(
        factors.reshape(rank, *shape), np.maximum(own, least * variances).reshape(shape)
    )


def kronecker_from(sample: WeightedDeviations, shrinkage: float) -> Covariance:
    """Returns the separable covariance of greatest likelihood, each factor a little shrunk.

    Alternates `A = sum_i y_i (B (x) C)^-1 y_i' / (W C)` over the three factors, each shrunk by
    `(1 - a) A + a mean(diag A) I` and the first two scaled to mean variance 1.

    Args:
        sample: deviations of the images.
        shrinkage: a in [0, 1], to be above 0 where the images are few.

    Returns:
        Covariance for images of this size.

    Raises:
        InputError: images without variance, or too few of them for the shrinkage.

    Source: Dutilleul, J. Stat. Comput. Simul. 64 (1999) 105-123; the shrinkage this project.
    """
    deviations = sample.scaled()
    if not np.any(deviations):
        raise InputError("images do not vary, expected variance > 0")
    factors = [np.eye(size) for size in deviations.shape[1:]]
    for _ in range(_ROUNDS):
        before = [factor.copy() for factor in factors]
        for axis in range(3):
            factors[axis] = _factor(deviations, factors, axis, shrinkage)
            if axis < 2:
                factors[axis] /= np.mean(np.diag(factors[axis]))
        changes = (np.max(np.abs(f - b)) / np.max(f) for f, b in zip(factors, before, strict=True))
        if max(changes) < _SETTLED:
            break
    return kronecker(*factors)


def _cross_spectrum(deviations: Float[np.ndarray, "N H W C"]) -> np.ndarray:
    """Returns `sum_n F d_n (F d_n)*` (2H, 2W, C, C) of the zero-padded images, few at a time."""
    count, height, width, channels = deviations.shape
    step = max(1, _CHUNK // (4 * deviations[0].size))
    spectrum = np.zeros((2 * height, 2 * width, channels, channels), dtype=np.complex128)
    for first in range(0, count, step):
        some = deviations[first : first + step]
        waves = np.fft.fft2(some, (2 * height, 2 * width), axes=(1, 2))
        spectrum += np.einsum("nyxc,nyxd->yxcd", waves, np.conj(waves), optimize=True)
    return spectrum


def _window(side: int) -> Float[np.ndarray, " lags"]:
    """Returns taper / number of overlapping pixels, for lags in the order of the FFT."""
    lags = np.minimum(np.arange(2 * side), 2 * side - np.arange(2 * side))
    taper = (1 + np.cos(np.pi * lags / side)) / 2
    return taper / np.maximum(side - lags, 1)


def _factor(
    deviations: Float[np.ndarray, "N H W C"],
    factors: list[np.ndarray],
    axis: int,
    shrinkage: float,
) -> Float[np.ndarray, "k k"]:
    """Returns the covariance along one axis, the others whitened."""
    values = deviations
    for other in range(3):
        if other != axis:
            front = np.moveaxis(values, other + 1, 0)
            try:
                root = np.linalg.cholesky(factors[other])
            except np.linalg.LinAlgError:
                raise InputError(
                    f"shrinkage is {shrinkage!r}, expected above 0 for so few images"
                ) from None
            solved = np.linalg.solve(root, front.reshape(len(root), -1))
            values = np.moveaxis(solved.reshape(front.shape), 0, other + 1)
    front = np.moveaxis(values, axis + 1, 0).reshape(len(factors[axis]), -1)
    matrix = front @ front.T * len(front) / deviations[0].size
    mean = np.mean(np.diag(matrix))
    return (1 - shrinkage) * matrix + shrinkage * mean * np.eye(len(matrix))
