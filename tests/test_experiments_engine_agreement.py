"""Agreement of the engines: the compared images, and the comparison of made-up records."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from experiment_cases import (
    assert_figures_and_words,
    check_resumed,
    finished,
    narrow_models,
    table,
    tables,
    tear_anywhere,
)

from experiments import engine_agreement
from experiments._experiment import Context, run_experiment
from experiments._simulation import Simulation
from experiments.engine_agreement import (
    EXPERIMENT,
    WAYS,
    Dealt,
    Settings,
    _agreement,
    _differences,
    _end_difference,
)

pytestmark = pytest.mark.slow  # training and compiling for each of its fixtures

SMALL: dict[str, Any] = {
    "sizes": (8,),
    "images": (13,),
    "train_sizes": (8,),
    "train_steps": 2,
    "threshold": 1.6,  # some images of this network have no region, some have
    "precision": 0.01,
}
SETTINGS = Settings(**SMALL)
RECORD: dict[str, Any] = {
    "status": "OK",
    "p_value": 0.3,
    "p_low": 0.29,
    "p_high": 0.31,
    "sd": 2.0,
    "region": [[3, 2], [9, 4]],
    "truncation": [[-3.0, -1.0], [2.0, 8.0]],
    "searched": [[-10.0, 10.0]],
}


_narrow = narrow_models(engine_agreement)
out = finished("engine_agreement", SETTINGS)


def test_every_image_is_compared_in_every_way(out: Path):
    rows = table(out, "compared")
    assert [(row["image"], row["way"]) for row in rows] == [
        (image, way) for image in range(13) for way in WAYS
    ]
    for row in rows:
        assert row["noise"] == SETTINGS.noises[row["image"] % 2]
        assert row["signal"] == SETTINGS.signals[row["image"] // 2 % 6]
        assert row["compared"] == (row["status"] == "OK")
    assert {row["status"] for row in rows} == {"OK", "NO_REGION"}


def test_the_engines_agree(out: Path):
    exact, *others = table(out, "engine_agreement")[0]["judge"], *table(out, "engine_agreement")
    assert exact == "exact" and [row["way"] for row in others] == ["adaptive", "adaptive_float64"]
    compared = table(out, "compared")
    for row in others:
        own = [r for r in compared if r["way"] == row["way"]]
        assert row["images"] == 13 and row["failed"] == 0
        assert row["no_region"] == sum(r["status"] == "NO_REGION" for r in own)
        assert row["compared"] == 13 - row["no_region"] > 5
        for key in ("other_status", "other_region", "other_intervals", "bounds_apart"):
            assert row[key] == 0
        # The adaptive search knows an end to 1e-6 of a standard deviation.
        assert row["end_difference_max"] < 2e-6
        assert row["end_difference_max"] == np.nanmax([r["end_difference"] for r in own])
        assert row["p_difference_max"] < SMALL["precision"]
    assert all(r["windows"] > 0 for r in compared if r["way"] == "exact" and r["status"] == "OK")


def test_figure_and_summary(out: Path):
    assert_figures_and_words(out, ["engine_agreement"], ["Beside exact"])


def test_a_run_cut_off_goes_on_test_by_test(out: Path, models: Path, tmp_path: Path):
    kept, tear = [], tear_anywhere(0)

    def count(shard: Path) -> None:
        tear(shard)
        kept.extend(shard.read_bytes().splitlines()[1:])

    context = Context(tmp_path / "out", models)
    check_resumed("engine_agreement", SETTINGS, out, context, count)
    assert len(kept) > 3
    names = {path.partition(".")[0] for path in tables(out)}
    assert names == {"engine_agreement", "compared", "runs"}


def test_the_first_way_judges(models: Path, tmp_path: Path):
    changed = {**SMALL, "ways": ("adaptive", "adaptive_float64"), "images": (4,)}
    run_experiment("engine_agreement", EXPERIMENT, Settings(**changed), Context(tmp_path, models))
    (row,) = table(tmp_path, "engine_agreement")
    assert (row["judge"], row["way"], row["images"]) == ("adaptive", "adaptive_float64", 4)
    assert not list(tmp_path.glob("runs/*exact*"))
    assert json.loads((tmp_path / "experiment.json").read_text())["settings"]["images"] == [4]


def test_signals_are_dealt_out():
    dealt = Dealt(8, "ar1:0.5:1", seed=4, signals=(0.0, 3.0))
    for number, signal in enumerate((0.0, 3.0, 0.0)):
        one = dealt.case(number, (1,))
        two = Simulation(8, "ar1:0.5:1", signal, seed=4).case(number, (1,))
        np.testing.assert_array_equal(one.image, two.image)
        np.testing.assert_array_equal(one.references, two.references)


def test_equal_records_do_not_differ():
    assert _differences(RECORD, RECORD) == {
        "compared": True,
        "other_status": False,
        "other_region": False,
        "other_intervals": False,
        "end_difference": 0.0,
        "p_difference": 0.0,
        "bounds_apart": False,
    }


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"truncation": [[-3.0, -1.0], [2.0, 8.5]]}, 0.25),  # 0.5 is 0.25 standard deviations
        ({"truncation": [[-3.0, 8.0]]}, None),
        ({"truncation": [[2.0, 8.0]]}, None),
        # Not known between -5 and 0: not compared there.
        ({"truncation": [[2.0, 8.0]], "searched": [[-10.0, -5.0], [0.0, 10.0]]}, 0.0),
        # Known but for 1e-6 around an end: compared.
        (
            {
                "truncation": [[-3.0, -1.0], [2.0 + 1e-6, 8.0]],
                "searched": [[-10.0, 2.0], [2.0 + 1e-6, 10.0]],
            },
            5e-7,
        ),
    ],
)
def test_ends_are_compared_where_both_know(changed: dict[str, Any], expected: float | None):
    found = _end_difference(RECORD, {**RECORD, **changed})
    # A difference of numbers near 2 has an error of 4e-16.
    assert found == expected or found == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"status": "NOT_CONVERGED"}, "other_status"),
        ({"region": [[3, 2], [10, 4]]}, "other_region"),  # the same number of other pixels
        ({"truncation": [[-3.0, -1.0]]}, "other_intervals"),
        ({"p_low": 0.32, "p_high": 0.33}, "bounds_apart"),
        ({"p_low": 0.27, "p_high": 0.28}, "bounds_apart"),
    ],
)
def test_each_difference_is_seen(changed: dict[str, Any], key: str):
    found = _differences(RECORD, {**RECORD, **changed})
    seen = [name for name, value in found.items() if value is True and name != "compared"]
    assert seen == [key]
    assert found["compared"] == ("status" not in changed)


def test_where_nothing_was_compared_there_is_no_difference():
    empty = {**RECORD, "status": "NO_REGION"}
    facts = {"size": 8, "status": "NO_REGION", "evaluations": 1, "disagreements": 0}
    rows = [{**facts, "way": way, **_differences(empty, empty)} for way in ("exact", "adaptive")]
    found = _agreement(rows, "adaptive", "exact")
    assert found["compared"] == 0
    assert math.isnan(found["end_difference_max"]) and math.isnan(found["p_difference_max"])
