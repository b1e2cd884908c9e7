"""A residual network as an extractor of features: piecewise linear, for weights of the user's."""

import re
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dal_jax._errors import InputError
from dal_jax._typing import Array, PyTree
from dal_jax.models._activations import activation
from dal_jax.models._features import check_depths, check_standard, standard_images
from dal_jax.models._import_weights import LEAF


@dataclass(frozen=True)
class ResNetExtractor:
    """Convolutions, batch norms and ReLU in residual stages; one map for each stage of `depths`.

    Called as `extractor(params, x)`, x (B, H, W, C) in `input_range`; the map of stage d is
    (B, h, w, widths[d-1]), its sides halved by the stem, by its pooling and by each further stage.
    Arrays are named as in the usual PyTorch module: `conv1`, `bn1`, `layer1.0.conv1`, ...,
    `layer2.0.downsample.0`; those of further stages and of `fc` are left alone.

    Raises:
        InputError: parts that do not fit each other.

    Example:
        >>> extractor = ResNetExtractor(stem=2, widths=(2, 4), blocks=(1, 1), depths=(1, 2))
        >>> maps = jax.eval_shape(extractor, extractor.shapes(), jnp.ones((1, 32, 32, 1)))
        >>> [m.shape for m in maps]
        [(1, 8, 8, 2), (1, 4, 4, 4)]

    Source: He et al., arXiv 1512.03385, sections 3.3 and 4.1.
    """

    in_channels: int = 3  # an image of one channel is repeated
    stem: int = 64  # channels of the first convolution
    widths: tuple[int, ...] = (64, 128, 256)  # channels that each stage gives
    blocks: tuple[int, ...] = (2, 2, 2)  # residual blocks of each stage
    inner: tuple[int, ...] = ()  # inner channels of each stage's bottlenecks; (): plain blocks
    stem_kernel: int = 7  # side, odd
    stem_stride: int = 2
    stem_pool: bool = True  # halves the sides by a maximum over 3 x 3 pixels
    depths: tuple[int, ...] = (1, 2, 3)  # increasing, from 1 to len(widths)
    input_range: tuple[float, float] | None = (0.0, 1.0)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of a channel of the images trained on
    deviation: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name in ("widths", "blocks", "inner", "depths", "mean", "deviation", "input_range"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else tuple(value))
        check_standard(self.in_channels, self.mean, self.deviation, self.input_range)
        for name in ("stem", "stem_stride"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected a positive number")
        if not self.widths or min(self.widths) < 1:
            raise InputError(f"widths: got {self.widths}, expected one or more positive widths")
        stages = len(self.widths)
        if len(self.blocks) != stages or min(self.blocks) < 1:
            raise InputError(f"blocks: got {self.blocks}, expected {stages} positive numbers")
        if self.inner and (len(self.inner) != stages or min(self.inner) < 1):
            raise InputError(f"inner: got {self.inner}, expected {stages} positive widths or none")
        if self.stem_kernel < 1 or self.stem_kernel % 2 == 0:
            raise InputError(f"stem_kernel: got {self.stem_kernel}, expected an odd number")
        check_depths(self.depths, stages)

    @property
    def piecewise_linear(self) -> bool:
        """True: convolutions, ReLU and maxima are."""
        return True

    def __call__(self, params: PyTree, x: Array) -> tuple[Array, ...]:
        """Gives the features of images.

        Args:
            params: from `load_extractor`.
            x: (B, H, W, C), C equal to `in_channels` or 1.

        Returns:
            One map for each of `depths`, in the dtype of x.

        Raises:
            InputError: x has other channels.
        """
        x = standard_images(x, self.in_channels, self.mean, self.deviation)
        params = jax.tree.map(lambda a: jnp.asarray(a, x.dtype), params)
        maps: Any = _ResNet(self).apply(params, x)
        return maps

    def shapes(self) -> PyTree:
        """Gives the shapes and dtypes of the parameters without computing any.

        Returns:
            {"params": ..., "batch_stats": ...} of `jax.ShapeDtypeStruct`, float32.
        """
        image = jax.ShapeDtypeStruct((1, 32, 32, self.in_channels), np.float32)
        found = jax.eval_shape(_ResNet(self).init, jax.random.key(0), image)
        return {"batch_stats": {}, **found}

    def source_name(self, path: tuple[str, ...]) -> str:
        """Names a parameter, given by its path, as a PyTorch module does.

        Args:
            path: of the parameter, without its collection.

        Returns:
            The name of the array in a file of weights.
        """
        inner = [re.sub(r"_(\d+)$", r".\1", part) for part in path[:-1]]
        return ".".join([*inner, LEAF.get(path[-1], path[-1])])

    def spare(self, name: str) -> bool:
        """Tells whether an array belongs to parts that are not used.

        Args:
            name: of an array in a file of weights.

        Returns:
            True if the extractor does not take it.
        """
        found = re.match(r"layer(\d+)\.", name)
        return name.startswith("fc.") or (found is not None and int(found[1]) > self.depths[-1])


class _ResNet(nn.Module):
    config: ResNetExtractor

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        config = self.config
        relu = activation("relu")
        x = _convolution(config.stem, config.stem_kernel, config.stem_stride, "conv1", x)
        x = relu(_norm("bn1", x))
        if config.stem_pool:
            # What ReLU gives is not negative: zeros around it do not change a maximum.
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            x = nn.max_pool(x, (3, 3), (2, 2), "VALID")
        maps = []
        for stage in range(config.depths[-1]):
            for block in range(config.blocks[stage]):
                stride = 2 if stage and not block else 1
                inner = config.inner[stage] if config.inner else 0
                name = f"layer{stage + 1}_{block}"
                x = _Residual(config.widths[stage], inner, stride, name=name)(x)
            maps.append(x)
        return tuple(maps[depth - 1] for depth in config.depths)


class _Residual(nn.Module):
    """Two 3 x 3 convolutions, or a bottleneck, added to the map or to a projection of it."""

    width: int
    inner: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        relu = activation("relu")
        # Width, side and stride of each convolution.
        plan = [(self.width, 3, self.stride), (self.width, 3, 1)]
        if self.inner:
            plan = [(self.inner, 1, 1), (self.inner, 3, self.stride), (self.width, 1, 1)]
        y = x
        for k, (width, side, stride) in enumerate(plan, 1):
            y = _norm(f"bn{k}", _convolution(width, side, stride, f"conv{k}", y))
            y = y if k == len(plan) else relu(y)
        if self.stride > 1 or x.shape[-1] != self.width:
            x = _convolution(self.width, 1, self.stride, "downsample_0", x)
            x = _norm("downsample_1", x)
        return relu(x + y)


def _convolution(width: int, side: int, stride: int, name: str, x: Array) -> Array:
    convolve = nn.Conv(
        width,
        (side, side),
        (stride, stride),
        padding=((side // 2, side // 2), (side // 2, side // 2)),
        use_bias=False,
        dtype=x.dtype,
        precision="highest",
        name=name,
    )
    return convolve(x)


def _norm(name: str, x: Array) -> Array:
    norm = nn.BatchNorm(use_running_average=True, epsilon=1e-5, dtype=x.dtype, name=name)
    # Shapes are asked for in float32, whose statistics Flax mixes with another dtype.
    with jax.numpy_dtype_promotion("standard"):
        return norm(x)
