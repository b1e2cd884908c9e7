"""Data of the demonstration: views of real brick faces, some of them with artificial defects.

The photograph of a brick wall is `brick.png` in scikit-image's wheel (public domain, CC0). A view
is a square of 16x16 pixels on the face of a brick. Every third band of the photograph is reserved
for test and reference views and excluded from training.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dal_jax._errors import InputError
from dal_jax._typing import Bool, Float
from dal_jax.images import read_image

SIDE = 16  # side of a view, pixels
_BORDER = 1  # width of the margin by which a view is enlarged to be standardized, pixels
_WIDE = SIDE + 2 * _BORDER
_BAND = 32  # height of a band, rows; bands 2, 5, 8, ... are for testing
_FACE = 0.0085  # largest standard deviation of the log grey value in a square without mortar
_AMPLITUDE = 12.0  # amplitude of a defect, in standard deviations of the brick's grain
KINDS = ("dark stain", "bright spot", "dark scratch")


class View(NamedTuple):
    """View to be tested, with its true defect."""

    image: Float[np.ndarray, "H W C"]  # standardized, no unit
    truth: Bool[np.ndarray, "H W"]  # pixels of the artificial defect
    kind: str  # "normal", or the kind of defect, one of `KINDS`


class Scene(NamedTuple):
    """Tested views and references of the demonstration."""

    views: list[View]  # normal views first
    references: Float[np.ndarray, "K H W C"]  # normal views of other places


def photograph() -> Float[np.ndarray, "H W"]:
    """Read the photograph from scikit-image's wheel, offline and without importing the package.

    Returns:
        Log grey values (H, W).

    Raises:
        InputError: The package scikit-image is not installed or has no such file.
    """
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise InputError('demo: needs scikit-image: pip install "dal-jax[images]"')
    return np.log(read_image(Path(package.origin).parent / "data" / "brick.png")[..., 0] + 1e-3)


def training_views(photo: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "N H W C"]:
    """Cut overlapping normal views from the training bands, each in four orientations.

    Args:
        photo: (H, W) log grey values.

    Returns:
        Standardized views (N, 16, 16, 1).
    """
    faces = _faces(photo)[::2, ::2]
    corners = [(2 * int(row), 2 * int(column)) for row, column in np.argwhere(faces)]
    ours = [c for c in corners if c[0] // _BAND % 3 != 2 and (c[0] + _WIDE - 1) // _BAND % 3 != 2]
    views = np.stack([_standardized(_square(photo, corner)) for corner in ours])
    mirrored = np.concatenate([views, views[:, ::-1]])
    return np.concatenate([mirrored, mirrored[:, :, ::-1]])


def scene(photo: Float[np.ndarray, "H W"], count: int, num_references: int, seed: int) -> Scene:
    """Cut views from the test bands and add defects to the second half of them.

    Args:
        photo: (H, W) log grey values.
        count: Number of views to test.
        num_references: Number of further normal views, the references.
        seed: Seed of the places of the views, and of the positions and forms of the defects.

    Returns:
        The views and the references; no two share a pixel.

    Raises:
        InputError: The photograph has too few places.
    """
    rng = np.random.default_rng(seed)
    corners = _test_corners(photo)
    if count + num_references > len(corners):
        raise InputError(f"demo: {len(corners)} places are too few for {count} views")
    places = [corners[k] for k in rng.permutation(len(corners))]
    views = []
    for k, place in enumerate(places[:count]):
        square = _square(photo, place)
        kind = "normal" if k < count // 2 else KINDS[k % len(KINDS)]
        mask = np.zeros(square.shape) if kind == "normal" else _mask(kind, rng)
        sign = 1 if kind == "bright spot" else -1
        image = _standardized(square + sign * _AMPLITUDE * _scale(_flattened(square)) * mask)
        views.append(View(image, _inner(mask > 0.5), kind))
    spare = places[count : count + num_references]
    return Scene(views, np.stack([_standardized(_square(photo, place)) for place in spare]))


def _faces(photo: Float[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Return for each corner whether its square is free of mortar."""
    squares = np.lib.stride_tricks.sliding_window_view(photo, (_WIDE, _WIDE))
    return np.stack([_flattened(row).std(axis=(1, 2)) < _FACE for row in squares])


def _test_corners(photo: Float[np.ndarray, "H W"]) -> list[tuple[int, int]]:
    """Return corners of squares without mortar that lie in the test bands and do not overlap."""
    taken = np.zeros(photo.shape, bool)
    corners = []
    for row, column in np.argwhere(_faces(photo)):
        inside = row // _BAND % 3 == 2 and row % _BAND + _WIDE <= _BAND
        if inside and not _square(taken, (row, column)).any():
            _square(taken, (row, column))[:] = True
            corners.append((int(row), int(column)))
    return corners


def _square(photo: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
    row, column = corner
    return photo[row : row + _WIDE, column : column + _WIDE]


@cache
def _background() -> Float[np.ndarray, "n 6"]:
    """Return orthonormal quadratic polynomials on a square."""
    u, v = (axis.ravel() for axis in np.mgrid[-1 : 1 : _WIDE * 1j, -1 : 1 : _WIDE * 1j])
    return np.linalg.qr(np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=-1))[0]


def _flattened(squares: Float[np.ndarray, "*N H W"]) -> Float[np.ndarray, "*N H W"]:
    """Subtract the quadratic background."""
    flat = squares.reshape(*squares.shape[:-2], -1)
    return (flat - flat @ _background() @ _background().T).reshape(squares.shape)


def _scale(flat: Float[np.ndarray, "H W"]) -> float:
    """Return the standard deviation, estimated from a median that a small defect hardly changes."""
    return float(np.median(np.abs(flat)) / 0.6745)


def _inner(square: np.ndarray) -> np.ndarray:
    return square[_BORDER:-_BORDER, _BORDER:-_BORDER]


def _standardized(square: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W C"]:
    flat = _flattened(square)
    return _inner(flat / _scale(flat))[..., None]


def _mask(kind: str, rng: np.random.Generator) -> Float[np.ndarray, "H W"]:
    """Draw a defect in a square: 1 inside and 0 outside, with an edge of about a pixel."""
    row, column = rng.uniform(6, _WIDE - 7, size=2)
    angle = rng.uniform(0, np.pi)
    i, j = np.mgrid[:_WIDE, :_WIDE]
    along = (i - row) * np.sin(angle) + (j - column) * np.cos(angle)
    across = (i - row) * np.cos(angle) - (j - column) * np.sin(angle)
    length, width = (5.0, 0.9) if kind == "dark scratch" else rng.uniform(1.5, 2.3, size=2)
    radius = np.sqrt((along / length) ** 2 + (across / width) ** 2)
    return 1.0 / (1.0 + np.exp(8.0 * (radius - 1.0)))
