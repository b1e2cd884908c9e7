"""What localizers that compare an image with its counterpart by features have in common."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import jax
import numpy as np

from dal_jax._errors import InputError
from dal_jax._typing import PyTree
from dal_jax.diffusion import DalConfig, LocalizerConfig, ReverseConfig, Schedule
from dal_jax.models import UNetConfig, UNetEncoder

PRESETS = ("pl", "faithful")


@dataclass(frozen=True)
class PerceptualConfig(LocalizerConfig):
    """Network, levels and comparison of a localizer; `image_size` is (H, W), or one side of both.

    "pl" is piecewise linear in the image, so that the exact engines apply; "faithful" is as
    published. Levels are the multiples of `spacing` below `start`.

    Raises:
        InputError: a value out of range, parts that do not fit each other, or a network with the
            preset "pl" that is not piecewise linear.

    Example:
        >>> config = PerceptualConfig(image_size=8, start=60, spacing=20)
        >>> config.reverse.levels, config.piecewise_linear
        ((40, 20, 0), True)
    """

    kind: ClassVar[str] = ""

    unet: UNetConfig = field(default_factory=UNetConfig)  # the network
    schedule: Schedule = field(default_factory=Schedule)  # of the noise
    image_size: int | tuple[int, ...] = (32, 32)  # pixels; kept as (H, W)
    preset: str = "pl"  # or "faithful"
    start: int = 200  # the levels visited are below it
    spacing: int = 20  # of the levels
    feature_level: float = 10.0  # that the encoder of the features is told
    depths: tuple[int, ...] = (1, 2)  # of the features, 1 is the finest
    image_range: tuple[float, float] = (-1.0, 1.0)  # what is mapped to an extractor's input range
    pixel_weight: float = 1.0  # of the difference of pixels beside that of features
    # What `calibrate_scales` learns: factors of the depths, and of the pixels besides the weight.
    feature_scales: tuple[float, ...] | None = None  # None: ones
    pixel_scale: float = 1.0
    blur: float = 1.0  # standard deviation of the Gaussian filter, pixels; 0 for none

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise InputError(f"preset: got {self.preset!r}, expected one of {', '.join(PRESETS)}")
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
                "expected a piecewise-linear network with preset 'pl'"
            )
        _ = self.encoder

    @property
    def piecewise_linear(self) -> bool:
        """Whether the preset is piecewise linear."""
        return self.preset == "pl"

    @property
    def reverse(self) -> ReverseConfig:
        """The reverse process, without draws."""
        return self.reverse_with(0.0)

    def reverse_with(self, eta: float, start: int | None = None) -> ReverseConfig:
        """The reverse process with a share of fresh noise.

        Args:
            eta: the share, 0 to 1.
            start: the levels are below it; None: that of the configuration.

        Returns:
            The process at multiples of the spacing.
        """
        steps = math.ceil((start or self.start) / self.spacing)
        return ReverseConfig((steps - 1) * self.spacing, steps, eta)

    @property
    def unscaled(self) -> Self:
        """Without the scales, which are parameters: equal ones share their compiled programs."""
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
        """Refuses a field that is no number of a range.

        Args:
            name: of the field.
            low: smallest value.
            high: largest value; infinity itself is refused.
            whole: True for integers only.
            positive: True refuses `low` itself, which is 0 then.

        Raises:
            InputError: it does not fit.
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
    """Refuses an extractor that does not fit a configuration.

    Args:
        extractor: (params, images) -> features; None is the network's own encoder.
        config: of the localizer.

    Returns:
        The extractor.

    Raises:
        InputError: it cannot be called, lacks an attribute, or is not piecewise linear where the
            preset is.

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
            "expected one that is with preset 'pl'"
        )
    return extractor


def make_params(
    variables: PyTree, config: PerceptualConfig, extractor: Any, features: PyTree
) -> dict[str, Any]:
    """Puts together the parameters of a localizer.

    Args:
        variables: of the network.
        config: of the localizer, with the scales.
        extractor: of features.
        features: parameters of the extractor; None: the variables.

    Returns:
        {"network": ..., "features": ..., "scales": {"features": (depths,), "pixel": ()}}.

    Raises:
        InputError: not a scale for each depth of the extractor.
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
    """Refuses constants of another shape, negative or not finite.

    Args:
        name: of the argument.
        value: to be checked.
        shape: expected.

    Returns:
        A float64 array.

    Raises:
        InputError: they do not fit.
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
