"""The command line's way to name a covariance."""

from tokenize import TokenError  # numpy lets it out of a spoiled header

import numpy as np

from dal_jax._errors import InputError
from dal_jax.noise._ar1 import ar1
from dal_jax.noise._covariance import Covariance, diagonal, iid
from dal_jax.noise._dense import dense
from dal_jax.noise._files import load_noise

_FORMS = "iid:SIGMA, ar1:RHO:SIGMA or a file name ending in .npy or .npz"


def parse_noise(text: str, shape: tuple[int, ...] | None = None) -> Covariance:
    """Returns the covariance that a text names.

    "iid:SIGMA" is `iid(SIGMA)`, "ar1:RHO:SIGMA" is `ar1(RHO, SIGMA)`. Other texts name a file: .npz
    as `save_noise` writes it for every operator, or .npy with variances (H, W, C) or (H, W), or
    with a matrix (n, n). A square array is the matrix unless `shape` says that it has the size of
    the image.

    Args:
        text: one of these forms.
        shape: (H, W, C) of the images; the covariance is checked against it where given.

    Returns:
        Covariance.

    Raises:
        InputError: another form, a number out of range, an unreadable file, or a wrong size.

    Example:
        >>> parse_noise("iid:2").apply(np.ones((1, 1, 1))).item()
        4.0
    """
    try:
        noise = _build(text, shape)
        if shape is not None:
            noise.check(shape)
    except InputError as error:
        raise InputError(f"noise {text!r}: {error}") from None
    return noise


def _build(text: str, shape: tuple[int, ...] | None) -> Covariance:
    kind, *fields = text.split(":")
    if kind == "iid":
        return iid(*_numbers(fields, 1))
    if kind == "ar1":
        return ar1(*_numbers(fields, 2))
    if text.endswith(".npz"):
        return load_noise(text)
    if not text.endswith(".npy"):
        raise InputError(f"expected {_FORMS}")
    values = _load(text)
    is_map = shape is not None and values.shape == tuple(shape[:2])
    if values.ndim == 2 and (is_map or values.shape[0] != values.shape[1]):
        values = values[:, :, None]
    return dense(values) if values.ndim == 2 else diagonal(values)


def _numbers(fields: list[str], count: int) -> list[float]:
    try:
        numbers = [float(field) for field in fields]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise InputError(f"expected {_FORMS}")
    return numbers


def _load(path: str) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise InputError(f"the file cannot be read ({error.strerror or error})") from None
    except (ValueError, EOFError, SyntaxError, TokenError, MemoryError):
        raise InputError("the file is not a complete .npy array of numbers") from None
    if values.dtype.kind not in "fiu":
        raise InputError(f"the file holds {values.dtype}, expected real numbers")
    return values
