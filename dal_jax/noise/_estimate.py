"""Covariances estimated from normal images, by the name of the model."""

import numpy as np
from numpy.typing import ArrayLike

from dal_jax._errors import InputError
from dal_jax._typing import Float
from dal_jax.noise._covariance import Covariance, diagonal, iid
from dal_jax.noise._dense import dense, kronecker, low_rank
from dal_jax.noise._likelihood import Groups, WeightedDeviations, as_matrix, sample_of
from dal_jax.noise._scaled import scaled
from dal_jax.noise._stationary import ar1, clip_spectrum, stationary

# Every kind of `estimate`, from few parameters to many.
KINDS = (
    *("iid", "ar1", "diagonal", "stationary", "scaled_stationary"),
    *("kronecker", "low_rank", "dense", "dense_stationary"),
)
_SHRINKABLE = KINDS[2:]
_TARGETS = ("diagonal", "identity", "stationary")  # targets of `estimate_dense`
# Two images lead to an estimated intensity of 0; this least one keeps matrices positive definite.
LEAST_SHRINKAGE = 1e-3
_CHUNK = 2**21  # complex numbers transformed at a time, 32 MB
_ROUNDS = 200  # largest number of alternations between the Kronecker factors
_SETTLED = 1e-8  # relative change of the factors at which the alternation ends


def estimate(
    images: ArrayLike,
    kind: str,
    *,
    groups: Groups = None,
    shrinkage: float | None = None,
    rank: int | None = None,
    mean: str = "image",
) -> Covariance:
    """Return the noise covariance of normal images under one of the models.

    The kinds are "iid", one variance; "ar1", one variance and the correlation of neighbours along
    the flattened image (Burg's estimate); "diagonal", the variance of each pixel; "stationary", the
    tapered sample autocovariance, without wrap-around; "scaled_stationary", the same for images
    divided by each pixel's standard deviation, then multiplied again; "kronecker", the separable
    covariance of greatest likelihood; "low_rank", principal components plus the remaining variance
    of each pixel; "dense", the sample covariance, shrunk towards its diagonal; and
    "dense_stationary", the same shrunk towards the stationary estimate.

    Images of one group (exposures of one object, slices of one patient) do not count as
    independent: each weighs 1 / (size of its group), and the number of groups takes the place of
    the number of images in every correction.

    Args:
        images: Normal images (N, H, W, C), preprocessed like those to be tested, N >= 2.
        kind: Kind of the model, one of the above.
        groups: Labels of the objects (N,); None makes each image an object of its own.
        shrinkage: Share in [0, 1] moved to the model's simpler target: the mean variance for
            "diagonal" and for the scale of "scaled_stationary", the stationary model for
            "dense_stationary", zero correlation for the others. None estimates it (dense ones), or
            takes 1 / (G + 1) for G groups (scales), else 0.001.
        rank: Number of components of "low_rank"; None takes up to 20.
        mean: Mean that is removed first: "image", the mean image; "pixel", the mean pixel (one
            value per channel); or "none".

    Returns:
        The covariance, for images of shape (H, W, C), in squared units of the image.

    Raises:
        InputError: The kind is unknown, an option does not belong to it, or the images do not allow
            the estimate.

    Example:
        >>> images = np.random.default_rng(0).normal(0.0, 2.0, (50, 8, 8, 1))
        >>> estimate(images, "iid").apply(np.ones((8, 8, 1))).max().round().item()
        4.0

    Source: Burg, Maximum Entropy Spectral Analysis (1975) for "ar1"; Priestley, Spectral Analysis
    and Time Series (1981), section 6.2.3, for "stationary"; Dutilleul, J. Stat. Comput. Simul. 64
    (1999) 105-123, for "kronecker"; Tipping and Bishop, J. R. Statist. Soc. B 61 (1999) 611-622,
    equation 7, for "low_rank"; "dense" as in `estimate_dense`.
    """
    _check_options(kind, shrinkage, rank)
    if kind in ("dense", "dense_stationary"):
        target = "diagonal" if kind == "dense" else "stationary"
        return estimate_dense(images, shrinkage, target, groups=groups, mean=mean)
    sample = sample_of(images, groups, mean)
    least = LEAST_SHRINKAGE if shrinkage is None else shrinkage
    if kind == "iid":
        return _iid_from(sample)
    if kind == "ar1":
        return _ar1_from(sample)
    if kind == "diagonal":
        return diagonal(_variances(sample, shrinkage))
    if kind == "stationary":
        return _stationary_from(sample, least)
    if kind == "scaled_stationary":
        return _scaled_stationary_from(sample, shrinkage)
    if kind == "kronecker":
        return _kronecker_from(sample, least)
    return _low_rank_from(sample, rank, least)


def _check_options(kind: str, shrinkage: float | None, rank: int | None) -> None:
    if kind not in KINDS:
        raise InputError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise InputError(f"shrinkage: got {shrinkage!r}, expected None or a number from 0 to 1")
    if shrinkage is not None and kind not in _SHRINKABLE:
        raise InputError(f"shrinkage: got {shrinkage!r}, expected None for the kind {kind!r}")
    if rank is not None and kind != "low_rank":
        raise InputError(f"rank: got {rank!r}, expected None for the kind {kind!r}")


def _iid_from(sample: WeightedDeviations) -> Covariance:
    return iid(_positive(np.mean(np.sum(sample.scaled() ** 2, axis=0))) ** 0.5)


def _ar1_from(sample: WeightedDeviations) -> Covariance:
    flat = sample.scaled().reshape(len(sample.weights), -1)
    variance = _positive(np.sum(flat**2) / flat.shape[1])
    ends = np.sum(flat[:, 1:] ** 2) + np.sum(flat[:, :-1] ** 2)
    rho = 2 * np.sum(flat[:, 1:] * flat[:, :-1]) / ends if ends > 0 else 0.0
    return ar1(float(np.clip(rho, -1 + 1e-6, 1 - 1e-6)), variance**0.5)


def _variances(sample: WeightedDeviations, shrinkage: float | None) -> np.ndarray:
    """Return each pixel's variance, shrunk to the mean of its channel."""
    share = 1 / (sample.count + 1) if shrinkage is None else shrinkage
    variances = np.sum(sample.scaled() ** 2, axis=0)
    return (1 - share) * variances + share * variances.mean(axis=(0, 1))


def _scaled_stationary_from(sample: WeightedDeviations, shrinkage: float | None) -> Covariance:
    scale = np.sqrt(_variances(sample, shrinkage))
    if not np.all(scale > 0):
        raise InputError("images do not vary in a pixel, expected variance > 0")
    relative = sample._replace(deviations=sample.deviations / scale)
    return scaled(_stationary_from(relative, LEAST_SHRINKAGE), scale)


def _need_variance(variances: Float[np.ndarray, " n"]) -> None:
    if not np.all(variances > 0):
        still = int(np.argmin(variances))
        raise InputError(f"images do not vary in value {still} of each, expected variance > 0")


def _positive(variance: float) -> float:
    if not variance > 0:
        raise InputError("images do not vary, expected variance > 0")
    return float(variance)


def _stationary_from(sample: WeightedDeviations, shrinkage: float) -> Covariance:
    """Return stationary noise with the tapered sample autocovariance of the images.

    `R(l) = w(l) sum_p d(p + l) d(p)' / (number of pixels p)`, with the Tukey-Hanning window w,
    `(1 + cos(pi |l| / side)) / 2` along both axes. Negative values of its spectrum on the torus of
    twice the sides are set to zero and the variance is restored. A share `shrinkage` of the
    covariance of one pixel is moved to lag 0; above 0, it leaves a spectrum without zeros.
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


def _low_rank_from(sample: WeightedDeviations, rank: int | None, shrinkage: float) -> Covariance:
    """Return the leading principal components of the images plus independent noise.

    `Sigma = (1 - a) L + diag(S - (1 - a) L)`, `L = sum_k (w_k - v) q_k q_k'` over the rank largest
    eigenvalues w of the sample covariance S, with the mean v of the others: each pixel keeps its
    variance. The shrinkage a must be above 0 where the rank is large. The rank is at most the
    lesser of G - 1 and n - 1 for G groups; None is 20, or half of the rank that the images allow.
    """
    shape = sample.deviations.shape[1:]
    flat = sample.scaled().reshape(len(sample.weights), -1)
    most = min(sample.count, flat.shape[1]) - 1
    rank = max(1, min(20, (most + 1) // 2)) if rank is None else rank
    if not 1 <= rank <= most:
        raise InputError(f"rank: got {rank!r}, expected 1 to {most} for these images")
    variances = np.sum(flat**2, axis=0)
    _need_variance(variances)
    _, singular, components = np.linalg.svd(flat, full_matrices=False)
    rest = (np.sum(variances) - np.sum(singular[:rank] ** 2)) / (flat.shape[1] - rank)
    scales = np.sqrt((1 - shrinkage) * np.maximum(singular[:rank] ** 2 - rest, 0))
    factors = components[:rank] * scales[:, None]
    own = variances - np.sum(factors**2, axis=0)
    least = max(shrinkage, np.finfo(float).eps)
    return low_rank(
        factors.reshape(rank, *shape), np.maximum(own, least * variances).reshape(shape)
    )


def _kronecker_from(sample: WeightedDeviations, shrinkage: float) -> Covariance:
    """Return the separable covariance of greatest likelihood, each factor slightly shrunk.

    The estimate alternates `A = sum_i y_i (B (x) C)^-1 y_i' / (W C)` over the three factors, each
    shrunk by `(1 - a) A + a mean(diag A) I` and the first two scaled to mean variance 1. With few
    images the shrinkage a must be above 0.
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
    """Return `sum_n F d_n (F d_n)*` (2H, 2W, C, C) of the zero-padded images, few at a time."""
    count, height, width, channels = deviations.shape
    step = max(1, _CHUNK // (4 * deviations[0].size))
    spectrum = np.zeros((2 * height, 2 * width, channels, channels), dtype=np.complex128)
    for first in range(0, count, step):
        some = deviations[first : first + step]
        waves = np.fft.fft2(some, (2 * height, 2 * width), axes=(1, 2))
        spectrum += np.einsum("nyxc,nyxd->yxcd", waves, np.conj(waves), optimize=True)
    return spectrum


def _window(side: int) -> Float[np.ndarray, " lags"]:
    """Return the taper divided by the number of overlapping pixels, for lags in FFT order."""
    lags = np.minimum(np.arange(2 * side), 2 * side - np.arange(2 * side))
    taper = (1 + np.cos(np.pi * lags / side)) / 2
    return taper / np.maximum(side - lags, 1)


def _factor(
    deviations: Float[np.ndarray, "N H W C"],
    factors: list[np.ndarray],
    axis: int,
    shrinkage: float,
) -> Float[np.ndarray, "k k"]:
    """Return the covariance along one axis, with the others whitened."""
    values = deviations
    for other in range(3):
        if other != axis:
            front = np.moveaxis(values, other + 1, 0)
            try:
                root = np.linalg.cholesky(factors[other])
            except np.linalg.LinAlgError:
                raise InputError(
                    f"shrinkage: got {shrinkage!r}, expected above 0 for this number of images"
                ) from None
            solved = np.linalg.solve(root, front.reshape(len(root), -1))
            values = np.moveaxis(solved.reshape(front.shape), 0, other + 1)
    front = np.moveaxis(values, axis + 1, 0).reshape(len(factors[axis]), -1)
    matrix = front @ front.T * len(front) / deviations[0].size
    mean = np.mean(np.diag(matrix))
    return (1 - shrinkage) * matrix + shrinkage * mean * np.eye(len(matrix))


def estimate_dense(
    images: ArrayLike,
    shrinkage: float | None = None,
    target: str = "diagonal",
    *,
    groups: Groups = None,
    mean: str = "image",
) -> Covariance:
    """Return the sample covariance of images, shrunk towards a simpler one.

    `Sigma = (1 - a) S + a D`, where S is the sample covariance around the mean image (divisor
    N - 1) and D is either diag(S), the mean variance times I, or the stationary estimate. By
    default the intensity a estimates the one with least expected squared error,
    `sum Var(S_ij) / sum (S_ij - D_ij)^2` over the entries that shrink, within [0.001, 1]; the
    matrix is then positive definite even if N < n. With groups, N is their number G and `Var(S_ij)`
    is the variance between them.

    Args:
        images: Images (N, H, W, C) of one mean and covariance, N >= 2.
        shrinkage: Intensity a in [0, 1]; None estimates it. 0 needs N > n = H*W*C.
        target: "diagonal" keeps each pixel's own variance; "identity" shrinks those, too;
            "stationary" shrinks to the covariance of kind "stationary" of `estimate` (n at most
            2048).
        groups: Labels of the objects (N,), see `estimate`; None stands for independent images.
        mean: Mean that is removed, see `estimate`.

    Returns:
        The covariance, for images of shape (H, W, C), stored as a matrix (n, n).

    Raises:
        InputError: The shape, shrinkage or target is wrong, values are not finite, a pixel has no
            variance (target "diagonal"), or the result is not positive definite (shrinkage 0).

    Example:
        >>> images = np.random.default_rng(0).normal(0.0, 1.0, (5, 4, 4, 1))  # of 16 values
        >>> matrix = as_matrix(estimate_dense(images), (4, 4, 1))
        >>> bool(np.linalg.eigvalsh(matrix).min() > 0)
        True

    Source: Ledoit and Wolf, J. Multivariate Analysis 88 (2004) 365-411; Schaefer and Strimmer,
    Stat. Appl. Genet. Mol. Biol. 4 (2005) 32, table 2, targets B ("identity") and D ("diagonal").
    """
    sample = sample_of(images, groups, mean)
    flat = sample.scaled().reshape(len(sample.weights), -1)
    matrix = flat.T @ flat
    goal = _target(sample, matrix, target)
    if shrinkage is None:
        shrinkage = max(LEAST_SHRINKAGE, _intensity(sample, matrix, goal, target))
    if not 0 <= shrinkage <= 1:
        raise InputError(f"shrinkage: got {shrinkage!r}, expected None or a number from 0 to 1")
    return dense((1 - shrinkage) * matrix + shrinkage * goal)


def _target(
    sample: WeightedDeviations, matrix: Float[np.ndarray, "n n"], target: str
) -> Float[np.ndarray, "n n"]:
    if target not in _TARGETS:
        raise InputError(
            f"target: got {target!r}, expected one of {', '.join(map(repr, _TARGETS))}"
        )
    if target == "stationary":
        height, width, channels = sample.deviations.shape[1:]
        return as_matrix(_stationary_from(sample, LEAST_SHRINKAGE), (height, width, channels))
    variances = np.diag(matrix)
    goal = variances if target == "diagonal" else np.full_like(variances, variances.mean())
    _need_variance(goal)
    return np.diag(goal)


def _intensity(
    sample: WeightedDeviations,
    matrix: Float[np.ndarray, "n n"],
    goal: Float[np.ndarray, "n n"],
    target: str,
) -> float:
    """Return `sum Var(S_ij) / sum (S_ij - D_ij)^2` over the entries that shrink, at most 1."""
    centre = matrix * sample.freedom
    spread = _squares(sample, target) - sample.count * _total(centre, target)
    # Var(S_ij) = sum_g (w_g - mean w)^2 / (G (G - 1)), times (G / (G - 1))^2 for the removed mean
    variance = spread / (sample.count * (sample.count - 1) * sample.freedom**2)
    total = _total(matrix - goal, target)
    return float(np.clip(variance / total, 0, 1)) if total > 0 else 1.0


def _total(matrix: Float[np.ndarray, "n n"], target: str) -> float:
    """Return the sum of squares over the entries that shrink."""
    kept = np.sum(np.diag(matrix) ** 2) if target == "diagonal" else 0.0
    return float(np.sum(matrix**2) - kept)


def _squares(sample: WeightedDeviations, target: str) -> float:
    """Return `sum_g sum_ij w_gij^2`, with the mean w_g of `d d'` over the images of group g.

    As `sum_ij (sum_k d_ki d_kj)^2 = sum_kl (d_k . d_l)^2`, no further n x n matrix is needed.
    """
    flat = sample.deviations.reshape(len(sample.weights), -1)
    order = np.argsort(sample.members, kind="stable")
    result = 0.0
    for rows in np.split(order, np.cumsum(np.bincount(sample.members))[:-1]):
        own = flat[rows]
        result += np.sum((own @ own.T) ** 2) / len(rows) ** 2
        if target == "diagonal":
            result -= np.sum(np.mean(own**2, axis=0) ** 2)
    return float(result)
