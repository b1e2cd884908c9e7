"""The experiment `intervals` with a tiny network: its counts, fits and resumption."""

import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from experiment_cases import check_resumed, finished, tables
from helpers import published_batch as dal_test_batch

from experiments._experiment import Context
from experiments._growth import growth_row
from experiments._models import Use, localizer_of
from experiments._output import Row, Tables
from experiments._simulation import Simulation
from experiments.intervals import Settings, _conditions, draw, exponents, measure

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


out = finished("intervals", SETTINGS)


@pytest.fixture(scope="module")
def whole(out: Path, models: Path) -> Tables:
    """The tables, with integers and strings as they are measured."""
    return measure(SETTINGS, Context(out, models))


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


def test_there_is_a_row_for_every_setting(whole: Tables) -> None:
    rows = whole["intervals"]
    assert len(rows) == len(whole["runs"]) == 4
    for row in rows:
        images = of(whole["intervals_images"], **{k: row[k] for k in list(row)[:4]})
        assert row["images"] == len(images) == 3
        assert row["no_region"] == len(of(images, status="NO_REGION")) and row["failed"] == 0
        assert math.isnan(row["windows_median"]) == (row["engine"] == "adaptive")


def test_counts_are_those_of_single_tests(whole: Tables, models: Path) -> None:
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
        (row,) = of(whole["intervals_images"], image=1, **condition.labels)
        assert row["status"] == result.status.value == "OK"
        assert row["windows"] == result.num_windows
        assert row["evaluations"] == result.num_evaluations
        assert row["intervals"] == len(result.truncation)


def test_the_whole_line_has_more_windows(whole: Tables) -> None:
    exact = of(whole["intervals_images"], engine="exact", status="OK")
    line, part = (of(exact, precision=precision) for precision in (0.0, 1e-3))
    assert len(line) == len(part) > 0
    for long, short in zip(line, part, strict=True):
        assert long["windows"] > short["windows"] > 0
        assert long["intervals"] >= short["intervals"] >= 1


def test_spreads(whole: Tables) -> None:
    (row,) = of(whole["intervals"], size=8, width=1.0, precision=0.0, engine="exact")
    labels = {key: row[key] for key in list(row)[:4]}
    values = [r["windows"] for r in of(whole["intervals_images"], status="OK", **labels)]
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
    fit = growth_row({"size": 8}, [1, 10], [2, 200])
    assert fit["size"] == 8 and math.isnan(fit["se"])
    assert fit["exponent"] == pytest.approx(2) and fit["factor"] == pytest.approx(2)
    assert math.isnan(growth_row({}, [3, 3], [1, 2])["exponent"])
    assert growth_row({}, [], [])["points"] == 0


def test_an_interrupted_run_gives_the_same_tables(out: Path, models: Path, tmp_path: Path) -> None:
    shards: list[Path] = []

    def tear(shard: Path) -> None:
        if shards:  # of all but the first the last image, whichever it was
            shard.write_bytes(b"".join(shard.read_bytes().splitlines(keepends=True)[:-1]))
        shards.append(shard)
        shard.with_name("results.jsonl").unlink(missing_ok=True)

    context = Context(tmp_path / "again", models)
    check_resumed("intervals", SETTINGS, out, context, tear)
    assert len(sorted(context.directory.rglob("shard-*.jsonl"))) > len(shards)
    assert {"intervals.csv", "intervals_images.csv", "runs.csv"} <= tables(out).keys()


def test_written_files(out: Path) -> None:
    summary = (out / "summary.md").read_text()
    assert "Number of windows, exact engine" in summary and "| 8 " in summary
    assert "seconds_median" in (out / "intervals_times.csv").read_text().splitlines()[0]
    assert not list(out.glob("*.png"))  # one size and one width: nothing grows


def test_a_panel_for_each_count_against_size_and_width() -> None:
    images = made_up((8, 16), (0.5, 1.0), 3)
    tables = {"intervals_images": images, "intervals_exponents": exponents(images)}
    (figure,) = draw(tables).values()
    assert len(figure.axes) == 6
    (line,) = [line for line in figure.axes[0].lines if line.get_label()[0] != "_"]
    fit = of(tables["intervals_exponents"], count="windows", against="n")[0]
    assert line.get_label() == f"whole line: {fit['exponent']:.2f} ({fit['se']:.2f})"
