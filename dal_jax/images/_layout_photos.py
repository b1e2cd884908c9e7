"""Layouts of photographs: MVTec AD, MPDD, BTAD, VisA and plain folders.

Each function lists the samples below a root; a mask is read only where a label depends on it.
"""

from pathlib import Path

import numpy as np

from dal_jax._errors import InputError
from dal_jax.images._io import read_mask, read_table
from dal_jax.images._samples import (
    NORMAL,
    UNKNOWN,
    DataSelection,
    Sample,
    folders,
    inside,
    need_folder,
    photo,
    pictures,
    walk,
)

_NORMAL_NAMES = ("good", "ok", "normal")


def mvtec(root: Path, choice: DataSelection) -> list[Sample]:
    """List MVTec AD and MPDD: train/good, test/KIND, ground_truth/KIND/STEM_mask.png.

    Source: Bergmann et al., MVTec AD, CVPR 2019; Jezek et al., MPDD, ICUMT 2021.
    """
    return _splits(_category(root, choice, "train/good"), root, "good", "mvtec")


def btad(root: Path, choice: DataSelection) -> list[Sample]:
    """List BTAD: train/ok, test/ok, test/ko, ground_truth/ko/STEM.png or .bmp.

    Source: Mishra et al., VT-ADL, ISIE 2021, and the archive published with it.
    """
    return _splits(_category(root, choice, "train/ok"), root, "ok", "btad")


def visa(root: Path, choice: DataSelection) -> list[Sample]:
    """List VisA by its table split_csv/1cls.csv: object, split, label, image, mask.

    Source: Zou et al., SPot-the-Difference, ECCV 2022, github.com/amazon-science/spot-diff.
    """
    rows = _visa_rows(inside(root / "split_csv" / "1cls.csv", root))
    objects = sorted({row["object"] for row in rows})
    chosen = choose(choice.category, objects, root)
    return [_visa_sample(row, root) for row in rows if row["object"] == chosen]


def folder(root: Path, choice: DataSelection) -> list[Sample]:
    """List normal/ (for training), test/ and masks/ with the same names; or images, all to test."""
    normal, test, masks = root / "normal", root / "test", root / "masks"
    if not (normal.is_dir() or test.is_dir()):
        return [photo(path, root, "test", UNKNOWN) for path in walk(root, root)]
    found = [photo(p, root, "train", NORMAL) for p in walk(normal, root)] if normal.is_dir() else []
    tested = list(walk(test, root)) if test.is_dir() else []
    return found + [_tested(path, test, masks, root) for path in tested]


def choose(category: str | None, known: list[str], root: Path) -> str:
    """Return the requested category, or the only one of the data set."""
    if category is None and len(known) == 1:
        return known[0]
    if category not in known:
        raise InputError(f"category {category!r} of {str(root)!r}: expected one of {known}")
    return category


def _category(root: Path, choice: DataSelection, sign: str) -> Path:
    if (root / sign).is_dir() and choice.category is None:
        return root
    known = [path.name for path in folders(root, root) if (path / sign).is_dir()]
    if not known and choice.category is None:
        return root  # the error then names the missing folder
    return root / choose(choice.category, known, root)


def _splits(base: Path, root: Path, good: str, layout: str) -> list[Sample]:
    train = need_folder(base / "train" / good, layout)
    found = [photo(path, root, "train", NORMAL) for path in pictures(train, root)]
    for kind in folders(need_folder(base / "test", layout), root):
        truth = base / "ground_truth" / kind.name
        for path in pictures(kind, root):
            if kind.name in _NORMAL_NAMES:
                found.append(photo(path, root, "test", NORMAL))
            else:
                mask = _find_mask(truth, path.stem, root)
                if mask is None and truth.is_dir():
                    mask = truth / f"{path.stem}_mask.png"  # if it is missing, reading reports that
                found.append(photo(path, root, "test", kind.name, mask))
    return found


def _find_mask(truth: Path, stem: str, root: Path) -> Path | None:
    for name in (f"{stem}_mask", stem):
        for kind in (".png", ".bmp", ".tif", ".tiff", ".jpg", ".npy", ".PNG", ".BMP", ".JPG"):
            if (truth / (name + kind)).is_file():
                return inside(truth / (name + kind), root)
    return None


def _visa_rows(table: Path) -> list[dict[str, str]]:
    columns = ["object", "split", "label", "image", "mask"]
    rows = read_table(table, columns, "layout 'visa'")
    bad = {row["split"] for row in rows} - {"train", "test"}
    if bad:
        raise InputError(f"layout 'visa': split {min(bad)!r}, expected 'train' or 'test'")
    return rows


def _visa_sample(row: dict[str, str], root: Path) -> Sample:
    path = inside(root / row["image"], root)
    mask = inside(root / row["mask"], root) if row["mask"] else None
    return photo(path, root, row["split"], row["label"], mask)


def _tested(path: Path, test: Path, masks: Path, root: Path) -> Sample:
    below = path.relative_to(test)
    mask = _find_mask(masks / below.parent, path.stem, root) if masks.is_dir() else None
    if len(below.parts) > 1:
        kind = below.parts[0]
        return photo(path, root, "test", NORMAL if kind in _NORMAL_NAMES else kind, mask)
    if not masks.is_dir():
        return photo(path, root, "test", UNKNOWN)
    label = "anomalous" if mask is not None and _marks(mask) else NORMAL
    return photo(path, root, "test", label, mask)


def _marks(mask: Path) -> bool:
    """Return whether a mask marks any pixel; a damaged mask counts, and its sample is refused."""
    try:
        return bool(np.any(read_mask(mask)))
    except InputError:
        return True
