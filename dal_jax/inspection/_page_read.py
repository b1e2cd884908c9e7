"""Reading and checking of the files of a tested folder and of its model, for the page."""

import hashlib
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from dal_jax._errors import CheckpointError, InputError
from dal_jax._files import file_errors, parse_json
from dal_jax.inference import SelectiveP
from dal_jax.inspection._calibration import METHODS, Calibration, load_calibration
from dal_jax.inspection._calibration import RECORD as CALIBRATION
from dal_jax.inspection._inspect import METRICS, SETTINGS
from dal_jax.inspection._profile import RECORD as PROFILE
from dal_jax.inspection._results import (
    COLUMNS,
    DECIDING,
    LOW,
    ROWS,
    ViewResult,
    adjusted_p,
    decide,
)
from dal_jax.inspection._verdict import ALPHA, CERTAIN
from dal_jax.report import format_p
from dal_jax.runs import decode

# A p-value of the table equals that of the calibration up to the rounding of a division.
_SAME = 1e-9
NAMES = {
    "selective": "raw selective",
    "inflated": "inflated",
    "heavy_tails": "heavy tails",
    "conformal": "conformal",
    "naive": "naive (not valid)",
    "conformal_naive": "conformal, of the naive p",
    "conformal_score": "conformal, of the maximum score",
}
# Columns of rows.jsonl that the page reads, and their types.
_P = ("p_low", "p_high", *COLUMNS.values(), *(COLUMNS[method] + LOW for method in DECIDING[1:]))
_FIELDS = {k: v for k, v in get_type_hints(ViewResult).items() if v in (str, int, float)}
_KINDS: dict[str, type] = _FIELDS | dict.fromkeys(_P, float)


class Tested(NamedTuple):
    """Results of tested images."""

    directory: Path
    views: list[ViewResult]  # in the order of the file
    metrics: dict[str, Any]  # empty if no image has a known label
    alpha: float | None  # level of the decisions; None if not recorded
    decide_by: str | None  # method whose p-value decided; None if not recorded
    discoveries: str | None  # procedure for q-values, "by" or "bh"; None if not recorded
    agreeing: tuple[str, ...]  # methods whose p-values give the same decisions at alpha
    digests: dict[str, str]  # SHA-256 by file name
    written: str  # date and time at which the rows were written, UTC


def read_results(directory: Path) -> Tested:
    """Read the results, metrics and settings of tested images.

    Args:
        directory: Folder given as `--out` to `dal-jax test`.

    Returns:
        Contents of the folder.

    Raises:
        InputError: The folder or rows.jsonl is missing, or a file is damaged.
    """
    path = _required(directory, ROWS, "folder", "the --out of dal-jax test")
    digests: dict[str, str] = {}
    lines = _read(path, digests).splitlines()
    views = [_view(path, number, line) for number, line in enumerate(lines, 1)]
    if not views:
        raise InputError(f"{path}: holds no rows")
    metrics = _optional(directory / METRICS, digests)
    alpha, decide_by, discoveries = _settings(directory / SETTINGS, digests)
    if alpha is None:
        alpha = _level(directory / METRICS, metrics.get("alpha"))
    agreeing = () if alpha is None else tuple(m for m in DECIDING if _agrees(views, m, alpha))
    seconds = path.stat().st_mtime
    written = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    how = alpha, decide_by, discoveries
    return Tested(directory, views, metrics, *how, agreeing, digests, written)


def _required(
    directory: Path, file: str, name: str, expected: str, error: type[InputError] = InputError
) -> Path:
    """Return the path of a file without which a folder is refused."""
    if not directory.is_dir():
        raise error(f"{name} {str(directory)!r}: no such folder")
    if not (directory / file).is_file():
        raise error(f"{name} {str(directory)!r}: no {file}, expected {expected}")
    return directory / file


def _read(path: Path, digests: dict[str, str]) -> bytes:
    """Read a file and add its SHA-256 to the digests, under its name."""
    with file_errors(path):
        data = path.read_bytes()
    digests[path.name] = hashlib.sha256(data).hexdigest()
    return data


def _parse_object(path: Path, data: bytes) -> dict[str, Any]:
    with file_errors(path):
        return decode(parse_json(data))


def _view(path: Path, number: int, line: bytes) -> ViewResult:
    where = Path(f"{path} line {number}")
    row, held = _parse_object(where, line), dict[str, Any]()
    for key, kind in _KINDS.items():
        if key not in row:
            raise InputError(f"{where}: damaged, or of an earlier version: no {key!r}, test again")
        held[key] = _value(where, key, row[key], kind)
    name = held["name"]
    if ".." in name.split("/") or name.startswith("/") or "\0" in name:
        raise InputError(f"{where}: name {name!r} leads outside the folder")
    p = {"selective": SelectiveP(*(held.pop(key) for key in ("p_value", "p_low", "p_high")))}
    for method in [method for method in METHODS if method != "selective"]:
        high = held.pop(COLUMNS[method])
        low = held.pop(COLUMNS[method] + LOW) if method in DECIDING else high
        p[method] = SelectiveP(high, low, high)
    return ViewResult(**held, p=p)


def _value(where: Path, key: str, value: Any, kind: type) -> Any:
    if kind is str and value is None:
        return ""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where}: damaged ({key!r} is {_short(repr(value))})")
    return value


def _optional(path: Path, digests: dict[str, str]) -> dict[str, Any]:
    return _parse_object(path, _read(path, digests)) if path.is_file() else {}


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


def _agrees(views: Sequence[ViewResult], method: str, alpha: float) -> bool:
    """Return whether the p-values of a method give the decisions of the table."""
    return all(
        decide(one.status, p[1:], alpha, one.views) == one.decision
        for one, p in zip(views, adjusted_p(views, method), strict=True)
    )


def _short(what: Any) -> str:
    return " ".join(str(what).split())[:100]


class Trust(NamedTuple):
    """Results of a calibration, formatted for the page."""

    calibration: Calibration
    verdict: list[str]  # sentences
    kind: str  # "good", "bad" or "careful", for the raw p at `ALPHA`
    levels: list[float]
    rates: list[dict[str, Any]]  # for each method: name, assumes, cells, uniformity
    control: list[dict[str, Any]]  # the same for images drawn from the noise model
    distance: list[dict[str, Any]]  # for each interval of |z|: range, rejected, tested, share
    sensitivity: list[dict[str, Any]]  # what, factor, alpha, rejected, tested, share, changed
    smallest: list[str]  # names of the normal views of smallest p


class Model(NamedTuple):
    """Contents of a model's folder."""

    profile: list[tuple[str, str]]  # setting and value, in the order of the file
    trust: Trust | None  # None if the model is not calibrated
    digests: dict[str, str]  # SHA-256 by file name
    warnings: list[str]  # warnings about the training images


def read_model(directory: Path) -> Model:
    """Read the profile and the calibration of a model.

    Args:
        directory: Folder of a model trained with --data.

    Returns:
        Contents of the folder.

    Raises:
        InputError: The profile is damaged.
        CheckpointError: The folder or the profile is missing, or the calibration is damaged.
    """
    path = _required(directory, PROFILE, "model", "a model trained with --data", CheckpointError)
    digests: dict[str, str] = {}
    held = _parse_object(path, _read(path, digests))
    profile = list(_flat("", held))
    warnings = [str(told) for told in held.get("warnings", [])]
    calibration = load_calibration(directory)
    if calibration is None:
        return Model(profile, None, digests, warnings)
    path = directory / CALIBRATION
    data = _read(path, digests)
    try:
        trust = _trust(calibration, _parse_object(path, data)["found"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged, run dal-jax calibrate again") from error
    return Model(profile, trust, digests, warnings)


def of_this_calibration(views: Sequence[ViewResult], calibration: Calibration) -> bool:
    """Return whether the recalibrated p-values of results are from a given calibration.

    Args:
        views: Results of views and components.
        calibration: Calibration of the model.

    Returns:
        True if every conformal p-value is the rank of its raw p-value in this calibration.
    """
    for one in views:
        p, held = calibration.selective.rank(one.p["selective"]).high, one.p["conformal"].high
        if math.isnan(p) != math.isnan(held) or abs(p - held) > _SAME:
            return False
    return True


def _trust(calibration: Calibration, found: dict[str, Any]) -> Trust:
    levels = sorted({float(rate["alpha"]) for rate in found["rates"]})
    return Trust(
        calibration,
        [str(sentence) for sentence in found["verdict"]],
        _kind(found["rates"]),
        levels,
        _table(found["rates"], levels, found["uniformity"]),
        _table(found["control_rates"], levels, {}),
        [_distance(row) for row in found["by_distance"]],
        [_sensitivity(row) for row in found["sensitivity"]],
        [str(name) for name in found["smallest"]],
    )


def _kind(rates: list[dict[str, Any]]) -> str:
    for rate in rates:
        if (rate["method"], rate["alpha"]) == ("selective", ALPHA):
            if rate["low"] > ALPHA:
                return "bad"
            return "good" if rate["low"] <= ALPHA <= rate["high"] <= CERTAIN else "careful"
    return "careful"


def _table(
    rates: list[dict[str, Any]], levels: list[float], uniformity: dict[str, float]
) -> list[dict[str, Any]]:
    rows = []
    for method in dict.fromkeys(str(rate["method"]) for rate in rates):
        own = {float(rate["alpha"]): rate for rate in rates if rate["method"] == method}
        rows.append(
            {
                "name": NAMES.get(method, method),
                "assumes": METHODS.get(method, ""),
                "cells": [_rate(own.get(level)) for level in levels],
                "uniformity": format_p(float(uniformity.get(method, math.nan))),
            }
        )
    return rows


def _rate(rate: dict[str, Any] | None) -> dict[str, str]:
    if rate is None:
        return {"rate": "-", "interval": "", "count": ""}
    return {
        "rate": percent(rate["rate"]),
        "interval": interval(rate["low"], rate["high"]),
        "count": f"{int(rate['rejected'])} of {int(rate['tested'])}",
    }


def _distance(row: dict[str, Any]) -> dict[str, Any]:
    high = float(row["to"])
    told = f"{row['from']:g} to {high:g}" if math.isfinite(high) else f"{row['from']:g} and more"
    return {"range": told, **_share(row["rejected"], row["views"])}


def _sensitivity(row: dict[str, Any]) -> dict[str, Any]:
    own = {"what": str(row["what"]), "factor": f"{row['factor']:g}", "alpha": f"{row['alpha']:g}"}
    return {**own, **_share(row["rejected"], row["tested"]), "changed": int(row["changed"])}


def _share(rejected: int, tested: int) -> dict[str, Any]:
    share = percent(rejected / tested) if tested else "-"
    return {"rejected": int(rejected), "tested": int(tested), "share": share}


def percent(value: float | None) -> str:
    """Format a share as a percentage.

    Args:
        value: Share in [0, 1]; NaN or None if unknown.

    Returns:
        Text such as "5.2%"; "-" if the share is unknown.
    """
    return "-" if value is None or math.isnan(value) else f"{value:.1%}"


def interval(low: float | None, high: float | None) -> str:
    """Format the confidence interval of a share.

    Args:
        low: Lower end in [0, 1]; NaN or None if unknown.
        high: Upper end in [0, 1]; NaN or None if unknown.

    Returns:
        Text such as "1.0% to 9.4%", or a statement that there is no interval.
    """
    if percent(low) == "-":
        return "no interval: one group"
    return f"{percent(low)} to {percent(high)}"


def _flat(prefix: str, value: Any) -> list[tuple[str, str]]:
    """Flatten settings to dotted names; lists of groups, images and runs become their lengths."""
    if isinstance(value, dict) and value:
        return [
            pair for key, item in value.items() for pair in _flat(f"{prefix}.{key}"[:200], item)
        ]
    name = prefix.removeprefix(".").replace("preparation.preparation.", "preparation.")
    for long, what in (("roles.", "groups"), ("pictures.", "images"), ("preparation.fore", "runs")):
        if name.startswith(long) and isinstance(value, list):
            return [(name, f"{len(value)} {what}")]
    if value is None:
        return [(name, "none")]
    return [(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]
