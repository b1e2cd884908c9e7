"""Metrics of tested images that have labels or masks, and maps of tested volumes."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from dal_jax._errors import InputError
from dal_jax.images import (
    NORMAL,
    UNKNOWN,
    PixelMetrics,
    Sample,
    axial_slice,
    image_metrics,
    is_volume,
    read_volume,
    region_counts,
    write_volume,
)
from dal_jax.inspection._calibration import METHODS
from dal_jax.inspection._results import ViewResult, adjusted_p
from dal_jax.inspection._views import AssembledImage


class Measures:
    """Metrics of a folder of labelled images; of the pixels only `PixelMetrics` is stored.

    Example:
        >>> measures = Measures()
        >>> for label, score in (("normal", 0.2), ("crack", 0.9)):
        ...     sample = Sample(label, Path(f"{label}.png"), "test", label, None, label)
        ...     measures.add(AssembledImage(sample, [], score=np.full((2, 2), score)))
        >>> measures.result(alpha=0.05)["image"]["auroc"]
        1.0
    """

    def __init__(self) -> None:
        self._pixels = PixelMetrics()
        self._any_pixels = False
        self._labels: list[bool] = []
        self._scores: list[float] = []
        self._views: list[ViewResult] = []

    def add(self, one: AssembledImage) -> None:
        """Add an image to the metrics, unless it was not tested or has no known label.

        Args:
            one: Image with its results.
        """
        if one.score is None or one.sample.label == UNKNOWN:
            return
        inside = np.isfinite(one.score)
        if not inside.any():
            return
        self._labels.append(one.sample.label != NORMAL)
        self._scores.append(float(one.score[inside].max()))
        self._views += [view for view in one.views if view.num_tested]
        if one.mask is not None:
            self._pixels.add(one.score, one.mask, inside)
            self._any_pixels = True

    def result(self, alpha: float) -> dict[str, Any]:
        """Return the metrics of the images added so far.

        Args:
            alpha: Level at which regions are called significant.

        Returns:
            JSON values: image (AUROC, AP, F1-max), pixel (the same and AUPRO), and for each
            p-value, adjusted like decisions, the share of tested regions that it calls significant
            on normal and on anomalous images. Empty if no image has a known label.
        """
        if not self._labels:
            return {}
        found: dict[str, Any] = {
            "alpha": alpha,
            "image": image_metrics(np.array(self._labels), np.array(self._scores))._asdict(),
        }
        if self._any_pixels:
            pixel = self._pixels.result()
            found["pixel"] = {**pixel._asdict(), "max_error": pixel.max_error._asdict()}
        kinds = ["normal" if one.label == NORMAL else "anomalous" for one in self._views]
        groups = [one.group for one in self._views]
        touches = [one.touches_mask for one in self._views]
        if self._views:
            found["significant"] = {
                method: _shares(self._adjusted(method), kinds, groups, touches, alpha)
                for method in METHODS
            }
        return found

    def _adjusted(self, method: str) -> np.ndarray:
        """Return upper bounds on the adjusted p-values, for components and views of an image."""
        upper = [p.high for p in adjusted_p(self._views, method)]
        return np.minimum(1.0, np.array(upper) * [one.views for one in self._views])


def _shares(
    p: np.ndarray, kinds: list[str], groups: list[str], touches: list[bool | None], alpha: float
) -> dict[str, Any]:
    counts = region_counts(p, kinds, groups, touches, alpha)
    return {
        name: getattr(counts, name)._asdict()
        for name in ("normal", "anomalous", "touching", "elsewhere")
    }


class VolumeMaps:
    """Writer of three maps for each tested volume, as soon as its last slice has been added.

    The map `score` is NaN outside the tested views; `p_adjusted`, the adjusted p-value of the
    decision, is NaN outside the tested regions; `significant` is 1 in significant regions and 0
    elsewhere.

    Args:
        folder: Folder of the maps, named `<name of the volume>_<kind>.nii.gz`; of two volumes with
            the same name, the second one keeps its file extension in the name.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path, score = Path(folder, "brain.nii.gz"), np.ones((6, 4))
        ...     write_volume(path, np.zeros((4, 6, 1)), np.eye(4))
        ...     sample = Sample("brain.nii.gz#0", path, "test", "unknown", None, "brain", 0)
        ...     maps = VolumeMaps(Path(folder, "maps"))
        ...     one = AssembledImage(sample, [], None, None, score, score > 2, score > 2, score)
        ...     maps.add(one)
        ...     maps.close()
        ...     print(float(read_volume(Path(folder, "maps", "brain_score.nii.gz")).voxels.sum()))
        24.0
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._path: Path | None = None
        self._name = ""
        self._names: set[str] = set()  # names of all volumes so far
        self._affine: Any = None
        self._maps: dict[str, np.ndarray] = {}

    def add(self, one: AssembledImage) -> None:
        """Add a slice; an image that is no slice of a NIfTI volume is ignored.

        Args:
            one: Image with its results; the slices of a volume have to be added in succession.

        Raises:
            InputError: The volume cannot be read.
        """
        sample = one.sample
        if sample.slice is None or not is_volume(sample.path) or one.score is None:
            return
        assert one.p_adjusted is not None and one.significant is not None
        if sample.path != self._path:
            self.close()
            self._open(sample)
        shown = {"score": one.score, "p_adjusted": one.p_adjusted, "significant": one.significant}
        for kind, values in shown.items():
            axial_slice(self._maps[kind], self._affine, sample.slice)[...] = values

    def close(self) -> None:
        """Write the maps of the current volume, if any, and print why a map cannot be written."""
        for kind, voxels in self._maps.items():
            try:
                write_volume(self._folder / f"{self._name}_{kind}.nii.gz", voxels, self._affine)
            except InputError as error:
                print(f"{self._name}: {error}", file=sys.stderr)
        self._path, self._maps = None, {}

    def _open(self, sample: Sample) -> None:
        volume = read_volume(sample.path)
        shape = volume.voxels.shape
        self._path, self._affine = sample.path, volume.affine
        whole = sample.name.rpartition("#")[0]  # path below the root of the data set
        name = whole.removesuffix(".gz").removesuffix(".nii")
        self._name = whole if name in self._names else name
        self._names.add(self._name)
        self._maps = {
            "score": np.full(shape, np.nan, np.float32),
            "p_adjusted": np.full(shape, np.nan, np.float32),
            "significant": np.zeros(shape, bool),
        }
