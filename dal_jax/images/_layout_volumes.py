"""Layouts of volumes and stacks: BraTS 2021 and 2023, NIfTI, DICOM series, arrays."""

import hashlib
import re
import sys
from os.path import isdir, isfile
from pathlib import Path

import numpy as np

from dal_jax._errors import InputError
from dal_jax._files import decoding
from dal_jax.images._dicom import Plane, dicom_files, in_order, plane
from dal_jax.images._io import to_mask
from dal_jax.images._samples import (
    NORMAL,
    UNKNOWN,
    DataSelection,
    Sample,
    cached_stack,
    cached_volume,
    entries,
    folders,
    inside,
    name_of,
)
from dal_jax.images._volumes import VOLUME_ENDS, axial_slice, is_volume, num_slices

# Share of the patients whose slices without tumour are used for training.
TRAIN_SHARE = 0.7
CASE_2021 = re.compile(r"(BraTS2021_\d{5})")
CASE_2023 = re.compile(r"(BraTS-[A-Za-z]+-\d{5})-\d{3}")
# Names of arrays, and how many of other names are named.
STACKS = ("train", "test", "masks")
_MOST_NAMES = 3
_CONTRASTS_2021 = ("flair", "t1", "t1ce", "t2")
_CONTRASTS_2023 = ("t2f", "t1n", "t1c", "t2w")


def brats2021(root: Path, choice: DataSelection) -> list[Sample]:
    """List BraTS 2021: BraTS2021_00000/BraTS2021_00000_{t1,t1ce,t2,flair,seg}.nii.gz.

    Source: Baid et al., arXiv 2107.02314, and the archive published with it.
    """
    return _brats(root, choice, CASE_2021, "_", _CONTRASTS_2021)


def brats2023(root: Path, choice: DataSelection) -> list[Sample]:
    """List BraTS 2023: BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz.

    The last number counts the visits of one patient.

    Source: Adewole et al., arXiv 2305.19369, and the archive published with it.
    """
    return _brats(root, choice, CASE_2023, "-", _CONTRASTS_2023)


def nifti(root: Path, choice: DataSelection) -> list[Sample]:
    """List a NIfTI or MGH file, or those of a folder; STEM_mask or STEM_seg marks STEM."""
    base = root if isdir(root) else root.parent
    files = [p for p in entries(base, base) if is_volume(p) and isfile(p)]
    marks: dict[str, list[Path]] = {}  # by the name of the image
    for path in files:
        stem, joint, end = _stem(path).rpartition("_")
        if joint and end.lower() in ("mask", "seg"):
            marks.setdefault(stem, []).append(path)
    every = {path for masks in marks.values() for path in masks}
    found = []
    for path in [p for p in files if p not in every] if isdir(root) else [root]:
        masks, name = marks.get(_stem(path), []), name_of(path, base)
        if len(masks) > 1:
            both = f"{masks[0].name!r} and {masks[1].name!r}"
            told = f"image {str(path)!r}: masks {both}, expected one"
            found.append(Sample(name, path, "test", UNKNOWN, masks[0], name, None, told))
            continue
        found += _slices(path, masks[0] if masks else None, base, choice, name, "anomalous")
    return found


def other_contrasts(samples: list[Sample]) -> set[Path]:
    """Return the files beside samples of BraTS that another contrast would name."""
    ends = [f"_{kind}" for kind in _CONTRASTS_2021] + [f"-{kind}" for kind in _CONTRASTS_2023]
    cases = {s.path.parent for s in samples}
    return {
        case / f"{case.name}{e}{z}" for case in cases for e in ends for z in (".nii.gz", ".nii")
    }


def dicom(root: Path, choice: DataSelection) -> list[Sample]:
    """List the slices of a folder that holds one DICOM series, all to test, one patient.

    Source: DICOM PS3.3 C.7.6.2 (image plane).
    """
    planes: list[Plane] = []
    damaged: list[Path] = []
    for path in dicom_files(root):
        try:
            planes.append(plane(inside(path, root)))
        except InputError:
            damaged.append(path)  # listed last: reading it reports the damage
    ordered = [p.path for p in in_order(planes, root, not damaged)] if planes else []
    chosen = [(ordered[k], k) for k in _chosen(len(ordered), choice)]
    group = name_of(root, root.parent) or "series"
    every = [*chosen, *((path, None) for path in damaged)]
    return [Sample(name_of(p, root), p, "test", UNKNOWN, None, group, k) for p, k in every]


def arrays(root: Path, choice: DataSelection) -> list[Sample]:
    """List stacks (N, H, W) or (N, H, W, C): train and test, and masks (N, H, W) of the test.

    They are files train.npy, test.npy and masks.npy of a folder (upper or lower case), arrays of
    one .npz file, or one .npy file, whose rows are all to test.
    """
    if isdir(root):
        files = _stacks(root)
        parts = {s: files[s] for s in ("train", "test") if s in files}
        mask, base = files.get("masks"), root
    else:
        parts, mask, base = {"train": root, "test": root}, root, root.parent
        if root.suffix.lower() == ".npy":
            parts, mask = {"test": root}, None
        elif not {"train", "test"} & set(names := _members(root)):
            got = ", ".join(map(repr, names[:_MOST_NAMES])) or "none"
            raise InputError(f"arrays of {str(root)!r}: got {got}, expected 'train' or 'test'")
    return [s for split, path in parts.items() for s in _rows(path, split, mask, base, choice)]


def say_other_arrays(root: Path) -> set[Path]:
    """Print in one line the arrays whose name has no meaning, and return the files of a folder."""
    files, names, end = set[Path](), list[str](), ""
    if isdir(root):
        of_arrays = [p for p in entries(root, root) if isfile(p) and p.suffix.lower() == ".npy"]
        files, end = {p for p in of_arrays if p.stem.lower() not in STACKS}, ".npy"
        names = sorted(path.name for path in files)
    elif root.suffix.lower() == ".npz":
        names = [name for name in _members(root) if name not in STACKS]
    if names:
        shown = ", ".join(map(repr, names[:_MOST_NAMES])) + ", ..." * (len(names) > _MOST_NAMES)
        expected = " or ".join(repr(f"{name}{end}") for name in STACKS)
        told = f"not used: arrays ({len(names)}): {shown}, expected {expected}"
        print(f"data {str(root)!r}: {told}", file=sys.stderr)
    return files


def by_group(samples: list[Sample], share: float = TRAIN_SHARE) -> list[Sample]:
    """Split samples by group: in the order of a hash of the group, the first share trains.

    Args:
        samples: Samples of a data set, of any split.
        share: Share of the groups to train on, in (0, 1).

    Returns:
        The samples with their new splits. Of the training groups only the normal samples are kept;
        groups without a truth are tested.

    Example:
        >>> from pathlib import Path
        >>> names = ("a", "b", "c", "d")
        >>> samples = [Sample(n, Path(n), "test", NORMAL, None, n) for n in names]
        >>> sorted(sample.split for sample in by_group(samples, 0.5))
        ['test', 'test', 'train', 'train']
    """
    unknown = {s.group for s in samples if s.label == UNKNOWN}
    groups = sorted({s.group for s in samples} - unknown, key=_hash)
    train = set(groups[: min(round(share * len(groups)), len(groups) - 1 + bool(unknown))])
    kept = (s for s in samples if s.group not in train or s.label == NORMAL)
    return [s._replace(split="train") if s.group in train else s for s in kept]


def _hash(group: str) -> str:
    return hashlib.sha256(group.encode("utf-8", "surrogateescape")).hexdigest()


def _brats(
    root: Path, choice: DataSelection, case: re.Pattern[str], joint: str, contrasts: tuple[str, ...]
) -> list[Sample]:
    contrast = choice.contrast or contrasts[0]
    if contrast not in contrasts:
        raise InputError(f"contrast {contrast!r}, expected one of {list(contrasts)}")
    found = []
    for folder in folders(root, root):
        match = case.fullmatch(folder.name)
        if match:
            path = _brats_file(folder, joint + contrast)
            mask = _brats_file(folder, joint + "seg")
            truth = mask if isfile(mask) else None
            found += _slices(path, truth, root, choice, match[1], "tumour")
    return found


def _brats_file(folder: Path, end: str) -> Path:
    paths = [folder / f"{folder.name}{end}{kind}" for kind in (".nii.gz", ".nii")]
    return next((path for path in paths if isfile(path)), paths[0])


def _slices(
    path: Path, mask: Path | None, root: Path, choice: DataSelection, group: str, kind: str
) -> list[Sample]:
    """Return the samples of one volume; if unreadable, one sample whose reading reports why."""
    name = name_of(path, root)
    try:
        # The masks are read for the labels, the images only for their number of slices.
        volume = cached_volume(inside(mask or path, root))
    except InputError:
        return [Sample(name, path, "test", UNKNOWN, mask, group)]
    found = []
    for k in _chosen(num_slices(volume), choice):
        label = UNKNOWN
        if mask:
            marked = axial_slice(volume.voxels, volume.affine, k) > 0
            label = kind if marked.any() else NORMAL
        found.append(Sample(f"{name}#{k}", path, "test", label, mask, group, k))
    return found


def _stacks(root: Path) -> dict[str, Path]:
    """Return the files of arrays of a folder by their names in lower case."""
    found: dict[str, Path] = {}
    for path in entries(root, root):
        name = path.stem.lower()
        if name in STACKS and path.suffix.lower() == ".npy" and isfile(path):
            if name in found:
                both = f"{found[name].name!r} and {path.name!r}"
                raise InputError(f"data {str(root)!r}: got {both}, expected one of them")
            found[name] = inside(path, root)
    return found


def _members(path: Path) -> list[str]:
    """Return the names of the arrays of a .npz file."""
    with decoding(path), open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        return list(archive.files)


def _rows(
    path: Path, split: str, mask: Path | None, root: Path, choice: DataSelection
) -> list[Sample]:
    stack = cached_stack(path, split)
    if stack is None:
        return []
    truth = cached_stack(mask, "masks") if mask is not None and split == "test" else None
    if truth is not None and len(truth) != len(stack):
        raise InputError(f"masks {str(mask)!r}: {len(truth)} of them for {len(stack)} test images")
    if truth is not None and truth.dtype.kind not in "buif":
        raise InputError(f"masks {str(mask)!r}: values of type {truth.dtype}, expected numbers")
    stem = name_of(path, root) + (f"/{split}" if path.suffix.lower() == ".npz" else "")
    found = []
    for k in _chosen(len(stack), choice):
        label, name = (NORMAL if split == "train" else UNKNOWN), f"{stem}#{k}"
        if truth is not None and mask is not None:
            label = "anomalous" if _marks(truth[k], mask) else NORMAL
        marked = mask if truth is not None else None
        found.append(Sample(name, path, split, label, marked, name, k))
    return found


def _marks(row: np.ndarray, mask: Path) -> bool:
    """Return whether a row marks any pixel; one that is unclear counts, and reading refuses it."""
    try:
        return bool(to_mask(row, mask).any())
    except InputError:
        return True


def _chosen(count: int, choice: DataSelection) -> range:
    return range(count)[slice(*choice.slices)] if choice.slices else range(count)


def _stem(path: Path) -> str:
    end = next(end for end in VOLUME_ENDS if path.name.lower().endswith(end))
    return path.name[: -len(end)]
