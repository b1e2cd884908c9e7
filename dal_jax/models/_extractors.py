"""Extractors of features with weights from a file of the user's."""

from pathlib import Path
from typing import Any

from dal_jax._errors import CheckpointError, InputError
from dal_jax._typing import PyTree
from dal_jax.models._import_weights import fill_variables, read_state_dict
from dal_jax.models._resnet import ResNetExtractor
from dal_jax.models._vit import ViTExtractor

_KINDS: dict[str, type[ResNetExtractor] | type[ViTExtractor]] = {
    "resnet": ResNetExtractor,
    "vit": ViTExtractor,
}


def load_extractor(
    path: str | Path, kind: str, **settings: Any
) -> tuple[ResNetExtractor | ViTExtractor, PyTree]:
    """Makes an extractor of features and reads its weights.

    Args:
        path: .npz or .safetensors (extra `weights`) with the arrays of the usual PyTorch module, as
            `ResNetExtractor` and `ViTExtractor` name them.
        kind: "resnet" or "vit".
        **settings: fields of the extractor; those left out take their defaults.

    Returns:
        The extractor and its parameters, numpy float32.

    Raises:
        InputError: unknown kind or settings that do not fit.
        CheckpointError: another format, unreadable file, or a missing, misshapen, non-finite or
            extra array; the message names the array, its shape and the one expected.

    Example:
        >>> file = "resnet18.npz"  # of the user's
        >>> extractor, params = load_extractor(file, "resnet", depths=(1, 2))  # doctest: +SKIP
        >>> [m.shape for m in extractor(params, np.ones((1, 32, 32, 3)))]  # doctest: +SKIP
        [(1, 8, 8, 64), (1, 4, 4, 128)]
    """
    if kind not in _KINDS:
        raise InputError(f"kind: got {kind!r}, expected one of {', '.join(_KINDS)}")
    known = _KINDS[kind].__dataclass_fields__
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise InputError(f"settings: got {unknown[0]!r}, expected only {', '.join(known)}")
    try:
        extractor = _KINDS[kind](**settings)
    except TypeError as error:
        raise InputError(f"settings: {kind} cannot take {settings!r:.80}") from error
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
