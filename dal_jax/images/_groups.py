"""Groups: images of one physical object, kept together in every split.

Photographs of one object are not independent: a split that cuts a group trains the model on an
object of the test.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dal_jax._errors import InputError
from dal_jax.images._io import read_table

# Extension of a file's name; it excludes "#3", the number of a slice or row, and the end of a UID.
_ENDING = re.compile(r"\.[A-Za-z]\w*$")
_FORMS = "'regex:PATTERN', 'csv:FILE:COLUMN', 'runs:N' or 'gap:N'"


def group_of(names: Sequence[str], groups: str | None = None) -> list[str]:
    r"""Return the group of each image from its name.

    Args:
        names: Unique names of the images, paths with "/" between their parts.
        groups: Rule for the groups. None makes each name a group. "regex:PATTERN" takes the
            match of the pattern's only capture group in the name. "csv:FILE:COLUMN" reads a table
            with a column "name" and the named column. "runs:N" joins N neighbours in one folder,
            counted in the natural order of the names (9 before 10). "gap:N" starts a new group
            where the last number in the name exceeds that of the image before it by more than N,
            counted over all folders together, for numbers that count the photographs of one camera.

    Returns:
        The group of each name, in the given order.

    Raises:
        InputError: The rule has another form, the pattern has not exactly one capture group, the
            table cannot be read, or a name has no group.

    Example:
        >>> group_of(["a/tile1_x.png", "a/tile1_y.png", "a/tile2_x.png"], r"regex:(tile\d+)")
        ['tile1', 'tile1', 'tile2']
    """
    if groups is None:
        return list(names)
    form, _, rest = groups.partition(":")
    rules = {"regex": _by_pattern, "csv": _by_table, "runs": _by_runs, "gap": _by_gap}
    if form not in rules or not rest:
        raise InputError(f"groups {groups!r}, expected {_FORMS}")
    return rules[form](list(names), rest)


def split_groups(groups: Sequence[str], shares: Sequence[float], seed: int = 0) -> list[np.ndarray]:
    """Split images into parts without cutting a group.

    The groups are shuffled, and each goes to the part that lacks the most images.

    Args:
        groups: Group of each image.
        shares: Desired share of images in each part, positive; the shares are divided by their sum.
        seed: Seed of the shuffling.

    Returns:
        Sorted indices (n,), int, of the images of each part; no part is empty.

    Raises:
        InputError: There are fewer groups than parts, or a share is not positive.

    Example:
        >>> parts = split_groups(["a", "a", "b", "c"], [0.5, 0.5])
        >>> sorted(len(part) for part in parts)
        [2, 2]
    """
    wanted = np.asarray(shares, np.float64)
    if (
        wanted.ndim != 1
        or not len(wanted)
        or not np.all(wanted > 0)
        or not np.isfinite(wanted.sum())
    ):
        raise InputError(f"shares {list(shares)!r}, expected positive numbers")
    labels, member = np.unique(np.asarray(groups, str), return_inverse=True)
    if len(labels) < len(wanted):
        raise InputError(f"groups: {len(labels)} of them, expected {len(wanted)} or more to split")
    sizes = np.bincount(member, minlength=len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    part = _assign(sizes, order, wanted / wanted.sum() * len(member))
    return [np.flatnonzero(part[member] == k) for k in range(len(wanted))]


def _assign(sizes: np.ndarray, order: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    part, lacking = np.empty(len(sizes), np.intp), wanted.copy()
    empty = np.ones(len(wanted), bool)
    for done, group in enumerate(order):
        # The last groups are reserved for the parts that would otherwise stay empty.
        scarce = len(sizes) - done == empty.sum()
        chosen = int(np.argmax(np.where(empty, lacking, -np.inf) if scarce else lacking))
        part[group], empty[chosen] = chosen, False
        lacking[chosen] -= sizes[group]
    return part


def _by_pattern(names: list[str], pattern: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"groups 'regex:{pattern}': not a pattern ({error})") from error
    if compiled.groups != 1:
        count = compiled.groups
        raise InputError(f"groups 'regex:{pattern}': {count} capture groups, expected one")
    found = [compiled.search(name) for name in names]
    for name, match in zip(names, found, strict=True):
        if match is None or match[1] is None:
            raise InputError(f"groups 'regex:{pattern}': no match in the name {name!r}")
    return [match[1] for match in found if match is not None]


def _by_table(names: list[str], rest: str) -> list[str]:
    path, _, column = rest.rpartition(":")
    if not path or not column:
        raise InputError(f"groups 'csv:{rest}', expected 'csv:FILE:COLUMN'")
    table: dict[str, str] = {}
    for row in read_table(Path(path), ["name", column], "groups"):
        if table.setdefault(row["name"], row[column]) != row[column]:
            raise InputError(f"groups: {path!r} has two {column!r} for the name {row['name']!r}")
    for name in names:
        if not table.get(name):
            raise InputError(f"groups: {path!r} has no {column!r} for the name {name!r}")
    return [table[name] for name in names]


def _by_runs(names: list[str], rest: str) -> list[str]:
    length, found, seen = _count("runs", rest), dict[str, str](), dict[str, int]()
    for name in sorted(names, key=_natural):
        folder = name.rpartition("/")[0]
        run, seen[folder] = seen.get(folder, 0) // length, seen.get(folder, 0) + 1
        found[name] = f"{folder}/run{run}" if folder else f"run{run}"
    return [found[name] for name in names]


def _by_gap(names: list[str], rest: str) -> list[str]:
    gap, numbers = _count("gap", rest), dict[str, int]()
    for name in names:
        digits = re.findall(r"\d+", _ENDING.sub("", name.rpartition("/")[2]))
        if not digits:
            raise InputError(f"groups 'gap:{gap}': no number in the name {name!r}")
        numbers[name] = int(digits[-1])
    found, first, last = dict[str, str](), 0, None
    for name in sorted(names, key=lambda name: (numbers[name], name)):
        if last is None or numbers[name] - last > gap:
            first = numbers[name]
        last, found[name] = numbers[name], f"from{first}"
    return [found[name] for name in names]


def _count(form: str, rest: str) -> int:
    if not rest.isascii() or not rest.isdigit() or int(rest) < 1:
        raise InputError(f"groups '{form}:{rest}', expected a whole number of 1 or more")
    return int(rest)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which 9 comes before 10."""
    return [(int(s), s) if s.isdecimal() else (-1, s) for s in re.split(r"(\d+)", name)]
