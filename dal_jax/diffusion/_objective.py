"""Objectives of training: prediction of noise, and removal of synthetic anomalies."""

from dataclasses import dataclass, field
from functools import partial
from math import ceil, hypot, inf
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dal_jax._errors import InputError
from dal_jax._typing import Array, Bool, Float, Int, PyTree
from dal_jax.diffusion._reverse import Schedule
from dal_jax.models import UNet, UNetConfig, init_unet


class Batch(NamedTuple):
    """Images of one training step.

    Example:
        >>> batch = Batch(np.zeros((2, 4, 4, 1), np.float32))
        >>> batch.images.shape, batch.where
        ((2, 4, 4, 1), None)
    """

    images: Any  # (B, H, W, C), float32, normal ones
    where: Any = None  # (B, H, W), bool: pixels of the object, or None: all are
    textures: Any = None  # (T, H, W, C), float32, of other things, the same in every step; or None


class Objective(Protocol):
    """Objective of training; frozen and hashable, and equal ones share a compiled update.

    A step is a function of the weights, of the batch and of a key that follows from (seed, step).

    Example:
        >>> @dataclass(frozen=True)
        ... class OneNumber:
        ...     def init(self, seed):
        ...         return {"params": {"mean": np.float32(1)}, "batch_stats": {}}
        ...
        ...     def prepare(self, key, batch):
        ...         return batch.images
        ...
        ...     def loss(self, params, stats, prepared, dtype):
        ...         return jnp.mean((prepared - params["mean"]) ** 2), stats
        >>> objective: Objective = OneNumber()
        >>> images = np.full((1, 2, 2, 1), 3.0, np.float32)
        >>> objective.loss(objective.init(0)["params"], {}, images, "float32")[0].item()
        4.0
    """

    def init(self, seed: int) -> PyTree:
        """Draw the first variables {"params": ..., "batch_stats": ...}, numpy float32.

        Args:
            seed: Seed of the random numbers, 0 or above.

        Returns:
            {"params": ..., "batch_stats": ...}, numpy float32.
        """
        ...

    def prepare(self, key: Array, batch: Batch) -> PyTree:
        """Prepare the input of the loss from a batch and random numbers.

        Args:
            key: Key of the random numbers.
            batch: Images of the step.

        Returns:
            The input of `loss`.
        """
        ...

    def loss(
        self, params: PyTree, stats: PyTree, prepared: PyTree, dtype: Any
    ) -> tuple[Array, PyTree]:
        """Return the float32 loss, with activations of a dtype, and the next batch statistics.

        Args:
            params: Parameters of the network.
            stats: Batch statistics of the network.
            prepared: Result of `prepare`.
            dtype: Type of the activations.

        Returns:
            The loss and the statistics.
        """
        ...


@dataclass(frozen=True)
class NoisePrediction:
    """Least squares `mean |eps - UNet(sqrt(a) x + sqrt(1-a) eps, t)|^2`, `a = alpha_bar[t+1]`.

    `prepare` returns noised images, levels and targets; an objective with other images or targets
    only needs another `prepare`.

    Example:
        >>> objective = NoisePrediction(UNetConfig(channels=(2,)), Schedule())
        >>> batch = Batch(jnp.ones((2, 4, 4, 1)))
        >>> noised, level, noise = jax.eval_shape(objective.prepare, jax.random.key(0), batch)
        >>> noised.shape, level.shape, noise.shape
        ((2, 4, 4, 1), (2,), (2, 4, 4, 1))

    Source: Ho et al., arXiv 2006.11239, algorithm 1.
    """

    unet: UNetConfig  # the network
    schedule: Schedule  # of the noise

    def init(self, seed: int) -> PyTree:
        """Draw the network's first variables.

        Args:
            seed: Seed of the random numbers, 0 or above.

        Returns:
            {"params": ..., "batch_stats": ...}, numpy float32.
        """
        return init_unet(self.unet, seed)

    def prepare(self, key: Array, batch: Batch) -> tuple[Array, Array, Array]:
        """Add noise to each image at a level of its own, uniform over the levels.

        Args:
            key: Key of the random numbers.
            batch: Batch with images (B, H, W, C).

        Returns:
            Noised images (B, H, W, C), levels (B,), noise (B, H, W, C).
        """
        level, noise = self.levels_and_noise(key, batch.images.shape)
        share = jnp.asarray(self.schedule.alpha_bar[1:].astype(np.float32))[level]
        share = share[:, None, None, None]
        x = jnp.sqrt(share) * batch.images + jnp.sqrt(jnp.float32(1) - share) * noise
        return x, level, noise

    def levels_and_noise(self, key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Draw a level for each image (B,) int32, and noise (B, H, W, C) float32.

        Args:
            key: Key of the random numbers.
            shape: (B, H, W, C).

        Returns:
            Levels and noise.
        """
        level_key, noise_key = jax.random.split(key)
        level = jax.random.randint(level_key, shape[:1], 0, self.schedule.num_levels, jnp.int32)
        return level, jax.random.normal(noise_key, shape, jnp.float32)

    def loss(
        self, params: PyTree, stats: PyTree, prepared: tuple[Array, Array, Array], dtype: Any
    ) -> tuple[Array, PyTree]:
        """Return the mean square of the difference between prediction and target.

        Args:
            params: Parameters of the network.
            stats: Batch statistics of the network.
            prepared: Noised images, levels, targets, from `prepare`.
            dtype: Type of the activations.

        Returns:
            The loss, float32, and the statistics.

        Raises:
            InputError: The images do not fit the network.
        """
        x, level, target = prepared
        variables = {"params": params, "batch_stats": stats}
        predicted, changed = UNet(self.unet).apply(
            variables, x.astype(dtype), level, train=True, mutable=["batch_stats"]
        )
        error = jnp.asarray(predicted).astype(jnp.float32) - target
        return jnp.mean(jnp.square(error)), changed.get("batch_stats", {})


@dataclass(frozen=True)
class Synthesis:
    """Settings of synthetic anomalies.

    Raises:
        InputError: A number is out of range.

    Example:
        >>> Synthesis(probability=1, tiles=4).texture_share
        0.5

    Source: Zavrtanik et al., DRAEM, arXiv 2108.07610, section 3.1; own tiles: Yang et al., MemSeg,
    arXiv 2205.00908.
    """

    probability: float = 0.5  # share of the images that get an anomaly
    most_kept: float = 0.8  # share of the image kept in the mask: uniform from 0 to this
    threshold: float = 0.3  # of the noise, -1 to 1: the mask is where the noise is above it
    finest: int = 5  # a side has 2**k cells of noise, k uniform from 0 to this
    tiles: int = 8  # largest number of shuffled tiles along a side of an image
    texture_share: float = 0.5  # share of the anomalies from textures, if there are textures

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
        # A training run is identified by its printed objective.
        object.__setattr__(self, name, int(value) if whole else float(value))


def synthesize(
    key: Array, batch: Batch, synthesis: Synthesis
) -> tuple[Float[Array, "B H W C"], Bool[Array, "B H W"]]:
    """Put anomalies into images: `x_a = (1 - m) x + m ((1 - beta) source + beta x)`.

    The mask m marks where Perlin noise exceeds a threshold; beta is uniform from 0 to `most_kept`.
    The source is the image with shuffled tiles, or a texture, after a random change of its look by
    `changed_look`. The anomaly of an image depends on the key, on the image and on its place in the
    batch, not on other images. The mask of a chosen image may be empty.

    Args:
        key: Key of the random numbers.
        batch: Images (B, H, W, C), with the places `where` anomalies may be put, and `textures`.
        synthesis: Settings of the synthetic anomalies.

    Returns:
        Images with anomalies, in the dtype of the images, and the masks of the anomalies. Images
        that are not chosen stay as they are, with an empty mask.

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
    # Uniform numbers are below 1: probabilities of 0 and 1 are exact.
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
    """Draw Perlin noise: random slopes at the corners of cells, blended into each other.

    Each side has 2**k cells, with k uniform from 0 to `finest` and at least two pixels in a cell;
    the cells are rotated by -90 to 90 degrees. In a cell `f(t) = 6 t^5 - 15 t^4 + 10 t^3` weights
    the four planes through its corners. Unlike in the publication, the cells are also shifted by a
    fraction of a cell: noise is zero at corners, one of which would always fall on the image's
    centre.

    Args:
        key: Key of the random numbers.
        sides: (H, W), pixels.
        finest: Largest k.

    Returns:
        (H, W) float32, -1 to 1, of mean zero.

    Source: Perlin, Improving Noise, SIGGRAPH 2002; the choice of cells and the amplitude, sqrt(2)
    times that of unit slopes: Zavrtanik et al., DRAEM, arXiv 2108.07610, section 3.1.
    """
    draw_key, slope_key = jax.random.split(key)
    angle, *draws = _uniform(draw_key, 5)
    most = [_halvings(side, finest) for side in sides]
    # Slopes for the largest number of cells: the actual one is unknown at compile time.
    reach = [ceil(hypot(*sides) / 2 / side * 2**k) for side, k in zip(sides, most, strict=True)]
    y, x = (
        along * (jnp.exp2(jnp.floor(draws[k] * (most[k] + 1))) / sides[k]) + reach[k] + draws[2 + k]
        for k, along in enumerate(_rotate(sides, np.pi * (angle - 0.5)))
    )
    turns = 2 * np.pi * _uniform(slope_key, 2 * reach[0] + 3, 2 * reach[1] + 3)
    slopes = jnp.stack([jnp.cos(turns), jnp.sin(turns)], axis=-1)
    return np.float32(np.sqrt(2)) * _blend(slopes, y, x)


def _halvings(side: int, most: int) -> int:
    """Return how often a side can be halved with two pixels left, up to a limit."""
    return min(int(most), max((side // 2).bit_length() - 1, 0))


def _rotate(sides: tuple[int, int], angle: Array) -> tuple[Array, Array]:
    """Return each pixel's place along both axes, rotated about the centre, in pixels."""
    y, x = (np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2) for side in sides)
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    return cosine * y[:, None] - sine * x, sine * y[:, None] + cosine * x


def _blend(slopes: Array, y: Array, x: Array) -> Array:
    """Return noise of unit amplitude at places, in cells, from the slopes at the corners."""
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
    """Cut an image into equal tiles and put them together in random order.

    Args:
        key: Key of the random numbers.
        image: (H, W, C).
        tiles: Largest number of tiles along a side. The largest divisor of the side up to this
            number counts, so that a side of a larger prime number is not cut.

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
    """Change contrast, brightness, sign and direction of an image in any units.

    The published augmentations are for 8-bit colours. Here the pixels become
    `mean + u sd + g (x - mean)`, with mean and standard deviation (sd) of each channel, u uniform
    from -1 to 1 for each channel, and g uniform from 0.5 to 1.5 with a random sign, one for all
    channels; then the image is mirrored along neither, one or both of its axes and, where it is
    square, these are exchanged or not: together all mirror images and quarter turns.

    Args:
        key: Key of the random numbers.
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


class GladPair(NamedTuple):
    """Input and target of a network in anomaly-oriented training."""

    noised: Array  # (B, H, W, C), z_t
    target: Array  # (B, H, W, C), of the predicted noise


def glad_pair(
    normal: Float[Array, "B H W C"],
    anomalous: Float[Array, "B H W C"],
    level: Int[Array, " B"],
    noise: Float[Array, "B H W C"],
    schedule: Schedule,
) -> GladPair:
    """Return noised mixtures of images with and without an anomaly, with the target noise.

    `z_s = (t/T) z_a + (1 - t/T) z_n`, `z_t = sqrt(ab) z_s + sqrt(1 - ab) n`, and the target
    `n + sqrt(ab / (1 - ab)) (z_s - z_n)`: with it `(z_t - sqrt(1 - ab) target) / sqrt(ab) = z_n`.

    Args:
        normal: (B, H, W, C) normal images, z_n.
        anomalous: (B, H, W, C) the same images with synthetic anomalies, z_a.
        level: (B,) levels t, 0 or above.
        noise: (B, H, W, C) standard normal noise, n.
        schedule: Schedule of T levels.

    Returns:
        The pair, in the dtype of the images.

    Example:
        >>> normal, noise = jnp.ones((1, 2, 2, 1)), jnp.full((1, 2, 2, 1), 0.5)
        >>> pair_of = jax.jit(glad_pair, static_argnums=4)
        >>> pair = pair_of(normal, normal, jnp.array([10]), noise, Schedule())
        >>> bool((pair.target == noise).all())  # without an anomaly: the noise itself
        True

    Source: Yao et al., arXiv 2406.07487, section 3.1, with the sign that leads to the normal image.
    """
    number = normal.dtype.type
    share = jnp.asarray(schedule.alpha_bar[1:], normal.dtype)[level][:, None, None, None]
    progress = (level.astype(normal.dtype) * number(1 / schedule.num_levels))[:, None, None, None]
    mixed = progress * (anomalous - normal)  # z_s - z_n
    rest = number(1) - share
    noised = jnp.sqrt(share) * (normal + mixed) + jnp.sqrt(rest) * noise
    return GladPair(noised, noise + jnp.sqrt(share / rest) * mixed)


@dataclass(frozen=True)
class AnomalyRemoval(NoisePrediction):
    """Least squares of the noise that leads images with synthetic anomalies to normal ones.

    `mean |target - UNet(z_t, t)|^2` with the pair of `glad_pair`; normal images without an anomaly
    among them are learned as in `NoisePrediction`.

    Example:
        >>> from dal_jax.models import UNetConfig
        >>> objective = AnomalyRemoval(UNetConfig(channels=(2,)), Schedule())
        >>> batch = Batch(jnp.ones((2, 8, 8, 1)))
        >>> noised, level, target = jax.eval_shape(objective.prepare, jax.random.key(0), batch)
        >>> noised.shape, level.shape, target.shape
        ((2, 8, 8, 1), (2,), (2, 8, 8, 1))

    Source: Yao et al., arXiv 2406.07487, section 3.1; mask and textures: Zavrtanik et al., DRAEM,
    arXiv 2108.07610, section 3.1; own tiles: Yang et al., MemSeg, arXiv 2205.00908.
    """

    synthesis: Synthesis = field(default_factory=Synthesis)  # settings of the synthetic anomalies

    def prepare(self, key: Array, batch: Batch) -> tuple[Array, Array, Array]:
        """Add anomalies to images, and noise to each at a level of its own, uniform over the
        levels.

        Args:
            key: Key of the random numbers.
            batch: Normal images, with the places where anomalies may be put, and textures.

        Returns:
            Noised images (B, H, W, C), levels (B,), targets (B, H, W, C).
        """
        draw_key, anomaly_key = jax.random.split(key)
        level, noise = self.levels_and_noise(draw_key, batch.images.shape)
        anomalous, _ = synthesize(anomaly_key, batch, self.synthesis)
        pair = glad_pair(batch.images, anomalous, level, noise, self.schedule)
        return pair.noised, level, pair.target
