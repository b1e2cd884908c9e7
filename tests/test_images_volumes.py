"""Volumes: NIfTI and DICOM in, NIfTI out, axial slices of any orientation."""

import sys
from pathlib import Path

import numpy as np
import pytest
from test_images_layouts import dicom_file

from dal_jax import InputError
from dal_jax.images import axial_slice, open_data, read_sample, read_volume, write_volume

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")

RNG = np.random.default_rng(8)
# Anisotropic, oblique, with the axes in the order superior, right, anterior: all exact in single
# precision, as the file keeps it.
AFFINE = np.array(
    [
        [0.125, 1.5, 0.0, -31.5],
        [0.0, 0.25, -2.0, 12.25],
        [-3.0, 0.0, 0.125, 7.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "int16", "bool"])
def test_round_trip_keeps_voxels_and_affine(tmp_path: Path, suffix: str, dtype: str) -> None:
    voxels = (10 * RNG.normal(size=(3, 5, 4))).astype(dtype)
    path = tmp_path / f"v{suffix}"
    write_volume(path, voxels, AFFINE)
    found = read_volume(path)
    np.testing.assert_array_equal(found.voxels, voxels.astype(np.float64))
    assert found.voxels.dtype == np.float64
    np.testing.assert_array_equal(found.affine, AFFINE)
    np.testing.assert_allclose(found.spacing, np.linalg.norm(AFFINE[:3, :3], axis=0), rtol=1e-15)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no part is left behind
    again = path.read_bytes()
    write_volume(path, voxels, AFFINE)
    assert path.read_bytes() == again


def test_slope_nan_and_trailing_axis(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(24).reshape(2, 3, 4, 1).astype(np.int16), AFFINE)
    image.header.set_slope_inter(0.5, -3)
    nibabel.save(image, tmp_path / "s.nii")
    expected = np.arange(24.0).reshape(2, 3, 4) * 0.5 - 3
    np.testing.assert_array_equal(read_volume(tmp_path / "s.nii").voxels, expected)
    gaps = np.full((2, 2, 2), np.nan)
    write_volume(tmp_path / "n.nii", gaps, AFFINE)
    assert np.isnan(read_volume(tmp_path / "n.nii").voxels).all()


def test_axial_slices_look_the_same_in_any_orientation() -> None:
    """A volume in the axes of the patient, stored in all 48 ways: the slice does not change."""
    patient = RNG.normal(size=(4, 5, 3))  # to the right, to the front, upwards
    expected = patient[::-1, ::-1, 1].T  # front at the top, the patient's right at the left
    image = nibabel.Nifti1Image(patient, np.diag([1.0, 2.0, 3.0, 1.0]))
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        for flips in np.ndindex(2, 2, 2):
            to = np.array([(axis, 1 - 2 * flip) for axis, flip in zip(order, flips, strict=True)])
            stored = image.as_reoriented(to)
            voxels = np.array(stored.get_fdata())
            np.testing.assert_array_equal(axial_slice(voxels, stored.affine, 1), expected)
            axial_slice(voxels, stored.affine, 0)[:] = 7.0  # a view: it fills the volume
            assert (voxels == 7.0).sum() == 20
    with pytest.raises(InputError, match="slice 3, expected 0 to 2"):
        axial_slice(patient, np.eye(4), 3)


def test_dicom_series_becomes_a_volume(tmp_path: Path) -> None:
    slices = RNG.integers(0, 4096, (3, 4, 6))
    for at in (2, 0, 1):
        dicom_file(tmp_path / f"{9 - at}.dcm", slices[at], -7 + 2.5 * at, number=at)
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.voxels, 2.0 * slices.transpose(2, 1, 0) - 1024)
    # 0.8 mm to the next column (to the left), 0.5 to the next row (to the back), 2.5 upwards.
    expected = np.array([[-0.8, 0, 0, 20], [0, -0.5, 0, -10], [0, 0, 2.5, -7], [0, 0, 0, 1]])
    np.testing.assert_allclose(volume.affine, expected, atol=1e-12)
    np.testing.assert_allclose(volume.spacing, (0.8, 0.5, 2.5))
    np.testing.assert_array_equal(
        axial_slice(volume.voxels, volume.affine, 1), 2.0 * slices[1] - 1024
    )
    one = read_volume(tmp_path / "8.dcm")
    assert one.voxels.shape == (6, 4, 1) and one.spacing[2] == 3.0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"SeriesInstanceUID": "9.9"}, "2 DICOM series"),
        ({"ImagePositionPatient": [-20, 10, 0.0]}, "two slices at one position"),
        ({"ImagePositionPatient": [-20, 10, 9.0]}, "one missing"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, 1]}, "not parallel"),
        ({"ImagePositionPatient": None}, "have no position"),
        ({"NumberOfFrames": 2}, "several frames"),
        ({"Rows": 2, "PixelData": b"\0" * 24}, "several sizes"),
        ({"PixelData": b"\0" * 10}, "unreadable or damaged"),
        ({"NumberOfFrames": [1, 2]}, "unreadable or damaged"),
    ],
    ids=["series", "twice", "gap", "turned", "unplaced", "frames", "sizes", "short", "list"],
)
def test_dicom_refusals(tmp_path: Path, more: dict[str, object], message: str) -> None:
    for k in range(3):
        dicom_file(tmp_path / f"{k}.dcm", np.ones((4, 6), int), 2.0 * k, number=k)
    dicom_file(tmp_path / "3.dcm", np.ones((4, 6), int), 6.0, number=3, **more)
    with pytest.raises(InputError, match=message) as caught:
        read_volume(tmp_path)
    assert "\n" not in str(caught.value)


def test_slices_without_positions_go_by_number(tmp_path: Path) -> None:
    slices = RNG.integers(0, 4096, (2, 4, 6))
    for at in (0, 1):
        path = tmp_path / f"{1 - at}.dcm"
        dicom_file(path, slices[at], 0.0, number=at + 1, ImagePositionPatient=None)
    data = open_data(tmp_path)
    read = [read_sample(data, sample)[0][..., 0] for sample in data.samples]
    np.testing.assert_array_equal(read, 2.0 * slices - 1024)
    with pytest.raises(InputError, match="a slice of a volume without ImagePositionPatient"):
        read_volume(tmp_path)


def test_reading_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_volume(tmp_path / "absent.nii")
    with pytest.raises(InputError, match="no DICOM file"):
        read_volume(tmp_path)
    (tmp_path / "v.nii.gz").write_bytes(b"no volume")
    with pytest.raises(InputError, match="unreadable or damaged"):
        read_volume(tmp_path / "v.nii.gz")
    (tmp_path / "v.png").write_bytes(b"no volume")
    with pytest.raises(InputError, match=r"expected \.nii"):
        read_volume(tmp_path / "v.png")
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4, 5)), np.eye(4)), tmp_path / "four.nii")
    with pytest.raises(InputError, match=r"shape \(2, 3, 4, 5\)"):
        read_volume(tmp_path / "four.nii")


def test_writing_refusals(tmp_path: Path) -> None:
    good, eye = np.zeros((2, 2, 2)), np.eye(4)
    calls = [
        ("v.img", good, eye, "ends in .nii"),
        ("v.nii", np.zeros((2, 2)), eye, "shape"),
        ("v.nii", good.astype(complex), eye, "complex128"),
        ("v.nii", good.astype(np.int64), eye, "int64"),
        ("v.nii", good, np.eye(3), "affine"),
        ("v.nii", good, eye * np.nan, "affine"),
        ("v.nii", good, eye * 2, "affine"),
    ]
    for name, voxels, affine, message in calls:
        with pytest.raises(InputError, match=message):
            write_volume(tmp_path / name, voxels, affine)
    assert not list(tmp_path.iterdir())


def test_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dicom_file(tmp_path / "a.dcm", np.ones((4, 6), int), 0.0, number=1)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"dal-jax\[medical\]"):
        read_volume(tmp_path)
