"""A vision transformer as an extractor of features: smooth, for weights of the user's."""

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
from dal_jax.models._blocks import Affine, Attention, Linear, dense, layer_norm
from dal_jax.models._features import check_depths, check_standard, standard_images
from dal_jax.models._import_weights import LEAF

_EPSILON = 1e-6  # of the normalizations


@dataclass(frozen=True)
class ViTExtractor:
    """Patches, self-attention, layer norms and GELU; one map for each block of `depths`.

    Called as `extractor(params, x)`, x (B, H, W, C) in `input_range`, resized to `sides` by
    bilinear interpolation where its sides are others; the map of block d is that of the patches,
    (B, sides[0] / patch, sides[1] / patch, width), through the last normalization. Arrays are
    named as in the usual PyTorch module: `cls_token`, `pos_embed`, `patch_embed.proj`,
    `blocks.0.attn.qkv`, ..., `norm`; those of further blocks and of `head` are left alone.

    Raises:
        InputError: parts that do not fit each other.

    Example:
        >>> extractor = ViTExtractor(
        ...     sides=(8, 8), patch=4, width=6, heads=2, hidden=8, depths=(1, 2)
        ... )
        >>> maps = jax.eval_shape(extractor, extractor.shapes(), jnp.ones((1, 8, 8, 1)))
        >>> [m.shape for m in maps]
        [(1, 2, 2, 6), (1, 2, 2, 6)]

    Source: Dosovitskiy et al., arXiv 2010.11929, section 3.1; maps of several blocks: Caron et
    al., arXiv 2104.14294, section 4.
    """

    in_channels: int = 3  # an image of one channel is repeated
    sides: tuple[int, int] = (224, 224)  # (H, W) of the images that the network was made for
    patch: int = 16  # side, pixels
    width: int = 384
    heads: int = 6  # a divisor of the width
    hidden: int = 1536  # width of the layer between
    depths: tuple[int, ...] = (3, 6, 9, 12)  # increasing; 1 is the first block
    input_range: tuple[float, float] | None = (0.0, 1.0)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of a channel of the images trained on
    deviation: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name in ("sides", "depths", "mean", "deviation", "input_range"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else tuple(value))
        check_standard(self.in_channels, self.mean, self.deviation, self.input_range)
        for name in ("patch", "width", "heads", "hidden"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected a positive number")
        if len(self.sides) != 2 or min(self.sides) < 1 or any(s % self.patch for s in self.sides):
            raise InputError(f"sides: got {self.sides}, expected two multiples of {self.patch}")
        if self.width % self.heads:
            raise InputError(f"heads: got {self.heads}, expected a divisor of {self.width}")
        check_depths(self.depths, max([1, *self.depths]))

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.sides[0] // self.patch, self.sides[1] // self.patch

    @property
    def piecewise_linear(self) -> bool:
        """False: attention, layer norms and GELU are smooth."""
        return False

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
        if x.shape[1:3] != self.sides:
            shape = (x.shape[0], *self.sides, x.shape[3])
            x = jax.image.resize(x, shape, "bilinear", precision=jax.lax.Precision.HIGHEST)
        params = jax.tree.map(lambda a: jnp.asarray(a, x.dtype), params)
        maps: Any = _ViT(self).apply({"params": params["params"]}, x)
        return maps

    def shapes(self) -> PyTree:
        """Gives the shapes and dtypes of the parameters without computing any.

        Returns:
            {"params": ..., "batch_stats": ...} of `jax.ShapeDtypeStruct`, float32.
        """
        image = jax.ShapeDtypeStruct((1, *self.sides, self.in_channels), np.float32)
        found = jax.eval_shape(_ViT(self).init, jax.random.key(0), image)
        return {"batch_stats": {}, **found}

    def source_name(self, path: tuple[str, ...]) -> str:
        """Names a parameter, given by its path, as a PyTorch module does.

        Args:
            path: of the parameter, without its collection.

        Returns:
            The name of the array in a file of weights.
        """
        renamed = {"patch_embed": "patch_embed.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
        inner = [renamed.get(p, re.sub(r"_(\d+)$", r".\1", p)) for p in path[:-1]]
        return ".".join([*inner, LEAF.get(path[-1], path[-1])])

    def spare(self, name: str) -> bool:
        """Tells whether an array belongs to parts that are not used.

        Args:
            name: of an array in a file of weights.

        Returns:
            True if the extractor does not take it.
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
    """Attention, then two layers at each token; each added to what it is given, normalized."""

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
