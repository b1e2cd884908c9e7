"""Features, distances, blur and resizing that MDPS and GLAD share."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from perceptual_cases import UNET, network, normal_draws
from scipy import ndimage
from scipy.spatial.distance import cdist

from dal_jax import InputError, from_score
from dal_jax.localizers import (
    MdpsConfig,
    average_filter,
    gaussian_filter,
    learn_scales,
    mdps_localizer,
)
from dal_jax.localizers._localizer import resize
from dal_jax.localizers._perceptual import distance, features, perceptual_map

# Rounding of sums of a few dozen terms.
ROUNDING = 1e-13


@dataclass(frozen=True)
class Plain:
    """An extractor that gives the image, and its every second pixel."""

    input_range: tuple[float, float] | None = None
    piecewise_linear: bool = True

    def __call__(self, params: Any, x: Any) -> Any:
        """Two depths."""
        return x, params * x[:, ::2, ::2]


@pytest.mark.parametrize(("sides", "sigma"), [((8, 8), 0.5), ((5, 9), 2.0), ((1, 4), 4.0)])
def test_the_blur_is_that_of_scipy(sides, sigma):
    x = normal_draws(2, *sides)
    expected = [ndimage.gaussian_filter(np.asarray(v), sigma, mode="reflect") for v in x]
    np.testing.assert_allclose(gaussian_filter(x, sigma), expected, atol=ROUNDING)
    np.testing.assert_allclose(gaussian_filter(jnp.ones(sides), sigma), 1.0, atol=ROUNDING)
    assert gaussian_filter(x.astype(np.float32), sigma).dtype == np.float32
    assert gaussian_filter(x, 0.0) is x


@pytest.mark.parametrize(("old", "new"), [((4, 3), (8, 9)), ((4, 4), (4, 4)), ((1, 2), (3, 8))])
def test_resizing_is_that_of_jax(old, new):
    x = normal_draws(2, *old)
    expected = jax.image.resize(x, (2, *new), "bilinear")
    np.testing.assert_allclose(resize(x, new), expected, atol=1e-6)  # its weights are float32


@pytest.mark.slow
def test_features_are_averaged_and_ranges_are_mapped():
    x, factor = normal_draws(2, 4, 6, 3), jnp.asarray(2.0)
    fine, coarse = features(Plain(), factor, x, (-1.0, 1.0))
    for k in range(2):
        np.testing.assert_allclose(fine[k], average_filter(x[k]), atol=ROUNDING)
        np.testing.assert_allclose(coarse[k], average_filter(2 * x[k, ::2, ::2]), atol=ROUNDING)
    fine, _ = features(Plain((0.0, 255.0)), factor, x, (-1.0, 1.0))
    np.testing.assert_allclose(fine[0], average_filter(127.5 * (x[0] + 1)), atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("radius", [0, 1, 2, 5, None])
def test_distances_by_hand(radius, linear):
    u, v = normal_draws(2, 1, 4, 5, 3)
    far = cdist(u.reshape(-1, 3), v.reshape(-1, 3), "cityblock" if linear else "cosine")
    far = far / 3 if linear else far
    places = np.stack(np.mgrid[:4, :5], -1).reshape(-1, 2)
    apart = np.abs(places[:, None] - places).max(-1)
    allowed = apart <= (9 if radius is None else radius)
    expected = np.where(allowed, far, np.inf).min(1).reshape(1, 4, 5)
    # Lengths are softened by 1e-12 of their squares.
    np.testing.assert_allclose(distance(u, v, radius, linear), expected, atol=1e-11)
    itself = distance(u, u, radius, linear)
    np.testing.assert_allclose(itself, 0.0, atol=1e-11 if radius is None else 0)


@pytest.mark.parametrize("linear", [True, False])
def test_places_without_features_are_alike(linear):
    nothing = jnp.zeros((1, 2, 2, 3))
    for radius in (0, 1):
        np.testing.assert_array_equal(distance(nothing, nothing, radius, linear), 0.0)
    assert np.isfinite(distance(nothing, nothing + 1, 0, linear)).all()


def test_depths_are_weighted_and_added():
    u, v = normal_draws(2, 1, 4, 4, 2)
    coarse = (u[:, ::2, ::2], v[:, ::2, ::2])
    scales = jnp.array([2.0, 0.5])
    found = perceptual_map([u, coarse[0]], [v, coarse[1]], scales, (4, 4))
    expected = 2.0 * distance(u, v) + 0.5 * resize(distance(*coarse), (4, 4))
    np.testing.assert_allclose(found, expected, atol=ROUNDING)


@pytest.mark.slow
def test_one_image_is_compared_with_many():
    u, v = normal_draws(1, 4, 4, 2), normal_draws(3, 4, 4, 2, seed=1)
    for radius in (0, 1, None):
        for linear in (True, False):
            many = distance(u, v, radius, linear)
            for k in range(3):
                one = distance(u, v[k : k + 1], radius, linear)
                np.testing.assert_allclose(many[k], one[0], atol=ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["pl", "faithful"])
def test_scales_are_learned_from_normal_images(variant):
    config = MdpsConfig(UNET, image_size=4, variant=variant, start=600, spacing=300, blur=0.0)
    plain = mdps_localizer(network(), config)
    images = np.asarray(normal_draws(3, 4, 4, 1))
    found = learn_scales(plain, images)
    linear, how = variant == "pl", (0, variant == "pl")
    far, ratios = [], []
    for x in images:
        ends = [v[None] for v in (jnp.asarray(x), jnp.asarray(plain.reconstruct(x)))]
        looks = [features(config.encoder, network(), v, (-1.0, 1.0)) for v in ends]
        far.append([distance(*pair, *how) for pair in zip(*looks, strict=True)])
        ratios.append(np.abs(ends[0] - ends[1]).max())
    means = np.array([[d.mean() for d in maps] for maps in far]).mean(0)
    scales = 1 / means if linear else np.ones(2)
    np.testing.assert_allclose(found.feature_scales, scales, rtol=1e-10)
    highest = [
        sum(s * resize(d, (4, 4)) for s, d in zip(scales, maps, strict=True)).max() for maps in far
    ]
    expected = np.mean(np.array(highest) / ratios)
    np.testing.assert_allclose(found.pixel_scale, expected, rtol=1e-10)
    assert replace(found, feature_scales=None, pixel_scale=1.0) == config
    scaled = mdps_localizer(network(), found)
    assert scaled.score_fn == plain.score_fn  # the scales are parameters
    np.testing.assert_array_equal(scaled.params["scales"]["features"], found.feature_scales)
    for bad in (images[0], images[:0], np.zeros((3, 8, 8, 1))):
        with pytest.raises(InputError, match=r"images: got shape \(.*\), expected \(K, 4, 4, 1\)"):
            learn_scales(plain, bad)
    with pytest.raises(InputError, match="localizer: got function, expected one of MDPS or GLAD"):
        learn_scales(from_score(lambda p, d, x: x.sum(-1), (4, 4, 1), 1.0), images)
    nothing = jax.tree.map(np.zeros_like, network())
    silent = mdps_localizer(nothing, config, draws=np.zeros(config.draws_shape))
    for same in (0 * images, np.inf * np.ones_like(images)):
        with pytest.raises(InputError, match="images: some equal their reconstructions"):
            learn_scales(silent, same)
