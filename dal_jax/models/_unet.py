"""The U-Net that predicts the noise in an image at a given level of the diffusion."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dal_jax._errors import InputError
from dal_jax._typing import Array, Float, PyTree
from dal_jax.models._activations import activation
from dal_jax.models._convolve import convolve, lay_out
from dal_jax.models._resample import mean_pool, upsample

NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class UNetConfig:
    """What defines a U-Net; `len(channels)` is its depth, `channels[-1]` the width at the bottom.

    Raises:
        InputError: a number is not positive or the activation is unknown.
    """

    in_channels: int = 1
    channels: tuple[int, ...] = (32, 64, 128, 256)
    time_dim: int = 100  # length of the code of the level
    activation: str = "relu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if not self.channels or min(self.channels) < 1:
            raise InputError(f"channels: got {self.channels}, expected one or more positive widths")
        for name in ("in_channels", "time_dim"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected a positive number")
        activation(self.activation)

    @property
    def multiple(self) -> int:
        """The number that the sides of an image must be divisible by."""
        return 2 ** (len(self.channels) - 1)

    def check_image(self, shape: tuple[int, ...]) -> None:
        """Refuses an image shape (..., H, W, C) that the network cannot take.

        Args:
            shape: of at least three numbers; the last three are H, W and C.

        Raises:
            InputError: C is not `in_channels`, or H or W is not divisible by `multiple`.
        """
        if len(shape) < 3 or shape[-1] != self.in_channels:
            raise InputError(
                f"image: got shape {tuple(shape)}, expected (..., H, W, {self.in_channels})"
            )
        height, width = shape[-3:-1]
        if min(height, width) < 1 or height % self.multiple or width % self.multiple:
            raise InputError(
                f"image: got sides {height} x {width}, expected multiples of {self.multiple}"
            )


def time_code(level: Float[Array, " B"], length: int) -> Float[Array, "B length"]:
    """Codes a level as sines and cosines: `v_i = sin(t/d_i)`, i even, `cos(t/d_i)`, i odd.

    `d_i = 10000^(i/length)`.

    Args:
        level: (B,), levels t of the diffusion, 0 and above.
        length: number of entries of the code.

    Returns:
        (B, length) in the dtype of `level`.

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
    """Codes levels in a dtype that may be too narrow to hold them.

    Args:
        level: scalar or (B,), levels of the diffusion, 0 and above.
        length: number of entries of the code.
        dtype: of the result.

    Returns:
        (1, length) or (B, length).
    """
    # The code is taken in float32 or better: bfloat16 cannot hold levels above 256.
    wide = jnp.float32 if np.dtype(dtype).itemsize < 4 else dtype
    return time_code(jnp.atleast_1d(jnp.asarray(level, wide)), length).astype(dtype)


def _convolve(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """Stands in for `lax.conv_general_dilated` on small maps, where the library is slow."""
    return convolve(x, lay_out(kernel, *x.shape[1:3]))


class _Block(nn.Module):
    """`act(norm(conv3x3(x + h(v))))`, with `h` a small network of the time code `v`."""

    width: int
    act: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Array, code: Array, train: bool) -> Array:
        linear: dict[str, Any] = {"dtype": x.dtype, "precision": "highest"}
        shift = nn.Dense(x.shape[-1], name="mlp_0", **linear)(code)
        shift = nn.Dense(x.shape[-1], name="mlp_2", **linear)(activation("relu")(shift))
        x = x + shift[:, None, None, :]
        small = max(x.shape[1:3]) <= 2
        linear["conv_general_dilated"] = _convolve if small else None
        x = nn.Conv(self.width, (3, 3), padding=((1, 1), (1, 1)), name="conv", **linear)(x)
        norm = nn.BatchNorm(
            not train, momentum=0.9, epsilon=NORM_EPSILON, dtype=x.dtype, name="norm"
        )
        # Flax mixes float32 statistics with another dtype: allowed here, whatever is global.
        with jax.numpy_dtype_promotion("standard"):
            x = norm(x)
        return self.act(x)


class UNet(nn.Module):
    """Predicts the noise in images; blocks `down1..`, `bot1`, `..up1` and a 1x1 `out`.

    Args:
        config: widths, depth, activation.

    Source: Katsuoka et al., arXiv 2402.11789, appendix on the network, after Ronneberger et al.,
    arXiv 1505.04597.
    """

    config: UNetConfig

    @nn.compact
    def __call__(self, x: Array, level: Any, train: bool = False) -> Array:
        """Predicts the noise.

        Computes in the dtype of x; with `train=False` the batch norms compute in that of their
        variables if it is wider, and `denoiser`, which casts them, is faster and exact.

        Args:
            x: (B, H, W, C), H and W divisible by `config.multiple`.
            level: scalar or (B,), the level of each image, 0 and above.
            train: True to normalize by the statistics of the batch and update the running ones.

        Returns:
            (B, H, W, C) in the dtype of x.

        Raises:
            InputError: x does not fit the network.
        """
        self.config.check_image(x.shape)
        act = activation(self.config.activation)
        code = level_code(level, self.config.time_dim, x.dtype)

        def block(name: str, width: int, y: Array) -> Array:
            return _Block(width, act, name=name)(y, code, train)

        *widths, bottom = self.config.channels
        skips = []
        for i, width in enumerate(widths, 1):
            skips.append(block(f"down{i}", width, x))
            x = mean_pool(skips[-1])
        x = block("bot1", bottom, x)
        for i, width in reversed(list(enumerate(widths, 1))):
            x = block(f"up{i}", width, jnp.concatenate([upsample(x), skips[i - 1]], axis=-1))
        out = nn.Conv(
            self.config.in_channels, (1, 1), dtype=x.dtype, precision="highest", name="out"
        )
        return out(x)


def unet_shapes(config: UNetConfig) -> PyTree:
    """Gives the shapes and dtypes of a network's variables without computing any.

    Args:
        config: the network.

    Returns:
        {"params": ..., "batch_stats": ...} of `jax.ShapeDtypeStruct`, float32.
    """
    side = config.multiple
    image = jax.ShapeDtypeStruct((1, side, side, config.in_channels), np.float32)
    level = jax.ShapeDtypeStruct((1,), np.float32)
    return jax.eval_shape(UNet(config).init, jax.random.key(0), image, level)


def init_unet(config: UNetConfig, seed: int) -> PyTree:
    """Draws the variables of a new U-Net.

    Kernels are normal with variance 1 / fan-in, biases and means 0, scales and variances 1. Drawn
    by numpy, so that they are the same on every device and release of JAX.

    Args:
        config: the network.
        seed: of the random numbers, 0 or above.

    Returns:
        {"params": ..., "batch_stats": ...}, numpy float32.

    Source: LeCun et al., Efficient BackProp, 1998, section 4.6.
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key == "kernel":
            deviation = 1.0 / np.sqrt(np.prod(leaf.shape[:-1]))
            return (deviation * rng.standard_normal(leaf.shape)).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(draw, unet_shapes(config))
