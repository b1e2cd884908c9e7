"""The fit of a covariance to held-out normal images, and to fixed regions of them."""

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dal_jax._errors import InputError
from dal_jax._typing import Bool, Float, Int
from dal_jax.noise._covariance import Covariance
from dal_jax.noise._estimate import KINDS, estimate
from dal_jax.noise._likelihood import (
    DENSE_LIMIT,
    Groups,
    group_members,
    log_likelihood,
    mean_image,
    sample_of,
    whitening,
)

_SQUARES = (1, 2, 3, 5, 8, 12)
_CRITICAL = 1.959963984540054  # two-sided normal test at 0.05
_POSITIONS = 4  # number along each axis


class Shape(NamedTuple):
    """A rectangle of pixels."""

    height: int
    width: int


class Scores(NamedTuple):
    """Z scores of the means of rectangles, at fixed positions of each image."""

    shapes: tuple[Shape, ...]
    rejected: Float[np.ndarray, "N shapes"]  # share of the positions with |z| > 1.96
    squares: Float[np.ndarray, "N shapes"]  # mean of z^2 over the positions


def fixed_shapes(height: int, width: int) -> tuple[Shape, ...]:
    """Return the rectangles that are tested on images of a given size.

    They are squares of side 1, 2, 3, 5, 8 and 12 that fit, and a row and a column of half the
    image.

    Args:
        height: Height of the images in pixels.
        width: Width of the images in pixels.

    Returns:
        Shapes without repetition.
    """
    squares = [Shape(side, side) for side in _SQUARES if side <= min(height, width)]
    thin = [Shape(1, max(1, width // 2)), Shape(max(1, height // 2), 1)]
    return tuple(dict.fromkeys(squares + thin))


def _region_scores(
    covariance: Covariance, deviations: Float[np.ndarray, "N H W C"], share: float = 1.0
) -> Scores:
    """Return z scores of the differences between rectangles of the images and of the mean image.

    `z = nu . d / sqrt(share nu' Sigma nu)`, with nu the mean over the rectangle and all channels,
    at up to 4 x 4 positions spread evenly over the image; rejected where |z| > 1.96. The removed
    mean has left the given share of the variance, in (0, 1].
    """
    height, width = deviations.shape[1:3]
    shapes = fixed_shapes(height, width)
    rejected, squares = np.empty((2, len(deviations), len(shapes)))
    for k, shape in enumerate(shapes):
        masks = [_mask(shape, (y, x), (height, width)) for y, x in _positions(shape, height, width)]
        z = np.stack([_z(covariance, deviations, mask, share) for mask in masks], axis=1)
        rejected[:, k] = np.mean(np.abs(z) > _CRITICAL, axis=1)
        squares[:, k] = np.mean(z**2, axis=1)
    return Scores(shapes, rejected, squares)


def _positions(shape: Shape, height: int, width: int) -> list[tuple[int, int]]:
    rows, columns = _spread(height - shape.height + 1), _spread(width - shape.width + 1)
    return [(y, x) for y in rows for x in columns]


def _spread(count: int) -> list[int]:
    """Return the middles of four equal parts of 0..count-1, or all numbers if there are fewer."""
    parts = min(_POSITIONS, count)
    return [int((k + 0.5) * count / parts) for k in range(parts)]


def _mask(shape: Shape, first: tuple[int, int], size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    mask = np.zeros(size, dtype=bool)
    mask[first[0] : first[0] + shape.height, first[1] : first[1] + shape.width] = True
    return mask


def _z(
    covariance: Covariance,
    deviations: Float[np.ndarray, "N H W C"],
    mask: Bool[np.ndarray, "H W"],
    share: float,
) -> Float[np.ndarray, " N"]:
    size = deviations.shape[1:]
    nu = np.broadcast_to(mask[:, :, None] / (mask.sum() * size[2]), size)
    variance = share * float(np.sum(nu * covariance.apply(nu)))
    return deviations[:, mask].mean(axis=(1, 2)) / np.sqrt(variance)


class Estimate(NamedTuple):
    """A mean over images and its standard error, clustered by group.

    Example:
        >>> from dal_jax.noise import iid
        >>> images = np.random.default_rng(0).normal(0.0, 1.0, (100, 8, 8, 1))
        >>> variance = fit_report(iid(1.0), images).residual_variance
        >>> abs(variance.value - 1) < 3 * variance.standard_error
        True
    """

    value: float
    standard_error: float  # NaN for a single group


class RegionFit(NamedTuple):
    """Tests of the mean of one fixed rectangle, under the covariance.

    Example:
        >>> from dal_jax.noise import iid
        >>> images = np.random.default_rng(0).normal(0.0, 1.0, (100, 8, 8, 1))
        >>> region = fit_report(iid(1.0), images).regions[1]
        >>> region.shape, region.rejection.value < 0.1
        ((2, 2), True)
    """

    shape: tuple[int, int]  # height and width in pixels
    rejection: Estimate  # share with two-sided p <= 0.05; 0.05 where the covariance is right
    variance: Estimate  # of z; 1 where the covariance is right


class FitReport(NamedTuple):
    """Fit of a covariance to held-out images; residuals are those of `whiten`.

    Example:
        >>> from dal_jax.noise import iid
        >>> images = np.random.default_rng(0).normal(0.0, 1.0, (100, 8, 8, 1))
        >>> right, wrong = fit_report(iid(1.0), images), fit_report(iid(2.0), images)
        >>> right.log_likelihood.value > wrong.log_likelihood.value
        True
    """

    kind: str  # name of the model, "" if unknown
    num_images: int
    num_groups: int
    log_likelihood: Estimate  # per value (pixel and channel), nats; higher is better
    residual_mean: Estimate  # 0 where the covariance and the mean are right
    residual_variance: Estimate  # 1 where they are right
    residual_kurtosis: float  # excess over the normal's: 0 where right; > 0: heavy tails
    residual_rows: Estimate  # correlation of vertical neighbours, 0 where right; NaN: one row
    residual_columns: Estimate  # the same of horizontal neighbours; NaN: one column
    scale_spread: float  # sd of each image's log scale beyond chance, 0 where scales agree
    regions: tuple[RegionFit, ...]  # tests of fixed regions, without selection
    region_error: float  # root mean square over the regions of log variance of z, 0 where right
    exact: bool  # False: likelihood and residuals are those of the block approximation


class Evidence(NamedTuple):
    """Measures of fit of each image, before they are averaged."""

    log_likelihood: Float[np.ndarray, " N"]  # per value
    moments: Float[np.ndarray, "N 4"]  # mean of the first four powers of the residuals
    neighbours: Float[np.ndarray, "N 2"]  # mean product of vertical, horizontal neighbours
    scores: Scores
    size: int  # values per image
    exact: bool


def fit_report(
    covariance: Covariance,
    images: ArrayLike,
    groups: Groups = None,
    *,
    mean: ArrayLike | None = None,
    kind: str = "",
) -> FitReport:
    """Return the fit of a covariance to normal images that were not used for its estimate.

    Residuals `A (x - mean)`, with `A Sigma A' = I`, are independent standard normal if Sigma is
    right. Regions fixed in advance are tested by `z = nu . (x - mean) / sqrt(nu' Sigma nu)`. A good
    fit does not certify the selective test, whose short intervals demand more of the tails.
    Standard errors are cluster-robust: images of one group count as one.

    Args:
        covariance: Covariance Sigma of one image.
        images: Held-out normal images (N, H, W, C), preprocessed like those of the estimate.
        groups: Labels of the objects (N,); None makes each image an object of its own.
        mean: Mean image (H, W, C) of the estimate's images; None takes that of these images, and
            the variances allow for it.
        kind: Name shown in the report.

    Returns:
        The report.

    Raises:
        InputError: Shapes or labels do not fit, values are not finite, or the covariance is
            singular.

    Example:
        >>> from dal_jax.noise import iid
        >>> images = np.random.default_rng(0).normal(0.0, 1.0, (100, 8, 8, 1))
        >>> fit_report(iid(1.0), images).regions[0].shape
        (1, 1)

    Source: Liang and Zeger, Biometrika 73 (1986) 13-22 (standard errors).
    """
    values = np.asarray(images, dtype=np.float64)
    members, count = group_members(groups, len(values))
    return summarize(collect(covariance, values, groups, mean), members, count, kind)


def collect(
    covariance: Covariance, images: ArrayLike, groups: Groups, mean: ArrayLike | None
) -> Evidence:
    """Return the measures of fit of a covariance on each held-out image.

    Args:
        covariance: Covariance Sigma of one image.
        images: Normal images (N, H, W, C).
        groups: Labels of the objects (N,), or None.
        mean: Mean image (H, W, C), or None for that of the images.

    Returns:
        The evidence of each image.

    Raises:
        InputError: The same conditions as in `fit_report`.
    """
    deviations, share = _deviations(images, groups, mean)
    size = deviations.shape[1:]
    scaled = deviations / np.sqrt(share)
    operator = whitening(covariance, size)
    residuals = operator.whiten(scaled)
    powers = [np.mean(residuals**k, axis=(1, 2, 3)) for k in (1, 2, 3, 4)]
    down = _mean_product(residuals[:, 1:], residuals[:, :-1])
    right = _mean_product(residuals[:, :, 1:], residuals[:, :, :-1])
    return Evidence(
        log_likelihood(operator, scaled) / deviations[0].size,
        np.stack(powers, axis=1),
        np.stack([down, right], axis=1),
        _region_scores(covariance, deviations, share),
        deviations[0].size,
        operator.is_exact(size),
    )


def summarize(
    evidence: Evidence, members: Int[np.ndarray, " N"], num_groups: int, kind: str = ""
) -> FitReport:
    """Return the report of the evidence of the images, with errors clustered by group.

    Args:
        evidence: Evidence of all images.
        members: Group of each image, (N,).
        num_groups: Number of groups.
        kind: Name shown in the report.

    Returns:
        The report.
    """

    def clustered(values: np.ndarray) -> Estimate:
        return _clustered(values, members, num_groups)

    first, second = evidence.moments[:, 0], evidence.moments[:, 1]
    centre, power = float(first.mean()), float(second.mean())
    neighbours = (evidence.neighbours - centre**2) / max(power - centre**2, np.finfo(float).tiny)
    shapes, rejected, squares = evidence.scores
    regions = tuple(
        RegionFit((shape.height, shape.width), clustered(rejected[:, k]), clustered(squares[:, k]))
        for k, shape in enumerate(shapes)
    )
    return FitReport(
        kind=kind,
        num_images=len(members),
        num_groups=num_groups,
        log_likelihood=clustered(evidence.log_likelihood),
        residual_mean=clustered(first),
        residual_variance=clustered(second - centre**2),
        residual_kurtosis=_excess_kurtosis(evidence.moments),
        residual_rows=clustered(neighbours[:, 0]),
        residual_columns=clustered(neighbours[:, 1]),
        scale_spread=_scale_spread(second, evidence.size),
        regions=regions,
        region_error=float(np.sqrt(np.mean(np.log(squares.mean(axis=0)) ** 2))),
        exact=evidence.exact,
    )


def _deviations(
    images: ArrayLike, groups: Groups, mean: ArrayLike | None
) -> tuple[Float[np.ndarray, "N H W C"], float]:
    """Return the images minus a mean, and the share of the variance that this leaves."""
    values = np.asarray(images, dtype=np.float64)
    if values.ndim != 4 or values.size == 0:
        raise InputError(f"images has shape {values.shape}, expected (N, H, W, C)")
    if not np.all(np.isfinite(values)):
        raise InputError("images holds a NaN or infinite value, expected finite values")
    if mean is not None:
        known = np.asarray(mean, dtype=np.float64)
        if known.shape != values.shape[1:]:
            raise InputError(f"mean has shape {known.shape}, expected {values.shape[1:]}")
        return values - known, 1.0
    _, count = group_members(groups, len(values))
    if count < 2:
        raise InputError("images are of 1 object, expected mean=... or 2 or more objects")
    return values - mean_image(values, groups), 1 - 1 / count


def _mean_product(one: np.ndarray, other: np.ndarray) -> Float[np.ndarray, " N"]:
    """Return the mean product of neighbours; NaN for images of one row or column."""
    if one[0].size == 0:
        return np.full(len(one), np.nan)
    return np.mean(one * other, axis=(1, 2, 3))


def _clustered(values: np.ndarray, members: np.ndarray, num_groups: int) -> Estimate:
    mean = float(np.mean(values))
    if num_groups < 2:
        return Estimate(mean, float("nan"))
    sums = np.bincount(members, weights=values - mean, minlength=num_groups)
    variance = np.sum(sums**2) / len(values) ** 2 * num_groups / (num_groups - 1)
    return Estimate(mean, float(np.sqrt(variance)))


def _excess_kurtosis(moments: Float[np.ndarray, "N 4"]) -> float:
    one, two, three, four = moments.mean(axis=0)
    variance = two - one**2
    central = four - 4 * one * three + 6 * one**2 * two - 3 * one**4
    return float(central / variance**2 - 3) if variance > 0 else float("nan")


def _scale_spread(squares: Float[np.ndarray, " N"], size: int) -> float:
    """Return the sd of log sd over the images, less the part that is chance for `size` values."""
    logs = np.log(np.maximum(squares, np.finfo(float).tiny)) / 2
    return float(np.sqrt(max(0.0, np.var(logs) - 0.5 / size)))


class NoiseRanking(NamedTuple):
    """Noise models, starting with the best one on held-out images.

    Example:
        >>> images = np.random.default_rng(0).normal(0.0, 1.0, (40, 4, 4, 1))
        >>> choice = choose(images, ("iid", "dense"))
        >>> [report.kind for report in choice.reports]
        ['iid', 'dense']
    """

    kind: str  # name of the best model
    covariance: Covariance  # its estimate from all images
    reports: tuple[FitReport, ...]  # of every fitted model, the best one first
    refused: tuple[tuple[str, str], ...]  # kind and reason of the models that could not be fitted


def choose(
    images: ArrayLike,
    kinds: Sequence[str] | None = None,
    groups: Groups = None,
    seed: int = 0,
    *,
    folds: int = 5,
    by: str = "likelihood",
) -> NoiseRanking:
    """Return the noise models ranked by their fit to images held out by object.

    The objects are dealt at random to folds. Each fold's images are judged by the mean image and
    the covariance estimated from the other folds, and the judgements are pooled. The best model is
    then estimated from all images. The likelihood judges all of Sigma, the finest contrasts above
    all; "regions" judges the variance of region means, by which the test divides.

    Args:
        images: Normal images (N, H, W, C), preprocessed like those to be tested.
        kinds: Kinds of `estimate`; None stands for all, dense ones for images of up to 2048 values
            only.
        groups: Labels of the objects (N,); None makes each image an object of its own.
        seed: Seed of the deal, >= 0.
        folds: Number of folds, 2 or more; at most the number of objects is used.
        by: Criterion: "likelihood" for the largest held-out log-likelihood, "regions" for the least
            `region_error`.

    Returns:
        The ranking, with the best model's estimate from all images.

    Raises:
        InputError: There are fewer than 3 objects, the seed is negative, a kind or the criterion is
            unknown, or no kind could be fitted.

    Example:
        >>> images = np.random.default_rng(0).normal(0.0, 1.0, (40, 4, 4, 1))
        >>> choose(images, ("iid", "dense")).kind
        'iid'

    Source: Arlot and Celisse, Statistics Surveys 4 (2010) 40-79 (cross-validation).
    """
    sample = sample_of(images, groups)
    _check(folds, sample.count, by, seed)
    values = np.asarray(images, dtype=np.float64)
    deal = np.random.default_rng(seed).permutation(sample.count) % min(folds, sample.count)
    reports, refused = [], []
    for kind in _kinds(kinds, values[0].size):
        try:
            evidence = _held_out(values, kind, sample.members, deal[sample.members])
            reports.append(summarize(evidence, sample.members, sample.count, kind))
        except InputError as error:
            refused.append((kind, str(error)))
    if not reports:
        raise InputError(f"images allow none of the kinds: {refused[0][0]}: {refused[0][1]}")
    reports.sort(key=lambda r: r.region_error if by == "regions" else -r.log_likelihood.value)
    best = reports[0].kind
    covariance = estimate(values, best, groups=sample.members)
    return NoiseRanking(best, covariance, tuple(reports), tuple(refused))


def _check(folds: int, count: int, by: str, seed: int) -> None:
    if folds < 2:
        raise InputError(f"folds: got {folds}, expected 2 or more")
    if count < 3:
        raise InputError(
            f"images: {count} objects, expected 3 or more to compare kinds of noise: give more "
            "normal images, or one kind"
        )
    if by not in ("likelihood", "regions"):
        raise InputError(f"by: got {by!r}, expected 'likelihood' or 'regions'")
    if seed < 0:
        raise InputError(f"seed: got {seed!r}, expected an integer >= 0")


def _kinds(kinds: Sequence[str] | None, size: int) -> tuple[str, ...]:
    if kinds is None:
        return tuple(kind for kind in KINDS if not kind.startswith("dense") or size <= DENSE_LIMIT)
    if not kinds:
        raise InputError(f"kinds is empty, expected some of {', '.join(KINDS)}")
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"kinds holds {kind!r}, expected some of {', '.join(KINDS)}")
    return tuple(kinds)


def _held_out(
    images: np.ndarray, kind: str, members: Int[np.ndarray, " N"], parts: Int[np.ndarray, " N"]
) -> Evidence:
    """Return the evidence of each image on the estimate from the folds without its object."""
    pieces, order = [], []
    for part in np.unique(parts):
        inside = parts == part
        others, labels = images[~inside], members[~inside]
        covariance = estimate(others, kind, groups=labels)
        pieces.append(collect(covariance, images[inside], None, mean_image(others, labels)))
        order.append(np.flatnonzero(inside))
    return _pooled(pieces, np.argsort(np.concatenate(order)))


def _pooled(pieces: list[Evidence], order: Int[np.ndarray, " N"]) -> Evidence:
    def joined(name: str) -> np.ndarray:
        return np.concatenate([attrgetter(name)(piece) for piece in pieces])[order]

    return Evidence(
        joined("log_likelihood"),
        joined("moments"),
        joined("neighbours"),
        Scores(pieces[0].scores.shapes, joined("scores.rejected"), joined("scores.squares")),
        pieces[0].size,
        all(piece.exact for piece in pieces),
    )
