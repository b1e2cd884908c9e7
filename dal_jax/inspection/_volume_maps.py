"""Maps of tested slices as volumes, on the grid of the volume they were cut from."""

from pathlib import Path
from typing import Any

import numpy as np

from dal_jax.images import Sample, axial_slice, is_volume, read_volume, write_volume
from dal_jax.inspection._inspect import Inspected


class VolumeMaps:
    """Writes three volumes for each tested one, as soon as its last slice has come.

    `score` and `p_adjusted` (that of the decision, inside the tested regions) are NaN elsewhere;
    `significant` is 1 in regions called significant.

    Args:
        folder: where, as `<name of the volume>_<kind>.nii.gz`; of two volumes with the same name
            the second one keeps its ending in it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path, score = Path(folder, "brain.nii.gz"), np.ones((6, 4))
        ...     write_volume(path, np.zeros((4, 6, 1)), np.eye(4))
        ...     sample = Sample("brain.nii.gz#0", path, "test", "unknown", None, "brain", 0)
        ...     maps = VolumeMaps(Path(folder, "maps"))
        ...     maps.add(Inspected(sample, [], None, None, score, score > 2, score > 2, score))
        ...     maps.close()
        ...     print(float(read_volume(Path(folder, "maps", "brain_score.nii.gz")).voxels.sum()))
        24.0
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._path: Path | None = None
        self._name = ""
        self._names: set[str] = set()  # of all volumes so far
        self._affine: Any = None
        self._maps: dict[str, np.ndarray] = {}

    def add(self, one: Inspected) -> None:
        """Fills in a slice; images that are no slices of NIfTI volumes are passed over.

        Args:
            one: tested; the slices of a volume come one after the other.

        Raises:
            InputError: a volume cannot be read or written.
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
        """Writes the volume that is open, if any.

        Raises:
            InputError: it cannot be written.
        """
        for kind, voxels in self._maps.items():
            write_volume(self._folder / f"{self._name}_{kind}.nii.gz", voxels, self._affine)
        self._path, self._maps = None, {}

    def _open(self, sample: Sample) -> None:
        volume = read_volume(sample.path)
        shape = volume.voxels.shape
        self._path, self._affine = sample.path, volume.affine
        whole = sample.name.rpartition("#")[0]  # the name below the root
        name = whole.removesuffix(".gz").removesuffix(".nii")
        self._name = whole if name in self._names else name
        self._names.add(self._name)
        self._maps = {
            "score": np.full(shape, np.nan, np.float32),
            "p_adjusted": np.full(shape, np.nan, np.float32),
            "significant": np.zeros(shape, bool),
        }
