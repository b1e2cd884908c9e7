"""Output of the verbs: JSON, arrays and figures."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from dal_jax._dal_test import as_record, run_lengths
from dal_jax._errors import InputError


def encode_regions(fields: dict[str, Any]) -> dict[str, Any]:
    """Encode regions as run lengths, with their shape; other arrays become lists later."""
    region = np.asarray(fields["region"])
    shown = {**fields, "region": run_lengths(region), "region_shape": list(region.shape)}
    return {**shown, "components": [as_record(part) for part in fields.get("components", ())]}


def need_figures(out: Path | None) -> None:
    """Refuse, before any other work, an output folder for figures that cannot be drawn."""
    if out is not None and importlib.util.find_spec("matplotlib") is None:
        raise InputError('--out: the figure needs matplotlib: pip install "dal-jax[figures]"')
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"--out: {str(out)!r} is a file, expected a folder")
