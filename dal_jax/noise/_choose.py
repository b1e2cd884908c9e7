"""The choice between noise models by cross-validation over objects."""

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dal_jax._errors import InputError
from dal_jax._typing import Int
from dal_jax.noise._covariance import Covariance
from dal_jax.noise._estimate import KINDS, estimate
from dal_jax.noise._fit import Evidence, FitReport, Scores, collect, summarize
from dal_jax.noise._likelihood import DENSE_LIMIT
from dal_jax.noise._sample import Groups, mean_image, sample_of


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
        raise InputError(f"folds is {folds}, expected 2 or more")
    if count < 3:
        raise InputError(
            f"images: {count} objects, expected 3 or more to compare kinds of noise: give more "
            "normal images, or one kind"
        )
    if by not in ("likelihood", "regions"):
        raise InputError(f"by is {by!r}, expected 'likelihood' or 'regions'")
    if seed < 0:
        raise InputError(f"seed is {seed!r}, expected an integer >= 0")


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
