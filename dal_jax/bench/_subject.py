"""Subject of a measurement: a localizer, and null images in which it flags a region."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from dal_jax._dal_test import evaluator_of
from dal_jax._errors import InputError
from dal_jax._files import atomic_path, file_errors, read_arrays
from dal_jax._typing import Float
from dal_jax.diffusion import DalConfig
from dal_jax.localizers import Localizer, as_kind, localizer_preset, make_localizer, read_checkpoint
from dal_jax.models import import_state_dict, infer_unet_config
from dal_jax.search import Evaluator

# Number of null images of which half are flagged, if no threshold is given.
CALIBRATION = 32
# The choice fails if fewer than one null image in this many is flagged.
PATIENCE = 64
# A highest score closer to the threshold than this might be above it in one precision only.
CLEAR = 1e-3


@dataclass(frozen=True)
class Subject:
    """Localizer and images of a measurement, as plain values that can be stored as JSON.

    Raises:
        InputError: A value does not fit.

    Example:
        >>> subject = Subject(8, tests=2)
        >>> subject.threshold is None, subject.seed
        (True, 0)
    """

    size: int  # side of the images, pixels
    tests: int = 64  # images with a region
    weights: str | None = None  # state dict file of the network
    model: str | None = None  # or checkpoint; if both are None, the network is untrained
    threshold: float | None = None  # of the score; None: half of the null images are flagged
    seed: int = 0  # of the images, the draws and an untrained network
    localizer: str | None = None  # a name for `localizer_preset`; None: dal, or the checkpoint's

    def __post_init__(self) -> None:
        for name, low in (("size", 1), ("tests", 1), ("seed", 0)):
            if getattr(self, name) < low:
                raise InputError(f"{name}: got {getattr(self, name)}, expected {low} or more")
        if self.weights is not None and self.model is not None:
            raise InputError("weights, model: got both, expected one at most")


class Inputs(NamedTuple):
    """Images of the null hypothesis, each with a flagged region.

    Example:
        >>> images, references = np.random.default_rng(0).normal(size=(2, 3, 8, 8, 1))
        >>> inputs = Inputs(images, references, threshold=0.5, flagged=16, looked=32)
        >>> inputs.images.shape, inputs.flagged / inputs.looked
        ((3, 8, 8, 1), 0.5)
    """

    images: Float[np.ndarray, "N H W C"]  # standard normal
    references: Float[np.ndarray, "N H W C"]  # one for each image, standard normal
    threshold: float  # of the score
    flagged: int  # images that were flagged ...
    looked: int  # ... of this number of drawn images


def open_subject(subject: Subject) -> tuple[Localizer, str]:
    """Load or create the localizer.

    Args:
        subject: Settings of the localizer; a threshold of None is left at 1.

    Returns:
        The localizer, and the origin of its weights in words.

    Raises:
        InputError: A file does not fit, or the network cannot take the size.

    Example:
        >>> localizer, source = open_subject(Subject(8, localizer="autoencoder"))
        >>> localizer.image_shape, source
        ((8, 8, 1), 'untrained, seed 0')
    """
    if subject.model is not None:
        variables, config = read_checkpoint(subject.model)
        source = "a checkpoint"
    elif subject.weights is not None:
        config = DalConfig(infer_unet_config(subject.weights), image_size=subject.size)
        variables, source = import_state_dict(subject.weights, config.unet), "a weights file"
    else:
        config = localizer_preset(subject.localizer or DalConfig.kind).config
        variables = config.objective.init(subject.seed)
        source = f"untrained, seed {subject.seed}"
    trained = subject.model is not None or subject.weights is not None
    if trained and subject.localizer is not None:
        config = as_kind(config, subject.localizer)
    config = config.for_images((subject.size, subject.size, config.image_shape[2]))
    threshold = 1.0 if subject.threshold is None else subject.threshold
    return make_localizer(variables, config, threshold, subject.seed), source


def choose_inputs(subject: Subject, localizer: Localizer) -> Inputs:
    """Draw standard normal images until enough of them are flagged.

    Args:
        subject: Settings with the number of images and the threshold.
        localizer: Localizer from `open_subject`.

    Returns:
        The images, a reference for each, and the threshold (a float32, as the peer keeps it).

    Raises:
        InputError: Almost nothing is flagged at the threshold.

    Example:
        >>> from dal_jax.localizers import from_score
        >>> localizer = from_score(lambda params, draws, x: x.sum(-1), (4, 4, 1), threshold=1.0)
        >>> inputs = choose_inputs(Subject(4, tests=2), localizer)
        >>> inputs.images.shape, inputs.flagged, inputs.looked
        ((2, 4, 4, 1), 16, 32)
    """
    shape = localizer.image_shape
    evaluator = evaluator_of(localizer, devices=jax.local_devices()[:1])
    highest = _highest(evaluator, shape, subject.seed)
    seen: list[float] = []
    threshold = subject.threshold
    if threshold is None:
        seen = [next(highest) for _ in range(CALIBRATION)]
        threshold = float(np.median(seen))
    threshold = float(np.float32(threshold))
    chosen: list[int] = []
    flagged = looked = 0
    while len(chosen) < subject.tests:
        if looked >= PATIENCE * subject.tests:
            raise InputError(
                f"threshold: got {threshold:g}, at which {flagged} of {looked} null images are "
                "flagged, expected a lower one"
            )
        if looked == len(seen):
            seen.append(next(highest))
        flagged += seen[looked] > threshold
        if seen[looked] > threshold * (1 + CLEAR):
            chosen.append(looked)
        looked += 1
    flagged += sum(value > threshold for value in seen[looked:])
    pairs = np.stack([_pair(subject.seed, number, shape) for number in chosen])
    return Inputs(pairs[:, 0], pairs[:, 1], threshold, int(flagged), len(seen))


def save_inputs(path: str | Path, inputs: Inputs) -> None:
    """Write inputs to an .npz file, whole or not at all.

    Args:
        path: Path of the file.
        inputs: Inputs from `choose_inputs`.

    Raises:
        InputError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> inputs = Inputs(np.ones((1, 4, 4, 1)), np.zeros((1, 4, 4, 1)), 0.5, 1, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_inputs(f"{folder}/inputs.npz", inputs)
        ...     print([path.name for path in Path(folder).iterdir()])
        ['inputs.npz']
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **inputs._asdict())


def load_inputs(path: str | Path) -> Inputs:
    """Read the inputs in a file of `save_inputs`.

    Args:
        path: Path of the file.

    Returns:
        The inputs as they were written.

    Raises:
        InputError: The file is missing, damaged or of another kind.

    Example:
        >>> import tempfile
        >>> inputs = Inputs(np.ones((1, 4, 4, 1)), np.zeros((1, 4, 4, 1)), 0.5, 1, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_inputs(f"{folder}/inputs.npz", inputs)
        ...     print(load_inputs(f"{folder}/inputs.npz").looked)
        2
    """
    with file_errors(path, "inputs"):
        held = read_arrays(path, "inputs")
        return Inputs(
            held["images"],
            held["references"],
            float(held["threshold"]),
            int(held["flagged"]),
            int(held["looked"]),
        )


def _pair(seed: int, number: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Return image and reference, which depend on the seed and the number alone."""
    return np.random.default_rng((seed, 1, number)).standard_normal((2, *shape))


def _highest(evaluator: Evaluator, shape: tuple[int, int, int], seed: int) -> Iterator[float]:
    """Yield the highest score of one null image after the other."""
    count = evaluator.capacity("float32")
    first = 0
    while True:
        images = np.stack([_pair(seed, first + k, shape)[0] for k in range(count)])
        scores = np.asarray(evaluator(images, (), "float32").score, np.float64)
        if not np.isfinite(scores).all():
            raise InputError("weights: the network gives NaN or infinite scores on null images")
        yield from scores.reshape(count, math.prod(shape[:2])).max(axis=1).tolist()
        first += count
