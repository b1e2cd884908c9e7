from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from perceptual_cases import normal_draws

from dal_jax import InputError
from dal_jax.diffusion import AnomalyRemoval, Batch, Synthesis, TrainConfig, synthesize, train
from dal_jax.diffusion._objective import _blend, _halvings, changed_look, perlin, shuffled_tiles
from dal_jax.localizers import GladConfig
from dal_jax.models import UNetConfig

# A texture of one value keeps it when its look is changed.
FAR = 100.0
ALL = Synthesis(probability=1.0, texture_share=1.0)
NUMBERS = ("probability", "most_kept", "threshold", "texture_share")
KEY = jax.random.key(3)


def made(key, given, synthesis):
    """Anomalies, and where they are."""
    numbers = {n: np.float32(getattr(synthesis, n)) for n in NUMBERS}
    return tuple(map(np.asarray, _made(key, given, numbers)))


@jax.jit
def _made(key, given, numbers):
    # One program for all settings, which as constants would each be compiled for seconds.
    whole = {"finest": ALL.finest, "tiles": ALL.tiles}
    return synthesize(key, given, SimpleNamespace(**whole, **numbers))


def batch(count=200, sides=(9, 15), channels=3, share=0.7):
    images = np.asarray(normal_draws(count, *sides, channels), np.float32)
    where = np.random.default_rng(1).random((count, *sides)) < share
    return Batch(images, where, np.full((2, *sides, channels), FAR, np.float32))


def kept(images, anomalous, mask):
    """What is left of the image at each place of the mask, if the source is `FAR` there."""
    return ((FAR - anomalous) / (FAR - images))[mask]


@pytest.mark.slow
def test_anomalies_of_textures_lie_where_they_may_and_mix_with_the_image():
    given = batch()
    anomalous, mask = made(KEY, given, ALL)
    assert anomalous.dtype == np.float32 and mask.dtype == bool
    assert not (mask & ~given.where).any()
    np.testing.assert_array_equal(anomalous[~mask], given.images[~mask])
    assert mask.any((1, 2)).sum() > 180  # by chance the noise is low all over an image
    shares = []
    for image, changed, here in zip(given.images, anomalous, mask, strict=True):
        if here.any():
            found = kept(image, changed, here)
            # One share an image: float32 has a spacing of 8e-6 at 100, seen at distances of 100.
            np.testing.assert_allclose(found, found[0, 0], atol=5e-7)
            shares.append(found[0, 0])
    # Uniform from 0 to 0.8: of 180 some are near the ends, but for 1 in 10000.
    assert -1e-6 < min(shares) < 0.04 and 0.76 < max(shares) < 0.8


def test_own_tiles_are_the_source_where_textures_are_not_wanted():
    given = batch()
    anomalous, mask = made(KEY, given, replace(ALL, texture_share=0.0))
    assert np.abs(anomalous).max() < 20  # normal numbers, not the texture
    np.testing.assert_array_equal(anomalous[~mask], given.images[~mask])
    assert (anomalous[mask] != given.images[mask]).all()


def test_as_often_as_said():
    given = batch(share=1.0)
    synthesis = Synthesis(probability=0.4, texture_share=0.25, threshold=-1.0)
    anomalous, mask = made(KEY, given, synthesis)
    chosen = mask.any((1, 2))
    np.testing.assert_array_equal(mask, np.broadcast_to(chosen[:, None, None], mask.shape))
    # At this threshold no mask is empty. Three standard errors of a share.
    assert abs(chosen.mean() - 0.4) < 3 * np.sqrt(0.4 * 0.6 / 200)
    textured = anomalous[chosen].mean((1, 2, 3)) > 0.1 * FAR
    assert abs(textured.mean() - 0.25) < 3 * np.sqrt(0.25 * 0.75 / len(textured))


def test_nothing_happens_without_anomalies():
    given = batch()
    anomalous, mask = made(KEY, given, Synthesis(probability=0.0))
    np.testing.assert_array_equal(anomalous, given.images)
    assert not mask.any()


def test_an_anomaly_is_of_the_key_and_the_image_alone():
    given = batch()
    first, again, other = (made(k, given, ALL) for k in (KEY, KEY, jax.random.key(4)))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first[1] != other[1]).any((1, 2)).all()
    changed = given._replace(images=given.images.copy(), where=given.where.copy())
    changed.images[1:] *= 7
    changed.where[1:] = False
    found = made(KEY, changed, ALL)
    for before, after in zip(first, found, strict=True):
        np.testing.assert_array_equal(before[0], after[0])
    masks = {np.asarray(m).tobytes() for m in first[1]}
    assert len(masks) > 180  # images of a batch differ in their masks


@partial(jax.jit, static_argnums=(0, 1, 2))
def noises(count, sides, finest):
    one = partial(perlin, sides=sides, finest=finest)
    return jax.vmap(one)(jax.random.split(KEY, count))


def test_noise_is_centred_and_its_masks_are_of_all_kinds():
    noise = np.asarray(noises(400, (32, 32), 5))
    assert noise.dtype == np.float32
    assert np.abs(noise).max() < 1 + 1e-6
    means = noise.mean((1, 2))
    assert abs(means.mean()) < 4 * means.std() / np.sqrt(400)
    # Nowhere is it always near zero, or else no anomaly would ever be there.
    deviation = noise.std(0)
    assert deviation.min() > 0.7 * deviation.max() > 0.2
    masks = noise > 0.3
    areas = masks.mean((1, 2))
    assert areas.min() < 0.05 and areas.max() > 0.3
    ends = np.abs(np.diff(masks, axis=2)).sum((1, 2))
    assert np.quantile(ends, 0.9) > 5 * np.quantile(ends, 0.1)  # large blotches and many specks


@pytest.mark.slow
def test_coarse_noise_is_continuous_on_sides_that_differ():
    noise = np.asarray(noises(100, (48, 33), 1))
    # Cells have 16.5 pixels and more. Whatever the slopes, noise of unit amplitude rises by at most
    # 2.07 a cell along an axis (found on a grid of places); a step of a pixel may be along both.
    steepest = np.sqrt(2) * 2.07 * np.sqrt(2) / 16.5
    for axis in (1, 2):
        assert np.abs(np.diff(noise, axis=axis)).max() < steepest
    assert noise.std() > 0.2


def test_noise_of_equal_slopes_in_closed_form():
    y, x = np.random.default_rng(0).uniform(0, 3, (2, 5, 4)).astype(np.float32)
    y[0], x[0] = 2, [0, 1, 2, 1]
    slopes = np.broadcast_to(np.float32([0.6, -0.8]), (4, 4, 2))
    found = np.asarray(jax.jit(_blend)(slopes, y, x))
    y, x = y % 1, x % 1
    faded = [t - (6 * t**5 - 15 * t**4 + 10 * t**3) for t in (y, x)]
    # Terms of up to 15 are added in float32: each rounds by up to 1e-6, fused or not.
    np.testing.assert_allclose(found, 0.6 * faded[0] - 0.8 * faded[1], atol=4e-6)
    np.testing.assert_array_equal(found[0], 0)  # at corners of cells


@pytest.mark.parametrize(
    ("side", "halvings"), [(1, 0), (3, 0), (4, 1), (7, 1), (8, 2), (63, 4), (64, 5), (1000, 5)]
)
def test_cells_have_two_pixels(side, halvings):
    assert _halvings(side, 5) == halvings


@pytest.mark.parametrize("shape", [(9, 15, 3), (8, 8, 1)])
def test_shuffled_tiles_are_the_same_tiles(shape):
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    found = np.asarray(jax.jit(shuffled_tiles, static_argnums=2)(KEY, image, 5))
    side, across = (3, 3) if shape[0] == 9 else (2, 2)
    tiles = [
        sorted(
            a[i : i + side, j : j + across].tobytes()
            for i in range(0, shape[0], side)
            for j in range(0, shape[1], across)
        )
        for a in (image, found)
    ]
    assert tiles[0] == tiles[1]
    assert (image != found).any()


def test_sides_of_prime_numbers_are_not_cut():
    image = np.asarray(normal_draws(7, 11, 1))
    np.testing.assert_array_equal(shuffled_tiles(KEY, image, 6), image)


@pytest.mark.slow
def test_looks_have_no_unit():
    image = normal_draws(6, 6, 2)
    looks = jax.jit(jax.vmap(changed_look, (0, None)))
    keys = jax.random.split(KEY, 60)
    found = np.asarray(looks(keys, image))
    # The looks of an image in other units: 15 digits, less two for the offset.
    other = looks(keys, 255 * image + 1000)
    np.testing.assert_allclose(other, 255 * found + 1000, rtol=1e-12)
    mean, spread = np.mean(image, (0, 1)), np.std(image, (0, 1))
    offset = (found.mean((1, 2)) - mean) / spread
    gain = found.std((1, 2)) / spread
    # Each number is near both ends of its range in some of 60 looks, but for 1 in 10000.
    assert -1 <= offset.min() < -0.7 and 0.7 < offset.max() <= 1
    assert 0.5 <= gain.min() < 0.65 and 1.35 < gain.max() <= 1.5
    np.testing.assert_allclose(gain, gain[:, :1].repeat(2, 1), rtol=1e-12)
    # The same pixels in the same or the opposite order of brightness, in 8 directions.
    plain = (found - found.mean((1, 2), keepdims=True)) / found.std((1, 2), keepdims=True)
    ends = np.sort(plain[..., 0].reshape(60, -1))
    start = np.sort(np.asarray((image[..., 0] - mean[0]) / spread[0]).ravel())
    same, opposite = (np.isclose(ends, s, atol=1e-9).all(1) for s in (start, -start[::-1]))
    assert (same ^ opposite).all() and 15 < same.sum() < 45
    directions = {
        np.round(p * (1 if s else -1), 6).tobytes() for p, s in zip(plain, same, strict=True)
    }
    assert len(directions) == 8
    oblong = jax.eval_shape(changed_look, KEY, jax.ShapeDtypeStruct((5, 7, 1), np.float32))
    assert (oblong.shape, oblong.dtype) == ((5, 7, 1), np.float32)


CONFIG = GladConfig(UNetConfig(1, (4,), 8), image_size=8, depths=(1,))
SETTINGS = TrainConfig(steps=6, batch_size=8, log_every=3, checkpoint_every=2)
GIVEN = batch(20, (8, 8), 1)


def fit(folder=None, settings=SETTINGS, progress=None, given=GIVEN, **options):
    return train(
        given.images,
        CONFIG,
        settings,
        folder,
        progress,
        where=given.where,
        textures=given.textures,
        **options,
    )


def removing(**changes):
    return AnomalyRemoval(CONFIG.unet, CONFIG.schedule, replace(Synthesis(), **changes))


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda p, q: p.tobytes() == q.tobytes(), a, b))


@pytest.mark.slow
def test_the_target_leads_to_the_normal_image():
    images = 10 * GIVEN.images
    prepare = jax.jit(removing(probability=1.0).prepare)
    noised, level, target = map(np.asarray, prepare(KEY, Batch(images)))
    assert noised.dtype == target.dtype == np.float32
    share = CONFIG.schedule.alpha_bar[np.asarray(level) + 1][:, None, None, None]
    back = (noised - np.sqrt(1 - share) * target) / np.sqrt(share)
    # Of values of about 10 in float32, with shares down to 4e-5.
    np.testing.assert_allclose(back, images, atol=1e-3)
    assert np.abs(target).max() > 6  # more than noise: own tiles, anywhere


class Killed(Exception):
    pass


def kill(done, total, loss):
    raise Killed


@pytest.mark.slow
def test_training_resumes_to_the_same_bits_and_refuses_other_anomalies(tmp_path):
    assert CONFIG.objective == removing()
    whole = fit()
    with pytest.raises(Killed):
        fit(tmp_path, progress=kill)
    other = {
        "textures": (GIVEN._replace(textures=GIVEN.textures + 1), GIVEN._replace(textures=None)),
        "where": (GIVEN._replace(where=~GIVEN.where), GIVEN._replace(where=None)),
    }
    for name, batches in other.items():
        for changed in batches:
            with pytest.raises(InputError, match=f"another {name}"):
                fit(tmp_path, given=changed)
    with pytest.raises(InputError, match="another objective"):
        fit(tmp_path, objective=removing(threshold=0.2))
    assert same(fit(tmp_path), whole)


@pytest.mark.slow
def test_anomalies_make_another_network():
    """Nothing but the anomalies differs: program, seed, levels and noise are the same."""
    nowhere = GIVEN._replace(where=np.zeros_like(GIVEN.where))
    kernels = [fit(given=given)["params"]["out"]["kernel"] for given in (GIVEN, nowhere)]
    # Six steps of Adam at a rate of 1e-3.
    assert 1e-4 < np.abs(kernels[0] - kernels[1]).max() < 2e-2


def test_numbers_of_any_kind_are_the_same():
    found = Synthesis(probability=1, threshold=np.float64(0.25), finest=np.int64(3))
    assert repr(found) == repr(Synthesis(probability=1.0, threshold=0.25, finest=3))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("probability", 1.5, "expected a number of 0 to 1"),
        ("probability", np.nan, "expected a number of 0 to 1"),
        ("most_kept", -0.1, "expected a number of 0 to 1"),
        ("texture_share", "half", "expected a number of 0 to 1"),
        ("threshold", -2.0, "expected a number of -1 to 1"),
        ("finest", 1.5, "expected a whole number of 0 or above"),
        ("finest", -1, "expected a whole number of 0 or above"),
        ("tiles", 0, "expected a whole number of 1 or above"),
        ("tiles", True, "expected a whole number of 1 or above"),
    ],
)
def test_bad_values_are_named(field, value, expected):
    with pytest.raises(InputError) as error:
        Synthesis(**{field: value})
    assert str(error.value) == f"{field}: got {value!r}, {expected}"
