"""Randomized selection: probabilities against mpmath, p-values against grids and simulation."""

from typing import Any

import mpmath
import numpy as np
import pytest
from numpy.polynomial.legendre import leggauss
from scipy import stats
from scipy.special import log_ndtr

from dal_jax.inference import (
    ALTERNATIVES,
    NullLaw,
    Observed,
    Perturbation,
    as_intervals,
    complement,
    contains,
    intersect,
    log_mass,
    naive_p,
    on_line,
    selective_p,
    union,
)
from dal_jax.inference._randomized import (
    log_tail,
    log_total,
    normal_split,
    student_split,
    student_total,
)

INF = np.inf
LINE = as_intervals([-INF, INF])
NODES, WEIGHTS = leggauss(20)
SPREADS = [0.05, 0.3, 1.0, 3.0]
# What was promised: relative error of a probability.
PROMISED = 1e-8


def split_mass(lo: Any, hi: Any) -> Any:
    """P(lo < N(0, 1) < hi) in mpmath, from the tails on the side where they are small."""
    if lo + hi < 0:
        lo, hi = -hi, -lo
    return (mpmath.erfc(lo / mpmath.sqrt(2)) - mpmath.erfc(hi / mpmath.sqrt(2))) / 2


def exact_tail(part: Any, limit: float, spread: float, mean: float = 0.0) -> Any:
    """log P(V in part, T >= limit) in mpmath, integrated over T, not over V as the code does.

    On each interval the integrand is log-concave: on both sides of its mode, out to where e^-40 of
    it is left, eight pieces of twenty nodes. Float64 only says where these are.
    """
    with mpmath.workdps(30):
        total = mpmath.mpf(0)
        for lo, hi in np.asarray(part, float).tolist():
            first, last = limit, max(limit, mean) + 60

            def roughly(t: float, lo: float = lo, hi: float = hi) -> float:
                ends = np.array([[lo - t, hi - t]]) / spread
                return float(log_mass(ends)[0] - (t - mean) ** 2 / 2)

            left, right = first, last
            for _ in range(60):  # golden section
                inner = (right - left) * (np.sqrt(5) - 1) / 2
                if roughly(right - inner) > roughly(left + inner):
                    right = left + inner
                else:
                    left = right - inner
            mode = left if roughly(left) > roughly(first) else first
            for end in (first, last):
                near, far = mode, end
                for _ in range(0 if roughly(end) >= roughly(mode) - 40 else 30):
                    middle = (near + far) / 2
                    inside = roughly(middle) >= roughly(mode) - 40
                    near, far = (middle, far) if inside else (near, middle)
                half = abs(far - mode) / 16
                for k in range(8):
                    points = mode + (far - mode) * (2 * k + 1) / 16 + half * NODES
                    for t, weight in zip(map(mpmath.mpf, points), WEIGHTS.tolist(), strict=True):
                        ends = ((mpmath.mpf(end) - t) / mpmath.mpf(spread) for end in (lo, hi))
                        total += half * weight * mpmath.npdf(t, mean, 1) * split_mass(*ends)
        return mpmath.log(total)


def relative(found: float, exact: Any) -> float:
    """Relative error of a probability, from its logarithms."""
    return abs(float(mpmath.expm1(mpmath.mpf(float(found)) - exact)))


TAILS = [
    ([[-INF, INF]], 1.7),
    ([[-INF, INF]], 20.0),
    ([[0.0, INF]], -3.3),
    ([[-1.0, 2.5]], 0.0),
    ([[20.0, INF]], 8.0),
    ([[19.9, 20.0]], 20.0),
    ([[19.9, 20.0]], -20.0),
    ([[-20.0, -19.0]], 1.7),
    ([[-INF, -20.0]], -18.0),
    ([[-INF, -1.0], [1.2, INF]], 2.0),
    ([[3.0, 3.001], [7.0, 8.0]], 4.0),
    ([[5.0, 5.0 + 1e-6]], 5.1),
]


TURNS = [(spread, TAILS[k % 3 :: 3]) for k, spread in enumerate(SPREADS)]
TURNS += [pytest.param(spread, TAILS, marks=pytest.mark.slow) for spread in SPREADS]


@pytest.mark.parametrize(("spread", "cases"), TURNS)
def test_tails_are_right_as_far_as_twenty_deviations(spread, cases):
    for part, limit in cases:
        found = log_tail(np.array(part), limit, spread)
        assert relative(found, exact_tail(part, limit, spread)) < PROMISED, (part, limit)


@pytest.mark.parametrize("mean", [-4.0, 2.5])
def test_tails_are_right_where_the_statistic_has_a_mean(mean):
    for part, limit in TAILS[3:9:2]:
        found = log_tail(np.array(part), limit, 0.5, mean)
        assert relative(found, exact_tail(part, limit, 0.5, mean)) < PROMISED, (part, limit)


@pytest.mark.parametrize("spread", SPREADS)
def test_totals_are_right_as_far_as_twenty_deviations(spread):
    for part, _ in TAILS:
        for mean in (0.0, 1.5):
            with mpmath.workdps(30):
                sd = mpmath.sqrt(1 + mpmath.mpf(spread) ** 2)
                ends = [[(mpmath.mpf(end) - mean) / sd for end in pair] for pair in part]
                exact = mpmath.log(mpmath.fsum(split_mass(*pair) for pair in ends))
            found = log_total(np.array(part), spread, mean)
            assert relative(found, exact) < PROMISED, (part, mean)


# Ends are known to 1e-6 at best; scaled by the spread they round, to 1e-15 of their size.
@pytest.mark.parametrize("width", [1e-4, 1e-6])
def test_very_narrow_intervals_keep_their_digits(width):
    """Ends are exact numbers, and without randomization such an interval's mass is right."""
    part = np.array([[15.0, 15.0 + width]])
    for spread in (0.3, 3.0):
        with mpmath.workdps(30):
            sd = mpmath.sqrt(1 + mpmath.mpf(spread) ** 2)
            exact = mpmath.log(split_mass(*(mpmath.mpf(end) / sd for end in part[0])))
        assert relative(log_total(part, spread), exact) < PROMISED
        assert relative(log_tail(part, 14.9, spread), exact_tail(part, 14.9, spread)) < PROMISED


@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_both_tails_and_the_rest_are_a_split(spread):
    for part, limit in TAILS:
        mirrored = -np.array(part)[::-1, ::-1]
        limit = abs(limit)
        tails = as_intervals([[-INF, -limit], [limit, INF]])
        inner, outer = normal_split(np.array(part), tails, spread)
        upper, lower = (log_tail(each, limit, spread) for each in (np.array(part), mirrored))
        # 1e-12: logs as far as -1e5 are rounded at 1e-11 each.
        assert inner == pytest.approx(np.logaddexp(upper, lower), rel=1e-12, abs=1e-10)
        whole = log_total(np.array(part), spread)
        assert np.logaddexp(inner, outer) == pytest.approx(whole, rel=1e-12, abs=1e-10)
        less, _ = normal_split(np.array(part), as_intervals([-INF, -limit]), spread)
        assert less == pytest.approx(lower, rel=1e-12, abs=1e-10)


def test_nothing_selected_has_no_probability():
    nothing = as_intervals([])
    tails = as_intervals([1.0, INF])
    assert log_tail(nothing, 1.0, 0.5) == log_total(nothing, 0.5) == -INF
    assert normal_split(nothing, tails, 0.5) == (-INF, -INF)
    assert student_split(nothing, tails, 0.5, NullLaw(degrees=3.0)._log_density) == (-INF, -INF)


def integrated(part: np.ndarray, within: np.ndarray, spread: float, law: Any) -> float:
    """log P(V in part, T in within): 1,000 pieces of T, even in asinh, 20 nodes each."""
    logs = [-INF]
    for ends in np.arcsinh(np.clip(within, -1e9, 1e9)):
        cuts = np.linspace(*ends, 1001)
        u = ((cuts[1:] + cuts[:-1])[:, None] + np.diff(cuts)[:, None] * NODES) / 2
        t, half = np.sinh(u), np.diff(cuts)[:, None] / 2
        for pair in part:
            lo, hi = (np.clip(pair, -1e12, 1e12)[:, None, None] - t) / spread
            lo, hi = np.where(lo + hi < 0, (-hi, -lo), (lo, hi))
            with np.errstate(divide="ignore", invalid="ignore"):
                gap = np.nan_to_num(log_ndtr(-hi) - log_ndtr(-lo), nan=-INF)
                mass = log_ndtr(-lo) + np.log1p(-np.exp(np.minimum(gap, 0)))
            terms = law.logpdf(t) + mass + np.log(np.cosh(u) * half * WEIGHTS)
            logs.append(np.logaddexp.reduce(terms.ravel()))
    return float(np.logaddexp.reduce(logs))


@pytest.mark.parametrize("spread", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("degrees", [2.5, 10.0])
def test_a_student_statistic_is_split_right(spread, degrees):
    law = NullLaw(degrees=degrees)
    for part, limit in [*TAILS[:4], *TAILS[5:11:2]]:
        limit = abs(limit)
        tails = as_intervals([[-INF, -limit], [limit, INF]])
        found = student_split(np.array(part), tails, spread, law._log_density)
        for one, where in zip(found, (tails, complement(tails)), strict=True):
            exact = integrated(np.array(part), where, spread, stats.t(degrees))
            if exact > max(found) - 40:  # a share that float64 can tell from 0
                assert one == pytest.approx(exact, abs=PROMISED), (part, limit)
            else:
                assert one < max(found) - 39


def share_of_grid(z: float, part: Any, spread: float, alternative: str) -> float:
    """The p-value, integrated over T."""
    law, part, at = stats.norm(), as_intervals(part), abs(z)

    def share(extreme: Any) -> float:
        extreme = as_intervals(extreme)
        inner, outer = (integrated(part, s, spread, law) for s in (extreme, complement(extreme)))
        return float(np.exp(inner - np.logaddexp(inner, outer)))

    less, greater = [-INF, z], [z, INF]
    if alternative == "equal-tailed":
        return min(1.0, 2 * min(share(less), share(greater)))
    return share({"less": less, "greater": greater}.get(alternative, [[-INF, -at], [at, INF]]))


SETS = [
    (0.4, [[-1.0, 2.5]]),
    (-2.1, [[-INF, -1.0], [1.2, INF]]),
    (1.5, [[0.2, 0.3], [-3.0, -1.4], [1.1, 1.7]]),
    (9.1, [[9.0, 9.5], [-9.4, -9.2]]),
]


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
def test_p_agrees_with_a_dense_grid(alternative, spread):
    for z, part in SETS:
        found = selective_p(z, part, LINE, alternative, Perturbation(spread, 0.1))
        exact = share_of_grid(z, part, spread, alternative)
        assert found.p == pytest.approx(exact, rel=PROMISED), (z, part)
        assert found.low == found.p == found.high


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_p_agrees_with_simulation(alternative):
    rng = np.random.default_rng(0)
    t = rng.normal(size=400_000)
    v = t + 0.5 * rng.normal(size=t.size)
    for z, part in SETS[:3]:
        kept = t[contains(as_intervals(part), v)]
        greater, less = np.mean(kept >= z), np.mean(kept <= z)
        expected = {
            "two-sided": np.mean(np.abs(kept) >= abs(z)),
            "equal-tailed": 2 * min(greater, less),
            "greater": greater,
            "less": less,
        }[alternative]
        shift = as_intervals(part).mean(axis=1)[-1] - z if np.isfinite(part[0][0]) else 0.0
        p = selective_p(z, part, LINE, alternative, Perturbation(0.5, shift)).p
        # Four standard errors of a share, twice as many for the doubled one.
        assert abs(p - expected) < 8 * np.sqrt(0.25 / kept.size), z


@pytest.mark.parametrize("alternative", ["greater", "less"])
def test_a_mean_moves_the_statistic_and_what_selection_saw(alternative):
    rng = np.random.default_rng(1)
    t = 1.3 + rng.normal(size=400_000)
    kept = t[contains(as_intervals([[0.5, 1.5]]), t + 0.7 * rng.normal(size=t.size))]
    share = np.mean(kept >= 1.1 if alternative == "greater" else kept <= 1.1)
    p = selective_p(1.1, [[0.5, 1.5]], LINE, alternative, Perturbation(0.7, 0.0), mean=1.3).p
    assert abs(p - share) < 4 * np.sqrt(0.25 / kept.size)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_little_randomization_is_nearly_none(alternative):
    for z, part in SETS[1:]:
        plain = selective_p(z, part, LINE, alternative).p
        errors = [
            abs(selective_p(z, part, LINE, alternative, Perturbation(spread, 0.0)).p / plain - 1)
            for spread in (1e-3, 1e-5, 1e-7)
        ]
        assert errors[0] < 0.01
        assert errors[2] < 1e-8 + errors[0] * 1e-3


@pytest.mark.parametrize("spread", [1e-9, 1e-12, 1e-15, 1e-100])
@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_hardly_any_randomization_is_none(alternative, spread):
    for z, part in [(2.0, [[1.5, 3.0]]), (0.0, [[-1.0, 1.2]]), (20.0, [[19.5, 21.0]])]:
        plain = selective_p(z, part, LINE, alternative).p
        p = selective_p(z, part, LINE, alternative, Perturbation(spread, 0.0)).p
        assert p == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_much_randomization_leaves_the_naive_test(alternative):
    for spread in (1e6, 1e12):
        seen = Perturbation(spread, 0.3 * spread)
        p = selective_p(2.0, [[-0.5 * spread, 2 * spread]], LINE, alternative, seen).p
        assert p == pytest.approx(naive_p(2.0, alternative), rel=1e-5)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_everything_selected_is_the_naive_test(alternative):
    for z in (-2.3, 0.0, 0.4, 20.0):
        p = selective_p(z, LINE, LINE, alternative, Perturbation(0.5, -3.0)).p
        assert p == pytest.approx(naive_p(z, alternative), rel=PROMISED)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_bounds_hold_for_every_completion(alternative):
    rng = np.random.default_rng(2)
    for _ in range(15):
        known = as_intervals(np.sort(rng.uniform(-3, 3, (2, 2)), axis=1))
        searched = union(known, as_intervals(np.sort(rng.uniform(-4, 4, 2))))
        seen = Perturbation(float(rng.uniform(0.1, 2)), 0.0)
        seen = seen._replace(shift=float(known[0].mean()) - (z := float(rng.normal())))
        bounds = selective_p(z, known, searched, alternative, seen)
        assert 0 <= bounds.low <= bounds.p <= bounds.high <= 1
        unsearched = complement(searched)
        for _ in range(6):
            grid = np.sort(np.append(rng.uniform(-6, 6, 9), [-INF, INF])).reshape(-1)
            cells = np.stack([grid[:-1], grid[1:]], axis=1)[rng.random(10) < 0.5]
            completed = union(known, intersect(as_intervals(cells), unsearched))
            p = selective_p(z, completed, LINE, alternative, seen).p
            # The completions sum the same masses in another order.
            assert bounds.low - 1e-10 <= p <= bounds.high + 1e-10
        closed = selective_p(z, known, LINE, alternative, seen)
        assert closed.low == closed.p == closed.high == pytest.approx(bounds.p, rel=1e-10)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_p_is_not_a_number_where_selection_cannot_have_seen_it(alternative):
    for z, shift in [(0.5, 1.0), (0.5, -1.0), (np.nan, 0.0), (0.5, np.nan), (INF, 0.0)]:
        seen = Perturbation(0.5, shift)
        assert np.isnan(selective_p(z, [[0.0, 1.0]], LINE, alternative, seen)).all()
    # The statistic itself may lie outside: what selection saw does not.
    p = selective_p(3.0, [[0.0, 1.0]], LINE, alternative, Perturbation(0.5, -2.5)).p
    assert 0 <= p <= 1
    assert np.isnan(selective_p(0.4, [[0, 1]], [[0.6, 2]], alternative, Perturbation(1, 0.1)).p)


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_p_is_uniform_under_randomized_selection(alternative):
    rng = np.random.default_rng(3)
    part = as_intervals([[-0.5, 0.2], [1.2, 2.0]])
    t, e = rng.normal(size=(2, 2000)) * [[1.0], [0.6]]
    rows = np.stack([t, e], axis=1)[contains(part, t + e)][:300]
    p = [selective_p(z, part, LINE, alternative, Perturbation(0.6, d)).p for z, d in rows.tolist()]
    # Fixed seed; a correct p fails this level once in a thousand seeds.
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_a_line_gives_the_statistic_back():
    seen = Perturbation(0.75, 0.5)
    observed = on_line(2.0, as_intervals([1.0, 3.0]), LINE, seen)
    assert observed.z_obs == 2.0 * 1.25 - 0.5
    assert observed.truncation.tolist() == [[1.25, 3.75]]
    assert observed.searched.tolist() == [[-INF, INF]]
    assert observed.perturbation == seen


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_laws_know_of_the_randomization(alternative):
    part, seen = as_intervals([[-0.4, 0.3], [1.0, 2.2]]), Perturbation(0.5, -0.2)
    observed = Observed(1.5, part, LINE, seen)
    plain = selective_p(1.5, part, LINE, alternative, seen)
    assert NullLaw().p_value(observed, alternative) == plain
    # Twice the noise in the statistic, the same in what was added.
    wide = Observed(3.0, 2 * part, LINE, Perturbation(1.0, -0.4))
    scaled = NullLaw(factor=2.0).p_value(wide, alternative)
    assert scaled.p == pytest.approx(plain.p, rel=1e-12)
    nearly = NullLaw(degrees=1e7).p_value(observed, alternative)
    assert nearly.p == pytest.approx(plain.p, rel=1e-5)
    heavy = NullLaw(degrees=3.0).p_value(observed, alternative)
    assert heavy.low == pytest.approx(heavy.p) and abs(heavy.p - plain.p) > 1e-3


@pytest.mark.parametrize("degrees", [3.0, INF])
def test_likelihoods_are_densities_of_the_statistic_given_selection(degrees):
    part, law = as_intervals([[-0.4, 0.3], [1.0, 2.2]]), NullLaw(1.4, degrees)
    u = np.linspace(-8, 8, 201)
    z = np.sinh(u)
    seen = Perturbation(0.5, 0.0)
    logs = law.log_likelihoods([Observed(float(v), part, LINE, seen) for v in z])
    total = np.trapezoid(np.exp(logs) * np.cosh(u), u)
    # The trapezoid rule is exact to rounding on smooth functions that fall off at both ends.
    assert total == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("degrees", [2.5, 5.0, 50.0])
def test_a_student_statistic_is_selected_as_often_as_its_split_says(degrees):
    density = NullLaw(degrees=degrees)._log_density
    for spread in (0.1, 0.5, 1.5):
        for part in ([[-1.0, -0.4], [0.5, 1.5]], [[3.0, 6.0]], [[-np.inf, -2.0], [10.0, 20.0]]):
            whole = np.logaddexp(
                *student_split(np.array(part), as_intervals([1.0, INF]), spread, density)
            )
            assert student_total(np.array(part), spread, degrees) == pytest.approx(whole, abs=1e-7)
    plain = student_total(np.array([[1.0, 2.0]]), 0.0, degrees)
    assert np.exp(plain) == pytest.approx(np.diff(stats.t.cdf([1, 2], degrees))[0], rel=1e-8)
