"""DICOM: single slices in the modality's units, and series in the order of their positions."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dal_jax._errors import InputError
from dal_jax.images._io import DAMAGED, optional, unreadable

# Neighbours may differ from the mean spacing by this share: positions are rounded to text.
_UNEVEN = 0.05


class Plane(NamedTuple):
    """Where one slice of a series lies."""

    path: Path
    series: str
    number: int  # InstanceNumber
    position: np.ndarray | None  # (3,) millimetres left, posterior, superior
    directions: np.ndarray  # (2, 3) of a step to the next column and to the next row
    spacing: tuple[float, float]  # millimetres to the next column and to the next row
    thickness: float  # millimetres


def is_dicom(path: Path) -> bool:
    """Says whether a file is DICOM, by its first bytes."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_slice(path: Path) -> np.ndarray:
    """Reads one slice (rows, columns) float64, after RescaleSlope and RescaleIntercept."""
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
    """Reads where a slice lies, without its pixels."""
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
    """Sorts the slices of one series along its normal, or by number where none has a position."""
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
    """The DICOM files of a folder, in order of name."""
    found = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file())
    # By name too: a damaged one is to be told, not passed over.
    named = (".dcm", ".dicom")
    return [p for p in found if p.name != "DICOMDIR" and (is_dicom(p) or p.suffix.lower() in named)]


def read_series(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a folder of one series, or one file: voxels (columns, rows, slices) and affine."""
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
    """Lends pydicom, which decodes a value when asked for it; what it raises becomes one line."""
    pydicom = optional("pydicom", "medical", path)
    own = pydicom.errors.InvalidDicomError, pydicom.errors.BytesLengthException
    try:
        with warnings.catch_warnings():
            # Real files break small rules of the standard, of which pydicom warns.
            warnings.simplefilter("ignore", UserWarning)
            yield pydicom
    except InputError:
        raise
    except (*DAMAGED, *own, AttributeError) as error:
        raise unreadable(path, error) from error
