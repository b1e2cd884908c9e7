"""Unions of intervals against brute force on a grid: ends are integers, so midpoints decide."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dal_jax import InputError
from dal_jax.inference import (
    as_intervals,
    complement,
    contains,
    intersect,
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
