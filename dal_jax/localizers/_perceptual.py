"""How far two images are in the features of a frozen network, place by place."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from dal_jax._typing import Array, Float, PyTree
from dal_jax.localizers._filters import average_filter, resize

# Added to squared lengths of feature vectors: a place without features is like another such place.
TINY = 1e-12


def features(
    extractor: Any, params: PyTree, x: Float[Array, "B H W C"], image_range: tuple[float, float]
) -> list[Float[Array, "B h w D"]]:
    """Extracts the features of images, each averaged over the 3 x 3 places around it.

    Args:
        extractor: (params, images) -> features (B, h, w, D) of several depths; its `input_range`
            (low, high) is that of the images it takes, or None for images as they are.
        params: of the extractor.
        x: (B, H, W, C).
        image_range: (low, high), of x; what is outside is mapped by the same line.

    Returns:
        Features (B, h, w, D) of each depth, in the dtype of x.

    Source: Roth et al., arXiv 2106.08265, section 3.1 (local averages of features).
    """
    wanted = extractor.input_range
    if wanted is not None:
        (low, high), (first, last) = image_range, wanted
        slope = (last - first) / (high - low)
        x = x.dtype.type(slope) * x + x.dtype.type(first - slope * low)
    return [_locally_averaged(maps) for maps in extractor(params, x)]


def _locally_averaged(x: Array) -> Array:
    batch, height, width, channels = x.shape
    side_by_side = jnp.moveaxis(x, 0, -1).reshape(height, width, channels * batch)
    return jnp.moveaxis(average_filter(side_by_side).reshape(*x.shape[1:], batch), -1, 0)


def distance(
    u: Float[Array, "B h w D"],
    v: Float[Array, "B h w D"],
    radius: int | None = 0,
    piecewise_linear: bool = False,
) -> Float[Array, "B h w"]:
    """Measures at each place how far the features u are from the most similar of v around it.

    `d_p = min_q (1 - cos(u_p, v_q))`, or, piecewise linear, `d_p = min_q mean |u_p - v_q|`.

    Args:
        u: (B, h, w, D).
        v: (B, h, w, D).
        radius: places p and q differ by at most this in row and column; None: any two places.
        piecewise_linear: the second formula in place of the first.

    Returns:
        (B, h, w), 0 or above; 0 where the features are the same.

    Source: Yao et al., arXiv 2406.07487, section 3.2 (all places, cosine); Wu et al., arXiv
    2404.17900, section 3.4 (radius 0, cosine); piecewise linear: this project.
    """
    height, width, depth = u.shape[1:]
    u, v = (w.reshape(len(w), height * width, 1, depth) for w in (u, v))
    if not piecewise_linear:
        u, v = _unit(u), _unit(v)
    if radius is None and not piecewise_linear:
        half, none = u.dtype.type(0.5), u.dtype.type(0)
        lengths = half * jnp.sum(jnp.square(v), axis=-1)[:, None, :, 0]
        cosines = jnp.einsum("bpkd,bqkd->bpq", u, v, precision="highest")
        nearest = jnp.min(lengths - cosines, axis=-1) + half * jnp.sum(u * u, axis=-1)[..., 0]
        nearest = jnp.maximum(nearest, none)
    else:
        difference = u - (v if radius == 0 else _around(v[:, :, 0], height, width, radius))
        if piecewise_linear:
            far = jnp.sum(jnp.abs(difference), axis=-1) * u.dtype.type(1.0 / depth)
        else:  # half the squared distance of unit vectors: exactly 0 for equal ones
            far = jnp.sum(jnp.square(difference), axis=-1) * u.dtype.type(0.5)
        nearest = far[..., 0] if radius == 0 else jnp.min(far, axis=-1)
    return nearest.reshape(-1, height, width)


def _unit(x: Array) -> Array:
    return x * lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + x.dtype.type(TINY))


def _around(v: Array, height: int, width: int, radius: int | None) -> Array:
    """(B, places, D) -> (B, places, K, D), the places around each."""
    around = _neighbours(height, width, radius)
    found = jnp.take(v, around.reshape(-1), axis=1, mode="clip")
    return found.reshape(len(v), *around.shape, v.shape[-1])


@lru_cache(maxsize=64)
def _neighbours(height: int, width: int, radius: int | None) -> np.ndarray:
    """Of each place those around it (places, K); itself once more where the border is near."""
    places = np.arange(height * width).reshape(height, width)
    reach = max(height, width) - 1 if radius is None else radius
    if reach >= max(height, width) - 1:
        return np.broadcast_to(places.reshape(-1), (places.size, places.size))
    columns = []
    for down in range(-reach, reach + 1):
        for across in range(-reach, reach + 1):
            i, j = np.mgrid[down : down + height, across : across + width]
            there = (i >= 0) & (i < height) & (j >= 0) & (j < width)
            columns.append(np.where(there, (i * width + j) * there, places).reshape(-1))
    return np.stack(columns, axis=1)


def perceptual_map(
    u: list[Array],
    v: list[Array],
    scales: Float[Array, " depths"],
    sides: tuple[int, int],
    radius: int | None = 0,
    piecewise_linear: bool = False,
) -> Float[Array, "B H W"]:
    """Sums the distances at several depths, resized to the image: `sum_d scale_d resize(d_d)`.

    Args:
        u: features of one image, of each depth; of one for all or of each of the batch.
        v: features of the other, or others.
        scales: factor of each depth.
        sides: (H, W).
        radius: as in `distance`.
        piecewise_linear: as in `distance`.

    Returns:
        (B, H, W).

    Source: as `distance`.
    """
    maps = [
        scales[depth] * resize(distance(one, other, radius, piecewise_linear), sides)
        for depth, (one, other) in enumerate(zip(u, v, strict=True))
    ]
    return sum(maps[1:], start=maps[0])


def difference_from(
    config: Any, extractor: Any, params: PyTree, x: Float[Array, "H W C"]
) -> Callable[[Float[Array, "B H W C"]], Float[Array, "B H W"]]:
    """Gives the comparison of an image with normal counterparts, by features and by pixels.

    `sum_d scale_d resize(d_d) + w scale_pixel mean_c |normal - x|`.

    Args:
        config: of MDPS or GLAD.
        extractor: of features.
        params: of the localizer, {"features": ..., "scales": ...}.
        x: (H, W, C), the image.

    Returns:
        A function of counterparts (B, H, W, C), giving maps (B, H, W) that are not blurred.

    Source: Wu et al., arXiv 2404.17900, section 3.4; Yao et al., arXiv 2406.07487, section 3.4.
    """

    def look(images: Array) -> list[Array]:
        return features(extractor, params["features"], images, config.image_range)

    scales, linear, seen = params["scales"], config.piecewise_linear, look(x[None])
    channels, weight = x.dtype.type(1.0 / x.shape[-1]), x.dtype.type(config.pixel_weight)

    def difference(normal: Array) -> Array:
        compared = (scales["features"], config.sides, config.reach, linear)
        pixel = jnp.sum(jnp.abs(normal - x), axis=-1) * channels
        return perceptual_map(seen, look(normal), *compared) + scales["pixel"] * weight * pixel

    return difference
