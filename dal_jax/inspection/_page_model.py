"""What a model's folder says about its p-values: profile and calibration, read for the page."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dal_jax._errors import CheckpointError, InputError
from dal_jax.inference import SelectiveP
from dal_jax.inspection._calibration import METHODS, Calibration, load_calibration
from dal_jax.inspection._calibration import RECORD as CALIBRATION
from dal_jax.inspection._page_rows import parse_object, read_bytes, sha256
from dal_jax.inspection._profile import RECORD as PROFILE
from dal_jax.report import format_p

# A p-value of the rows is that of the calibration up to the rounding of a division.
_SAME = 1e-9
_ALPHA = 0.05  # level at which the raw p-values are judged
NAMES = {
    "selective": "raw selective",
    "inflated": "inflated",
    "heavy_tails": "heavy tails",
    "conformal": "conformal",
    "naive": "naive (not valid)",
    "conformal_naive": "conformal, of the naive p",
    "conformal_score": "conformal, of the maximum score",
}


class Trust(NamedTuple):
    """What calibration found, ready for the page; text in the cells."""

    calibration: Calibration
    verdict: list[str]
    kind: str  # "good", "bad" or "careful": the raw p at `_ALPHA`
    levels: list[float]
    rates: list[dict[str, Any]]  # of a method: name, assumes, cells, uniformity
    control: list[dict[str, Any]]  # the same, of images drawn from the noise model
    distance: list[dict[str, Any]]  # by |z|: range, views, rejected, share
    sensitivity: list[dict[str, Any]]  # what, factor, rejected, tested, share
    smallest: list[str]  # names of normal views


class Model(NamedTuple):
    """A model's folder."""

    profile: list[tuple[str, str]]  # setting and value, in the order of the file
    trust: Trust | None  # None: not calibrated
    digests: dict[str, str]  # SHA-256 by name of file
    warnings: list[str]  # of the training images


def read_model(directory: Path) -> Model:
    """Reads profile and calibration of a model.

    Args:
        directory: of a model trained with --data.

    Returns:
        What it holds.

    Raises:
        InputError: the folder or its profile is missing.
        CheckpointError: a file is damaged.
    """
    if not directory.is_dir():
        raise InputError(f"model {str(directory)!r}: no such folder")
    path = directory / PROFILE
    if not path.is_file():
        raise CheckpointError(
            f"model {str(directory)!r}: no {PROFILE}, expected a model trained with --data"
        )
    data = read_bytes(path)
    held = parse_object(path, data)
    profile = list(_flat("", held))
    warnings = [str(told) for told in held.get("warnings", [])]
    digests = {PROFILE: sha256(data)}
    calibration = load_calibration(directory)
    if calibration is None:
        return Model(profile, None, digests, warnings)
    path = directory / CALIBRATION
    data = read_bytes(path)
    digests[CALIBRATION] = sha256(data)
    try:
        trust = _trust(calibration, parse_object(path, data)["found"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged, run dal-jax calibrate again") from error
    return Model(profile, trust, digests, warnings)


def of_this_calibration(rows: Sequence[dict[str, Any]], calibration: Calibration) -> bool:
    """Were the recalibrated p-values of rows made by this calibration?

    Args:
        rows: of views.
        calibration: of the model.

    Returns:
        Whether the conformal p-value of each row is the rank of its raw one here.
    """
    for row in rows:
        bounds = SelectiveP(row["p_value"], row["p_low"], row["p_high"])
        p = calibration.selective.rank(bounds).high
        if math.isnan(p) != math.isnan(row["p_conformal"]):
            return False
        if abs(p - row["p_conformal"]) > _SAME:
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
        if (rate["method"], rate["alpha"]) == ("selective", _ALPHA):
            if rate["low"] > _ALPHA:
                return "bad"
            return "good" if rate["low"] <= _ALPHA <= rate["high"] else "careful"
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
    """Writes a share for reading.

    Args:
        value: in [0, 1]; NaN or None where unknown.

    Returns:
        For instance "5.2%", or a dash.
    """
    return "-" if value is None or math.isnan(value) else f"{value:.1%}"


def interval(low: float | None, high: float | None) -> str:
    """Writes the interval of a share for reading.

    Args:
        low: in [0, 1]; NaN or None where unknown.
        high: the same.

    Returns:
        For instance "1.0% to 9.4%", or that there is none.
    """
    if percent(low) == "-":
        return "no interval: one group"
    return f"{percent(low)} to {percent(high)}"


def _flat(prefix: str, value: Any) -> list[tuple[str, str]]:
    """Settings under dotted names; of lists of groups only their number."""
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
