"""Unions of intervals against brute force on a grid, and log probabilities against integration.

Ends are integers, so that midpoints decide.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from dal_jax import InputError
from dal_jax.inference import (
    as_intervals,
    complement,
    contains,
    intersect,
    log_mass,
    log_total_mass,
    measure,
    merge,
    subtract,
    union,
)

ENDS = [-np.inf, *range(-5, 6), np.inf]
MIDPOINTS = np.array([-1e6, *np.arange(-4.5, 5.0), 1e6])
pairs = st.tuples(st.sampled_from(ENDS), st.sampled_from(ENDS)).map(sorted)
sets = st.lists(pairs, max_size=5).map(lambda a: np.array(a, dtype=float).reshape(-1, 2))
quick = settings(max_examples=60, deadline=None)


def brute(a: np.ndarray) -> np.ndarray:
    return np.array([any(lo < z < hi for lo, hi in a) for z in MIDPOINTS])


def is_canonical(a: np.ndarray) -> bool:
    flat = a.ravel()
    return a.dtype == np.float64 and a.shape[1] == 2 and bool(np.all(flat[:-1] < flat[1:]))


@quick
@given(sets, sets)
def test_operations_agree_with_brute_force(a, b):
    in_a, in_b = brute(a), brute(b)
    for result, expected in [
        (as_intervals(a), in_a),
        (union(a, b), in_a | in_b),
        (intersect(a, b), in_a & in_b),
        (subtract(a, b), in_a & ~in_b),
        (complement(a), ~in_a),
        (complement(a, within=(-3.0, 2.0)), ~in_a & (MIDPOINTS > -3) & (MIDPOINTS < 2)),
    ]:
        assert is_canonical(result)
        assert np.array_equal(brute(result), expected)
        assert np.array_equal(contains(result, MIDPOINTS), expected)


@pytest.mark.slow
@quick
@given(sets, sets)
def test_measure_adds_up(a, b):
    a, b = (intersect(s, np.array([[-5.0, 5.0]])) for s in (a, b))
    assert measure(a) == np.sum(brute(a))  # cells have length 1: integers are exact
    assert measure(union(a, b)) == measure(a) + measure(subtract(b, a))


@quick
@given(sets, st.sampled_from([0.0, 1.0, 2.5]))
def test_merge_closes_gaps_up_to_the_tolerance(a, tolerance):
    plain, joined = merge(a), merge(a, tolerance)
    assert np.all(joined[1:, 0] - joined[:-1, 1] > tolerance)
    filled = subtract(joined, plain)
    assert np.all(filled[:, 1] - filled[:, 0] <= tolerance)
    assert len(subtract(plain, joined)) == 0


def test_contains_takes_ends_and_any_shape():
    a = as_intervals([[0, 1], [2, np.inf]])
    z = np.array([[0.0, 1.0, 1.5], [np.nan, np.inf, -0.1]])
    assert contains(a, z).tolist() == [[True, True, False], [False, True, False]]
    assert bool(contains(a, 2.0))
    assert contains(as_intervals([]), z).shape == z.shape


def test_empty_and_single_pair():
    assert as_intervals([]).shape == as_intervals([[1, 1]]).shape == (0, 2)
    assert as_intervals([1, 2]).tolist() == [[1.0, 2.0]]
    assert complement(as_intervals([])).tolist() == [[-np.inf, np.inf]]
    assert complement(as_intervals([-np.inf, np.inf])).shape == (0, 2)
    assert measure(as_intervals([])) == 0.0
    assert measure(as_intervals([0, np.inf])) == np.inf


@pytest.mark.parametrize("bad", [[[2, 1]], [[np.nan, 1]], [1, 2, 3], [[1, 2, 3]], np.array(5)])
def test_bad_intervals_are_refused_in_one_line(bad):
    with pytest.raises(InputError, match=r"^intervals .*expected.*$"):
        as_intervals(bad)


def integral(lo: float, hi: float) -> float:
    """Log of the density integrated relative to its largest value on the interval."""
    peak = min(max(lo, 0.0), hi)
    far = np.clip([lo, hi], peak - 40, peak + 40)
    points = [peak] if far[0] < peak < far[1] else None
    value, _ = quad(lambda z: np.exp((peak - z) * (peak + z) / 2), *far, points=points, epsabs=0)
    return float(np.log(value)) - peak**2 / 2 - np.log(2 * np.pi) / 2


@pytest.mark.parametrize(
    ("lo", "hi"),
    [
        (30.0, 30.1),
        (-40.0, -39.0),
        (-1.0, 2.0),
        (-1e-8, 2e-8),
        (30.0, 30.0 + 2**-30),
        (-0.3, 5.0),
        (-6.0, 0.1),
        (0.0, 0.999),
        (0.0, 1.001),
        (8.2, 8.3),
    ],
)
def test_agrees_with_integration(lo, hi):
    # 1e-12: a log of size 800 is itself rounded at 1e-13, quad aims at 1.5e-8 and reaches 1e-14.
    assert abs(log_mass(np.array([[lo, hi]]))[0] - integral(lo, hi)) < 1e-12


@pytest.mark.parametrize("z", [-45.0, -8.5, -1.0, 0.0, 0.3, 9.0, 38.0, 300.0])
def test_half_lines_are_scipys_tails(z):
    found = log_mass(np.array([[z, np.inf], [-np.inf, z]]))
    # 4e-16 relative: the same log_ndtr, no further operation that rounds.
    np.testing.assert_allclose(found, [norm.logsf(z), norm.logcdf(z)], rtol=4e-16, atol=0)


@settings(max_examples=60, deadline=None)
@given(st.floats(-37, 37), st.floats(1e-12, 30), st.floats(0.01, 0.99))
def test_mirrored_and_split_intervals_agree(lo, width, share):
    hi, middle = lo + width, lo + share * width
    whole, mirrored = log_mass(np.array([[lo, hi], [-hi, -lo]]))
    assert whole == mirrored
    parts = np.logaddexp(*log_mass(np.array([[lo, middle], [middle, hi]])))
    # 1e-11: logs up to 2200 are rounded at 5e-13; a narrow width is the same for parts and whole.
    assert abs(parts - whole) < 1e-11


def test_limits_give_no_warning():
    ends = [[-np.inf, np.inf], [1.0, 1.0], [1e160, np.inf], [1e200, 2e200], [-1e20, 1e20]]
    assert log_mass(np.array(ends)).tolist()[:2] == [0.0, -np.inf]
    assert np.all(log_mass(np.array(ends))[2:4] < -1e100)
    assert log_mass(np.array(ends))[4] == 0.0
    assert log_mass(np.empty((0, 2))).shape == (0,)


def test_total_mass():
    assert log_total_mass(as_intervals([])) == -np.inf
    tails = as_intervals([[-np.inf, -35], [35, np.inf]])
    # One addition in log space of logs near 617.
    assert abs(log_total_mass(tails) - (norm.logsf(35) + np.log(2))) < 1e-12
    tiles = np.linspace(-9, 9, 1001)
    pieces = np.stack([tiles[:-1], tiles[1:]], axis=1)
    # A thousand additions, each rounded at 1e-16 of at most 40.
    assert abs(log_total_mass(pieces) - np.log1p(-2 * norm.sf(9))) < 1e-12
