"""Checkpoints of a trained localizer: its variables and all of its configuration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from dal_jax._errors import CheckpointError, InputError
from dal_jax._typing import PyTree
from dal_jax.diffusion._config import DalConfig
from dal_jax.diffusion._store import fetch, named_shapes, read_record, store

_RECORD = "config.json"


class Config(Protocol):
    """What a checkpoint asks of a localizer's configuration; `DalConfig` is one."""

    kind: ClassVar[str]

    @property
    def variable_shapes(self) -> PyTree:
        """The variables of the network, as `jax.ShapeDtypeStruct`."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Gives plain values, ready for JSON."""
        ...


def save_checkpoint(directory: str | Path, variables: PyTree, config: Config) -> None:
    """Writes variables and configuration, replacing a checkpoint that is already there.

    The directory holds `config.json` and an Orbax checkpoint that it names with the digest of each
    file; at no moment is there less than a whole checkpoint.

    Args:
        directory: made if it is not there.
        variables: of the network, {"params": ..., "batch_stats": ...}, on any devices.
        config: what to carry with them.

    Raises:
        InputError: the variables are not those of the network, or the directory cannot be written.

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
    """Reads what `save_checkpoint`, `train` or `import-weights` wrote, on any number of devices.

    Args:
        directory: of the checkpoint.
        kinds: classes of configurations that will do.

    Returns:
        Variables {"params": ..., "batch_stats": ...}, numpy float32, and the configuration.

    Raises:
        CheckpointError: missing, truncated, changed, of another format, or training unfinished.

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
    found = entries.get("localizer", DalConfig.kind)  # not said before there were others
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
