"""Extractors of features with weights from the user: residual networks, transformers."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dal_jax._config import build, nearest
from dal_jax._errors import CheckpointError, InputError
from dal_jax._typing import Array, PyTree
from dal_jax.models._blocks import Affine, Attention, Linear, activation, dense, layer_norm
from dal_jax.models._features import check_depths
from dal_jax.models._import_weights import LEAF, fill_variables, read_state_dict

# Parts of a network in Flax whose names in PyTorch are not theirs.
_RENAMED = {"patch_embed": "patch_embed.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


class _FromFile:
    """Base of the extractors with weights from a file, which define a network of their own."""

    sides: tuple[int, int] = (32, 32)  # of images, where parameters do not depend on them
    in_channels: int
    input_range: tuple[float, float] | None
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @property
    def _network(self) -> nn.Module:
        raise NotImplementedError

    def _settle(self, lists: tuple[str, ...], positive: tuple[str, ...]) -> None:
        """Turn fields that are lists into tuples, and refuse values out of their range."""
        for name in (*lists, "depths", "mean", "deviation", "input_range"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else tuple(value))
        channels, span = self.in_channels, self.input_range
        if channels < 1:
            raise InputError(f"in_channels: got {channels}, expected a positive number")
        if len(self.mean) != channels or not all(abs(m) < float("inf") for m in self.mean):
            raise InputError(f"mean: got {self.mean}, expected {channels} finite numbers")
        fits = all(0.0 < d < float("inf") for d in self.deviation)
        if len(self.deviation) != channels or not fits:
            expected = f"{channels} positive numbers"
            raise InputError(f"deviation: got {self.deviation}, expected {expected}")
        if span is not None and (
            len(span) != 2 or not -float("inf") < span[0] < span[1] < float("inf")
        ):
            raise InputError(f"input_range: got {span}, expected (black, white), increasing")
        for name in positive:
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected a positive number")

    def __call__(self, params: PyTree, x: Array) -> tuple[Array, ...]:
        """Return the features of images.

        Args:
            params: Parameters from `load_extractor`.
            x: Images (B, H, W, C), with C equal to `in_channels` or 1.

        Returns:
            One map for each of `depths`, in the dtype of x.

        Raises:
            InputError: The images have another number of channels.
        """
        x = self._prepare(x)
        params = jax.tree.map(lambda a: jnp.asarray(a, x.dtype), params)
        maps: Any = self._network.apply(params, x)
        return maps

    def shapes(self) -> PyTree:
        """Return the shapes and dtypes of the parameters without computing any.

        Returns:
            A pytree {"params": ..., "batch_stats": ...} of `jax.ShapeDtypeStruct`, float32.
        """
        image = jax.ShapeDtypeStruct((1, *self.sides, self.in_channels), np.float32)
        found = jax.eval_shape(self._network.init, jax.random.key(0), image)
        return {"batch_stats": {}, **found}

    def source_name(self, path: tuple[str, ...]) -> str:
        """Return the name of a parameter in a PyTorch module.

        Args:
            path: Path of the parameter, without its collection.

        Returns:
            The name of the array in a file of weights.
        """
        inner = [_RENAMED.get(part, re.sub(r"_(\d+)$", r".\1", part)) for part in path[:-1]]
        return ".".join([*inner, LEAF.get(path[-1], path[-1])])

    def _prepare(self, x: Array) -> Array:
        """Map images to the channels and the scale that the network was trained on.

        Each channel becomes `(x - mean) / deviation`; a single channel is repeated.
        """
        if x.ndim != 4 or x.shape[-1] not in (1, self.in_channels):
            raise InputError(f"image: got shape {x.shape}, expected (B, H, W, {self.in_channels})")
        wide = jnp.broadcast_to(x, (*x.shape[:-1], self.in_channels))
        number, pairs = x.dtype.type, list(zip(self.mean, self.deviation, strict=True))
        shift = jnp.stack([number(-mean / deviation) for mean, deviation in pairs])
        return wide * jnp.stack([number(1.0 / deviation) for _, deviation in pairs]) + shift


@dataclass(frozen=True)
class ResNetExtractor(_FromFile):
    """Convolutions, batch norms and ReLU in residual stages; one map for each stage of `depths`.

    The extractor is called as `extractor(params, x)`, with x (B, H, W, C) in `input_range`; the map
    of stage d is (B, h, w, widths[d-1]), its sides halved by the stem, by its pooling and by each
    further stage. Arrays are named as in the usual PyTorch module: `conv1`, `bn1`,
    `layer1.0.conv1`, ..., `layer2.0.downsample.0`; those of further stages and of `fc` are ignored.

    Raises:
        InputError: The settings do not fit each other.

    Example:
        >>> extractor = ResNetExtractor(stem=2, widths=(2, 4), blocks=(1, 1), depths=(1, 2))
        >>> maps = jax.eval_shape(extractor, extractor.shapes(), jnp.ones((1, 32, 32, 1)))
        >>> [m.shape for m in maps]
        [(1, 8, 8, 2), (1, 4, 4, 4)]

    Source: He et al., arXiv 1512.03385, sections 3.3 and 4.1.
    """

    in_channels: int = 3  # an image of one channel is repeated
    stem: int = 64  # channels of the first convolution
    widths: tuple[int, ...] = (64, 128, 256)  # output channels of each stage
    blocks: tuple[int, ...] = (2, 2, 2)  # residual blocks of each stage
    inner: tuple[int, ...] = ()  # inner channels of each stage's bottlenecks; (): plain blocks
    stem_kernel: int = 7  # side, odd
    stem_stride: int = 2
    stem_pool: bool = True  # halves the sides by a maximum over 3 x 3 pixels
    depths: tuple[int, ...] = (1, 2, 3)  # increasing, from 1 to len(widths)
    input_range: tuple[float, float] | None = (0.0, 1.0)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # per channel, of the training images
    deviation: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        self._settle(("widths", "blocks", "inner"), positive=("stem", "stem_stride"))
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
        """Return True: convolutions, ReLU and maxima are piecewise linear."""
        return True

    @property
    def _network(self) -> nn.Module:
        return _ResNet(self)

    def spare(self, name: str) -> bool:
        """Return whether an array belongs to unused parts.

        Args:
            name: Name of an array in a file of weights.

        Returns:
            True if the extractor does not use the array.
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
            # The output of ReLU is not negative, so that zeros around it do not change a maximum.
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
    # Shapes are requested in float32, whose statistics Flax mixes with another dtype.
    with jax.numpy_dtype_promotion("standard"):
        return norm(x)


_EPSILON = 1e-6  # of the transformer's normalizations


@dataclass(frozen=True)
class ViTExtractor(_FromFile):
    """Patches, self-attention, layer norms and GELU; one map for each block of `depths`.

    The extractor is called as `extractor(params, x)`, with x (B, H, W, C) in `input_range`, resized
    by bilinear interpolation if its sides are not `sides`; the map of block d is that of the
    patches, (B, sides[0] / patch, sides[1] / patch, width), through the last normalization. Arrays
    are named as in the usual PyTorch module: `cls_token`, `pos_embed`, `patch_embed.proj`,
    `blocks.0.attn.qkv`, ..., `norm`; those of further blocks and of `head` are ignored.

    Raises:
        InputError: The settings do not fit each other.

    Example:
        >>> extractor = ViTExtractor(
        ...     sides=(8, 8), patch=4, width=6, heads=2, hidden=8, depths=(1, 2)
        ... )
        >>> maps = jax.eval_shape(extractor, extractor.shapes(), jnp.ones((1, 8, 8, 1)))
        >>> [m.shape for m in maps]
        [(1, 2, 2, 6), (1, 2, 2, 6)]

    Source: Dosovitskiy et al., arXiv 2010.11929, section 3.1; Caron et al., arXiv 2104.14294,
    section 4 (maps of several blocks).
    """

    in_channels: int = 3  # an image of one channel is repeated
    sides: tuple[int, int] = (224, 224)  # (H, W) of the images that the network was made for
    patch: int = 16  # side of a patch, pixels
    width: int = 384
    heads: int = 6  # a divisor of the width
    hidden: int = 1536  # width of the hidden layer at each token
    depths: tuple[int, ...] = (3, 6, 9, 12)  # increasing; 1 is the first block
    input_range: tuple[float, float] | None = (0.0, 1.0)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # per channel, of the training images
    deviation: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        self._settle(("sides",), positive=("patch", "width", "heads", "hidden"))
        if len(self.sides) != 2 or min(self.sides) < 1 or any(s % self.patch for s in self.sides):
            raise InputError(f"sides: got {self.sides}, expected two multiples of {self.patch}")
        if self.width % self.heads:
            raise InputError(f"heads: got {self.heads}, expected a divisor of {self.width}")
        check_depths(self.depths, max([1, *self.depths]))

    @property
    def grid(self) -> tuple[int, int]:
        """Return the numbers of patches down and across."""
        return self.sides[0] // self.patch, self.sides[1] // self.patch

    @property
    def piecewise_linear(self) -> bool:
        """Return False: attention, layer norms and GELU are smooth."""
        return False

    @property
    def _network(self) -> nn.Module:
        return _ViT(self)

    def _prepare(self, x: Array) -> Array:
        x = super()._prepare(x)
        if x.shape[1:3] == self.sides:
            return x
        shape = (x.shape[0], *self.sides, x.shape[3])
        return jax.image.resize(x, shape, "bilinear", precision=jax.lax.Precision.HIGHEST)

    def spare(self, name: str) -> bool:
        """Return whether an array belongs to unused parts.

        Args:
            name: Name of an array in a file of weights.

        Returns:
            True if the extractor does not use the array.
        """
        found = re.match(r"blocks\.(\d+)\.", name)
        beyond = found is not None and int(found[1]) >= self.depths[-1]
        return name.startswith("head.") or beyond


class _ViT(nn.Module):
    config: ViTExtractor

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        config, side = self.config, (self.config.patch, self.config.patch)
        embed = nn.Conv(
            *(config.width, side, side, "VALID"),
            dtype=x.dtype,
            precision="highest",
            name="patch_embed",
        )
        tokens = embed(x).reshape(x.shape[0], -1, config.width)
        first = self._declared("cls_token", 1)
        place = self._declared("pos_embed", 1 + tokens.shape[1])
        first = jnp.broadcast_to(first, (x.shape[0], 1, config.width))
        tokens = jnp.concatenate([first.astype(x.dtype), tokens], 1) + place.astype(x.dtype)
        norm, maps = Affine(name="norm")(config.width), []
        for k in range(config.depths[-1]):
            tokens = _Layer(config.heads, config.hidden, name=f"blocks_{k}")(tokens)
            if k + 1 in config.depths:
                patches = layer_norm(tokens, norm, _EPSILON)[:, 1:]
                maps.append(patches.reshape(x.shape[0], *config.grid, config.width))
        return tuple(maps)

    def _declared(self, name: str, tokens: int) -> Array:
        shape = (1, tokens, self.config.width)
        return jnp.asarray(self.param(name, nn.initializers.zeros, shape, jnp.float32))


class _Layer(nn.Module):
    """Attention, then two layers at each token; each normalizes its input and is added to it."""

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        first, second = (Affine(name=f"norm{k}")(channels) for k in (1, 2))
        x = x + Attention(self.heads, name="attn")(layer_norm(x, first, _EPSILON))
        wide = dense(layer_norm(x, second, _EPSILON), Linear(self.hidden, name="fc1")(channels))
        made = dense(activation("gelu")(wide), Linear(channels, name="fc2")(self.hidden))
        return x + made


_KINDS: dict[str, type[ResNetExtractor] | type[ViTExtractor]] = {
    "resnet": ResNetExtractor,
    "vit": ViTExtractor,
}


def load_extractor(
    path: str | Path, kind: str, **settings: Any
) -> tuple[ResNetExtractor | ViTExtractor, PyTree]:
    """Create an extractor of features and read its weights.

    Args:
        path: File .npz or .safetensors (extra `weights`) with the arrays of the usual PyTorch
            module, named as in `ResNetExtractor` and `ViTExtractor`.
        kind: Kind of extractor, "resnet" or "vit".
        **settings: Fields of the extractor; the others take their defaults.

    Returns:
        The extractor and its parameters, numpy float32.

    Raises:
        InputError: The kind is unknown, or the settings do not fit.
        CheckpointError: The file is unreadable or of another format, or an array is missing,
            misshapen, non-finite or extra; the message names the array, its shape and the expected
            one.

    Example:
        >>> file = "resnet18.npz"  # of the user's
        >>> extractor, params = load_extractor(file, "resnet", depths=(1, 2))  # doctest: +SKIP
        >>> [m.shape for m in extractor(params, np.ones((1, 32, 32, 3)))]  # doctest: +SKIP
        [(1, 8, 8, 64), (1, 4, 4, 128)]
    """
    if kind not in _KINDS:
        raise InputError(f"extractor: unknown kind {kind!r}, {nearest(kind, list(_KINDS))}")
    extractor = build(_KINDS[kind], settings, f"extractor {kind!r}")
    path = Path(path)
    if path.suffix not in (".npz", ".safetensors"):
        raise CheckpointError(f"weights: got {path.name}, expected .npz or .safetensors")
    return extractor, fill_variables(
        read_state_dict(path),
        extractor.shapes(),
        extractor.source_name,
        path.name,
        extractor.spare,
    )
