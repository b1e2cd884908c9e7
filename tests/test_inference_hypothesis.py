"""The line: it passes through the data, T runs along it, and its base is independent of T."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dal_jax import InputError
from dal_jax.inference import Line, region_line
from dal_jax.noise import Covariance, ar1, dense, diagonal, iid

SHAPE = (3, 2, 2)
SIZE = 12


def covariances() -> list[Covariance]:
    rng = np.random.default_rng(1)
    factor = rng.standard_normal((SIZE, SIZE))
    matrix = dense(factor @ factor.T + np.eye(SIZE))
    return [iid(1.7), ar1(-0.6, 0.8), diagonal(rng.uniform(0.5, 2, SHAPE)), matrix]


def as_matrix(noise: Covariance) -> np.ndarray:
    return np.stack([noise.apply(e.reshape(SHAPE)).ravel() for e in np.eye(SIZE)], axis=1)


def mean_difference(x: np.ndarray, refs: np.ndarray, region: np.ndarray) -> float:
    return float(x[region].mean() - refs.mean(axis=0)[region].mean())


regions = st.lists(st.booleans(), min_size=6, max_size=6).filter(any)


@settings(max_examples=25, deadline=None)
@given(regions, st.integers(1, 3), st.sampled_from(range(4)), st.integers(0, 99))
def test_line_passes_through_the_data_and_moves_only_the_statistic(cells, k, kind, seed):
    rng, noise = np.random.default_rng(seed), covariances()[kind]
    region = np.array(cells).reshape(SHAPE[:2])
    x, refs = rng.standard_normal(SHAPE), rng.standard_normal((k, *SHAPE))
    line = region_line(x, refs, region, noise)
    # 1e-14: two roundings of numbers of order 1 to 10.
    np.testing.assert_allclose(line.base + line.direction * line.z_obs, x, atol=1e-14)
    assert line.statistic == pytest.approx(mean_difference(x, refs, region), abs=1e-14)
    assert line.z_obs * line.sd == pytest.approx(line.statistic, rel=1e-14)
    nu = np.where(region[:, :, None], 1 / (region.sum() * SHAPE[2]), np.zeros(SHAPE)).ravel()
    variance = nu @ as_matrix(noise) @ nu * (1 + 1 / k)
    assert line.sd == pytest.approx(np.sqrt(variance), rel=1e-13)  # sums of 144 terms
    for z in (-2.0, 5.0):
        image = line.base + line.direction * z
        moved = refs - line.direction / k * (z - line.z_obs)
        # 1e-13: sd z recovered through sums of a dozen terms of order 10.
        assert abs(mean_difference(image, moved, region) - line.sd * z) < 1e-13


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("kind", range(4))
def test_base_is_independent_of_the_statistic(kind, k):
    """Cov(base, T) = 0 from the dense covariance of (x, references) and the linear map to base."""
    noise, region = covariances()[kind], np.array([[1, 0], [1, 1], [0, 0]], dtype=bool)
    full = np.kron(np.eye(1 + k), as_matrix(noise))
    lines: list[Line] = []
    for unit in np.eye((1 + k) * SIZE):
        data = unit.reshape(1 + k, *SHAPE)
        lines.append(region_line(data[0], data[1:], region, noise))
    to_base = np.stack([line.base.ravel() for line in lines], axis=1)
    to_statistic = np.array([line.statistic for line in lines])
    # 1e-13: cancelling sums of some 50 products of order 10.
    np.testing.assert_allclose(to_base @ full @ to_statistic, 0, atol=1e-13)
    assert to_statistic @ full @ to_statistic == pytest.approx(lines[0].sd ** 2, rel=1e-12)


def test_reference_case():
    # shared/golden/README.md: sd_T = sigma sqrt(2 / |M|), test half of b = 1_M / (|M| sd_T).
    region = np.array([[True, True, False]])
    line = region_line(np.ones((1, 3, 1)), np.zeros((1, 3, 1)), region, iid(1.0))
    assert line.sd == pytest.approx(1.0, rel=1e-15)
    np.testing.assert_allclose(line.direction[:, :, 0], [[0.5, 0.5, 0.0]], rtol=1e-15)
    assert line.statistic == 1.0
    assert line.base.dtype == np.float64


@pytest.mark.parametrize(
    ("x", "x_ref", "region", "noise", "message"),
    [
        ((4, 4), (4, 4), (4, 4), iid(1.0), r"^x has shape \(4, 4\), expected"),
        ((4, 4, 1), (4, 5, 1), (4, 4), iid(1.0), r"^x_ref has shape \(4, 5, 1\), expected"),
        ((4, 4, 1), (0, 4, 4, 1), (4, 4), iid(1.0), r"^x_ref has shape \(0, 4, 4, 1\), expected"),
        ((4, 4, 1), (4, 4, 1), (4, 4, 1), iid(1.0), r"^region has shape \(4, 4, 1\), expected"),
        ((4, 4, 1), (4, 4, 1), (4, 4), dense(np.eye(5)), r"^noise has a matrix \(5, 5\)"),
        ((4, 4, 1), (4, 4, 1), (4, 4), diagonal(np.ones((4, 4, 2))), r"^noise has variances"),
        ((4, 4, 1), (4, 4, 1), (4, 4), iid(1e-200), r"^noise gives the statistic the variance"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(x, x_ref, region, noise, message):
    with pytest.raises(InputError, match=message) as raised:
        region_line(np.zeros(x), np.zeros(x_ref), np.ones(region, dtype=bool), noise)
    assert "\n" not in str(raised.value)


def test_empty_region_is_refused():
    with pytest.raises(InputError, match=r"^region is empty"):
        region_line(np.zeros((2, 2, 1)), np.zeros((2, 2, 1)), np.zeros((2, 2), bool), iid(1.0))
