"""Configurations of localizers, which a checkpoint stores as JSON with the weights."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Self

from dal_jax._config import build
from dal_jax._errors import InputError
from dal_jax._typing import PyTree
from dal_jax.diffusion._objective import NoisePrediction
from dal_jax.diffusion._reverse import ReverseConfig, Schedule
from dal_jax.models import UNetConfig, unet_shapes


class LocalizerConfig:
    """Base class of the configurations of localizers, which define their own fields.

    The network is the U-Net in the field `unet`, unless a class says otherwise.

    Example:
        >>> DalConfig(UNetConfig(1, (8, 16)), image_size=32).image_shape
        (32, 32, 1)
    """

    network_field: ClassVar[str] = "unet"
    image_size: int | tuple[int, ...]

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width (H, W) of an image, pixels."""
        return sides_of(self.image_size)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of an image."""
        return (*self.sides, self._network.in_channels)

    @property
    def variable_shapes(self) -> PyTree:
        """The variables of the network, as `jax.ShapeDtypeStruct`."""
        return unet_shapes(self._network)

    @property
    def objective(self) -> Any:
        """Objective that training minimizes."""
        this: Any = self
        return NoisePrediction(this.unet, this.schedule)

    @property
    def _network(self) -> Any:
        return getattr(self, self.network_field)

    def for_images(self, shape: tuple[int, int, int]) -> Self:
        """Return the configuration for images of another shape.

        Args:
            shape: Shape (H, W, C) of the images.

        Returns:
            The configuration.

        Raises:
            InputError: The network cannot take such images.
        """
        network = replace(self._network, in_channels=shape[2])
        this: Any = self
        return replace(this, **{self.network_field: network}, image_size=tuple(shape[:2]))

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values, ready for JSON.

        Returns:
            Values by field; the parts have dictionaries of their own.
        """
        this: Any = self
        values = asdict(this)
        if isinstance(self._network, UNetConfig):
            values[self.network_field] = self._network.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read the result of `to_dict`, also after a passage through JSON.

        Args:
            values: Fields by name; those left out take their defaults.

        Returns:
            The configuration.

        Raises:
            InputError: A field is unknown or a value does not fit.
        """
        return build(cls, values, "config")


@dataclass(frozen=True)
class DalConfig(LocalizerConfig):
    """Network, diffusion and filter of a localizer; `image_size` is (H, W), or one side of both.

    Raises:
        InputError: The parts do not fit each other, or the filter size is not odd.

    Example:
        >>> DalConfig(UNetConfig(channels=(8, 16)), image_size=16).draws_shape
        (6, 16, 16, 1)

    Source: Katsuoka et al., arXiv 2402.11789, sections 2 and 5.
    """

    kind: ClassVar[str] = "dal"

    unet: UNetConfig = field(default_factory=UNetConfig)  # the network
    schedule: Schedule = field(default_factory=Schedule)  # of the noise
    reverse: ReverseConfig = field(default_factory=ReverseConfig)  # start, steps and eta
    filter_size: int = 3  # side of the averaging filter, pixels, odd
    image_size: int | tuple[int, ...] = (32, 32)  # pixels; kept as (H, W)

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", self.sides)
        if self.filter_size < 1 or self.filter_size % 2 == 0:
            raise InputError(f"filter_size: got {self.filter_size}, expected an odd number")
        self.unet.check_image(self.image_shape)
        self.reverse.coefficients(self.schedule)

    @property
    def draws_shape(self) -> tuple[int, int, int, int]:
        """Shape (1 + steps, H, W, C) of the draws."""
        return (1 + self.reverse.steps, *self.image_shape)


def sides_of(image_size: int | tuple[int, ...]) -> tuple[int, int]:
    """Return the sides of an image.

    Args:
        image_size: (H, W), or one side of both.

    Returns:
        (H, W).

    Raises:
        InputError: The argument is neither.
    """
    pair = (image_size, image_size) if isinstance(image_size, int) else image_size
    if len(pair) != 2:
        raise InputError(f"image_size: got {image_size}, expected one side or (H, W)")
    return pair[0], pair[1]
