"""Features of images for perceptual distances: the protocol of extractors, and a U-Net's own."""

from dataclasses import dataclass
from typing import Protocol

from dal_jax._errors import InputError
from dal_jax._typing import Array, PyTree
from dal_jax.models._fold import denoiser
from dal_jax.models._unet import UNetConfig


class Extractor(Protocol):
    """A frozen, hashable function of images; equal extractors share their compiled programs.

    Example:
        >>> import jax.numpy as jnp
        >>> @dataclass(frozen=True)
        ... class Pixels:
        ...     piecewise_linear, input_range = True, None
        ...
        ...     def __call__(self, params, x):
        ...         return (x,)
        >>> extractor: Extractor = Pixels()
        >>> [m.shape for m in extractor((), jnp.ones((1, 4, 4, 1)))]
        [(1, 4, 4, 1)]
    """

    @property
    def piecewise_linear(self) -> bool:
        """Return whether the features are piecewise linear in the image."""
        ...

    @property
    def input_range(self) -> tuple[float, float] | None:
        """Return the values of black and white; None stands for images in their own units."""
        ...

    def __call__(self, params: PyTree, x: Array) -> tuple[Array, ...]:
        """Return maps (B, h, w, D) of images (B, H, W, C), in the dtype of x.

        Args:
            params: Parameters of the extractor.
            x: Images (B, H, W, C) in `input_range`.

        Returns:
            Maps (B, h, w, D), one for each depth; sides and D may differ.
        """
        ...


@dataclass(frozen=True)
class UNetEncoder:
    """Contracting half of a noise predictor, as an extractor of features of clean images.

    The extractor is called as `extractor(params, x)`, where params are the variables of the network
    in inference mode. It returns one map (B, H / 2^(d-1), W / 2^(d-1), channels[d-1]) for each
    depth d, in the dtype of x.

    Raises:
        InputError: The settings do not fit each other.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from dal_jax.models import unet_shapes
        >>> unet = UNetConfig(channels=(4, 8))
        >>> encoder = UNetEncoder(unet, sides=(16, 16))
        >>> [m.shape for m in jax.eval_shape(encoder, unet_shapes(unet), jnp.ones((1, 16, 16, 1)))]
        [(1, 16, 16, 4), (1, 8, 8, 8)]

    Source: Baranchuk et al., arXiv 2112.03126, section 3 (features of a noise predictor at a small
    level).
    """

    unet: UNetConfig  # configuration of the network
    sides: tuple[int, int]  # (H, W) of the images, pixels
    level: float = 10.0  # level of the diffusion given to the network; no noise is added
    depths: tuple[int, ...] = (1, 2)  # increasing; 1 is the finest, len(channels) the bottom

    def __post_init__(self) -> None:
        object.__setattr__(self, "sides", tuple(self.sides))
        object.__setattr__(self, "depths", tuple(self.depths))
        self.unet.check_image((*self.sides, self.unet.in_channels))
        if not 0.0 <= self.level < float("inf"):
            raise InputError(f"level: got {self.level}, expected 0 or above")
        check_depths(self.depths, len(self.unet.channels))

    @property
    def piecewise_linear(self) -> bool:
        """Return whether the features are piecewise linear in the image."""
        return self.unet.piecewise_linear

    @property
    def input_range(self) -> None:
        """Return None: images are in the units that the network was trained on."""
        return None

    def __call__(self, params: PyTree, x: Array) -> tuple[Array, ...]:
        """Return the features of images (B, H, W, C).

        Args:
            params: Variables {"params": ..., "batch_stats": ...} of `UNet(unet)`.
            x: Images (B, H, W, C).

        Returns:
            One map for each depth, in the dtype of x.

        Raises:
            InputError: The images have other sides or channels.
        """
        encoder = denoiser(params, self.unet, self.sides, x.dtype)
        maps = encoder.encode(x, encoder.conditions(self.level), self.depths[-1])
        return tuple(maps[depth - 1] for depth in self.depths)


def check_depths(depths: tuple[int, ...], most: int) -> None:
    """Refuse depths that an extractor does not have.

    Args:
        depths: Depths to check.
        most: Largest depth of the extractor; the smallest is 1.

    Raises:
        InputError: There are no depths, or they are out of range or not increasing.
    """
    if (
        not depths
        or not set(depths) <= set(range(1, most + 1))
        or list(depths) != sorted(set(depths))
    ):
        raise InputError(
            f"depths: got {tuple(depths)}, expected increasing numbers from 1 to {most}"
        )
