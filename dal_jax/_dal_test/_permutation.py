"""The permutation baseline of one image: regions flagged in copies with shuffled pixels."""

import zlib
from collections.abc import Generator, Iterator
from itertools import chain, islice
from typing import Any

import numpy as np

from dal_jax._dal_test._options import TestOptions
from dal_jax._typing import Bool, Float, Int
from dal_jax.inference import permutation_p
from dal_jax.search import ScoreReply, ScoreRequest, select_region

# Images requested at once: they take no more memory than the search of the line.
BLOCK = 64
# This constant separates these random numbers from others of the same seed.
STREAM = 2402_11789


def permutation_test(
    image: Float[np.ndarray, "H W C"],
    references: Float[np.ndarray, "*K H W C"],
    draws: Any,
    threshold: float,
    options: TestOptions,
    where: Bool[np.ndarray, "H W"] | None = None,
) -> Generator[ScoreRequest, ScoreReply, float]:
    """Compare the flagged region's difference of means with those of permuted images.

    In each permuted image b the localizer, with the same draws and threshold, flags a region M_b;
    `T_b = mean(x_b[M_b]) - mean(x_ref[M_b])`, 0 where nothing is flagged. A permuted image whose
    scores are not all finite counts as at least as extreme as the observed one. The image itself
    is scored among them, in the same precision: where rounding decides, it decides for all alike.

    Args:
        image: Test image; the channels of a pixel stay together.
        references: Reference images, which are not permuted.
        draws: Draws of this image, if every image has its own.
        threshold: Threshold of the score.
        options: Number of permutations, seed, alternative, dtype and region.
        where: Pixels that may be flagged; None stands for all.

    Yields:
        Requests for the scores of images.

    Returns:
        The p-value of `permutation_p`; NaN if the scores of the image itself are not finite.

    Source: Katsuoka et al., arXiv 2402.11789.
    """
    pixels = image.reshape(-1, image.shape[-1])
    means = pixels.mean(axis=1)
    reference = references.reshape(-1, *pixels.shape).mean(axis=(0, 2))

    def difference(order: np.ndarray, flagged: np.ndarray) -> float:
        if not flagged.any():
            return 0.0
        # In the image's own order, so that the same pixels have the same mean to the last bit.
        return float(means[np.sort(order[flagged])].mean() - reference[flagged].mean())

    wide = options.dtype == "float64"
    moving = pixels.astype(options.dtype)
    found: list[float] = []  # the image itself comes first
    permuted = permutations(image, options.permutations, options.seed)
    orders = chain([np.arange(len(pixels))], permuted)
    while block := list(islice(orders, BLOCK)):
        images = moving[np.stack(block)].reshape(-1, *image.shape)
        answer = yield ScoreRequest(images, np.full(len(block), wide), draws)
        for order, score in zip(block, answer.score, strict=True):
            if not np.isfinite(score).all():
                found.append(np.nan)
                continue
            selected = select_region(score, threshold, options.region, where)
            found.append(difference(order, selected.region.ravel()))
    return permutation_p(found[0], found[1:], options.alternative)


def permutations(
    image: Float[np.ndarray, "H W C"], count: int, seed: int
) -> Iterator[Int[np.ndarray, " n"]]:
    """Yield random orders of an image's pixels, uniform and independent of their present order.

    Args:
        image: Image whose pixel values, not their order, decide the orders beside the seed: each
            image has its own ones, and given its values an image is still exchangeable.
        count: Number of orders.
        seed: Seed of the run.

    Yields:
        Indices of the pixels, n = H W; pixel i of the permuted image is pixel `order[i]`.
    """
    values = np.sort(image.reshape(-1, image.shape[-1]), axis=0)
    rng = np.random.default_rng((seed, STREAM, zlib.crc32(values.tobytes())))
    for _ in range(count):
        yield rng.permutation(len(values))
