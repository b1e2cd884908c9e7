"""DICOM files: the grey values of a slice, its place, and the order of the slices of a series."""

from collections.abc import Sequence
from os.path import isdir, isfile
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np

from dal_jax._errors import InputError
from dal_jax._files import decoding, optional
from dal_jax.images._folders import listed
from dal_jax.images._pictures import refusal

# Relative tolerance of distances about the mean spacing, because positions are rounded to text.
_UNEVEN = 0.05
# Largest area between two directions, of length 1, that are one and the same or none.
_NO_PLANE = 1e-3
# Largest difference of directions from orthogonal ones of length 1, which are rounded to text.
_SKEW = 1e-3
# Tags that say what the values of a slice mean; they are equal in all slices of a series.
_MEANING = (
    *("Modality", "PatientID", "FrameOfReferenceUID"),
    *("PhotometricInterpretation", "RescaleType", "Units"),
)
# Largest ratio of the echo times of a series, which scanners may adjust by slice.
_ECHOES = 1.05
# Values in a unit: CT in HU, PET in activity.
_IN_UNITS = ("CT", "PT")
# Bit of an overlay within the pixels, in the groups of overlays.
_OVERLAYS, _OVERLAY_BIT = range(0x6000, 0x6020, 2), 0x0102
# Objects whose pixels are marks or doses, which tags of their own explain.
_NO_IMAGES = ("SEG", "RTDOSE")
# Where enhanced objects have, for each frame, what a classic slice has in tags of its own.
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


class Plane(NamedTuple):
    """Position of one slice of a series."""

    path: Path
    series: str
    number: int  # InstanceNumber
    position: np.ndarray | None  # (3,) millimetres left, posterior, superior
    directions: np.ndarray  # (2, 3) of a step to the next column and to the next row
    spacing: tuple[float, float]  # millimetres to the next column and to the next row
    thickness: float  # millimetres, NaN if the file does not say it
    missing: str  # name of the tag of spacing or directions that the file lacks, or ""
    meaning: dict[str, str]  # what the values mean, by the tags that name it
    echo: float  # EchoTime in milliseconds, 0 if there is none

    def height(self) -> float:
        """Return the place along the normal, millimetres, or the number without a position."""
        if self.position is None:
            return float(self.number)
        return float(np.dot(np.cross(*self.directions), self.position))


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM, by its first bytes."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def dicom_files(folder: Path) -> list[Path]:
    """Return the DICOM files of a folder, in order of name."""
    found = [path for path in listed(folder) if isfile(path)]
    # By name too, so that a damaged file is reported, not passed over.
    named = (".dcm", ".dicom")
    return [p for p in found if p.name != "DICOMDIR" and (is_dicom(p) or p.suffix.lower() in named)]


def read_slice(path: Path) -> np.ndarray:
    """Read one slice (rows, columns) float64, brighter for larger values.

    The values are those after the modality look-up table, or RescaleSlope and RescaleIntercept.
    MONOCHROME1, where the smallest value is white, is turned about the middle of its range. Padding
    gets the smallest value of the slice, or 0 if that is positive. The window of the display is not
    applied.

    Args:
        path: Path of the file.

    Returns:
        The grey values.

    Raises:
        InputError: The file is damaged or enhanced, holds several frames, colours or something
            else, or its tags contradict one another.

    Source: DICOM PS3.3 C.7.6.3 (image pixel), C.11.1 (modality LUT), C.7.5.1 (pixel padding).
    """
    pydicom = optional("pydicom", "medical", path)
    with decoding(path):
        data = _of_image(pydicom.dcmread(path), path)
        _refuse_unclear(data, path)
        data.pixel_array_options(correct_unused_bits=False)  # `_own_bits` looks at them
        raw = np.asarray(data.pixel_array)
        if raw.ndim != 2:
            raise ValueError(f"shape {raw.shape}, expected one slice")
        padded = _padded(raw, data)
        stored = _own_bits(raw, padded, data, path)
        values = _modality(pydicom, stored, data)
        if data.PhotometricInterpretation == "MONOCHROME1":
            ends = _modality(pydicom, _range(data, stored.dtype), data)
            values = ends.sum() - values
        padded |= _padded(stored, data)
        if padded.all():
            raise refusal(path, "padding alone, expected pixels")
        values[padded] = min(0.0, float(values[~padded].min()))
    return values


def _own_bits(raw: np.ndarray, padded: np.ndarray, data: Any, path: Path) -> np.ndarray:
    """Return pixels of their own bits; refuse others that neither sign nor overlays explain."""
    bits, size = int(data.BitsStored), 8 * raw.dtype.itemsize
    if raw.dtype.kind == "f" or bits >= size:
        return raw
    taken = 0
    for group in _OVERLAYS:
        found = data.get((group, _OVERLAY_BIT))
        taken |= 1 << int(found.value or 0) if found is not None else 0
    ones = ((1 << size) - (1 << bits)) & ~taken
    above = raw.astype(np.int64) & ones  # no more than 32 bits
    own = (raw << (size - bits)) >> (size - bits)
    wrong = (above != 0) & ~padded
    if raw.dtype.kind == "i":
        wrong &= (above != ones) | (own >= 0)
    if wrong.any():
        low = -(2 ** (bits - 1)) if raw.dtype.kind == "i" else 0
        values = raw[wrong]
        worst = values[np.abs(values.astype(np.float64)).argmax()]
        raise refusal(path, f"value {worst}, expected {low} to {low + 2**bits - 1} of {bits} bits")
    return own


def _of_image(data: Any, path: Path) -> Any:
    if not len(data):  # what pydicom returns of a file that ends within compressed pixels
        raise ValueError("DICOM that is cut off, none of its tags can be read")
    if not (data.get("Rows") and data.get("Columns")):
        raise ValueError("DICOM without an image")
    if any(data.get(name) for name in _GROUPS):
        raise refusal(path, "an enhanced object, expected one classic slice a file")
    for name in ("RescaleSlope", "RescaleIntercept"):
        if name in data and data.get(name) is None:
            delattr(data, name)  # without a value, pydicom would calculate with None
    return data


def _refuse_unclear(data: Any, path: Path) -> None:
    """Refuse what is not one grey slice, or whose tags leave open what its numbers mean."""
    frames, colours = (int(data.get(n) or 1) for n in ("NumberOfFrames", "SamplesPerPixel"))
    kind, shape = data.get("PhotometricInterpretation"), data.get("PresentationLUTShape")
    rescale = ["RescaleSlope" in data, "RescaleIntercept" in data]
    inverted = kind == "MONOCHROME1"
    bits, high = data.get("BitsStored"), data.get("HighBit")
    found = ""
    if frames != 1 or colours != 1:
        found = "several frames or colours, expected one grey slice"
    elif kind not in ("MONOCHROME1", "MONOCHROME2"):
        found = f"{kind}, expected MONOCHROME1 or MONOCHROME2"
    elif data.get("Modality") in _NO_IMAGES or "DoseGridScaling" in data:
        found = f"{data.get('Modality')}, expected an image"
    elif "PresentationLUTSequence" in data or (shape == "INVERSE" and not inverted):
        found = f"{kind} with a presentation table or the shape {shape!r}, expected IDENTITY"
    elif any(rescale) and not all(rescale):
        found = "RescaleSlope or RescaleIntercept alone, expected both or neither"
    elif all(rescale) and not (np.isfinite(line := _line(data)).all() and line[0]):
        found = f"RescaleSlope {line[0]:g} and RescaleIntercept {line[1]:g}, expected a line"
    elif None not in (bits, high) and high != bits - 1:
        found = f"HighBit {high} with {bits} bits stored, expected {bits - 1}"
    elif inverted and _has_unit(data):
        found = "MONOCHROME1 with values in a unit, expected MONOCHROME2"
    if found:
        raise refusal(path, shorten(found, 200))  # a damaged tag may hold anything


def _line(data: Any) -> tuple[float, float]:
    return float(data.RescaleSlope), float(data.RescaleIntercept)


def _has_unit(data: Any) -> bool:
    """Return whether the values are measured in a unit, so that turning them is meaningless."""
    units = str(data.get("Units") or "NONE")
    kind = str(data.get("RescaleType") or "US")
    return kind != "US" or units != "NONE" or data.get("Modality") in _IN_UNITS


def _modality(pydicom: Any, stored: np.ndarray, data: Any) -> np.ndarray:
    return np.asarray(pydicom.pixels.apply_modality_lut(stored, data), np.float64).copy()


def _range(data: Any, dtype: np.dtype) -> np.ndarray:
    """Return the smallest and the largest value that a pixel can have."""
    if dtype.kind == "f":
        raise ValueError("MONOCHROME1 with floating-point pixels, whose range is not known")
    bits = int(data.BitsStored)
    low = -(2 ** (bits - 1)) if dtype.kind == "i" else 0
    return np.array([low, low + 2**bits - 1]).astype(dtype)


def _padded(stored: np.ndarray, data: Any) -> np.ndarray:
    """Mark the pixels outside the imaged area."""
    first = data.get("PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, bool)
    last = data.get("PixelPaddingRangeLimit", first)
    # Some files write a negative value as a large positive one: it wraps as the pixels do.
    low, high = np.sort(np.array([int(first), int(last)]).astype(stored.dtype))
    return (stored >= low) & (stored <= high)


def plane(path: Path) -> Plane:
    """Read the position of a slice, without its pixels."""
    pydicom = optional("pydicom", "medical", path)
    with decoding(path):
        data = _of_image(pydicom.dcmread(path, stop_before_pixels=True), path)
        tags = ("PixelSpacing", "ImageOrientationPatient")
        position = data.get("ImagePositionPatient")
        directions = data.get("ImageOrientationPatient") or [1, 0, 0, 0, 1, 0]
        rows, columns = data.get("PixelSpacing") or [1, 1]
        thickness = data.get("SpacingBetweenSlices") or data.get("SliceThickness")
        found = Plane(
            path,
            str(data.get("SeriesInstanceUID", "")),
            int(data.get("InstanceNumber") or 0),
            None if position is None else np.atleast_1d(np.array(position, np.float64)),
            np.array(directions, np.float64).reshape(2, 3),
            (float(columns), float(rows)),
            float(thickness or np.nan),
            next((tag for tag in tags if not data.get(tag)), ""),
            _meaning(data),
            float(data.get("EchoTime") or 0),
        )
        _check_plane(found)
    return found


def _meaning(data: Any) -> dict[str, str]:
    found = {name: str(data.get(name) or "") for name in _MEANING}
    found["RescaleSlope"] = "with one" if "RescaleSlope" in data else "without"
    found["ModalityLUTSequence"] = "with one" if "ModalityLUTSequence" in data else "without"
    return found


def _check_plane(found: Plane) -> None:
    place = np.zeros(3) if found.position is None else found.position
    if place.shape != (3,):
        raise ValueError(f"ImagePositionPatient of {place.size} numbers, expected 3")
    facts = [found.directions.ravel(), found.spacing, place]
    if (
        not np.isfinite(np.concatenate(facts)).all()
        or min(found.spacing) <= 0
        or np.isinf(found.thickness)
    ):
        raise ValueError("a position, direction or spacing that is no number")
    if np.linalg.norm(np.cross(*found.directions)) < _NO_PLANE:
        raise ValueError("ImageOrientationPatient of directions that span no plane")


def in_order(planes: Sequence[Plane], where: Path, complete: bool = True) -> list[Plane]:
    """Sort the slices of one series along its normal, or by number where none has a position.

    Args:
        planes: Slices, one or more.
        where: Folder of the series, for errors.
        complete: False if files of the series could not be read, so that it may have gaps.

    Returns:
        The slices in order.

    Raises:
        InputError: The slices are of several series or mean different things, are not parallel,
            without a position or of another pixel spacing, two are at one position, or one is
            missing between others.
    """
    count = len({p.series for p in planes})
    if count > 1:
        raise InputError(f"folder {str(where)!r}: {count} DICOM series, expected one")
    _refuse_mixed(planes, where)
    placed = [p.position is not None for p in planes]
    if any(placed) and not all(placed):
        raise InputError(f"folder {str(where)!r}: some slices have no position")
    if np.ptp([p.directions for p in planes], axis=0).max() > 1e-3:
        raise InputError(f"folder {str(where)!r}: the slices are not parallel")
    if np.ptp(np.log([p.spacing for p in planes]), axis=0).max() > 1e-3:
        raise InputError(f"folder {str(where)!r}: slices of several pixel spacings")
    ordered = sorted(planes, key=lambda p: (p.height(), p.number, p.path.name))
    _refuse_gaps(ordered, where, "mm" if any(placed) else "numbers", complete)
    return ordered


def _refuse_mixed(planes: Sequence[Plane], where: Path) -> None:
    """Refuse slices whose values do not mean the same."""
    first = planes[0]
    for other in planes[1:]:
        for tag, value in first.meaning.items():
            if other.meaning[tag] != value:
                both = f"{value!r} in {first.path.name!r} and {other.meaning[tag]!r}"
                raise InputError(
                    f"folder {str(where)!r}: {tag} {shorten(both, 150)} in {other.path.name!r}, "
                    "expected one for all slices"
                )
    times = [p.echo for p in planes]
    if not max(times) <= _ECHOES * min(times):
        raise InputError(
            f"folder {str(where)!r}: EchoTime from {min(times):g} to {max(times):g}, expected one "
            "for all slices"
        )


def _refuse_gaps(planes: list[Plane], where: Path, unit: str, complete: bool) -> None:
    gaps = np.diff([p.height() for p in planes])
    if len(gaps) == 0:
        return
    if gaps.min() < 1e-6:
        k = int(gaps.argmin())
        what, names = ("position" if unit == "mm" else "number"), [p.path.name for p in planes]
        raise InputError(
            f"folder {str(where)!r}: two slices at one {what}, {names[k]!r} and {names[k + 1]!r}"
        )
    if complete and np.abs(gaps / gaps.mean() - 1).max() > _UNEVEN:
        raise InputError(
            f"folder {str(where)!r}: slices {gaps.min():g} to {gaps.max():g} {unit} apart, "
            f"one missing after {planes[int(gaps.argmax())].path.name!r}?"
        )


def read_series(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a folder of one series, or one file.

    Args:
        path: Path of the folder or file.

    Returns:
        Voxels (columns, rows, slices) and the affine of NIfTI.

    Raises:
        InputError: A file is damaged or lacks its spacing or directions, or the slices are not
            those of one volume.
    """
    files = dicom_files(path) if isdir(path) else [path]
    if not files:
        raise InputError(f"folder {str(path)!r}: no DICOM file")
    planes = in_order([plane(file) for file in files], path)
    slices = [read_slice(p.path).T for p in planes]
    for found in planes:
        if found.missing:
            raise refusal(found.path, f"a slice of a volume without {found.missing}")
        if found.position is None and len(planes) > 1:
            raise refusal(found.path, "a slice of a volume without ImagePositionPatient")
        skew = np.abs(found.directions @ found.directions.T - np.eye(2)).max()
        if skew > _SKEW:
            expected = f"of length 1 at right angles to {_SKEW:g}"
            raise refusal(
                found.path, f"ImageOrientationPatient {skew:.3g} off, expected two {expected}"
            )
    if len(planes) == 1 and not planes[0].thickness > 0:
        raise refusal(planes[0].path, "one slice without SliceThickness or SpacingBetweenSlices")
    if len({s.shape for s in slices}) > 1:
        raise InputError(f"folder {str(path)!r}: slices of several sizes")
    return np.stack(slices, axis=-1), _affine(planes)


def _affine(planes: list[Plane]) -> np.ndarray:
    first, last = planes[0], planes[-1]
    lps = np.eye(4)
    lps[:3, 0] = first.directions[0] * first.spacing[0]
    lps[:3, 1] = first.directions[1] * first.spacing[1]
    lps[:3, 2] = np.cross(*first.directions) * first.thickness
    if first.position is not None and last.position is not None:
        lps[:3, 3] = first.position
        if len(planes) > 1:
            lps[:3, 2] = (last.position - first.position) / (len(planes) - 1)
    # DICOM counts to the left and to the back, NIfTI to the right and to the front.
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
