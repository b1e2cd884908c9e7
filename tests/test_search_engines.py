import itertools
import math
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import num_compilations
from search_cases import (
    check_on_grid,
    dense_localizer,
    jumping_localizer,
    members,
    pooled_localizer,
    random_problem,
    same_set,
    scalar_problem,
)

from dal_jax.affine import _sweep
from dal_jax.inference import as_intervals, contains, intersect, measure, selective_p
from dal_jax.noise import ar1
from dal_jax.search import (
    ScanEngine,
    Status,
    SweepEngine,
    _engines,
    search_line,
    select_region,
)
from dal_jax.search._engines import _contradictions

RANGE = (-6.0, 6.0)
SEGMENTS = 32  # of 8 lanes with 4 each, on a CPU
LOCALIZERS = {
    "pooled": pooled_localizer(),
    "pooled, 2 channels": pooled_localizer(1, channels=2),
    "dense": dense_localizer(),
    "jumping": jumping_localizer(),
}
CASES = list(itertools.product(LOCALIZERS, range(3)))
ENGINES = {
    "sweep": SweepEngine,
    "scan": ScanEngine,
    "float32": lambda problem: SweepEngine(problem, "float32"),
}


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_sweep_and_scan_and_a_dense_grid_agree(name, seed):
    problem = random_problem(LOCALIZERS[name], seed, ar1(0.5, 1.0) if seed else None)
    swept, scanned = SweepEngine(problem)([RANGE]), ScanEngine(problem)([RANGE])
    assert swept.finite
    assert scanned.finite
    assert not swept.gaps.size
    assert not scanned.gaps.size
    same_set(swept.inside, scanned.inside)
    check_on_grid(problem, swept.inside, *RANGE)
    assert contains(swept.inside, problem.z_obs)
    # The sweep has harmless nodes besides; the scan cuts windows at the borders of its segments.
    assert scanned.num_windows <= swept.num_windows + SEGMENTS
    assert swept.num_evaluations > swept.num_windows


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_polished_float32_equals_float64(name, seed):
    problem = random_problem(LOCALIZERS[name], seed)
    exact, polished = SweepEngine(problem)([RANGE]), SweepEngine(problem, "float32")([RANGE])
    assert not polished.gaps.size
    same_set(exact.inside, polished.inside)
    one = selective_p(problem.z_obs, exact.inside, [RANGE])
    two = selective_p(problem.z_obs, polished.inside, [RANGE])
    # The ends agree to SAME_END, the density is below 0.4 and the mass of these sets above 0.01.
    np.testing.assert_allclose(one, two, atol=1e-7)


@pytest.mark.parametrize("engine", ENGINES)
def test_parts_searched_apart_join_to_the_whole(engine):
    problem = random_problem(LOCALIZERS["pooled"], 4)
    run = ENGINES[engine](problem)
    whole = run([RANGE])
    ends = whole.inside.reshape(-1)
    assert len(ends)
    # Borders at random, and borders within float32 rounding of the ends that are to be found.
    cuts = [*np.random.default_rng(0).uniform(-6, 6, 5)]
    cuts += [ends[0] + 1e-7, ends[0] - 1e-6, ends[-1] + 3e-6, ends[-1] - 2e-5]
    edges = np.unique(np.clip([-6.0, *cuts, 6.0], -6.0, 6.0))
    parts = [(float(lo), float(hi)) for lo, hi in itertools.pairwise(edges)]
    same_set(whole.inside, (run(parts[::2]) + run(parts[1::2])).inside)
    same_set(whole.inside, run(parts).inside)  # parts that touch
    odd = intersect(whole.inside, as_intervals(parts[::2]))
    # A border may fall on an end to rounding: then a sliver is all that differs.
    assert measure(intersect(run(parts[::2]).inside, odd)) == pytest.approx(measure(odd), abs=1e-9)


def tail(params, draws, x):
    z = x[0, 0, 0]
    return jnp.stack([0.8 + jnp.minimum(z + 1.0, 0.5), jnp.abs(z) - 9.0])[None]


def band(params, draws, x):
    z = x[0, 0, 0]
    return jnp.stack([0.8 + jnp.minimum(z + 1.0, 0.5), jnp.abs(z - 1.5) - 1.2])[None]


def wave(params, draws, x):
    z = x[0, 0, 0]
    return (jnp.abs(jnp.abs(jnp.abs(z) - 2.0) - 1.0) + 0.55)[None, None]  # 0.55 at odd z


HANDMADE = [
    # Pixel 0 is flagged from -1 on, pixel 1 never: far from symmetric, and up to the right tail.
    (tail, [True, False], 0.7, [[-1.0, 6.0]]),
    # Pixel 1 is flagged at |z - 1.5| > 2: the set touches neither tail.
    (band, [True, False], 0.7, [[-0.5, 3.5]]),
    # As close to an end as a float32 can just not tell.
    (band, [True, False], 3.5 - 1e-7, [[-0.5, 3.5]]),
    (band, [True, False], -0.5 + 1e-7, [[-0.5, 3.5]]),
    # Several intervals, with both tails and with neither.
    (wave, [True], 0.3, [[-6, -3.25], [-2.75, -1.25], [-0.75, 0.75], [1.25, 2.75], [3.25, 6]]),
    (wave, [False], -1.1, [[-3.25, -2.75], [-1.25, -0.75], [0.75, 1.25], [2.75, 3.25]]),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("score_fn", "region", "z_obs", "truth"), HANDMADE)
def test_sets_known_by_hand(engine, score_fn, region, z_obs, truth):
    problem = scalar_problem(score_fn, z_obs, region)
    run = ENGINES[engine](problem)
    found = run([RANGE])
    same_set(found.inside, np.array(truth), 1e-14)  # sums of a few numbers about 1, in float64
    for alternative in ("two-sided", "greater"):
        result = search_line(run, z_obs, precision=1e-6, z_max=6.0, alternative=alternative)
        expected = selective_p(z_obs, truth, [RANGE], alternative)
        assert result.bounds.p == pytest.approx(expected.p, abs=1e-6)  # the precision asked for
        assert result.status is Status.OK


def peak(params, draws, x):
    """Pixel 1 comes within `height` of the threshold at `centre`, with the digits lost in `shift`.

    Sums of 100 and something are rounded to 8e-6 in float32.
    """
    z = x[0, 0, 0]
    top = 0.8 + params["height"] - params["slope"] * jnp.abs(z - params["centre"])
    return jnp.stack([jnp.ones_like(z), (params["shift"] + top) - params["shift"]])[None]


def peak_problem(height, centre=1.2, slope=1.0, shift=0.0):
    return scalar_problem(
        peak, 0.7, [True, False], height=height, centre=centre, slope=slope, shift=shift
    )


def test_near_touches_are_decided_in_float64():
    wrong = 0
    rng = np.random.default_rng(0)
    for height in (-3e-6, 3e-6, -5e-7, 5e-7):
        for _ in range(10):
            problem = peak_problem(height, rng.uniform(1, 2), rng.choice([0.3, 1, 3]), 40.0)
            exact, found = SweepEngine(problem)([RANGE]), SweepEngine(problem, "float32")([RANGE])
            assert len(exact.inside) == (2 if height > 0 else 1)
            same_set(exact.inside, found.inside)
            assert not found.gaps.size
            rough, _ = SweepEngine(problem, "float32")._run([RANGE])
            wrong += len(rough.inside) != len(exact.inside)
    assert wrong >= 5  # or else nothing has been tested


def slow(params, draws, x):
    """One end, at which the score hardly moves."""
    z = x[0, 0, 0]
    score = (params["shift"] + 0.8 + params["slope"] * (z - params["end"])) - params["shift"]
    return score[None, None]


SLOW = {"shift": 100.0, "end": 1.3, "slope": 0.004}


def test_polished_parts_grow_until_the_end_is_found():
    problem = scalar_problem(slow, 2.0, [True], **SLOW)
    engine = SweepEngine(problem, "float32")
    rough, _ = engine._run([RANGE])
    # Farther off than the width of a polished part.
    assert abs(rough.inside[0, 0] - 1.3) > 2 * _engines.POLISH_WIDTH
    found = engine([RANGE])
    # Sums of 100 in float64 divided by a slope of 0.004.
    same_set(found.inside, np.array([[1.3, 6.0]]), 1e-11)
    assert not found.gaps.size
    assert found.num_evaluations > rough.num_evaluations + 4


def test_a_contradiction_that_stays_is_a_gap(monkeypatch):
    monkeypatch.setattr(_engines, "POLISH_ROUNDS", 1)
    problem = scalar_problem(slow, 2.0, [True], **SLOW)
    engine = SweepEngine(problem, "float32")
    rough, _ = engine._run([RANGE])
    found = engine([RANGE])
    assert len(found.gaps) == 1
    assert contains(found.gaps, rough.inside[0, 0])
    assert not intersect(found.gaps, found.inside).size
    assert measure(found.gaps) < 3 * _engines.POLISH_WIDTH * 1.3
    result = search_line(engine, 2.0, precision=1e-7, z_max=6.0)
    assert result.status is Status.NOT_CONVERGED
    # The density of 0.17 at 1.3, over a mass of 0.1.
    assert 1e-5 < result.bounds.high - result.bounds.low < 1e-3


def test_borders_of_polished_parts_that_disagree():
    limits = as_intervals([[0.0, 10.0]])
    around = as_intervals([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0], [9.0, 10.0]])
    rough = as_intervals([[0.5, 2.5], [4.5, 6.5], [9.5, 10.0]])
    agree = as_intervals([[0.4, 1.0], [2.0, 2.6], [4.4, 5.0], [6.0, 6.6], [9.6, 10.0]])
    assert not len(_contradictions(around, agree, rough, limits))
    # No end in [2, 3] after all; a wrong side at a limit does not show.
    other = as_intervals([[0.0, 1.0], [2.0, 3.0], [4.4, 5.0], [6.0, 6.6]])
    np.testing.assert_array_equal(_contradictions(around, other, rough, limits), [[2.0, 3.0]])
    other = as_intervals([[0.4, 1.0], [2.0, 2.6], [6.0, 6.6]])
    np.testing.assert_array_equal(_contradictions(around, other, rough, limits), [[4.0, 5.0]])


def test_an_end_beside_the_border_of_a_round_is_found_from_both_sides():
    # The float32 end may fall on the other side of the border: margins there are suspect.
    for distance in (-3e-6, -1e-7, 1e-7, 3e-6):
        problem = scalar_problem(slow, 2.0, [True], shift=50.0, end=1.3, slope=1.0)
        run = SweepEngine(problem, "float32")
        border = 1.3 + distance
        found = run([(-6.0, border)]) + run([(border, 6.0)])
        same_set(found.inside, np.array([[1.3, 6.0]]), 1e-13)  # sums of 50 in float64


def bump(params, draws, x):
    z = x[0, 0, 0]
    at = (z > params["start"]) & (z < params["start"] + params["width"])
    return jnp.where(at, 2.0, 0.5)[None, None]


def tent(params, draws, x):
    z = x[0, 0, 0]
    middle = params["start"] + params["width"] / 2
    return jnp.maximum(0.0, 2.0 - 4.0 * jnp.abs(z - middle) / params["width"])[None, None]


@pytest.mark.parametrize("score_fn", [bump, tent])
def test_what_is_narrower_than_the_scan_can_step_is_a_gap(score_fn):
    start, width = 1.0123, 5e-11
    problem = scalar_problem(score_fn, 0.3, [False], start=start, width=width)
    swept, scanned = SweepEngine(problem)([RANGE]), ScanEngine(problem)([RANGE])
    # The sweep sees it; numbers near 1 are 2e-16 apart, and the slopes 1e11.
    assert not swept.gaps.size
    assert len(swept.inside) == 2
    share = 1.0 if score_fn is bump else 0.6  # of the tent, that is above 0.8
    assert swept.inside[1, 0] - swept.inside[0, 1] == pytest.approx(width * share, abs=1e-14)
    # The scan says that it did not.
    np.testing.assert_allclose(scanned.gaps, [[start, start + width]], atol=1e-14)
    same_set(scanned.inside, np.array([[-6, start], [start + width, 6]]), 1e-14)
    result = search_line(ScanEngine(problem), 0.3, precision=0, z_max=6.0)
    assert len(result.searched) == 2
    full = selective_p(0.3, swept.inside, [RANGE])
    # Equal to rounding, but for the mass of the gap.
    assert result.bounds.low - 1e-14 <= full.p <= result.bounds.high + 1e-14
    assert 0 < result.bounds.high - result.bounds.low < 1e-9


def broken(params, draws, x):
    z = x[0, 0, 0]
    return jnp.where(z > 3.0, params["bad"] + z, jnp.abs(z))[None, None]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_score_that_is_not_finite_gives_no_p_value(engine, bad):
    problem = scalar_problem(broken, 1.5, [True], bad=bad)
    run = ENGINES[engine](problem)
    assert run([(-2.0, 2.0)]).finite
    assert not run([(-2.0, 4.0)]).finite
    found = search_line(run, 1.5)
    assert found.status is Status.NON_FINITE
    assert all(math.isnan(v) for v in found.bounds)


def huge(params, draws, x):
    z = x[0, 0, 0]
    return (jnp.abs(z * params["up"] * params["up"]) / params["up"] / params["up"])[None, None]


def test_float64_decides_where_float32_overflows():
    problem = scalar_problem(huge, 1.5, [True], up=1e25)
    engine = SweepEngine(problem, "float32")
    assert not engine._run([RANGE])[0].finite
    found = engine([RANGE])
    assert found.finite
    # Four roundings of 1e-16 each, at 0.8.
    same_set(found.inside, np.array([[-6.0, -0.8], [0.8, 6.0]]), 1e-15)


def point(params, draws, x):
    z = x[0, 0, 0]
    return jnp.where(z == 1.5, 1.0, 0.25)[None, None]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_region_flagged_at_one_point_only_is_a_tie(engine):
    problem = scalar_problem(point, 1.5, [True])
    assert members(problem, np.array([1.4, 1.5])).tolist() == [False, True]
    found = search_line(ENGINES[engine](problem), 1.5, z_max=4.0)
    assert found.status is Status.TIE
    assert all(math.isnan(v) for v in found.bounds)
    assert not found.truncation.size


@pytest.mark.parametrize("engine", ENGINES)
def test_the_second_line_compiles_nothing(engine):
    lines = [random_problem(LOCALIZERS["dense"], seed) for seed in range(4)]
    for line in lines:
        search_line(ENGINES[engine](line), line.z_obs)
    before = num_compilations()
    for line in lines:
        search_line(ENGINES[engine](line), line.z_obs)
    assert num_compilations() == before
    if engine == "scan":  # one program, however many parts and wherever they are
        ENGINES[engine](lines[0])([(0.0, 0.1), (0.5, 0.6), (0.7, 4.0)])
        assert num_compilations() == before


def folded(params, draws, x):
    """A triangular wave of 1024 windows between -16 and 16, on 16 x 16 pixels."""
    z = x[0, 0, 0]
    for k in range(4, -6, -1):
        z = jnp.abs(z - 2.0**k) if k < 4 else jnp.abs(z)
    return z * params["gains"]


@pytest.mark.parametrize("engine", ["sweep", "scan"])
def test_memory_does_not_grow_with_the_windows_visited(engine, monkeypatch):
    monkeypatch.setattr(_sweep, "MIN_CHUNK", 96)  # so that even the smaller search is cut in parts
    problem = scalar_problem(folded, 0.1, np.zeros(1))
    gains = np.linspace(0.1, 1.0, 256).reshape(16, 16)
    region = np.zeros((16, 16), bool)
    problem = problem._replace(
        params={"gains": gains}, selected=select_region(region.astype(float), 0.5)
    )
    run = ENGINES[engine](problem)
    run([(-16.0, 16.0)])  # compiles

    def visited(reach):
        tracemalloc.start()
        windows = run([(-reach, reach)]).num_windows
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return windows, most

    (few, small), (many, large) = visited(2.0), visited(16.0)
    assert many > 6 * few
    assert few > 100
    # What is held at once is the same; the records of the scan have 30 kB.
    assert large < 1.5 * small + 30_000


@pytest.mark.slow
def test_engines_share_programs_among_equal_functions_only():
    one, two = (lambda p, d, x: jnp.abs(x[..., 0])), (lambda p, d, x: 0.5 * jnp.abs(x[..., 0]))
    for score_fn, end in ((one, 0.8), (two, 1.6), (one, 0.8)):
        problem = scalar_problem(score_fn, 2.0, [True])
        for engine in ENGINES.values():
            same_set(engine(problem)([(0.0, 6.0)]).inside, np.array([[end, 6.0]]), 1e-14)


def test_float64_whatever_the_global_setting():
    problem = random_problem(LOCALIZERS["dense"], 1)
    expected = {name: engine(problem)([RANGE]).inside for name, engine in ENGINES.items()}
    jax.config.update("jax_enable_x64", False)
    try:
        for name, engine in ENGINES.items():
            same_set(engine(problem)([RANGE]).inside, expected[name])
    finally:
        jax.config.update("jax_enable_x64", True)
