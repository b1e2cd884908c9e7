"""Reading images: kinds of file, scaling, and one-line refusals."""

import sys
from pathlib import Path

import numpy as np
import pytest

from dal_jax import InputError
from dal_jax.images import open_data, read_image, read_images

pillow = pytest.importorskip("PIL.Image")
tifffile = pytest.importorskip("tifffile")
nibabel = pytest.importorskip("nibabel")

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7)).astype(np.uint8)
WIDE = RNG.integers(0, 65536, (5, 7)).astype(np.uint16)
COLOUR = RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8)


def test_npy_floats_are_kept(tmp_path: Path) -> None:
    values = RNG.normal(size=(5, 7)).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    image = read_image(tmp_path / "x.npy")
    assert image.dtype == np.float64
    np.testing.assert_array_equal(image[..., 0], values)


@pytest.mark.parametrize("kind", [".npy", ".png", ".tif"])
@pytest.mark.parametrize("pixels", [GREY, WIDE, COLOUR])
def test_integers_are_scaled(tmp_path: Path, kind: str, pixels: np.ndarray) -> None:
    path = tmp_path / f"x{kind}"
    if kind == ".npy":
        np.save(path, pixels)
    elif kind == ".png":
        pillow.fromarray(pixels).save(path)
    else:
        tifffile.imwrite(path, pixels)
    expected = pixels.reshape(5, 7, -1) / np.iinfo(pixels.dtype).max
    np.testing.assert_array_equal(read_image(path), expected)


def test_jpeg_has_its_channels(tmp_path: Path) -> None:
    pillow.fromarray(COLOUR).save(tmp_path / "x.JPG")
    image = read_image(tmp_path / "x.JPG")
    assert image.shape == (5, 7, 3) and image.min() >= 0 and image.max() <= 1


def test_alpha_is_dropped_and_palette_expanded(tmp_path: Path) -> None:
    opaque = np.concatenate([COLOUR, np.full((5, 7, 1), 255, np.uint8)], -1)
    pillow.fromarray(opaque).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), COLOUR / 255)
    pillow.fromarray(GREY).convert("P").save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png").shape == (5, 7, 3)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 1, 1)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_slice(tmp_path: Path, shape: tuple[int, ...], suffix: str) -> None:
    values = RNG.normal(size=shape)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"x{suffix}")
    image = read_image(tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(image, values.reshape(5, 7, 1))


def test_nifti_volume_is_refused(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 7, 3)), np.eye(4)), tmp_path / "v.nii")
    with pytest.raises(InputError, match="one slice"):
        read_image(tmp_path / "v.nii")


def _write(path: Path) -> None:
    if path.suffix == ".npy":
        np.save(path, np.zeros((64, 64)))
    elif path.suffix in (".png", ".jpg"):
        noise = RNG.integers(0, 256, (64, 64)).astype(np.uint8)
        pillow.fromarray(noise).save(path)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, np.zeros((64, 64), np.uint8))
    else:
        nibabel.save(nibabel.Nifti1Image(np.zeros((64, 64)), np.eye(4)), path)


@pytest.mark.parametrize("kind", [".npy", ".png", ".jpg", ".tif", ".nii", ".nii.gz"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.6])
def test_truncated_file_is_one_line(tmp_path: Path, kind: str, kept: float) -> None:
    path = tmp_path / f"x{kind}"
    _write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(InputError, match="unreadable or damaged") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [".npy", ".png", ".jpg", ".tif", ".nii"])
def test_foreign_bytes_are_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x{kind}"
    path.write_bytes(b"this is no image " * 50)
    with pytest.raises(InputError, match="unreadable or damaged") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "place", "new"),
    [(".npy", 10, b"{" * 8), (".tif", 10, b"\xff"), (".nii", 70, b"\xbf")],
    ids=["description of the array", "code of the width", "type of the voxels"],
)
def test_spoiled_headers_are_one_line(tmp_path: Path, kind: str, place: int, new: bytes) -> None:
    path = tmp_path / f"x{kind}"
    _write(path)
    whole = bytearray(path.read_bytes())
    whole[place : place + len(new)] = new
    path.write_bytes(whole)
    with pytest.raises(InputError, match="unreadable or damaged") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_a_picture_too_large_to_be_true_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pillow.fromarray(GREY).save(tmp_path / "x.png")
    monkeypatch.setattr(pillow, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(InputError, match=r"unreadable or damaged .*exceeds limit"):
        read_image(tmp_path / "x.png")


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "absent.png")
    (tmp_path / "x.bmpx").write_bytes(b"")
    with pytest.raises(InputError, match="unknown kind"):
        read_image(tmp_path / "x.bmpx")
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError, match="unreadable"):
        read_image(tmp_path / "object.npy")
    np.save(tmp_path / "long.npy", np.zeros((5, 7), np.int64))
    with pytest.raises(InputError, match="int64"):
        read_image(tmp_path / "long.npy")
    np.save(tmp_path / "flat.npy", np.zeros(5))
    with pytest.raises(InputError, match=r"shape \(5,\)"):
        read_image(tmp_path / "flat.npy")
    np.save(tmp_path / "none.npy", np.zeros((0, 5)))
    with pytest.raises(InputError, match="no pixels"):
        read_image(tmp_path / "none.npy")


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("x.png", "PIL.Image", "images"),
        ("x.tif", "tifffile", "images"),
        ("x.nii", "nibabel", "medical"),
    ],
)
def test_missing_library_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str
) -> None:
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"dal-jax\[{extra}\]"):
        read_image(tmp_path / name)


def test_read_images_joins_folder_files_and_stack(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for k in range(3):
        np.save(folder / f"{k}.npy", np.full((4, 4), float(k)))
    (folder / "notes.txt").write_text("not an image")
    (folder / "._0.npy").write_bytes(b"what a file manager leaves")
    np.save(tmp_path / "stack.npy", np.full((2, 4, 4, 1), 9.0))
    stack = read_images([folder, tmp_path / "stack.npy", folder / "1.npy"])
    assert stack.shape == (6, 4, 4, 1)
    np.testing.assert_array_equal(stack[:, 0, 0, 0], [0, 1, 2, 9, 9, 1])


def test_read_images_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none given"):
        read_images([])
    with pytest.raises(InputError, match="no image in this folder"):
        read_images([tmp_path])
    np.save(tmp_path / "a.npy", np.zeros((4, 4)))
    np.save(tmp_path / "b.npy", np.zeros((4, 5)))
    with pytest.raises(InputError, match="the others have"):
        read_images([tmp_path / "a.npy", tmp_path / "b.npy"])
    np.save(tmp_path / "c.npy", np.full((4, 4), np.nan))
    with pytest.raises(InputError, match="NaN or infinite"):
        read_images([tmp_path / "c.npy"])
    with pytest.raises(InputError, match="no such file"):
        read_images([tmp_path / "absent"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"has columns \[\], expected 'name' and 'tile'"),
        ("name,tile,tile\na,1,2\n", "has several columns 'tile', expected one"),
    ],
)
def test_a_table_without_or_with_double_columns_is_one_line(
    tmp_path: Path, text: str, told: str
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 4)))
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(InputError, match=told):
        open_data(tmp_path, groups=f"csv:{tmp_path / 't.txt'}:tile")
