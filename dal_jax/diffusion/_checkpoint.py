"""Checkpoints of a trained localizer: its variables and all of its configuration.

A pytree of arrays is written whole or not at all, and is checked before it is read.
"""

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp

from dal_jax._errors import CheckpointError, InputError, RunError
from dal_jax._files import atomic_path, file_digest, read_json, uninterrupted, write_text
from dal_jax._typing import PyTree
from dal_jax.diffusion._config import DalConfig

FORMAT = 1  # of the JSON files; raised when an older program could not read a newer checkpoint

_RECORD = "config.json"
# Space for what Orbax writes beside the arrays, bytes.
_PER_LEAF, _PER_TREE = 4096, 2**20


class Config(Protocol):
    """Configuration of a localizer as a checkpoint needs it, such as `DalConfig`."""

    kind: ClassVar[str]

    @property
    def variable_shapes(self) -> PyTree:
        """The variables of the network, as `jax.ShapeDtypeStruct`."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        ...


def save_checkpoint(directory: str | Path, variables: PyTree, config: Config) -> None:
    """Write variables and configuration; an existing checkpoint is replaced.

    The directory holds `config.json` and an Orbax checkpoint, which `config.json` names together
    with the digest of each file. A complete checkpoint exists at every moment of a replacement.

    Args:
        directory: Folder, created if it does not exist.
        variables: Variables of the network, {"params": ..., "batch_stats": ...}, on any devices.
        config: Configuration to store with the variables.

    Raises:
        InputError: The variables are not those of the network, or the directory cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from dal_jax.models import UNetConfig, init_unet
        >>> config = DalConfig(UNetConfig(channels=(2,)), image_size=4)
        >>> with TemporaryDirectory() as folder:
        ...     save_checkpoint(folder, init_unet(config.unet, seed=0), config)
        ...     (Path(folder) / "config.json").is_file()
        True
    """
    _check_variables(variables, config)
    facts = {"localizer": config.kind, "config": config.to_dict()}
    store(Path(directory), _RECORD, "model", variables, facts)


def load_checkpoint(
    directory: str | Path, kinds: Sequence[Any] = (DalConfig,)
) -> tuple[PyTree, Any]:
    """Read a checkpoint of `save_checkpoint`, `train` or `import-weights`, on any devices.

    Args:
        directory: Folder of the checkpoint.
        kinds: Classes of configurations that are accepted.

    Returns:
        Variables {"params": ..., "batch_stats": ...}, numpy float32, and the configuration.

    Raises:
        CheckpointError: The checkpoint is missing, truncated, changed or of another format, or its
            training is unfinished.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from dal_jax.models import UNetConfig, init_unet
        >>> config = DalConfig(UNetConfig(channels=(2,)), image_size=4)
        >>> with TemporaryDirectory() as folder:
        ...     save_checkpoint(folder, init_unet(config.unet, seed=0), config)
        ...     variables, found = load_checkpoint(folder)
        >>> found == config
        True
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint: {folder} is not a directory")
    if not (folder / _RECORD).is_file() and (folder / "training.json").is_file():
        raise CheckpointError(f"checkpoint: training in {folder} has not finished: resume it")
    entries = read_record(folder, _RECORD)
    known = {kind.kind: kind for kind in kinds}
    found = entries.get("localizer", DalConfig.kind)  # older checkpoints do not name it
    if found not in known:
        raise CheckpointError(
            f"checkpoint: {folder / _RECORD}: localizer {found!r}, expected {', '.join(known)}"
        )
    try:
        config = known[found].from_dict(entries.get("config", {}))
    except (ValueError, TypeError) as error:  # an InputError is a ValueError
        raise CheckpointError(f"checkpoint: {folder / _RECORD}: {error}") from error
    return fetch(folder, entries, config.variable_shapes), config


def _check_variables(variables: PyTree, config: Config) -> None:
    expected = named_shapes(config.variable_shapes)
    found = named_shapes(variables)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise InputError(
                f"variables: {name} has shape {found.get(name)}, expected {expected.get(name)}"
            )


def store(directory: Path, record: str, stem: str, tree: PyTree, facts: dict[str, Any]) -> None:
    """Write a pytree and then the JSON record that points at it.

    The record is replaced in one move once the arrays are on disk, so that a reader finds either
    the former pytree or the new one, wherever the writer is stopped.

    Args:
        directory: Folder, created if it does not exist.
        record: Name of the JSON file.
        stem: Stem of the pytree's directory, `stem-N`.
        tree: Pytree of arrays with any sharding.
        facts: Further entries of the record, in plain JSON values.

    Raises:
        InputError: The directory cannot be created.
        RunError: The arrays cannot be written, for example because the disk is full.
    """
    directory = directory.absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"directory: cannot write to {directory}: {error}") from error
    with uninterrupted():
        try:
            former = _write_tree(directory, record, stem, tree, facts)
        except Exception as error:  # Orbax and tensorstore raise several kinds
            raise unwritable(directory, error) from error
        for path in former:
            shutil.rmtree(path, ignore_errors=True)


def _write_tree(
    directory: Path, record: str, stem: str, tree: PyTree, facts: dict[str, Any]
) -> list[Path]:
    """Write pytree and record, and return the directories of former pytrees."""
    former = _stored_trees(directory, stem)
    target = directory / f"{stem}-{1 + max(former.values(), default=0):06d}"
    _need_space(directory, tree)
    with _checkpointer() as checkpointer:
        checkpointer.save(target, jax.tree.map(np.asarray, tree))
    entries = {
        "format": FORMAT,
        **facts,
        "arrays": target.name,
        "shapes": named_shapes(tree),
        "files": _digests(target),
    }
    write_text(directory / record, json.dumps(entries, indent=1) + "\n")
    return list(former)


def _need_space(directory: Path, tree: PyTree) -> None:
    """Raise the error of a full disk before Orbax meets it, whose threads print pages then."""
    if not hasattr(os, "posix_fallocate"):
        return
    leaves = jax.tree.leaves(tree)
    size = sum(np.asarray(leaf).nbytes + _PER_LEAF for leaf in leaves) + _PER_TREE
    with atomic_path(directory / ".space") as temporary, open(temporary, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    (directory / ".space").unlink()


def unwritable(directory: Path, error: Exception) -> RunError:
    """Return the one-line error for a directory to which a training cannot write."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return RunError(
        f"cannot write to {str(directory)!r} ({reason[:200]}); what was stored before is kept, the "
        "same command goes on from it"
    )


def read_record(directory: Path, record: str) -> dict[str, Any]:
    """Read the JSON record that `store` wrote.

    Args:
        directory: Folder, as in `store`.
        record: Name of the JSON file.

    Returns:
        The entries of the record.

    Raises:
        CheckpointError: The record is missing, damaged or of another format.
    """
    path = directory / record
    if not path.is_file():
        raise CheckpointError(f"checkpoint: no {record} in {directory}")
    entries = read_json(path, "checkpoint", CheckpointError)
    if entries.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint: {path} is not of format {FORMAT} of dal-jax")
    return entries


def fetch(directory: Path, entries: dict[str, Any], like: PyTree) -> PyTree:
    """Read the pytree that a record points at, onto the host, whatever devices wrote it.

    Args:
        directory: Folder, as in `store`.
        entries: Entries of the record.
        like: Pytree of the same structure whose leaves have the expected shapes and dtypes.

    Returns:
        A pytree of numpy arrays.

    Raises:
        CheckpointError: Files are missing or changed, or the arrays are not the expected ones.
    """
    source = directory.absolute() / str(entries.get("arrays"))
    # Checked here since Orbax reads a lost chunk of an array as zeros.
    if not source.is_dir():
        raise CheckpointError(f"checkpoint: {source} is missing")
    found = _digests(source)
    for name, digest in dict(entries.get("files", {})).items():
        if name not in found:
            raise CheckpointError(f"checkpoint: {source / name} is missing")
        if found[name] != digest:
            raise CheckpointError(f"checkpoint: {source / name} is truncated or changed")
    # Orbax pads or cuts an array of another shape silently, so shapes are compared here.
    expected, held = named_shapes(like), dict(entries.get("shapes", {}))
    for name in sorted(expected.keys() | held.keys()):
        if expected.get(name) != held.get(name):
            raise CheckpointError(
                f"checkpoint: {source}: {name} has shape {held.get(name)}, "
                f"expected {expected.get(name)}"
            )
    like = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), like)
    try:
        with _checkpointer() as checkpointer:
            return checkpointer.restore(source, like)
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"checkpoint: cannot read {source}: {reason}") from error


def _checkpointer() -> ocp.StandardCheckpointer:
    """Return a checkpointer of this process alone: others may be elsewhere, or waiting."""
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def named_shapes(tree: PyTree) -> dict[str, list[int]]:
    """List the shapes of a pytree by the names of its leaves.

    Args:
        tree: Pytree of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
        Shapes by name, ready for JSON.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): list(np.shape(leaf)) for path, leaf in leaves}


def _stored_trees(directory: Path, stem: str) -> dict[Path, int]:
    """Return the directories of stored pytrees, incomplete ones too, with their numbers."""
    form = re.compile(rf"{stem}-(\d{{6,}})(\..*)?")  # Orbax marks incomplete ones with a suffix
    found = {path: form.fullmatch(path.name) for path in directory.iterdir() if path.is_dir()}
    return {path: int(match[1]) for path, match in found.items() if match}


def _digests(directory: Path) -> dict[str, str]:
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {p.relative_to(directory).as_posix(): file_digest(p) for p in files}
