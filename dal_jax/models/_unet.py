"""The U-Net that predicts the noise in an image at a given level of the diffusion."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dal_jax._errors import InputError
from dal_jax._typing import Array, Float, PyTree
from dal_jax.models._blocks import (
    Affine,
    PixelAttention,
    activation,
    check_image,
    draw_variables,
    group_norm,
    is_piecewise_linear,
)
from dal_jax.models._convolve import convolve, lay_out, mean_pool, upsample

NORM_EPSILON = 1e-5
NORMS = ("batch", "group", "none")
# Fields that older records lack; new records leave them out where they are at their defaults.
_LATER = {"later": True}


@dataclass(frozen=True)
class UNetConfig:
    """Configuration of a U-Net: `len(channels)` is its depth, `channels[-1]` its bottom width.

    Raises:
        InputError: A number is not positive, or the activation, the normalization or a level of
            attention is unknown.

    Example:
        >>> UNetConfig(channels=(8, 16)).multiple
        2
        >>> UNetConfig(activation="silu").piecewise_linear
        False
    """

    in_channels: int = 1  # channels of the images
    channels: tuple[int, ...] = (32, 64, 128, 256)  # channels of the maps, the finest first
    time_dim: int = 100  # length of the code of the level
    activation: str = "relu"  # a name for `activation`
    # "batch", "group" (smooth, over each image alone) or "none".
    norm: str = field(default="batch", metadata=_LATER)
    # Depths whose pixels attend to one another; 0 is the finest.
    attention: tuple[int, ...] = field(default=(), metadata=_LATER)

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "attention", tuple(self.attention))
        if not self.channels or min(self.channels) < 1:
            raise InputError(f"channels: got {self.channels}, expected one or more positive widths")
        for name in ("in_channels", "time_dim"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected a positive number")
        activation(self.activation)
        if self.norm not in NORMS:
            raise InputError(f"norm: got {self.norm!r}, expected one of {', '.join(NORMS)}")
        if not set(self.attention) <= set(range(len(self.channels))):
            raise InputError(
                f"attention: got {self.attention}, expected depths from 0 to "
                f"{len(self.channels) - 1}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values, ready for JSON.

        Fields that were added later are left out where they are at their defaults, so that older
        records stay equal to new ones.

        Returns:
            The fields and their values.
        """
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if not (f.metadata.get("later") and getattr(self, f.name) == f.default)
        }

    @property
    def piecewise_linear(self) -> bool:
        """Return whether the network in inference mode is piecewise linear in the image."""
        smooth = self.norm == "group" or bool(self.attention)
        return is_piecewise_linear(self.activation) and not smooth

    @property
    def multiple(self) -> int:
        """Return the number by which the sides of an image must be divisible."""
        return 2 ** (len(self.channels) - 1)

    def check_image(self, shape: tuple[int, ...]) -> None:
        """Refuse an image shape (..., H, W, C) that the network cannot take.

        Args:
            shape: Shape of at least three numbers; the last three are H, W and C.

        Raises:
            InputError: C is not `in_channels`, or H or W is not divisible by `multiple`.
        """
        check_image(shape, self.in_channels, self.multiple)


def time_code(level: Float[Array, " B"], length: int) -> Float[Array, "B length"]:
    """Encode a level as sines and cosines: `v_i = sin(t/d_i)`, i even, `cos(t/d_i)`, i odd.

    `d_i = 10000^(i/length)`.

    Args:
        level: Levels t of the diffusion, (B,), 0 and above.
        length: Number of entries of the code.

    Returns:
        Codes (B, length) in the dtype of `level`.

    Example:
        >>> time_code(jnp.zeros(1), 4).tolist()
        [[0.0, 1.0, 0.0, 1.0]]

    Source: Katsuoka et al., arXiv 2402.11789, appendix on the network, after Vaswani et al.,
    arXiv 1706.03762, section 3.5 (with i in place of 2 floor(i/2) in the exponent).
    """
    index = np.arange(length)
    divisor = np.exp(index / length * np.log(1e4)).astype(level.dtype)
    even = (index % 2 == 0).astype(level.dtype)
    odd = level.dtype.type(1) - even
    angle = level[:, None] / divisor
    return jnp.sin(angle) * even + jnp.cos(angle) * odd


def level_code(level: Any, length: int, dtype: Any) -> Array:
    """Encode levels in a dtype that may be too narrow to hold them.

    Args:
        level: Levels of the diffusion, scalar or (B,), 0 and above.
        length: Number of entries of the code.
        dtype: Dtype of the result.

    Returns:
        Codes (1, length) or (B, length).
    """
    # The code is computed in float32 or better: bfloat16 cannot hold levels above 256.
    wide = jnp.float32 if np.dtype(dtype).itemsize < 4 else dtype
    return time_code(jnp.atleast_1d(jnp.asarray(level, wide)), length).astype(dtype)


def _convolve(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """Replace `lax.conv_general_dilated` on small maps, where the library is slow."""
    return convolve(x, lay_out(kernel, *x.shape[1:3]))


class _Block(nn.Module):
    """`act(norm(conv3x3(x + h(v))))`, with `h` a small network of the time code `v`.

    With attention, the pixels of the result attend to one another.
    """

    width: int
    act: Callable[[Array], Array]
    norm: str
    attends: bool

    @nn.compact
    def __call__(self, x: Array, code: Array, train: bool) -> Array:
        linear: dict[str, Any] = {"dtype": x.dtype, "precision": "highest"}
        shift = nn.Dense(x.shape[-1], name="mlp_0", **linear)(code)
        shift = nn.Dense(x.shape[-1], name="mlp_2", **linear)(activation("relu")(shift))
        x = x + shift[:, None, None, :]
        small = max(x.shape[1:3]) <= 2
        linear["conv_general_dilated"] = _convolve if small else None
        x = nn.Conv(self.width, (3, 3), padding=((1, 1), (1, 1)), name="conv", **linear)(x)
        if self.norm == "batch":
            norm = nn.BatchNorm(
                not train, momentum=0.9, epsilon=NORM_EPSILON, dtype=x.dtype, name="norm"
            )
            # Flax mixes float32 statistics with another dtype: allowed here, whatever is set
            # globally.
            with jax.numpy_dtype_promotion("standard"):
                x = norm(x)
        elif self.norm == "group":
            x = group_norm(x, Affine(name="norm")(self.width))
        x = self.act(x)
        return PixelAttention(name="attention")(x) if self.attends else x


class UNet(nn.Module):
    """U-Net that predicts the noise in images; blocks `down1..`, `bot1`, `..up1` and a 1x1 `out`.

    Args:
        config: Configuration of the network: widths, depth, activation, normalization, attention.

    Example:
        >>> network = UNet(UNetConfig(channels=(4, 8)))
        >>> image, variables = jnp.zeros((1, 8, 8, 1)), unet_shapes(network.config)
        >>> jax.eval_shape(network.apply, variables, image, 10.0).shape
        (1, 8, 8, 1)

    Source: Katsuoka et al., arXiv 2402.11789, appendix on the network, after Ronneberger et al.,
    arXiv 1505.04597; Ho et al., arXiv 2006.11239, appendix B (group normalization and attention).
    """

    config: UNetConfig

    @nn.compact
    def __call__(self, x: Array, level: Any, train: bool = False) -> Array:
        """Predict the noise.

        The network computes in the dtype of x; with `train=False` the batch norms compute in that
        of their variables if it is wider, and `denoiser`, which casts them, is faster and exact.

        Args:
            x: Images (B, H, W, C), with H and W divisible by `config.multiple`.
            level: Level of each image, scalar or (B,), 0 and above.
            train: True to normalize by the statistics of the batch and update the running ones.

        Returns:
            Predicted noise (B, H, W, C) in the dtype of x.

        Raises:
            InputError: The images do not fit the network.
        """
        self.config.check_image(x.shape)
        act = activation(self.config.activation)
        code = level_code(level, self.config.time_dim, x.dtype)

        def block(name: str, depth: int, y: Array) -> Array:
            attends = depth in self.config.attention
            width = self.config.channels[depth]
            return _Block(width, act, self.config.norm, attends, name=name)(y, code, train)

        bottom = len(self.config.channels) - 1
        skips = []
        for i in range(bottom):
            skips.append(block(f"down{i + 1}", i, x))
            x = mean_pool(skips[-1])
        x = block("bot1", bottom, x)
        for i in reversed(range(bottom)):
            x = block(f"up{i + 1}", i, jnp.concatenate([upsample(x), skips[i]], axis=-1))
        out = nn.Conv(
            self.config.in_channels, (1, 1), dtype=x.dtype, precision="highest", name="out"
        )
        return out(x)


def unet_shapes(config: UNetConfig) -> PyTree:
    """Return the shapes and dtypes of a network's variables without computing any.

    Args:
        config: Configuration of the network.

    Returns:
        A pytree {"params": ..., "batch_stats": ...} of `jax.ShapeDtypeStruct`, float32; without
        batch norm there are no statistics, and their dictionary is empty.

    Example:
        >>> unet_shapes(UNetConfig(channels=(4,)))["params"]["bot1"]["conv"]["kernel"].shape
        (3, 3, 1, 4)
    """
    side = config.multiple
    image = jax.ShapeDtypeStruct((1, side, side, config.in_channels), np.float32)
    level = jax.ShapeDtypeStruct((1,), np.float32)
    shapes = jax.eval_shape(UNet(config).init, jax.random.key(0), image, level)
    return {"batch_stats": {}, **shapes}


def init_unet(config: UNetConfig, seed: int) -> PyTree:
    """Draw the variables of a new U-Net, as `draw_variables` does.

    Args:
        config: Configuration of the network.
        seed: Seed of the random numbers, 0 or above.

    Returns:
        A pytree {"params": ..., "batch_stats": ...} of numpy arrays, float32.

    Example:
        >>> init_unet(UNetConfig(channels=(4,)), seed=0)["params"]["out"]["kernel"].shape
        (1, 1, 4, 1)

    Source: LeCun et al., Efficient BackProp, 1998, section 4.6.
    """
    return draw_variables(unet_shapes(config), seed)
