"""Smooth networks and their replacements: tables, resumption and comparisons of records."""

import json
import math
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from experiment_cases import (
    assert_figures_and_words,
    check_resumed,
    csv_table,
    finished,
    tear_line,
)
from scipy import special

from dal_jax.models import activation, hinge_table
from experiments._experiment import ConditionResult, Context
from experiments._records import agreement, engine_difference, time_row
from experiments.piecewise_linear import Settings, activation_error

pytestmark = pytest.mark.slow  # training and compiling for each of its fixtures

TINY = Settings(
    families=("silu",),
    knots=(5,),
    smooth_images=6,
    replaced_images=4,
    exact_images=(3,),
    score_images=3,
    timed_images=2,
    levels=(0.05, 0.5),
    size=4,
    train_size=4,
    channels=(4, 6),
    train_steps=2,
    precision=0.01,
)

done = finished("piecewise_linear", TINY)


def test_tables_have_every_network_and_engine(done):
    wanted = [
        ("silu", "smooth", "adaptive"),
        ("silu", "pl:5", "sweep"),
        ("silu", "pl:5", "adaptive"),
    ]
    for name in ("work", "piecewise_linear_times", "piecewise_linear"):
        rows = csv_table(done, name)
        found = [(row["family"], row["network"], row["engine"]) for row in rows]
        assert list(dict.fromkeys(found)) == wanted
    counts = {(r["network"], r["engine"]): int(r["images"]) for r in csv_table(done, "work")}
    assert list(counts.values()) == [6, 3, 4]
    # Piecewise-linear networks have a first window with either engine, smooth ones have none.
    methods = {
        (r["network"], r["engine"], r["method"]) for r in csv_table(done, "piecewise_linear")
    }
    assert ("pl:5", "sweep", "over-conditioned") in methods
    assert ("pl:5", "adaptive", "over-conditioned") in methods
    assert ("smooth", "adaptive", "over-conditioned") not in methods
    for row in csv_table(done, "engines"):
        assert row["other_status"] == row["other_region"] == row["bounds_apart"] == "0"
        # Both bounds are at most 0.01 wide and hold the same p.
        assert int(row["tested"]) > 0 and float(row["p_max"]) <= 0.02
    assert_figures_and_words(done, ["approximation", "smooth_p_values"], ["| silu"])


def test_score_maps_are_compared(done):
    (row,) = csv_table(done, "approximation")
    assert int(row["knots"]) == 5 and int(row["compared"]) == 4
    assert 0 < float(row["score_mean"]) <= float(row["score_rms"])


@pytest.mark.parametrize("keep", [0, 1])
def test_an_interrupted_run_goes_on_to_the_same_tables(done, models, tmp_path, keep):
    context = Context(tmp_path / "out", models, devices=1)
    check_resumed("piecewise_linear", TINY, done, context, tear_line(keep))


@pytest.mark.parametrize("family", ["silu", "gelu"])
def test_activation_error_is_that_of_interpolation_between_the_knots(family):
    factor = {"silu": special.expit, "gelu": special.ndtr}[family]
    x = np.linspace(-8, 8, 160_001)
    former = math.inf
    for knots in (4, 8, 16, 32):
        places, _ = hinge_table(f"pl-{family}:{knots}")
        values = places * factor(places)
        values[0], values[-1] = 0.0, places[-1]  # where the asymptotes begin
        smooth = x * factor(x)
        between = np.interp(x, places, values)
        error = activation_error(family, knots)
        # The grids differ by their number of points.
        assert error["activation_max"] == pytest.approx(np.abs(between - smooth).max(), rel=1e-3)
        assert error["activation_mean"] == pytest.approx(np.abs(between - smooth).mean(), rel=1e-3)
        # The network's own function, as it computes.
        own = np.abs(np.asarray(activation(f"pl-{family}:{knots}")(jnp.asarray(x))) - smooth)
        assert error["activation_max"] == pytest.approx(own.max(), rel=1e-3)
        assert error["activation_max_beyond"] < 0.003
        assert error["activation_max"] < former / 2
        former = error["activation_max"]


def _record(region, status="OK", p=0.3):
    return {
        "region": region,
        "region_shape": [2, 3],
        "status": status,
        "p_value": p,
        "p_low": p - 0.01,
        "p_high": p + 0.01,
    }


def test_agreement_of_regions_by_hand():
    none = _record([], "NO_REGION", math.nan)
    smooth = [_record([[0, 2]]), _record([[0, 4]], p=0.01), none, _record([[5, 1]]), none, none]
    other = [_record([[0, 2]]), _record([[2, 4]]), none, none, _record([[0, 1]])]
    found = agreement(smooth, other)
    assert (found["compared"], found["flagged"], found["decided"]) == (5, 4, 2)
    assert found["same"] == pytest.approx(2 / 5)
    assert found["same_se"] == pytest.approx(np.std([1, 0, 1, 0, 0], ddof=1) / math.sqrt(5))
    shares = [1, 2 / 6, 0, 0]
    assert found["jaccard"] == pytest.approx(np.mean(shares))
    assert found["jaccard_se"] == pytest.approx(np.std(shares, ddof=1) / 2)
    assert found["same_decision"] == 0.5
    empty = agreement([none], [none])
    assert empty["same"] == 1 and empty["flagged"] == 0 and math.isnan(empty["jaccard"])


def test_engine_difference_by_hand():
    none = _record([], "NO_REGION", math.nan)
    exact = [_record([[0, 1]], p=0.2), _record([[0, 1]], p=0.5), none, _record([[0, 1]])]
    other = [_record([[0, 1]], p=0.21), _record([[0, 1]], p=0.54), _record([[1, 1]])]
    found = engine_difference(exact, other)
    assert (found["compared"], found["tested"]) == (3, 2)
    assert (found["other_status"], found["other_region"], found["bounds_apart"]) == (1, 1, 1)
    assert found["p_max"] == pytest.approx(0.04) and found["p_median"] == pytest.approx(0.025)


def test_the_test_that_compiles_is_not_timed():
    labels, options = {"engine": "sweep"}, SimpleNamespace(engine="sweep")
    condition: Any = SimpleNamespace(labels=labels, options=options)
    states = (("OK", 60.0), ("NO_REGION", 0.1), ("OK", 2.0), ("OK", 3.0))
    records = [{"status": status, "seconds": seconds} for status, seconds in states]
    context: Any = None
    found = time_row(ConditionResult(condition, records, {}, (1,)), context, 9)
    assert found == {"engine": "sweep", "timed": 2, "seconds": 2.5}
    assert (
        time_row(ConditionResult(condition, records[:2], {}, (1,)), context, 9)["seconds"] == 60.0
    )


def test_settings_are_kept_with_the_tables(done):
    facts = json.loads((done / "experiment.json").read_text())
    assert facts["settings"]["knots"] == [5]
