"""The preparation of images for a model: its settings, and its statistics after the fit."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

from dal_jax._errors import InputError

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
