"""Robustness: every family, distance and source of the variance is tested and counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from experiment_cases import assert_figures_and_words, finished, narrow_models, records, table

from dal_jax import InputError
from experiments import robustness
from experiments._experiment import Context, run_experiment
from experiments.robustness import EXPERIMENT, Settings

pytestmark = pytest.mark.slow  # training and compiling for each of its fixtures

SMALL: dict[str, Any] = {
    "size": 8,
    "families": ("exponnorm", "t"),
    "distances": (0.01, 0.04),
    "images": 6,
    "variance_sizes": (8,),
    "variance_images": (6,),
    "signals": (0.0, 4.0),
    "train_steps": 2,
    "threshold": 1.6,  # some images of this network have no region, some have
    "precision": 0.01,
}


_narrow = narrow_models(robustness)
out = finished("robustness", Settings(**SMALL))


def test_the_tables_are_complete(out: Path):
    rows = table(out, "robustness")
    laws = [("normal", 0.0), *((f, d) for f in SMALL["families"] for d in SMALL["distances"])]
    expected = {(*law, m, a) for law in laws for m in ("selective", "naive") for a in (0.05, 0.01)}
    keys = [(row["family"], row["distance"], row["method"], row["alpha"]) for row in rows]
    assert set(keys) == expected and len(keys) == len(expected)
    estimated = table(out, "estimated_variance")
    variances = ("known", "estimate:same", "estimate:normal:10")
    keys = [(row["signal"], row["variance"], row["method"], row["alpha"]) for row in estimated]
    assert set(keys) == {
        (s, v, m, a)
        for s in SMALL["signals"]
        for v in variances
        for m in ("selective", "naive")
        for a in (0.05, 0.01)
    }
    for row in (*rows, *estimated):
        assert row["images"] == 6 and row["failed"] == 0
        assert row["tested"] + row["no_region"] == 6
    assert any(row["no_region"] for row in rows)
    assert len(table(out, "runs")) == len(laws) + 6


def test_only_the_assumed_variance_differs(out: Path):
    def tested(signal: float, variance: str) -> list[dict[str, Any]]:
        found = records(out, f"size=8-signal={signal}-variance={variance}")
        return [record for record in found if record["status"] == "OK"]

    for signal in SMALL["signals"]:
        known = tested(signal, "known")
        for variance in ("estimate_same", "estimate_normal_10"):
            for one, two in zip(known, tested(signal, variance), strict=True):
                assert one["region"] == two["region"]
                assert one["statistic"] == two["statistic"]
                assert one["sd"] != two["sd"]
    # The square counts as noise where the variance is that of the same image.
    wide = [np.mean([r["sd"] for r in tested(4.0, f"estimate_{v}")]) for v in ("same", "normal_10")]
    assert wide[0] > 1.1 * wide[1]


def test_figures_and_summary(out: Path):
    names = ("robustness", "estimated_variance")
    figures = [f"{name}_{level}" for name in names for level in ("0.05", "0.01")]
    words = ("exponnorm", "estimate:normal:10", "selective, 0.05", "naive, 0.01")
    assert_figures_and_words(out, figures, words)


def test_where_nothing_is_flagged(models: Path, tmp_path: Path):
    changed = {**SMALL, "threshold": 1e3, "distances": (0.01,), "images": 2, "signals": (0.0,)}
    run_experiment("robustness", EXPERIMENT, Settings(**changed), Context(tmp_path, models))
    for name in ("robustness", "estimated_variance"):
        for row in table(tmp_path, name):
            assert row["no_region"] == row["images"] > 0 and np.isnan(row["rate"])


@pytest.mark.parametrize("distance", [0.9, -0.1])
def test_a_distance_out_of_reach_leaves_nothing(tmp_path: Path, distance: float):
    settings = Settings(**{**SMALL, "distances": (0.01, distance)})
    with pytest.raises(InputError, match=f"distance: got {distance}"):
        run_experiment("robustness", EXPERIMENT, settings, Context(tmp_path, tmp_path / "models"))
    assert not list(tmp_path.iterdir())
