import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dal_jax import InputError
from dal_jax.localizers import Localizer, cast_floats, from_score

TRACES = []


def brightness(params, draws, x):
    TRACES.append(x.dtype)
    return jnp.sum(x, axis=-1) * params["gain"] + draws[0]


@pytest.fixture
def localizer():
    params = {"gain": np.float32(2.0), "table": np.arange(3)}
    return from_score(brightness, (2, 3, 1), 1.0, params, np.zeros((1, 2, 3)))


def test_score_and_region_in_the_dtype_of_the_image(localizer):
    x = np.arange(6.0).reshape(2, 3, 1) / 5
    for dtype in (np.float32, np.float64):
        score = localizer.score(x.astype(dtype))
        assert score.dtype == dtype
        np.testing.assert_allclose(score, 2 * x[..., 0], rtol=1e-6)  # float32 rounding
    np.testing.assert_array_equal(localizer.region(x), 2 * x[..., 0] > 1.0)
    assert localizer.score(np.ones((2, 3, 1), int)).dtype == np.float64


def test_float64_without_the_global_setting(localizer):
    jax.config.update("jax_enable_x64", False)
    try:
        score = localizer.score(np.full((2, 3, 1), 1 / 3))
    finally:
        jax.config.update("jax_enable_x64", True)
    assert score.dtype == np.float64
    assert score[0, 0] == 2 / 3


def test_threshold_is_compared_in_float64(localizer):
    x = np.full((2, 3, 1), np.float32(0.4), np.float32)
    assert localizer.with_threshold(0.8).region(x).all()  # 2 * float32(0.4) is above 0.8
    assert not localizer.with_threshold(float(np.float32(0.8))).region(x).any()


def test_draws_and_threshold_are_replaced(localizer):
    shifted = localizer.with_draws(np.ones((1, 2, 3)))
    assert isinstance(shifted, Localizer)
    assert shifted.score(np.zeros((2, 3, 1)))[0, 0] == 1.0
    assert localizer.score(np.zeros((2, 3, 1)))[0, 0] == 0.0
    assert shifted.with_threshold(0.5).region(np.zeros((2, 3, 1))).all()


def test_one_compilation_a_dtype(localizer):
    localizer.score(np.zeros((2, 3, 1)))
    TRACES.clear()
    localizer.with_draws(np.ones((1, 2, 3))).with_threshold(3.0).score(np.ones((2, 3, 1)))
    assert TRACES == []


def test_reconstruction_nobody_gave_is_nan(localizer):
    assert np.isnan(localizer.reconstruct(np.zeros((2, 3, 1)))).all()
    given = from_score(brightness, (2, 3, 1), 1.0, reconstruct_fn=lambda p, d, x: x)
    assert (given.reconstruct(np.ones((2, 3, 1))) == 1.0).all()
    assert given.draws.shape == (0, 2, 3, 1)


def test_cast_floats_leaves_integers():
    cast = cast_floats({"a": np.ones(2), "b": np.arange(2), "c": jnp.ones(2)}, np.float32)
    assert [a.dtype for a in jax.tree.leaves(cast)] == [np.float32, np.int64, np.float32]


@pytest.mark.parametrize("threshold", [0.0, -1.0, np.nan, np.inf])
def test_threshold_not_positive_is_refused(localizer, threshold):
    with pytest.raises(InputError, match="threshold: got"):
        localizer.with_threshold(threshold)
    with pytest.raises(InputError, match="threshold: got"):
        from_score(brightness, (2, 3, 1), threshold)


def test_bad_images_draws_and_shapes_are_refused(localizer):
    with pytest.raises(InputError, match=r"x: got shape \(3, 2, 1\), expected \(2, 3, 1\)"):
        localizer.score(np.zeros((3, 2, 1)))
    for value in (np.nan, np.inf):
        with pytest.raises(InputError, match="x: got values that are not finite"):
            localizer.region(np.full((2, 3, 1), value))
    with pytest.raises(InputError, match="draws: got shape"):
        localizer.with_draws(np.zeros((2, 2, 3)))
    with pytest.raises(InputError, match="draws: got values"):
        localizer.with_draws(np.full((1, 2, 3), np.nan))
    with pytest.raises(InputError, match="image_shape: got"):
        from_score(brightness, (2, 3), 1.0)
