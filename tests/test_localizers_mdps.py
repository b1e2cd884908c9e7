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
    one_step,
)

from dal_jax import InputError, NotPiecewiseAffineError, Status, from_score
from dal_jax.diffusion import ReverseConfig, reverse_process
from dal_jax.localizers import (
    DalConfig,
    MdpsConfig,
    MdpsScore,
    gaussian_filter,
    mdps_localizer,
)
from dal_jax.localizers._chain import reverse_steps
from dal_jax.localizers._mdps import guidance, mdps_samples, posterior_sample
from dal_jax.localizers._perceptual import difference_from
from dal_jax.models import UNetConfig, denoiser

# Two levels, 300 and 0: small enough for the exact engine to be compiled in seconds.
CONFIG = MdpsConfig(
    UNET, image_size=8, start=600, spacing=300, depths=(1,), first_weight=0.3, weight=0.3, blur=0.5
)
SMALL = replace(CONFIG, image_size=4)
FAITHFUL = replace(CONFIG, variant="faithful")
BOTH = pytest.mark.parametrize("config", [CONFIG, FAITHFUL], ids=["pl", "faithful"])
# Rounding through a few passes of the network and its derivative, in other orders of summation.
ROUNDING = 1e-11


def localizer(config=CONFIG, share=1.0, **options):
    return mdps_localizer(network(config.unet, share, random=0.5), config, **options)


def samples(found, x):
    score = found.score_fn
    return _samples(score.config, score.extractor, found.params, found.draws, jnp.asarray(x))


_samples = jax.jit(mdps_samples, static_argnums=(0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, 1.0])
def test_without_guidance_and_mask_it_is_the_plain_reverse_process(mask):
    denoise, steps, plan = chain()
    y, draws = normal_draws(1, 8, 8, 1), normal_draws(1, 4, 8, 8, 1, seed=1)
    mask = None if mask is None else jnp.ones((1, 8, 8, 1))
    found = posterior_sample(denoise.given, y, draws, steps, 0.0, mask)
    np.testing.assert_allclose(found, reverse_process(denoise, y, draws[0], *plan), atol=ROUNDING)


@pytest.mark.slow
def test_with_nothing_masked_the_image_comes_back():
    denoise, steps, _ = chain()
    y, draws = normal_draws(1, 8, 8, 1), normal_draws(1, 4, 8, 8, 1, seed=1)
    mask = jnp.zeros((1, 8, 8, 1))
    found = posterior_sample(denoise.given, y, draws, steps, 0.0, mask)
    last = one_step(steps, -1)
    eps = denoise(last.signal * y + last.noise * draws[:, 0], 0)
    exact = y + last.noise / last.signal * (draws[:, 0] - eps)
    np.testing.assert_allclose(found, exact, atol=ROUNDING)
    assert last.noise / last.signal < 0.0101  # what is left of the noise at level 0
    others = draws.at[:, 1:].set(normal_draws(1, 3, 8, 8, 1, seed=2))
    again = posterior_sample(denoise.given, y, others, steps, 0.0, mask)
    np.testing.assert_array_equal(again, found)


@pytest.mark.slow
@pytest.mark.parametrize("squared", [True, False])
def test_guidance_equals_finite_differences(squared):
    denoise, steps, _ = chain(SMOOTH)
    step = one_step(steps, 1)
    x, y = normal_draws(2, 2, 8, 8, 1)
    predict = partial(denoise, level=150)
    eps, g = guidance(predict, step, x, y, squared)
    np.testing.assert_array_equal(eps, predict(x))

    def loss(v):
        square = jnp.sum(((v - step.noise * predict(v)) / step.signal - y) ** 2, axis=(1, 2, 3))
        return jnp.sum(square / 2 if squared else 8 * jnp.sqrt(square))

    for seed in range(4):
        direction = normal_draws(2, 8, 8, 1, seed=seed)
        h = 1e-4
        slope = (loss(x + h * direction) - loss(x - h * direction)) / (2 * h)
        # Errors of order h^2, times third derivatives of some tens; the slopes are some tens too.
        np.testing.assert_allclose(jnp.sum(g * direction), slope, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("squared", [True, False])
def test_guidance_of_a_linear_network_in_closed_form(squared):
    _, steps, _ = chain()
    step, matrix = one_step(steps), normal_draws(12, 12)
    x, y = normal_draws(2, 1, 3, 4, 1, seed=1)
    _, g = guidance(lambda v: (matrix @ v.reshape(-1)).reshape(v.shape), step, x, y, squared)
    jacobian = (np.eye(12) - step.noise * matrix) / step.signal
    residual = jacobian @ x.reshape(-1) - y.reshape(-1)
    if not squared:
        residual = np.sqrt(12) * residual / np.linalg.norm(residual)
    # The norm is softened by 1e-12 of its square.
    np.testing.assert_allclose(g.reshape(-1), jacobian.T @ residual, rtol=1e-10)


def test_guidance_where_the_image_is_met_is_zero():
    _, steps, _ = chain()
    step, x = one_step(steps), normal_draws(1, 4, 4, 1)
    _, g = guidance(lambda v: v, step, x, (x - step.noise * x) / step.signal, False)
    np.testing.assert_array_equal(g, 0)


@pytest.mark.slow
@BOTH
def test_identical_images_have_a_zero_map(config):
    found, x = localizer(config), normal_draws(8, 8, 1)
    same = jnp.stack([x, x])
    difference = difference_from(config, found.score_fn.extractor, found.params, x)(same)
    np.testing.assert_array_equal(difference, np.zeros((2, 8, 8)))
    nothing = jnp.zeros_like(same)
    difference = difference_from(config, found.score_fn.extractor, found.params, x * 0)(nothing)
    np.testing.assert_array_equal(difference, np.zeros((2, 8, 8)))


@pytest.mark.slow
@BOTH
def test_other_images_of_a_batch_do_not_matter(config):
    found = localizer(config)
    images = normal_draws(3, 8, 8, 1) * jnp.array([1.0, 5.0, 0.1])[:, None, None, None]
    batched = jax.jit(jax.vmap(lambda x: found.score_fn(found.params, found.draws, x)))(images)
    for x, score in zip(images, batched, strict=True):
        np.testing.assert_allclose(found.score(x), score, atol=ROUNDING)


@pytest.mark.slow
@BOTH
def test_samples_give_the_mean_of_single_ones(config):
    many = localizer(replace(config, samples=3))
    x = normal_draws(8, 8, 1)
    score, reconstruction = many.evaluate(x)
    assert many.draws.shape == (3, 2, 3, 8, 8, 1)
    singles = [localizer(config, draws=many.draws[k : k + 1]).evaluate(x) for k in range(3)]
    np.testing.assert_allclose(score, np.mean([s for s, _ in singles], 0), atol=ROUNDING)
    np.testing.assert_allclose(reconstruction, np.mean([r for _, r in singles], 0), atol=ROUNDING)


@pytest.mark.slow
@BOTH
def test_the_two_passes(config):
    found, x = localizer(config), normal_draws(8, 8, 1)
    first, mask, normal, difference = samples(found, x)
    low, high = first.min(), first.max()
    np.testing.assert_array_equal(mask, first > low + 0.12 * (high - low))
    assert 0 < mask.sum() < 64
    np.testing.assert_allclose(found.reconstruct(x), normal[0], atol=ROUNDING)
    np.testing.assert_allclose(found.score(x), difference[0], atol=ROUNDING)
    # Outside of the mask the image is its own counterpart, but for the noise at level 0.
    left = np.abs(np.asarray(normal[0] - x))[np.asarray(mask[0]) == 0]
    assert left.max() < 0.1 < np.abs(np.asarray(normal[0] - x)).max()
    # Each pass has its own draws.
    assert np.any(samples(found.with_draws(found.draws[:, ::-1].copy()), x).first != first)


@pytest.mark.slow
def test_a_single_pass_has_no_mask():
    x = normal_draws(8, 8, 1)
    one = localizer(replace(CONFIG, first_start=0, weight=CONFIG.first_weight))
    both = localizer(draws=np.repeat(one.draws, 2, axis=1))
    found = samples(one, x)
    assert one.draws.shape == (1, 1, 3, 8, 8, 1) and found.first is None
    np.testing.assert_array_equal(found.mask, 1.0)
    np.testing.assert_allclose(found.difference, samples(both, x).first, rtol=ROUNDING)


@pytest.mark.slow
def test_the_first_pass_may_start_elsewhere():
    x, first = normal_draws(8, 8, 1), 2 * CONFIG.spacing + CONFIG.start
    far = localizer(replace(CONFIG, first_start=first))
    steps = replace(CONFIG, start=first).reverse.steps
    assert steps > CONFIG.reverse.steps and far.draws.shape[2] == 1 + steps
    own = localizer(replace(CONFIG, start=first), draws=far.draws)
    np.testing.assert_array_equal(samples(far, x).first, samples(own, x).first)
    assert (samples(far, x).normal != samples(own, x).normal).any()
    np.testing.assert_array_equal(
        samples(localizer(replace(CONFIG, first_start=CONFIG.start)), x).normal,
        samples(localizer(), x).normal,
    )


@pytest.mark.slow
def test_the_map_of_the_mask_has_a_blur_of_its_own():
    x = normal_draws(8, 8, 1)

    def of(blur, first_blur):
        return samples(localizer(replace(CONFIG, blur=blur, first_blur=first_blur)), x)

    sharp, wide, own = of(0.0, 0.0), of(1.0, 3.0), of(0.0, 3.0)
    np.testing.assert_allclose(wide.first, gaussian_filter(sharp.first, 3.0), atol=ROUNDING)
    np.testing.assert_array_equal(wide.mask, own.mask)
    assert (wide.mask != sharp.mask).any()
    np.testing.assert_allclose(wide.difference, gaussian_filter(own.difference, 1.0), atol=ROUNDING)
    np.testing.assert_array_equal(of(1.0, None).difference, of(1.0, 1.0).difference)


@pytest.mark.slow
def test_float32_follows_the_image():
    found, x = localizer(), np.asarray(normal_draws(8, 8, 1))
    narrow = found.score(x.astype(np.float32))
    assert narrow.dtype == np.float32
    # Rounding of float32 through two passes; the mask is the same here.
    np.testing.assert_allclose(narrow, found.score(x), atol=1e-4)


@pytest.mark.slow
def test_exact_engine_a_grid_and_the_adaptive_engine_agree_across_masks():
    found = mostly_flagging(localizer(SMALL))
    score = found.score_fn
    masks_of = jax.jit(
        jax.vmap(
            lambda x: mdps_samples(score.config, score.extractor, found.params, found.draws, x).mask
        )
    )
    changes = 0
    for seed in range(6):
        flagged = Flagged(found, seed)
        masks = np.asarray(masks_of(flagged.within(flagged.check_engines().truncation)))
        changes += np.any(masks[1:] != masks[:-1], axis=(1, 2, 3)).sum()
    assert changes >= 3  # masks change within what is flagged alike


def steered(unet, steps_plan, params, draws, x):
    """How far a guided counterpart is from the image, without masks and features."""
    denoise = denoiser(params, unet, (4, 4), x.dtype)
    steps = reverse_steps(denoise, *steps_plan, x.dtype)
    normal = posterior_sample(denoise.given, x, draws, steps, 0.5)
    return jnp.sum(jnp.abs(normal[0] - x), axis=-1)


@pytest.mark.slow
def test_engines_agree_across_jumps_of_the_guidance():
    plan = (CONFIG.schedule, ReverseConfig(300, 2, 1.0))
    draws = np.random.default_rng(3).standard_normal((1, 3, 4, 4, 1))
    fn = partial(steered, UNET, plan)
    found = from_score(fn, (4, 4, 1), 1.0, network(UNET, 1.0), draws)
    found = mostly_flagging(found)
    jumps = []
    for seed in range(6):
        flagged = Flagged(found, seed)
        flagged.check_engines()
        jumps.append(flagged.largest_jump())
    assert max(jumps) > 1e-3


@pytest.mark.slow
@BOTH
def test_null_p_values_are_uniform(config):
    check_uniform(localizer(config), 200, precision=0.01)


@pytest.mark.study  # a quarter of an hour; those of 8 x 8 above are in every round
@BOTH
def test_null_p_values_are_uniform_at_16(config):
    config = replace(config, image_size=16, spacing=200, depths=(1, 2))
    check_uniform(localizer(config), 500, precision=0.01)


@pytest.mark.slow
def test_a_diverging_chain_is_told():
    x, x_ref = np.asarray(normal_draws(2, 8, 8, 1))
    first_only = replace(CONFIG, first_weight=1e300, weight=0.0)
    for engine in ("adaptive", "sweep"):
        result = dal_test(localizer(first_only), x, x_ref, "iid:1", engine=engine)
        assert result.status is Status.NON_FINITE
        assert np.isnan(result.p_value)
        assert not result.region.any()


@pytest.mark.slow
def test_faithful_is_refused_by_the_exact_engine():
    x, x_ref = np.asarray(normal_draws(2, 8, 8, 1))
    with pytest.raises(NotPiecewiseAffineError):
        dal_test(localizer(FAITHFUL, threshold=1e-3), x, x_ref, "iid:1", engine="sweep")


def test_configuration_as_plain_values():
    config = replace(FAITHFUL, samples=2, mask_fraction=0.3)
    values = json.loads(json.dumps(config.to_dict()))
    assert MdpsConfig.from_dict(values) == config
    assert hash(MdpsScore(config, config.encoder)) == hash(
        MdpsScore(MdpsConfig.from_dict(values), config.encoder)
    )
    assert config.kind == "mdps"
    assert config.draws_shape == (2, 2, 3, 8, 8, 1)
    assert MdpsConfig(start=250).reverse == ReverseConfig(240, 13, 1.0)
    assert MdpsConfig(start=200).reverse.levels == tuple(range(180, -1, -20))
    with pytest.raises(InputError, match=r"config: unknown key 'tau', (did you mean|expected) "):
        MdpsConfig.from_dict({"tau": 1})


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("variant", "exact", "expected one of pl, faithful"),
        ("weight", -1.0, "expected a number of 0 or above"),
        ("first_weight", np.nan, "expected a number of 0 or above"),
        ("weight", "big", "expected a number of 0 or above"),
        ("mask_fraction", 1.5, "expected a number of 0 to 1"),
        ("eta", -0.1, "expected a number of 0 to 1"),
        ("samples", 0, "expected a whole number of 1 or above"),
        ("samples", 1.5, "expected a whole number of 1 or above"),
        ("start", 0, "expected a whole number of 1 or above"),
        ("spacing", -3, "expected a whole number of 1 or above"),
        ("blur", np.inf, "expected a number of 0 or above"),
        ("first_blur", -1.0, "expected a number of 0 or above"),
        ("pixel_weight", None, "expected a number of 0 or above"),
        ("image_range", (1.0, 1.0), "expected (low, high), low < high"),
        ("image_range", (0.0, np.inf), "expected (low, high), low < high"),
        ("depths", 3, "expected a tuple of numbers"),
        ("depths", (1, 3), "expected increasing numbers from 1 to 2"),
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
    with pytest.raises(InputError, match="image: got sides 7 x 7, expected multiples of 2"):
        replace(CONFIG, image_size=7)
    with pytest.raises(InputError, match="start: got 1020, expected a level below 1000"):
        replace(CONFIG, start=1021, spacing=20)
    smooth = UNetConfig(channels=(4, 8), norm="group")
    for unet in (SMOOTH, smooth, UNetConfig(channels=(4, 8), attention=(1,))):
        with pytest.raises(InputError, match=r"unet: got .*, expected a piecewise-linear network"):
            replace(CONFIG, unet=unet)
        assert replace(FAITHFUL, unet=unet).unet == unet
    variables = network()
    with pytest.raises(InputError, match=r"draws: got shape \(2, 3\), expected \(1, 2, 3, 8, 8"):
        mdps_localizer(variables, CONFIG, draws=np.zeros((2, 3)))
    with pytest.raises(InputError, match="draws: got a seed of -1, expected 0 or above"):
        mdps_localizer(variables, CONFIG, draws=-1)
    with pytest.raises(InputError, match="threshold: got 0"):
        mdps_localizer(variables, CONFIG, 0.0)
    with pytest.raises(InputError, match=r"feature_scales: got -1\.0, expected finite numbers"):
        replace(CONFIG, feature_scales=(-1.0, 1.0))
    with pytest.raises(InputError, match=r"pixel_scale: got -1\.0, expected a number of 0"):
        replace(CONFIG, pixel_scale=-1.0)
    with pytest.raises(InputError, match="extractor: got int, expected a callable with piecewise"):
        mdps_localizer(variables, CONFIG, extractor=3)
    with pytest.raises(InputError, match="extractor: got UNetEncoder, which is not piecewise"):
        mdps_localizer(variables, CONFIG, extractor=replace(FAITHFUL, unet=SMOOTH).encoder)


def test_seeds_are_those_of_the_diffusion_localizer():
    assert DalConfig().draws_shape[0] == 1 + DalConfig().reverse.steps
    expected = np.random.default_rng(5).standard_normal(CONFIG.draws_shape)
    np.testing.assert_array_equal(localizer(draws=5).draws, expected)
    np.testing.assert_array_equal(localizer().draws, localizer(draws=0).draws)
