"""Layouts of photographs: MVTec AD, MPDD, BTAD, VisA and plain folders.

Each function lists the samples below a root; a mask is read only where a label depends on it.
"""

from os.path import isdir
from pathlib import Path

import numpy as np

from dal_jax._errors import InputError
from dal_jax.images._folders import is_in_masks, is_readable
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
# What the name of a mask may have behind the name of its image.
_MASK_ENDS = ("_mask", "_gt", "_seg")


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
    objects = sorted({row["object"] for row in rows})
    chosen = choose(choice.category, objects, root)
    return [_visa_sample(row, root) for row in rows if row["object"] == chosen]


def folder(root: Path, choice: DataSelection) -> list[Sample]:
    """List normal/ (for training), test/ and masks/ with the same names; or images, all to test.

    Without images in normal/ and test/ the masks of the others are below masks/, too. A folder of
    masks holds no images, wherever it is.
    """
    test, masks = root / "test", root / "masks"
    normal, tested = _images(root / "normal", root), _images(test, root)
    if not (normal or tested):
        tested = _images(root, root)
        _refuse_masks(tested)
        return _tested(tested, root, masks, root, kinds=False)
    _refuse_masks([*normal, *tested])
    found = [photo(path, root, "train", NORMAL) for path in normal]
    return found + _tested(tested, test, masks, root, kinds=True)


def _images(folder: Path, root: Path) -> list[Path]:
    """Return the images of a folder, if there is one, and its subfolders, without masks."""
    every = walk(folder, root) if isdir(folder) else ()
    return [path for path in every if not is_in_masks(path.parent, root)]


def _refuse_masks(images: list[Path]) -> None:
    """Refuse images that have the name of a mask of another one beside them."""
    named = {(path.parent, _stem(path).lower()): path for path in images}
    for path in images:
        stem = _stem(path).lower()
        for end in filter(stem.endswith, _MASK_ENDS):
            image = named.get((path.parent, stem.removesuffix(end)))
            if image is not None:
                reason = f"named as a mask of {image.name!r} beside it, expected a folder 'masks'"
                raise InputError(f"image {str(path)!r}: {reason}")


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
    found = [photo(path, root, "train", NORMAL) for path in pictures(train, root)]
    for kind in filter(is_readable, folders(need_folder(base / "test", layout), root)):
        truth, images = base / "ground_truth" / kind.name, pictures(kind, root)
        masks, label = _masks(images, truth, root), _label(kind.name)
        for path in images:
            mask = masks.get(path)
            if mask is None and isdir(truth) and label != NORMAL:
                mask = truth / f"{path.stem}_mask.png"  # if it is missing, reading reports that
            found.append(photo(path, root, "test", label, mask))
    return found


def _label(kind: str) -> str:
    """Return the label of a folder or of a row of a table."""
    return NORMAL if kind.lower() in _NORMAL_NAMES else kind or UNKNOWN


def _masks(images: list[Path], truth: Path, root: Path) -> dict[Path, Path]:
    """Return the masks of images of one folder: files of the same name, or the first that fits.

    A mask has the whole name of its image, its name with another extension, or this with an end
    such as "_mask".
    """
    named = {path.name: [path] for path in images}
    stems: dict[str, list[Path]] = {}
    for path in images:
        stems.setdefault(_stem(path), []).append(path)
    found: dict[Path, Path] = {}
    for mask in pictures(truth, root) if isdir(truth) else []:
        stem = _stem(mask)
        shorter = [stem.removesuffix(end) for end in _MASK_ENDS if stem.endswith(end)]
        tried = (named.get(mask.name), named.get(stem), *map(stems.get, (stem, *shorter)))
        owners = next(filter(None, tried), [])
        if len(owners) > 1:
            both = " and ".join(repr(path.name) for path in owners[:2])
            raise InputError(f"mask {str(mask)!r}: fits {both}, expected the name of one image")
        for path in owners:
            if path in found:
                both = f"{found[path].name!r} and {mask.name!r}"
                raise InputError(f"image {str(path)!r}: masks {both}, expected one")
            found[path] = mask
    return found


def _stem(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).stem


def _visa_rows(table: Path) -> list[dict[str, str]]:
    columns = ["object", "split", "label", "image", "mask"]
    rows = [
        {column: row[column].strip() for column in columns}
        for row in read_table(table, columns, "layout 'visa'")
    ]
    seen: set[Path] = set()
    for number, row in enumerate(rows, 1):
        found, split, label = (row[column] for column in ("image", "split", "label"))
        if split not in ("train", "test"):
            raise InputError(f"layout 'visa': split {split!r}, expected 'train' or 'test'")
        if not found:
            raise InputError(f"layout 'visa': image {found!r} in row {number}, expected a path")
        if split == "train" and _label(label) != NORMAL:
            got = f"label {label!r} of {found!r}, which is for training"
            raise InputError(f"layout 'visa': {got}, expected 'normal'")
        if Path(found) in seen:
            raise InputError(f"layout 'visa': image {found!r} in several rows, expected one")
        seen.add(Path(found))
    return rows


def _visa_sample(row: dict[str, str], root: Path) -> Sample:
    path = inside(root / row["image"], root)
    mask = inside(root / row["mask"], root) if row["mask"] else None
    return photo(path, root, row["split"], _label(row["label"]), mask)


def _tested(images: list[Path], base: Path, masks: Path, root: Path, kinds: bool) -> list[Sample]:
    """Return the samples of images to test; with `kinds` folders below the base are labels."""
    places: dict[Path, list[Path]] = {}
    for path in images:
        places.setdefault(path.parent, []).append(path)
    truth: dict[Path, Path] = {}
    for place, own in places.items():
        truth |= _masks(own, masks / place.relative_to(base), root)
    found = []
    for path in images:
        mask, label, below = truth.get(path), UNKNOWN, path.relative_to(base)
        if kinds and len(below.parts) > 1:
            label = _label(below.parts[0])
        elif mask is not None:
            label = "anomalous" if _marks(mask) else NORMAL
        found.append(photo(path, root, "test", label, mask))
    return found


def _marks(mask: Path) -> bool:
    """Return whether a mask marks any pixel; a damaged mask counts, and its sample is refused."""
    try:
        return bool(np.any(read_mask(mask)))
    except InputError:
        return True
