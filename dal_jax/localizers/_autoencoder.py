"""The autoencoder as a localizer: how far an image is from its reconstruction, smoothed."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from dal_jax._errors import InputError
from dal_jax._typing import Array, PyTree
from dal_jax.diffusion._config import build_config, sides_of
from dal_jax.localizers._filters import filtered_difference
from dal_jax.localizers._localizer import Localizer, check_threshold, make_draws
from dal_jax.models import AutoencoderConfig, Reconstruction, autoencode, autoencoder_shapes


@dataclass(frozen=True)
class AutoencoderLocalizerConfig:
    """Network and filter of a localizer; `image_size` is (H, W), or one side of both.

    Raises:
        InputError: parts that do not fit each other, or a filter that is not odd.
    """

    network: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    filter_size: int = 3  # side of the averaging filter, pixels, odd
    image_size: int | tuple[int, ...] = (32, 32)  # pixels; kept as (H, W)

    kind: ClassVar[str] = "autoencoder"

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", sides_of(self.image_size))
        if self.filter_size < 1 or self.filter_size % 2 == 0:
            raise InputError(f"filter_size: got {self.filter_size}, expected an odd number")
        self.network.check_image(self.image_shape)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (*sides_of(self.image_size), self.network.in_channels)

    @property
    def draws_shape(self) -> tuple[int, int, int, int]:
        """(0, H, W, C): the autoencoder takes no random numbers."""
        return (0, *self.image_shape)

    @property
    def variable_shapes(self) -> PyTree:
        """The variables of the network, as `jax.ShapeDtypeStruct`."""
        return autoencoder_shapes(self.network)

    @property
    def objective(self) -> Reconstruction:
        """What training minimizes."""
        return Reconstruction(self.network)

    def for_images(self, shape: tuple[int, int, int]) -> "AutoencoderLocalizerConfig":
        """The same localizer of images of another shape.

        Args:
            shape: (H, W, C).

        Returns:
            The configuration.

        Raises:
            InputError: the network cannot take such images.
        """
        network = replace(self.network, in_channels=shape[2])
        return replace(self, network=network, image_size=tuple(shape[:2]))

    def to_dict(self) -> dict[str, Any]:
        """Gives the configuration as plain values, ready for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "AutoencoderLocalizerConfig":
        """Reads what `to_dict` gave, also after a passage through JSON.

        Args:
            values: fields by name; those left out take their defaults.

        Returns:
            The configuration.

        Raises:
            InputError: a field is unknown or a value does not fit.
        """
        parts: dict[str, Any] = dict(values)
        if "network" in parts:
            parts["network"] = build_config(AutoencoderConfig, parts["network"])
        return build_config(AutoencoderLocalizerConfig, parts)


@dataclass(frozen=True)
class AutoencoderReconstruct:
    """`AE(x)`: (variables, draws, x (H, W, C)) -> (H, W, C); the draws are not used."""

    config: AutoencoderLocalizerConfig

    def __call__(self, params: PyTree, draws: Any, x: Array) -> Array:
        """Reconstructs one image in its dtype."""
        return autoencode(params, self.config.network, x[None])[0]


@dataclass(frozen=True)
class AutoencoderScore:
    """`sum_c |F(AE(x) - x)|`: (variables, draws, x (H, W, C)) -> (H, W)."""

    config: AutoencoderLocalizerConfig

    def __call__(self, params: PyTree, draws: Any, x: Array) -> Array:
        """Scores one image in its dtype."""
        normal = AutoencoderReconstruct(self.config)(params, draws, x)
        return filtered_difference(normal, x, self.config.filter_size)


def autoencoder_localizer(
    variables: PyTree,
    config: AutoencoderLocalizerConfig,
    threshold: float = 0.8,
    draws: Any = None,
) -> Localizer:
    """Makes the localizer of a trained autoencoder, which takes no draws.

    Args:
        variables: {"params": ...} of `Autoencoder(config.network)`.
        config: network, filter and image size.
        threshold: positive, in units of the image.
        draws: None, a seed, which changes nothing, or an array (0, H, W, C).

    Returns:
        The localizer; two of equal configuration share their compiled programs.

    Raises:
        InputError: draws of another shape, or the threshold is not positive.

    Source: Bergmann et al., arXiv 1807.02011, section 3.1; the averaging filter as in Katsuoka et
    al., arXiv 2402.11789, section 5.
    """
    return Localizer(
        score_fn=AutoencoderScore(config),
        reconstruct_fn=AutoencoderReconstruct(config),
        params=variables,
        draws=make_draws(draws, config.draws_shape),
        threshold=check_threshold(threshold),
        image_shape=config.image_shape,
    )
