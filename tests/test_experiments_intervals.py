"""The experiment `intervals` with a tiny network: its counts, fits and resumption."""

import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from experiment_cases import assert_same_tables, tables, unfinished
from helpers import published_batch as dal_test_batch

from dal_jax import InputError
from experiments._experiment import Context, run_experiment
from experiments._growth import growth
from experiments._models import Use, localizer_of, scaled
from experiments._output import Row, Tables
from experiments._simulation import Simulation
from experiments.intervals import EXPERIMENT, PAPER, Settings, _conditions, draw, exponents, measure

pytestmark = pytest.mark.slow  # training and compiling for each of its fixtures

SETTINGS = Settings(
    sizes=(8,),
    images=(3,),
    widths=(1.0,),
    width_sizes=(8,),
    channels=(4, 8),
    train_sizes=(8,),
    train_steps=3,
    threshold=0.7,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, models: Path) -> tuple[Path, Tables]:
    home = tmp_path_factory.mktemp("intervals")
    run_experiment("intervals", EXPERIMENT, SETTINGS, Context(home, models))
    return home, measure(SETTINGS, Context(home, models))


def of(rows: list[Row], **labels: object) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in labels.items())]


def made_up(sizes: tuple[int, ...], widths: tuple[float, ...], images: int) -> list[Row]:
    """Rows of images whose windows grow as n^0.4 width^0.7, their intervals as the square."""
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for size, width, image in product(sizes, widths, range(images)):
        about = 3 * size ** (2 * 0.4) * width**0.7 * math.exp(0.05 * rng.normal())
        labels = {"size": size, "width": width, "precision": 0.0}
        counts = {"windows": about, "intervals": about**2, "evaluations": 7}
        for engine in ("exact", "adaptive"):
            rows.append({**labels, "engine": engine, "image": image, "status": "OK", **counts})
    return [*rows, {**rows[0], "status": "NO_REGION", "windows": 0}]


def test_every_setting_is_measured() -> None:
    two = {"sizes": (8, 12), "images": (3, 2), "train_sizes": (8, 8)}
    conditions = list(_conditions(replace(SETTINGS, widths=(0.5, 2.0), **two)))
    found = [(c.labels["size"], c.labels["width"]) for c in conditions]
    assert found == [(8, 0.5)] * 4 + [(8, 1.0)] * 4 + [(8, 2.0)] * 4 + [(12, 1.0)] * 4
    assert conditions[0].model.channels == (2, 4) and conditions[-1].images == 2
    options = [(c.options.engine, c.options.dtype, c.options.precision) for c in conditions[:4]]
    exact, adaptive = ("sweep", "float64"), ("adaptive", "float32")
    assert options == [(*exact, 1e-3), (*adaptive, 1e-3), (*exact, 0), (*adaptive, 0)]


def test_there_is_a_row_for_every_setting(whole: tuple[Path, Tables]) -> None:
    rows = whole[1]["intervals"]
    assert len(rows) == len(whole[1]["runs"]) == 4
    for row in rows:
        images = of(whole[1]["intervals_images"], **{k: row[k] for k in list(row)[:4]})
        assert row["images"] == len(images) == 3
        assert row["no_region"] == len(of(images, status="NO_REGION")) and row["failed"] == 0
        assert math.isnan(row["windows_median"]) == (row["engine"] == "adaptive")


def test_counts_are_those_of_single_tests(whole: tuple[Path, Tables], models: Path) -> None:
    for condition in _conditions(SETTINGS):
        localizer = localizer_of(condition.model, Use(8, 0.7), models)
        case = Simulation(8).case(1, np.shape(localizer.draws))
        engine, precision = condition.options.engine, condition.options.precision
        (result,) = dal_test_batch(
            localizer,
            case.image[None],
            case.references[None],
            "iid:1",
            draws=case.draws[None],
            engine=engine,
            precision=precision,
        )
        (row,) = of(whole[1]["intervals_images"], image=1, **condition.labels)
        assert row["status"] == result.status.value == "OK"
        assert row["windows"] == result.num_windows
        assert row["evaluations"] == result.num_evaluations
        assert row["intervals"] == len(result.truncation)


def test_the_whole_line_has_more_windows(whole: tuple[Path, Tables]) -> None:
    exact = of(whole[1]["intervals_images"], engine="exact", status="OK")
    line, part = (of(exact, precision=precision) for precision in (0.0, 1e-3))
    assert len(line) == len(part) > 0
    for long, short in zip(line, part, strict=True):
        assert long["windows"] > short["windows"] > 0
        assert long["intervals"] >= short["intervals"] >= 1


def test_spreads(whole: tuple[Path, Tables]) -> None:
    (row,) = of(whole[1]["intervals"], size=8, width=1.0, precision=0.0, engine="exact")
    labels = {key: row[key] for key in list(row)[:4]}
    values = [r["windows"] for r in of(whole[1]["intervals_images"], status="OK", **labels)]
    assert row["windows_mean"] == np.mean(values) and row["windows_median"] == np.median(values)
    assert row["windows_se"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)))
    assert (row["windows_min"], row["windows_max"]) == (min(values), max(values))


def test_exponents_are_recovered() -> None:
    fits = exponents(made_up((8, 16, 32), (0.5, 1.0), 20))
    for count, power in (("windows", 1), ("intervals", 2), ("evaluations", 0)):
        (against_n,) = of(fits, count=count, against="n")
        assert abs(against_n["exponent"] - 0.4 * power) <= 3 * against_n["se"] + 1e-12
        assert against_n["points"] == 60 and against_n["size"] == 0
        for row in of(fits, count=count, against="width"):
            assert abs(row["exponent"] - 0.7 * power) <= 3 * row["se"] + 1e-12
    assert [row["size"] for row in of(fits, count="windows", against="width")] == [8, 16, 32]


def test_fits_of_few_points() -> None:
    fit = growth([1, 10], [2, 200])
    assert fit.exponent == pytest.approx(2) and fit.factor == pytest.approx(2)
    assert math.isnan(fit.se)
    assert math.isnan(growth([3, 3], [1, 2]).exponent) and growth([], []).points == 0


def test_an_interrupted_run_gives_the_same_tables(
    whole: tuple[Path, Tables], models: Path, tmp_path: Path
) -> None:
    home, copy = whole[0], tmp_path / "again"
    shards = unfinished(home, copy)
    for shard in shards[1:]:  # the last image, whichever it was
        shard.write_bytes(b"".join(shard.read_bytes().splitlines(keepends=True)[:-1]))
    for result in copy.rglob("results.jsonl"):
        result.unlink()
    run_experiment("intervals", EXPERIMENT, SETTINGS, Context(copy, models))
    assert len(sorted(copy.rglob("shard-*.jsonl"))) > len(shards)
    assert_same_tables(copy, home)
    assert {"intervals.csv", "intervals_images.csv", "runs.csv"} <= tables(home).keys()


def test_what_is_written(whole: tuple[Path, Tables]) -> None:
    told = (whole[0] / "summary.md").read_text()
    assert "Number of windows, exact engine" in told and "| 8 " in told
    assert "seconds_median" in (whole[0] / "intervals_times.csv").read_text().splitlines()[0]
    assert not list(whole[0].glob("*.png"))  # one size and one width: nothing grows


def test_a_panel_for_each_count_against_size_and_width() -> None:
    images = made_up((8, 16), (0.5, 1.0), 3)
    tables = {"intervals_images": images, "intervals_exponents": exponents(images)}
    (figure,) = draw(tables).values()
    assert len(figure.axes) == 6
    (line,) = [line for line in figure.axes[0].lines if line.get_label()[0] != "_"]
    fit = of(tables["intervals_exponents"], count="windows", against="n")[0]
    assert line.get_label() == f"whole line: {fit['exponent']:.2f} ({fit['se']:.2f})"


def test_bad_settings() -> None:
    with pytest.raises(InputError, match="images has 1 entries, expected 3"):
        Settings(images=(1,))
    with pytest.raises(InputError, match="width_sizes holds 64"):
        Settings(width_sizes=(64,))
    with pytest.raises(InputError, match=r"widths holds 0\.01"):
        replace(PAPER, widths=(0.01,))
    assert scaled((32, 64), 0.25) == (8, 16)
