"""Autocovariance tables on a torus, their spectra, and what makes them positive definite."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dal_jax._errors import InputError
from dal_jax._typing import Float
from dal_jax.noise._dense import _ASYMMETRY

# A spectrum below zero by up to this share of its largest value is rounding.
ROUNDING = 1e-9


class Tables(NamedTuple):
    """Stationary noise on a torus of P x Q pixels with C channels."""

    autocovariance: Float[np.ndarray, "P Q C C"]  # in squared units of the image
    spectrum: np.ndarray  # (P, Q // 2 + 1, C, C), the half that the FFT of real images needs
    root: np.ndarray  # its Hermitian square root at each frequency


def clip_spectrum(lags: Float[np.ndarray, "P Q C C"]) -> Float[np.ndarray, "P Q C C"]:
    """Returns a table whose negative spectrum is set to zero and whose variances are kept.

    Args:
        lags: autocovariance in the order of the FFT, in squared units of the image.

    Returns:
        The table that `stationary(lags, clip=True)` uses.

    Raises:
        InputError: a table that is not symmetric, or a variance that is not positive.

    Source: Wood and Chan, J. Comput. Graph. Stat. 3 (1994) 409-432, section 4.
    """
    return _non_negative(_symmetric(lags), True)[0]


def tables(autocovariance: ArrayLike | None, spectrum: ArrayLike | None, clip: bool) -> Tables:
    """Returns what an operator on a torus needs, from either of two tables.

    Args:
        autocovariance: (P, Q) or (P, Q, C, C) table, or None.
        spectrum: its discrete Fourier transform in its place, or None.
        clip: whether a negative spectrum is set to zero, or refused.

    Returns:
        Tables.

    Raises:
        InputError: as in `stationary`.
    """
    if (autocovariance is None) == (spectrum is None):
        raise InputError("autocovariance and spectrum: expected exactly one of the two")
    if spectrum is None:
        if np.iscomplexobj(np.asarray(autocovariance)):
            raise InputError("autocovariance holds complex values, expected real numbers")
        lags = _symmetric(np.real(_four_axes(autocovariance, "autocovariance")))
    else:
        waves = _four_axes(spectrum, "spectrum")
        complex_lags = np.fft.ifft2(waves, axes=(0, 1))
        if np.max(np.abs(complex_lags.imag)) > _ASYMMETRY * np.max(np.abs(complex_lags)):
            raise InputError("spectrum is not that of real noise, expected s(-f) = conj(s(f))")
        lags = _symmetric(complex_lags.real)
    lags, levels, bases = _non_negative(lags, clip)
    half = lags.shape[1] // 2 + 1
    levels, bases = levels[:, :half], bases[:, :half]
    adjoint = np.conj(np.swapaxes(bases, -1, -2))
    half_spectrum = bases * levels[..., None, :] @ adjoint
    return Tables(lags, half_spectrum, bases * np.sqrt(levels)[..., None, :] @ adjoint)


def _four_axes(table: ArrayLike | None, name: str) -> np.ndarray:
    values = np.array(table, dtype=np.complex128)
    shape = values.shape
    if values.ndim == 2:
        values = values[:, :, None, None]
    if values.ndim != 4 or values.shape[2] != values.shape[3] or values.size == 0:
        raise InputError(f"{name} has shape {shape}, expected (P, Q) or (P, Q, C, C)")
    if not np.all(np.isfinite(values)):
        raise InputError(f"{name} holds a NaN or infinite value, expected finite values")
    return values


def _symmetric(lags: Float[np.ndarray, "P Q C C"]) -> Float[np.ndarray, "P Q C C"]:
    """Returns the table with `R[-l] = R[l]'` made exact."""
    mirrored = np.roll(lags[::-1, ::-1], (1, 1), axis=(0, 1)).swapaxes(2, 3)
    asymmetry = float(np.max(np.abs(lags - mirrored)))
    if asymmetry > _ASYMMETRY * float(np.max(np.abs(lags))):
        raise InputError(
            f"autocovariance at l and -l differs by up to {asymmetry:.3g}, expected R[-l] = R[l]'"
        )
    return (lags + mirrored) / 2


def _non_negative(
    lags: Float[np.ndarray, "P Q C C"], clip: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the table with a spectrum >= 0, and eigenvalues and -vectors of that spectrum."""
    variances = np.diagonal(lags[0, 0])
    if not np.all(variances > 0):
        raise InputError(f"autocovariance at lag 0 holds {variances.min()}, expected variances > 0")
    levels, bases = np.linalg.eigh(np.fft.fft2(lags, axes=(0, 1)))
    least, largest = levels.min(), levels.max()
    if least < -ROUNDING * largest and not clip:
        raise InputError(
            f"autocovariance has the spectrum {least:.3g} somewhere (largest {largest:.3g}), "
            "expected none below 0; a larger torus or clip=True helps"
        )
    if least >= 0:
        return lags, levels, bases
    waves = bases * np.maximum(levels, 0)[..., None, :] @ np.conj(np.swapaxes(bases, -1, -2))
    clipped = np.fft.ifft2(waves, axes=(0, 1)).real
    if clip:
        ratio = np.sqrt(variances / np.diagonal(clipped[0, 0]))
        clipped, waves = clipped * np.outer(ratio, ratio), waves * np.outer(ratio, ratio)
    levels, bases = np.linalg.eigh(waves)
    return clipped, np.maximum(levels, 0), bases
