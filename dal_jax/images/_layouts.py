"""Opening of a data set: the layout of its folder, its samples and their groups."""

from collections.abc import Callable, Sequence
from os.path import exists, isdir, isfile
from pathlib import Path

from dal_jax._errors import InputError
from dal_jax.images import _layout_photos as photos
from dal_jax.images import _layout_volumes as volumes
from dal_jax.images._dicom import dicom_files
from dal_jax.images._folders import is_readable, listed, say_left_out
from dal_jax.images._groups import group_of
from dal_jax.images._io import is_image, read_pixels
from dal_jax.images._samples import (
    OF_SLICES,
    DataSelection,
    DataSet,
    Sample,
    entries,
    folders,
    name_of,
    walk,
)
from dal_jax.images._volumes import is_volume

_LAYOUTS: dict[str, Callable[[Path, DataSelection], list[Sample]]] = {
    "mvtec": photos.mvtec,
    "mpdd": photos.mvtec,
    "btad": photos.btad,
    "visa": photos.visa,
    "folder": photos.folder,
    "brats2021": volumes.brats2021,
    "brats2023": volumes.brats2023,
    "nifti": volumes.nifti,
    "dicom": volumes.dicom,
    "arrays": volumes.arrays,
}


def open_data(
    root: str | Path,
    layout: str = "auto",
    *,
    category: str | None = None,
    groups: str | None = None,
    contrast: str | None = None,
    slices: tuple[int, ...] | None = None,
) -> DataSet:
    """List the samples of a data set without reading its images.

    Masks are read only where a label depends on them: tumours of volumes, masks of plain folders
    and of arrays. What a folder holds beside them is printed in one line.

    Args:
        root: Folder of the data set or of one of its categories; for "nifti" and "arrays" also a
            file.
        layout: Layout "mvtec", "mpdd", "btad", "visa", "folder", "brats2021", "brats2023", "nifti",
            "dicom" or "arrays", or "auto" to recognise it (MPDD has the form of MVTec AD).
        category: Product of "mvtec", "mpdd", "btad" or "visa"; may be left out if there is only
            one.
        groups: Rule that identifies physical objects, as in `group_of`; without it each file is an
            object of its own, and in BraTS each patient.
        contrast: Contrast of BraTS: "flair" (the default), "t1", "t1ce", "t2", and in 2023 "t2f"
            (the default), "t1n", "t1c", "t2w".
        slices: Range of slices or rows, (start, stop) or (start, stop, step), without stop, as in
            Python.

    Returns:
        The data set; the order of its samples depends on their names alone.

    Raises:
        InputError: The layout is unknown or cannot be recognised, a folder or table of it is
            missing, it holds no image, or a name or link leads outside the root.

    Example:
        >>> data = open_data("mvtec", category="bottle")  # doctest: +SKIP
        >>> data.samples[0].name  # doctest: +SKIP
        'bottle/train/good/000.png'

    Source: the layouts as published by their authors, listed in `dal_jax.images._layout_photos` and
    `dal_jax.images._layout_volumes`.
    """
    root = Path(root)
    if not exists(root):
        raise InputError(f"data {str(root)!r}: no such folder")
    if layout != "auto" and layout not in _LAYOUTS:
        raise InputError(f"layout {layout!r}, expected one of {['auto', *_LAYOUTS]}")
    name = _recognise(root) if layout == "auto" else layout
    if not isdir(root) and name not in ("nifti", "arrays"):
        raise InputError(f"data {str(root)!r}: layout {name!r} needs a folder")
    found = _LAYOUTS[name](root, DataSelection(category, contrast, _range(slices)))
    others = volumes.say_other_arrays(root) if name == "arrays" else set[Path]()
    if isdir(root):
        chosen = root / (category or ".")
        files = {path for s in found for path in (s.path, s.mask) if path is not None}
        files |= others  # named already
        files |= {path.with_suffix(".img") for path in files if path.suffix.lower() == ".hdr"}
        if name in ("brats2021", "brats2023"):
            files |= volumes.other_contrasts(found)
            # Tables of the patients come with such data, and hold no images.
            files |= {path for path in listed(root) if path.suffix.lower() == ".csv"}
        say_left_out("data", chosen if isdir(chosen) else root, {*files, photos.table(root)})
    if not found:
        raise InputError(f"data {str(root)!r}: no image in layout {name!r}")
    base = root if isdir(root) else root.parent
    samples = _grouped(found, groups, base, name)
    if name in ("brats2021", "brats2023"):
        samples = volumes.by_group(samples)
    return DataSet(base, name, tuple(samples))


def shared_groups(dataset: DataSet) -> tuple[str, ...]:
    """Return the groups that have samples both for training and for testing.

    Estimates on such a group and tests on it are not independent: leave it out of one of them.

    Args:
        dataset: Data set from `open_data`.

    Returns:
        The groups, sorted; empty if the split cuts none.

    Example:
        >>> shared_groups(open_data("tiles", groups="gap:200"))  # doctest: +SKIP
        ()
    """
    parts = [{s.group for s in dataset.samples if s.split == k} for k in ("train", "test")]
    return tuple(sorted(parts[0] & parts[1]))


def _grouped(found: list[Sample], groups: str | None, base: Path, layout: str) -> list[Sample]:
    if groups is None:
        return found
    # A group belongs to a volume, never to a slice of it.
    names = [name_of(s.path, base) if layout in OF_SLICES else s.name for s in found]
    unique = list(dict.fromkeys(names))
    group = dict(zip(unique, group_of(unique, groups), strict=True))
    return [s._replace(group=group[name]) for s, name in zip(found, names, strict=True)]


def _range(slices: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if slices is None:
        return None
    whole = all(isinstance(n, int) for n in slices)
    if len(slices) not in (2, 3) or not whole or min(slices) < 0 or slices[0] >= slices[1]:
        raise InputError(f"slices {slices!r}, expected (start, stop) or (start, stop, step)")
    if slices[2:] == (0,):
        raise InputError(f"slices {slices!r}, expected a step of 1 or more")
    return slices


def _recognise(root: Path) -> str:
    if isfile(root):
        if is_volume(root):
            return "nifti"
        if root.suffix.lower() in (".npy", ".npz"):
            return "arrays"
        raise _unknown(root)
    found = entries(root, root)
    names = [path.name for path in found if isdir(path)]
    if isfile(photos.table(root)):
        return "visa"
    for layout, sign in (("mvtec", "train/good"), ("btad", "train/ok")):
        if any(isdir(path / sign) for path in (root, *found)):
            return layout
    for layout, case in (("brats2021", volumes.CASE_2021), ("brats2023", volumes.CASE_2023)):
        if any(case.fullmatch(name) and listed(root / name) for name in names):
            return layout
    for path in filter(isdir, (root, *found)):
        _refuse_case(path, root, "train", ("good", "ok"))
    return _recognise_flat(root, found)


def _recognise_flat(root: Path, found: list[Path]) -> str:
    _refuse_case(root, root, "normal")
    _refuse_case(root, root, "test")
    parts = [path for path in found if isdir(path) and path.name in ("normal", "test")]
    images = [path for part in parts for path in walk(part, root)]
    if images:
        _refuse_volumes(images, root)
        return "folder"
    files = [path for path in found if isfile(path)]
    shown = [path for path in files if is_volume(path) or is_image(path)]
    arrays = [path for path in shown if path.suffix.lower() == ".npy"]
    stacks = [path for path in arrays if path.stem.lower() in volumes.STACKS]
    # What most of the files are, so that one that strayed into a folder does not decide.
    if any(path.stem.lower() != "masks" for path in stacks):
        if 2 * len(stacks) >= len(shown):
            return "arrays"
        if len(arrays) == len(shown):  # images, or stacks with misspelt names
            got = f"{stacks[0].name!r} among {len(shown)} .npy files"
            raise _say_layout(root, got, "train.npy, test.npy and masks.npy")
    if 2 * sum(map(is_volume, shown)) > len(shown):
        return "nifti"
    slices = dicom_files(root)
    if slices and len(slices) >= len(shown):
        return "dicom"
    images = list(walk(root, root))
    if images:
        _refuse_volumes(images, root)
        return "folder"
    say_left_out("data", root, ())
    raise _unknown(root)


def _refuse_volumes(images: Sequence[Path], root: Path) -> None:
    """Refuse a folder whose images are for the most part volumes of subfolders."""
    found = [path for path in images if is_volume(path) and path.parent != root]
    if 2 * len(found) > len(images) and _is_deep(found[0]):
        got = f"volumes in subfolders, such as {name_of(found[0], root)!r}"
        raise InputError(f"data {str(root)!r}: got {got}, expected one folder of volumes: give it")


def _is_deep(path: Path) -> bool:
    """Return whether a volume has several slices; one that cannot be read has none."""
    try:
        return any(n > 1 for n in read_pixels(path).shape[2:])
    except InputError as error:
        return "a volume of shape" in str(error)


def _refuse_case(base: Path, root: Path, first: str, second: Sequence[str] = ()) -> None:
    """Refuse a folder of images whose name, or names, are those of a layout but for their case."""
    for path in filter(is_readable, folders(base, root) if is_readable(base) else ()):
        if path.name.lower() != first:
            continue
        own = [one for one in folders(path, root) if one.name.lower() in second]
        for one in own if second else [path]:
            name = one.relative_to(base).as_posix()
            if name != name.lower() and next(walk(one, root), None) is not None:
                raise _say_layout(root, f"a folder {name!r}", repr(name.lower()))


def _say_layout(root: Path, got: str, expected: str) -> InputError:
    told = f"got {got}, expected {expected} (or --layout folder for plain images)"
    return InputError(f"data {str(root)!r}: {told}")


def _unknown(root: Path) -> InputError:
    return InputError(f"data {str(root)!r}: no known layout, expected one of {list(_LAYOUTS)}")
