"""Inference mode: batch norms are folded into the convolutions, and kernels laid out for speed."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dal_jax._errors import InputError
from dal_jax._typing import Array, PyTree
from dal_jax.models._blocks import activation, attend_pixels, dense, group_norm
from dal_jax.models._convolve import (
    border_kernel,
    convolve,
    convolve_doubled,
    convolve_doubled_one_gradient,
    convolve_one_gradient,
    lay_out,
    lay_out_doubled,
    mean_pool,
    on_cpu,
    spread,
    transpose_kernel,
    upsample,
)
from dal_jax.models._unet import NORM_EPSILON, UNetConfig, level_code


def fold_norm(variables: PyTree, dtype: Any) -> dict[str, dict[str, Any]]:
    """Merge the batch norms into the convolutions before them, in a given dtype.

    `scale (w * x + b - mean) / sqrt(var + eps) + bias = (g w) * x + (g (b - mean) + bias)`, with
    `g = scale / sqrt(var + eps)`.

    Args:
        variables: Variables {"params": ..., "batch_stats": ...} of `UNet(config)`.
        dtype: Floating dtype of the result.

    Returns:
        Parameters {block: {"kernel": (3, 3, C, D), "bias": (D,), "mlp_0": ..., "mlp_2": ...}}, and
        "out" with its 1 x 1 kernel; a block without batch norm has its kernel and bias unchanged,
        with the "norm" over groups and the "attention" that it has.

    Example:
        >>> from dal_jax.models import init_unet
        >>> folded = fold_norm(init_unet(UNetConfig(channels=(2,)), seed=0), np.float32)
        >>> sorted(folded["bot1"])  # no norm is left
        ['bias', 'kernel', 'mlp_0', 'mlp_2']

    Source: Jacob et al., arXiv 1712.05877, section 3.2.
    """
    params, stats = jax.tree.map(
        lambda a: jnp.asarray(a, dtype), (variables["params"], variables["batch_stats"])
    )
    folded = {"out": params["out"]}
    for name, block in params.items():
        if name != "out":
            kept = {key: part for key, part in block.items() if key not in ("conv", "norm")}
            folded[name] = {**_folded_block(block, stats.get(name), dtype), **kept}
    return folded


def _folded_block(block: dict[str, Any], stats: Any, dtype: Any) -> dict[str, Any]:
    """Return the convolution of a block, with its batch norm, or its other norm apart."""
    if stats is None:
        return {**block["conv"], **{key: block[key] for key in ("norm",) if key in block}}
    running = stats["norm"]
    epsilon = np.dtype(dtype).type(NORM_EPSILON)
    gain = block["norm"]["scale"] / jnp.sqrt(running["var"] + epsilon)
    kernel = block["conv"]["kernel"] * gain
    bias = gain * (block["conv"]["bias"] - running["mean"]) + block["norm"]["bias"]
    return {"kernel": kernel, "bias": bias}


@dataclass(frozen=True, eq=False)  # compared by identity: arrays have no hash
class Denoiser:
    """A network in inference mode: `denoise(x, level)`, in the dtype of its parameters."""

    config: UNetConfig
    sides: tuple[int, int]  # (H, W) of the images, pixels
    folded: PyTree  # from `fold_norm`
    kernels: PyTree  # {block: kernels laid out, `_Kernel`}

    def __call__(self, x: Array, level: Any) -> Array:
        """Predict the noise (B, H, W, C) in images (B, H, W, C) at a level, scalar or (B,)."""
        return self.given(x, self.conditions(level))

    def conditions(self, levels: Any) -> dict[str, Array]:
        """Return the part of the network that depends on the levels (L,) alone, for `given`.

        The shift that a level adds to the input of a convolution is moved to its output.
        """
        code = level_code(levels, self.config.time_dim, self.folded["out"]["bias"].dtype)
        found = {}
        for name, block in self.folded.items():
            if name == "out":
                continue
            hidden = activation("relu")(dense(code, block["mlp_0"]))
            shift = dense(hidden, block["mlp_2"])
            borders = border_kernel(block["kernel"], *_map_sides(name, self.config, self.sides))
            met = jnp.einsum("lc,ijcd->lijd", shift, borders, precision="highest")
            found[name] = met + block["bias"]
        return found

    def given(self, x: Array, conditions: dict[str, Array]) -> Array:
        """Predict the noise in images (B, H, W, C).

        Args:
            x: Images (B, H, W, C).
            conditions: Result of `conditions` for B levels or one, or one row of it.

        Returns:
            Predicted noise (B, H, W, C).

        Raises:
            InputError: The images do not fit the network, or have other sides.
        """
        maps = self.encode(x, conditions, len(self.config.channels))
        x = maps.pop()
        for i in range(len(maps), 0, -1):
            name = f"up{i}"
            joined = _convolve_joined(x, maps[i - 1], self.kernels[name])
            x = self._finish(joined, name, conditions)
        out = self.folded["out"]
        return jnp.matmul(x, out["kernel"][0, 0], precision="highest") + out["bias"]

    def encode(self, x: Array, conditions: dict[str, Array], depth: int) -> list[Array]:
        """Return the maps of the contracting half of the network, the finest first.

        Args:
            x: Images (B, H, W, C).
            conditions: Result of `conditions`, as for `given`.
            depth: Number of maps, at most one for each of the network's widths.

        Returns:
            Maps (B, H / 2^i, W / 2^i, channels[i]) for i from 0 to depth - 1.

        Raises:
            InputError: The images do not fit the network, or have other sides.
        """
        self.config.check_image(x.shape)
        if x.ndim != 4 or x.shape[1:3] != self.sides:  # the kernels are laid out for these sides
            expected = ", ".join(map(str, (*self.sides, self.config.in_channels)))
            raise InputError(f"image: got shape {x.shape}, expected (B, {expected})")
        names = [f"down{i}" for i in range(1, len(self.config.channels))]
        maps = []
        for name in [*names, "bot1"][:depth]:
            x = mean_pool(maps[-1]) if maps else x
            convolved = _convolve(x, self.kernels[name]["kernel"])
            maps.append(self._finish(convolved, name, conditions))
        return maps

    def _finish(self, y: Array, name: str, conditions: dict[str, Array]) -> Array:
        """Add the shift, and apply norm, activation and attention after a convolution."""
        y, block = y + spread(conditions[name], *y.shape[1:3]), self.folded[name]
        if "norm" in block:
            y = group_norm(y, block["norm"])
        y = activation(self.config.activation)(y)
        return attend_pixels(y, block["attention"]) if "attention" in block else y


def denoiser(
    variables: PyTree,
    config: UNetConfig,
    image_size: tuple[int, int],
    dtype: Any,
    pulls: bool = False,
) -> Denoiser:
    """Bind variables to the network in inference mode, folded and laid out once.

    Args:
        variables: Variables {"params": ..., "batch_stats": ...} of the network.
        config: Configuration of the network.
        image_size: Height and width (H, W) of the images in pixels.
        dtype: Floating dtype of the computation.
        pulls: True to serve `jax.vjp` by the images, which is then several times faster; no other
            derivative is available then.

    Returns:
        A function from images (B, H, W, C) in that dtype and a level to the noise (B, H, W, C).

    Example:
        >>> from dal_jax.models import init_unet
        >>> config = UNetConfig(channels=(2,))
        >>> denoise = denoiser(init_unet(config, seed=0), config, (4, 4), np.float32)
        >>> jax.eval_shape(denoise, np.ones((1, 4, 4, 1), np.float32), 10.0).shape
        (1, 4, 4, 1)
    """
    folded = fold_norm(variables, dtype)
    kernels = {}
    for name, block in folded.items():
        if name != "out":
            height, width = _map_sides(name, config, image_size)
            parts = _laid_out(block["kernel"], height, width, name.startswith("up"))
            kernels[name] = {
                part: _Kernel(laid, transpose_kernel(given) if pulls else None)
                for part, (given, laid) in parts.items()
            }
    return Denoiser(config, image_size, folded, kernels)


def _map_sides(name: str, config: UNetConfig, sides: tuple[int, int]) -> tuple[int, int]:
    """Return the sides of the maps of a block, for images of given sides."""
    halvings = len(config.channels) - 1 if name == "bot1" else int(name.lstrip("downup")) - 1
    return sides[0] >> halvings, sides[1] >> halvings


class _Kernel(NamedTuple):
    """A kernel laid out, and the kernel that convolves gradients, if these are requested."""

    laid: Array
    back: Array | None


def _laid_out(
    kernel: Array, height: int, width: int, joins: bool
) -> dict[str, tuple[Array, Array]]:
    """Return a block's kernel, as given and laid out; on a CPU a joining one is split in two."""
    if not joins or not on_cpu():
        return {"kernel": (kernel, lay_out(kernel, height, width))}
    skipped = kernel.shape[-1]  # a block has as many channels as the map that it is joined with
    below, skip = kernel[:, :, :-skipped], kernel[:, :, -skipped:]
    return {
        "below": (below, lay_out_doubled(below, height // 2, width // 2)),
        "skip": (skip, lay_out(skip, height, width)),
    }


def _convolve(x: Array, kernel: _Kernel) -> Array:
    laid, back = kernel
    return convolve(x, laid) if back is None else convolve_one_gradient(x, laid, back)


def _convolve_joined(x: Array, skip: Array, kernels: dict[str, _Kernel]) -> Array:
    """Convolve the map from below, doubled, joined with the one from across."""
    if "kernel" in kernels:
        return _convolve(jnp.concatenate([upsample(x), skip], axis=-1), kernels["kernel"])
    laid, back = kernels["below"]
    below = (
        convolve_doubled(x, laid) if back is None else convolve_doubled_one_gradient(x, laid, back)
    )
    return below + _convolve(skip, kernels["skip"])
