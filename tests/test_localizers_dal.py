from pathlib import Path

import jax
import numpy as np
import pytest
import reference_unet
from helpers import REFERENCE

from dal_jax import CheckpointError, InputError
from dal_jax.diffusion import ReverseConfig, Schedule, save_checkpoint
from dal_jax.localizers import (
    DalConfig,
    DalScore,
    average_filter,
    dal_localizer,
    load_localizer,
)
from dal_jax.models import UNetConfig, import_state_dict, init_unet

DATA = Path(__file__).parent / "data"

SMALL = DalConfig(UNetConfig(2, (3, 4), 6), Schedule(50), ReverseConfig(30, 2, 0.7), image_size=4)


@pytest.fixture
def reference(tmp_path):
    arrays = reference_unet.random_state_dict(np.random.default_rng(0), 2, (3, 4), 6)
    np.savez(tmp_path / "w.npz", **arrays)
    return arrays, import_state_dict(tmp_path / "w.npz", SMALL.unet)


def test_equals_numpy_reference(reference):
    arrays, variables = reference
    localizer = dal_localizer(variables, SMALL, 0.5, 3)
    x = np.random.default_rng(1).standard_normal((4, 4, 2))
    draws = np.random.default_rng(3).standard_normal((3, 4, 4, 2))  # what seed 3 means
    shares = SMALL.schedule.alpha_bar
    expected = reference_unet.reconstruct(arrays, x, draws, [30, 0], 0.7, shares)
    scale = np.abs(expected).max()
    # Rounding through two passes of the network.
    np.testing.assert_allclose(localizer.reconstruct(x), expected, atol=1e-12 * scale)
    np.testing.assert_allclose(
        localizer.score(x), reference_unet.score(x, expected), atol=1e-12 * scale
    )
    np.testing.assert_array_equal(localizer.region(x), reference_unet.score(x, expected) > 0.5)


def test_equal_configurations_share_programs(reference):
    assert DalScore(SMALL) == DalScore(DalConfig.from_dict(SMALL.to_dict()))
    assert hash(DalScore(SMALL)) == hash(DalScore(DalConfig.from_dict(SMALL.to_dict())))


def test_default_draws_are_those_of_seed_0(reference):
    _, variables = reference
    expected = np.random.default_rng(0).standard_normal(SMALL.draws_shape)
    np.testing.assert_array_equal(dal_localizer(variables, SMALL).draws, expected)
    np.testing.assert_array_equal(dal_localizer(variables, SMALL, draws=0).draws, expected)


def test_load_localizer(tmp_path):
    variables = init_unet(SMALL.unet, 0)
    save_checkpoint(tmp_path / "model", variables, SMALL)
    loaded = load_localizer(tmp_path / "model", threshold=0.3, draws=5)
    x = np.random.default_rng(1).standard_normal((4, 4, 2))
    np.testing.assert_array_equal(loaded.score(x), dal_localizer(variables, SMALL, 0.3, 5).score(x))
    with pytest.raises(InputError, match=r"draws: got shape \(2, 4, 4, 2\)"):
        load_localizer(tmp_path / "model", draws=np.zeros((2, 4, 4, 2)))
    with pytest.raises(InputError, match="threshold: got -1"):
        load_localizer(tmp_path / "model", threshold=-1.0)
    with pytest.raises(InputError, match="draws: got a seed of -1"):
        load_localizer(tmp_path / "model", draws=-1)
    with pytest.raises(CheckpointError, match="is not a directory"):
        load_localizer(tmp_path / "nowhere")


def test_smooth_activation_works_as_well():
    config = DalConfig(UNetConfig(1, (3, 4), 6, "silu"), image_size=4)
    score = dal_localizer(init_unet(config.unet, 0), config).score(np.ones((4, 4, 1), np.float32))
    assert np.isfinite(score).all()


def test_kept_reference_cases_filter_and_schedule():
    with np.load(DATA / "golden8_maps.npz") as kept:
        np.testing.assert_allclose(Schedule().alpha_bar, kept["alpha_bar"], rtol=1e-13)  # rounding
        for x, recon, score, region in zip(
            kept["x"], kept["recon"], kept["score"], kept["region"], strict=True
        ):
            found = np.abs(average_filter(jax.numpy.asarray(recon - x)[..., None])).sum(-1)
            np.testing.assert_allclose(found, score, atol=1e-14)  # rounding
            np.testing.assert_array_equal(found > kept["threshold"], region)


@pytest.mark.slow
@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference cases are not here")
@pytest.mark.parametrize("size", [8, 16, 32])
def test_shared_reference_cases(size):
    variables = import_state_dict(REFERENCE / f"weights{size}.npz", UNetConfig())
    config = DalConfig(image_size=size)
    with np.load(REFERENCE / f"cases{size}.npz") as cases:
        for k in range(int(cases["num_cases"])):
            case = {n: cases[f"case{k:02d}_{n}"] for n in ("x", "noise", "recon", "score", "M")}
            localizer = dal_localizer(
                variables, config, float(cases["lam"]), case["noise"][..., None]
            )
            x = case["x"][..., None]
            reconstruction = localizer.reconstruct(x)
            # Float64 rounding is 3e-15 here; 1e-8 is what is promised.
            np.testing.assert_allclose(reconstruction[..., 0], case["recon"], atol=1e-8)
            score = reference_unet.score(x, reconstruction)
            np.testing.assert_array_equal(score > cases["lam"], case["M"])
            if size == 8:  # two more programs to compile
                np.testing.assert_allclose(localizer.score(x), case["score"], atol=1e-8)
                np.testing.assert_array_equal(localizer.region(x), case["M"])
                np.testing.assert_array_equal(localizer.region(x.astype(np.float32)), case["M"])
