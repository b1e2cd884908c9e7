import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers import num_compilations
from helpers import published_batch as dal_test_batch
from helpers import published_test as dal_test
from scipy import stats

from dal_jax import InputError, Status
from dal_jax.localizers import (
    AutoencoderLocalizerConfig,
    AutoencoderScore,
    autoencoder_localizer,
    average_filter,
)
from dal_jax.models import AutoencoderConfig, autoencode, init_autoencoder

CONFIG = AutoencoderLocalizerConfig(AutoencoderConfig(1, (4, 6), 3), image_size=8)


def stirred(config, seed=0):
    """Variables that make reconstructions move about as much as images do."""
    rng = np.random.default_rng(seed)
    drawn = init_autoencoder(config.network, seed)
    return jax.tree.map(lambda a: 1.5 * a + 0.2 * rng.normal(size=a.shape), drawn)


@pytest.fixture(scope="module")
def localizer():
    return autoencoder_localizer(stirred(CONFIG), CONFIG, 0.75)


def test_score_is_the_filtered_difference():
    config = replace(CONFIG, network=AutoencoderConfig(2, (3, 4), 2), image_size=(8, 4))
    found = autoencoder_localizer(stirred(config), config)
    x = np.random.default_rng(1).standard_normal((8, 4, 2))
    made = jax.jit(autoencode, static_argnums=1)(stirred(config), config.network, x[None])[0]
    np.testing.assert_allclose(found.reconstruct(x), made, atol=1e-13)  # rounding
    expected = np.abs(average_filter(made - x, 3)).sum(-1)
    np.testing.assert_allclose(found.score(x), expected, atol=1e-13)
    np.testing.assert_array_equal(found.region(x), expected > 0.8)
    assert found.score(x.astype(np.float32)).dtype == np.float32


def test_no_draws_and_a_kind():
    assert CONFIG.kind == "autoencoder"
    assert CONFIG.draws_shape == (0, 8, 8, 1)
    found = autoencoder_localizer(stirred(CONFIG), CONFIG)
    assert found.draws.shape == CONFIG.draws_shape


def test_configuration_survives_json():
    config = AutoencoderLocalizerConfig(AutoencoderConfig(3, (2, 5), 4, "pl-silu:9"), 5, (8, 12))
    values = json.loads(json.dumps(config.to_dict()))
    again = AutoencoderLocalizerConfig.from_dict(values)
    assert again == config and hash(AutoencoderScore(again)) == hash(AutoencoderScore(config))
    assert AutoencoderLocalizerConfig.from_dict({}) == AutoencoderLocalizerConfig()
    for bad in ({"network": {"depth": 3}}, {"colour": 1}, {"network": 3}, {"filter_size": "x"}):
        with pytest.raises(InputError, match=r"^config"):
            AutoencoderLocalizerConfig.from_dict(bad)


@pytest.mark.parametrize("bad", [{"image_size": 6}, {"image_size": (8, 8, 1)}, {"filter_size": 2}])
def test_parts_that_do_not_fit_are_refused(bad):
    with pytest.raises(InputError, match="got"):
        replace(CONFIG, **bad)


def test_bad_threshold_is_refused():
    with pytest.raises(InputError, match="threshold: got -1"):
        autoencoder_localizer(stirred(CONFIG), CONFIG, -1.0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_engines_agree(localizer, seed):
    x, x_ref = np.random.default_rng(seed).standard_normal((2, 8, 8, 1))
    exact = dal_test(localizer, x, x_ref, "iid:1", engine="sweep", precision=0)
    adaptive = dal_test(localizer, x, x_ref, "iid:1", precision=1e-4)
    assert exact.status == adaptive.status == Status.OK
    assert abs(exact.p_value - adaptive.p_value) < 5e-3  # an interval too narrow to be seen


@pytest.mark.slow
def test_null_p_values_are_uniform(localizer):
    rng = np.random.default_rng(5)
    x, x_ref = rng.standard_normal((2, 300, 8, 8, 1))
    results = dal_test_batch(localizer, x, x_ref, "iid:1")
    p = np.array([r.p_value for r in results if r.status == Status.OK])
    naive = np.array([r.naive_p for r in results if r.status == Status.OK])
    assert len(p) > 200
    # Kolmogorov's distance exceeds 1.63 / sqrt(n) for one seed in a hundred.
    assert stats.kstest(p, "uniform").statistic < 1.63 / np.sqrt(len(p))
    for alpha in (0.05, 0.5):
        error = np.sqrt(alpha * (1 - alpha) / len(p))
        assert abs(np.mean(p < alpha) - alpha) < 3 * error
    # A test that forgets the selection fails the same check: there is something to correct.
    assert stats.kstest(naive, "uniform").statistic > 1.63 / np.sqrt(len(p))


def test_one_program_for_all_weights(localizer):
    x = np.random.default_rng(0).standard_normal((8, 8, 1))
    localizer.score(x)
    before = num_compilations()
    autoencoder_localizer(stirred(CONFIG, 1), CONFIG, 0.5).score(x)
    assert num_compilations() == before
