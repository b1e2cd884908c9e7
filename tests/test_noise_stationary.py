"""Stationary noise: no wrap-around, honest spectra, and what its block whitening leaves out."""

import time

import numpy as np
import pytest
from noise_cases import CHANNELS, asymmetric_channels, lag_matrix, table

from dal_jax import InputError
from dal_jax.noise import as_matrix, circulant, fit_report, log_likelihood, stationary, whiten
from dal_jax.noise._blocks import plan_blocks
from dal_jax.noise._stationary import _Stationary

ONE = np.eye(1)


def test_opposite_edges_do_not_meet():
    height, width = 5, 8
    lags = table((2 * height, 2 * width), ONE)
    unit = np.zeros((height, width, 1))
    unit[2, 0] = 1.0
    column = stationary(lags).apply(unit)
    # The covariance of the edges is that of 7 pixels' distance, below 1e-9; around the torus
    # of the image they would be neighbours. 1e-14: rounding of the FFT.
    assert column[2, -1, 0] == pytest.approx(lags[0, width - 1, 0, 0], abs=1e-14)
    assert lags[0, width - 1, 0, 0] < 1e-9
    around = circulant(table((height, width), ONE), clip=True).apply(unit)
    assert around[2, -1, 0] > 0.5


def test_long_lags_survive_up_to_the_edge():
    """A slow decay, where the far edge still counts, on the smallest torus that is enough."""
    lags = np.exp(-np.minimum(np.arange(13), 13 - np.arange(13)) / 4)[None, :]
    noise = stationary(lags)
    matrix = as_matrix(noise, (1, 7, 1))
    np.testing.assert_allclose(matrix[0], np.exp(-np.arange(7) / 4), rtol=1e-13)
    with pytest.raises(InputError, match=r"^noise is cut from a torus \(1, 13, 1\).*\(1, 8, 1\)"):
        noise.check((1, 8, 1))


def test_both_tables_give_the_same_noise():
    spectrum = asymmetric_channels((6, 9))
    lags = np.fft.ifft2(spectrum, axes=(0, 1)).real
    v = np.random.default_rng(0).standard_normal((3, 5, 2))
    one, other = stationary(lags), stationary(spectrum=spectrum)
    np.testing.assert_allclose(one.apply(v), other.apply(v), atol=1e-12)  # one more FFT


def test_clipping_keeps_the_variances_and_what_was_positive():
    raw = np.array([[1.0, 0.9, -0.5, -0.5, 0.9]])[:, :, None, None] * CHANNELS
    with pytest.raises(InputError, match=r"^autocovariance has the spectrum -.*clip=True"):
        stationary(raw)
    for build, shape in ((stationary, (1, 3, 2)), (circulant, (1, 5, 2))):
        matrix = as_matrix(build(raw, clip=True), shape)
        np.testing.assert_allclose(matrix[:2, :2].diagonal(), CHANNELS.diagonal(), rtol=1e-13)
        assert np.linalg.eigvalsh(matrix)[0] > -1e-13
    positive = table((4, 6), CHANNELS, 0.9)
    clipped = as_matrix(stationary(positive, clip=True), (2, 3, 2))
    np.testing.assert_allclose(clipped, lag_matrix(positive, (2, 3, 2)), atol=1e-13)


def test_large_images_take_little_time_and_memory():
    noise, shape = stationary(table((512, 512), ONE, 3.0), clip=True), (256, 256, 1)
    unit = np.zeros(shape)
    unit[128, 5] = 1.0
    start = time.perf_counter()
    column = noise.apply(unit)
    noise.sample(np.random.default_rng(0), shape)
    assert time.perf_counter() - start < 5.0  # some 0.1 s; a matrix would take 34 GB
    assert column[128, 6, 0] == pytest.approx(np.exp(-1 / 9), abs=1e-6)
    assert abs(column[128, 255, 0]) < 1e-6


@pytest.mark.parametrize("shape", [(9, 13, 1), (13, 9, 1), (7, 6, 2), (12, 12, 1)])
def test_blocks_are_nearly_the_whole(shape):
    """Blocks of 2x2 or 3x3 pixels: the density hardly changes where correlations are short."""
    height, width, channels = shape
    covariances = np.eye(channels) + 0.5
    lags = [np.minimum(np.arange(2 * n), 2 * n - np.arange(2 * n)) for n in (height, width)]
    base = np.exp(-np.hypot(lags[0][:, None], lags[1]))[:, :, None, None]
    noise = stationary(base * covariances, clip=True)
    assert isinstance(noise, _Stationary)
    whole = plan_blocks(noise._between(), shape)
    blocks = plan_blocks(noise._between(), shape, limit=5 * channels * (9 if channels == 1 else 4))
    assert whole.is_exact() and not blocks.is_exact()
    matrix = as_matrix(noise, shape)
    n = len(matrix)
    logdet = np.linalg.slogdet(matrix)[1]
    assert whole.log_determinant() == pytest.approx(logdet, rel=1e-11)
    # What a block would learn from farther pixels: 0.1% of a nat per value here.
    assert 0 <= blocks.log_determinant() - logdet < 2e-3 * n
    root = blocks.whiten(np.eye(n).reshape(n, *shape)).reshape(n, n).T
    cover = root @ matrix @ root.T
    np.testing.assert_allclose(np.diag(cover), 1, rtol=1e-11)  # each value has variance 1
    assert np.abs(cover - np.eye(n)).max() < 0.1  # and little is left between blocks


@pytest.mark.slow
def test_blocks_are_used_beyond_the_limit_only():
    shape = (129, 16, 1)
    noise = stationary(table((258, 32), ONE, 1.2), clip=True)
    assert isinstance(noise, _Stationary)
    assert noise.is_exact((128, 16, 1)) and not noise.is_exact(shape)
    rng = np.random.default_rng(0)
    images = np.stack([noise.sample(rng, shape) for _ in range(40)])
    assert not fit_report(noise, images).exact and fit_report(noise, images[:, :9]).exact
    residuals = whiten(noise, images)
    # Mean square of 82560 independent normal values: standard error 0.005.
    assert np.mean(residuals**2) == pytest.approx(1, abs=0.02)
    assert np.mean(residuals[:, 1:] * residuals[:, :-1]) == pytest.approx(0, abs=0.02)
    # Under the model the log density is its own mean: -(n + log det + n log 2 pi) / 2.
    n = images[0].size
    expected = -0.5 * (n + noise.log_determinant(shape) + n * np.log(2 * np.pi))
    error = np.sqrt(n / 2 / len(images))
    assert np.mean(log_likelihood(noise, images)) == pytest.approx(expected, abs=4.5 * error)


def test_what_cannot_be_whitened_says_so():
    flat = np.ones((3, 3))  # one value for the whole image
    for noise, side in ((stationary(flat), 2), (circulant(flat), 3)):
        with pytest.raises(InputError, match=r"^noise .*, expected .*to whiten$"):
            whiten(noise, np.ones((1, side, side, 1)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: stationary(), "^autocovariance and spectrum: expected exactly one"),
        (lambda: stationary(np.eye(1), spectrum=np.eye(1)), "expected exactly one"),
        (lambda: stationary(np.ones(3)), r"^autocovariance has shape \(3,\), expected"),
        (lambda: stationary(np.ones((3, 3, 2, 1))), r"^autocovariance has shape \(3, 3, 2, 1\)"),
        (lambda: stationary(np.full((1, 1), np.nan)), "^autocovariance holds a NaN"),
        (lambda: stationary(np.ones((1, 3)) * 1j), "^autocovariance holds complex values"),
        (lambda: stationary([[1.0, 0.5, 0.1]]), "^autocovariance at l and -l differs by up to 0.4"),
        (lambda: stationary(-np.ones((3, 3))), "^autocovariance at lag 0 holds -1.0, expected"),
        (lambda: stationary(spectrum=[[1.0, 2.0, 0.5]]), "^spectrum is not that of real noise"),
        (lambda: stationary(spectrum=[[3.0, -1.0, -1.0]]), "^autocovariance has the spectrum -1"),
        (lambda: circulant(np.empty((0, 3))), r"^autocovariance has shape \(0, 3\)"),
    ],
    ids=range(11),
)
def test_bad_tables_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()
