"""Covariances in files, and the texts that name one on the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dal_jax._errors import InputError
from dal_jax._files import atomic_path, read_array, read_arrays
from dal_jax.noise._covariance import Covariance, _Diagonal, _Iid, diagonal, iid
from dal_jax.noise._dense import _Dense, _Kronecker, _LowRank, dense, kronecker, low_rank
from dal_jax.noise._scaled import _Scaled, scaled
from dal_jax.noise._stationary import (
    _Ar1,
    _Circulant,
    _Stationary,
    _Toeplitz,
    ar1,
    circulant,
    stationary,
    toeplitz,
)

# The name in files, the class, and the constructor whose arguments are fields of the class.
_KINDS: tuple[tuple[str, type, Callable[..., Covariance], tuple[str, ...]], ...] = (
    ("iid", _Iid, iid, ("sigma",)),
    ("diagonal", _Diagonal, diagonal, ("variance",)),
    ("ar1", _Ar1, ar1, ("rho", "sigma")),
    ("toeplitz", _Toeplitz, toeplitz, ("autocovariance",)),
    ("stationary", _Stationary, stationary, ("autocovariance",)),
    ("circulant", _Circulant, circulant, ("autocovariance",)),
    ("low_rank", _LowRank, low_rank, ("factors", "variance")),
    ("kronecker", _Kronecker, kronecker, ("rows", "columns", "channels")),
    ("dense", _Dense, dense, ("matrix",)),
    ("scaled", _Scaled, scaled, ("covariance", "factor")),
)
_SCALARS = ("sigma", "rho")
_NESTED = "covariance"  # the only argument that is an operator itself
_DEEPEST = 8  # largest depth of operators within operators in one file
_FORMS = "iid:SIGMA, ar1:RHO:SIGMA or a file name ending in .npy or .npz"


def save_noise(path: str | Path, covariance: Covariance) -> None:
    """Write a covariance as .npz, whole or not at all.

    The archive holds the entry `kind` and one array of numbers for each argument of the constructor
    of that name; for `scaled`, the entries of the inner operator follow as `covariance.kind` and so
    on. There are no pickled objects in it.

    Args:
        path: File name ending in .npz; its folder is created if missing.
        covariance: Operator of this package.

    Raises:
        InputError: The ending is another one, the operator belongs to another package, or the file
            cannot be written.

    Example:
        >>> save_noise("noise.npz", iid(2.0))  # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise InputError(f"path: got {str(path)!r}, expected a file name ending in .npz")
    entries = _entries(covariance, "")
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **entries)


def load_noise(path: str | Path) -> Covariance:
    """Return the covariance of a file of `save_noise`, checked as if built anew.

    Args:
        path: Path of an .npz file.

    Returns:
        The covariance.

    Raises:
        InputError: The file is unreadable or damaged, or its kind does not take the values.

    Example:
        >>> load_noise("noise.npz")  # doctest: +SKIP
    """
    entries = read_arrays(path)
    try:
        return _operator(entries, "", 0)
    except InputError as error:
        raise InputError(f"file {str(path)!r}: {error}") from None


def _entries(covariance: Covariance, prefix: str) -> dict[str, Any]:
    known = {owner: (kind, names) for kind, owner, _, names in _KINDS}
    if type(covariance) not in known:
        name = type(covariance).__name__
        raise InputError(f"covariance is of type {name}, expected an operator of dal_jax.noise")
    kind, names = known[type(covariance)]
    entries: dict[str, Any] = {f"{prefix}kind": np.array(kind)}
    for name in names:
        value = getattr(covariance, name)
        if name == _NESTED:
            entries |= _entries(value, f"{prefix}{name}.")
        else:
            entries[prefix + name] = np.asarray(value, dtype=np.float64)
    return entries


def _operator(entries: dict[str, np.ndarray], prefix: str, depth: int) -> Covariance:
    if depth > _DEEPEST:
        raise InputError(f"the file holds more than {_DEEPEST} operators within each other")
    kind = entries.get(f"{prefix}kind")
    known = {name: (build, arguments) for name, _, build, arguments in _KINDS}
    if kind is None or kind.ndim or str(kind) not in known:
        shown = " is missing" if kind is None else f": got {repr(kind.tolist())[:40]}"
        raise InputError(f"the entry {prefix}kind{shown}, expected one of {', '.join(known)}")
    build, arguments = known[str(kind)]
    values: dict[str, Any] = {}
    for name in arguments:
        if name == _NESTED:
            values[name] = _operator(entries, f"{prefix}{name}.", depth + 1)
        else:
            values[name] = _number(entries, prefix + name, name in _SCALARS)
    return build(**values)


def _number(entries: dict[str, np.ndarray], name: str, scalar: bool) -> Any:
    """Return an entry as an array of numbers, or as a float where it has no axes."""
    if name not in entries:
        raise InputError(f"the entry {name} is missing")
    array = entries[name]
    if array.dtype.kind not in "fiu":
        raise InputError(f"the entry {name} holds {array.dtype}, expected real numbers")
    if scalar and array.ndim:
        raise InputError(f"the entry {name} has {array.ndim} axes, expected one number")
    return array.astype(np.float64) if array.ndim else float(array)


def parse_noise(text: str, shape: tuple[int, ...] | None = None) -> Covariance:
    """Return the covariance that a text names.

    "iid:SIGMA" is `iid(SIGMA)`, "ar1:RHO:SIGMA" is `ar1(RHO, SIGMA)`. Other texts name a file: .npz
    from `save_noise` for every operator, or .npy with variances (H, W, C) or (H, W), or with a
    matrix (n, n). A square array is the matrix unless it has the size of the image in `shape`.

    Args:
        text: Text of one of these forms.
        shape: Shape (H, W, C) of the images, against which the covariance is checked; None skips
            the check.

    Returns:
        The covariance.

    Raises:
        InputError: The form is another one, a number is out of range, the file is unreadable, or
            the size is wrong.

    Example:
        >>> parse_noise("iid:2").apply(np.ones((1, 1, 1))).item()
        4.0
    """
    try:
        noise = _named(text, shape)
        if shape is not None:
            noise.check(shape)
    except InputError as error:
        raise InputError(f"noise {text!r}: {error}") from None
    return noise


def _named(text: str, shape: tuple[int, ...] | None) -> Covariance:
    kind, *fields = text.split(":")
    if kind == "iid":
        return iid(*_numbers(fields, 1))
    if kind == "ar1":
        return ar1(*_numbers(fields, 2))
    if text.endswith(".npz"):
        return load_noise(text)
    if not text.endswith(".npy"):
        raise InputError(f"expected {_FORMS}")
    values = read_array(text)
    if values.dtype.kind not in "fiu":
        raise InputError(f"the file holds {values.dtype}, expected real numbers")
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
