"""Data sets in every layout, written as their authors publish them and read back."""

import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dal_jax import InputError
from dal_jax.images import (
    DataSet,
    Sample,
    image_files,
    open_data,
    read_images,
    read_mask,
    read_sample,
    shared_groups,
)
from dal_jax.runs import fingerprint, open_run

pillow = pytest.importorskip("PIL.Image")
nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")

RNG = np.random.default_rng(3)
SHAPE = (6, 9)
ODD = "a \"b\" <c> 'd' é 中.png"


def picture(path: Path, pixels: np.ndarray | None = None) -> Path:
    """A picture of noise, or of the pixels given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, SHAPE).astype(np.uint8) if pixels is None else pixels
    pillow.fromarray(pixels).save(path)
    return path


def spot(value: int = 255, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """A mask whose first two pixels are marked, with a half-tone beside them."""
    mask = np.zeros(shape, np.uint8)
    mask[0, :3] = value, value, min(value, 100)
    return mask


def mvtec_tree(root: Path) -> Path:
    for name in ("000.png", "001.png", ODD):
        picture(root / "train" / "good" / name)
    picture(root / "test" / "good" / "000.png")
    picture(root / "test" / "bent wire" / "000.png")
    picture(root / "test" / "bent wire" / ODD)
    picture(root / "ground_truth" / "bent wire" / "000_mask.png", spot())
    picture(root / "ground_truth" / "bent wire" / ODD.replace(".png", "_mask.png"), spot())
    return root


def btad_tree(root: Path) -> Path:
    colours = RNG.integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    picture(root / "train" / "ok" / "0000.bmp", colours)
    picture(root / "test" / "ok" / "0000.bmp", colours)
    picture(root / "test" / "ko" / "0000.bmp", colours)
    picture(root / "test" / "ko" / "0001.bmp", colours)
    picture(root / "ground_truth" / "ko" / "0000.bmp", spot())
    picture(root / "ground_truth" / "ko" / "0001.png", spot())
    return root


def visa_tree(root: Path) -> Path:
    rows = ["object,split,label,image,mask"]
    for k, split in enumerate(("train", "train", "test")):
        rows.append(f"candle,{split},normal,candle/Data/Images/Normal/{k:04}.JPG,")
        picture(root / f"candle/Data/Images/Normal/{k:04}.JPG")
    picture(root / "candle/Data/Images/Anomaly/000.JPG")
    picture(root / "candle/Data/Masks/Anomaly/000.png", np.minimum(spot(), 3))
    image, mask = "candle/Data/Images/Anomaly/000.JPG", "candle/Data/Masks/Anomaly/000.png"
    rows += [f"candle,test,anomaly,{image},{mask}"]
    picture(root / "pcb1/Data/Images/Normal/0000.JPG")
    rows += ["pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,"]
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")
    return root


def folder_tree(root: Path) -> Path:
    picture(root / "normal" / "a.png")
    picture(root / "normal" / "deep" / "b.png")
    for name in ("c", "d", "e"):
        picture(root / "test" / f"{name}.png")
    picture(root / "masks" / "c.png", spot())
    picture(root / "masks" / "d.png", spot(0))
    return root


def brats_tree(root: Path, year: int, cases: int = 10) -> Path:
    """Volumes 5 x 4 x 3, the tumour in slice 1 of every second case; the affine of BraTS."""
    affine = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
    joint, kinds = ("_", "t1 t1ce t2 flair") if year == 2021 else ("-", "t1n t1c t2w t2f")
    for k in range(cases):
        case = f"BraTS2021_{k:05}" if year == 2021 else f"BraTS-GLI-{k // 2:05}-00{k % 2}"
        (root / case).mkdir(parents=True)
        truth = np.zeros((5, 4, 3), np.uint8)
        truth[1, 2, 1] = 4 * (k % 2)
        for at, kind in enumerate(kinds.split()):
            voxels = (1000 * at + 100 * k + np.arange(60).reshape(5, 4, 3)).astype(np.int16)
            image = nibabel.Nifti1Image(voxels, affine)
            nibabel.save(image, root / case / f"{case}{joint}{kind}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(truth, affine), root / case / f"{case}{joint}seg.nii.gz")
    return root


def named(data: DataSet, name: str) -> Sample:
    return next(sample for sample in data.samples if sample.name == name)


def refused(data: DataSet, told: str) -> list[str]:
    """Names of the samples that cannot be read, each in one line that says what is told."""
    names = []
    for sample in data.samples:
        try:
            read_sample(data, sample)
        except InputError as error:
            assert re.search(told, str(error)) and "\n" not in str(error)
            names.append(sample.name)
    return names


@pytest.mark.parametrize("layout", ["auto", "mvtec", "mpdd"])
def test_mvtec_category(tmp_path: Path, layout: str) -> None:
    data = open_data(mvtec_tree(tmp_path), layout)
    assert data.layout == ("mpdd" if layout == "mpdd" else "mvtec")
    assert [s.name for s in data.samples] == [
        "train/good/000.png",
        "train/good/001.png",
        f"train/good/{ODD}",
        "test/bent wire/000.png",
        f"test/bent wire/{ODD}",
        "test/good/000.png",
    ]
    assert [s.split for s in data.samples] == ["train"] * 3 + ["test"] * 3
    assert [s.label for s in data.samples] == ["normal"] * 3 + ["bent wire"] * 2 + ["normal"]
    assert [s.group for s in data.samples] == [s.name for s in data.samples]
    image, mask = read_sample(data, named(data, f"test/bent wire/{ODD}"))
    assert image.shape == (*SHAPE, 1) and image.dtype == np.float64
    expected = np.zeros(SHAPE, bool)
    expected[0, :2] = True  # the half-tone of 100 is below 127
    np.testing.assert_array_equal(mask, expected)
    image, mask = read_sample(data, data.samples[0])
    assert mask is not None and mask.shape == SHAPE and not mask.any()


def test_category_is_chosen_among_those_there(tmp_path: Path) -> None:
    mvtec_tree(tmp_path / "bottle")
    assert open_data(tmp_path).samples[0].name == "bottle/train/good/000.png"
    mvtec_tree(tmp_path / "zipper")
    data = open_data(tmp_path, category="zipper")
    assert {s.name.split("/")[0] for s in data.samples} == {"zipper"}
    for category in (None, "cable", "../bottle", ".."):
        with pytest.raises(InputError, match=r"expected one of \['bottle', 'zipper'\]"):
            open_data(tmp_path, category=category)


def test_btad(tmp_path: Path) -> None:
    data = open_data(btad_tree(tmp_path / "01").parent)
    assert data.layout == "btad"
    assert [(s.name, s.split, s.label) for s in data.samples] == [
        ("01/train/ok/0000.bmp", "train", "normal"),
        ("01/test/ko/0000.bmp", "test", "ko"),
        ("01/test/ko/0001.bmp", "test", "ko"),
        ("01/test/ok/0000.bmp", "test", "normal"),
    ]
    for sample in data.samples[1:3]:
        image, mask = read_sample(data, sample)
        assert image.shape == (*SHAPE, 3)
        assert mask is not None and mask.sum() == 2


def test_visa_masks_are_labels(tmp_path: Path) -> None:
    root = visa_tree(tmp_path)
    with pytest.raises(InputError, match=r"expected one of \['candle', 'pcb1'\]"):
        open_data(root)
    data = open_data(root, category="candle")
    assert data.layout == "visa"
    assert [s.split for s in data.samples] == ["train", "train", "test", "test"]
    assert [s.label for s in data.samples] == ["normal"] * 3 + ["anomaly"]
    _, mask = read_sample(data, data.samples[3])
    assert mask is not None and mask.sum() == 3


def test_folder_with_masks(tmp_path: Path) -> None:
    data = open_data(folder_tree(tmp_path))
    assert data.layout == "folder"
    assert [(s.name, s.split, s.label) for s in data.samples] == [
        ("normal/a.png", "train", "normal"),
        ("normal/deep/b.png", "train", "normal"),
        ("test/c.png", "test", "anomalous"),
        ("test/d.png", "test", "normal"),
        ("test/e.png", "test", "unknown"),  # without a mask nobody said that it is normal
    ]
    sums = [read_sample(data, s)[1] for s in data.samples]
    assert [None if m is None else int(m.sum()) for m in sums] == [0, 0, 2, 0, None]


@pytest.mark.parametrize(
    "name",
    ["c.TIF", "c.Png", "c.jpeg", "c.gif", "c.webp", "c_gt.png", "c_MASK.bmp", "c_seg.pgm"],
)
@pytest.mark.parametrize("layout", ["folder", "mvtec"])
def test_masks_have_any_name_of_an_image(tmp_path: Path, name: str, layout: str) -> None:
    masks = "masks" if layout == "folder" else "ground_truth/bent"
    picture(tmp_path / "train" / "good" / "a.png")
    picture(tmp_path / ("test" if layout == "folder" else "test/bent") / "c.png")
    picture(tmp_path / masks / name, np.kron(spot(), np.ones((8, 8), np.uint8)))
    data = open_data(tmp_path, layout)
    sample = data.samples[-1]
    assert sample.mask == tmp_path / masks / name
    assert sample.label == ("anomalous" if layout == "folder" else "bent")


def test_a_mask_is_of_one_image(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("same.bmp", "same.png", "other.png"):
        picture(tmp_path / "test" / name)
    picture(tmp_path / "masks" / "same.png", spot())
    found = {s.name: (s.label, s.mask) for s in open_data(tmp_path).samples}
    assert found == {
        "test/other.png": ("unknown", None),
        "test/same.bmp": ("unknown", None),
        "test/same.png": ("anomalous", tmp_path / "masks" / "same.png"),
    }
    picture(tmp_path / "masks" / "other.png", spot())
    picture(tmp_path / "masks" / "other_gt.png", spot())
    told = r"image '.*other.png': masks 'other.png' and 'other_gt"
    assert refused(open_data(tmp_path), told) == ["test/other.png"]
    assert "not used: second masks (1): 'masks/other_gt.png'\n" in capsys.readouterr().err
    (tmp_path / "masks" / "other_gt.png").rename(tmp_path / "masks" / "same_gt.png")
    (tmp_path / "masks" / "same.png").unlink()
    data = open_data(tmp_path)
    told = r"same_gt.png': fits 'same.bmp' and 'same.png'"
    assert refused(data, told) == ["test/same.bmp", "test/same.png"]
    assert [s.label for s in data.samples] == ["anomalous", "unknown", "unknown"]
    tree = mvtec_tree(tmp_path / "mvtec")
    picture(tree / "ground_truth" / "bent wire" / "000.png", spot())
    told = "masks '000.png' and '000_mask.png', expected one"
    assert refused(open_data(tree), told) == ["test/bent wire/000.png"]


@pytest.mark.parametrize("name", ["Good", "OK", "NORMAL", "good"])
def test_normal_folders_have_these_names_in_any_case(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "train" / "good" / "a.png")
    picture(tmp_path / "test" / name / "b.png")
    for layout in ("mvtec", "folder"):
        assert open_data(tmp_path, layout).samples[-1].label == "normal"


def test_masks_beside_plain_images_are_masks(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / "part" / f"{name}.png")
    picture(tmp_path / "masks" / "part" / "a.png", spot())
    picture(tmp_path / "masks" / "part" / "b.png", spot(0))
    assert [(s.name, s.label) for s in open_data(tmp_path).samples] == [
        ("part/a.png", "anomalous"),
        ("part/b.png", "normal"),
        ("part/c.png", "unknown"),
    ]


def test_what_is_not_used_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder_tree(tmp_path)
    open_data(tmp_path)
    assert capsys.readouterr().err == ""
    for name in ("test/a.heic", "test/b.heic", "notes.txt", "README"):
        (tmp_path / name).write_bytes(b"")
    picture(tmp_path / "masks" / "absent.png", spot())
    picture(tmp_path / "extra" / "deep" / "x.png")
    (tmp_path / "test" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "test" / "again").symlink_to(tmp_path / "normal")
    data = open_data(tmp_path)
    assert len(data.samples) == 5
    line = capsys.readouterr().err
    assert line == (
        f"data {str(tmp_path)!r}: not used: files (4): 2 .heic, 1 .txt, 1 without extension; "
        "broken links (1): 'test/gone.png'; folders (1): 'extra' with 1 files; "
        "linked folders (1): 'test/again'; masks without an image (1): 'masks/absent.png'\n"
    )


@pytest.mark.parametrize("layout", ["auto", "folder"])
def test_a_folder_without_images_says_what_it_holds(
    tmp_path: Path, layout: str, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a.heic").write_bytes(b"")
    with pytest.raises(InputError, match=r"no known layout|no image"):
        open_data(tmp_path, layout)
    assert capsys.readouterr().err.endswith("not used: files (1): 1 .heic\n")


def test_subfolders_of_kinds_are_not_used_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = mvtec_tree(tmp_path)
    picture(root / "test" / "bent wire" / "deep" / "x.png")
    picture(root / "train" / "other" / "y.png")
    picture(root / "ground_truth" / "bent wire" / "nobody_mask.png", spot())
    open_data(root)
    line = capsys.readouterr().err
    assert "folders (2): 'test/bent wire/deep' with 1 files, 'train/other' with 1 files" in line
    assert "masks without an image (1): 'ground_truth/bent wire/nobody_mask.png'" in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("where", ["out/run", "out"])
def test_own_results_are_no_images(
    tmp_path: Path, where: str, capsys: pytest.CaptureFixture
) -> None:
    picture(tmp_path / "a.png")
    open_run(tmp_path / where, fingerprint("tests"), 1, {})
    picture(tmp_path / "out" / "overlays" / "a.png")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "profile.json").write_text("{}")
    picture(tmp_path / "model" / "references.png")
    assert [s.name for s in open_data(tmp_path).samples] == ["a.png"]
    assert "not used: earlier results (2): 'model', 'out'" in capsys.readouterr().err


def test_own_results_among_the_images_are_no_images(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    open_run(tmp_path / "run", fingerprint("tests"), 1, {})
    for name in ("overlays", "run/maps", "volumes"):
        picture(tmp_path / name / "a.png")
    assert [s.name for s in open_data(tmp_path).samples] == ["a.png"]


def test_a_folder_of_training_images_says_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "deep" / "b.png")
    (tmp_path / "c.heic").write_bytes(b"")
    assert read_images([tmp_path]).shape == (1, *SHAPE, 1)
    told = f"images {str(tmp_path)!r}: not used: files (1): 1 .heic; folders (1): 'deep' with 1"
    assert capsys.readouterr().err.startswith(told)


def test_labels_of_a_table_are_normal_in_other_words(tmp_path: Path) -> None:
    root = visa_tree(tmp_path)
    table = root / "split_csv" / "1cls.csv"
    table.write_text(table.read_text().replace("test,normal", "test,OK"))
    data = open_data(root, category="candle")
    assert [s.label for s in data.samples] == ["normal"] * 3 + ["anomaly"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("candle,train,anomaly,{image},{mask}", "label 'anomaly' of '{image}', which is for tr"),
        ("candle,train,,{image},", "label '' of '{image}', which is for training"),
        ("candle,test,normal,,", "1cls.csv', row 6: image '', expected a path"),
        ("candle,test,normal,candle/./Data/Images/Normal/0002.JPG,", "in several rows, expected"),
        ("candle,val,normal,x.JPG,", "1cls.csv', row 6: split 'val', expected 'train' or 'test'"),
        (",test,normal,x.JPG,", "1cls.csv', row 6: object '', expected a name"),
    ],
)
def test_a_row_of_a_table_that_contradicts_its_split_is_refused(
    tmp_path: Path, row: str, told: str
) -> None:
    root = visa_tree(tmp_path)
    table = root / "split_csv" / "1cls.csv"
    rows = [row for row in table.read_text().splitlines() if "Anomaly" not in row]
    names = {"image": "candle/Data/Images/Anomaly/000.JPG", "mask": "candle/Data/Masks/000.png"}
    table.write_text("\n".join([*rows, "pcb1,test,normal,x.png,", row.format(**names)]))
    with pytest.raises(InputError, match=told.format(**names)) as caught:
        open_data(root, category="candle")
    assert "\n" not in str(caught.value)


def test_rows_of_a_table_that_say_nothing_stop_nothing(tmp_path: Path) -> None:
    root = visa_tree(tmp_path / "data")
    picture(tmp_path / "secret.png")
    table = root / "split_csv" / "1cls.csv"
    expected = open_data(root, category="candle").samples
    text = table.read_text().replace(",test,", ",Test,").replace("pcb1,", ",,,,\npcb1,", 1)
    table.write_text(text + " ,,,,\n")
    assert open_data(root, category="candle").samples == expected
    outside = ("../secret.png", str(tmp_path / "secret.png"), "candle/\0.JPG")
    rows = [f"candle,test,normal,{path},\n" for path in outside]
    image = "candle/Data/Images/Normal/0003.JPG"
    rows.append(f"candle,test,anomaly,{picture(root / image).relative_to(root)},../secret.png\n")
    table.write_text(text + "".join(rows))
    data = open_data(root, category="candle")
    names = [*(f"split_csv/1cls.csv#{k}" for k in (7, 8, 9)), image]
    told = r"1cls.csv', row \d+: file .* (leads outside the folder|null byte)"
    assert refused(data, told) == names
    assert data.samples[: len(expected)] == expected


def test_spaces_around_the_cells_of_a_table_are_none(tmp_path: Path) -> None:
    root = visa_tree(tmp_path)
    expected = open_data(root, category="candle")
    table = root / "split_csv" / "1cls.csv"
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([head, *(row.replace(",", " , ") for row in rows)]))
    assert open_data(root, category="candle") == expected


def test_images_of_subfolders_are_neither_hidden_nor_results(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = [picture(tmp_path / name) for name in ("a.png", "deep/b.png")]
    picture(tmp_path / ".cache" / "c.png")
    open_run(tmp_path / "old", fingerprint("tests"), 1, {})
    picture(tmp_path / "old" / "overlays" / "a.png")
    (tmp_path / "deep" / "again").symlink_to(tmp_path / "deep")
    assert image_files(tmp_path, deep=True) == paths
    told = "not used: earlier results (1): 'old'; linked folders (1): 'deep/again'\n"
    assert capsys.readouterr().err.endswith(told)


def test_links_in_circles_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "masks" / "a.png", spot())
    for name in ("m1", "m2"):
        (tmp_path / "masks" / name).symlink_to(".")
    (tmp_path / "b.png").symlink_to("c.png")
    (tmp_path / "c.png").symlink_to("b.png")
    (tmp_path / "d.png").symlink_to(tmp_path.parent / "nowhere.png")
    (tmp_path / "self").symlink_to(".")
    assert [s.name for s in open_data(tmp_path).samples] == ["a.png"]
    assert capsys.readouterr().err.endswith(
        "not used: broken links (3): 'b.png', 'c.png', 'd.png'; "
        "linked folders (3): 'masks/m1', 'masks/m2', 'self'\n"
    )


def test_names_that_leave_no_room_are_read(tmp_path: Path) -> None:
    """Beside them no file can have the name of their mask, which is no reason to fail."""
    long = "n" * 250
    picture(tmp_path / "plain" / f"{long}.png")
    picture(tmp_path / "plain" / long / "b.png")
    assert len(open_data(tmp_path / "plain").samples) == 2
    tree = mvtec_tree(tmp_path / "mvtec")
    picture(tree / "test" / "bent wire" / f"{long}.png")
    assert len(open_data(tree).samples) == 7
    (tmp_path / "volumes").mkdir()
    for name in (long, "b"):
        image = nibabel.Nifti1Image(np.zeros((3, 4, 2), np.int16), np.eye(4))
        nibabel.save(image, tmp_path / "volumes" / f"{name}.nii")
    assert len(open_data(tmp_path / "volumes").samples) == 4
    for read in (lambda path: read_images([path]), read_mask, open_data):
        with pytest.raises(InputError, match="no such f"):
            read(tmp_path / (2 * long))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
@pytest.mark.parametrize("rights", [0, 0o444])
def test_folders_without_rights_are_left_out(
    tmp_path: Path, rights: int, capsys: pytest.CaptureFixture
) -> None:
    plain, tree = tmp_path / "plain", mvtec_tree(tmp_path / "mvtec")
    picture(plain / "a.png")
    closed = [picture(plain / "s" / "b.png").parent, tree / "test" / "bent wire"]
    for folder in closed:
        folder.chmod(rights)
    try:
        for root, name, count in ((plain, "s", 1), (tree, "test/bent wire", 4)):
            assert len(open_data(root).samples) == count
            told = f"unreadable folders (1): {name!r}"
            assert told in capsys.readouterr().err
        assert image_files(plain, deep=True) == [plain / "a.png"]
        with pytest.raises(InputError, match=r"no image in this folder|Permission denied"):
            image_files(plain / "s")
    finally:
        for folder in closed:
            folder.chmod(0o755)


def test_plain_images_are_all_to_test(tmp_path: Path) -> None:
    wide = RNG.integers(0, 65536, SHAPE).astype(np.uint16)
    picture(tmp_path / "b.png", wide)
    picture(tmp_path / "a.png", RNG.integers(0, 256, (4, 4, 4)).astype(np.uint8))
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no image")
    data = open_data(tmp_path)
    assert [(s.name, s.split, s.label, s.mask) for s in data.samples] == [
        ("a.png", "test", "unknown", None),
        ("b.png", "test", "unknown", None),
    ]
    image, mask = read_sample(data, data.samples[1])
    np.testing.assert_array_equal(image[..., 0], wide / 65535)
    assert mask is None
    assert read_sample(data, data.samples[0])[0].shape == (4, 4, 3)  # alpha is dropped


def test_folder_with_kinds(tmp_path: Path) -> None:
    picture(tmp_path / "test" / "good" / "a.png")
    picture(tmp_path / "test" / "crack" / "b.png")
    data = open_data(tmp_path)
    assert [s.label for s in data.samples] == ["crack", "normal"]
    assert read_sample(data, data.samples[0])[1] is None  # anomalous, but nobody said where
    picture(tmp_path / "masks" / "good" / "a.png", spot())
    data = open_data(tmp_path)
    with pytest.raises(InputError, match=r"'test/good/a.png': marks pixels, expected none in a n"):
        read_sample(data, data.samples[1])


@pytest.mark.parametrize("year", [2021, 2023])
def test_brats_is_split_by_patient(tmp_path: Path, year: int) -> None:
    data = open_data(brats_tree(tmp_path, year))
    assert data.layout == f"brats{year}"
    patients = {s.group for s in data.samples}
    assert len(patients) == (10 if year == 2021 else 5)
    assert shared_groups(data) == ()
    train = {s.group for s in data.samples if s.split == "train"}
    assert len(train) == (7 if year == 2021 else 4)  # round(0.7 n)
    assert {s.label for s in data.samples if s.split == "train"} == {"normal"}
    marked = [s for s in data.samples if s.label == "tumour"]
    assert marked and all(s.slice == 1 for s in marked)
    image, mask = read_sample(data, marked[0])
    assert mask is not None and image.shape == (4, 5, 1) and mask.shape == (4, 5)
    # Stored with its first axis to the left and its second to the back: rows are the second axis.
    assert [tuple(at) for at in np.argwhere(mask)] == [(2, 1)]
    flair = 3000 + 100 * int(marked[0].path.parent.name.split("_")[1]) if year == 2021 else None
    if flair is not None:
        volume = flair + np.arange(60).reshape(5, 4, 3)
        np.testing.assert_array_equal(image[..., 0], volume[:, :, 1].T)


def test_brats_contrast_and_slices(tmp_path: Path) -> None:
    root = brats_tree(tmp_path, 2021, cases=3)
    data = open_data(root, contrast="t1ce", slices=(0, 3, 2))
    assert {s.slice for s in data.samples} == {0, 2}
    assert all(s.path.name.endswith("_t1ce.nii.gz") for s in data.samples)
    first = data.samples[0]
    assert first.name == f"{first.group}/{first.group}_t1ce.nii.gz#0"
    assert read_sample(data, first)[0][0, 0, 0] // 1000 == 1
    with pytest.raises(InputError, match="contrast 't2f'"):
        open_data(root, contrast="t2f")
    for bad in ((3,), (2, 1), (-1, 2), (0, 2, 0)):
        with pytest.raises(InputError, match="slices"):
            open_data(root, slices=bad)
    with pytest.raises(InputError, match="no image"):
        open_data(root, slices=(50, 60))


def test_brats_damaged_case_is_one_sample(tmp_path: Path) -> None:
    root = brats_tree(tmp_path, 2021, cases=3)
    for kind in ("seg", "flair"):
        (root / f"BraTS2021_0000{1 if kind == 'seg' else 2}").joinpath(
            f"BraTS2021_0000{1 if kind == 'seg' else 2}_{kind}.nii.gz"
        ).write_bytes(b"damaged")
    data = open_data(root)
    failed = set()
    for sample in data.samples:
        try:
            read_sample(data, sample)
        except InputError as error:
            assert "unreadable or damaged" in str(error)
            failed.add(sample.group)
    assert failed == {"BraTS2021_00001", "BraTS2021_00002"}
    assert "BraTS2021_00000" in {s.group for s in data.samples}


def test_nifti_and_arrays(tmp_path: Path) -> None:
    voxels = RNG.normal(size=(4, 5, 6))
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "v.nii.gz")
    data = open_data(tmp_path / "v.nii.gz", slices=(2, 4))
    assert [(s.name, s.slice, s.group) for s in data.samples] == [
        ("v.nii.gz#2", 2, "v.nii.gz"),
        ("v.nii.gz#3", 3, "v.nii.gz"),
    ]
    assert open_data(tmp_path).layout == "nifti"
    # The identity runs to the right and to the front: both are turned.
    image = read_sample(data, data.samples[0])[0][..., 0]
    np.testing.assert_array_equal(image, voxels[::-1, ::-1, 2].T)

    stacks = {
        "train": RNG.integers(0, 256, (3, 4, 5)).astype(np.uint8),
        "test": RNG.integers(0, 256, (2, 4, 5)).astype(np.uint8),
        "masks": np.stack([np.zeros((4, 5), bool), np.eye(4, 5) > 0]),
    }
    (tmp_path / "npy").mkdir()
    for name, stack in stacks.items():
        np.save(tmp_path / "npy" / f"{name}.npy", stack)
    np.savez(tmp_path / "all.npz", **stacks)
    for root, first in (
        (tmp_path / "npy", "train.npy#0"),
        (tmp_path / "all.npz", "all.npz/train#0"),
    ):
        data = open_data(root)
        assert (data.layout, data.samples[0].name) == ("arrays", first)
        assert len({s.name for s in data.samples}) == 5
        assert [s.label for s in data.samples] == ["normal"] * 4 + ["anomalous"]
        image, mask = read_sample(data, data.samples[4])
        np.testing.assert_array_equal(image[..., 0], stacks["test"][1] / 255)
        np.testing.assert_array_equal(mask, stacks["masks"][1])
    only = open_data(tmp_path / "npy" / "test.npy")
    assert [(s.split, s.label) for s in only.samples] == [("test", "unknown")] * 2


def test_a_mask_on_another_grid_is_refused(tmp_path: Path) -> None:
    """Slice k of the mask would not be slice k of the image."""
    for name, shape, step in (
        ("few", (4, 5, 2), 1),
        ("turned", (4, 5, 3), -1),
        ("good", (4, 5, 3), 1),
    ):
        image = nibabel.Nifti1Image(RNG.normal(size=(4, 5, 3)), np.eye(4))
        nibabel.save(image, tmp_path / f"{name}.nii")
        mask = nibabel.Nifti1Image(np.ones(shape, np.uint8), np.diag([1, 1, step, 1]))
        nibabel.save(mask, tmp_path / f"{name}_mask.nii")
    data = open_data(tmp_path)
    for sample in data.samples:
        if sample.group == "good.nii":
            assert read_sample(data, sample)[1] is not None
            continue
        with pytest.raises(InputError, match=r"mask of '.*': grid \(4, 5, .*\) RA., its image has"):
            read_sample(data, sample)


def dicom_file(
    path: Path, pixels: np.ndarray, position: float, number: int, **more: object
) -> None:
    """A CT slice, stored as hospitals' systems do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"1.2.3.{number}"
    data.SOPClassUID, data.SeriesInstanceUID = pydicom.uid.CTImageStorage, "1.2.3"
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelRepresentation, data.SamplesPerPixel = 0, 1
    data.PhotometricInterpretation, data.InstanceNumber = "MONOCHROME2", number
    data.PixelSpacing, data.SliceThickness = [0.5, 0.8], 3
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.ImagePositionPatient = [-20, 10, position]
    data.RescaleSlope, data.RescaleIntercept = 2, -1024
    data.PixelData = pixels.astype("<u2").tobytes()
    for name, value in more.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)


def test_dicom_series_is_sorted_by_position(tmp_path: Path) -> None:
    slices = RNG.integers(0, 4096, (3, 4, 6))
    for name, at in (("b.dcm", 2), ("a.dcm", 0), ("c", 1)):
        dicom_file(tmp_path / name, slices[at], -7 + 3 * at, number=9 - at)
    data = open_data(tmp_path)
    assert data.layout == "dicom"
    assert [(s.name, s.slice) for s in data.samples] == [("a.dcm", 0), ("c", 1), ("b.dcm", 2)]
    assert len({s.group for s in data.samples}) == 1
    for k, sample in enumerate(data.samples):
        np.testing.assert_array_equal(read_sample(data, sample)[0][..., 0], 2 * slices[k] - 1024.0)
    (tmp_path / "d.dcm").write_bytes(b"\0" * 128 + b"DICM damaged")
    data = open_data(tmp_path)
    assert [s.slice for s in data.samples] == [0, 1, 2, None]
    with pytest.raises(InputError, match="unreadable or damaged"):
        read_sample(data, data.samples[3])


def test_groups_rule(tmp_path: Path) -> None:
    root = mvtec_tree(tmp_path / "mvtec")
    data = open_data(root, groups=r"regex:(.)\.png$")
    assert data.samples[0].group == "0" and data.samples[1].group == "1"
    assert shared_groups(data) == ("0", "中")
    assert shared_groups(open_data(root)) == ()
    tree = brats_tree(tmp_path / "brats", 2021)
    data = open_data(tree, groups=r"regex:BraTS2021_0000(\d)/")
    assert {s.group for s in data.samples} == set("0123456789") and shared_groups(data) == ()
    # Volumes are counted by groups of "runs", never cut into slices.
    data = open_data(tree, groups="gap:1000")
    assert len({s.group for s in data.samples}) == 1 and {s.split for s in data.samples} == {"test"}


def damage_split(root: Path) -> Path:
    mvtec_tree(root)
    for path in sorted((root / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (root / "test").rmdir()
    return root


def link_outside(root: Path) -> Path:
    mvtec_tree(root / "data")
    outside = picture(root / "secret.png")
    os.symlink(outside, root / "data" / "train" / "good" / "002.png")
    return root / "data"


def link_folder_outside(root: Path) -> Path:
    picture(root / "elsewhere" / "a.png")
    picture(root / "data" / "b.png")
    os.symlink(root / "elsewhere", root / "data" / "linked")
    return root / "data"


def visa_columns(root: Path) -> Path:
    (root / "split_csv").mkdir(parents=True)
    (root / "split_csv" / "1cls.csv").write_text("object,image\ncandle,a.png\n")
    return root


def empty(root: Path) -> Path:
    return root


@pytest.mark.parametrize(
    ("make", "layout", "message"),
    [
        (damage_split, "auto", "no folder .*test"),
        (damage_split, "btad", "no folder .*train/ok"),
        (visa_columns, "auto", r"columns \['object', 'image'\]"),
        (empty, "auto", "no known layout, expected one of .*'mvtec'.*'arrays'"),
        (empty, "folder", "no image in layout 'folder'"),
        (empty, "brats2021", "no image in layout"),
        (empty, "dicom", "no image in layout"),
        (empty, "imagenet", "layout 'imagenet', expected one of"),
    ],
)
def test_refusals(tmp_path: Path, make: Callable[[Path], Path], layout: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_data(make(tmp_path), layout)
    assert "\n" not in str(caught.value)


def test_a_link_to_the_outside_is_one_row(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    told = "leads outside the folder"
    assert refused(open_data(link_outside(tmp_path / "photos")), told) == ["train/good/002.png"]
    root, other = link_folder_outside(tmp_path / "plain"), picture(tmp_path / "c.png", spot())
    (root / "ext.txt").symlink_to(other)
    (root / "c.png").symlink_to(other)
    picture(root / "masks" / "b.png", spot())
    picture(root / "d.png")
    (root / "masks" / "d.png").symlink_to(other)
    capsys.readouterr()
    data = open_data(root)
    assert [s.name for s in data.samples] == ["b.png", "c.png", "d.png"]
    assert refused(data, told) == ["c.png", "d.png"]
    assert capsys.readouterr().err.endswith(
        "not used: files (1): 1 .txt; linked folders (1): 'linked'\n"
    )
    image = nibabel.Nifti1Image(np.zeros((3, 4, 2), np.int16), np.eye(4))
    (tmp_path / "volumes").mkdir()
    for name in ("v.nii", "volumes/a.nii", "volumes/b.nii"):
        nibabel.save(image, tmp_path / name)
    for name in ("c.nii", "b_mask.nii"):
        (tmp_path / "volumes" / name).symlink_to(tmp_path / "v.nii")
    assert refused(open_data(tmp_path / "volumes"), told) == ["b.nii", "c.nii"]
    for k in range(3):
        folder = tmp_path / ("series" if k < 2 else "")
        dicom_file(folder / f"{k}.dcm", np.zeros((3, 4)), 3 * k, number=k)
    (tmp_path / "series" / "2.dcm").symlink_to(tmp_path / "2.dcm")
    assert refused(open_data(tmp_path / "series"), told) == ["2.dcm"]


def test_missing_root_and_file_as_root(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_data(tmp_path / "absent")
    with pytest.raises(InputError, match="needs a folder"):
        open_data(picture(tmp_path / "a.png"), "mvtec")
    with pytest.raises(InputError, match="no known layout"):
        open_data(tmp_path / "a.png")


def test_one_bad_file_leaves_the_others(tmp_path: Path) -> None:
    root = mvtec_tree(tmp_path)
    (root / "train/good/001.png").write_bytes(b"broken")
    picture(root / "ground_truth/bent wire/000_mask.png", spot(shape=(9, 6)))
    picture(root / "test/bent wire/missing.png")
    picture(root / "test/bent wire/strange.png")
    picture(root / "ground_truth/bent wire/strange_mask.png", np.minimum(spot(), 5))
    data = open_data(root)
    errors = {}
    for sample in data.samples:
        try:
            read_sample(data, sample)
        except InputError as error:
            errors[sample.name] = str(error)
            assert "\n" not in str(error)
    assert sorted(errors) == [
        "test/bent wire/000.png",
        "test/bent wire/missing.png",
        "test/bent wire/strange.png",
        "train/good/001.png",
    ]
    assert "unreadable or damaged" in errors["train/good/001.png"]
    assert "shape (9, 6), its image has (6, 9)" in errors["test/bent wire/000.png"]
    assert "no such file" in errors["test/bent wire/missing.png"]
    assert "largest value 5" in errors["test/bent wire/strange.png"]


def test_not_finite_pixels_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1.0, np.nan]]))
    data = open_data(tmp_path)
    with pytest.raises(InputError, match="NaN or infinite"):
        read_sample(data, data.samples[0])


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[0, 127, 128]], np.uint8), [0, 0, 1]),
        (np.array([[0, 1, 0]], np.uint8), [0, 1, 0]),
        (np.array([[0, 32639, 32640]], np.uint16), [0, 0, 1]),
        (np.array([[False, True, False]]), [0, 1, 0]),
        (np.array([[[0, 0, 0], [0, 255, 0], [9, 9, 9]]], np.uint8), [0, 1, 0]),
    ],
    ids=["8 bit", "labels", "16 bit", "1 bit", "colour"],
)
def test_mask_thresholds(tmp_path: Path, pixels: np.ndarray, expected: list[int]) -> None:
    mask = read_mask(picture(tmp_path / "m.png", pixels))
    np.testing.assert_array_equal(mask, np.array([expected], bool))


@pytest.mark.parametrize("top", [3.0, 0.4, np.nan])
def test_masks_of_floats_that_mean_nothing_are_refused(tmp_path: Path, top: float) -> None:
    np.save(tmp_path / "m.npy", np.array([[0.0, top]]))
    with pytest.raises(InputError, match=f"largest value {top:g}, expected 0 and 1"):
        read_mask(tmp_path / "m.npy")
    np.save(tmp_path / "m.npy", np.array([[0.0, 1.0], [0.0, 0.0]]))
    assert read_mask(tmp_path / "m.npy").sum() == 1
    np.save(tmp_path / "m.npy", np.zeros((2, 2)))
    assert not read_mask(tmp_path / "m.npy").any()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.array([[0, -1]], np.int16), "smallest value -1, expected 0 or more"),
        (np.array([[0.0, -0.5]]), "smallest value -0.5, expected 0 or more"),
        (np.array([[[0, 0, 0], [0, 255, -9]]], np.int16), "smallest value -9, expected 0 or more"),
        (np.array([[0, 1j]]), "values of type complex128, expected numbers"),
    ],
    ids=["ignored", "floats", "colours", "complex"],
)
def test_masks_are_numbers_of_0_or_more(tmp_path: Path, values: np.ndarray, told: str) -> None:
    np.save(tmp_path / "m.npy", values)
    for labels in (False, True):
        with pytest.raises(InputError, match=told):
            read_mask(tmp_path / "m.npy", labels)


def test_one_unclear_mask_of_a_stack_is_one_row(tmp_path: Path) -> None:
    np.save(tmp_path / "test.npy", np.zeros((3, 2, 2), ">u2") + 9)
    for value, told in ((-1, "smallest value -1"), (0.3, "largest value 0.3"), (np.nan, "nan")):
        np.save(
            tmp_path / "masks.npy", np.stack([np.eye(2), 0 * np.eye(2), np.full((2, 2), value)])
        )
        data = open_data(tmp_path)
        assert [s.label for s in data.samples] == ["anomalous", "normal", "anomalous"]
        assert read_sample(data, data.samples[0])[0].max() == 9 / 65535
        with pytest.raises(InputError, match=rf"masks.npy#2': .*{told}"):
            read_sample(data, data.samples[2])


@pytest.mark.parametrize("kind", ["c16", "U3", "S3", "M8[s]", [("a", "u1")]])
def test_masks_of_a_stack_are_numbers(tmp_path: Path, kind: Any) -> None:
    np.save(tmp_path / "test.npy", np.zeros((1, 2, 2)))
    np.save(tmp_path / "masks.npy", np.zeros((1, 2, 2), kind))
    with pytest.raises(InputError, match=r"masks '.*masks.npy': values of type .*, expected num"):
        open_data(tmp_path)


def test_a_member_that_is_no_array_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("test", b"raw")
    with pytest.raises(InputError, match=r"a.npz.*'test' is no array"):
        open_data(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "stray", ["test.npy", "x.dcm", "x.nii", "test/", "normal/", "BraTS2021_00000/"]
)
def test_one_entry_among_images_does_not_decide_the_layout(tmp_path: Path, stray: str) -> None:
    for k in range(3):
        picture(tmp_path / f"{k}.png")
    if stray == "test.npy":
        np.save(tmp_path / stray, np.zeros((2, 4, 5)))
    elif stray.endswith("/"):
        (tmp_path / stray).mkdir()
    else:
        (tmp_path / stray).write_bytes(b"")
    data = open_data(tmp_path)
    assert data.layout == "folder" and {"0.png", "1.png", "2.png"} <= {s.name for s in data.samples}


def test_what_stacks_and_cases_do_not_use_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tree = brats_tree(tmp_path / "brats", 2021, cases=2)
    open_data(tree)
    assert capsys.readouterr().err == ""
    (tree / "BraTS2021_7").mkdir()
    (tree / "BraTS2021_00000" / "notes.txt").write_text("")
    open_data(tree)
    assert capsys.readouterr().err.endswith(
        "not used: files (1): 1 .txt; folders (1): 'BraTS2021_7' with 0 files\n"
    )
    (tmp_path / "stacks").mkdir()
    for name in ("test", "mask"):
        np.save(tmp_path / "stacks" / f"{name}.npy", np.zeros((2, 4, 5)))
    open_data(tmp_path / "stacks")
    told = "not used: arrays (1): 'mask.npy', expected 'train.npy' or 'test.npy' or 'masks.npy'\n"
    assert capsys.readouterr().err.endswith(told)


def test_stacks_with_misspelt_names_are_no_images(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("test", "Train", "mask"):
        np.save(tmp_path / f"{name}.npy", np.zeros((5, 8, 8)))
    data = open_data(tmp_path)
    assert data.layout == "arrays" and [s.split for s in data.samples] == 5 * ["train"] + 5 * [
        "test"
    ]
    assert "not used: arrays (1): 'mask.npy', expected" in capsys.readouterr().err
    (tmp_path / "Train.npy").rename(tmp_path / "training.npy")
    told = r"got 'test.npy' among 3 .npy files, expected train.npy, test.npy and masks.npy"
    with pytest.raises(InputError, match=told):
        open_data(tmp_path)
    assert open_data(tmp_path, "folder").layout == "folder"
    for name in ("train", "TRAIN"):
        np.save(tmp_path / f"{name}.npy", np.zeros((5, 8, 8)))
    with pytest.raises(InputError, match=r"got 'TRAIN.npy' and 'train.npy', expected one"):
        open_data(tmp_path)


def test_arrays_of_other_names_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    stack, path = np.zeros((2, 4, 5)), tmp_path / "a.npz"
    np.savez(path, test=stack, train=stack, mask=stack)
    assert len(open_data(path).samples) == 4
    assert capsys.readouterr().err == (
        f"data {str(path)!r}: not used: arrays (1): 'mask', expected 'train' or 'test' or 'masks'\n"
    )
    for names, told in (
        (("a", "b"), "got 'a', 'b',"),
        (("masks",), "got 'masks',"),
        ((), "got no"),
    ):
        members: dict[str, Any] = dict.fromkeys(names, stack)
        np.savez(path, **members)
        with pytest.raises(InputError, match=rf"arrays of .*: {told}.* expected 'train' or 'test'"):
            open_data(path)


@pytest.mark.parametrize("names", ["imagesTr/a labelsTr/a", "sub-1/anat/a sub-2/anat/b", "test/a"])
def test_volumes_in_subfolders_are_refused(tmp_path: Path, names: str) -> None:
    picture(tmp_path / "shown.png")
    image = nibabel.Nifti1Image(np.zeros((3, 4, 2), np.int16), np.eye(4))
    for name in names.split():
        (tmp_path / name).parent.mkdir(parents=True)
        nibabel.save(image, tmp_path / f"{name}.nii.gz")
    told = rf"got volumes in subfolders, such as '{names.split()[0]}.nii.gz', expected one folder"
    with pytest.raises(InputError, match=told):
        open_data(tmp_path)
    flat = nibabel.Nifti1Image(np.zeros((3, 4, 1), np.int16), np.eye(4))
    for name in names.split():
        nibabel.save(flat, tmp_path / f"{name}.nii.gz")
    assert open_data(tmp_path).layout == "folder"


@pytest.mark.parametrize("name", ["Train/Good", "train/Good", "tile/TRAIN/ok", "Normal", "TEST"])
def test_folders_of_a_layout_in_capitals_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    picture(tmp_path / "a.png")
    assert open_data(tmp_path).layout == "folder"
    picture(tmp_path / name / "b.png")
    own = name.removeprefix("tile/")
    with pytest.raises(InputError, match=f"got a folder '{own}', expected '{own.lower()}'"):
        open_data(tmp_path)
    assert len(open_data(tmp_path, "folder").samples) == 2


def test_the_line_has_no_codes_of_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    picture(tmp_path / "a.png")
    for name in ("x.t\nxt", "y.\x1b[31m"):
        (tmp_path / name).write_text("")
    open_data(tmp_path)
    line = capsys.readouterr().err
    assert line.endswith("files (2): 1 '.\\x1b[31m', 1 '.t\\nxt'\n") and line.count("\n") == 1


def test_folders_of_masks_hold_no_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("a.png", "p/a.png", "Masks/a.png", "p/masks/a.png", "p/Ground_Truth/x.png"):
        picture(tmp_path / "plain" / name)
    assert [s.name for s in open_data(tmp_path / "plain").samples] == ["a.png", "p/a.png"]
    told = "masks without an image (3): 'Masks/a.png', 'p/Ground_Truth/x.png', 'p/masks/a.png'\n"
    assert capsys.readouterr().err.endswith(told)
    tree = folder_tree(tmp_path / "tree")
    picture(tree / "test" / "bent" / "masks" / "f.png")
    picture(tree / "test" / "bent" / "f.png")
    picture(tree / "normal" / "masks" / "g.png")
    assert len(open_data(tree).samples) == 6
    told = "masks without an image (2): 'normal/masks/g.png', 'test/bent/masks/f.png'\n"
    assert capsys.readouterr().err.endswith(told)


def test_masks_of_volumes_are_no_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 4, 2), np.int16), np.eye(4))
    for name in ("a.nii", "a_MASK.nii"):
        nibabel.save(image, tmp_path / name)
    (tmp_path / "b.nii").mkdir()
    assert {s.path.name for s in open_data(tmp_path).samples} == {"a.nii"}
    nibabel.save(image, tmp_path / "other_mask.nii")
    assert {s.mask for s in open_data(tmp_path).samples} == {tmp_path / "a_MASK.nii"}
    assert {s.mask for s in open_data(tmp_path / "a.nii").samples} == {tmp_path / "a_MASK.nii"}
    told = (
        "not used: folders (1): 'b.nii' with 0 files; "
        "masks without an image (1): 'other_mask.nii'\n"
    )
    assert capsys.readouterr().err.endswith(told)
    (tmp_path / "a_MASK.nii").rename(tmp_path / "a_mask.nii")
    for name in ("a_SEG.nii.gz", "c.nii"):
        nibabel.save(image, tmp_path / name)
    data = open_data(tmp_path)
    assert refused(data, "masks 'a_SEG.nii.gz' and 'a_mask.nii', expected one") == ["a.nii"]
    assert {s.name for s in data.samples} == {"a.nii", "c.nii#0", "c.nii#1"}
    assert "second masks (1): 'a_mask.nii'" in capsys.readouterr().err


def test_masks_beside_their_images_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    plain, tree = tmp_path / "plain", mvtec_tree(tmp_path / "mvtec")
    for name in ("a.png", "a_mask.png", "b.png", "b_GT.tif", "alone_mask.png"):
        picture(plain / name)
    data = open_data(plain)
    assert [s.name for s in data.samples] == ["a.png", "alone_mask.png", "b.png"]
    told = "not used: masks beside their images (2): 'a_mask.png', 'b_GT.tif'\n"
    assert capsys.readouterr().err.endswith(told)
    assert len(image_files(plain)) == 3
    assert capsys.readouterr().err.endswith(told)
    for name in ("test/bent wire/000_mask.png", "train/good/001_seg.png"):
        picture(tree / name)
    assert len(open_data(tree).samples) == 6
    assert "masks beside their images (2): 'test/bent wire/000_" in capsys.readouterr().err
