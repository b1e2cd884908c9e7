import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import published_test as dal_test
from perceptual_cases import (
    SMOOTH,
    UNET,
    Flagged,
    chain,
    check_uniform,
    mostly_flagging,
    network,
    normal_draws,
    null_images,
    one_step,
)
from scipy.special import expit

from dal_jax import InputError, NotPiecewiseAffineError, Status
from dal_jax.diffusion import ReverseConfig, Schedule, glad_pair, reverse_process
from dal_jax.localizers import GladConfig, GladScore, glad_localizer, learn_scales
from dal_jax.localizers._chain import add_noise, clean_image, next_image
from dal_jax.localizers._glad import adaptive_chain, fuse, glad_chain
from dal_jax.localizers._localizer import resize
from dal_jax.localizers._perceptual import difference_from, distance, features
from dal_jax.models import denoiser

# Three levels, 400, 200 and 0: small enough for the exact engine to be compiled in seconds.
CONFIG = GladConfig(
    UNET,
    image_size=8,
    start=500,
    spacing=200,
    depths=(2,),
    stop_count=2,
    stop_distance=0.04,
    blur=0.5,
)
SMALL = replace(CONFIG, image_size=4, stop_distance=0.015)
FAITHFUL = replace(CONFIG, variant="faithful")
BOTH = pytest.mark.parametrize("config", [CONFIG, FAITHFUL], ids=["pl", "faithful"])
# Rounding through a few passes of the network, in other orders of summation.
ROUNDING = 1e-11


def localizer(config=CONFIG, share=1.0, **options):
    return glad_localizer(network(config.unet, share, random=0.5), config, **options)


def stopped(found, images):
    """The level at which each image is fused with its input."""
    score = found.score_fn
    arrays = (found.params, found.draws, jnp.asarray(images))
    return np.asarray(_stopped(score.config, score.extractor, *arrays))


@partial(jax.jit, static_argnums=(0, 1))
def _stopped(config, extractor, params, draws, images):
    one = partial(glad_chain, config, extractor, params, draws)
    return jax.vmap(lambda x: one(x).stopped[0])(images)


def pair(sign=1.0):
    normal, anomalous, noise = normal_draws(3, 4, 4, 4, 2)
    level = jnp.array([0, 40, 500, 999])
    found = glad_pair(normal, anomalous, level, noise, Schedule())
    target = noise + sign * (found.target - noise)
    share = Schedule().alpha_bar[np.asarray(level) + 1][:, None, None, None]
    back = (found.noised - np.sqrt(1 - share) * target) / np.sqrt(share)
    return np.abs(np.asarray(back - normal)).max((1, 2, 3)), normal, anomalous


def test_without_anomaly_the_pair_is_the_plain_one():
    normal, noise = normal_draws(2, 4, 4, 4, 2)
    level = jnp.array([0, 40, 500, 999])
    found = glad_pair(normal, normal, level, noise, Schedule())
    share = Schedule().alpha_bar[np.asarray(level) + 1][:, None, None, None]
    np.testing.assert_array_equal(found.target, noise)
    plain = np.sqrt(share) * normal + np.sqrt(1 - share) * noise
    np.testing.assert_allclose(found.noised, plain, atol=1e-15)


def test_a_perfect_network_leads_to_the_normal_image():
    error, _, _ = pair()
    assert error.max() < 1e-6
    # The other sign doubles the anomaly, (t / T) (z_a - z_n).
    error, normal, anomalous = pair(-1.0)
    doubled = 2 * np.array([0, 0.04, 0.5, 0.999]) * np.abs(anomalous - normal).max((1, 2, 3))
    np.testing.assert_allclose(error, doubled, rtol=1e-6, atol=1e-12)


@pytest.mark.slow
@BOTH
def test_without_stopping_it_is_the_plain_reverse_process(config):
    found = localizer(replace(config, stop_distance=float("inf"), stop_level=0))
    x = normal_draws(8, 8, 1)
    reverse = ReverseConfig(400, 3, 0.0)
    assert config.reverse == reverse
    denoise = jax.jit(partial(bound, found.params["network"]))
    draws = jnp.concatenate([found.draws, jnp.zeros((3, 8, 8, 1))])  # of eta 0: not used
    expected = reverse_process(denoise, x[None], draws, config.schedule, reverse)[0]
    np.testing.assert_allclose(found.reconstruct(x), expected, atol=ROUNDING)
    assert stopped(found, x[None]) == [-1]


def bound(variables, x, level):
    return denoiser(variables, UNET, (8, 8), x.dtype)(x, level)


@pytest.mark.slow
@BOTH
def test_the_larger_tau_the_later_it_stops(config):
    images = normal_draws(6, 8, 8, 1) * jnp.linspace(0.2, 3, 6)[:, None, None, None]
    last = np.full(6, np.inf)
    seen = set()
    for tau in (0.0, 0.04, float("inf")):
        levels = stopped(localizer(replace(config, stop_distance=tau)), images)
        assert (levels <= last).all()
        last = levels
        seen |= set(levels.tolist())
    # At the highest level the process has not left the input yet.
    assert seen == {200.0, 0.0, -1.0}


@pytest.mark.slow
def test_fusion():
    denoise, steps, _ = chain(eta=0.0)
    step = one_step(steps, 1)
    x, y, noise = normal_draws(3, 1, 8, 8, 1)
    given = add_noise(step, y, noise)
    eps = denoise(x, 150)
    ones = jnp.ones((1, 8, 8, 1))
    np.testing.assert_array_equal(fuse(ones, x, given), x)
    np.testing.assert_array_equal(fuse(0 * ones, x, given), given)
    # To mix noised images of one predicted noise is to mix the clean ones behind them.
    mu = jnp.abs(normal_draws(1, 8, 8, 1, seed=4))
    ends = clean_image(step, x, eps), clean_image(step, given, eps)
    mixed = clean_image(step, fuse(mu, x, given), eps)
    np.testing.assert_allclose(mixed, fuse(mu, *ends), atol=ROUNDING)


@pytest.mark.slow
@BOTH
def test_the_chain_step_by_step(config):
    """By hand, at a tau that is exceeded at level 200, and at a lowest level that is not met."""
    found, x = localizer(config), normal_draws(8, 8, 1)
    denoise = jax.jit(partial(bound, found.params["network"]))
    _, steps, _ = chain(start=400, eta=0.0)
    noise = found.draws[0]
    first, second, third = (one_step(steps, k) for k in range(3))
    start = add_noise(first, x, noise)
    at_200 = next_image(first, start, denoise(start[None], 400)[0])
    eps, given = denoise(at_200[None], 200)[0], add_noise(second, x, noise)
    ends = [clean_image(second, image, eps)[None] for image in (given, at_200)]
    looks = [features(config.encoder, found.params["network"], e, (-1.0, 1.0))[0] for e in ends]
    far = distance(*looks, config.reach, config.piecewise_linear)
    largest = np.sort(np.asarray(far).ravel())[-2:].mean()
    wide = np.asarray(resize(far, (8, 8)))[0, ..., None]
    for tau, lowest in ((0.5 * largest, 0), (2 * largest, 300), (2 * largest, 200)):
        used = replace(config, stop_distance=float(tau), stop_level=lowest)
        mu = 1.0 * (wide > tau) if config.variant == "pl" else expit(wide)
        mu = mu if tau < largest else np.full_like(wide, lowest <= 200)
        at_0 = next_image(second, mu * at_200 + (1 - mu) * given, eps)
        expected = at_0
        if tau < largest or lowest == 300:
            expected = next_image(third, at_0, denoise(at_0[None], 0)[0])
            np.testing.assert_allclose(localizer(used).reconstruct(x), expected, atol=ROUNDING)
            assert stopped(localizer(used), x[None]) == [200]
        else:
            assert stopped(localizer(used), x[None])[0] < 200


@pytest.mark.slow
@BOTH
def test_identical_images_have_a_zero_map(config):
    found, x = localizer(config), normal_draws(8, 8, 1)
    for image in (x, 0 * x):
        difference = difference_from(config, found.score_fn.extractor, found.params, image)(
            image[None]
        )
        # Among all places: one minus the cosine of a vector with itself, rounded.
        np.testing.assert_allclose(difference, np.zeros((1, 8, 8)), atol=1e-14)


@pytest.mark.slow
@BOTH
def test_other_images_of_a_batch_do_not_matter(config):
    found = localizer(config)
    images = normal_draws(3, 8, 8, 1) * jnp.array([1.0, 5.0, 0.1])[:, None, None, None]
    batched = jax.jit(jax.vmap(lambda x: found.score_fn(found.params, found.draws, x)))(images)
    for x, score in zip(images, batched, strict=True):
        np.testing.assert_allclose(found.score(x), score, atol=ROUNDING)


@pytest.mark.slow
def test_images_of_one_chain_do_not_matter_to_each_other():
    denoise, steps, _ = chain(start=400, eta=0.0)
    y, noise = normal_draws(2, 4, 8, 8, 1)
    config = replace(CONFIG, stop_distance=0.1)
    run = jax.jit(
        lambda y, noise: adaptive_chain(config, denoise.given, lambda v: [v], y, noise, steps)
    )
    together = run(y, noise)
    for k in range(4):
        alone = run(y[k : k + 1], noise[k : k + 1])
        np.testing.assert_allclose(alone.x[0], together.x[k], atol=ROUNDING)
        assert alone.stopped[0] == together.stopped[k]


def test_a_foreground_mask_and_scales_multiply():
    x = normal_draws(8, 8, 1)
    plain = localizer().score(x)
    shown = np.zeros((8, 8))
    shown[2:5] = 0.5
    np.testing.assert_allclose(localizer(foreground=shown).score(x), shown * plain, rtol=1e-12)
    scaled = replace(CONFIG, feature_scales=(3.0,), pixel_scale=3.0)
    np.testing.assert_allclose(localizer(scaled).score(x), 3 * plain, rtol=1e-12)


@pytest.mark.slow
@BOTH
def test_the_stopping_distance_is_learned_from_normal_images(config):
    images, _ = null_images(localizer(config), 4, 20)
    learned = learn_scales(localizer(replace(config, stop_distance=None)), images)
    levels = stopped(localizer(learned), images)
    assert np.sum(levels >= 0) == 1  # 5% of 20
    # Where it says that no image departs, none does: the distances are those of the process.
    never = replace(learned, stop_distance=np.nextafter(learned.tau, np.inf) * 2)
    assert (stopped(localizer(never), images) < 0).all()
    given = learn_scales(localizer(config), images)
    assert given.stop_distance == config.stop_distance


@pytest.mark.slow
def test_with_a_single_level_there_is_no_stopping_distance_to_be_learned():
    found = localizer(replace(SMALL, start=200, stop_distance=None))
    assert found.score_fn.config.reverse.levels == (0,)
    images, _ = null_images(found, 4, 2)
    assert learn_scales(found, images).stop_distance == 0


@pytest.mark.slow
def test_exact_engine_a_grid_and_the_adaptive_engine_agree_across_stopping_levels():
    found = mostly_flagging(localizer(SMALL))
    changes = 0
    for seed in range(12):
        flagged = Flagged(found, seed)
        levels = stopped(found, flagged.within(flagged.check_engines().truncation))
        changes += np.sum(levels[1:] != levels[:-1])
    assert changes >= 3  # the level changes within what is flagged alike


def removing(config, **changes):
    """A localizer that takes much of the image away, and is fused at any of the levels."""
    return localizer(replace(config, stop_distance=0.06, pixel_weight=4.0, **changes), share=2.0)


@pytest.mark.slow
@BOTH
def test_null_p_values_are_uniform(config):
    check_uniform(removing(config), 200, precision=0.01)


@pytest.mark.slow
@BOTH
def test_null_p_values_are_uniform_at_16(config):
    found = removing(config, image_size=16, spacing=100, depths=(1, 2), stop_count=5)
    check_uniform(found, 500, precision=0.01)


@pytest.mark.slow
def test_a_diverging_chain_is_told():
    x, x_ref = np.asarray(normal_draws(2, 8, 8, 1))
    variables = network(UNET, 1.0)
    variables["params"]["out"]["kernel"] *= np.float32(1e30)
    for config in (CONFIG, replace(CONFIG, stop_level=300)):
        found = glad_localizer(variables, config)
        result = dal_test(found, (1e300 * x), x_ref, "iid:1")
        assert result.status is Status.NON_FINITE
        assert np.isnan(result.p_value)


@pytest.mark.slow
def test_faithful_is_refused_by_the_exact_engine():
    x, x_ref = np.asarray(normal_draws(2, 8, 8, 1))
    with pytest.raises(NotPiecewiseAffineError):
        dal_test(localizer(FAITHFUL, threshold=1e-3), x, x_ref, "iid:1", engine="sweep")


def test_configuration_as_plain_values():
    config = replace(FAITHFUL, stop_distance=float("inf"), radius=2)
    values = json.loads(json.dumps(config.to_dict()))
    assert GladConfig.from_dict(values) == config
    assert hash(GladScore(config, config.encoder)) == hash(
        GladScore(GladConfig.from_dict(values), config.encoder)
    )
    assert config.kind == "glad"
    assert config.draws_shape == (1, 8, 8, 1)
    assert (CONFIG.reach, FAITHFUL.reach, config.reach) == (1, None, 2)
    assert GladConfig().reverse == ReverseConfig(480, 13, 0.0)
    with pytest.raises(InputError, match=r"config: unknown key 'weight', (did you mean|expected) "):
        GladConfig.from_dict({"weight": 1})


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("variant", "exact", "expected one of pl, faithful"),
        ("stop_distance", -1.0, "expected a number of 0 or above"),
        ("stop_distance", np.nan, "expected a number of 0 or above"),
        ("stop_level", 1.5, "expected a whole number of 0 or above"),
        ("stop_count", 0, "expected a whole number of 1 or above"),
        ("radius", -1, "expected a whole number of 0 or above"),
        ("fusion_centre", np.inf, "expected a number of 0 or above"),
        ("fusion_width", 0.0, "expected a positive number"),
        ("fusion_width", -1.0, "expected a positive number"),
        ("start", True, "expected a whole number of 1 or above"),
    ],
)
def test_bad_values_are_named(field, value, expected):
    with pytest.raises(InputError) as error:
        replace(CONFIG, **{field: value})
    message = str(error.value)
    assert message.startswith(f"{field}: got {value!r}"), message
    assert message.endswith(expected), message
    assert "\n" not in message


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="stop_level: got 401, expected at most 400, the highest"):
        replace(CONFIG, stop_level=401)
    with pytest.raises(InputError, match=r"unet: got .*, expected a piecewise-linear network"):
        replace(CONFIG, unet=SMOOTH)
    assert replace(FAITHFUL, unet=SMOOTH).unet == SMOOTH
    with pytest.raises(InputError, match=r"draws: got shape \(2, 3\), expected \(1, 8, 8, 1\)"):
        localizer(draws=np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"foreground: got shape \(4, 4\), expected shape \(8, 8"):
        localizer(foreground=np.ones((4, 4)))
    with pytest.raises(
        InputError, match=r"feature_scales: got shape \(2,\), expected shape \(1,\)"
    ):
        localizer(replace(CONFIG, feature_scales=(1.0, 1.0)))
