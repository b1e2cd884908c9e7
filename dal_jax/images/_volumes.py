"""Volumes: NIfTI, MGH and DICOM in, NIfTI out, and the axial slices of a volume."""

import gzip
import io
from os.path import isdir, isfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dal_jax._errors import InputError
from dal_jax._files import atomic_path, optional
from dal_jax.images._dicom import is_dicom, read_series
from dal_jax.images._nifti import affine_of, load_nifti, same_place

# The files that are written; the ends of those that are read, where .hdr has its voxels in .img.
_NIFTI = (".nii", ".nii.gz")
VOLUME_ENDS = (*_NIFTI, ".hdr", ".mgz", ".mgh")


class Volume(NamedTuple):
    """A volume and its position, with axes as stored.

    Example:
        >>> import tempfile
        >>> affine = np.diag([2.0, 2.0, 5.0, 1.0])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_volume(f"{folder}/brain.nii.gz", np.ones((4, 6, 3)), affine)
        ...     volume = read_volume(f"{folder}/brain.nii.gz")
        >>> volume.voxels.shape, volume.spacing
        ((4, 6, 3), (2.0, 2.0, 5.0))
    """

    voxels: np.ndarray  # (X, Y, Z) float64, after the file's slope and intercept
    affine: np.ndarray  # (4, 4) from voxel indices to millimetres right, anterior, superior
    spacing: tuple[float, float, float]  # millimetres between voxels along X, Y and Z


def is_volume(path: Path) -> bool:
    """Report whether a file is a NIfTI or MGH file, by its name.

    Args:
        path: Path of the file.

    Returns:
        True if the name ends in .nii, .nii.gz, .hdr, .mgz or .mgh.

    Example:
        >>> is_volume(Path("brain.nii.gz")), is_volume(Path("brain.png"))
        (True, False)
    """
    return path.name.lower().endswith(VOLUME_ENDS)


def read_volume(path: str | Path) -> Volume:
    """Read a NIfTI or MGH file, a DICOM file, or a folder that holds one DICOM series.

    Args:
        path: A file .nii, .nii.gz, .mgz or .mgh, or .hdr with .img beside it, of three axes; a
            DICOM file; or a folder.

    Returns:
        The volume; for DICOM, X runs along the rows, Y down the columns and Z through the slices.

    Raises:
        InputError: The file is missing, damaged, not of three axes, without an orientation or with
            two that differ, or its voxels are not real numbers; the folder holds more than one
            series, slices are missing, at one position or not parallel; or the optional library is
            not installed.

    Example:
        >>> read_volume("BraTS2021_00000_flair.nii.gz").voxels.shape  # doctest: +SKIP
        (240, 240, 155)

    Source: the NIfTI-1 standard; DICOM PS3.3 C.7.6.2 (image plane).
    """
    path = Path(path)
    if isdir(path) or (isfile(path) and not is_volume(path) and is_dicom(path)):
        voxels, affine = read_series(path)
    else:
        voxels, affine = _read_nifti(path)
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(0))
    return Volume(voxels, affine, (float(lengths[0]), float(lengths[1]), float(lengths[2])))


def write_volume(path: str | Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume as NIfTI with the given affine, whole or not at all.

    Args:
        path: Name that ends in .nii or .nii.gz.
        voxels: Voxels (X, Y, Z), float32 or float64 as they are; bool as 8 bits; integers of up to
            32 bits.
        affine: Affine (4, 4), finite, with last row 0, 0, 0, 1; NIfTI keeps it in single precision.

    Raises:
        InputError: The ending, shape or type is another one, or the file cannot be written.

    Example:
        >>> volume = read_volume("brain.nii.gz")  # doctest: +SKIP
        >>> write_volume("p_value.nii.gz", p_values, volume.affine)  # doctest: +SKIP

    Source: the NIfTI-1 standard.
    """
    path, voxels, affine = Path(path), np.asarray(voxels), np.asarray(affine, np.float64)
    if not path.name.lower().endswith(_NIFTI):
        raise InputError(f"volume {str(path)!r}: expected a name that ends in .nii or .nii.gz")
    if voxels.ndim != 3 or 0 in voxels.shape:
        raise InputError(f"voxels of shape {voxels.shape}, expected (X, Y, Z)")
    last = [0, 0, 0, 1]
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or list(affine[3]) != last:
        raise InputError("affine: expected a finite (4, 4) matrix with last row 0, 0, 0, 1")
    data = _nifti_bytes(_storable(voxels), affine, path)
    with atomic_path(path) as temporary:
        zipped = path.name.lower().endswith(".gz")
        # The time of writing is left out: the same volume gives the same file.
        temporary.write_bytes(gzip.compress(data, mtime=0) if zipped else data)


def num_slices(volume: Volume) -> int:
    """Return the number of axial slices of a volume."""
    axis = _anatomy(volume.affine)[2][0]
    return volume.voxels.shape[axis]


def check_mask(mask: Volume, image: Volume, name: str) -> None:
    """Raise an `InputError` unless the voxels of a mask are those of its image.

    Args:
        mask: Mask, of the same shape and at the same place to half a voxel.
        image: Image.
        name: Name of the sample, for errors.
    """
    found, expected = _grid(mask), _grid(image)
    if found != expected:
        raise InputError(f"mask of {name!r}: grid {found}, its image has {expected}")
    if not same_place(image.affine, mask.affine, image.voxels.shape):
        raise InputError(
            f"mask of {name!r}: spacing {_spacing(mask)} and another place than its image, which "
            f"has {_spacing(image)}"
        )


def _grid(volume: Volume) -> str:
    nibabel = optional("nibabel", "medical", Path("volume"))
    return f"{volume.voxels.shape} {''.join(nibabel.aff2axcodes(volume.affine))}"


def _spacing(volume: Volume) -> str:
    return " x ".join(f"{length:.4g}" for length in volume.spacing)


def axial_slice(voxels: np.ndarray, affine: np.ndarray, index: int) -> np.ndarray:
    """Return an axial slice as radiologists see it: a view, so assigning to it fills the volume.

    The volume may be stored with any order and direction of its axes; "axial" is the voxel axis
    nearest to the direction from the feet to the head.

    Args:
        voxels: Voxels (X, Y, Z).
        affine: Affine (4, 4) of the volume.
        index: Index along the axial axis as it is stored, from 0.

    Returns:
        The view (H, W): anterior at the top, the patient's right at the left.

    Raises:
        InputError: There is no such slice.

    Example:
        >>> volume = np.zeros((4, 6, 3))
        >>> axial_slice(volume, np.diag([-1.0, -1.0, 1.0, 1.0]), 2)[:] = 1
        >>> volume.shape[1::-1], volume.sum()
        ((6, 4), np.float64(24.0))
    """
    (right, to_right), (front, to_front), (axial, _) = _anatomy(affine)
    if not 0 <= index < voxels.shape[axial]:
        raise InputError(f"slice {index}, expected 0 to {voxels.shape[axial] - 1}")
    plane = np.transpose(voxels, (axial, front, right))[index]
    plane = plane[::-1] if to_front else plane
    return plane[:, ::-1] if to_right else plane


def _anatomy(affine: np.ndarray) -> list[tuple[int, bool]]:
    """Return the voxel axes nearest to right, anterior and superior, and whether they run so."""
    nibabel = optional("nibabel", "medical", Path("volume"))
    found = nibabel.io_orientation(affine)
    axes = [int(np.flatnonzero(found[:, 0] == k)[0]) for k in range(3)]
    return [(axis, bool(found[axis, 1] > 0)) for axis in axes]


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not isfile(path):
        raise InputError(f"volume {str(path)!r}: no such file")
    if not is_volume(path):
        ends = ", ".join(VOLUME_ENDS)
        raise InputError(f"volume {str(path)!r}: expected {ends} or a folder of DICOM")
    voxels, image = load_nifti(path)
    if voxels.ndim < 2 or any(n != 1 for n in voxels.shape[3:]) or 0 in voxels.shape:
        raise InputError(f"volume {str(path)!r}: shape {voxels.shape}, expected (X, Y, Z)")
    return voxels.reshape((*voxels.shape, 1)[:3]), affine_of(image, path)


def _storable(voxels: np.ndarray) -> np.ndarray:
    if voxels.dtype.kind == "b":
        return voxels.astype(np.uint8)
    if voxels.dtype.kind not in "iuf" or (voxels.dtype.kind in "iu" and voxels.itemsize > 4):
        expected = "floats, bool or integers of up to 32 bits"
        raise InputError(f"voxels of type {voxels.dtype}, expected {expected}")
    return voxels.astype(np.float32) if voxels.dtype == np.float16 else voxels


def _nifti_bytes(voxels: np.ndarray, affine: np.ndarray, path: Path) -> bytes:
    nibabel = optional("nibabel", "medical", path)
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    stream = io.BytesIO()
    image.to_stream(stream)
    return stream.getvalue()
