"""A plain convolutional autoencoder, whose narrow code limits its reconstructions."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dal_jax._errors import InputError
from dal_jax._typing import Array, PyTree
from dal_jax.models._blocks import activation, check_image, draw_variables, is_piecewise_linear
from dal_jax.models._convolve import convolve, lay_out, mean_pool, upsample


@dataclass(frozen=True)
class AutoencoderConfig:
    """Configuration of an autoencoder; each of `channels` halves the sides once.

    Raises:
        InputError: A number is not positive, or the activation is unknown.

    Example:
        >>> AutoencoderConfig(channels=(8, 16)).multiple
        4
    """

    in_channels: int = 1  # channels of the images
    channels: tuple[int, ...] = (16, 32, 64)  # channels of the maps, the finest first
    latent: int = 16  # channels of the code, whose sides are those of the image / `multiple`
    activation: str = "relu"  # a name for `activation`

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if not self.channels or min(self.channels) < 1:
            raise InputError(f"channels: got {self.channels}, expected one or more positive widths")
        for name in ("in_channels", "latent"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected a positive number")
        activation(self.activation)

    @property
    def multiple(self) -> int:
        """Return the number by which the sides of an image must be divisible."""
        return 2 ** len(self.channels)

    @property
    def piecewise_linear(self) -> bool:
        """Return whether the network is piecewise linear in the image."""
        return is_piecewise_linear(self.activation)

    def check_image(self, shape: tuple[int, ...]) -> None:
        """Refuse an image shape (..., H, W, C) that the network cannot take.

        Args:
            shape: Shape of at least three numbers; the last three are H, W and C.

        Raises:
            InputError: C is not `in_channels`, or H or W is not divisible by `multiple`.
        """
        check_image(shape, self.in_channels, self.multiple)


class Autoencoder(nn.Module):
    """Convolutions, an activation and halving, down to a code; doubling and the same back.

    The layers are `down1..`, `code`, `..up1` and a 1 x 1 `out`; no connection bypasses the code.

    Args:
        config: Configuration of the network: widths, depth and activation.

    Example:
        >>> config = AutoencoderConfig(channels=(4,), latent=2)
        >>> network, image = Autoencoder(config), jnp.zeros((1, 8, 8, 1))
        >>> jax.eval_shape(network.apply, init_autoencoder(config, 0), image).shape
        (1, 8, 8, 1)

    Source: Hinton and Salakhutdinov, Science 313, 2006; Bergmann et al., arXiv 1807.02011, section
    3.1 (convolutions, for anomalies).
    """

    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Reconstruct images.

        Args:
            x: Images (B, H, W, C), with H and W divisible by `config.multiple`.

        Returns:
            Reconstructions (B, H, W, C) in the dtype of x.

        Raises:
            InputError: The images do not fit the network.
        """
        self.config.check_image(x.shape)
        act = activation(self.config.activation)
        widths = list(enumerate(self.config.channels, 1))
        for i, width in widths:
            x = mean_pool(act(_Convolution(width, name=f"down{i}")(x)))
        x = _Convolution(self.config.latent, name="code")(x)
        for i, width in reversed(widths):
            x = act(_Convolution(width, name=f"up{i}")(upsample(x)))
        out = nn.Conv(
            self.config.in_channels, (1, 1), dtype=x.dtype, precision="highest", name="out"
        )
        return out(x)


class _Convolution(nn.Module):
    """A 3 x 3 convolution with a bias, by few products where that is faster."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (3, 3, x.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.zeros, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
        laid_out = lay_out(jnp.asarray(kernel, x.dtype), *x.shape[1:3])
        return convolve(x, laid_out) + jnp.asarray(bias, x.dtype)


def autoencoder_shapes(config: AutoencoderConfig) -> PyTree:
    """Return the shapes and dtypes of a network's variables without computing any.

    Args:
        config: Configuration of the network.

    Returns:
        A pytree {"params": ..., "batch_stats": {}} of `jax.ShapeDtypeStruct`, float32.

    Example:
        >>> shapes = autoencoder_shapes(AutoencoderConfig(channels=(4,)))
        >>> shapes["params"]["down1"]["kernel"].shape
        (3, 3, 1, 4)
    """
    side = config.multiple
    image = jax.ShapeDtypeStruct((1, side, side, config.in_channels), np.float32)
    shapes = jax.eval_shape(Autoencoder(config).init, jax.random.key(0), image)
    return {"batch_stats": {}, **shapes}


def init_autoencoder(config: AutoencoderConfig, seed: int) -> PyTree:
    """Draw the variables of a new autoencoder, as `draw_variables` does.

    Args:
        config: Configuration of the network.
        seed: Seed of the random numbers, 0 or above.

    Returns:
        A pytree {"params": ..., "batch_stats": {}} of numpy arrays, float32.

    Example:
        >>> variables = init_autoencoder(AutoencoderConfig(channels=(4,), latent=2), seed=0)
        >>> variables["params"]["code"]["kernel"].shape
        (3, 3, 4, 2)

    Source: LeCun et al., Efficient BackProp, 1998, section 4.6.
    """
    return draw_variables(autoencoder_shapes(config), seed)


def autoencode(variables: PyTree, config: AutoencoderConfig, x: Array) -> Array:
    """Reconstruct images (B, H, W, C) in their dtype.

    Args:
        variables: Variables {"params": ...} of `Autoencoder(config)`.
        config: Configuration of the network.
        x: Images (B, H, W, C).

    Returns:
        Reconstructions (B, H, W, C).

    Raises:
        InputError: The images do not fit the network.

    Example:
        >>> config = AutoencoderConfig(channels=(4,), latent=2)
        >>> variables, images = init_autoencoder(config, seed=0), np.ones((1, 4, 4, 1))
        >>> jax.eval_shape(lambda x: autoencode(variables, config, x), images).shape
        (1, 4, 4, 1)

    Source: Bergmann et al., arXiv 1807.02011, section 3.1.
    """
    params = jax.tree.map(lambda a: jnp.asarray(a, x.dtype), variables["params"])
    reconstruction: Any = Autoencoder(config).apply({"params": params}, x)
    return reconstruction


@dataclass(frozen=True)
class Reconstruction:
    """Training objective of an autoencoder: `mean |AE(x) - x|^2`.

    Example:
        >>> objective = Reconstruction(AutoencoderConfig(channels=(2,)))
        >>> zeros = jax.tree.map(np.zeros_like, objective.init(seed=0))  # AE(x) = 0
        >>> loss = jax.jit(objective.loss, static_argnums=3)
        >>> loss(zeros["params"], {}, np.full((1, 2, 2, 1), 3.0), "float32")[0].item()
        9.0

    Source: Bergmann et al., arXiv 1807.02011, equation 2.
    """

    config: AutoencoderConfig  # configuration of the network

    def init(self, seed: int) -> PyTree:
        """Draw the first variables of the network.

        Args:
            seed: Seed of the random numbers, 0 or above.

        Returns:
            A pytree {"params": ..., "batch_stats": {}} of numpy arrays, float32.
        """
        return init_autoencoder(self.config, seed)

    def prepare(self, key: Array, batch: Any) -> Array:
        """Return the images unchanged.

        Args:
            key: Random key, not used.
            batch: Batch with images (B, H, W, C).

        Returns:
            The images.
        """
        return batch.images

    def loss(
        self, params: PyTree, stats: PyTree, prepared: Array, dtype: Any
    ) -> tuple[Array, PyTree]:
        """Return the mean squared difference between reconstruction and image.

        Args:
            params: Parameters of the network.
            stats: Batch statistics, which are empty.
            prepared: Images (B, H, W, C), float32.
            dtype: Dtype of the activations.

        Returns:
            The loss, float32, in squared units of the images, and the unchanged statistics.

        Raises:
            InputError: The images do not fit the network.
        """
        made = autoencode({"params": params}, self.config, prepared.astype(dtype))
        error = made.astype(jnp.float32) - prepared
        return jnp.mean(jnp.square(error)), stats
