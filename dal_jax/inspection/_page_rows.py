"""What `dal-jax test FOLDER` left in its folder, read back and checked for the page."""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from dal_jax._errors import InputError
from dal_jax.inspection._rows import COLUMNS, DECIDING, LOW, adjusted_p, decide
from dal_jax.runs import decode

ROWS, TABLE, METRICS, SETTINGS, PICTURES = (
    "rows.jsonl",
    "results.csv",
    "metrics.json",
    "test.json",
    "overlays",
)
_TEXTS = ("name", "label", "group", "status", "decision", "message")
_COUNTS = ("view", "views", "component", "components", "num_tested")
_LOWER = tuple(COLUMNS[method] + LOW for method in DECIDING[1:])
_EFFECT = ("estimate", "ci_low", "ci_high", "p_adjusted", "q_value")
# Rows of earlier versions lack these.
_NEW = (*_LOWER, *_EFFECT, "naive_p", "num_tested", "component", "components")
_NUMBERS = (
    "p_low",
    "p_high",
    *COLUMNS.values(),
    *_LOWER,
    *_EFFECT,
    "statistic",
    "sd",
    "z",
    "max_score",
)
_KINDS = dict.fromkeys(_TEXTS, str) | dict.fromkeys(_COUNTS, int) | dict.fromkeys(_NUMBERS, float)


class Tested(NamedTuple):
    """The tests of a folder of images."""

    directory: Path
    rows: list[dict[str, Any]]  # of views, in the order of the file
    metrics: dict[str, Any]  # empty where no truth was known
    alpha: float | None  # level of the decisions; None: not recorded
    decide_by: str | None  # method whose p decided; None: not recorded
    discoveries: str | None  # how q-values were computed, "by" or "bh"; None: not recorded
    agreeing: tuple[str, ...]  # methods whose p-values give these decisions at alpha
    digests: dict[str, str]  # SHA-256 by name of file
    written: str  # when the rows were


def read_results(directory: Path) -> Tested:
    """Reads the rows, metrics and settings of a folder of results.

    Args:
        directory: the `--out` of `dal-jax test FOLDER`.

    Returns:
        What it holds.

    Raises:
        InputError: the folder or rows.jsonl is missing, or a file is damaged.
    """
    if not directory.is_dir():
        raise InputError(f"folder {str(directory)!r}: no such folder")
    path = directory / ROWS
    if not path.is_file():
        raise InputError(
            f"folder {str(directory)!r}: no {ROWS}, expected the --out of dal-jax test FOLDER"
        )
    data = read_bytes(path)
    rows = [_row(path, number, line) for number, line in enumerate(data.splitlines(), 1)]
    if not rows:
        raise InputError(f"{path}: holds no rows")
    digests = {ROWS: sha256(data)}
    metrics = _optional(directory / METRICS, digests)
    alpha, decide_by, discoveries = _settings(directory / SETTINGS, digests)
    if alpha is None:
        alpha = _level(directory / METRICS, metrics.get("alpha"))
    agreeing = () if alpha is None else tuple(m for m in DECIDING if _agrees(rows, m, alpha))
    seconds = path.stat().st_mtime
    written = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    how = alpha, decide_by, discoveries
    return Tested(directory, rows, metrics, *how, agreeing, digests, written)


def read_bytes(path: Path) -> bytes:
    """Reads a file.

    Args:
        path: the file.

    Returns:
        Its bytes.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def sha256(data: bytes) -> str:
    """Returns the SHA-256 of a file's bytes.

    Args:
        data: the bytes.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(data).hexdigest()


def parse_object(path: Path, data: bytes) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: of the file, for messages.
        data: its bytes.

    Returns:
        The object.

    Raises:
        InputError: it is none.
    """
    try:
        found = decode(json.loads(data))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({_short(error)})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: damaged (holds no JSON object)")
    return found


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    where = Path(f"{path} line {number}")
    row = parse_object(where, line)
    for key, kind in _KINDS.items():
        if key not in row:
            what = "of an earlier version, test again" if key in _NEW else "damaged"
            raise InputError(f"{where}: {what} (no {key!r})")
        row[key] = _value(where, key, row[key], kind)
    row["warning"] = _value(where, "warning", row.get("warning", ""), str)
    parts = row["name"].split("/")
    if ".." in parts or row["name"].startswith("/") or "\0" in row["name"]:
        raise InputError(f"{where}: name {row['name']!r} leads outside the folder")
    return row


def _value(where: Path, key: str, value: Any, kind: type) -> Any:
    if kind is str and value is None:
        return ""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where}: damaged ({key!r} is {_short(repr(value))})")
    return value


def _optional(path: Path, digests: dict[str, str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    data = read_bytes(path)
    digests[path.name] = sha256(data)
    return parse_object(path, data)


def _settings(path: Path, digests: dict[str, str]) -> tuple[float | None, str | None, str | None]:
    found = _optional(path, digests)
    decide_by = found.get("decide_by")
    if decide_by is not None and decide_by not in DECIDING:
        raise InputError(f"{path}: damaged ('decide_by' is {_short(repr(decide_by))})")
    discoveries = found.get("discoveries")
    if discoveries not in (None, "by", "bh"):
        raise InputError(f"{path}: damaged ('discoveries' is {_short(repr(discoveries))})")
    return _level(path, found.get("alpha")), decide_by, discoveries


def _level(path: Path, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, float | int) or not 0 < value < 1:
        raise InputError(f"{path}: damaged ('alpha' is {_short(repr(value))})")
    return float(value)


def _agrees(rows: Sequence[dict[str, Any]], method: str, alpha: float) -> bool:
    """Would this method's p-values have given the decisions of the rows?"""
    return all(
        decide(row["status"], p[1:], alpha, row["views"]) == row["decision"]
        for row, p in zip(rows, adjusted_p(rows, method), strict=True)
    )


def _short(what: Any) -> str:
    return " ".join(str(what).split())[:100]
