"""Damaged files: whatever a reader does with one, it gives numbers or one line that names it."""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_images_layouts import dicom_file

from dal_jax import InputError
from dal_jax.images import open_data, read_image, read_mask, read_sample, read_volume

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")
pillow = pytest.importorskip("PIL.Image")
tifffile = pytest.importorskip("tifffile")

RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 256, (12, 14)).astype(np.uint8)
COLOUR = RNG.integers(0, 256, (12, 14, 3)).astype(np.uint8)
VOXELS = RNG.integers(0, 200, (6, 5, 4)).astype(np.int16)
# Most headers lie within these first bytes.
HEADER = 600


def volume(kind: str) -> Callable[[Path], object]:
    return lambda path: nibabel.save(getattr(nibabel, kind)(VOXELS, np.eye(4)), path)


def every_sample(path: Path) -> None:
    """Open a file, or the folder of a picture or slice, as a data set, and read all of it."""
    data = open_data(path if path.suffix in (".npz", ".nii") else path.parent)
    for sample in data.samples:
        read_sample(data, sample)


# By name of the file: what writes it, and what reads it.
READERS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "grey.png": (lambda path: pillow.fromarray(GREY).save(path), read_image),
    "palette.png": (lambda path: pillow.fromarray(COLOUR).quantize(9).save(path), read_image),
    "mask.png": (lambda path: pillow.fromarray((GREY > 9) * np.uint8(255)).save(path), read_mask),
    "colour.jpg": (lambda path: pillow.fromarray(COLOUR).save(path), read_image),
    "grey.bmp": (lambda path: pillow.fromarray(GREY).save(path), read_image),
    "grey.gif": (lambda path: pillow.fromarray(GREY).save(path), read_image),
    "grey.pgm": (lambda path: pillow.fromarray(GREY).save(path), read_image),
    "colour.webp": (lambda path: pillow.fromarray(COLOUR).save(path), read_image),
    "colour.tif": (lambda path: tifffile.imwrite(path, COLOUR), read_image),
    "imagej.tif": (lambda path: tifffile.imwrite(path, GREY, imagej=True), read_image),
    "ome.ome.tif": (lambda path: tifffile.imwrite(path, GREY, ome=True), read_image),
    "packed.tif": (lambda path: tifffile.imwrite(path, GREY, compression="zlib"), read_image),
    "array.npy": (lambda path: np.save(path, GREY), read_image),
    "stack.npz": (lambda path: np.savez(path, test=np.stack([GREY] * 2)), every_sample),
    "volume.nii": (volume("Nifti1Image"), read_volume),
    "volume2.nii": (volume("Nifti2Image"), every_sample),
    "volume.nii.gz": (volume("Nifti1Image"), read_volume),
    "volume.mgz": (volume("MGHImage"), read_volume),
    "volume.hdr": (volume("Nifti1Pair"), read_volume),
    "slice.dcm": (lambda path: dicom_file(path, GREY.astype(int), 0.0, 1), read_volume),
    "plain.dcm": (lambda path: dicom_file(path, GREY.astype(int), 0.0, 1), every_sample),
}


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """Change up to four bytes, most of them of the header, or cut the file short."""
    changed = bytearray(whole)
    for _ in range(rng.integers(1, 5)):
        end = len(whole) if rng.random() < 0.2 else min(HEADER, len(whole))
        at = int(rng.integers(end))
        values = (0, 1, 127, 128, 255, int(rng.integers(256)), changed[at] ^ (1 << at % 8))
        changed[at] = values[int(rng.integers(len(values)))]
    return bytes(changed[: int(rng.integers(len(whole)))] if rng.random() < 0.1 else changed)


def check_damaged(name: str, folder: Path, count: int) -> None:
    write, read = READERS[name]
    folder.mkdir(exist_ok=True)
    path = folder / name
    write(path)
    read(path)
    whole, refused = path.read_bytes(), 0
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for number in range(count):
        path.write_bytes(damaged(whole, rng))
        try:
            read(path)
        except InputError as error:
            told, refused = str(error), refused + 1
            named = name in told or str(folder) in told
            assert named and "\n" not in told and len(told) < 1000, (number, told)
        except Exception as error:
            raise AssertionError(f"{name}, change {number}: {type(error).__name__}") from error
    assert refused > count // 20  # the changes do damage


@pytest.mark.parametrize("name", READERS)
def test_a_few_damaged_files(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_damaged(name, tmp_path, count=60)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_thousands_of_damaged_files(name: str, tmp_path: Path) -> None:
    check_damaged(name, tmp_path, count=1000)
