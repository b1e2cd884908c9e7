"""Volumes: NIfTI files, DICOM slices and series, and the axial slices of a volume."""

import contextlib
import gzip
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dal_jax._errors import InputError
from dal_jax._files import atomic_path
from dal_jax.images._io import DAMAGED, load_nifti, optional, unreadable

# Relative tolerance of distances about the mean spacing, because positions are rounded to text.
_UNEVEN = 0.05


class Plane(NamedTuple):
    """Position of one slice of a series."""

    path: Path
    series: str
    number: int  # InstanceNumber
    position: np.ndarray | None  # (3,) millimetres left, posterior, superior
    directions: np.ndarray  # (2, 3) of a step to the next column and to the next row
    spacing: tuple[float, float]  # millimetres to the next column and to the next row
    thickness: float  # millimetres


def _is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM, by its first bytes."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_slice(path: Path) -> np.ndarray:
    """Read one slice (rows, columns) float64, after RescaleSlope and RescaleIntercept."""
    with _decoding(path) as pydicom:
        data = pydicom.dcmread(path)
        frames, colours = (data.get(name) or 1 for name in ("NumberOfFrames", "SamplesPerPixel"))
        if int(frames) != 1 or int(colours) != 1:
            expected = "several frames or colours, expected one grey slice"
            raise InputError(f"image {str(path)!r}: {expected}")
        slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
        scaled = np.asarray(data.pixel_array, np.float64) * float(1 if slope is None else slope)
        scaled += float(0 if intercept is None else intercept)
    return scaled


def plane(path: Path) -> Plane:
    """Read the position of a slice, without its pixels."""
    with _decoding(path) as pydicom:
        data = pydicom.dcmread(path, stop_before_pixels=True)
        if not (data.get("Rows") and data.get("Columns")):
            raise ValueError("DICOM without an image")
        position = data.get("ImagePositionPatient")
        directions = data.get("ImageOrientationPatient") or [1, 0, 0, 0, 1, 0]
        rows, columns = data.get("PixelSpacing") or [1, 1]
        thickness = data.get("SpacingBetweenSlices") or data.get("SliceThickness") or 1
        found = Plane(
            path,
            str(data.get("SeriesInstanceUID", "")),
            int(data.get("InstanceNumber") or 0),
            None if position is None else np.array(position, np.float64),
            np.array(directions, np.float64).reshape(2, 3),
            (float(columns), float(rows)),
            float(thickness),
        )
    return found


def in_order(planes: Sequence[Plane], where: Path) -> list[Plane]:
    """Sort the slices of one series along its normal, or by number where none has a position."""
    count = len({p.series for p in planes})
    if count > 1:
        raise InputError(f"folder {str(where)!r}: {count} DICOM series, expected one")
    if all(p.position is None for p in planes):
        return sorted(planes, key=lambda p: (p.number, p.path.name))
    if any(p.position is None or p.position.shape != (3,) for p in planes):
        raise InputError(f"folder {str(where)!r}: some slices have no position")
    if np.ptp([p.directions for p in planes], axis=0).max() > 1e-3:
        raise InputError(f"folder {str(where)!r}: the slices are not parallel")
    return sorted(planes, key=lambda p: (_height(p), p.number, p.path.name))


def dicom_files(folder: Path) -> list[Path]:
    """Return the DICOM files of a folder, in order of name."""
    found = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file())
    # By name too, so that a damaged file is reported, not passed over.
    named = (".dcm", ".dicom")
    return [
        p for p in found if p.name != "DICOMDIR" and (_is_dicom(p) or p.suffix.lower() in named)
    ]


def _read_series(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a folder of one series, or one file: voxels (columns, rows, slices) and affine."""
    files = dicom_files(path) if path.is_dir() else [path]
    if not files:
        raise InputError(f"folder {str(path)!r}: no DICOM file")
    planes = in_order([plane(file) for file in files], path)
    slices = [read_slice(p.path).T for p in planes]
    if len({s.shape for s in slices}) > 1:
        raise InputError(f"folder {str(path)!r}: slices of several sizes")
    return np.stack(slices, axis=-1), _affine(planes, path)


def _affine(planes: list[Plane], where: Path) -> np.ndarray:
    first = planes[0]
    lps = np.eye(4)
    lps[:3, 0] = first.directions[0] * first.spacing[0]
    lps[:3, 1] = first.directions[1] * first.spacing[1]
    lps[:3, 2] = np.cross(*first.directions) * first.thickness
    if first.position is not None:
        lps[:3, 3] = first.position
        if len(planes) > 1:
            lps[:3, 2] = _step(planes, where)
    # DICOM counts to the left and to the back, NIfTI to the right and to the front.
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def _step(planes: list[Plane], where: Path) -> np.ndarray:
    gaps = np.diff([_height(p) for p in planes])
    if gaps.min() < 1e-6:
        raise InputError(f"folder {str(where)!r}: two slices at one position")
    if np.abs(gaps / gaps.mean() - 1).max() > _UNEVEN:
        low, high = gaps.min(), gaps.max()
        raise InputError(
            f"folder {str(where)!r}: slices {low:g} to {high:g} mm apart, one missing?"
        )
    first, last = planes[0].position, planes[-1].position
    assert first is not None and last is not None
    return (last - first) / (len(planes) - 1)


def _height(p: Plane) -> float:
    assert p.position is not None
    return float(np.dot(np.cross(*p.directions), p.position))


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[Any]:
    """Lend pydicom, which decodes a value on access; its errors become one line."""
    pydicom = optional("pydicom", "medical", path)
    own = pydicom.errors.InvalidDicomError, pydicom.errors.BytesLengthException
    try:
        with warnings.catch_warnings():
            # Real files break minor rules of the standard, for which pydicom warns.
            warnings.simplefilter("ignore", UserWarning)
            yield pydicom
    except InputError:
        raise
    except (*DAMAGED, *own, AttributeError) as error:
        raise unreadable(path, error) from error


_ENDS = (".nii", ".nii.gz")


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
    """Report whether a file is a NIfTI file, by its name.

    Args:
        path: Path of the file.

    Returns:
        True if the name ends in .nii or .nii.gz.

    Example:
        >>> is_volume(Path("brain.nii.gz")), is_volume(Path("brain.png"))
        (True, False)
    """
    return path.name.lower().endswith(_ENDS)


def read_volume(path: str | Path) -> Volume:
    """Read a NIfTI file, a DICOM file, or a folder that holds one DICOM series.

    Args:
        path: A .nii or .nii.gz file of three axes, a DICOM file, or a folder.

    Returns:
        The volume; for DICOM, X runs along the rows, Y down the columns and Z through the slices.

    Raises:
        InputError: The file is missing, damaged or not of three axes, the folder holds more than
            one series, slices are missing or not parallel, or the optional library is not
            installed.

    Example:
        >>> read_volume("BraTS2021_00000_flair.nii.gz").voxels.shape  # doctest: +SKIP
        (240, 240, 155)

    Source: the NIfTI-1 standard; DICOM PS3.3 C.7.6.2 (image plane).
    """
    path = Path(path)
    if path.is_dir() or (path.is_file() and not is_volume(path) and _is_dicom(path)):
        voxels, affine = _read_series(path)
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
    if not is_volume(path):
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


def grid_of(volume: Volume) -> str:
    """Return shape and orientation; in volumes of one grid slice k is the same place."""
    nibabel = optional("nibabel", "medical", Path("volume"))
    return f"{volume.voxels.shape} {''.join(nibabel.aff2axcodes(volume.affine))}"


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
    if not path.is_file():
        raise InputError(f"volume {str(path)!r}: no such file")
    if not is_volume(path):
        raise InputError(f"volume {str(path)!r}: expected .nii, .nii.gz or a folder of DICOM")
    voxels, affine = load_nifti(path)
    if voxels.ndim < 2 or any(n != 1 for n in voxels.shape[3:]) or 0 in voxels.shape:
        raise InputError(f"volume {str(path)!r}: shape {voxels.shape}, expected (X, Y, Z)")
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < 4:
        raise InputError(f"volume {str(path)!r}: its affine is singular or not finite")
    return voxels.reshape((*voxels.shape, 1)[:3]), affine


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
