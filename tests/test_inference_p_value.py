"""Selective p-values against integration, reference cases, and every completion of the search."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import kstest, norm

from dal_jax import InputError
from dal_jax.inference import (
    ALTERNATIVES,
    SelectiveP,
    as_intervals,
    complement,
    decision,
    discovery_q,
    intersect,
    measure,
    naive_p,
    selective_p,
    subtract,
    union,
)

LINE = as_intervals([-np.inf, np.inf])
SETS = [
    [[-1.0, 2.5]],
    [[0.2, 0.3], [-3.0, -1.4], [1.1, 1.7]],
    [[-np.inf, -1.0], [1.2, np.inf]],
    [[9.0, 9.5], [-9.4, -9.2]],
]


def integrated_p(z: float, truncation: np.ndarray, alternative: str) -> float:
    peak = np.min(np.abs(truncation))  # of the density on the sets above; 0 would serve there, too
    peak = 0.0 if np.any(np.prod(truncation, axis=1) < 0) else peak

    def mass(a: np.ndarray) -> float:
        ends = np.clip(a, -30, 30)  # what is left out is below 1e-190
        return sum(
            quad(lambda t: np.exp((peak - t) * (peak + t) / 2), *e, epsabs=0)[0] for e in ends
        )

    below = mass(intersect(truncation, as_intervals([-np.inf, z])))
    above = mass(intersect(truncation, as_intervals([z, np.inf])))
    outside = mass(subtract(truncation, as_intervals([-abs(z), abs(z)])))
    total = below + above
    return {
        "two-sided": outside / total,
        "equal-tailed": 2 * min(below, above) / total,
        "greater": above / total,
        "less": below / total,
    }[alternative]


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("truncation", SETS, ids=range(len(SETS)))
def test_agrees_with_integration(truncation, alternative):
    z_set = as_intervals(truncation)
    for lo, hi in np.clip(z_set, -10, 10):
        z = lo + 0.3 * (hi - lo)
        found = selective_p(z, z_set, LINE, alternative)
        # 1e-9: quad's default relative tolerance is 1.5e-8, on these smooth pieces it gains digits.
        assert found.p == pytest.approx(integrated_p(z, z_set, alternative), rel=1e-9)
        assert found.low == found.p == found.high


def test_far_tails_keep_their_digits():
    z_set = as_intervals([[30.0, 30.5], [31.0, np.inf]])
    inside = [norm.logsf(30.2), norm.logsf(30.5), norm.logsf(31.0), norm.logsf(30.0)]
    scaled = np.exp(np.array(inside) - inside[3])
    expected = (scaled[0] - scaled[1] + scaled[2]) / (1 - scaled[1] + scaled[2])
    # 1e-12: logs near 450 are rounded at 6e-14 each, and exp turns that into a relative error.
    assert selective_p(30.2, z_set, LINE).p == pytest.approx(expected, rel=1e-12)
    tiny = selective_p(35.0, [[0.0, np.inf]], LINE).p
    assert tiny == pytest.approx(2 * norm.sf(35.0), rel=1e-12)
    assert selective_p(-35.0, [[-35.1, -34.0]], LINE, "less").p > 0.0


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("z", [-2.3, 0.0, 0.4, 30.0])
def test_no_truncation_is_the_naive_test(z, alternative):
    # 1e-12: as above.
    assert selective_p(z, LINE, LINE, alternative).p == pytest.approx(
        naive_p(z, alternative), rel=1e-12
    )


# Reference cases of an independent implementation (shared/golden/cases{8,16,32}.npz: z_obs,
# pp_intervals, pp_searched, pp_inf_p, pp_sup_p, pp_p_equal_tailed), copied.
REFERENCE = [
    (
        *(-0.4763624631908712, [[-0.6003382708590679, -0.06896933190416533]]),
        *([[-3.6852299135405104, 3.652210311229505]], 0.21559917646093463, 0.21656380464222724),
        0.4311983529218697,
    ),
    (
        *(1.9679568809439865, [[0.5518240090326003, 3.2577087314622095]]),
        *([[-3.6056575386825176, 3.6112012285921855]], 0.08267987217456585, 0.08365341647168445),
        0.16535974434913148,
    ),
    (
        *(6.306257098907103, [[5.831803717766561, 6.617667699947999]]),
        *([[-6.992773349760627, 6.985725846725388]], 0.045784672115519176, 0.046752318028180584),
        0.0915693442310388,
    ),
    (
        *(-0.05008000941069053, [[-0.35017818532004047, 0.6628185719607778]]),
        *([[-2.8989778700301754, 2.9054211034593798]], 0.8957618307797167, 0.8967602692334835),
        0.6103064712710836,
    ),
    (
        *(0.9741850148634122, [[0.8689859738417787, 1.321350908262707]]),
        *([[-3.5650610810000405, 3.5705288847797356]], 0.7234342525852355, 0.7244339810481303),
        0.5531314948295283,
    ),
]


@pytest.mark.parametrize(("z", "found", "searched", "low", "high", "equal_tailed"), REFERENCE)
def test_reference_bounds(z, found, searched, low, high, equal_tailed):
    result = selective_p(z, found, searched)
    # 1e-13: both sides round a few sums of tails in float64.
    np.testing.assert_allclose(result, [low, low, high], rtol=1e-13)
    tails = selective_p(z, found, searched, "equal-tailed")
    assert tails.p == pytest.approx(equal_tailed, rel=1e-13)


def test_reference_complete_search():
    # shared/golden/cases8.npz, case03: ex_intervals, ex_searched, ex_p, ex_p_equal_tailed.
    found, searched = [-0.47622466597719043, -0.10418723032279868], [-10.197921693982886, 10.2]
    result = selective_p(-0.1951560198884153, found, searched)
    # 1e-14 absolute: nothing of weight is unsearched, a few roundings remain.
    np.testing.assert_allclose(result, 0.7465618946617152, atol=1e-14)
    tails = selective_p(-0.1951560198884153, found, searched, "equal-tailed")
    np.testing.assert_allclose(tails, 0.5068762106765707, atol=1e-14)


pairs = st.tuples(st.floats(-4, 4), st.floats(0.05, 2)).map(lambda a: [a[0], a[0] + a[1]])
unions = st.lists(pairs, min_size=1, max_size=3).map(np.array)
quick = settings(max_examples=40, deadline=None)


@quick
@given(unions, unions, st.floats(0.001, 0.999), st.sampled_from(ALTERNATIVES))
def test_bounds_hold_for_every_completion_and_are_reached(z_set, searched, share, alternative):
    """Cuts the unsearched part into cells at z_obs and -z_obs and tries every subset of them."""
    z_set, searched = as_intervals(z_set), as_intervals(searched)
    known = intersect(z_set, searched)
    assume(measure(known) > 1e-3)
    z = float(known[0, 0] + share * (known[0, 1] - known[0, 0]))
    result = selective_p(z, z_set, searched, alternative)
    cells = [
        cell[None]
        for part in ([-np.inf, -abs(z)], [-abs(z), abs(z)], [abs(z), np.inf])
        for cell in intersect(complement(searched), as_intervals(part))
    ]
    assume(len(cells) <= 7)
    values = []
    for chosen in itertools.product([False, True], repeat=len(cells)):
        completed = known
        for cell, take in zip(cells, chosen, strict=True):
            completed = union(completed, cell) if take else completed
        values.append(selective_p(z, completed, LINE, alternative).p)
    # 1e-12: the completions sum the same masses in another order.
    assert result.low - 1e-12 <= min(values) <= max(values) <= result.high + 1e-12
    assert result.low <= result.p <= result.high
    assert result.low == pytest.approx(min(values), abs=1e-12)
    if alternative != "equal-tailed":
        assert result.high == pytest.approx(max(values), abs=1e-12)


def test_equal_tailed_upper_bound_is_reached_inside():
    """F = 1/2 needs a completion between the extremes: no union of whole cells gives p = 1."""
    known, searched, z = as_intervals([0.0, 1.0]), as_intervals([-1.0, 1.5]), 0.3
    assert selective_p(z, known, searched, "equal-tailed").high == 1.0
    missing = (norm.cdf(1.0) - norm.cdf(z)) - (norm.cdf(z) - norm.cdf(0.0))  # to balance z's sides
    part = as_intervals([float(norm.ppf(norm.cdf(-1.0) - missing)), -1.0])
    # 1e-12: the balance is found through norm.ppf.
    assert selective_p(z, union(known, part), LINE, "equal-tailed").p == pytest.approx(1, abs=1e-12)


@quick
@given(unions, unions, st.floats(-5, 5), st.sampled_from(ALTERNATIVES))
def test_more_searching_tightens_and_the_whole_line_ends_it(z_set, searched, z, alternative):
    z_set, searched = as_intervals(z_set), as_intervals(searched)
    p, low, high = selective_p(z, z_set, searched, alternative)
    assert np.isnan([p, low, high]).all() or 0 <= low <= p <= high <= 1
    whole = selective_p(z, z_set, LINE, alternative)
    if not np.isnan(whole.p):
        assert whole.low == whole.p == whole.high
    if not np.isnan(p):
        assert low - 1e-12 <= whole.p <= high + 1e-12  # another order of summation
        wider = selective_p(z, z_set, union(searched, as_intervals([-2, 2])), alternative)
        assert low - 1e-12 <= wider.low and wider.high <= high + 1e-12


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_not_a_number_where_p_is_not_valid(alternative):
    for z, found, searched in [
        (1.5, [[0, 1]], LINE),  # outside
        (0.5, [[0, 1]], [[0.6, 2]]),  # in Z, not searched
        (0.5, [], LINE),
        (0.5, [[0, 1]], []),
        (0.5, [[0.5, 0.5]], LINE),  # no length
        (np.nan, LINE, LINE),
        (np.inf, LINE, LINE),
    ]:
        assert np.isnan(selective_p(z, found, searched, alternative)).all()


def test_the_end_of_the_interval_belongs_to_it_up_to_rounding():
    assert selective_p(1.0, [[0, 1]], LINE, "greater").p == 0.0
    assert selective_p(-1e-12, [[0, 1]], LINE).p == pytest.approx(1.0)
    assert np.isnan(selective_p(-1e-6, [[0, 1]], LINE).p)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_uniform_under_the_truncated_normal(alternative):
    """Asymmetric truncation of two pieces, z drawn from it by inversion: p is uniform."""
    z_set = as_intervals([[-0.5, 0.8], [1.2, 2.0]])
    cdf = norm.cdf(z_set)
    width = cdf[:, 1] - cdf[:, 0]
    u = np.random.default_rng(0).uniform(0, width.sum(), 500)
    z = norm.ppf(np.where(u < width[0], cdf[0, 0] + u, cdf[1, 0] + u - width[0]))
    p = [selective_p(v, z_set, LINE, alternative).p for v in z.tolist()]
    # Fixed seed; a correct p fails this level once in a thousand seeds.
    assert kstest(p, "uniform").pvalue > 1e-3


def test_decision():
    assert decision(SelectiveP(0.01, 0.01, 0.05), 0.05) == "reject"
    assert decision(SelectiveP(0.06, 0.051, 0.07), 0.05) == "accept"
    assert decision(SelectiveP(0.05, 0.05, 0.06), 0.05) == "undecided"
    assert decision(SelectiveP(np.nan, np.nan, np.nan), 0.05) == "undecided"
    with pytest.raises(InputError, match=r"^alpha: got 1.5, expected"):
        decision(SelectiveP(0.5, 0.5, 0.5), 1.5)


def test_bad_alternative_is_refused():
    with pytest.raises(InputError, match=r"^alternative: got 'both', expected one of"):
        selective_p(0.0, LINE, LINE, "both")


def test_q_values_count_what_was_tested_alone():
    p = [0.01, np.nan, 0.02, 1.0, 0.0]
    assert discovery_q(p, "bh") == pytest.approx([0.02, np.nan, 0.08 / 3, 1, 0], nan_ok=True)
    assert discovery_q([]) == []
    assert np.isnan(discovery_q([np.nan])).all()


@pytest.mark.parametrize(
    ("p", "method", "message"),
    [
        ([0.5], "BH", "method: got 'BH', expected one of by, bh"),
        ([0.5], None, "method: got None, expected one of by, bh"),
        ([0.5, 1.5], "by", "p_values hold 1.5, expected numbers from 0 to 1, or NaN"),
        ([np.nan, -0.1], "bh", "p_values hold -0.1, expected numbers"),
        ([np.inf], "by", "p_values hold inf, expected numbers"),
        (0.5, "by", "p_values has shape (), expected (m,)"),
        ([[0.5]], "by", "p_values has shape (1, 1), expected (m,)"),
        (["small"], "by", "p_values is not an array of numbers, expected"),
        ([[0.5], 0.5], "by", "p_values is not an array of numbers, expected"),
    ],
)
def test_what_is_no_p_value_has_no_q(p, method, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        discovery_q(p, method)
