"""How far counterparts are from normal images and from defects, with hardly trained networks."""

import csv

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("skimage")

from experiments import counterparts as experiment
from experiments._experiment import Context, run_experiment

pytestmark = pytest.mark.slow  # training and compiling for each of its fixtures

NAMES = (
    "dal,unet.channels=[2,4],unet.time_dim=4,reverse.steps=2",
    "dal,unet.channels=[2,4],unet.time_dim=4,reverse.steps=1,reverse.start=0",
)


def test_little_noise_leaves_the_image_as_it_is(tmp_path):
    how = {"size": 8, "per_label": 4, "steps": 3, "batch_size": 4, "noise": "iid"}
    settings = experiment.Settings(localizers=NAMES, flag_share=0.1, **how)
    context = Context(tmp_path / "out", tmp_path / "models")
    summary = run_experiment("counterparts", experiment.EXPERIMENT, settings, context)
    with (tmp_path / "out" / "counterparts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["localizer"] for row in rows] == list(NAMES)
    assert all(name in summary for name in NAMES)
    for row in rows:
        values = [float(row[key]) for key in ("normal", "normal_se", "defect", "defect_se")]
        assert np.isfinite(values).all() and min(values) > 0
        assert 0 <= float(row["auroc"]) <= 1
    # Level 0 is nearly without noise; from level 460 on an untrained network finds nothing back.
    assert float(rows[1]["normal"]) < 0.3 * float(rows[0]["normal"])
    assert float(rows[1]["defect"]) < float(rows[0]["defect"])
    assert (tmp_path / "out" / "counterparts.png").is_file()
