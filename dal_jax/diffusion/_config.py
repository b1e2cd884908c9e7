"""Everything that a trained diffusion localizer must carry with its weights, as JSON."""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar

from dal_jax._errors import InputError
from dal_jax._typing import PyTree
from dal_jax.diffusion._schedule import ReverseConfig, Schedule
from dal_jax.diffusion._update import NoisePrediction
from dal_jax.models import UNetConfig, unet_shapes


@dataclass(frozen=True)
class DalConfig:
    """Network, diffusion and filter of a localizer; `image_size` is (H, W), or one side of both.

    Raises:
        InputError: parts that do not fit each other, or a filter that is not odd.

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
    def sides(self) -> tuple[int, int]:
        """(H, W)."""
        return sides_of(self.image_size)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (*self.sides, self.unet.in_channels)

    @property
    def draws_shape(self) -> tuple[int, int, int, int]:
        """(1 + steps, H, W, C)."""
        return (1 + self.reverse.steps, *self.image_shape)

    @property
    def variable_shapes(self) -> PyTree:
        """The variables of the network, as `jax.ShapeDtypeStruct`."""
        return unet_shapes(self.unet)

    @property
    def objective(self) -> NoisePrediction:
        """What training minimizes."""
        return NoisePrediction(self.unet, self.schedule)

    def for_images(self, shape: tuple[int, int, int]) -> "DalConfig":
        """The same localizer of images of another shape.

        Args:
            shape: (H, W, C).

        Returns:
            The configuration.

        Raises:
            InputError: the network cannot take such images.
        """
        unet = replace(self.unet, in_channels=shape[2])
        return replace(self, unet=unet, image_size=tuple(shape[:2]))

    def to_dict(self) -> dict[str, Any]:
        """Gives the configuration as plain values, ready for JSON.

        Returns:
            Fields and their values, those of the parts in dictionaries of their own.
        """
        return {**asdict(self), "unet": self.unet.to_dict()}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "DalConfig":
        """Reads what `to_dict` gave, also after a passage through JSON.

        Args:
            values: fields by name; those left out take their defaults.

        Returns:
            The configuration.

        Raises:
            InputError: a field is unknown or a value does not fit.
        """
        parts: dict[str, Any] = dict(values)
        for name, kind in (
            ("unet", UNetConfig),
            ("schedule", Schedule),
            ("reverse", ReverseConfig),
        ):
            if name in parts:
                parts[name] = build_config(kind, parts[name])
        return build_config(DalConfig, parts)


def sides_of(image_size: int | tuple[int, ...]) -> tuple[int, int]:
    """The sides of an image.

    Args:
        image_size: (H, W), or one side of both.

    Returns:
        (H, W).

    Raises:
        InputError: it is neither.
    """
    pair = (image_size, image_size) if isinstance(image_size, int) else image_size
    if len(pair) != 2:
        raise InputError(f"image_size: got {image_size}, expected one side or (H, W)")
    return pair[0], pair[1]


def build_config(kind: type, values: Any) -> Any:
    """Makes a configuration of plain values, as JSON has them.

    Args:
        kind: the dataclass.
        values: its fields by name; those left out take their defaults.

    Returns:
        The configuration.

    Raises:
        InputError: a field is unknown or a value does not fit.
    """
    known = {f.name for f in fields(kind)}
    strange = sorted(set(values) - known) if isinstance(values, dict) else [values]
    if strange:
        raise InputError(
            f"config: got {strange[0]!r:.80}, expected the fields {', '.join(sorted(known))}"
        )
    # JSON has lists where the fields are tuples.
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"config: {kind.__name__} cannot take {values!r:.80}") from error
