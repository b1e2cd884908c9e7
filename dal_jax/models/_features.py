"""Features of images for perceptual distances: what an extractor is, and the project's own."""

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
        """Whether the features are piecewise linear in the image."""
        ...

    @property
    def input_range(self) -> tuple[float, float] | None:
        """Values that black and white are mapped to; None: images are taken as they are."""
        ...

    def __call__(self, params: PyTree, x: Array) -> tuple[Array, ...]:
        """Gives maps (B, h, w, D) of images (B, H, W, C), in the dtype of x.

        Args:
            params: of the extractor.
            x: (B, H, W, C), in `input_range`.

        Returns:
            Maps (B, h, w, D), one for each depth; sides and D may differ.
        """
        ...


@dataclass(frozen=True)
class UNetEncoder:
    """The contracting half of a noise predictor, as an extractor of features of clean images.

    Called as `extractor(params, x)`, params the variables of the network in inference mode, it
    gives one map (B, H / 2^(d-1), W / 2^(d-1), channels[d-1]) for each depth d, in the dtype of x.

    Raises:
        InputError: parts that do not fit each other.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from dal_jax.models import unet_shapes
        >>> unet = UNetConfig(channels=(4, 8))
        >>> encoder = UNetEncoder(unet, sides=(16, 16))
        >>> [m.shape for m in jax.eval_shape(encoder, unet_shapes(unet), jnp.ones((1, 16, 16, 1)))]
        [(1, 16, 16, 4), (1, 8, 8, 8)]

    Source: features of a noise predictor at a small level: Baranchuk et al., arXiv 2112.03126,
    section 3; with batch norm folded and piecewise linear: this project.
    """

    unet: UNetConfig  # the network
    sides: tuple[int, int]  # (H, W) of the images, pixels
    level: float = 10.0  # of the diffusion, that the network is told; nothing is noised
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
        """Whether the features are piecewise linear in the image."""
        return self.unet.piecewise_linear

    @property
    def input_range(self) -> None:
        """None: the extractor takes images in the units that the network was trained on."""
        return None

    def __call__(self, params: PyTree, x: Array) -> tuple[Array, ...]:
        """Gives the features of images (B, H, W, C).

        Args:
            params: {"params": ..., "batch_stats": ...} of `UNet(unet)`.
            x: (B, H, W, C).

        Returns:
            One map for each depth, in the dtype of x.

        Raises:
            InputError: x has other sides or channels.
        """
        encoder = denoiser(params, self.unet, self.sides, x.dtype)
        maps = encoder.encode(x, encoder.conditions(self.level), self.depths[-1])
        return tuple(maps[depth - 1] for depth in self.depths)


def check_depths(depths: tuple[int, ...], most: int) -> None:
    """Refuses depths that an extractor does not have.

    Args:
        depths: to be checked.
        most: the largest depth there is; the smallest is 1.

    Raises:
        InputError: none, out of range, or not increasing.
    """
    if (
        not depths
        or not set(depths) <= set(range(1, most + 1))
        or list(depths) != sorted(set(depths))
    ):
        raise InputError(
            f"depths: got {tuple(depths)}, expected increasing numbers from 1 to {most}"
        )
