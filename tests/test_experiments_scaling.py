"""The experiment `scaling`: grids, tables from made-up records, resumption, and one real run."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import published_test as dal_test

from dal_jax import InputError, evaluator_of, from_score
from dal_jax.bench import BenchSettings
from experiments import scaling
from experiments._experiment import Context, run_experiment
from experiments._grid import grid_points, grid_search
from experiments._models import Model, variables_of
from experiments._output import Row
from experiments.scaling import (
    EXPERIMENT,
    PAPER,
    Setting,
    Settings,
    draw,
    exponents,
    image_row,
    parameters_of,
    setting_rows,
    settings_of,
    summary,
)

pytestmark = pytest.mark.slow  # training and compiling for each of its fixtures

SETTINGS = Settings(
    sizes=(8, 16),
    tests=(2, 1),
    repeats=(1, 1),
    widths=(0.5, 1.0),
    width_size=8,
    channels=(4, 8),
    exact_sizes=(8,),
    grid_sizes=(8,),
    train_size=8,
    train_steps=3,
    train_images=64,
)


def adaptive(seconds: float, evaluations: float, memory: float, **more: Any) -> Row:
    """A record as `dal_jax.bench` gives it."""
    return {
        "kind": "engine",
        "engine": "adaptive",
        "tests": 2,
        "seconds_per_test": seconds,
        "evaluations_per_test": {"median": evaluations, "mean": evaluations, "max": evaluations},
        "forward_seconds_per_batch": {"float32": seconds / 50, "float64": seconds / 20},
        "capacity": {"float32": 4, "float64": 4},
        "overhead_over_forward": 1.5,
        "compile_seconds": 3.0,
        "peak_memory_mb": memory,
        **more,
    }


CHOSEN = {"kind": "images", "threshold": 0.8, "flagged_null_images": "24 of 32"}
GRID = {
    "kind": "grid",
    "size": 8,
    "spacing": 0.01,
    "image": 0,
    "points": 2401,
    "seconds_predicted": 1.0,
    "seconds": 1.1,
    "ratio": 1.1,
    "intervals": 1,
    "intervals_adaptive": 2,
    "p_value": 0.25,
    "p_value_adaptive": 0.26,
}


def power_law(settings: BenchSettings, beside: Any = None) -> Iterator[Row]:
    """Stands in for `dal_jax.bench.measure`."""
    size = settings.sizes[0]
    yield CHOSEN
    yield adaptive(1e-4 * size**3, 100 * size, 50 + size**2)
    if "sweep" in settings.engines:
        yield {**adaptive(0.5, 200, 90), "engine": "sweep"}
    if beside is not None:
        yield GRID


@pytest.mark.parametrize("spacing, points", [(0.01, 2401), (0.001, 24_001), (0.5, 49)])
def test_points_of_a_grid(spacing: float, points: int) -> None:
    z = grid_points(2.0, spacing)
    assert len(z) == points and np.isclose(z, 2.0, atol=1e-12).any()
    np.testing.assert_allclose([z[0], z[-1]], [-12, 12], atol=1e-9)
    np.testing.assert_allclose(np.diff(z), spacing)
    assert np.abs(grid_points(-0.3456, spacing)).max() <= 10.3456


def test_a_grid_search_finds_the_same_set() -> None:
    # A kink in z: two intervals in most lines.
    localizer = from_score(lambda p, d, x: abs(abs(x[..., 0]) - 0.5), (4, 4, 1), 1.0)
    rng = np.random.default_rng(3)
    x, x_ref = rng.standard_normal((2, 4, 4, 1))
    evaluator = evaluator_of(localizer, devices=jax.local_devices())
    result = dal_test(localizer, x, x_ref, "iid:1", precision=0)
    for spacing in (0.05, 0.005):
        grid = grid_search(localizer, evaluator, (x, x_ref), result.region, spacing)
        assert grid.truncation.shape == result.truncation.shape
        ends = grid.truncation - result.truncation / result.sd
        assert np.abs(ends).max() <= spacing / 2 + 1e-9  # an end lies between two points
        assert abs(grid.p_value - result.p_value) <= spacing


def test_measured_settings() -> None:
    planned = settings_of(SETTINGS)
    assert planned == [Setting(8, 1, 2, 1), Setting(16, 1, 1, 1), Setting(8, 0.5, 2, 1)]
    assert {one.size for one in settings_of(PAPER)} >= {256, 512}


def test_parameters_are_counted(tmp_path: Path) -> None:
    variables = variables_of(SETTINGS.model(1.0), tmp_path)
    assert variables_of(SETTINGS.model(1.0), tmp_path) is variables  # loaded once
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(variables["params"]))
    assert parameters_of(SETTINGS.model(1.0)) == count
    assert parameters_of(Model(8)) > 1_000_000


def test_rows_of_a_setting() -> None:
    one = Setting(8, 1.0, 2, 1)
    records = [CHOSEN, adaptive(0.1, 200, 500), {**adaptive(2, 300, 900), "engine": "sweep"}, GRID]
    ours, exact, coarse, fine = setting_rows(one, 1000, (0.01, 0.001), records)
    assert (ours["n"], ours["parameters"], ours["method"]) == (64, 1000, "adaptive")
    assert ours["forward_seconds"] == pytest.approx(0.1 / 50 / 4)
    assert exact["times_adaptive"] == 20 and math.isnan(exact["forward_seconds"])
    assert (coarse["evaluations_median"], fine["evaluations_median"]) == (2401, 24_001)
    assert coarse["seconds_per_test"] == pytest.approx(2401 * 0.1 / 200)
    assert list(ours) == list(exact) == list(fine)
    assert image_row(one, records) == {
        "size": 8,
        "width": 1.0,
        "images": 32,
        "no_region": 8,
        "tested": 2,
    }


@pytest.mark.parametrize("kind", ["images", "engine"])
def test_failures_are_reported(kind: str) -> None:
    records: list[Row] = [{"kind": "images", "failure": "exit code -9: killed"}]
    if kind == "engine":
        records = [CHOSEN, {"kind": kind, "engine": "adaptive", "failure": "exit code -9: killed"}]
    rows = setting_rows(Setting(8, 1.0, 2, 1), 1000, (0.01,), records)
    assert rows[0]["failure"].startswith("exit code -9") and math.isnan(rows[1]["seconds_per_test"])
    assert exponents(rows, 8) == []
    assert image_row(Setting(8, 1.0, 2, 1), records)["images"] == (32 if kind == "engine" else 0)


def test_exponents_are_recovered() -> None:
    rows: list[Row] = []
    for size in (8, 16, 32):
        for width in (0.5, 1.0):
            parameters = int(1e6 * width**2)
            noise = math.exp(0.01 * math.sin(size))
            record = adaptive(1e-3 * size**3 * width**2 * noise, 10 * size, 50 * size)
            one = Setting(size, width, 2, 1)
            rows += setting_rows(one, parameters, (0.01,), [CHOSEN, record])
    fits = {(r["quantity"], r["method"], r["against"]): r for r in exponents(rows, 16)}
    time = fits["seconds_per_test", "adaptive", "n"]
    assert abs(time["exponent"] - 1.5) < 3 * time["se"] < 0.1 and time["points"] == 3
    assert fits["evaluations_median", "adaptive", "n"]["exponent"] == pytest.approx(0.5)
    assert fits["peak_memory_mb", "adaptive", "n"]["exponent"] == pytest.approx(0.5)
    assert fits["evaluations_median", "grid 0.01", "n"]["exponent"] == pytest.approx(0)
    size = fits["seconds_per_test", "adaptive", "parameters"]
    assert size["exponent"] == pytest.approx(1) and size["size"] == 16 and math.isnan(size["se"])


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(tmp_path / "run", tmp_path / "models")
    measured: list[tuple[int, str]] = []

    def stopped(settings: BenchSettings, beside: Any = None) -> Iterator[Row]:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append((settings.sizes[0], settings.model[0]))
        yield from power_law(settings, beside)

    monkeypatch.setattr(scaling, "bench", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_experiment("scaling", EXPERIMENT, SETTINGS, context)
    first = list(measured)
    measured.clear()
    told = run_experiment("scaling", EXPERIMENT, SETTINGS, context)
    assert [size for size, _ in first] == [8, 16] and len(measured) == 1  # none of them again
    assert "| seconds a test" in told and "Grid search, really run" in told
    assert "| 8    | 8 of 32 | 8 of 32 |" in told
    for name in ("scaling_times", "exponents_times", "grid_times", "images", "runs"):
        assert (context.directory / f"{name}.csv").stat().st_size > 0
    assert (context.directory / "scaling.png").stat().st_size > 1000
    again = run_experiment("scaling", EXPERIMENT, SETTINGS, context)
    assert again == told and len(measured) == 1


def test_panels(tmp_path: Path) -> None:
    one = Setting(8, 1.0, 2, 1)
    rows = setting_rows(one, 1000, (0.01,), [CHOSEN, adaptive(0.1, 200, 500)])
    tables = {"scaling_times": rows, "exponents_times": [], "grid_times": [], "images": []}
    assert draw(tables) == {} and "Exponents" in summary(tables)


def test_the_memory_of_a_gpu_is_left_to_the_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    scaling._check_memory()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(InputError, match="XLA_PYTHON_CLIENT_PREALLOCATE: got 'true'"):
        scaling._check_memory()
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    scaling._check_memory()


def test_a_real_run(tmp_path: Path) -> None:
    settings = replace(
        SETTINGS, sizes=(8,), tests=(2,), repeats=(1,), widths=(1.0,), grid_images=1, threshold=0.7
    )
    context = Context(tmp_path / "run", tmp_path / "models")
    told = run_experiment("scaling", EXPERIMENT, settings, context)
    assert "Grid search, really run" in told
    tables = EXPERIMENT.measure(settings, context)
    ours, exact, *grids = tables["scaling_times"]
    assert [row["failure"] for row in tables["scaling_times"]] == [""] * 4
    assert 0 < ours["seconds_per_test"] < math.inf and exact["evaluations_median"] > 0
    assert all(row["times_adaptive"] > 1 for row in grids)
    (grid,) = tables["grid_times"]
    assert grid["p_value"] == pytest.approx(grid["p_value_adaptive"], abs=0.02)
