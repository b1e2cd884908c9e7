"""Layouts of photographs: MVTec AD, MPDD, BTAD, VisA and plain folders.

Each function lists the samples below a root; a mask is read only where a label depends on it.
"""

from os.path import isdir
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dal_jax._errors import InputError
from dal_jax.images._folders import (
    is_in_masks,
    is_readable,
    stem_of,
    stems_of_owner,
    without_masks,
)
from dal_jax.images._io import read_mask, read_table
from dal_jax.images._samples import (
    NORMAL,
    UNKNOWN,
    DataSelection,
    Sample,
    folders,
    inside,
    is_inside,
    name_of,
    need_folder,
    photo,
    pictures,
    walk,
)

_NORMAL_NAMES = ("good", "ok", "normal")


class _Truth(NamedTuple):
    """Masks of images, and of some why their mask is not known."""

    masks: dict[Path, Path]
    refused: dict[Path, str]


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
    rows = _visa_rows(inside(table(root), root))
    objects = sorted({row["object"] for row in rows.values()})
    chosen = choose(choice.category, objects, root)
    return [_visa_sample(row, root, n) for n, row in rows.items() if row["object"] == chosen]


def folder(root: Path, choice: DataSelection) -> list[Sample]:
    """List normal/ (for training), test/ and masks/ with the same names; or images, all to test.

    Without images in normal/ and test/ the masks of the others are below masks/, too. A folder of
    masks holds no images, wherever it is.
    """
    test, masks = root / "test", root / "masks"
    normal, tested = _images(root / "normal", root), _images(test, root)
    if not (normal or tested):
        return _tested(_images(root, root), root, masks, root, kinds=False)
    found = [photo(path, root, "train", NORMAL) for path in normal]
    return found + _tested(tested, test, masks, root, kinds=True)


def _images(folder: Path, root: Path) -> list[Path]:
    """Return the images of a folder, if there is one, and its subfolders, without masks."""
    every = walk(folder, root) if isdir(folder) else ()
    return without_masks([path for path in every if not is_in_masks(path.parent, root)])


def table(root: Path) -> Path:
    """Return the path of the table of VisA."""
    return root / "split_csv" / "1cls.csv"


def choose(category: str | None, known: list[str], root: Path) -> str:
    """Return the requested category, or the only one of the data set."""
    if category is None and len(known) == 1:
        return known[0]
    if category not in known:
        raise InputError(f"category {category!r} of {str(root)!r}: expected one of {known}")
    return category


def _category(root: Path, choice: DataSelection, sign: str) -> Path:
    if isdir(root / sign) and choice.category is None:
        return root
    known = [path.name for path in folders(root, root) if isdir(path / sign)]
    if not known and choice.category is None:
        return root  # the error then names the missing folder
    return root / choose(choice.category, known, root)


def _splits(base: Path, root: Path, good: str, layout: str) -> list[Sample]:
    train = need_folder(base / "train" / good, layout)
    shown = without_masks(pictures(train, root))
    found = [photo(path, root, "train", NORMAL) for path in shown]
    for kind in filter(is_readable, folders(need_folder(base / "test", layout), root)):
        truth, images = base / "ground_truth" / kind.name, without_masks(pictures(kind, root))
        known, label = _masks(images, truth, root), _label(kind.name)
        for path in images:
            mask = known.masks.get(path)
            if mask is None and isdir(truth) and label != NORMAL:
                mask = truth / f"{path.stem}_mask.png"  # if it is missing, reading reports that
            found.append(photo(path, root, "test", label, mask, known.refused.get(path, "")))
    return found


def _label(kind: str) -> str:
    """Return the label of a folder or of a row of a table."""
    return NORMAL if kind.lower() in _NORMAL_NAMES else kind or UNKNOWN


def _masks(images: list[Path], truth: Path, root: Path) -> _Truth:
    """Return the masks of images of one folder: files of the same name, or the first that fits.

    A mask has the whole name of its image, its name with another extension, or this with an end
    such as "_mask". Of an image with two masks, or of two with one, the mask is not known.
    """
    named = {path.name: [path] for path in images}
    stems: dict[str, list[Path]] = {}
    for path in images:
        stems.setdefault(stem_of(path), []).append(path)
    found, refused = dict[Path, Path](), dict[Path, str]()
    for mask in pictures(truth, root) if isdir(truth) else []:
        stem = stem_of(mask)
        shorter = stems_of_owner(mask)
        tried = (named.get(mask.name), named.get(stem), *map(stems.get, (stem, *shorter)))
        owners = next(filter(None, tried), [])
        if len(owners) > 1:
            both = " and ".join(repr(path.name) for path in owners[:2])
            told = f"mask {str(mask)!r}: fits {both}, expected the name of one image"
            refused |= dict.fromkeys(owners, told)
        for path in owners:
            if path in found:
                both = f"{found[path].name!r} and {mask.name!r}"
                refused[path] = f"image {str(path)!r}: masks {both}, expected one"
            found.setdefault(path, mask)
    return _Truth(found, refused)


def _visa_rows(table: Path) -> dict[int, dict[str, str]]:
    """Return the rows of the table by number, from 1, without those whose cells are all empty."""
    columns = ["object", "split", "label", "image", "mask"]
    rows: dict[int, dict[str, str]] = {}
    for number, row in enumerate(read_table(table, columns, "layout 'visa'"), 1):
        cells = {column: row[column].strip() for column in columns}
        if any(cells.values()):
            rows[number] = {**cells, "split": cells["split"].lower()}
    seen: set[Path] = set()
    for number, row in rows.items():
        found, split, label = (row[column] for column in ("image", "split", "label"))
        where = f"layout 'visa': {str(table)!r}, row {number}"
        if not row["object"]:
            raise InputError(f"{where}: object '', expected a name")
        if split not in ("train", "test"):
            raise InputError(f"{where}: split {split!r}, expected 'train' or 'test'")
        if not found:
            raise InputError(f"{where}: image {found!r}, expected a path")
        if split == "train" and _label(label) != NORMAL:
            got = f"label {label!r} of {found!r}, which is for training"
            raise InputError(f"{where}: {got}, expected 'normal'")
        if Path(found) in seen:
            raise InputError(f"{where}: image {found!r} in several rows, expected one")
        seen.add(Path(found))
    return rows


def _visa_sample(row: dict[str, str], root: Path, number: int) -> Sample:
    path, own = root / row["image"], table(root)
    split, label, mask = row["split"], _label(row["label"]), None
    try:
        mask = inside(root / row["mask"], root) if row["mask"] else None
        inside(path, root)
    except InputError as error:
        told = f"layout 'visa': {str(own)!r}, row {number}: {error}"
        if is_inside(path, root):
            return photo(path, root, split, label, None, told)
        # The path may lie anywhere, so that the row has the name of its place in the table.
        name = f"{name_of(own, root)}#{number}"
        return Sample(name, own, split, label, None, name, None, told)
    return photo(path, root, split, label, mask)


def _tested(images: list[Path], base: Path, masks: Path, root: Path, kinds: bool) -> list[Sample]:
    """Return the samples of images to test; with `kinds` folders below the base are labels."""
    places: dict[Path, list[Path]] = {}
    for path in images:
        places.setdefault(path.parent, []).append(path)
    truth = _Truth({}, {})
    for place, own in places.items():
        known = _masks(own, masks / place.relative_to(base), root)
        truth.masks.update(known.masks)
        truth.refused.update(known.refused)
    found = []
    for path in images:
        mask, refused = truth.masks.get(path), truth.refused.get(path, "")
        label, below = UNKNOWN, path.relative_to(base)
        if kinds and len(below.parts) > 1:
            label = _label(below.parts[0])
        elif mask is not None and not refused:
            label = "anomalous" if _marks(mask, root) else NORMAL
        found.append(photo(path, root, "test", label, mask, refused))
    return found


def _marks(mask: Path, root: Path) -> bool:
    """Return whether a mask marks any pixel; a damaged mask counts, and its sample is refused."""
    try:
        return bool(np.any(read_mask(inside(mask, root))))
    except InputError:
        return True
