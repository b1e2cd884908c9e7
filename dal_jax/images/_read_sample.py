"""Reading one sample of a data set: its image and its mask."""

from pathlib import Path

import numpy as np

from dal_jax._errors import InputError
from dal_jax.images._cache import cached_stack, cached_volume
from dal_jax.images._dicom import read_slice
from dal_jax.images._io import read_image, scale_integers
from dal_jax.images._masks import read_mask, to_mask
from dal_jax.images._samples import NORMAL, OF_SLICES, DataSet, Sample, inside
from dal_jax.images._volumes import axial_slice, grid_of


def read_sample(dataset: DataSet, sample: Sample) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads the image of a sample and, where the truth is known, its mask.

    Pictures are scaled as `read_image` does, volumes are in the file's units. Slices of NIfTI
    volumes are axial, anterior at the top and the patient's right at the left; slices of DICOM
    series are as acquired. Slices in order read each volume once.

    Args:
        dataset: what `open_data` returned.
        sample: one of its samples.

    Returns:
        The image, float64 (H, W, C), and the mask, bool (H, W): true where anomalous, all false for
        a normal sample without a mask, None where nobody said.

    Raises:
        InputError: a file is missing or damaged, a mask has another size or orientation than its
            image or marks something in a normal one, a pixel is NaN or infinite, or the file leads
            outside the root. The others can still be read.

    Example:
        >>> data = open_data("bottle")  # doctest: +SKIP
        >>> image, mask = read_sample(data, data.samples[0])  # doctest: +SKIP
    """
    for path in (sample.path, sample.mask):
        if path is not None:
            inside(path, dataset.root)
    image = _image(dataset.layout, sample)
    if not np.isfinite(image).all():
        raise InputError(f"image {sample.name!r}: holds NaN or infinite pixels")
    if sample.mask is None:
        return image, np.zeros(image.shape[:2], bool) if sample.label == NORMAL else None
    mask = _mask(dataset.layout, sample, sample.mask)
    if mask.shape != image.shape[:2]:
        found, expected = mask.shape, image.shape[:2]
        raise InputError(f"mask of {sample.name!r}: shape {found}, its image has {expected}")
    if sample.label == NORMAL and mask.any():
        raise InputError(f"mask of {sample.name!r}: marks pixels, expected none in a normal image")
    return image, mask


def _image(layout: str, sample: Sample) -> np.ndarray:
    if layout == "dicom":
        return read_slice(sample.path)[..., None]
    if layout == "arrays":
        row = scale_integers(_row(sample, sample.path, sample.split), sample.path)
        return row if row.ndim == 3 else row[..., None]
    if layout in OF_SLICES:
        return _slice(sample, sample.path).copy()[..., None]
    return read_image(sample.path)


def _mask(layout: str, sample: Sample, path: Path) -> np.ndarray:
    if layout == "arrays":
        return to_mask(_row(sample, path, "masks"), path)
    if layout in OF_SLICES:
        found, expected = (grid_of(cached_volume(p)) for p in (path, sample.path))
        if found != expected:
            raise InputError(f"mask of {sample.name!r}: grid {found}, its image has {expected}")
        return _slice(sample, path) > 0
    return read_mask(path, labels=layout == "visa")


def _slice(sample: Sample, path: Path) -> np.ndarray:
    volume = cached_volume(path)
    if sample.slice is None:
        # The list was made without slices because one of the two files could not be read.
        cached_volume(sample.mask or path)
        raise InputError(f"volume {sample.name!r}: could not be read when the data was opened")
    return axial_slice(volume.voxels, volume.affine, sample.slice)


def _row(sample: Sample, path: Path, name: str) -> np.ndarray:
    stack = cached_stack(path, name)
    if stack is None or sample.slice is None or sample.slice >= len(stack):
        raise InputError(f"array {name!r} of {str(path)!r}: no row for {sample.name!r}")
    return np.array(stack[sample.slice])
