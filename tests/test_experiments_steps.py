"""Reverse processes compared: their thresholds, tables and resumption."""

from dataclasses import replace

import numpy as np
import pytest
from experiment_cases import (
    assert_figures_and_words,
    check_resumed,
    csv_table,
    finished,
    tear_line,
)

from dal_jax import InputError
from dal_jax.diffusion import ReverseConfig
from experiments._experiment import Context, run_experiment
from experiments._models import Model, Use, localizer_of
from experiments._simulation import Simulation
from experiments.steps import EXPERIMENT, PAPER, Settings, processes, threshold_for

pytestmark = pytest.mark.slow  # training and compiling for each of its fixtures

TINY = Settings(
    size=4,
    steps=(1, 2),
    etas=(1.0,),
    starts=(460,),
    default_steps=2,
    calibration_images=5,
    null_images=5,
    signals=(3.0,),
    images=4,
    timed_images=2,
    levels=(0.05, 0.5),
    channels=(4, 6),
    train_size=4,
    train_steps=2,
    precision=0.01,
)

done = finished("steps", TINY)


def test_tables_have_every_process_and_signal(done):
    wanted = [("default", "2"), ("steps", "1")]
    for name in ("thresholds", "regions", "work", "steps", "steps_times"):
        found = [(row["varied"], row["steps"]) for row in csv_table(done, name)]
        assert list(dict.fromkeys(found)) == wanted, name
    work = csv_table(done, "work")
    assert [(row["signal"], row["images"]) for row in work] == [("0.0", "5"), ("3.0", "4")] * 2
    for row in work:
        passes = int(row["steps"]) * float(row["evaluations_mean"])
        assert float(row["passes_mean"]) == pytest.approx(passes)
    regions = csv_table(done, "regions")
    assert [row["covered_share"] == "nan" for row in regions] == [True, False] * 2
    assert {row["alpha"] for row in csv_table(done, "steps")} == {"0.05", "0.5"}
    assert_figures_and_words(done, ["steps"], ["Null images, by method"])


def test_thresholds_flag_the_wanted_share_of_images_that_are_not_tested(done, models):
    model = Model(4, channels=TINY.channels, steps=TINY.train_steps)
    simulation = Simulation(4, seed=1000)
    flagged = []
    for row in csv_table(done, "thresholds"):
        use = Use(4, float(row["threshold"]), ReverseConfig(steps=int(row["steps"])))
        localizer = localizer_of(model, use, models)
        cases = [simulation.case(k, np.shape(localizer.draws)) for k in range(5)]
        regions = [localizer.with_draws(case.draws).region(case.image) for case in cases]
        flagged.append(np.sum(regions))
        assert flagged[-1] == int(row["flagged"])
        assert flagged[-1] / 80 == float(row["flagged_share"])
    assert 0 < flagged[0] < 80 and flagged[1] == flagged[0]
    tested = Simulation(4, seed=0)
    assert not np.allclose(tested.case(0, (3, 4, 4, 1)).image, simulation.case(0, (3, 4, 4, 1))[0])


def test_threshold_divides_the_scores():
    rng = np.random.default_rng(4)
    scores = rng.gamma(2.0, size=500)
    for count in (1, 37, 499):
        assert np.sum(scores > threshold_for(scores, count)) == count
    for count in (0, 500):
        with pytest.raises(InputError, match=f"threshold flags {count} of 500"):
            threshold_for(scores, count)


@pytest.mark.parametrize("keep", [0, 1])
def test_an_interrupted_run_goes_on_to_the_same_tables(done, models, tmp_path, keep):
    context = Context(tmp_path / "out", models, batch_size=1)
    check_resumed("steps", TINY, done, context, tear_line(keep))


def test_one_number_is_varied_at_a_time():
    found = processes(Settings())
    default = ReverseConfig(460, 5, 1.0)
    assert found["default", ""] == default
    assert found["steps", "10"] == ReverseConfig(460, 10, 1.0)
    assert found["eta", "0.5"] == ReverseConfig(460, 5, 0.5)
    assert found["start", "690"] == ReverseConfig(690, 5, 1.0)
    assert len(found) == len(set(found.values())) == 1 + 3 + 2 + 3
    assert processes(PAPER).keys() == found.keys()


def test_a_threshold_that_flags_nothing_is_refused(models, tmp_path):
    """Before anything is tested."""
    settings = replace(TINY, threshold=1e6)
    context = Context(tmp_path / "out", models)
    with pytest.raises(InputError, match="threshold flags 0 of 80"):
        run_experiment("steps", EXPERIMENT, settings, context)
    assert not (tmp_path / "out" / "runs").exists()
