"""The autoencoder as a localizer: the smoothed difference of an image and its reconstruction."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from dal_jax._errors import InputError
from dal_jax._typing import Array, PyTree
from dal_jax.diffusion import LocalizerConfig
from dal_jax.localizers._localizer import (
    THRESHOLD,
    Localizer,
    check_threshold,
    filtered_difference,
    make_draws,
)
from dal_jax.models import AutoencoderConfig, Reconstruction, autoencode, autoencoder_shapes


@dataclass(frozen=True)
class AutoencoderLocalizerConfig(LocalizerConfig):
    """Network and filter of a localizer; `image_size` is (H, W), or one side of both.

    Raises:
        InputError: The parts do not fit each other, or the filter size is not odd.

    Example:
        >>> network = AutoencoderConfig(channels=(8, 16))
        >>> AutoencoderLocalizerConfig(network, image_size=16).image_shape
        (16, 16, 1)
    """

    network: AutoencoderConfig = field(default_factory=AutoencoderConfig)  # widths and depth
    filter_size: int = 3  # side of the averaging filter, pixels, odd
    image_size: int | tuple[int, ...] = (32, 32)  # pixels; kept as (H, W)

    kind: ClassVar[str] = "autoencoder"
    network_field: ClassVar[str] = "network"

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", self.sides)
        if self.filter_size < 1 or self.filter_size % 2 == 0:
            raise InputError(f"filter_size: got {self.filter_size}, expected an odd number")
        self.network.check_image(self.image_shape)

    @property
    def draws_shape(self) -> tuple[int, int, int, int]:
        """Shape (0, H, W, C) of the draws: the autoencoder takes no random numbers."""
        return (0, *self.image_shape)

    @property
    def variable_shapes(self) -> PyTree:
        """The variables of the network, as `jax.ShapeDtypeStruct`."""
        return autoencoder_shapes(self.network)

    @property
    def objective(self) -> Reconstruction:
        """Objective that training minimizes."""
        return Reconstruction(self.network)


@dataclass(frozen=True)
class AutoencoderReconstruct:
    """`AE(x)`: (variables, draws, x (H, W, C)) -> (H, W, C); the draws are not used.

    Example:
        >>> import jax
        >>> config = AutoencoderLocalizerConfig(AutoencoderConfig(channels=(2,)), image_size=8)
        >>> reconstruct = AutoencoderReconstruct(config)
        >>> image = jax.ShapeDtypeStruct((8, 8, 1), "float32")
        >>> jax.eval_shape(reconstruct, config.variable_shapes, None, image).shape
        (8, 8, 1)

    Source: Bergmann et al., arXiv 1807.02011, section 3.1.
    """

    config: AutoencoderLocalizerConfig  # network and image size

    def __call__(self, params: PyTree, draws: Any, x: Array) -> Array:
        """Reconstruct one image in its dtype.

        Args:
            params: Variables of the network.
            draws: Unused.
            x: (H, W, C), the image.

        Returns:
            (H, W, C), in the dtype of x.

        Raises:
            InputError: The image does not fit the network.
        """
        return autoencode(params, self.config.network, x[None])[0]


@dataclass(frozen=True)
class AutoencoderScore:
    """`sum_c |F(AE(x) - x)|`: (variables, draws, x (H, W, C)) -> (H, W).

    Example:
        >>> import jax
        >>> config = AutoencoderLocalizerConfig(AutoencoderConfig(channels=(2,)), image_size=8)
        >>> score = AutoencoderScore(config)
        >>> image = jax.ShapeDtypeStruct((8, 8, 1), "float32")
        >>> jax.eval_shape(score, config.variable_shapes, None, image).shape
        (8, 8)

    Source: Bergmann et al., arXiv 1807.02011, section 3.1; the filter: Katsuoka et al., arXiv
    2402.11789, section 5.
    """

    config: AutoencoderLocalizerConfig  # network, filter and image size

    def __call__(self, params: PyTree, draws: Any, x: Array) -> Array:
        """Scores one image in its dtype.

        Args:
            params: Variables of the network.
            draws: Unused.
            x: (H, W, C), the image.

        Returns:
            (H, W), in the dtype of x and the units of the image.

        Raises:
            InputError: The image does not fit the network.
        """
        normal = AutoencoderReconstruct(self.config)(params, draws, x)
        return filtered_difference(normal, x, self.config.filter_size)


def autoencoder_localizer(
    variables: PyTree,
    config: AutoencoderLocalizerConfig,
    threshold: float = THRESHOLD,
    draws: Any = None,
) -> Localizer:
    """Make the localizer of a trained autoencoder, which takes no draws.

    Args:
        variables: {"params": ...} of `Autoencoder(config.network)`.
        config: Network, filter and image size.
        threshold: Threshold of the score, positive, in units of the image.
        draws: None, a seed, which changes nothing, or an array (0, H, W, C).

    Returns:
        The localizer; two of equal configuration share their compiled programs.

    Raises:
        InputError: The draws have another shape, or the threshold is not positive.

    Example:
        >>> from dal_jax.models import init_autoencoder
        >>> config = AutoencoderLocalizerConfig(AutoencoderConfig(channels=(2,)), image_size=8)
        >>> variables = init_autoencoder(config.network, seed=0)
        >>> localizer = autoencoder_localizer(variables, config, threshold=0.5)
        >>> localizer.image_shape, localizer.draws.size
        ((8, 8, 1), 0)

    Source: Bergmann et al., arXiv 1807.02011, section 3.1; averaging filter: Katsuoka et al., arXiv
    2402.11789, section 5.
    """
    return Localizer(
        score_fn=AutoencoderScore(config),
        reconstruct_fn=AutoencoderReconstruct(config),
        params=variables,
        draws=make_draws(draws, config.draws_shape),
        threshold=check_threshold(threshold),
        image_shape=config.image_shape,
    )
