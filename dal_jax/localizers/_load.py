"""Localizers of any kind: from their configuration, and from checkpoints."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dal_jax._errors import CheckpointError
from dal_jax._files import atomic_path, file_digest, write_text
from dal_jax._typing import PyTree
from dal_jax.diffusion import load_checkpoint
from dal_jax.localizers._autoencoder import autoencoder_localizer
from dal_jax.localizers._dal import dal_localizer
from dal_jax.localizers._glad import glad_localizer
from dal_jax.localizers._localizer import Localizer
from dal_jax.localizers._mdps import mdps_localizer
from dal_jax.localizers._perceptual import PerceptualConfig
from dal_jax.localizers._presets import CONFIGS, as_kind
from dal_jax.models import load_extractor

# Functions (variables, configuration, threshold, draws) -> localizer.
_MAKERS: dict[str, Any] = {
    "dal": dal_localizer,
    "mdps": mdps_localizer,
    "glad": glad_localizer,
    "autoencoder": autoencoder_localizer,
}
_EXTRACTOR = "extractor.json"


def make_localizer(
    variables: PyTree, config: Any, threshold: float = 0.8, draws: Any = None, **parts: Any
) -> Localizer:
    """Make a localizer of the kind of its configuration.

    Args:
        variables: Variables of the network.
        config: `DalConfig`, `MdpsConfig`, `GladConfig` or `AutoencoderLocalizerConfig`.
        threshold: Threshold, positive, in units of the score.
        draws: Array of the localizer's shape, or a seed; None is seed 0.
        **parts: Further arguments of `mdps_localizer` or `glad_localizer`.

    Returns:
        The localizer.

    Raises:
        InputError: An argument does not fit.

    Example:
        >>> from dal_jax.localizers import AutoencoderLocalizerConfig
        >>> from dal_jax.models import AutoencoderConfig, init_autoencoder
        >>> network = AutoencoderConfig(channels=(4,))
        >>> config = AutoencoderLocalizerConfig(network, image_size=4)
        >>> make_localizer(init_autoencoder(network, 0), config).image_shape
        (4, 4, 1)
    """
    return _MAKERS[config.kind](variables, config, threshold, draws, **parts)


def load_localizer(
    directory: str | Path, threshold: float = 0.8, draws: Any = None, localizer: str | None = None
) -> Localizer:
    """Make a localizer from a checkpoint.

    Args:
        directory: Folder that `train`, `save_checkpoint` or `import-weights` wrote.
        threshold: Threshold, positive, in units of the score.
        draws: Array of the localizer's shape, or a seed, fixed before the image is seen; None is
            seed 0.
        localizer: Another use of the same network, named as in `localizer_preset`, such as
            "mdps:pl"; None stands for the one that it was trained for.

    Returns:
        The localizer, with the extractor that `save_extractor` stored there.

    Raises:
        CheckpointError: The checkpoint is missing or damaged.
        InputError: The draws have another shape, the threshold is not positive, or the network
            cannot be used in this way.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from dal_jax.diffusion import DalConfig, save_checkpoint
        >>> from dal_jax.models import UNetConfig, init_unet
        >>> config = DalConfig(UNetConfig(channels=(2,)), image_size=4)
        >>> with TemporaryDirectory() as folder:
        ...     save_checkpoint(folder, init_unet(config.unet, seed=0), config)
        ...     load_localizer(folder, threshold=0.5).image_shape
        (4, 4, 1)
    """
    variables, config = read_checkpoint(directory)
    config = config if localizer is None else as_kind(config, localizer)
    parts = _load_extractor(Path(directory)) if isinstance(config, PerceptualConfig) else {}
    return make_localizer(variables, config, threshold, draws, **parts)


def read_checkpoint(directory: str | Path) -> tuple[PyTree, Any]:
    """Read the checkpoint of a localizer of any kind.

    Args:
        directory: Directory of the checkpoint.

    Returns:
        The variables of the network, and the configuration of the localizer.

    Raises:
        CheckpointError: As in `dal_jax.diffusion.load_checkpoint`.

    Example:
        >>> variables, config = read_checkpoint("model")  # doctest: +SKIP
    """
    return load_checkpoint(directory, list(CONFIGS.values()))


class ExtractorFile(NamedTuple):
    """File of the user with the weights of a feature extractor; see `load_extractor`.

    Example:
        >>> file = ExtractorFile(Path("resnet18.npz"), "resnet", {"depths": (1, 2)})
        >>> file.kind, file.settings["depths"]
        ('resnet', (1, 2))
    """

    path: Path  # .npz or .safetensors
    kind: str  # "resnet" or "vit"
    settings: Mapping[str, Any]  # fields of the extractor

    def load(self) -> dict[str, Any]:
        """Read the weights.

        Returns:
            {"extractor": ..., "features": ...}, arguments of `make_localizer`.

        Raises:
            InputError: Unknown kind or settings.
            CheckpointError: The weights do not fit.
        """
        extractor, features = load_extractor(self.path, self.kind, **self.settings)
        return {"extractor": extractor, "features": features}


def save_extractor(directory: str | Path, extractor: ExtractorFile | None) -> None:
    """Copy an extractor's weights beside a checkpoint, for `load_localizer`.

    Args:
        directory: Folder of the model, created if it does not exist.
        extractor: Extractor whose weights fit; None discards the stored one.

    Raises:
        InputError, CheckpointError: The weights do not fit; nothing is written then.

    Example:
        >>> file = ExtractorFile(Path("resnet18.npz"), "resnet", {"depths": (1, 2)})
        >>> save_extractor("model", file)  # doctest: +SKIP
    """
    folder = Path(directory)
    if extractor is None:
        (folder / _EXTRACTOR).unlink(missing_ok=True)
        return
    extractor.load()
    copy = folder / f"extractor{extractor.path.suffix}"
    with atomic_path(copy) as temporary:
        shutil.copyfile(extractor.path, temporary)
    facts = {
        "file": copy.name,
        "sha256": file_digest(copy),
        "kind": extractor.kind,
        "settings": dict(extractor.settings),
    }
    write_text(folder / _EXTRACTOR, json.dumps(facts, indent=1) + "\n")


def _load_extractor(directory: Path) -> dict[str, Any]:
    record = directory / _EXTRACTOR
    if not record.is_file():
        return {}
    try:
        facts = json.loads(record.read_text())
        path = directory / Path(facts["file"]).name
        if file_digest(path) != facts["sha256"]:
            raise CheckpointError(f"{path}: is not the file of {record.name}")
        return ExtractorFile(path, facts["kind"], facts["settings"]).load()
    except (OSError, ValueError, KeyError, TypeError) as error:  # an InputError is a ValueError
        raise CheckpointError(
            f"{record}: damaged ({' '.join(str(error).split())[:120]})"
        ) from error
