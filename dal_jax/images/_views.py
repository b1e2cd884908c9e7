"""The preparation of images: its settings, and the places, background and scale of the views."""

import importlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np

from dal_jax._errors import InputError
from dal_jax._typing import Float

# Least foreground of a view in pixels: twice the number of coefficients of its background.
FOREGROUND = 12
# A deviation below this share of the largest value is rounding.
_CONTRAST = 1e-9
_CHOICES = {
    "view": ("resize", "crop", "tile"),
    "intensity": ("log", "raw"),
    "background": ("quadratic", "none"),
    "scale": ("view", "train", "none"),
    "foreground": ("none", "otsu", "nonzero"),
}


@dataclass(frozen=True)
class Preparation:
    """Settings by which images of any size become square views of one size.

    The steps in order are interior, views, intensity, background and scale. "view" scales each view
    to mean 0 and standard deviation 1, "train" by the mean and deviation of the training views.

    Args:
        size: Side of a view in pixels, 2 or more.
        view: "resize" maps the interior to one view; "crop" takes its middle; "tile" covers it.
        intensity: "log" (from 1/255 of the brightest training pixels upwards) or "raw".
        background: "quadratic" subtracts a polynomial of degree 2 fitted to each view and channel;
            "none" subtracts nothing.
        scale: "view", "train" or "none".
        border: Number of pixels left out at each side of the image, 0 or more.
        grey: True to average the channels.
        overlap: Least number of pixels of a view that neighbouring tiles share, below `size`.
        reduce: Side of the square of image pixels averaged into one pixel of a crop or tile.
        foreground: Pixels that may be tested: "none" (all), or those that are "otsu" (brighter than
            Otsu's threshold of their image) or "nonzero" in 95% of the training images, the same in
            every image, because a mask of the tested image's own would depend on the noise that is
            tested. Background and scale are then fitted on these alone, and the others are set to
            0. Not available with view "tile", whose pixels have no place in common.

    Raises:
        InputError: A value is out of its range.

    Example:
        >>> Preparation(size=32, view="tile", border=8, overlap=8, reduce=3).extent
        96
    """

    size: int = 32
    view: Literal["resize", "crop", "tile"] = "resize"
    intensity: Literal["log", "raw"] = "log"
    background: Literal["quadratic", "none"] = "quadratic"
    scale: Literal["view", "train", "none"] = "view"
    border: int = 0
    grey: bool = True
    overlap: int = 0
    reduce: int = 1
    foreground: Literal["none", "otsu", "nonzero"] = "none"

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} {getattr(self, name)!r}, expected one of {list(known)}")
        least = {"size": 2, "border": 0, "overlap": 0, "reduce": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise InputError(f"{name} {value!r}, expected a whole number of {low} or more")
        if not isinstance(self.grey, bool):
            raise InputError(f"grey {self.grey!r}, expected true or false")
        if self.overlap >= self.size:
            raise InputError(f"overlap {self.overlap}, expected less than the size {self.size}")
        if self.view == "tile" and self.foreground != "none":
            raise InputError(
                f"foreground {self.foreground!r} with view 'tile', expected 'resize' or 'crop': "
                "the mask is that of the training images, pixel by pixel"
            )
        if self.view == "resize" and self.reduce != 1:
            raise InputError(f"reduce {self.reduce} with view 'resize', expected 'crop' or 'tile'")

    @property
    def extent(self) -> int:
        """Return the side of a crop or tile in pixels of the image."""
        return self.size * self.reduce


@dataclass(frozen=True)
class Fitted:
    """Preparation with the statistics of its training images; JSON keeps it exactly.

    Example:
        >>> import json
        >>> fitted = Fitted(Preparation(size=8), 1, (0.0, 100.0, 255.0), (0.0,), 1.0, 20)
        >>> fitted.floor
        1.0
        >>> Fitted.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted
        True
    """

    preparation: Preparation
    channels: int  # channels of a view
    quantiles: tuple[float, float, float]  # 0.1, 50 and 99.9% of the training pixels
    mean: tuple[float, ...]  # per channel, of training views before scaling; for scale "train"
    sd: float  # of training views about that mean, over all channels; for scale "train"
    num_images: int  # number of training images
    dimmest: float | None = None  # least of the training images' own 99.9% quantiles
    # Pixels of a view that may be tested: lengths of runs, row by row, the first of them outside.
    foreground: tuple[int, ...] = ()  # empty: all

    @property
    def shown(self) -> np.ndarray:
        """Return the pixels of every view that may be tested, bool (size, size)."""
        size = self.preparation.size
        runs = self.foreground or (0, size * size)
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size, size)

    @property
    def floor(self) -> float:
        """Return the value to which lower pixels are raised before the logarithm."""
        return self.quantiles[2] / 255

    def to_dict(self) -> dict[str, Any]:
        """Return the preparation as a dictionary for JSON.

        Returns:
            The fields, with tuples as lists; the input of `from_dict`.
        """
        listed = {name: list(getattr(self, name)) for name in ("quantiles", "mean", "foreground")}
        return {**asdict(self), **listed}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Fitted":
        """Create a preparation from the dictionary of `to_dict`.

        Args:
            data: Dictionary of `to_dict`, perhaps by way of JSON.

        Returns:
            The original preparation with its statistics.

        Raises:
            InputError: Keys are missing or unknown, or a value is out of its range.
        """
        need, inner = {f.name for f in fields(cls)}, {f.name for f in fields(Preparation)}
        found = data.get("preparation") if isinstance(data, dict) else None
        if not isinstance(found, dict) or set(data) != need or not set(found) <= inner:
            raise InputError(f"preparation: its keys do not fit, expected {sorted(need)}")
        try:
            low, middle, high = (float(value) for value in data["quantiles"])
            return cls(
                Preparation(**found),
                int(data["channels"]),
                (low, middle, high),
                tuple(float(v) for v in data["mean"]),
                float(data["sd"]),
                int(data["num_images"]),
                None if data["dimmest"] is None else float(data["dimmest"]),
                _runs(data["foreground"], found.get("size")),
            )
        except (TypeError, ValueError) as error:
            raise InputError(f"preparation: {error}") from error


def _runs(values: Any, size: Any) -> tuple[int, ...]:
    runs = tuple(int(value) for value in values)
    if runs and (min(runs) < 0 or sum(runs) != size * size):
        raise ValueError(f"foreground of {sum(runs)} pixels, expected {size} x {size}")
    return runs


def interior(preparation: Preparation, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the height and width of the image without its border."""
    height, width = (n - 2 * preparation.border for n in shape[:2])
    least = 2 if preparation.view == "resize" else preparation.extent
    if min(height, width) < least:
        border = f" without a border of {preparation.border}" if preparation.border else ""
        raise InputError(
            f"image of {shape[0]} by {shape[1]} pixels{border}: "
            f"view {preparation.view!r} needs {least} by {least}"
        )
    return height, width


def windows(preparation: Preparation, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return corners and extents (V, 2) of the views, in pixels of the image."""
    sides = interior(preparation, shape)
    if preparation.view == "resize":
        return np.array([[preparation.border] * 2]), np.array([sides])
    extent = preparation.extent
    if preparation.view == "crop":
        corners = np.array([[(side - extent) // 2 for side in sides]])
    else:
        stride = (preparation.size - preparation.overlap) * preparation.reduce
        rows, columns = (starts(side, extent, stride) for side in sides)
        corners = np.array([(row, column) for row in rows for column in columns])
    return corners + preparation.border, np.full((len(corners), 2), extent)


def starts(side: int, extent: int, stride: int) -> list[int]:
    """Return the first pixel of each tile of a side; the last tile is moved inwards to fit."""
    return sorted({min(at, side - extent) for at in range(0, side - extent + stride, stride)})


def cut(pixels: np.ndarray, corner: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Cut out the part of an image that a view covers.

    Args:
        pixels: Image (H, W, ...).
        corner: Row and column of the first pixel of the view.
        extent: Height and width of the view, in pixels of the image.

    Returns:
        The part (height, width, ...), a view of the array.

    Example:
        >>> cut(np.arange(6).reshape(2, 3), np.array([0, 1]), np.array([2, 2])).tolist()
        [[1, 2], [4, 5]]
    """
    (top, left), (height, width) = corner, extent
    return pixels[top : top + height, left : left + width]


def shrink(part: np.ndarray, preparation: Preparation) -> np.ndarray:
    """Resize the pixels (h, w, C) of a window to the size of a view, anti-aliased."""
    size, each = preparation.size, preparation.reduce
    if part.shape[:2] == (size * each, size * each):
        return part.reshape(size, each, size, each, -1).mean((1, 3))
    # Imported late: the import is slow, and only resizing needs it.
    transform = importlib.import_module("skimage.transform")
    return transform.resize(
        part, (size, size), order=1, mode="reflect", anti_aliasing=True, preserve_range=True
    )


def shrink_mask(part: np.ndarray, size: int) -> np.ndarray:
    """Mark each pixel of a view that touches a marked pixel (h, w) of its window."""
    rows = np.stack([part[low:high].any(0) for low, high in _cells(part.shape[0], size)])
    return np.stack([rows[:, low:high].any(1) for low, high in _cells(part.shape[1], size)], axis=1)


def enlarge(grid: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Enlarge a map of a view to the pixels of the image that the view covers.

    Args:
        grid: Map (h, w) of the view.
        extent: Height and width of the view, in pixels of the image.

    Returns:
        Map (height, width); each pixel has the value of the view's pixel that it lies in.

    Example:
        >>> enlarge(np.array([[0, 1], [2, 3]]), np.array([2, 4])).tolist()
        [[0, 0, 1, 1], [2, 2, 3, 3]]
    """
    sides = zip(extent, grid.shape[:2], strict=True)
    rows, columns = (((2 * np.arange(n) + 1) * size) // (2 * n) for n, size in sides)
    return grid[np.ix_(rows, columns)]


def footprint(region: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Mark the pixels of the image that a region of a view covers.

    Args:
        region: Mask (h, w) of the view.
        extent: Height and width of the view, in pixels of the image.

    Returns:
        Mask (height, width): `enlarge` of the region. Where a view has more pixels than its image
        and nothing of the region is left, the pixels in which the region's pixels have their
        centres; never empty unless the region is.

    Example:
        >>> fine = np.array([[False, True, False], [False] * 3, [False] * 3])
        >>> enlarge(fine, np.array([1, 1])).any().item()
        False
        >>> footprint(fine, np.array([1, 1])).tolist()
        [[True]]
    """
    covered = enlarge(region, extent)
    if not covered.any():
        rows, columns = (
            (2 * at + 1) * side // (2 * size)
            for at, side, size in zip(np.nonzero(region), extent, region.shape, strict=True)
        )
        covered[rows, columns] = True
    return covered


def tile_weights(preparation: Preparation) -> np.ndarray:
    """Return weights (size, size) of a tile where tiles meet, which fall off towards its edges."""
    edge = np.minimum(np.arange(preparation.size), np.arange(preparation.size)[::-1]) + 1
    ramp = np.minimum(edge, preparation.overlap + 1) / (preparation.overlap + 1)
    return np.outer(ramp, ramp)


def _cells(side: int, size: int) -> list[tuple[int, int]]:
    """Return the first and last + 1 pixel of a side that each of `size` cells touches."""
    return [(k * side // size, -((k + 1) * side // -size)) for k in range(size)]


class Views(NamedTuple):
    """The views of one image.

    Example:
        >>> from dal_jax.images import fit, views
        >>> ramp = np.arange(48.0).reshape(6, 8, 1) ** 3
        >>> found = views(fit(Preparation(size=4, view="tile", intensity="raw"), [ramp]), ramp)
        >>> found.pixels.shape, found.corners[-1].tolist(), found.extents[-1].tolist()
        ((4, 4, 4, 1), [2, 4], [4, 4])
    """

    pixels: np.ndarray  # (V, size, size, C) float64
    corners: np.ndarray  # (V, 2) row and column of the first pixel of the image covered
    extents: np.ndarray  # (V, 2) height and width covered, in pixels of the image
    scale: np.ndarray  # (V,) divisor of the pixels; NaN for a view without foreground
    foreground: np.ndarray  # (V, size, size) bool, pixels that may be tested


def as_channels(preparation: Preparation, image: np.ndarray) -> np.ndarray:
    """Return the image as float64 (H, W, C), averaged over channels if the settings ask for it."""
    pixels = np.asarray(image, np.float64)
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise InputError(f"image of shape {pixels.shape}, expected (H, W, C)")
    if not np.isfinite(pixels).all():
        raise InputError("image with NaN or infinite pixels")
    if preparation.intensity == "log" and pixels.min() < 0:
        raise InputError("image with negative pixels, expected none for intensity 'log'")
    return pixels.mean(-1, keepdims=True) if preparation.grey else pixels


def cut_views(
    fitted: Fitted,
    pixels: np.ndarray,
    corners: np.ndarray,
    extents: np.ndarray,
    own: bool = False,
) -> Views:
    """Cut and prepare the views of a checked image; with `own`, by its own foreground."""
    found = list(flat_views(fitted, pixels, corners, extents, own))
    scaled = [_scaled(fitted, view, shown) for view, shown in found]
    return Views(
        np.stack([view for view, _ in scaled]),
        corners,
        extents,
        np.array([scale for _, scale in scaled]),
        np.stack([shown for _, shown in found]),
    )


def flat_views(
    fitted: Fitted,
    pixels: np.ndarray,
    corners: np.ndarray,
    extents: np.ndarray,
    own: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Return each view of a checked image after intensity and background, and its foreground.

    Tested views have the foreground of the training images: one taken from the view itself would
    depend on its noise. The image's own foreground serves for training views (`own`).
    """
    preparation = fitted.preparation
    if pixels.shape[-1] != fitted.channels:
        found, expected = pixels.shape[-1], fitted.channels
        raise InputError(f"image of {found} channels, expected {expected} as in training")
    places = list(zip(corners, extents, strict=True))
    shown = own_foregrounds(preparation, pixels, places) if own else [fitted.shown] * len(places)
    if not any(part.any() for part in shown):
        raise InputError("image without foreground")
    for place, part in zip(places, shown, strict=True):
        yield _flat(fitted, shrink(cut(pixels, *place), preparation), part), part


def own_foregrounds(
    preparation: Preparation, pixels: np.ndarray, places: list[tuple[np.ndarray, np.ndarray]]
) -> list[np.ndarray]:
    """Return the pixels (size, size) of each view of which half or more is foreground."""
    if preparation.foreground == "none":
        return [np.ones((preparation.size, preparation.size), bool) for _ in places]
    mask = _foreground(preparation, pixels).astype(np.float64)[..., None]
    shown = [shrink(cut(mask, *place), preparation)[..., 0] >= 0.5 for place in places]
    return [part & (part.sum() >= FOREGROUND) for part in shown]


def _foreground(preparation: Preparation, pixels: np.ndarray) -> np.ndarray:
    if preparation.foreground == "nonzero":
        return (pixels != 0).any(-1)
    grey = pixels.mean(-1)
    if np.ptp(grey) == 0:
        return np.zeros(grey.shape, bool)
    # Imported late: the import is slow, and only this choice needs it.
    return grey > importlib.import_module("skimage.filters").threshold_otsu(grey)


def with_change(
    fitted: Fitted, view: Float[np.ndarray, "H W C"], change: Float[np.ndarray, "H W C"]
) -> Float[np.ndarray, "H W C"]:
    """Return a view as it would be if its pixels had changed before background and scale.

    The background of the change is subtracted, and where each view has its own scale, the changed
    view keeps the mean and the standard deviation of the given one.

    Args:
        fitted: Fitted preparation.
        view: (H, W, C) prepared view.
        change: (H, W, C) change of its pixels after the intensity, in units of the view.

    Returns:
        The changed view (H, W, C), 0 outside the foreground.

    Example:
        >>> how = Preparation(size=2, intensity="raw", background="none")
        >>> fitted = Fitted(how, 1, (0.0, 0.5, 1.0), (0.0,), 1.0, 20)
        >>> view, change = np.array([[1.0, -1.0], [1.0, -1.0]]), np.array([[2.0, 0.0], [0.0, 0.0]])
        >>> with_change(fitted, view[..., None], change[..., None])[..., 0].round(2).tolist()
        [[1.51, -0.9], [0.3, -0.9]]
    """
    shown, preparation = fitted.shown, fitted.preparation
    if preparation.background == "quadratic":
        change = _without_quadratic(change, shown)
    changed = view + np.where(shown[..., None], change, 0.0)
    if preparation.scale == "view":
        own, other = (_scaled(fitted, one, shown) for one in (view, changed))
        changed = np.where(shown[..., None], view[shown].mean(0) + own[1] * other[0], 0.0)
    return changed


def _flat(fitted: Fitted, view: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Return a view after intensity and background; refuse one without contrast after either."""
    if not shown.any():
        return np.zeros_like(view)
    _need_contrast(view[shown], view[shown], "its pixels are equal")
    if fitted.preparation.intensity == "log":
        view = np.log(np.maximum(view, fitted.floor))
    flat = view
    if fitted.preparation.background == "quadratic":
        flat = _without_quadratic(view, shown)
    if fitted.preparation.scale == "view":
        _need_contrast(flat[shown], view[shown], "nothing is left after its background")
    return flat


def _need_contrast(values: np.ndarray, before: np.ndarray, why: str) -> None:
    largest = float(np.abs(before).max())
    if not values.std(0).max() > _CONTRAST * largest:
        raise InputError(f"view without contrast: {why}")


def _without_quadratic(view: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Subtract the polynomial of degree 2 fitted by least squares, channel by channel."""
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, n) for n in view.shape[:2]), indexing="ij")
    terms = [np.ones_like(rows), rows, columns, rows * columns, rows**2, columns**2]
    basis = np.stack(terms, axis=-1)
    coefficients = np.linalg.lstsq(basis[shown], view[shown], rcond=None)[0]
    return view - basis @ coefficients


def _scaled(fitted: Fitted, view: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, float]:
    if not shown.any():
        return np.zeros_like(view), float("nan")
    mean, sd = np.array(fitted.mean), fitted.sd
    if fitted.preparation.scale == "view":
        mean = view[shown].mean(0)
        sd = float(np.sqrt(((view[shown] - mean) ** 2).mean()))
    return np.where(shown[..., None], (view - mean) / sd, 0.0), sd
