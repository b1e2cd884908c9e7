"""Comparison of an image with its counterpart by features: configuration, distances, maps."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dal_jax._errors import InputError
from dal_jax._typing import Array, Float, PyTree
from dal_jax.diffusion import DalConfig, LocalizerConfig, ReverseConfig, Schedule
from dal_jax.localizers._localizer import average_filter, resize
from dal_jax.models import UNetConfig, UNetEncoder

# Added to squared lengths of feature vectors: a place without features is like another such place.
TINY = 1e-12

VARIANTS = ("pl", "faithful")


@dataclass(frozen=True)
class PerceptualConfig(LocalizerConfig):
    """Network, levels and comparison of a localizer; `image_size` is (H, W), or one side of both.

    "pl" is piecewise linear in the image, so that the exact engines apply; "faithful" is as
    published. Levels are the multiples of `spacing` below `start`.

    Raises:
        InputError: A value is out of range, the parts do not fit each other, or the network with
            the variant "pl" is not piecewise linear.

    Example:
        >>> config = PerceptualConfig(image_size=8, start=60, spacing=20)
        >>> config.reverse.levels, config.piecewise_linear
        ((40, 20, 0), True)
    """

    kind: ClassVar[str] = ""

    unet: UNetConfig = field(default_factory=UNetConfig)  # the network
    schedule: Schedule = field(default_factory=Schedule)  # of the noise
    image_size: int | tuple[int, ...] = (32, 32)  # pixels; kept as (H, W)
    variant: str = "pl"  # or "faithful"
    start: int = 200  # the levels visited are below it
    spacing: int = 20  # spacing of the levels
    feature_level: float = 10.0  # at which the encoder computes the features
    depths: tuple[int, ...] = (1, 2)  # of the features, 1 is the finest
    image_range: tuple[float, float] = (-1.0, 1.0)  # mapped to an extractor's input range
    pixel_weight: float = 1.0  # of the difference of pixels beside that of features
    # Constants from `learn_scales`: factors of the depths, and of the pixels beside the weight.
    feature_scales: tuple[float, ...] | None = None  # None: ones
    pixel_scale: float = 1.0
    blur: float = 1.0  # standard deviation of the Gaussian filter, pixels; 0 for none

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            known = ", ".join(VARIANTS)
            raise InputError(f"variant: got {self.variant!r}, expected one of {known}")
        for name in ("start", "spacing"):
            self.check_number(name, 1, whole=True)
        for name in ("pixel_weight", "pixel_scale", "blur", "feature_level"):
            self.check_number(name, 0)
        for name in ("depths", "image_range"):
            object.__setattr__(self, name, _as_tuple(name, getattr(self, name)))
        if self.feature_scales is not None:
            scales = _as_tuple("feature_scales", self.feature_scales)
            check_constants("feature_scales", scales, (len(scales),))
            object.__setattr__(self, "feature_scales", scales)
        ends = (-math.inf, *self.image_range, math.inf)
        if len(ends) != 4 or not ends[0] < ends[1] < ends[2] < ends[3]:
            raise InputError(
                f"image_range: got {self.image_range}, expected (low, high), low < high"
            )
        rest = DalConfig(self.unet, self.schedule, self.reverse, image_size=self.image_size)
        object.__setattr__(self, "image_size", rest.image_size)
        if self.piecewise_linear and not self.unet.piecewise_linear:
            got = f"activation {self.unet.activation!r}, norm {self.unet.norm!r}"
            raise InputError(
                f"unet: got {got}, attention {self.unet.attention}, "
                "expected a piecewise-linear network with variant 'pl'"
            )
        _ = self.encoder

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read the result of `to_dict`.

        Args:
            values: Fields by name; older checkpoints name the variant "preset".

        Returns:
            The configuration.

        Raises:
            InputError: A field is unknown or a value does not fit.
        """
        if isinstance(values, dict) and "preset" in values:
            values = {**values, "variant": values["preset"]}
            del values["preset"]
        return super().from_dict(values)

    @property
    def piecewise_linear(self) -> bool:
        """Return whether the variant is piecewise linear."""
        return self.variant == "pl"

    @property
    def reverse(self) -> ReverseConfig:
        """The reverse process, without draws."""
        return self.reverse_with(0.0)

    def reverse_with(self, eta: float, start: int | None = None) -> ReverseConfig:
        """Return the reverse process with a share of fresh noise.

        Args:
            eta: Share of fresh noise, 0 to 1.
            start: Upper limit of the levels; None stands for that of the configuration.

        Returns:
            The process at multiples of the spacing.
        """
        steps = math.ceil((start or self.start) / self.spacing)
        return ReverseConfig((steps - 1) * self.spacing, steps, eta)

    @property
    def unscaled(self) -> Self:
        """Configuration without the scales, which are parameters: equal ones share programs."""
        return replace(self, feature_scales=None, pixel_scale=1.0)

    @property
    def encoder(self) -> UNetEncoder:
        """The network's own encoder as an extractor of features."""
        return UNetEncoder(self.unet, self.sides, self.feature_level, self.depths)

    def check_number(
        self,
        name: str,
        low: float,
        high: float = math.inf,
        *,
        whole: bool = False,
        positive: bool = False,
    ) -> None:
        """Check that a field is a number within a range.

        Args:
            name: Name of the field.
            low: Smallest value.
            high: Largest value; infinity itself is refused.
            whole: Whether only integers fit.
            positive: Whether `low` itself, which is 0 then, does not fit.

        Raises:
            InputError: The value does not fit.
        """
        value = getattr(self, name)
        kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
        fits = isinstance(value, kinds) and not isinstance(value, bool)
        if not fits or not low <= value <= high or value == math.inf or (positive and value == low):
            most = " or above" if high == math.inf else f" to {high:g}"
            kind = "a whole number" if whole else "a number"
            expected = "a positive number" if positive else f"{kind} of {low:g}{most}"
            raise InputError(f"{name}: got {value!r}, expected {expected}")


def _as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    numbers = (int, float, np.integer, np.floating)
    if not isinstance(value, tuple | list) or not all(isinstance(v, numbers) for v in value):
        raise InputError(f"{name}: got {value!r}, expected a tuple of numbers")
    return tuple(value)


def check_extractor(extractor: Any, config: PerceptualConfig) -> Any:
    """Check that an extractor fits a configuration.

    Args:
        extractor: Function (params, images) -> features; None is the network's own encoder.
        config: Configuration of the localizer.

    Returns:
        The extractor.

    Raises:
        InputError: The extractor cannot be called, lacks an attribute, or is not piecewise linear
            where the variant is.

    Example:
        >>> config = PerceptualConfig(image_size=8, depths=(1, 3))
        >>> check_extractor(None, config) == config.encoder
        True
    """
    extractor = config.encoder if extractor is None else extractor
    for name in ("piecewise_linear", "input_range"):
        if not callable(extractor) or not hasattr(extractor, name):
            raise InputError(
                f"extractor: got {type(extractor).__name__}, expected a callable with {name}"
            )
    if config.piecewise_linear and not extractor.piecewise_linear:
        raise InputError(
            f"extractor: got {type(extractor).__name__}, which is not piecewise linear, "
            "expected a piecewise-linear extractor with variant 'pl'"
        )
    return extractor


def make_params(
    variables: PyTree, config: PerceptualConfig, extractor: Any, features: PyTree
) -> dict[str, Any]:
    """Assemble the parameters of a localizer.

    Args:
        variables: Variables of the network.
        config: Configuration of the localizer, with the scales.
        extractor: Extractor of features.
        features: Parameters of the extractor; None stands for the variables.

    Returns:
        {"network": ..., "features": ..., "scales": {"features": (depths,), "pixel": ()}}.

    Raises:
        InputError: The number of scales is not that of the depths of the extractor.
    """
    features = variables if features is None else features
    image = jax.ShapeDtypeStruct((1, *config.image_shape), np.float32)
    depths = len(jax.eval_shape(extractor, features, image))
    scales = np.ones(depths) if config.feature_scales is None else config.feature_scales
    found = {
        "features": check_constants("feature_scales", scales, (depths,)),
        "pixel": np.asarray(config.pixel_scale, np.float64),
    }
    return {"network": variables, "features": features, "scales": found}


def check_constants(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Check the shape of constants, and that they are finite and not negative.

    Args:
        name: Name of the argument.
        value: Constants to be checked.
        shape: Expected shape.

    Returns:
        A float64 array.

    Raises:
        InputError: The constants do not fit.
    """
    array = np.asarray(value, np.float64)
    if array.shape != shape:
        raise InputError(f"{name}: got shape {array.shape}, expected shape {shape}")
    fits = np.isfinite(array) & (array >= 0)
    if not fits.all():
        raise InputError(
            f"{name}: got {array[~fits].flat[0]}, expected finite numbers of 0 or above"
        )
    return array


def features(
    extractor: Any, params: PyTree, x: Float[Array, "B H W C"], image_range: tuple[float, float]
) -> list[Float[Array, "B h w D"]]:
    """Extract the features of images, each averaged over the 3 x 3 places around it.

    Args:
        extractor: Function (params, images) -> features (B, h, w, D) of several depths; its
            `input_range` (low, high) is the range of its images, or None for images as they are.
        params: Parameters of the extractor.
        x: (B, H, W, C) images.
        image_range: (low, high) of x; values outside are mapped by the same line.

    Returns:
        Features (B, h, w, D) of each depth, in the dtype of x.

    Source: Roth et al., arXiv 2106.08265, section 3.1 (local averages of features).
    """
    wanted = extractor.input_range
    if wanted is not None:
        (low, high), (first, last) = image_range, wanted
        slope = (last - first) / (high - low)
        x = x.dtype.type(slope) * x + x.dtype.type(first - slope * low)
    return [_local_average(maps) for maps in extractor(params, x)]


def _local_average(x: Array) -> Array:
    batch, height, width, channels = x.shape
    side_by_side = jnp.moveaxis(x, 0, -1).reshape(height, width, channels * batch)
    return jnp.moveaxis(average_filter(side_by_side).reshape(*x.shape[1:], batch), -1, 0)


def distance(
    u: Float[Array, "B h w D"],
    v: Float[Array, "B h w D"],
    radius: int | None = 0,
    piecewise_linear: bool = False,
) -> Float[Array, "B h w"]:
    """Return the distance at each place of the features u from the most similar of v around it.

    `d_p = min_q (1 - cos(u_p, v_q))`, or, piecewise linear, `d_p = min_q mean |u_p - v_q|`.

    Args:
        u: (B, h, w, D) features.
        v: (B, h, w, D) features.
        radius: Largest difference of p and q in row and column; None stands for any two places.
        piecewise_linear: Whether to use the second formula.

    Returns:
        (B, h, w), 0 or above; 0 where the features are the same.

    Source: Yao et al., arXiv 2406.07487, section 3.2 (all places, cosine); Wu et al., arXiv
    2404.17900, section 3.4 (radius 0, cosine).
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
    """Gather the features around each place: (B, places, D) -> (B, places, K, D)."""
    around = _neighbours(height, width, radius)
    found = jnp.take(v, around.reshape(-1), axis=1, mode="clip")
    return found.reshape(len(v), *around.shape, v.shape[-1])


@lru_cache(maxsize=64)
def _neighbours(height: int, width: int, radius: int | None) -> np.ndarray:
    """Return the places around each place, (places, K), filled up with itself at the border."""
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
        u: Features of one image at each depth; of one for all or of each of the batch.
        v: Features of the other image, or of other images.
        scales: (depths,) factor of each depth.
        sides: (H, W) of the image.
        radius: Radius of the matching, as in `distance`.
        piecewise_linear: Choice of the formula, as in `distance`.

    Returns:
        (B, H, W).

    Source: Yao et al., arXiv 2406.07487, section 3.2; Wu et al., arXiv 2404.17900, section 3.4.
    """
    maps = [
        scales[depth] * resize(distance(one, other, radius, piecewise_linear), sides)
        for depth, (one, other) in enumerate(zip(u, v, strict=True))
    ]
    return sum(maps[1:], start=maps[0])


def difference_from(
    config: Any, extractor: Any, params: PyTree, x: Float[Array, "H W C"]
) -> Callable[[Float[Array, "B H W C"]], Float[Array, "B H W"]]:
    """Return a function that compares counterparts with an image, by features and by pixels.

    `sum_d scale_d resize(d_d) + w scale_pixel mean_c |normal - x|`.

    Args:
        config: Configuration of MDPS or GLAD.
        extractor: Extractor of features.
        params: Parameters of the localizer, {"features": ..., "scales": ...}.
        x: (H, W, C), the image.

    Returns:
        Function of counterparts (B, H, W, C) that returns maps (B, H, W) without blur.

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
