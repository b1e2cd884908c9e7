"""Time and memory against image size and network size, beside exhaustive grid search.

dal-jax experiment scaling --out DIR
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from dal_jax import InputError
from dal_jax.bench import Plan, Prepared
from dal_jax.bench import measure as bench
from dal_jax.runs import fingerprint, open_run, wait_for_hosts
from experiments._experiment import Context, Experiment, progress_bar
from experiments._figures import panels
from experiments._grid import measured_grid
from experiments._growth import fit_line, growth_cell, log_log
from experiments._main import run_module
from experiments._methods import check_lengths
from experiments._models import Model, scaled, variables_of
from experiments._output import Row, Tables, markdown, pivot
from experiments._scaling_rows import (
    QUANTITIES,
    Setting,
    exponents,
    fitted_rows,
    image_row,
    parameters_of,
    setting_rows,
)

NAMES = {
    "seconds_per_test": "seconds a test",
    "evaluations_median": "evaluations a test",
    "peak_memory_mb": "peak memory, MiB",
    "forward_seconds": "seconds a forward pass",
}
SIDES = {"n": "side, pixels", "parameters": "parameters of the network, millions"}
COLOURS = ("#c44e52", "#4c72b0", "#dd8452", "#55a868", "#8172b3")


@dataclass(frozen=True)
class Settings:
    """What is measured; entries of `tests` and `repeats` belong to the sizes in order.

    Raises:
        InputError: lengths differ, or a value does not fit.
    """

    sizes: tuple[int, ...] = (8, 16, 32, 64, 128, 256)  # sides, pixels
    tests: tuple[int, ...] = (64, 32, 8, 4, 2, 2)  # null images with a region
    repeats: tuple[int, ...] = (3, 3, 3, 2, 1, 1)  # of which the median counts
    widths: tuple[float, ...] = (0.25, 0.5, 1.0)  # factors of `channels`
    width_size: int = 32  # size at which other widths than 1 are measured
    channels: tuple[int, ...] = (32, 64, 128, 256)
    exact_sizes: tuple[int, ...] = (8, 16)  # sizes at which the exact engine is measured too
    exact_tests: int = 2
    spacings: tuple[float, ...] = (0.01, 0.001)  # of the grids, standard deviations; first is run
    grid_sizes: tuple[int, ...] = (8,)  # sizes at which the grid search is really run
    grid_images: int = 2
    train_size: int = 16  # side of the squares trained on
    train_steps: int = 2000
    train_images: int = 20_000
    threshold: float = 0.8
    precision: float = 1e-3
    limit_seconds: float = 1800.0  # of one measurement
    seed: int = 0

    def __post_init__(self) -> None:
        check_lengths(self, "sizes", "tests", "repeats")
        if self.width_size not in self.sizes:
            raise InputError(f"width_size is {self.width_size}, expected one of sizes")
        if not all(0 < spacing <= 1 for spacing in self.spacings):
            raise InputError(f"spacings is {self.spacings}, expected numbers in (0, 1]")
        for width in self.widths:
            self.model(width)

    def model(self, width: float) -> Model:
        """The network of a width; the same at all sizes."""
        return Model(
            self.train_size,
            channels=scaled(self.channels, width),
            images=self.train_images,
            steps=self.train_steps,
            seed=self.seed,
        )


def measure(settings: Settings, context: Context) -> Tables:
    """Measures every setting in processes of their own, one after the other, in process 0 alone."""
    _check_memory()
    planned = settings_of(settings)
    context.train([settings.model(one.width) for one in planned])
    found: list[list[Row]] = []
    if context.host.index == 0:
        found = _measured(settings, planned, context)
    wait_for_hosts("measured")
    if context.host.index:
        return {}
    rows = []
    for one, records in zip(planned, found, strict=True):
        parameters = parameters_of(settings.model(one.width))
        rows += setting_rows(one, parameters, settings.spacings, records)
    grids = [r for records in found for r in records if r["kind"] == "grid"]
    return {
        "scaling_times": rows,
        "exponents_times": exponents(rows, settings.width_size),
        "grid_times": grids,
        "images": [image_row(one, records) for one, records in zip(planned, found, strict=True)],
        "runs": [_run_row(settings, one, context) for one in planned],
    }


def settings_of(settings: Settings) -> list[Setting]:
    """What is measured: every size at width 1, and one size at the other widths.

    Args:
        settings: of the experiment.

    Returns:
        Sizes ascending as given, widths last.
    """
    every = zip(settings.sizes, settings.tests, settings.repeats, strict=True)
    planned = [Setting(size, 1.0, tests, repeats) for size, tests, repeats in every]
    like = planned[settings.sizes.index(settings.width_size)]
    return planned + [like._replace(width=width) for width in settings.widths if width != 1]


def _check_memory() -> None:
    """The processes that measure need the memory of the device, which this one may hold."""
    held = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "true").lower()
    if jax.default_backend() == "gpu" and held not in ("false", "0"):
        raise InputError(
            f"XLA_PYTHON_CLIENT_PREALLOCATE is {held!r}, expected 'false': on a GPU each "
            "measurement, a process of its own, needs memory that this process would hold"
        )


def _measured(settings: Settings, planned: Sequence[Setting], context: Context) -> list[list[Row]]:
    """The records of each setting; what is there from an earlier run is not measured again."""
    what = {"experiment": "scaling"}
    run = open_run(
        context.directory / "measured", fingerprint("scaling", settings), len(planned), what
    )
    found = {task: entry["records"] for task, entry in run.finished().items()}
    with progress_bar(sum(one.effort for one in planned)) as bar:
        for task, one in enumerate(planned):
            bar.set_postfix_str(f"size={one.size}-width={one.width:g}")
            if task not in found:
                found[task] = list(_records(settings, one, context))
                with run.writer(0) as shard:
                    shard.append(task, {"records": found[task]})
            bar.update(one.effort)
    return [found[task] for task in range(len(planned))]


def _records(settings: Settings, one: Setting, context: Context) -> Iterator[Row]:
    """What `dal_jax.bench` measures in one setting; the exact engine and the grid at width 1."""
    exact = one.width == 1 and one.size in settings.exact_sizes
    plan = Plan(
        sizes=(one.size,),
        tests=(one.tests,),
        exact_tests=(settings.exact_tests,),
        engines=("adaptive", "sweep") if exact else ("adaptive",),
        models=(str(context.models / settings.model(one.width).name),),
        threshold=settings.threshold,
        precision=settings.precision,
        repeats=one.repeats,
        limit_seconds=settings.limit_seconds,
        seed=settings.seed,
    )

    def beside(prepared: Prepared) -> Iterator[Row]:
        return measured_grid(prepared, settings.spacings[0], settings.grid_images)

    run_grid = bool(settings.spacings) and one.width == 1 and one.size in settings.grid_sizes
    return bench(plan, beside if run_grid else None)


def _run_row(settings: Settings, one: Setting, context: Context) -> Row:
    model = settings.model(one.width)
    return {
        "condition": f"size={one.size}-width={one.width:g}",
        "run": fingerprint("scaling", settings),
        "model": model.name,
        "parameters": fingerprint(variables_of(model, context.models)),
        "engine": "adaptive",
        "dtype": "float32",
        "seed": settings.seed,
        "images": one.tests,
    }


def summary(tables: Tables) -> str:
    """Exponents, then what was measured, Markdown."""
    rows = tables["scaling_times"]
    told = [{**row, "quantity": NAMES[row["quantity"]]} for row in tables["exponents_times"]]
    index = ("size", "width", "parameters")
    parts = [
        "Exponents of growth (standard error), fitted to logarithms; of the last step alone:\n"
    ]
    parts.append(pivot(told, ("quantity", "method"), "against", _growth_cell))
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
    """Time, evaluations and memory against the size; time against the size of the network."""
    rows, fits = tables["scaling_times"], tables["exponents_times"]
    places = [(quantity, "n") for quantity in QUANTITIES[:3]]
    places += [(QUANTITIES[0], "parameters")]
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
            _draw_method(axis, fitted_rows(rows, fit), fit, colour)
        chosen = [row for fit in own for row in fitted_rows(rows, fit)]
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

if __name__ == "__main__":
    run_module("scaling")
