"""Stationary noise in two dimensions by FFT, cut from a torus so that no edges meet."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage
from scipy.linalg import solve_banded

from dal_jax._errors import InputError
from dal_jax._typing import Float
from dal_jax.noise._blocks import Between, BlockPlan, plan_blocks
from dal_jax.noise._covariance import Covariance, Whitening, _batch, _check_sigma
from dal_jax.noise._dense import _ASYMMETRY


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
        raise InputError(
            f"rho: got {rho!r}, expected a correlation between -1 and 1, both excluded"
        )
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


# A negative spectrum of up to this share of its largest value is rounding.
ROUNDING = 1e-9


def clip_spectrum(lags: Float[np.ndarray, "P Q C C"]) -> Float[np.ndarray, "P Q C C"]:
    """Return a table whose negative spectrum is set to zero and whose variances are kept.

    Args:
        lags: Autocovariance in FFT order, in squared units of the image.

    Returns:
        The table that `stationary(lags, clip=True)` uses.

    Raises:
        InputError: The table is not symmetric, or a variance is not positive.

    Source: Wood and Chan, J. Comput. Graph. Stat. 3 (1994) 409-432, section 4.
    """
    return _non_negative(_symmetric(lags), True)[0]


def _tables(
    autocovariance: ArrayLike | None, spectrum: ArrayLike | None, clip: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the fields of `_Torus` from either table; the other one is None."""
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
    return lags, half_spectrum, bases * np.sqrt(levels)[..., None, :] @ adjoint


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
    """Return the table with `R[-l] = R[l]'` made exact."""
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
    """Return the table with a spectrum >= 0, and eigenvalues and -vectors of that spectrum."""
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


def stationary(
    autocovariance: ArrayLike | None = None,
    *,
    spectrum: ArrayLike | None = None,
    clip: bool = False,
) -> Covariance:
    """Return noise whose covariance depends on the displacement alone, without wrap-around.

    `Cov(e[p], e[q]) = R[p - q]`: the image is cut from stationary noise on a torus of P x Q pixels,
    `Sigma = crop F* diag(spectrum) F crop'`. With `P >= 2H - 1` and `Q >= 2W - 1` the correlation
    of opposite edges of the image is that of their distance. Sigma is positive (semi)definite by
    construction; it is applied and sampled exactly in O(n log n).

    `whiten` and `log_determinant` are exact for images of up to 2048 values. Beyond, they are those
    of a block approximation (each block of pixels given the blocks before it that touch it, none
    farther), itself a normal density, whose error falls with the correlation length.

    Args:
        autocovariance: Table R (P, Q) or (P, Q, C, C) in FFT order (lag 0 first, then 1, 2, ...,
            then ..., -2, -1), in squared units of the image; `R[-l] = R[l]'`.
            `table[..., None, None] * channels` gives channels with one covariance (C, C).
        spectrum: Discrete Fourier transform of the autocovariance, to be given instead, of the same
            shape, real or (for several channels) complex and Hermitian.
        clip: True to replace negative values of the spectrum by zero and rescale each channel to
            its variance; otherwise a negative spectrum is refused.

    Returns:
        The covariance, for images of up to (P + 1) // 2 by (Q + 1) // 2 pixels.

    Raises:
        InputError: Not exactly one table is given, a shape is wrong, values are not finite, a table
            is not symmetric, or a spectrum is negative.

    Example:
        >>> noise = stationary([[2.0, 1.0, 1.0]])  # lags 0, 1 and -1 along columns
        >>> noise.apply(np.array([[[1.0], [0.0]]])).round(12).ravel().tolist()
        [2.0, 1.0]

    Source: Wood and Chan, J. Comput. Graph. Stat. 3 (1994) 409-432; Dietrich and Newsam, SIAM J.
    Sci. Comput. 18 (1997) 1088-1107; Stein, Chi and Welty, J. R. Statist. Soc. B 66 (2004) 275-296
    (blocks).
    """
    return _Stationary(*_tables(autocovariance, spectrum, clip))


def circulant(
    autocovariance: ArrayLike | None = None,
    *,
    spectrum: ArrayLike | None = None,
    clip: bool = False,
) -> Covariance:
    """Return stationary noise on a torus of the size of the image: opposite edges are neighbours.

    It equals `stationary` with P = H and Q = W. Everything is exact and O(n log n), but the
    wrap-around is wrong for photographs: the operator serves periodic images and comparisons.

    Args:
        autocovariance: Table (H, W) or (H, W, C, C), as in `stationary`.
        spectrum: Discrete Fourier transform of the autocovariance, to be given instead.
        clip: True to clip a negative spectrum, as in `stationary`.

    Returns:
        The covariance, for images of that size.

    Raises:
        InputError: The same conditions as in `stationary`.

    Example:
        >>> noise = circulant([[2.0, 1.0, 1.0]])
        >>> noise.apply(np.array([[[1.0], [0.0], [0.0]]])).round(12).ravel().tolist()
        [2.0, 1.0, 1.0]

    Source: Gray, Toeplitz and Circulant Matrices (2006), chapter 3.
    """
    return _Circulant(*_tables(autocovariance, spectrum, clip))


@dataclass(frozen=True, eq=False)
class _Torus(Whitening):
    autocovariance: Float[np.ndarray, "P Q C C"]
    spectrum: np.ndarray  # (P, Q // 2 + 1, C, C), the half that the FFT of real images needs
    root: np.ndarray  # its Hermitian square root at each frequency

    def apply(self, v: Float[np.ndarray, "H W C"]) -> Float[np.ndarray, "H W C"]:
        self.check(v.shape)
        return self._filter(self.spectrum, v[None])[0]

    def sample(
        self, rng: np.random.Generator, shape: tuple[int, int, int]
    ) -> Float[np.ndarray, "H W C"]:
        self.check(shape)
        torus = self._filter(self.root, rng.standard_normal((1, *self.autocovariance.shape[:3])))
        return torus[0, : shape[0], : shape[1]]

    def _filter(self, gains: np.ndarray, images: np.ndarray) -> Float[np.ndarray, "N H W C"]:
        sides = self.autocovariance.shape[:2]
        waves = np.fft.rfft2(images, sides, axes=(1, 2))
        waves = np.matmul(gains, waves[..., None])[..., 0]
        torus = np.fft.irfft2(waves, sides, axes=(1, 2))
        return torus[:, : images.shape[1], : images.shape[2]]


@dataclass(frozen=True, eq=False)
class _Stationary(_Torus):
    _plans: dict[tuple[int, ...], BlockPlan] = field(default_factory=dict, repr=False)

    def check(self, shape: tuple[int, ...]) -> None:
        p, q, c, _ = self.autocovariance.shape
        if len(shape) != 3 or shape[0] > (p + 1) // 2 or shape[1] > (q + 1) // 2 or shape[2] != c:
            raise InputError(
                f"noise is cut from a torus {(p, q, c)}, good for images up to "
                f"{((p + 1) // 2, (q + 1) // 2, c)}, the image is {shape}"
            )

    def whiten(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N H W C"]:
        values = _batch(self, images)
        return self._plan(values.shape[1:]).whiten(values)

    def log_determinant(self, shape: tuple[int, ...]) -> float:
        return self._plan(shape).log_determinant()

    def is_exact(self, shape: tuple[int, ...]) -> bool:
        return self._plan(shape).is_exact()

    def _plan(self, shape: tuple[int, ...]) -> BlockPlan:
        """Return the block plan for a shape; it is cached, because its factors take O(limit^3)."""
        self.check(shape)
        key = (shape[0], shape[1], shape[2])
        if key not in self._plans:
            self._plans.clear()
            self._plans[key] = plan_blocks(self._between(), key)
        return self._plans[key]

    def _between(self) -> Between:
        table = self.autocovariance
        p, q, c, _ = table.shape

        def between(a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, "a b"]:
            dy, dx = a[:, None, 0] - b[None, :, 0], a[:, None, 1] - b[None, :, 1]
            blocks = table[dy % p, dx % q]
            return blocks.transpose(0, 2, 1, 3).reshape(len(a) * c, len(b) * c)

        return between


@dataclass(frozen=True, eq=False)
class _Circulant(_Torus):
    def check(self, shape: tuple[int, ...]) -> None:
        size = self.autocovariance.shape[:3]
        if tuple(shape) != size:
            raise InputError(f"noise wraps around images {size}, the image is {shape}")

    def whiten(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N H W C"]:
        values = _batch(self, images)
        self.log_determinant(values.shape[1:])  # refuses zeros
        return self._filter(np.linalg.inv(self.root), values)

    def log_determinant(self, shape: tuple[int, ...]) -> float:
        self.check(shape)
        levels = np.linalg.eigvalsh(np.fft.fft2(self.autocovariance, axes=(0, 1)))
        if not levels.min() > ROUNDING * levels.max():
            raise InputError("noise has a spectrum with zeros, expected positive ones to whiten")
        return float(np.sum(np.log(levels)))


def stretch_correlation(noise: Covariance, shape: tuple[int, ...], factor: float) -> Covariance:
    """Return stationary noise whose correlation extends over `factor` times the distance.

    `R'(l) = R(l / factor)`, with R the covariance of the middle pixel with the others. Negative
    values of the resulting spectrum are clipped, and the variance is kept.

    Args:
        noise: Covariance of images of this shape.
        shape: Shape (H, W, C) of the images.
        factor: Factor of the correlation length, positive.

    Returns:
        Covariance of images of this shape.

    Example:
        >>> from dal_jax.noise import iid
        >>> wide = stretch_correlation(iid(1.0), (4, 4, 1), 2.0)
        >>> wide.apply(np.ones((4, 4, 1))).shape
        (4, 4, 1)
    """
    height, width, channels = shape
    rows, columns = (_torus_lags(side) for side in (height, width))
    middle = (height // 2, width // 2)
    places = np.meshgrid(middle[0] + rows / factor, middle[1] + columns / factor, indexing="ij")
    table = np.zeros((len(rows), len(columns), channels, channels))
    for channel in range(channels):
        impulse = np.zeros(shape)
        impulse[(*middle, channel)] = 1.0
        covariance = noise.apply(impulse)
        for other in range(channels):
            table[..., channel, other] = ndimage.map_coordinates(
                covariance[..., other], places, order=1, mode="constant", cval=0.0
            )
    # R[-l] = R[l]' has to be enforced: the middle of an even side is no centre of symmetry.
    mirrored = np.roll(table[::-1, ::-1], 1, axis=(0, 1)).swapaxes(2, 3)
    return stationary((table + mirrored) / 2, clip=True)


def _torus_lags(side: int) -> np.ndarray:
    """Return the lags 0, 1, ..., -2, -1 of a torus of twice the side, where opposite edges of an
    image do not meet.
    """
    return np.fft.fftfreq(2 * side, 1 / (2 * side))
