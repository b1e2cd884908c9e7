"""The diffusion localizer: the smoothed difference of an image and its reconstruction."""

from dataclasses import dataclass
from typing import Any

from dal_jax._typing import Array, PyTree
from dal_jax.diffusion import DalConfig, reverse_process
from dal_jax.localizers._localizer import (
    THRESHOLD,
    Localizer,
    check_threshold,
    filtered_difference,
    make_draws,
)
from dal_jax.models import denoiser


@dataclass(frozen=True)
class DalReconstruct:
    """`D(x)`: (variables, draws, x (H, W, C)) -> (H, W, C), batch norm in inference mode.

    Example:
        >>> import jax
        >>> from dal_jax.models import UNetConfig
        >>> config = DalConfig(UNetConfig(channels=(2,)), image_size=8)
        >>> image = jax.ShapeDtypeStruct((8, 8, 1), "float32")
        >>> draws = jax.ShapeDtypeStruct(config.draws_shape, "float32")
        >>> jax.eval_shape(DalReconstruct(config), config.variable_shapes, draws, image).shape
        (8, 8, 1)

    Source: Katsuoka et al., arXiv 2402.11789, section 2.
    """

    config: DalConfig  # network, diffusion and image size

    def __call__(self, params: PyTree, draws: Any, x: Array) -> Array:
        """Reconstruct one image in its dtype.

        Args:
            params: Variables of the network.
            draws: (1 + steps, H, W, C) standard normal.
            x: (H, W, C), the image.

        Returns:
            (H, W, C), in the dtype of x.

        Raises:
            InputError: Image or draws do not fit the configuration.
        """
        config = self.config
        denoise = denoiser(params, config.unet, config.sides, x.dtype)
        conditions = denoise.conditions(config.reverse.coefficients(config.schedule).levels)
        plan = (config.schedule, config.reverse, conditions)
        return reverse_process(denoise.given, x[None], draws, *plan)[0]


@dataclass(frozen=True)
class DalScore:
    """`sum_c |F(D(x) - x)|`: (variables, draws, x (H, W, C)) -> (H, W).

    Example:
        >>> import jax
        >>> from dal_jax.models import UNetConfig
        >>> config = DalConfig(UNetConfig(channels=(2,)), image_size=8)
        >>> image = jax.ShapeDtypeStruct((8, 8, 1), "float32")
        >>> draws = jax.ShapeDtypeStruct(config.draws_shape, "float32")
        >>> jax.eval_shape(DalScore(config), config.variable_shapes, draws, image).shape
        (8, 8)

    Source: Katsuoka et al., arXiv 2402.11789, section 3; the filter: section 5.
    """

    config: DalConfig  # network, diffusion, filter and image size

    def __call__(self, params: PyTree, draws: Any, x: Array) -> Array:
        """Scores one image in its dtype.

        Args:
            params: Variables of the network.
            draws: (1 + steps, H, W, C) standard normal.
            x: (H, W, C), the image.

        Returns:
            (H, W), in the dtype of x and the units of the image.

        Raises:
            InputError: Image or draws do not fit the configuration.
        """
        normal = DalReconstruct(self.config)(params, draws, x)
        return filtered_difference(normal, x, self.config.filter_size)


def dal_localizer(
    variables: PyTree, config: DalConfig, threshold: float = THRESHOLD, draws: Any = None
) -> Localizer:
    """Make the diffusion localizer from variables and their configuration.

    Args:
        variables: {"params": ..., "batch_stats": ...} of `UNet(config.unet)`.
        config: Network, diffusion, filter and image size.
        threshold: Threshold of the score, positive, in units of the image.
        draws: (1 + steps, H, W, C) standard normal numbers, fixed before the image is seen; or a
            seed, which stands for `numpy.random.default_rng(seed).standard_normal(...)`; None is
            seed 0.

    Returns:
        The localizer; two of equal configuration share their compiled programs.

    Raises:
        InputError: The draws have another shape, or the threshold is not positive.

    Example:
        >>> from dal_jax.models import UNetConfig, init_unet
        >>> config = DalConfig(UNetConfig(channels=(2,)), image_size=4)
        >>> localizer = dal_localizer(init_unet(config.unet, seed=0), config, threshold=0.5)
        >>> localizer.threshold, localizer.draws.shape
        (0.5, (6, 4, 4, 1))

    Source: Katsuoka et al., arXiv 2402.11789, section 3.
    """
    return Localizer(
        score_fn=DalScore(config),
        reconstruct_fn=DalReconstruct(config),
        params=variables,
        draws=make_draws(draws, config.draws_shape),
        threshold=check_threshold(threshold),
        image_shape=config.image_shape,
    )
