"""Localizers and their counterparts compared on the same images, with hardly trained networks."""

import json
from pathlib import Path

import numpy as np
import pytest
from experiment_cases import TINY, assert_figures_and_words, csv_table

pytest.importorskip("matplotlib")
pytest.importorskip("skimage")

from dal_jax.localizers import load_localizer
from experiments import counterparts, localizers
from experiments._experiment import Context, run_experiment

pytestmark = pytest.mark.slow  # training and compiling for each of its fixtures

SMALL = {
    "flag_share": 0.1,
    "size": 8,
    "per_label": 4,
    "steps": 3,
    "batch_size": 4,
    "noise": "iid",
}
NAMES = (
    f"dal{TINY},reverse.steps=2",
    f"mdps:pl{TINY},first_start=0,weight=0",
    "autoencoder,network.channels=[2],training.steps=2",
    "rx",
)
SETTINGS = localizers.Settings(localizers=NAMES, held_out=5, **SMALL)
NEAR_AND_FAR = (f"dal{TINY},reverse.steps=2", f"dal{TINY},reverse.steps=1,reverse.start=0")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Context:
    folder = tmp_path_factory.mktemp("localizers")
    context = Context(folder / "out", folder / "models")
    run_experiment("localizers", localizers.EXPERIMENT, SETTINGS, context)
    return context


def test_tables_and_figure_have_every_localizer(done: Context):
    rows = csv_table(done.directory, "localizers")
    assert [row["localizer"] for row in rows] == list(NAMES)
    for row in rows:
        assert all(0 <= float(row[name]) <= 1 for name in ("image_auroc", "pixel_auroc", "aupro"))
    times = csv_table(done.directory, "localizers_times")
    assert all(float(row["seconds"]) > 0 and float(row["evaluations"]) > 1 for row in times)
    assert_figures_and_words(done.directory, ["localizers"], NAMES)


def test_equal_objectives_share_their_training(done: Context):
    assert len(list(done.models.glob("network-*"))) == 2
    dal, mdps = (
        load_localizer(next(done.models.glob(f"localizer-{kind}-*"))).params
        for kind in ("dal", "mdps")
    )
    mdps = mdps["network"]
    for name in ("params", "down1", "conv", "kernel"):
        dal, mdps = dal[name], mdps[name]
    np.testing.assert_array_equal(dal, mdps)


def test_a_preset_s_own_training_goes_before_that_of_the_settings(done: Context):
    steps = [
        json.loads(path.read_text())["step"] for path in done.models.glob("network-*/training.json")
    ]
    assert sorted(steps) == [2, SMALL["steps"]]


def test_a_second_run_gives_the_same_table(done: Context):
    before = (done.directory / "localizers.csv").read_bytes()
    run_experiment("localizers", localizers.EXPERIMENT, SETTINGS, done)
    assert (done.directory / "localizers.csv").read_bytes() == before


def test_little_noise_leaves_the_image_as_it_is(tmp_path: Path):
    settings = counterparts.Settings(localizers=NEAR_AND_FAR, **SMALL)
    context = Context(tmp_path / "out", tmp_path / "models")
    run_experiment("counterparts", counterparts.EXPERIMENT, settings, context)
    far, near = rows = csv_table(context.directory, "counterparts")
    assert [row["localizer"] for row in rows] == list(NEAR_AND_FAR)
    for row in rows:
        values = [float(row[key]) for key in ("normal", "normal_se", "defect", "defect_se")]
        assert np.isfinite(values).all() and min(values) > 0
        assert 0 <= float(row["auroc"]) <= 1
    # Level 0 is nearly without noise; from level 460 on an untrained network recovers nothing.
    assert float(near["normal"]) < 0.3 * float(far["normal"])
    assert float(near["defect"]) < float(far["defect"])
    assert_figures_and_words(context.directory, ["counterparts"], NEAR_AND_FAR)
