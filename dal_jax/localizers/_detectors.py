"""Detectors that are named by a text: a function of a module, or an ONNX file; and stored ones.

Only a text on the command line, or an argument, has code imported: a stored detector names the
code, and is loaded only if the same name is given again.
"""

import importlib
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dal_jax._config import build, split_settings
from dal_jax._errors import CheckpointError, InputError
from dal_jax._files import atomic_path, file_digest, file_errors, read_json, write_text
from dal_jax.localizers._callable import BATCH_SIZE, from_callable, probes
from dal_jax.localizers._localizer import THRESHOLD, Localizer, make_draws
from dal_jax.localizers._onnx import from_onnx

ONNX = "onnx"
RECORD, NETWORK, FILE = "detector.json", "config.json", "detector.onnx"
_FORMAT = 1
# Scores of a fixed image that are stored, and the largest difference, relative to the largest one,
# that is rounding of another machine.
_STORED, _SAME = 64, 1e-3


@dataclass(frozen=True)
class DetectorConfig:
    """Detector outside of this package, by its name.

    Raises:
        InputError: The name has another form, or a setting does not fit.

    Example:
        >>> config = DetectorConfig("numpy:mean").for_images((8, 8, 1))
        >>> config.is_code, config.image_shape
        (True, (8, 8, 1))
    """

    source: str  # "MODULE:FUNCTION" or "onnx:FILE"
    dtype: str | None = None  # of the images, "float64" if None; an ONNX file has its own
    batch_size: int = BATCH_SIZE  # largest number of images of one call
    output: str | None = None  # of an ONNX file, as in `from_onnx`
    layout: str | None = None  # of an ONNX file, as in `from_onnx`
    image_shape: tuple[int, ...] = ()  # (H, W, C); empty until it is known

    kind: ClassVar[str] = "detector"

    def __post_init__(self) -> None:
        head, colon, tail = self.source.partition(":")
        if not (head and colon and tail):
            raise InputError(f"source: got {self.source!r}, expected MODULE:FUNCTION or onnx:FILE")
        ignored = ("output", "layout") if self.is_code else ("dtype",)
        for name in ignored:
            if getattr(self, name) is not None:
                raise InputError(f"{name}: got {getattr(self, name)!r}, expected none with {head}")

    @property
    def is_code(self) -> bool:
        """Whether opening the detector imports code."""
        return self.source.partition(":")[0] != ONNX

    def for_images(self, shape: tuple[int, ...]) -> "DetectorConfig":
        """Return the configuration for images of a shape (H, W, C)."""
        return replace(self, image_shape=tuple(shape))

    def open(self, threshold: float = THRESHOLD) -> Localizer:
        """Import the function, or read the file.

        Args:
            threshold: Threshold, positive, in units of the score.

        Returns:
            The localizer.

        Raises:
            InputError: There is no such function or file, or it does not fit, as in
                `from_callable` and `from_onnx`.
        """
        shape, size = self.image_shape, self.batch_size
        if self.is_code:
            function, dtype = _imported(self.source), self.dtype or "float64"
            how: dict[str, Any] = {"dtype": dtype, "batch_size": size, "name": self.source}
            return from_callable(function, shape, threshold, **how)
        how = {"output": self.output, "layout": self.layout, "batch_size": size}
        return from_onnx(self.source.partition(":")[2], shape, threshold, **how)


def parse_detector(text: str) -> DetectorConfig:
    """Read the name of a detector, with its settings; nothing is imported.

    Args:
        text: Text of the form "MODULE:FUNCTION[,FIELD=VALUE...]" or "onnx:FILE[,FIELD=VALUE...]",
            with fields of `DetectorConfig`.

    Returns:
        The configuration.

    Raises:
        InputError: The text has another form, or a field is unknown.

    Example:
        >>> parse_detector("inspection.wafers:score,dtype=float32").dtype
        'float32'
    """
    source, settings = split_settings(text)
    return build(DetectorConfig, {"source": source, **settings}, f"localizer {text!r}")


def _imported(source: str) -> Any:
    module, _, name = source.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: nothing there takes the place of what is installed
    try:
        return attrgetter(name)(importlib.import_module(module))
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in _parents(module):
            told = f"no module {error.name!r} is found here, and no kind of localizer has this name"
        elif isinstance(error, AttributeError) and module in sys.modules:
            told = f"module {module!r} has no {name!r}"
        else:
            text = " ".join(str(error).split())[:200]
            told = f"importing {module!r} failed: {type(error).__name__}: {text}"
        raise InputError(f"localizer {source!r}: {told}") from error


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[: k + 1]) for k in range(len(parts))]


def is_detector(directory: str | Path) -> bool:
    """Return whether a folder holds a stored detector, and no network.

    Args:
        directory: Folder of a model.

    Returns:
        Whether `load_detector` reads it.

    Raises:
        CheckpointError: It holds both.

    Example:
        >>> is_detector("no such folder")
        False
    """
    folder = Path(directory)
    if not (folder / RECORD).is_file():
        return False
    if (folder / NETWORK).is_file():
        raise CheckpointError(
            f"model {str(folder)!r}: holds {RECORD} and {NETWORK}, expected one of them: give each "
            "localizer a folder of its own"
        )
    return True


def save_detector(directory: str | Path, config: DetectorConfig) -> None:
    """Store a detector: its name and settings, scores of a fixed image, and a copy of an ONNX file.

    Args:
        directory: Folder, created if it does not exist.
        config: Detector with the shape of its images.

    Raises:
        InputError: The detector cannot be opened, or the folder holds a network.

    Example:
        >>> save_detector("model", parse_detector("wafers:score"))  # doctest: +SKIP
    """
    folder = Path(directory)
    if (folder / NETWORK).is_file():
        raise InputError(f"model {str(folder)!r}: holds a network, expected a folder of its own")
    scores = _fixed_scores(config.open())
    facts: dict[str, Any] = {"format": _FORMAT, "scores": scores, "sha256": None}
    if not config.is_code:
        with atomic_path(folder / FILE) as temporary:
            shutil.copyfile(config.source.partition(":")[2], temporary)
        facts["sha256"] = file_digest(folder / FILE)
        config = replace(config, source=f"{ONNX}:{FILE}")
    text = json.dumps({**facts, "detector": asdict(config)}, indent=1)
    write_text(folder / RECORD, text + "\n")


def load_detector(
    directory: str | Path,
    threshold: float = THRESHOLD,
    draws: Any = None,
    localizer: str | None = None,
) -> Localizer:
    """Load a stored detector; one that is code must be named again.

    Args:
        directory: Folder of `save_detector`.
        threshold: Threshold, positive, in units of the score.
        draws: None, or a seed, which changes nothing.
        localizer: Text as in `parse_detector`; of a detector that is code, the name under which it
            was stored, else None.

    Returns:
        The localizer.

    Raises:
        CheckpointError: A file is damaged.
        InputError: The name is missing or another one, or the detector has changed.

    Example:
        >>> load_detector("model", 0.5, localizer="wafers:score")  # doctest: +SKIP
    """
    folder = Path(directory)
    path = folder / RECORD
    with file_errors(path, "detector", CheckpointError):
        facts = read_json(path, "detector", CheckpointError)
        if facts["format"] != _FORMAT:
            raise CheckpointError(f"{path}: format {facts['format']}, expected {_FORMAT}")
        config = build(DetectorConfig, facts["detector"], str(path))
        expected = np.asarray(facts["scores"], np.float64)
    given = None if localizer is None else split_settings(localizer)[0]
    if config.is_code and given != config.source:
        raise InputError(
            f"model {str(folder)!r}: its detector is code, {config.source!r}, which runs only if "
            f"--localizer names it, got {given!r}"
        )
    if not config.is_code:
        if given is not None:
            raise InputError(f"localizer: got {localizer!r}, expected none with the model's file")
        if config.source != f"{ONNX}:{FILE}" or file_digest(folder / FILE) != facts["sha256"]:
            raise CheckpointError(f"{folder / FILE}: is not the file of {RECORD}")
        config = replace(config, source=f"{ONNX}:{folder / FILE}")
    found = config.open(threshold)
    _check_unchanged(config.source, np.asarray(_fixed_scores(found), np.float64), expected)
    return found.with_draws(make_draws(draws, np.shape(found.draws)))


def _fixed_scores(localizer: Localizer) -> list[float | None]:
    """Return some scores of the fixed image, as JSON holds them: None for those not finite."""
    score = localizer.score(probes(localizer.image_shape)[0]).reshape(-1)
    places = np.linspace(0, score.size - 1, min(_STORED, score.size)).astype(int)
    return [value if np.isfinite(value) else None for value in score[places].tolist()]


def _check_unchanged(source: str, found: np.ndarray, expected: np.ndarray) -> None:
    same = np.array_equal(np.isfinite(found), np.isfinite(expected))
    change = np.inf
    if same:
        scale = np.nanmax(np.abs(expected), initial=0.0)
        change = float(np.nanmax(np.abs(found - expected), initial=0.0))
        same = change <= _SAME * scale
    if not same:
        raise InputError(
            f"detector {source!r} has changed: its scores of a fixed image differ by up to "
            f"{change:.3g} from those at training, expected the same: train again"
        )
