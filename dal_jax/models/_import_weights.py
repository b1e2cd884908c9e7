"""Import of the weights of a PyTorch module, from files that cannot run code."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dal_jax._errors import CheckpointError
from dal_jax._files import read_arrays
from dal_jax._typing import PyTree
from dal_jax.models._unet import UNetConfig, unet_shapes


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Read named arrays from a weights file.

    Args:
        path: File of type .npz, .safetensors (extra `weights`) or .pt / .pth (extra `torch`;
            weights only).

    Returns:
        Arrays by name, without the prefix `unet.` and without `num_batches_tracked`.

    Raises:
        CheckpointError: The file is missing, truncated or of another format.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/weights.npz", **{"unet.out.bias": np.zeros(1)})
        ...     list(read_state_dict(f"{folder}/weights.npz"))
        ['out.bias']
    """
    path = Path(path)
    named = partial(read_arrays, name="weights", error=CheckpointError)
    reader = {".npz": named, ".safetensors": _read_safetensors, ".pt": _read_torch}
    suffix = ".pt" if path.suffix == ".pth" else path.suffix
    if suffix not in reader:
        raise CheckpointError(f"weights: got {path.name}, expected .npz, .safetensors or .pt")
    if not path.is_file():
        raise CheckpointError(f"weights {str(path)!r}: no such file")
    try:
        arrays = reader[suffix](path)
    except ImportError as error:
        package = {".safetensors": "weights", ".pt": "torch"}[suffix]
        raise CheckpointError(
            f"weights: {path.name} needs {error.name}: pip install 'dal-jax[{package}]'"
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # each reader has its own exceptions, all with this meaning
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"weights {str(path)!r}: damaged ({reason})") from error
    return {
        name.removeprefix("unet."): array
        for name, array in arrays.items()
        if not name.endswith("num_batches_tracked")
    }


def infer_unet_config(path: str | Path, activation: str = "relu") -> UNetConfig:
    """Infer channels, depth and length of the time code from the arrays of a weights file.

    Args:
        path: Path of the file, as for `import_state_dict`.
        activation: Activation of the network, which the arrays do not determine.

    Returns:
        The configuration of the network.

    Raises:
        CheckpointError: The file cannot be read or does not hold such a network.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> names = ("down1.convs.0.weight", "bot1.convs.0.weight", "down1.mlp.0.weight")
        >>> arrays = map(np.ones, ((2, 1, 3, 3), (4, 2, 3, 3), (1, 8)))
        >>> with TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/weights.npz", **dict(zip(names, arrays)))
        ...     infer_unet_config(f"{folder}/weights.npz").channels
        (2, 4)
    """
    arrays = read_state_dict(path)
    blocks = sorted(
        (int(m.group(1)), m.group(0))
        for m in (re.fullmatch(r"down(\d+)\.convs\.0\.weight", name) for name in arrays)
        if m
    )
    names = [name for _, name in blocks] + ["bot1.convs.0.weight"]
    first = names[0].replace("convs.0", "mlp.0")
    missing = [name for name in (*names, first) if name not in arrays]
    if missing:
        raise CheckpointError(f"weights: {Path(path).name} has no array {missing[0]}")
    if any(arrays[n].ndim != 4 for n in names) or arrays[first].ndim != 2:
        raise CheckpointError(f"weights: {Path(path).name} does not hold a U-Net of this form")
    widths = tuple(int(arrays[n].shape[0]) for n in names)
    inputs, length = int(arrays[names[0]].shape[1]), int(arrays[first].shape[1])
    return UNetConfig(inputs, widths, length, activation)


def import_state_dict(path: str | Path, config: UNetConfig) -> PyTree:
    """Turn a PyTorch state dict into the variables of `UNet(config)`.

    The names are `down1.., bot1, ..up1` (each with `convs.0` Conv2d, `convs.1` BatchNorm2d,
    `mlp.0`, `mlp.2` Linear) and `out`, with or without the prefix `unet.`; `num_batches_tracked` is
    ignored.

    Args:
        path: File of type .npz, .safetensors or .pt.
        config: Configuration of the network that the arrays belong to.

    Returns:
        Variables {"params": ..., "batch_stats": ...}, numpy float32 (float64 arrays are rounded).

    Raises:
        CheckpointError: The file is unreadable, or an array is missing, misshapen, non-finite or
            extra.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> kernels = {"bot1.convs.0": (3, 3), "bot1.mlp.0": (), "bot1.mlp.2": (), "out": (1, 1)}
        >>> arrays = {f"{name}.weight": np.ones((1, 1, *sides)) for name, sides in kernels.items()}
        >>> arrays |= {f"{name}.bias": np.zeros(1) for name in kernels}
        >>> with TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/weights.npz", **arrays)
        ...     variables = import_state_dict(
        ...         f"{folder}/weights.npz", UNetConfig(channels=(1,), time_dim=1, norm="none")
        ...     )
        >>> variables["params"]["bot1"]["conv"]["kernel"].shape
        (3, 3, 1, 1)
    """
    return fill_variables(read_state_dict(path), unet_shapes(config), _source_name, Path(path).name)


def fill_variables(
    arrays: dict[str, np.ndarray],
    shapes: PyTree,
    source_name: Callable[[tuple[str, ...]], str],
    file: str,
    spare: Callable[[str], bool] = lambda name: False,
) -> PyTree:
    """Arrange named arrays of a PyTorch module as the variables of a network in Flax.

    Kernels (out, in, height, width) and (out, in) become (height, width, in, out) and (in, out).

    Args:
        arrays: Arrays by name; those that are used are removed.
        shapes: Shapes of the variables, {"params": ..., "batch_stats": ...}.
        source_name: Function from the path of a variable without its collection to its array's
            name.
        file: Name of the file, for messages.
        spare: Function that returns whether an array that the network does not use is allowed.

    Returns:
        Variables in the structure of `shapes`, numpy float32 (float64 arrays are rounded).

    Raises:
        CheckpointError: An array is missing, misshapen, non-finite or extra.
    """
    variables: dict[str, Any] = {"batch_stats": {}}
    for source, target, shape, axes in _named(shapes, source_name):
        if source not in arrays:
            raise CheckpointError(f"weights: {file} has no array {source}, expected shape {shape}")
        array = arrays.pop(source)
        if array.shape != shape:
            raise CheckpointError(
                f"weights: {file}: {source} has shape {array.shape}, expected {shape}"
            )
        array = np.ascontiguousarray(np.transpose(array, axes), dtype=np.float32)
        if not np.isfinite(array).all():
            raise CheckpointError(f"weights: {file}: {source} has values that are not finite")
        _put(variables, target, array)
    for name, array in arrays.items():
        if spare(name):
            continue
        raise CheckpointError(f"weights: {file}: unexpected array {name} of shape {array.shape}")
    return variables


_Row = tuple[str, tuple[str, ...], tuple[int, ...], tuple[int, ...]]
_RENAME = {"conv": "convs.0", "norm": "convs.1", "mlp_0": "mlp.0", "mlp_2": "mlp.2"}
LEAF = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def _source_name(path: tuple[str, ...]) -> str:
    """Return the name in the U-Net's PyTorch module."""
    inner = [_RENAME.get(part, part) for part in path[:-1]]
    return ".".join([*inner, LEAF.get(path[-1], path[-1])])


def state_dict_layout(config: UNetConfig) -> Iterator[_Row]:
    """List the weights of a U-Net in the order and layout of a PyTorch state dict.

    Args:
        config: Configuration of the network.

    Yields:
        Rows of the name in the state dict, the path in the variables of Flax, the shape in PyTorch,
        and the axes by which to transpose an array of PyTorch.

    Example:
        >>> name, path, shape, axes = next(iter(state_dict_layout(UNetConfig(1, (8, 16)))))
        >>> len(shape) == len(axes)
        True
    """
    return _named(unet_shapes(config), _source_name)


def _named(shapes: PyTree, source_name: Callable[[tuple[str, ...]], str]) -> Iterator[_Row]:
    """Yield (PyTorch name, path in the variables, PyTorch shape, axes of the transposition)."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(shapes)
    for path, leaf in leaves:
        target = tuple(str(key.key) for key in path)
        # PyTorch has (out, in, 3, 3) and (out, in), Flax has (3, 3, in, out) and (in, out).
        known = {4: (2, 3, 1, 0), 2: (1, 0)}
        axes = known.get(len(leaf.shape), tuple(range(len(leaf.shape))))
        shape = tuple(leaf.shape[axes.index(i)] for i in range(len(axes)))
        yield source_name(target[1:]), target, shape, axes


def _put(tree: dict[str, Any], path: tuple[str, ...], value: np.ndarray) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return dict(load_file(path))


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: value.detach().numpy() for name, value in state.items()}
