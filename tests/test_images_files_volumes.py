"""NIfTI, MGH and DICOM files: what their numbers mean, or one line that refuses them."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_cases import FileCase, check, check_table
from test_images_layouts import dicom_file

from dal_jax import InputError
from dal_jax.images import DataSet, open_data, read_image, read_sample, read_volume

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")

RNG = np.random.default_rng(21)
VOXELS = RNG.integers(0, 200, (5, 6, 4)).astype(np.int16)
PIXELS = RNG.integers(0, 4096, (4, 6))
PLACE = np.diag([2.0, 2.0, 3.0, 1.0])
FLOATS = VOXELS.astype(np.float64)
SLICE = PIXELS.T[..., None].astype(np.float64)  # (columns, rows, 1)


def nifti(path: Path, voxels: np.ndarray = VOXELS, place: Any = PLACE, **header: Any) -> None:
    """A NIfTI file with an sform and a qform, and header fields that are set afterwards."""
    image = nibabel.Nifti1Image(voxels, place)
    image.set_sform(place, 1)
    image.set_qform(place, 1)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)


def scaled(path: Path) -> None:
    image = nibabel.Nifti1Image(VOXELS, PLACE)
    image.header.set_slope_inter(0.5, -3)
    nibabel.save(image, path)


def moved(path: Path, by: float) -> None:
    """A file whose qform places voxels of 2 mm some millimetres from its sform."""
    image = nibabel.Nifti1Image(VOXELS, PLACE)
    image.set_sform(PLACE, 1)
    other = PLACE.copy()
    other[0, 3] = by
    image.set_qform(other, 1)
    nibabel.save(image, path)


def flipped(path: Path) -> None:
    """A compressed file with a flipped bit of a voxel, which decodes all the same."""
    nifti(path.with_name("v.nii"), RNG.integers(0, 200, (40, 40, 40)).astype(np.int16))
    packed = bytearray(gzip.compress(path.with_name("v.nii").read_bytes(), compresslevel=0))
    packed[-20] ^= 4
    path.write_bytes(packed)


def mgh(path: Path) -> None:
    nibabel.save(nibabel.MGHImage(VOXELS, PLACE), path)


def changed(path: Path, write: Callable[[Path], None], at: int, value: bytes) -> None:
    """A file that another function writes, with other bytes at a place."""
    write(path)
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(data)


def infinite(path: Path) -> None:
    """A file whose slope is infinite, which nibabel does not write."""
    changed(path, scaled, 112, np.float32(np.inf).tobytes())


def extended(path: Path, more: bytes) -> None:
    """A file with bytes behind its voxels."""
    nifti(path)
    path.write_bytes(path.read_bytes() + more)


def doubled(path: Path) -> None:
    """Two compressed files in one."""
    nifti(path)
    path.write_bytes(2 * path.read_bytes())


def cut(path: Path, write: Callable[[Path], Any], kept: int) -> None:
    """A file that another function writes, without its last bytes."""
    write(path)
    path.write_bytes(path.read_bytes()[:kept])


def renamed(path: Path) -> None:
    """A compressed file with the name of one that is not."""
    nifti(path.with_suffix(".nii.gz"))
    path.with_suffix(".nii.gz").rename(path)


def enhanced(path: Path) -> None:
    """A file of one frame whose numbers are explained in functional groups."""
    rescale, group = pydicom.Dataset(), pydicom.Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 2, -1024, "HU"
    group.PixelValueTransformationSequence = [rescale]
    dicom(path, SharedFunctionalGroupsSequence=[group], NumberOfFrames=1)


def copied(name: str) -> Callable[[Path], Any]:
    """Return a function that copies a file from the test data of nibabel or pydicom."""
    if name.endswith(".dcm"):
        source = pydicom.data.get_testdata_file(name)
    else:
        source = Path(nibabel.__file__).parent / "tests" / "data" / name
    return lambda path: shutil.copy(source, path)


def stored_in(name: str) -> np.ndarray:
    pixels = pydicom.dcmread(pydicom.data.get_testdata_file(name)).pixel_array
    return pixels.T[..., None].astype(np.float64)


def dicom(path: Path, pixels: np.ndarray = PIXELS, **tags: Any) -> None:
    """A slice of no modality, whose values are as stored."""
    plain = {"Modality": "OT", "RescaleSlope": 1, "RescaleIntercept": 0, **tags}
    dicom_file(path, pixels, 0.0, number=1, **plain)


def looked_up(path: Path, pixels: np.ndarray = PIXELS, **tags: Any) -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4096, 0, 16], "US"
    table.add_new("LUTData", "OW", (np.arange(4096) * 10 + 3).astype("<u2").tobytes())
    dicom(path, pixels, ModalityLUTSequence=[table], **tags)


def padded(path: Path) -> None:
    pixels = PIXELS % 1000 + 100
    pixels[0, :3] = [4000, 4001, 4002]
    limits = {"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 4001}
    dicom(path, pixels, RescaleIntercept=-1000, **limits)


def without_padding() -> np.ndarray:
    expected = PIXELS % 1000 - 900.0
    expected[0, 2] = 3002.0
    expected[0, :2] = expected.ravel()[2:].min()
    assert expected.min() < -100
    return expected.T[..., None]


def with_overlay(path: Path) -> None:
    """A slice whose 13th bit is an overlay, as early files have it."""
    overlay = pydicom.Dataset()
    overlay.add_new(0x60000102, "US", 12)
    pixels = PIXELS.copy()
    pixels[1, 2:4] += 4096
    dicom(path, pixels)
    data = pydicom.dcmread(path)
    data.update(overlay)
    data.save_as(path)


def padded_by_more_bits(path: Path) -> None:
    pixels = PIXELS % 1000 + 100
    pixels[0, :2] = 63536
    dicom(path, pixels, PixelPaddingValue=63536)


def without_more_bits() -> np.ndarray:
    expected = PIXELS % 1000 + 100.0
    expected[0, :2] = 0
    return expected.T[..., None]


def signed(path: Path, extended: bool) -> None:
    """A slice from -2048 to 2047 in 12 bits of 16, the others as the sign or 0."""
    pixels = (PIXELS - 2048) & (0xFFFF if extended else 0x0FFF)
    dicom(path, pixels, PixelRepresentation=1)


def mixed(first: dict[str, Any], second: dict[str, Any]) -> Callable[[Path], None]:
    """Return a function that writes a series of three slices, the last with tags of its own."""

    def write(path: Path) -> None:
        series(path, [0.0, 2.0], **first)
        dicom_file(path / "2.dcm", PIXELS, 4.0, 2, **second)

    return write


def unscaled(path: Path) -> None:
    """A series whose last slice has no slope, as if its values meant something else."""
    series(path, [0.0, 2.0, 4.0])
    data = pydicom.dcmread(path / "2.dcm")
    del data.RescaleSlope, data.RescaleIntercept
    data.save_as(path / "2.dcm")


def series(folder: Path, heights: list[float], **tags: Any) -> None:
    for k, height in enumerate(heights):
        dicom_file(folder / f"{k}.dcm", PIXELS, height, number=k, **tags)


def read(path: Path) -> np.ndarray:
    return read_volume(path).voxels


VOLUMES = [
    FileCase(
        ".nii, .nii.gz",
        "NIfTI-1 and NIfTI-2, any real type",
        "read: voxels after slope and intercept (a slope of 0 is none)",
        "v.nii.gz",
        scaled,
        FLOATS * 0.5 - 3,
    ),
    FileCase(
        ".hdr with .img",
        "NIfTI pair",
        "read like .nii: give the .hdr",
        "v.hdr",
        lambda path: nibabel.save(nibabel.Nifti1Pair(VOXELS, PLACE), path),
        FLOATS,
    ),
    FileCase(
        ".mgz, .mgh",
        "FreeSurfer",
        "read: voxels as stored",
        "v.mgz",
        mgh,
        FLOATS,
    ),
    FileCase(
        ".hdr with .img",
        "Analyze 7.5, which has no orientation",
        "Spm2AnalyzeImage, expected a NIfTI or MGH volume",
        "v.hdr",
        lambda path: nibabel.save(nibabel.Spm2AnalyzeImage(VOXELS, None), path),
    ),
    FileCase(
        ".nii",
        "CIFTI (.dconn.nii and others)",
        "Cifti2Image, expected a NIfTI or MGH volume",
        "row_major.dconn.nii",
        copied("row_major.dconn.nii"),
    ),
    FileCase(
        ".nii, .mgz",
        "more than three axes longer than 1",
        "shape (17, 21, 3, 20), expected (X, Y, Z)",
        "functional.nii",
        copied("functional.nii"),
    ),
    FileCase(
        ".nii",
        "complex voxels",
        "voxels are complex numbers, expected one real number",
        "v.nii",
        lambda path: nifti(path, VOXELS.astype(np.complex64)),
    ),
    FileCase(
        ".nii",
        "colours (RGB24)",
        "voxels are colours, expected one real number",
        "v.nii",
        lambda path: nifti(path, np.zeros((4, 4, 4), [(c, "u1") for c in "RGB"])),
    ),
    FileCase(
        ".nii",
        "sform and qform at one place, to half a voxel",
        "read: placed by the sform",
        "v.nii",
        lambda path: moved(path, by=0.9),
        FLOATS,
    ),
    FileCase(
        ".nii",
        "sform and qform further apart",
        "sform and qform are 0.75 voxels apart, expected one place",
        "v.nii",
        lambda path: moved(path, by=1.5),
    ),
    FileCase(
        ".nii",
        "neither sform nor qform",
        "sform_code and qform_code are 0, expected an orientation",
        "v.nii",
        lambda path: nibabel.save(nibabel.Nifti1Image(VOXELS, None), path),
    ),
    FileCase(
        ".nii",
        "unit metre or micrometre",
        "read: the affine is converted to millimetres (without a unit it is in millimetres)",
        "v.nii",
        lambda path: nifti(path, xyzt_units=3),
        FLOATS,
    ),
    FileCase(
        ".nii",
        "another spatial unit",
        "unit of code 5, expected metres to microns",
        "v.nii",
        lambda path: nifti(path, xyzt_units=5),
    ),
    FileCase(
        ".nii",
        "voxels that start within the header",
        "voxels from byte 0, expected 352 or more",
        "v.nii",
        lambda path: changed(path, nifti, 108, np.float32(0).tobytes()),
    ),
    FileCase(
        ".mgz, .mgh",
        "no orientation (goodRASFlag 0)",
        "goodRASFlag is 0, expected an orientation",
        "v.mgh",
        lambda path: changed(path, mgh, 28, b"\0\0"),
    ),
    FileCase(
        ".nii.gz, .mgz",
        "a checksum that is wrong",
        "CRC check failed",
        "v.nii.gz",
        flipped,
    ),
    FileCase(
        ".nii.gz, .mgz",
        "cut off",
        "Compressed file ended before the end-of-stream marker was reached",
        "v.nii.gz",
        lambda path: cut(path, nifti, -4),
    ),
    FileCase(
        ".nii",
        "compressed by gzip",
        "compressed by gzip, expected a name that ends in gz",
        "v.nii",
        renamed,
    ),
    FileCase(
        ".nii, .nii.gz",
        "a second file or other bytes behind the voxels",
        "bytes behind its voxels, expected one volume alone",
        "v.nii.gz",
        doubled,
    ),
    FileCase(
        ".nii, .nii.gz",
        "zeros behind the voxels",
        "read",
        "v.nii",
        lambda path: extended(path, bytes(5000)),
        FLOATS,
    ),
    FileCase(
        ".nii",
        "an infinite slope or intercept",
        "slope inf and intercept -3, expected numbers",
        "v.nii",
        infinite,
    ),
    FileCase(
        ".nii",
        "integers of 64 bits that a float64 cannot hold",
        "integers of 64 bits, expected them below 9007199254740992",
        "v.nii",
        lambda path: nibabel.save(
            nibabel.Nifti1Image(VOXELS + np.int64(2**60), PLACE, dtype=np.int64), path
        ),
    ),
]
DICOM = [
    FileCase("DICOM", "MONOCHROME2", "read: one channel", "s.dcm", dicom, SLICE),
    FileCase(
        "DICOM",
        "RescaleSlope and RescaleIntercept",
        "read: applied",
        "s.dcm",
        lambda path: dicom(path, RescaleSlope=2, RescaleIntercept=-1024),
        2 * SLICE - 1024,
    ),
    FileCase(
        "DICOM",
        "one of them alone",
        "RescaleSlope or RescaleIntercept alone, expected both or neither",
        "s.dcm",
        lambda path: dicom(path, RescaleIntercept=None),
    ),
    FileCase(
        "DICOM", "modality look-up table", "read: applied", "s.dcm", looked_up, 10 * SLICE + 3
    ),
    FileCase(
        "DICOM",
        "MONOCHROME1",
        "read: turned about the middle of its range, so that larger is brighter",
        "s.dcm",
        lambda path: dicom(path, 4095 - PIXELS, PhotometricInterpretation="MONOCHROME1"),
        SLICE,
    ),
    FileCase(
        "DICOM",
        "MONOCHROME1 with a look-up table",
        "read: both applied, in this order: table, turn",
        "s.dcm",
        lambda path: looked_up(path, 4095 - PIXELS, PhotometricInterpretation="MONOCHROME1"),
        10 * SLICE + 3,
    ),
    FileCase(
        "DICOM",
        "MONOCHROME1 of a CT or PET, with Units, or with a RescaleType other than US",
        "MONOCHROME1 with values in a unit, expected MONOCHROME2",
        "s.dcm",
        lambda path: dicom(path, PhotometricInterpretation="MONOCHROME1", Units="BQML"),
    ),
    FileCase(
        "DICOM",
        "a RescaleSlope of 0, or that is no number",
        "RescaleSlope 0 and RescaleIntercept 5, expected a line",
        "s.dcm",
        lambda path: dicom(path, RescaleSlope=0, RescaleIntercept=5),
    ),
    FileCase(
        "DICOM",
        "values of more bits than BitsStored",
        "value 5000, expected 0 to 4095 of 12 bits",
        "s.dcm",
        lambda path: dicom(path, np.where(np.median(PIXELS) < PIXELS, 5000, PIXELS)),
    ),
    FileCase(
        "DICOM",
        "padding of more bits than BitsStored",
        "read: as other padding",
        "s.dcm",
        padded_by_more_bits,
        without_more_bits(),
    ),
    FileCase(
        "DICOM",
        "an overlay in bits above those of the pixels",
        "read: without the overlay",
        "s.dcm",
        with_overlay,
        SLICE,
    ),
    FileCase(
        "DICOM",
        "negative values, with or without their sign in the bits above",
        "read",
        "s.dcm",
        lambda path: signed(path, extended=True),
        SLICE - 2048,
    ),
    FileCase(
        "DICOM",
        "PALETTE COLOR",
        "PALETTE COLOR, expected MONOCHROME1 or MONOCHROME2",
        "palette.dcm",
        copied("examples_palette.dcm"),
    ),
    FileCase(
        "DICOM",
        "RGB, YBR and other colours",
        "several frames or colours, expected one grey slice",
        "rgb.dcm",
        copied("SC_rgb_small_odd.dcm"),
    ),
    FileCase(
        "DICOM",
        "several frames",
        "several frames or colours, expected one grey slice",
        "dose.dcm",
        copied("rtdose.dcm"),
    ),
    FileCase(
        "DICOM",
        "PixelPaddingValue, PixelPaddingRangeLimit",
        "read: padding gets the smallest other value of the slice, or 0 if that is positive",
        "s.dcm",
        padded,
        without_padding(),
    ),
    FileCase(
        "DICOM",
        "window (VOI), overlays",
        "read: not applied, they are of the display",
        "s.dcm",
        copied("examples_overlay.dcm"),
        stored_in("examples_overlay.dcm"),
    ),
    FileCase(
        "DICOM",
        "presentation table, or the shape INVERSE with MONOCHROME2",
        "with a presentation table or the shape 'INVERSE', expected IDENTITY",
        "s.dcm",
        lambda path: dicom(path, PresentationLUTShape="INVERSE"),
    ),
    FileCase(
        "DICOM",
        "enhanced objects, with functional groups",
        "an enhanced object, expected one classic slice a file",
        "s.dcm",
        enhanced,
    ),
    FileCase(
        "DICOM",
        "a HighBit other than BitsStored - 1",
        "HighBit 15 with 12 bits stored, expected 11",
        "s.dcm",
        lambda path: dicom(path, HighBit=15),
    ),
    FileCase(
        "DICOM",
        "a position that is not three numbers",
        "ImagePositionPatient of 2 numbers, expected 3",
        "s.dcm",
        lambda path: dicom(path, ImagePositionPatient=[0, 0]),
    ),
    FileCase(
        "DICOM",
        "directions of rows and columns that span no plane",
        "ImageOrientationPatient of directions that span no plane",
        "s.dcm",
        lambda path: dicom(path, ImageOrientationPatient=[1, 0, 0, 1, 0, 0]),
    ),
    FileCase(
        "DICOM",
        "directions that are not of length 1 or not at right angles: `read_volume`",
        "ImageOrientationPatient 3 off, expected two of length 1 at right angles to 0.001",
        "s.dcm",
        lambda path: dicom(path, ImageOrientationPatient=[1, 0, 0, 0, 2, 0]),
    ),
    FileCase(
        "DICOM",
        "one slice without SliceThickness and SpacingBetweenSlices: `read_volume`",
        "one slice without SliceThickness or SpacingBetweenSlices",
        "s.dcm",
        lambda path: dicom(path, SliceThickness=None),
    ),
    FileCase(
        "DICOM",
        "without PixelSpacing or ImageOrientationPatient: `read_volume` (a test reads the pixels)",
        "a slice of a volume without PixelSpacing",
        "s.dcm",
        lambda path: dicom(path, PixelSpacing=None),
    ),
    FileCase(
        "DICOM",
        "segmentations and doses (SEG, RTDOSE)",
        "RTDOSE, expected an image",
        "dose.dcm",
        copied("rtdose_1frame.dcm"),
    ),
    FileCase(
        "DICOM",
        "RLE compression, either order of bytes",
        "read",
        "s.dcm",
        copied("MR_small_RLE.dcm"),
        stored_in("MR_small.dcm"),
    ),
    FileCase(
        "DICOM",
        "compressed, cut off",
        "DICOM that is cut off, none of its tags can be read",
        "s.dcm",
        lambda path: cut(path, copied("MR_small_RLE.dcm"), -1000),
    ),
    FileCase(
        "DICOM series",
        "a slice that is missing between others",
        "slices 2 to 4 mm apart, one missing after '1.dcm'",
        "series",
        lambda path: series(path, [0.0, 2.0, 6.0]),
    ),
    FileCase(
        "DICOM series",
        "duplicates, acquisitions at equal positions",
        "two slices at one position, '1.dcm' and '2.dcm'",
        "series",
        lambda path: series(path, [0.0, 2.0, 2.0, 4.0]),
    ),
    FileCase(
        "DICOM series",
        "slices without positions, with equal numbers",
        "two slices at one number, '0.dcm' and '1.dcm'",
        "series",
        lambda path: series(path, [0.0, 1.0], ImagePositionPatient=None, InstanceNumber=7),
    ),
    FileCase(
        "DICOM series",
        "slices without positions: `read_volume` (a test takes them by number)",
        "a slice of a volume without ImagePositionPatient",
        "series",
        lambda path: series(path, [0.0, 1.0], ImagePositionPatient=None),
    ),
    FileCase(
        "DICOM series",
        "a RescaleSlope in some slices alone",
        "RescaleSlope 'with one' in '0.dcm' and 'without' in '2.dcm', expected one",
        "series",
        unscaled,
    ),
    FileCase(
        "DICOM series",
        "slices with a RescaleSlope of their own, as in PET",
        "read: each by its own",
        "series",
        mixed({"RescaleSlope": 1, "RescaleIntercept": 0}, {"RescaleSlope": 3}),
        np.concatenate([SLICE, SLICE, 3 * SLICE - 1024], -1),
    ),
    *(
        FileCase(
            "DICOM series",
            f"slices of several {tag}",
            f"{tag} {one!r} in '0.dcm' and {other!r} in '2.dcm', expected one for all slices",
            "series",
            mixed({tag: one}, {tag: other}),
        )
        for tag, one, other in (
            ("Modality", "CT", "MR"),
            ("PatientID", "A", "B"),
            ("FrameOfReferenceUID", "1.2", "1.3"),
            ("PhotometricInterpretation", "MONOCHROME2", "MONOCHROME1"),
            ("RescaleType", "HU", "US"),
            ("Units", "BQML", "CNTS"),
        )
    ),
    FileCase(
        "DICOM series",
        "slices of several echo times",
        "EchoTime from 10 to 90, expected one for all slices",
        "series",
        mixed({"EchoTime": 10}, {"EchoTime": 90}),
    ),
    FileCase(
        "DICOM series",
        "slices of several pixel spacings",
        "slices of several pixel spacings",
        "series",
        lambda path: (
            series(path, [0.0, 2.0]),
            dicom_file(path / "2.dcm", PIXELS, 4.0, 2, PixelSpacing=[1, 1]),
        ),
    ),
]


@pytest.mark.parametrize("case", [*VOLUMES, *DICOM], ids=lambda case: f"{case.kind}: {case.done}")
def test_every_file_is_read_or_refused(
    case: FileCase, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    check(case, tmp_path, read)
    assert capfd.readouterr() == ("", "")  # no raw line of nibabel or pydicom


def test_the_page_has_the_tables() -> None:
    check_table("Volumes", VOLUMES)
    check_table("DICOM", DICOM)


def errors_of(data: DataSet) -> dict[str, str]:
    """Read every sample and return the errors by name."""
    found = {}
    for sample in data.samples:
        try:
            read_sample(data, sample)
        except InputError as error:
            found[sample.name] = str(error)
    return found


@pytest.mark.parametrize("code, factor", [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_the_affine_is_in_millimetres(tmp_path: Path, code: int, factor: float) -> None:
    nifti(tmp_path / "v.nii", xyzt_units=code)
    spacing = read_volume(tmp_path / "v.nii").spacing
    np.testing.assert_allclose(spacing, np.diag(PLACE)[:3] * factor, rtol=1e-12)


@pytest.mark.parametrize(
    "scale, shift, reads",
    [(1.0, 0.0, True), (1.0, 0.9, True), (1.0, 1.5, False), (1.2, 0.0, False)],
    ids=["same", "rounded", "moved", "spacing"],
)
def test_a_mask_is_at_the_place_of_its_image(
    tmp_path: Path, scale: float, shift: float, reads: bool
) -> None:
    nifti(tmp_path / "a.nii")
    place = PLACE @ np.diag([scale, scale, scale, 1.0])
    place[1, 3] = shift  # of voxels of 2 mm
    nifti(tmp_path / "a_mask.nii", (VOXELS > 100).astype(np.uint8), place)
    found = errors_of(open_data(tmp_path))
    if reads:
        assert found == {}
        return
    assert len(found) == VOXELS.shape[2]
    spacing = "2.4 x 2.4 x 3.6" if scale != 1 else "2 x 2 x 3"
    assert all(f"spacing {spacing} and another place" in error for error in found.values())


@pytest.mark.parametrize("value", [0.5, -1.0, np.nan])
def test_a_mask_has_whole_numbers(tmp_path: Path, value: float) -> None:
    marks = np.zeros(VOXELS.shape, np.float32)
    marks[1, 1, 2] = value
    nifti(tmp_path / "a.nii")
    nifti(tmp_path / "a_mask.nii", marks)
    found = errors_of(open_data(tmp_path))
    assert list(found) == ["a.nii#2"] and "whole numbers" in found["a.nii#2"]


@pytest.mark.parametrize(
    "heights, message",
    [
        ([0.0, 2.0, 6.0], "one missing"),
        ([0.0, 2.0, 2.0, 4.0], "two slices at one position"),
        ([0.0, 0.0, 2.0, 2.0], "two slices at one position"),
    ],
    ids=["missing", "double", "interleaved"],
)
def test_a_series_is_refused_in_a_test_as_in_read_volume(
    tmp_path: Path, heights: list[float], message: str
) -> None:
    series(tmp_path, heights)
    for reading in (read_volume, open_data):
        with pytest.raises(InputError, match=message):
            reading(tmp_path)


def test_a_damaged_slice_is_one_row_of_its_series(tmp_path: Path) -> None:
    series(tmp_path, [0.0, 2.0, 4.0, 6.0])
    (tmp_path / "1.dcm").write_bytes(b"\0" * 128 + b"DICM damaged")
    found = errors_of(open_data(tmp_path))
    assert list(found) == ["1.dcm"] and "unreadable or damaged" in found["1.dcm"]
    with pytest.raises(InputError, match=r"1\.dcm"):
        read_volume(tmp_path)


def test_a_sign_may_be_missing_in_the_bits_above(tmp_path: Path) -> None:
    signed(tmp_path / "s.dcm", extended=False)
    np.testing.assert_array_equal(read(tmp_path / "s.dcm"), SLICE - 2048)
    pixels = (PIXELS - 2048) & 0xFFFF
    pixels[0, 0] = 5000
    dicom(tmp_path / "s.dcm", pixels, PixelRepresentation=1)
    with pytest.raises(InputError, match="value 5000, expected -2048 to 2047 of 12 bits"):
        read(tmp_path / "s.dcm")


def test_bytes_behind_a_file_that_is_not_compressed_are_refused(tmp_path: Path) -> None:
    extended(tmp_path / "v.nii", bytes(4999) + b"1")
    with pytest.raises(InputError, match=r"v\.nii': 5000 bytes behind its voxels"):
        read(tmp_path / "v.nii")


def test_a_radiograph_needs_no_place_to_be_tested(tmp_path: Path) -> None:
    dicom(tmp_path / "s.dcm", PixelSpacing=None, ImageOrientationPatient=None)
    assert errors_of(open_data(tmp_path)) == {}


def test_a_slice_without_a_plane_is_one_row_of_its_series(tmp_path: Path) -> None:
    series(tmp_path, [0.0, 2.0, 4.0])
    for name, tags in (
        ("p.dcm", {"ImagePositionPatient": [0, 0]}),
        ("q.dcm", {"ImageOrientationPatient": [0] * 6}),
    ):
        dicom_file(tmp_path / name, PIXELS, 6.0, 3, **tags)
    data = open_data(tmp_path)
    assert [s.slice for s in data.samples] == [0, 1, 2, None, None]
    assert list(errors_of(data)) == ["p.dcm", "q.dcm"]


def test_padding_written_as_a_large_positive_value_is_padding(tmp_path: Path) -> None:
    signed = {"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15}
    pixels = PIXELS.copy()
    pixels[0, 0] = 63536  # -2000 in 16 bits
    dicom(tmp_path / "s.dcm", pixels, **signed)
    raw = (tmp_path / "s.dcm").read_bytes()
    assert read(tmp_path / "s.dcm")[0, 0, 0] == -2000
    data = pydicom.dcmread(tmp_path / "s.dcm")
    data.add_new("PixelPaddingValue", "US", 63536)
    data.save_as(tmp_path / "s.dcm")
    assert (tmp_path / "s.dcm").read_bytes() != raw
    assert read(tmp_path / "s.dcm")[0, 0, 0] == 0


def test_a_stray_file_does_not_change_the_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        nifti(tmp_path / name)
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "README").write_text("")
    data = open_data(tmp_path)
    assert data.layout == "nifti" and errors_of(data) == {}
    nibabel.save(nibabel.MGHImage(VOXELS, PLACE), tmp_path / "c.mgz")
    nibabel.save(nibabel.Nifti1Pair(VOXELS, PLACE), tmp_path / "d.hdr")
    told = capsys.readouterr().err
    assert "not used: files (2): 1 .json, 1 without extension" in told and told.count("\n") == 1
    data = open_data(tmp_path)
    assert {s.path.name for s in data.samples} == {"a.nii.gz", "b.nii.gz", "c.mgz", "d.hdr"}
    assert errors_of(data) == {} and capsys.readouterr().err == told  # .img is used, too


def test_an_error_of_a_decoder_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nifti(tmp_path / "a.nii")
    for error, told in (
        (AttributeError("no attribute 'x'"), "damaged (AttributeError: no attribute 'x')"),
        (AssertionError(), "damaged (AssertionError)"),
        (MemoryError(), "damaged (MemoryError)"),
        (RecursionError("deep\nline"), "damaged (RecursionError: deep line)"),
        (ModuleNotFoundError("No module", name="zstd"), "reading it needs zstd, not installed"),
    ):

        def load(path: Path, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(nibabel, "load", load)
        for reading in (read_volume, read_image):
            with pytest.raises(InputError) as caught:
                reading(tmp_path / "a.nii")
            assert told in str(caught.value) and "a.nii'" in str(caught.value)
