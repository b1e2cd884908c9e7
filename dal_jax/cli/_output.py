"""Output of the verbs: JSON, arrays and figures."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from dal_jax._dal_test import MAPS, as_record, run_lengths
from dal_jax._errors import InputError
from dal_jax.images import write_array


def encode_regions(fields: dict[str, Any]) -> dict[str, Any]:
    """Encode regions as run lengths, with their shape; other arrays become lists later."""
    region = np.asarray(fields["region"])
    shown = {**fields, "region": run_lengths(region), "region_shape": list(region.shape)}
    return {**shown, "components": [as_record(part) for part in fields.get("components", ())]}


def file_maps(fields: dict[str, Any], out: Path) -> dict[str, Any]:
    """Write the maps to `out` as .npy files, and replace the arrays by their paths.

    Args:
        fields: Fields of a result, with the arrays of `MAPS`.
        out: Folder of the files, created if missing.

    Returns:
        The fields, with paths in place of arrays.

    Raises:
        InputError: A file cannot be written.
    """
    for name in MAPS:
        write_array(out / f"{name}.npy", np.asarray(fields[name]))
    paths = {name: str(out / f"{name}.npy") for name in MAPS}
    return {**fields, **paths, "region_shape": list(np.shape(fields["region"])), "components": []}


def need_figures(out: Path | None) -> None:
    """Refuse, before any other work, an output folder for figures that cannot be drawn."""
    if out is not None and importlib.util.find_spec("matplotlib") is None:
        raise InputError('--out: the figure needs matplotlib: pip install "dal-jax[figures]"')
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"--out: {str(out)!r} is a file, expected a folder")
