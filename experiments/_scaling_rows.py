"""What was measured in the experiment `scaling`, as rows of its tables."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax

from dal_jax.models import unet_shapes
from experiments._grid import grid_of
from experiments._growth import growth_row
from experiments._models import Model
from experiments._output import Row

Z_OBS = 2.0  # of the line whose grid points are counted
NAN = math.nan
QUANTITIES = ("seconds_per_test", "evaluations_median", "peak_memory_mb", "forward_seconds")


class Setting(NamedTuple):
    """One size and width, measured in one go."""

    size: int
    width: float
    tests: int
    repeats: int

    @property
    def effort(self) -> float:
        """Rough time that it takes, for the progress bar."""
        return 40 + self.size**2 * (1 + self.tests * self.repeats) * self.width / 2500


def parameters_of(model: Model) -> int:
    """Counts the trained parameters of a network.

    Args:
        model: which.

    Returns:
        Their number.
    """
    shapes = unet_shapes(model.config.unet)["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def image_row(one: Setting, records: Sequence[Row]) -> Row:
    """Of which images the measured ones were chosen.

    Args:
        one: the setting.
        records: of `dal_jax.bench`.

    Returns:
        size, width, images (null images that were looked at), no_region, tested.
    """
    told = next(record for record in records if record["kind"] == "images")
    flagged, looked = map(int, told.get("flagged_null_images", "0 of 0").split(" of "))
    labels = {"size": one.size, "width": one.width}
    return {**labels, "images": looked, "no_region": looked - flagged, "tested": one.tests}


def setting_rows(
    one: Setting, parameters: int, spacings: Sequence[float], records: Sequence[Row]
) -> list[Row]:
    """Rows of the table "scaling_times": a row for each engine, and one for each grid.

    A grid search costs as many bare forward passes, in full batches, as the grid has points.

    Args:
        one: the setting.
        parameters: of the network.
        spacings: of the grids, standard deviations.
        records: of `dal_jax.bench`.

    Returns:
        The rows.
    """
    labels = {"size": one.size, "n": one.size**2, "width": one.width, "parameters": parameters}
    failed = next((r["failure"] for r in records if r["kind"] == "images" and "failure" in r), "")
    engines = [record for record in records if record["kind"] == "engine"]
    rows = [{**labels, **_engine_row(record)} for record in engines]
    if failed:
        rows.append({**labels, **_engine_row({"engine": "adaptive", "failure": failed})})
    forward = rows[0]["forward_seconds"]
    for spacing in spacings:
        points = len(grid_of(Z_OBS, spacing))
        grid = dict.fromkeys(rows[0], NAN) | labels
        grid |= {"method": f"grid {spacing:g}", "tests": 0, "failure": failed}
        grid["seconds_per_test"] = points * forward
        rows.append(grid | dict.fromkeys(("evaluations_median", "evaluations_max"), float(points)))
    own = rows[0]["seconds_per_test"]
    return [{**row, "times_adaptive": row["seconds_per_test"] / own} for row in rows]


def _engine_row(record: Row) -> Row:
    adaptive = record["engine"] == "adaptive"
    evaluations, capacity = record.get("evaluations_per_test", {}), record.get("capacity", {})
    forward = record.get("forward_seconds_per_batch", {}).get("float32", NAN)
    return {
        "method": record["engine"],
        "tests": record.get("tests", 0),
        "seconds_per_test": record.get("seconds_per_test", NAN),
        "evaluations_median": evaluations.get("median", NAN),
        "evaluations_max": evaluations.get("max", NAN),
        "forward_seconds": forward / capacity["float32"] if adaptive and capacity else NAN,
        "overhead_over_forward": record.get("overhead_over_forward") or NAN,
        "compile_seconds": record.get("compile_seconds") or NAN,
        "peak_memory_mb": record.get("peak_memory_mb") or NAN,
        "peak_device_memory_mb": record.get("peak_device_memory_mb", NAN),
        "failure": record.get("failure", ""),
    }


def exponents(rows: Sequence[Row], width_size: int) -> list[Row]:
    """Fits how time, evaluations and memory grow.

    Args:
        rows: of the table "scaling_times".
        width_size: size at which the network's size is varied.

    Returns:
        Rows with quantity, method, against ("n", at width 1, or "parameters"), size (of the
        images where it is the same for all, else 0), exponent, se, factor, points.
    """
    out = []
    for quantity in QUANTITIES:
        for method in dict.fromkeys(row["method"] for row in rows):
            for against, size in (("n", 0), ("parameters", width_size)):
                labels = {"quantity": quantity, "method": method, "against": against, "size": size}
                chosen = fitted_rows(rows, labels)
                x, y = ([row[key] for row in chosen] for key in (against, quantity))
                if len(set(x)) > 1:
                    out.append(growth_row(labels, x, y))
    return out


def fitted_rows(rows: Sequence[Row], fit: Row) -> list[Row]:
    """The measurements behind a fit.

    Args:
        rows: of the table "scaling_times".
        fit: of the table "exponents_times".

    Returns:
        Those of its method, at width 1 or at its size.
    """
    own = [row for row in rows if row["method"] == fit["method"]]
    own = [row for row in own if not math.isnan(row[fit["quantity"]])]
    return [
        row for row in own if (row["size"] == fit["size"] if fit["size"] else row["width"] == 1)
    ]
