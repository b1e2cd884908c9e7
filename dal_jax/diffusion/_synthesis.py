"""Synthetic anomalies: blotches of Perlin noise, filled from elsewhere or with shuffled tiles."""

from dataclasses import dataclass
from functools import partial
from math import ceil, hypot, inf
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dal_jax._errors import InputError
from dal_jax._typing import Array, Bool, Float
from dal_jax.diffusion._update import Batch


@dataclass(frozen=True)
class Synthesis:
    """How anomalies are made.

    Raises:
        InputError: a number out of range.

    Example:
        >>> Synthesis(probability=1, tiles=4).texture_share
        0.5

    Source: Zavrtanik et al., DRAEM, arXiv 2108.07610, section 3.1; own tiles: Yang et al., MemSeg,
    arXiv 2205.00908.
    """

    probability: float = 0.5  # share of the images that are given an anomaly
    most_kept: float = 0.8  # share of the image kept in the mask: uniform from 0 to this
    threshold: float = 0.3  # of the noise, -1 to 1: the mask is where the noise is above it
    finest: int = 5  # a side has 2**k cells of noise, k uniform from 0 to this
    tiles: int = 8  # along a side, at most; the image's own parts that are shuffled
    texture_share: float = 0.5  # of the anomalies, those of textures where there are textures

    def __post_init__(self) -> None:
        for name in ("probability", "most_kept", "texture_share"):
            self._check(name, 0, 1)
        self._check("threshold", -1, 1)
        self._check("finest", 0, inf, whole=True)
        self._check("tiles", 1, inf, whole=True)

    def _check(self, name: str, low: int, high: float, whole: bool = False) -> None:
        value = getattr(self, name)
        kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
        if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
            end = " or above" if high == inf else f" to {high}"
            kind = "a whole number" if whole else "a number"
            raise InputError(f"{name}: got {value!r}, expected {kind} of {low}{end}")
        # A run of training is known by how its objective is printed.
        object.__setattr__(self, name, int(value) if whole else float(value))


def synthesize(
    key: Array, batch: Batch, synthesis: Synthesis
) -> tuple[Float[Array, "B H W C"], Bool[Array, "B H W"]]:
    """Puts anomalies into images: `x_a = (1 - m) x + m ((1 - beta) source + beta x)`.

    The mask m is where Perlin noise exceeds a threshold, beta is uniform from 0 to `most_kept`.
    The source is the image with its tiles shuffled, or a texture, and is changed in its look by
    `changed_look`. What an image is given depends on the key, its place in the batch and itself,
    on no other image. The mask of a chosen image may be empty.

    Args:
        key: of random numbers.
        batch: images (B, H, W, C); `where` anomalies may be put; `textures`.
        synthesis: how anomalies are made.

    Returns:
        Images with anomalies, in the dtype of the images, and where the anomalies are. Images that
        are not chosen are as they were, with an empty mask.

    Example:
        >>> batch, key = Batch(jnp.ones((2, 8, 8, 1))), jax.random.key(0)
        >>> images, masks = jax.eval_shape(partial(synthesize, synthesis=Synthesis()), key, batch)
        >>> images.shape, masks.shape
        ((2, 8, 8, 1), (2, 8, 8))

    Source: Zavrtanik et al., DRAEM, arXiv 2108.07610, section 3.1.
    """
    images = jnp.asarray(batch.images)
    count = len(images)
    where = jnp.asarray(True) if batch.where is None else jnp.asarray(batch.where)
    where = jnp.broadcast_to(where, images.shape[:3])
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count, dtype=jnp.uint32))
    return jax.vmap(partial(_with_anomaly, synthesis, batch.textures))(keys, images, where)


def _with_anomaly(
    synthesis: Synthesis, textures: Any, key: Array, image: Array, where: Array
) -> tuple[Array, Array]:
    draw_key, noise_key, source_key = jax.random.split(key, 3)
    chosen, kept = _uniform(draw_key, 2)
    height, width, _ = image.shape
    noise = perlin(noise_key, (height, width), synthesis.finest)
    # Uniform numbers are below 1: neither 0 nor 1 is left to chance.
    mask = (noise > synthesis.threshold) & where & (chosen < synthesis.probability)
    kept = (kept * synthesis.most_kept).astype(image.dtype)
    source = _source(source_key, image, textures, synthesis)
    mixed = (1.0 - kept) * source + kept * image
    return jnp.where(mask[..., None], mixed, image), mask


def _source(key: Array, image: Array, textures: Any, synthesis: Synthesis) -> Array:
    draw_key, tile_key, look_key = jax.random.split(key, 3)
    source = shuffled_tiles(tile_key, image, synthesis.tiles)
    if textures is not None:
        other, which = _uniform(draw_key, 2)
        place = jnp.floor(which * len(textures)).astype(jnp.int32)
        texture = jnp.asarray(textures, image.dtype)[place]
        source = jnp.where(other < synthesis.texture_share, texture, source)
    return changed_look(look_key, source)


def _uniform(key: Array, *shape: int) -> Array:
    return jax.random.uniform(key, shape, jnp.float32)


def perlin(key: Array, sides: tuple[int, int], finest: int) -> Float[Array, "H W"]:
    """Draws Perlin noise: random slopes at the corners of cells, faded into each other.

    Each side has 2**k cells, k uniform from 0 to `finest`, or to where a cell has two pixels; then
    the cells are turned by -90 to 90 degrees. In a cell `f(t) = 6 t^5 - 15 t^4 + 10 t^3` weights
    the four planes through its corners. Unlike as published, the cells are also shifted by a part
    of a cell: noise is zero at corners, which else would always fall on the image's centre.

    Args:
        key: of random numbers.
        sides: (H, W), pixels.
        finest: largest k.

    Returns:
        (H, W) float32, -1 to 1, of mean zero.

    Source: Perlin, Improving Noise, SIGGRAPH 2002; the choice of cells and the amplitude, sqrt(2)
    times that of unit slopes: Zavrtanik et al., DRAEM, arXiv 2108.07610, section 3.1.
    """
    draw_key, slope_key = jax.random.split(key)
    angle, *draws = _uniform(draw_key, 5)
    most = [_halvings(side, finest) for side in sides]
    # Slopes for as many cells as there can be: their number is not known when this is compiled.
    reach = [ceil(hypot(*sides) / 2 / side * 2**k) for side, k in zip(sides, most, strict=True)]
    y, x = (
        along * (jnp.exp2(jnp.floor(draws[k] * (most[k] + 1))) / sides[k]) + reach[k] + draws[2 + k]
        for k, along in enumerate(_turned(sides, np.pi * (angle - 0.5)))
    )
    turns = 2 * np.pi * _uniform(slope_key, 2 * reach[0] + 3, 2 * reach[1] + 3)
    slopes = jnp.stack([jnp.cos(turns), jnp.sin(turns)], axis=-1)
    return np.float32(np.sqrt(2)) * _faded(slopes, y, x)


def _halvings(side: int, most: int) -> int:
    """How often a side can be halved with two pixels left, at most so often."""
    return min(int(most), max((side // 2).bit_length() - 1, 0))


def _turned(sides: tuple[int, int], angle: Array) -> tuple[Array, Array]:
    """Each pixel's place along both axes, turned about the centre, in pixels."""
    y, x = (np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2) for side in sides)
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    return cosine * y[:, None] - sine * x, sine * y[:, None] + cosine * x


def _faded(slopes: Array, y: Array, x: Array) -> Array:
    """Noise of unit amplitude at places, in cells, given slopes at the corners."""
    row, column = jnp.floor(y), jnp.floor(x)
    y, x = y - row, x - column
    row, column = row.astype(jnp.int32), column.astype(jnp.int32)

    def plane(down: int, right: int) -> Array:
        slope = slopes[row + down, column + right]
        return slope[..., 0] * (y - down) + slope[..., 1] * (x - right)

    fade_y, fade_x = (t * t * t * (t * (t * 6.0 - 15.0) + 10.0) for t in (y, x))
    upper, lower = (plane(down, 0) + fade_x * (plane(down, 1) - plane(down, 0)) for down in (0, 1))
    return upper + fade_y * (lower - upper)


def shuffled_tiles(key: Array, image: Float[Array, "H W C"], tiles: int) -> Float[Array, "H W C"]:
    """Cuts an image into equal tiles and puts them together in random order.

    Args:
        key: of random numbers.
        image: (H, W, C).
        tiles: along a side, at most: the largest number up to it that divides the side, so that a
            side of a larger prime number is not cut.

    Returns:
        (H, W, C), the same pixels in other places.

    Source: Yang et al., MemSeg, arXiv 2205.00908.
    """
    height, width, channels = image.shape
    down, right = (max(n for n in range(1, tiles + 1) if side % n == 0) for side in (height, width))
    grid = (down, height // down, right, width // right, channels)
    parts = image.reshape(grid).swapaxes(1, 2)
    order = jax.random.permutation(key, down * right)
    parts = parts.reshape(down * right, *parts.shape[2:])[order].reshape(parts.shape)
    return parts.swapaxes(1, 2).reshape(image.shape)


def changed_look(key: Array, image: Float[Array, "H W C"]) -> Float[Array, "H W C"]:
    """Changes contrast, brightness, sign and direction of an image, whatever its units are.

    The published augmentations are of 8-bit colours. Here the pixels become
    `mean + u sd + g (x - mean)`, with mean and standard deviation (sd) of each channel, u uniform
    from -1 to 1 for each channel, and g uniform from 0.5 to 1.5 with a random sign, one for all
    channels; then the image is mirrored along neither, one or both of its axes and, where it is
    square, these are exchanged or not: together all mirror images and quarter turns.

    Args:
        key: of random numbers.
        image: (H, W, C), pixels in any unit.

    Returns:
        (H, W, C), in the dtype of the image.

    Source: Zavrtanik et al., DRAEM, arXiv 2108.07610, section 3.1.
    """
    draw_key, offset_key = jax.random.split(key)
    gain, *chances = _uniform(draw_key, 5)
    mean, spread = (f(image, axis=(0, 1)) for f in (jnp.mean, jnp.std))
    gain = jnp.where(chances[0] < 0.5, gain + 0.5, -gain - 0.5).astype(image.dtype)
    offset = (2.0 * _uniform(offset_key, *mean.shape) - 1.0).astype(image.dtype)
    image = mean + offset * spread + gain * (image - mean)
    moves = [lambda x: x[::-1], lambda x: x[:, ::-1], lambda x: x.swapaxes(0, 1)]
    for chance, move in zip(chances[1:], moves, strict=True):
        if move(image).shape == image.shape:
            image = jnp.where(chance < 0.5, move(image), image)
    return image
