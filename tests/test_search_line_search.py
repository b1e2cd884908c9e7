import itertools
import math

import numpy as np
import pytest
from search_cases import KnownSet

from dal_jax import InputError
from dal_jax.inference import (
    ALTERNATIVES,
    NullLaw,
    Observed,
    as_intervals,
    contains,
    decision,
    intersect,
    log_total_mass,
    selective_p,
    union,
)
from dal_jax.search import EngineResult, Status, search_line

WHOLE = [[-np.inf, np.inf]]
# Shares of normal masses from sums of up to 20 logs: each is right to some 1e-15, relative to
# logs of up to 1000 in the far tails.
ROUNDING = 1e-11


def random_truth(rng: np.random.Generator) -> tuple[float, np.ndarray]:
    """An observed value up to 30 in size and a union of intervals that holds it."""
    z_obs = float(rng.choice([0.3, 1.0, 3.0, 10.0]) * rng.normal())
    z_obs = float(np.clip(z_obs, -30, 30))
    if rng.random() < 0.15:
        z_obs = float(rng.choice([-30.0, 30.0]))
    own = z_obs + rng.exponential(0.3, 2) * [-1, 1]
    spread = rng.choice([0.5, 3.0, 12.0])
    centre = rng.choice([0.0, z_obs, -z_obs])  # not always where the normal mass is
    others = centre + spread * rng.normal(size=(int(rng.integers(0, 8)), 2))
    rows = [own, *np.sort(others, axis=1)]
    if rng.random() < 0.3:
        rows.append(np.array([z_obs + 1.0, np.inf]))
    return z_obs, as_intervals(np.array(rows))


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_bounds_hold_the_truth_in_every_round(alternative):
    rng = np.random.default_rng(ALTERNATIVES.index(alternative))
    for _ in range(60):
        z_obs, truth = random_truth(rng)
        precision = float(rng.choice([0.1, 1e-3, 1e-8]))
        expected = selective_p(z_obs, truth, WHOLE, alternative).p
        rounds = []
        engine = KnownSet(truth)
        found = search_line(
            engine,
            z_obs,
            alternative=alternative,
            precision=precision,
            progress=lambda bounds, reach, rounds=rounds: rounds.append((*bounds, reach)),
        )
        p, low, high, reach = np.array(rounds).T
        assert np.all(low <= expected + ROUNDING)
        assert np.all(expected <= high + ROUNDING)
        assert np.all((low <= p + ROUNDING) & (p <= high + ROUNDING))
        # What is known is never forgotten.
        assert np.all(np.diff(low) >= -ROUNDING)
        assert np.all(np.diff(high) <= ROUNDING)
        assert np.all(np.diff(reach) > 0)
        assert len(rounds) == engine.calls
        assert found.bounds == rounds[-1][:3]
        # Far from 0 the observed value itself is the only mass: it must have been seen at once.
        assert found.status is Status.OK
        assert found.bounds.high - found.bounds.low <= max(precision, 1e-12)
        assert abs(found.bounds.p - expected) <= max(precision, ROUNDING)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_an_exhausted_range_gives_the_p_value_of_the_whole_line(alternative):
    rng = np.random.default_rng(5)
    for _ in range(40):
        z_obs, truth = random_truth(rng)
        engine = KnownSet(truth)
        found = search_line(engine, z_obs, alternative=alternative, precision=0)
        assert engine.calls == 1
        far = 10 + abs(z_obs)
        np.testing.assert_array_equal(found.searched, [[-far, far]])
        np.testing.assert_array_equal(found.truncation, intersect(truth, found.searched))
        expected = selective_p(z_obs, truth, WHOLE, alternative).p
        # Beyond the range lies less than 1e-23 of the mass at z_obs, and z_obs's interval is 0.01
        # wide or more in all of these.
        assert found.bounds.p == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_the_far_tail_keeps_its_digits():
    truth = as_intervals([[29.0, 30.5], [31.0, np.inf]])
    found = search_line(KnownSet(truth), 30.0, alternative="greater", precision=0)
    inside = selective_p(30.0, truth, WHOLE, "greater").p
    assert 1e-14 < inside < 1e-11  # density ratio exp(-(30^2 - 29^2) / 2)
    assert found.bounds.p == pytest.approx(inside, rel=1e-9)  # logs of 450 round to 1e-13


def test_searched_parts_are_those_asked_for_and_merge_at_their_borders():
    truth = as_intervals([[-20.0, 20.0]])
    engine = KnownSet(truth)
    found = search_line(engine, 4.2, precision=1e-9)
    assert engine.calls > 2
    # One piece each: parts of later rounds begin exactly where earlier ones ended.
    assert len(found.searched) == len(found.truncation) == 1
    np.testing.assert_array_equal(found.searched, engine.done)
    np.testing.assert_array_equal(found.truncation, engine.done)


def test_a_wide_precision_ends_earlier_than_a_narrow_one():
    truth = as_intervals([[1.0, 2.2]])
    widths = []
    for precision in (0.3, 1e-2, 1e-4, 0.0):
        found = search_line(KnownSet(truth), 2.0, precision=precision)
        assert found.status is Status.OK
        widths.append(found.searched[-1, 1])
    assert widths == sorted(widths)
    assert widths[0] == 2.5
    assert widths[-1] == 12.0


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_a_certain_decision_ends_the_search(alternative):
    rng = np.random.default_rng(11)
    fewer = 0
    for _ in range(30):
        z_obs, truth = random_truth(rng)
        full = search_line(KnownSet(truth), z_obs, alternative=alternative, precision=1e-6)
        short = search_line(
            KnownSet(truth), z_obs, alternative=alternative, precision=1e-6, alpha=0.05
        )
        expected = selective_p(z_obs, truth, WHOLE, alternative).p
        assert short.status is Status.OK
        # No p-value of these cases is within the precision of alpha.
        assert (decision(short.bounds, 0.05) == "reject") == (expected <= 0.05)
        assert short.num_evaluations <= full.num_evaluations
        fewer += short.num_evaluations < full.num_evaluations
    assert fewer > 8


def test_a_range_that_is_too_short_leaves_wide_but_valid_bounds():
    truth = as_intervals([[1.5, 2.5], [-9.0, -3.0], [4.0, 5.0]])
    expected = selective_p(2.0, truth, WHOLE).p
    found = search_line(KnownSet(truth), 2.0, z_max=2.2, precision=1e-3)
    assert found.status is Status.NOT_CONVERGED
    np.testing.assert_array_equal(found.searched, [[-2.2, 2.2]])
    assert found.bounds.low <= expected <= found.bounds.high
    assert found.bounds.high - found.bounds.low > 1e-3
    enough = search_line(KnownSet(truth), 2.0, z_max=6.0, precision=1e-3)
    assert enough.status is Status.OK


def test_z_max_limits_the_part_around_z_obs():
    found = search_line(KnownSet(as_intervals([[-50.0, 50.0]])), -5.0, z_max=5.25, precision=0)
    np.testing.assert_array_equal(found.searched, [[-5.25, 5.25]])
    found = search_line(KnownSet(as_intervals([[-50.0, 50.0]])), -5.0, z_max=5.25, precision=0.5)
    assert found.searched.min() >= -5.25
    assert found.searched.max() <= 5.25


@pytest.mark.parametrize(
    "alternative",
    [
        pytest.param(a, marks=() if a in ("two-sided", "less") else pytest.mark.slow)
        for a in ALTERNATIVES
    ],
)
def test_gaps_are_unsearched_and_widen_the_bounds(alternative):
    rng = np.random.default_rng(3)
    wider = 0
    for _ in range(30):
        z_obs, truth = random_truth(rng)
        low = z_obs + rng.uniform(0.05, 0.5)
        blind = as_intervals([[low, low + rng.uniform(0.01, 0.4)], [-1.3, -1.2]])
        blind = blind[~((blind[:, 0] <= z_obs) & (z_obs <= blind[:, 1]))]
        expected = selective_p(z_obs, truth, WHOLE, alternative).p
        clear = search_line(KnownSet(truth), z_obs, alternative=alternative)
        found = search_line(KnownSet(truth, blind), z_obs, alternative=alternative)
        assert found.bounds.low <= expected + ROUNDING
        assert expected <= found.bounds.high + ROUNDING
        assert not intersect(found.searched, blind).size
        assert not intersect(found.truncation, blind).size
        if found.status is Status.NOT_CONVERGED:
            wider += 1
            assert found.bounds.high - found.bounds.low > 1e-3
            assert found.searched.max() == 10 + abs(z_obs)  # all the rest was tried
        else:
            assert found.bounds.high - found.bounds.low <= 1e-3
        assert clear.status is Status.OK
    assert wider > 5


def test_a_tiny_gap_does_not_hinder():
    truth = as_intervals([[-1.0, 2.5]])
    found = search_line(KnownSet(truth, [[1.0, 1.0 + 1e-10]]), 2.0)
    assert found.status is Status.OK
    assert len(found.searched) == 2


def test_what_is_not_known_at_z_obs_is_a_tie():
    for truth, blind in (([[0.0, 1.0]], []), ([[0.0, 3.0]], [[1.5, 2.5]]), ([], [])):
        found = search_line(KnownSet(as_intervals(truth), blind), 2.0)
        assert found.status is Status.TIE
        assert all(math.isnan(v) for v in found.bounds)


def test_a_score_that_is_not_finite_ends_the_search():
    calls = []

    def engine(parts):
        calls.append(parts)
        far = max(hi for _, hi in parts) > 3.5
        inside = as_intervals([[max(lo, 1.0), hi] for lo, hi in parts if hi > 1.0])
        return EngineResult(inside, as_intervals([]), 1, 1, not far)

    found = search_line(engine, 2.0)
    assert found.status is Status.NON_FINITE
    assert all(math.isnan(v) for v in found.bounds)
    assert len(calls) == 3  # up to 2.5, to 3.5, and the one that met it
    # Where the bounds are tight before that, it does not matter.
    assert search_line(engine, 2.0, precision=0.2).status is Status.OK


def test_counts_add_up():
    truth = as_intervals([[1.5, 2.5]])
    engine = KnownSet(truth)
    evaluations = []
    found = search_line(engine, 2.0, progress=lambda *_: evaluations.append(engine.calls))
    assert evaluations == list(range(1, engine.calls + 1))
    assert found.num_windows >= 1
    assert found.num_evaluations >= 2 * engine.calls  # the fake counts the ends it is given


def test_found_is_the_union_of_both():
    one = EngineResult(as_intervals([0.0, 1.0]), as_intervals([1.0, 1.1]), 2, 3, True)
    two = EngineResult(as_intervals([1.1, 2.0]), as_intervals([1.05, 1.1]), 4, 5, False)
    both = one + two
    np.testing.assert_array_equal(both.inside, [[0.0, 1.0], [1.1, 2.0]])
    np.testing.assert_array_equal(both.gaps, [[1.0, 1.1]])
    assert both[2:] == (6, 8, False)


def test_far_from_zero_the_rounds_stay_few():
    # 30 standard deviations out, with all of Z near z_obs: a stride a round, both sides at once.
    engine = KnownSet(as_intervals([[29.9, 30.4]]))
    found = search_line(engine, 30.0)
    assert found.status is Status.OK
    assert engine.calls <= 40
    assert log_total_mass(found.truncation) < -400
    assert contains(found.truncation, 30.0)


BAD = {
    "precision": [-0.1, 1.0, math.nan, math.inf],
    "alpha": [0.0, 1.0, -1.0, math.nan],
    "z_max": [-3.0, 0.0, math.inf, math.nan],
    "alternative": ["two_sided", ""],
}


@pytest.mark.parametrize(
    ("name", "value"), list(itertools.chain(*([(k, v) for v in vs] for k, vs in BAD.items())))
)
def test_bad_arguments_are_named_before_anything_is_searched(name, value):
    engine = KnownSet(as_intervals([[1.0, 3.0]]))
    with pytest.raises(InputError) as error:
        search_line(engine, 2.0, **{name: value})
    message = str(error.value)
    assert name in message
    assert repr(value) in message
    assert "\n" not in message
    assert engine.calls == 0


@pytest.mark.parametrize("z_obs", [math.nan, math.inf, -math.inf])
def test_an_observed_value_that_is_not_finite_is_named(z_obs):
    with pytest.raises(InputError, match=r"^z_obs: got .*expected a finite number$"):
        search_line(KnownSet(as_intervals([[1.0, 3.0]])), z_obs)


@pytest.mark.parametrize("level", [0.05, 0.01, 0.05 / 16, 0.05 / 256])
def test_a_level_is_searched_for_until_its_decisions_are_certain(level):
    rng, deeper, undecided = np.random.default_rng(8), 0, 0
    laws = (NullLaw(1.7), NullLaw(1.1, 6.0))
    for _ in range(25):
        _, truth = random_truth(rng)
        z_obs = rng.uniform(3.0, 5.0)
        truth = union(truth, as_intervals([z_obs - 0.5, z_obs + rng.uniform(0.5, 3.0)]))
        plain = search_line(KnownSet(truth), z_obs)
        found = search_line(KnownSet(truth), z_obs, level=level, recalibrations=laws)
        assert found.status is Status.OK
        deeper += found.num_evaluations > plain.num_evaluations
        for law in (NullLaw(), *laws):
            bounds = law.p_value(Observed(z_obs, found.truncation, found.searched))
            expected = law.p_value(Observed(z_obs, truth, WHOLE)).p
            assert bounds.low <= expected + ROUNDING and expected <= bounds.high + ROUNDING
            certain, told = "reject" if expected <= level else "accept", decision(bounds, level)
            assert told == certain or found.searched[-1, 1] == 10 + z_obs  # to the very end
            undecided += told == "undecided"
    assert deeper and undecided <= 3  # the Student law leaves something beyond the end, too


def test_the_level_that_cannot_be_decided_does_not_hold_up_the_rest():
    heavy, truth = NullLaw(1.0, 2.5), as_intervals([5.0, np.inf])
    known = as_intervals([-16.0, 16.0])  # 10 + |z_obs|: the Student law has much beyond that
    low, _, high = sorted(heavy.p_value(Observed(6.0, intersect(truth, known), known)))
    level = (low + high) / 2
    found = search_line(KnownSet(truth), 6.0, level=level, recalibrations=(heavy,))
    bounds = heavy.p_value(Observed(6.0, found.truncation, found.searched))
    assert high - low > 0.01 and decision(bounds, level) == "undecided"
    assert (found.status, found.searched[-1, 1]) == (Status.OK, 16.0)
