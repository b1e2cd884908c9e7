"""NIfTI and MGH files: voxels whose meaning is known, and the one place that a file gives them."""

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np

from dal_jax._errors import InputError
from dal_jax._files import decoding, optional
from dal_jax.images._pictures import refusal

# Millimetres of a spatial unit by its code, the last 3 bits of xyzt_units; 0 is "unknown", which
# programs that do not set it mean as millimetres.
_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
# Largest distance of voxels that are at one place, in voxels. A qform in single precision turns
# 240 voxels by up to 0.2 of one.
_APART = 0.5
# Integers of 64 bits from which on a float64 has not each of them.
_WHOLE = 2.0**53


def load_nifti(path: Path) -> tuple[np.ndarray, Any]:
    """Read a NIfTI or MGH file, and refuse voxels that are not real numbers.

    Args:
        path: Path of the file; of a pair .hdr and .img, of the first.

    Returns:
        Voxels of any shape, float64, after the file's slope and intercept, and the image of nibabel
        for `affine_of`.

    Raises:
        InputError: The file is damaged, its checksum is wrong, it holds something else, or a file
            of MGH does not say where it is.
    """
    nibabel = optional("nibabel", "medical", path)
    with decoding(path):
        zipped = path.name.lower().endswith("gz")
        filled = _filled(path) if zipped else 0  # first: nibabel says little of a damaged file
        if not zipped and _starts_as_gzip(path):
            raise refusal(path, "compressed by gzip, expected a name that ends in gz")
        image = nibabel.load(path)
        nifti = nibabel.Nifti1Image, nibabel.Nifti1Pair, nibabel.Nifti2Image, nibabel.Nifti2Pair
        if type(image) not in (*nifti, nibabel.MGHImage):
            kind = type(image).__name__
            raise refusal(path, f"{kind}, expected a NIfTI or MGH volume")
        stored = image.get_data_dtype()
        if stored.kind not in "biuf":
            what = "complex numbers" if stored.kind == "c" else "colours"
            raise refusal(path, f"voxels are {what}, expected one real number")
        header = image.header
        if getattr(header, "is_single", False) and image.dataobj.offset < header.single_vox_offset:
            expected = f"expected {header.single_vox_offset} or more"
            raise refusal(path, f"voxels from byte {image.dataobj.offset}, {expected}")
        if type(image) is nibabel.MGHImage:
            if not _has_place(path):
                raise refusal(path, "goodRASFlag is 0, expected an orientation")
        else:
            _check_scale(image, path)
            _check_end(image, path, filled)
        voxels = np.asarray(image.get_fdata(dtype=np.float64, caching="unchanged"))
        if stored.kind in "iu" and stored.itemsize > 4 and np.abs(voxels).max(initial=0) >= _WHOLE:
            raise refusal(path, f"integers of 64 bits, expected them below {_WHOLE:.0f}")
    return voxels, image


def _opened(path: Path) -> Any:
    return gzip.open(path) if path.name.lower().endswith("gz") else open(path, "rb")


def _starts_as_gzip(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _check_scale(image: Any, path: Path) -> None:
    """Refuse an infinite slope, which nibabel takes for none as it does NaN, which means none."""
    with _opened(path) as stream:  # the image of nibabel no longer has them
        header = image.header_class.from_fileobj(stream, check=False)
    slope, intercept = (float(header[name]) for name in ("scl_slope", "scl_inter"))
    if np.isinf(slope) or (slope and np.isfinite(slope) and not np.isfinite(intercept)):
        raise refusal(path, f"slope {slope:g} and intercept {intercept:g}, expected numbers")


def _check_end(image: Any, path: Path, filled: int) -> None:
    """Refuse a second file or other bytes behind the voxels, but for zeros that fill it up."""
    stop = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    holder = Path(image.file_map["image"].filename)  # of a pair, the file .img
    if holder.name.lower().endswith("gz"):
        filled = filled if holder == path else _filled(holder)
    else:
        filled = _filled(holder, stop)
    if filled > stop:
        raise refusal(path, f"{filled - stop} bytes behind its voxels, expected one volume alone")


def _has_place(path: Path) -> bool:
    """Return whether a file of MGH says where it is: nibabel fills in a place where it does not."""
    with _opened(path) as stream:
        return any(stream.read(30)[28:])


def _filled(path: Path, start: int = 0) -> int:
    """Return the place behind the last byte that is not 0, and look at no byte before a start.

    Of a compressed file all is read to its end, where the checksum is compared.
    """
    place = filled = start
    with _opened(path) as stream:
        stream.seek(start)
        while data := stream.read(2**20):
            held = len(data.rstrip(b"\0"))
            filled = place + held if held else filled
            place += len(data)
    return filled


def affine_of(image: Any, path: Path) -> np.ndarray:
    """Return the affine (4, 4) of an image of nibabel, from voxel indices to millimetres.

    Args:
        image: Image of `load_nifti`.
        path: Path of the file, for errors.

    Returns:
        The affine of the sform, or of the qform if there is no sform.

    Raises:
        InputError: The file has no place, or two that differ by more than half a voxel, in an
            unknown unit, or the affine is singular or not finite.

    Source: the NIfTI-1 standard, "methods" 1 to 3.
    """
    if not hasattr(image, "get_sform"):  # MGH: one affine, in millimetres
        return _regular(np.asarray(image.affine, np.float64), path)
    with decoding(path):
        places = [image.get_sform(coded=True)[0], image.get_qform(coded=True)[0]]
    found = [_regular(np.asarray(a, np.float64), path) for a in places if a is not None]
    if not found:
        raise InputError(
            f"volume {str(path)!r}: sform_code and qform_code are 0, expected an orientation"
        )
    apart = distance(found[0], found[-1], image.shape[:3])
    if apart > _APART:
        raise InputError(
            f"volume {str(path)!r}: sform and qform are {apart:.3g} voxels apart, expected one "
            "place: set both to the right one"
        )
    unit = int(image.header["xyzt_units"]) % 8
    if unit not in _MILLIMETRES:
        raise InputError(f"volume {str(path)!r}: unit of code {unit}, expected metres to microns")
    return np.diag([_MILLIMETRES[unit]] * 3 + [1.0]) @ found[0]


def distance(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return the largest distance between voxels of two affines, in voxels of the first.

    Args:
        one: Affine (4, 4) that is not singular.
        other: Affine (4, 4).
        shape: Shape of the volume, up to three axes.

    Returns:
        The largest difference of an index, over all voxels: it is largest at a corner.
    """
    sides = [(0, n - 1) for n in (*shape, 1, 1, 1)[:3]]
    corners = np.array([(x, y, z, 1) for x in sides[0] for y in sides[1] for z in sides[2]]).T
    return float(np.abs(np.linalg.solve(one, other @ corners) - corners).max())


def same_place(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Return whether two affines place the voxels of a volume within half a voxel."""
    return distance(one, other, shape) <= _APART


def _regular(affine: np.ndarray, path: Path) -> np.ndarray:
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < 4:
        raise InputError(f"volume {str(path)!r}: its affine is singular or not finite")
    return affine
