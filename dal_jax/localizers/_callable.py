"""Score functions on numpy arrays, in any framework, as localizers."""

from collections.abc import Callable
from dataclasses import InitVar, dataclass
from typing import Any

import numpy as np

from dal_jax._compat import exact_arithmetic
from dal_jax._errors import InputError
from dal_jax._typing import Array, Float, PyTree
from dal_jax.localizers._localizer import Localizer, from_score

BATCH_SIZE = 32  # default number of images of one call
DTYPES = ("float64", "float32")
# Two computations of one score agree to the square root of the resolution, relative to the largest
# score: rounding is far below, and what depends on chance or on other images far above.
ROOT = 0.5

BatchFunction = Callable[[Any], Any]  # (B, H, W, C) -> (B, H, W), numpy arrays


@dataclass(frozen=True, eq=False)
class CallableScore:
    """Score function of a localizer that is called on the host, see `from_callable`.

    Example:
        >>> def brightness(images):
        ...     return images.mean(axis=-1)
        >>> score = CallableScore(brightness, 4, brightness, "float64", "float64")
        >>> score.score_batch(np.ones((3, 2, 2, 1))).shape
        (3, 2, 2)
    """

    function: InitVar[BatchFunction]  # not a field: a run knows it by its identity
    size: InitVar[int]  # largest number of images of one call
    identity: Any  # what identifies the function in a run: its name, or itself
    dtype: str  # of the images that it gets
    resolution: str  # precision of its scores

    def __post_init__(self, function: BatchFunction, size: int) -> None:
        object.__setattr__(self, "_function", function)
        object.__setattr__(self, "batch_size", size)

    def score_batch(self, images: Float[np.ndarray, "k H W C"]) -> Float[np.ndarray, "k H W"]:
        """Call the function with a copy of the images, which it may change.

        Args:
            images: (k, H, W, C), float32 or float64.

        Returns:
            (k, H, W), float64; NaN and infinite values are left to the status of the test.

        Raises:
            InputError: The function fails, or its scores have another shape or are no real numbers.
        """
        this: Any = self
        return _call(this._function, _name(self.identity), images.astype(self.dtype)).astype(float)

    def __call__(self, params: PyTree, draws: Any, x: Array) -> Array:
        """Refuse to be traced by JAX, as the exact engines and first windows ask for.

        Args:
            params: Unused.
            draws: Unused.
            x: (H, W, C), the image.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"score function {_name(self.identity)!r} is not JAX: expected engine 'adaptive' "
            "without first_window, which only calls it"
        )


def from_callable(
    function: BatchFunction,
    image_shape: tuple[int, ...],
    threshold: float,
    *,
    dtype: str = "float64",
    batch_size: int = BATCH_SIZE,
    name: str | None = None,
    example: Float[np.ndarray, "H W C"] | None = None,
) -> Localizer:
    """Wrap a score function on numpy arrays, in any framework or process, as a localizer.

    The adaptive engine calls it with batches of images. No gradients are needed; the exact engines
    refuse it. At once it is called three times, to check that its scores are numbers of the right
    shape, the same at each call, and independent of the other images of a batch.

    If the scores have no more digits than float32, the search takes them to be rounded as float32.
    The truncation set is that of the function as it rounds, and its ends are as sharp as that.

    Args:
        function: (B, H, W, C) -> (B, H, W), with B from 1 to `batch_size`. It gets an array of its
            own, and may return anything that numpy can convert.
        image_shape: Shape (H, W, C) of the images.
        threshold: Threshold, positive, in units of the score, fixed before an image is tested.
        dtype: Type of the images that the function gets, "float64" or "float32".
        batch_size: Largest number of images of one call.
        name: Name and version of the function, by which a run directory knows it; None for the
            function's own name, which a lambda or a method of a trained object lacks.
        example: Image (H, W, C) with which it is checked; None draws pixels between 0 and 1.

    Returns:
        The localizer; its reconstructions are NaN. An image with scores that are not finite has the
        status NON_FINITE.

    Raises:
        InputError: An argument does not fit, the function fails, its scores have another shape or
            type, or they are not a function of one image. Also in a test, where the function fails.

    Example:
        >>> def brightness(images):
        ...     return images.mean(axis=-1)
        >>> localizer = from_callable(brightness, (2, 2, 1), threshold=0.5)
        >>> localizer.region(np.eye(2)[..., None]).tolist()
        [[True, False], [False, True]]
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise InputError(f"batch_size: got {batch_size!r}, expected 1 or more")
    if not callable(function):
        raise InputError(f"function: got {type(function).__name__}, expected a function of images")
    localizer = from_score(_not_called, image_shape, threshold)
    images = probes(localizer.image_shape, example).astype(dtype)
    identity = function if name is None else name
    resolution = _check(function, _name(identity), images, alone=batch_size == 1)
    score = CallableScore(function, int(batch_size), identity, dtype, resolution)
    return localizer._replace(score_fn=score)


def probes(
    shape: tuple[int, int, int], example: Float[np.ndarray, "H W C"] | None = None
) -> Float[np.ndarray, "3 H W C"]:
    """Return three images for the check of a function, within the range of the first one.

    Args:
        shape: Shape (H, W, C).
        example: First image; None draws pixels between 0 and 1, always the same.

    Returns:
        The example; a paler copy, whose scores any statistic of all three would change; its mirror
        image.

    Raises:
        InputError: The example has another shape, or values that are not finite.
    """
    if example is None:
        image = np.random.default_rng(0).uniform(size=shape)
    else:
        image = np.asarray(example, np.float64)
        if image.shape != shape or not np.isfinite(image).all():
            raise InputError(f"example: got shape {image.shape}, expected {shape} of finite pixels")
    mean = image.mean()
    return np.stack([image, mean + 0.5 * (image - mean), image[::-1]])


def _check(function: BatchFunction, name: str, images: np.ndarray, alone: bool) -> str:
    """Refuse a function that is not one of single images; return the precision of its scores."""
    one, again = (_call(function, name, images[1:2]) for _ in range(2))
    whole = images.dtype == np.float64 and one.dtype != np.float32
    digits = whole and not np.array_equal(one, one.astype(np.float32), equal_nan=True)
    resolution = "float64" if digits else "float32"
    if not _agree(one, again, resolution):
        raise InputError(
            f"score function {name!r} has other scores when the same image comes again, expected "
            "the same: is dropout on, is it in training mode, does it draw random numbers?"
        )
    if not alone and not _agree(one, _call(function, name, images)[1:2], resolution):
        raise InputError(
            f"score function {name!r} has other scores for an image among others than alone, "
            "expected the same: is batch norm in training mode, does it scale by the batch?"
        )
    return resolution


def _agree(one: np.ndarray, other: np.ndarray, resolution: str) -> bool:
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(other)):
        return False
    a, b = (scores[finite].astype(np.float64) for scores in (one, other))
    scale = np.abs(a).max(initial=0.0)
    return bool(np.all(np.abs(a - b) <= np.finfo(resolution).eps ** ROOT * scale))


def _call(function: BatchFunction, name: str, images: np.ndarray) -> np.ndarray:
    """Return the scores of a copy of the images, or refuse them."""
    given = np.array(images, order="C")
    try:
        with exact_arithmetic():  # JAX in the function computes in the precision of the images
            score = np.array(function(given))
    except Exception as error:
        told = " ".join(str(error).split())[:300]
        raise InputError(
            f"score function {name!r} failed on images {images.shape} of {images.dtype}: "
            f"{type(error).__name__}{told and ': '}{told}"
        ) from error
    half = score.dtype.kind == "f" and score.dtype.itemsize < 4
    if score.dtype.kind not in "fiub" or half:
        expected = "expected float64 or float32"
        raise InputError(f"score function {name!r} has scores of type {score.dtype}, {expected}")
    if score.shape != images.shape[:3]:
        raise InputError(
            f"score function {name!r} has scores of shape {score.shape} for images "
            f"{images.shape}, expected {images.shape[:3]}"
        )
    return score


def _name(identity: Any) -> str:
    if isinstance(identity, str):
        return identity
    return getattr(identity, "__qualname__", type(identity).__name__)


def _not_called(params: PyTree, draws: Any, x: Array) -> Array:
    raise NotImplementedError
