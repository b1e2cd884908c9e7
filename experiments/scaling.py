"""Time and memory against image size and network size, beside exhaustive grid search.

dal-jax experiment scaling --out DIR
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from dal_jax import InputError
from dal_jax.bench import BenchSettings, Prepared
from dal_jax.bench import measure as bench
from dal_jax.localizers import THRESHOLD
from dal_jax.models import unet_shapes
from dal_jax.runs import fingerprint, open_run, wait_for_hosts
from experiments._experiment import Context, Experiment, check_lengths, progress_bar
from experiments._grid import grid_points, measure_grid
from experiments._growth import fit_line, growth_cell, growth_row, log_log
from experiments._models import Model, scale_channels, variables_of
from experiments._output import Row, Tables, markdown, panels, pivot

# Measured quantities, and their names in tables and figures.
NAMES = {
    "seconds_per_test": "seconds a test",
    "evaluations_median": "evaluations a test",
    "peak_memory_mb": "peak memory, MiB",
    "forward_seconds": "seconds a forward pass",
}
SIDES = {"n": "side, pixels", "parameters": "parameters of the network, millions"}
COLOURS = ("#c44e52", "#4c72b0", "#dd8452", "#55a868", "#8172b3")
Z_OBS = 2.0  # of the line whose grid points are counted
NAN = math.nan


@dataclass(frozen=True)
class Settings:
    """Measurements; entries of `tests` and `repeats` belong to the sizes in order.

    Raises:
        InputError: Lengths differ, or a value does not fit.
    """

    sizes: tuple[int, ...] = (8, 16, 32, 64, 128, 256)  # sides, pixels
    tests: tuple[int, ...] = (64, 32, 8, 4, 2, 2)  # null images with a region
    repeats: tuple[int, ...] = (3, 3, 3, 2, 1, 1)  # of which the median counts
    widths: tuple[float, ...] = (0.25, 0.5, 1.0)  # factors of `channels`
    width_size: int = 32  # size at which other widths than 1 are measured
    channels: tuple[int, ...] = (32, 64, 128, 256)
    exact_sizes: tuple[int, ...] = (8, 16)  # sizes at which the exact engine is measured too
    exact_tests: int = 2
    spacings: tuple[float, ...] = (0.01, 0.001)  # of grids, standard deviations; the first is run
    grid_sizes: tuple[int, ...] = (8,)  # sizes at which the grid search is really run
    grid_images: int = 2
    train_size: int = 16  # side of the squares trained on
    train_steps: int = 2000
    train_images: int = 20_000
    threshold: float = THRESHOLD
    precision: float = 1e-3
    limit_seconds: float = 1800.0  # of one measurement
    seed: int = 0

    def __post_init__(self) -> None:
        check_lengths(self, "sizes", "tests", "repeats")
        if self.width_size not in self.sizes:
            raise InputError(f"width_size: got {self.width_size}, expected one of sizes")
        if not all(0 < spacing <= 1 for spacing in self.spacings):
            raise InputError(f"spacings: got {self.spacings}, expected numbers in (0, 1]")
        for width in self.widths:
            self.model(width)

    def model(self, width: float) -> Model:
        """Return the network of a width; the same at all sizes."""
        return Model(
            self.train_size,
            channels=scale_channels(self.channels, width),
            images=self.train_images,
            steps=self.train_steps,
            seed=self.seed,
        )


class Setting(NamedTuple):
    """One size and width, measured together."""

    size: int
    width: float
    tests: int
    repeats: int

    @property
    def name(self) -> str:
        """Name of the setting, for tables and the progress bar."""
        return f"size={self.size}-width={self.width:g}"

    @property
    def effort(self) -> float:
        """Rough duration in seconds, for the progress bar."""
        return 40 + self.size**2 * (1 + self.tests * self.repeats) * self.width / 2500


def measure(settings: Settings, context: Context) -> Tables:
    """Measure every setting, in processes of their own, one after the other, by process 0 alone."""
    _check_memory()
    planned = settings_of(settings)
    context.train([settings.model(one.width) for one in planned])
    measured: list[list[Row]] = []
    if context.host.index == 0:
        measured = _measure_all(settings, planned, context)
    wait_for_hosts("measured")
    if context.host.index:
        return {}
    rows = []
    for one, records in zip(planned, measured, strict=True):
        parameters = parameters_of(settings.model(one.width))
        rows += setting_rows(one, parameters, settings.spacings, records)
    return {
        "scaling_times": rows,
        "exponents_times": exponents(rows, settings.width_size),
        "grid_times": [r for records in measured for r in records if r["kind"] == "grid"],
        "images": [image_row(one, records) for one, records in zip(planned, measured, strict=True)],
        "runs": [_run_row(settings, one, context) for one in planned],
    }


def settings_of(settings: Settings) -> list[Setting]:
    """Return what is measured: every size at width 1, and one size at the other widths.

    Args:
        settings: Settings of the experiment.

    Returns:
        The sizes in their order, the other widths last.
    """
    every = zip(settings.sizes, settings.tests, settings.repeats, strict=True)
    planned = [Setting(size, 1.0, tests, repeats) for size, tests, repeats in every]
    like = planned[settings.sizes.index(settings.width_size)]
    return planned + [like._replace(width=width) for width in settings.widths if width != 1]


def _check_memory() -> None:
    """Raise an error if this process may hold the memory that the measuring processes need."""
    held = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "true").lower()
    if jax.default_backend() == "gpu" and held not in ("false", "0"):
        raise InputError(
            f"XLA_PYTHON_CLIENT_PREALLOCATE: got {held!r}, expected 'false': on a GPU each "
            "measurement, a process of its own, needs memory that this process would hold"
        )


def _measure_all(
    settings: Settings, planned: Sequence[Setting], context: Context
) -> list[list[Row]]:
    """Return the records of each setting; those of an earlier run are not measured again."""
    what = {"experiment": "scaling"}
    run = open_run(
        context.directory / "measured", fingerprint("scaling", settings), len(planned), what
    )
    records = {task: entry["records"] for task, entry in run.finished().items()}
    with progress_bar(sum(one.effort for one in planned)) as bar:
        for task, one in enumerate(planned):
            bar.set_postfix_str(one.name)
            if task not in records:
                records[task] = list(_measure_setting(settings, one, context))
                with run.writer(0) as shard:
                    shard.append(task, {"records": records[task]})
            bar.update(one.effort)
    return [records[task] for task in range(len(planned))]


def _measure_setting(settings: Settings, one: Setting, context: Context) -> Iterator[Row]:
    """Run `dal_jax.bench` in one setting; the exact engine and the grid at width 1 only."""
    exact = one.width == 1 and one.size in settings.exact_sizes
    wanted = BenchSettings(
        sizes=(one.size,),
        tests=(one.tests,),
        exact_tests=(settings.exact_tests,),
        engines=("adaptive", "sweep") if exact else ("adaptive",),
        model=(str(context.models / settings.model(one.width).name),),
        threshold=settings.threshold,
        precision=settings.precision,
        repeats=one.repeats,
        limit_seconds=settings.limit_seconds,
        seed=settings.seed,
    )

    def beside(prepared: Prepared) -> Iterator[Row]:
        return measure_grid(prepared, settings.spacings[0], settings.grid_images)

    run_grid = bool(settings.spacings) and one.width == 1 and one.size in settings.grid_sizes
    return bench(wanted, beside if run_grid else None)


def _run_row(settings: Settings, one: Setting, context: Context) -> Row:
    model = settings.model(one.width)
    return {
        "condition": one.name,
        "run": fingerprint("scaling", settings),
        "model": model.name,
        "parameters": fingerprint(variables_of(model, context.models)),
        "engine": "adaptive",
        "dtype": "float32",
        "seed": settings.seed,
        "images": one.tests,
    }


def parameters_of(model: Model) -> int:
    """Count the trained parameters of a network.

    Args:
        model: The network.

    Returns:
        Their number.
    """
    shapes = unet_shapes(model.config.unet)["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def image_row(one: Setting, records: Sequence[Row]) -> Row:
    """Return the numbers of images that the measured ones were chosen from.

    Args:
        one: The setting.
        records: Records of `dal_jax.bench`.

    Returns:
        size, width, images (null images that were looked at), no_region, tested.
    """
    chosen = next(record for record in records if record["kind"] == "images")
    flagged, looked = map(int, chosen.get("flagged_null_images", "0 of 0").split(" of "))
    labels = {"size": one.size, "width": one.width}
    return {**labels, "images": looked, "no_region": looked - flagged, "tested": one.tests}


def setting_rows(
    one: Setting, parameters: int, spacings: Sequence[float], records: Sequence[Row]
) -> list[Row]:
    """Return rows of the table "scaling_times": a row for each engine, and one for each grid.

    The cost of a grid search is one bare forward pass, in full batches, for each of its points.

    Args:
        one: The setting.
        parameters: Number of parameters of the network.
        spacings: Spacings of the grids, standard deviations.
        records: Records of `dal_jax.bench`.

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
        points = len(grid_points(Z_OBS, spacing))
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
    """Fit the growth of time, evaluations and memory.

    Args:
        rows: Rows of the table "scaling_times".
        width_size: Size at which the network's size is varied.

    Returns:
        Rows with quantity, method, against ("n", at width 1, or "parameters"), size (of the
        images where it is the same for all, else 0), exponent, se, factor, points.
    """
    fits = []
    for quantity in NAMES:
        for method in dict.fromkeys(row["method"] for row in rows):
            for against, size in (("n", 0), ("parameters", width_size)):
                labels = {"quantity": quantity, "method": method, "against": against, "size": size}
                chosen = _rows_of_fit(rows, labels)
                x, y = ([row[key] for row in chosen] for key in (against, quantity))
                if len(set(x)) > 1:
                    fits.append(growth_row(labels, x, y))
    return fits


def _rows_of_fit(rows: Sequence[Row], fit: Row) -> list[Row]:
    """Return the measurements of a fit: of its method, at width 1 or at its size."""
    own = [row for row in rows if row["method"] == fit["method"]]
    own = [row for row in own if not math.isnan(row[fit["quantity"]])]
    return [
        row for row in own if (row["size"] == fit["size"] if fit["size"] else row["width"] == 1)
    ]


def summary(tables: Tables) -> str:
    """Return exponents, then the measurements, Markdown."""
    rows = tables["scaling_times"]
    fits = [{**row, "quantity": NAMES[row["quantity"]]} for row in tables["exponents_times"]]
    index = ("size", "width", "parameters")
    parts = [
        "Exponents of growth (standard error), fitted to logarithms; of the last step alone:\n"
    ]
    parts.append(pivot(fits, ("quantity", "method"), "against", _growth_cell))
    parts.append("Seconds a test; evaluations, median; times the adaptive engine's seconds:\n")
    parts.append(pivot(rows, index, "method", _cost_cell))
    parts.append("Peak memory of the process, MiB (with the compiler's):\n")
    measured = [row for row in rows if not math.isnan(row["peak_memory_mb"])]
    parts.append(pivot(measured, index, "method", lambda r: f"{r['peak_memory_mb']:.0f}"))
    ours = [row for row in rows if row["method"] == "adaptive"]
    parts += ["Adaptive engine, float32:\n", _forward_passes(ours)]
    if tables["grid_times"]:
        parts += ["Grid search, really run:\n", _grids(tables["grid_times"])]
    parts.append("Null images without a region, not measured, of those looked at:\n")
    parts.append(
        pivot(tables["images"], ("size",), "width", lambda r: f"{r['no_region']} of {r['images']}")
    )
    failures = [f"- {r['size']}, {r['method']}: {r['failure']}\n" for r in rows if r["failure"]]
    return "\n".join([*parts, *failures])


def _growth_cell(row: Row) -> str:
    return f"{growth_cell(row)}; {row['last']:.2f}"


def _cost_cell(row: Row) -> str:
    times = f"; {row['times_adaptive']:.1f}" if row["method"] != "adaptive" else ""
    return f"{row['seconds_per_test']:.3g}; {row['evaluations_median']:g}{times}"


def _forward_passes(rows: Sequence[Row]) -> str:
    labels = ("size", "width", "tests")
    heads = (*labels, "ms a forward pass", "search over forward passes", "compile s")
    body = [
        [
            *(f"{row[key]:g}" for key in labels),
            f"{1e3 * row['forward_seconds']:.3g}",
            f"{row['overhead_over_forward']:.2f}",
            f"{row['compile_seconds']:.1f}",
        ]
        for row in rows
    ]
    return markdown(heads, body)


def _grids(rows: Sequence[Row]) -> str:
    heads = ("size", "spacing", "points", "seconds", "predicted", "intervals", "p", "adaptive p")
    body = [
        [
            *(f"{row[key]:g}" for key in ("size", "spacing", "points")),
            *(f"{row[key]:.2f}" for key in ("seconds", "seconds_predicted")),
            f"{row['intervals']} ({row['intervals_adaptive']} adaptive)",
            *(f"{row[key]:.4f}" for key in ("p_value", "p_value_adaptive")),
        ]
        for row in rows
    ]
    return markdown(heads, body)


def draw(tables: Tables) -> dict[str, Any]:
    """Draw time, evaluations and memory against the size; time against the network's size."""
    rows, fits = tables["scaling_times"], tables["exponents_times"]
    quantities = list(NAMES)
    places = [(quantity, "n") for quantity in quantities[:3]]
    places += [(quantities[0], "parameters")]
    places = [p for p in places if any((f["quantity"], f["against"]) == p for f in fits)]
    if not places:
        return {}
    size = next((fit["size"] for fit in fits if fit["size"]), 0)
    titles = {"n": "width 1", "parameters": f"{size} x {size}"}
    figure, axes = panels([titles[against] for _, against in places], 2)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for axis, (quantity, against) in zip(axes, places, strict=True):
        own = [f for f in fits if (f["quantity"], f["against"]) == (quantity, against)]
        for fit in own:
            colour = COLOURS[methods.index(fit["method"]) % len(COLOURS)]
            _draw_method(axis, _rows_of_fit(rows, fit), fit, colour)
        chosen = [row for fit in own for row in _rows_of_fit(rows, fit)]
        ticks = {row[against]: _tick(row, against) for row in chosen}
        log_log(axis, ticks, SIDES[against])
        axis.set_ylabel(NAMES[quantity], fontsize=9)
    return {"scaling": figure}


def _tick(row: Row, against: str) -> str:
    return f"{row['size']}" if against == "n" else f"{row['parameters'] / 1e6:.2g}"


def _draw_method(axis: Any, rows: Sequence[Row], fit: Row, colour: str) -> None:
    x = [row[fit["against"]] for row in rows]
    axis.plot(x, [row[fit["quantity"]] for row in rows], "o", color=colour, markersize=4)
    fit_line(axis, fit, x, fit["method"], colour)


PAPER = Settings(
    sizes=(8, 16, 32, 64, 128, 256, 512),
    tests=(256, 128, 64, 32, 16, 8, 4),
    repeats=(3, 3, 3, 3, 3, 3, 3),
    widths=(0.25, 0.5, 1.0, 2.0),
    exact_sizes=(8, 16, 32, 64),
    exact_tests=5,
    grid_sizes=(8, 16, 32),
    grid_images=5,
    limit_seconds=14_400.0,
)
EXPERIMENT = Experiment(
    "Time and memory against size", {"quick": Settings(), "paper": PAPER}, measure, summary, draw
)
