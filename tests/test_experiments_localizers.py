"""The comparison of localizers on the same images, with networks of hardly any training."""

import csv
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("skimage")

from dal_jax import InputError
from dal_jax.localizers import load_localizer
from experiments import localizers as experiment
from experiments._experiment import Context, run_experiment

pytestmark = pytest.mark.slow  # training and compiling for each of its fixtures

TINY = ",unet.channels=[2,4],unet.time_dim=4"
SETTINGS = experiment.Settings(
    localizers=(
        f"dal{TINY},reverse.steps=2",
        f"mdps:pl{TINY},first_start=0,weight=0",
        "autoencoder,network.channels=[2]",
    ),
    size=8,
    per_label=4,
    held_out=5,
    steps=3,
    batch_size=4,
    noise="iid",
    flag_share=0.1,
)


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("localizers")
    context = Context(folder / "out", folder / "models")
    summary = run_experiment("localizers", experiment.EXPERIMENT, SETTINGS, context)
    return folder, context, summary


def test_tables_and_figure_have_every_localizer(done):
    folder, _, summary = done
    rows = table(folder / "out" / "localizers.csv")
    assert [row["localizer"] for row in rows] == list(SETTINGS.localizers)
    for row in rows:
        for name in ("image_auroc", "pixel_auroc", "aupro"):
            assert 0 <= float(row[name]) <= 1
        assert row["localizer"] in summary
    times = table(folder / "out" / "localizers_times.csv")
    assert all(float(row["seconds"]) > 0 and float(row["evaluations"]) > 1 for row in times)
    assert (folder / "out" / "localizers.png").is_file()


def test_equal_objectives_share_their_training(done):
    folder, _, _ = done
    assert len(list((folder / "models").glob("network-*"))) == 2
    homes = sorted((folder / "models").glob("localizer-[dm]*"))
    dal, mdps = (load_localizer(home).params for home in homes)
    kernel = ("params", "down1", "conv", "kernel")
    for name in kernel:
        dal, mdps = dal[name], (mdps["network"] if name == "params" else mdps)[name]
    np.testing.assert_array_equal(dal, mdps)


def test_a_second_run_gives_the_same_table(done):
    folder, context, _ = done
    before = (folder / "out" / "localizers.csv").read_bytes()
    run_experiment("localizers", experiment.EXPERIMENT, SETTINGS, context)
    assert (folder / "out" / "localizers.csv").read_bytes() == before


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="localizer: got 'best', expected one of dal, mdps"):
        replace(SETTINGS, localizers=("best",))
    with pytest.raises(InputError, match="per_label is 0, expected 1 or more"):
        replace(SETTINGS, per_label=0)
    with pytest.raises(InputError, match="size is 64, expected 1 to 32 without data"):
        replace(SETTINGS, size=64)
    assert replace(SETTINGS, size=64, data="photographs").size == 64
