"""Randomized selection: the localizer sees a noisier image, the image itself is tested."""

import math

import mpmath
import numpy as np
import pytest
from scipy import stats
from search_cases import dense_localizer, jumping_localizer, pooled_localizer

from dal_jax import (
    Case,
    InputError,
    Item,
    Status,
    TestOptions,
    dal_test,
    dal_test_batch,
    from_score,
    run_tests,
)
from dal_jax._randomization import randomization
from dal_jax.inference import (
    Law,
    Observed,
    Perturbation,
    as_intervals,
    effect,
    inflation,
    region_line,
    selective_p,
)
from dal_jax.inference._randomized import log_tail, normal_split, student_split
from dal_jax.noise import ar1, iid, parse_noise

EVERYWHERE = as_intervals([-np.inf, np.inf])
LOCALIZER = pooled_localizer()
SHAPE = LOCALIZER.image_shape


def exact_log_tail(selected, limit, spread):
    """The same integral in 40 digits, in pieces that follow the integrand."""
    with mpmath.workdps(40):
        spread = mpmath.mpf(spread)
        r = 1 / mpmath.sqrt(1 + spread**2)
        s = spread * r
        total = mpmath.mpf(0)
        for low, high in selected:
            low = mpmath.mpf(low) * r if math.isfinite(low) else mpmath.mpf(-50)
            high = mpmath.mpf(high) * r if math.isfinite(high) else mpmath.mpf(60)
            cuts = {low, high}
            for centre, width in ((limit / r, s / r), (limit * r, s), (mpmath.mpf(0), 1)):
                cuts |= {centre + width * k for k in range(-12, 13)}
            for end, sign in ((low, 1), (high, -1)):
                cuts |= {end + sign * mpmath.mpf(2) ** -k for k in range(10)}
            inner = sorted(cut for cut in cuts if low <= cut <= high)
            total += mpmath.quad(lambda v: mpmath.npdf(v) * mpmath.ncdf((r * v - limit) / s), inner)
        return float(mpmath.log(total))


def random_set(rng, centre):
    ends = np.sort(rng.uniform(-1, 1, 4) * rng.choice([0.01, 0.1, 1, 5, 20])) + centre
    ends[0] = -np.inf if rng.random() < 0.2 else ends[0]
    ends[3] = np.inf if rng.random() < 0.2 else ends[3]
    return ends.reshape(2, 2)


@pytest.mark.parametrize(
    "spread", [0.5, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.05, 0.25, 1.0, 3.0))]
)
def test_tails_are_right_far_out(spread):
    rng = np.random.default_rng(int(100 * spread))
    for _ in range(6):
        limit, centre = rng.uniform(-20, 20, 2)
        selected = random_set(rng, centre)
        found = log_tail(selected, limit, spread)
        # An error of the logarithm is a relative one; rounding of a large logarithm comes on top.
        expected = exact_log_tail(selected, limit, spread)
        assert found == pytest.approx(expected, abs=1e-8 + 1e-11 * abs(expected))


def test_the_two_parts_are_the_whole():
    rng = np.random.default_rng(3)
    for _ in range(50):
        part, limit = random_set(rng, rng.normal()), abs(rng.normal())
        tails = as_intervals([[-np.inf, -limit], [limit, np.inf]])
        extreme, rest = np.exp(normal_split(part, tails, 0.7))
        v = np.clip(part / math.hypot(1, 0.7), -40, 40)
        whole = float(np.diff(stats.norm.cdf(v), axis=1).sum())
        assert extreme + rest == pytest.approx(whole, rel=1e-9, abs=1e-15)


def test_student_tails_of_many_degrees_are_normal_ones():
    tails = as_intervals([[-np.inf, -1.5], [1.5, np.inf]])
    part = as_intervals([[-2.0, -0.5], [0.3, 1.0], [4.0, np.inf]])
    found = student_split(part, tails, 0.5, lambda t: -(t**2) / 2 - np.log(2 * np.pi) / 2)
    assert found == pytest.approx(normal_split(part, tails, 0.5), abs=1e-9)


@pytest.mark.parametrize("alternative", ["two-sided", "equal-tailed", "greater", "less"])
def test_p_is_a_share_of_what_could_have_been_selected(alternative):
    z, seen = 1.3, Perturbation(0.6, -0.2)
    selected = as_intervals([[-2.0, -1.6], [0.9, 1.4]])
    rng = np.random.default_rng(5)
    t = rng.normal(size=1_000_000)
    v = t + 0.6 * rng.normal(size=t.size)
    t = t[((selected[:, 0] < v[:, None]) & (v[:, None] < selected[:, 1])).any(axis=1)]
    above, below = (t >= z).mean(), (t <= z).mean()
    expected = {
        "two-sided": (np.abs(t) >= z).mean(),
        "equal-tailed": 2 * min(above, below),
        "greater": above,
        "less": below,
    }[alternative]
    found = selective_p(z, selected, EVERYWHERE, alternative, seen)
    assert found.p == pytest.approx(expected, abs=5 * 2 * math.sqrt(0.25 / t.size))
    assert found.low == pytest.approx(found.p) == found.high


@pytest.mark.parametrize("alternative", ["two-sided", "equal-tailed", "greater", "less"])
def test_bounds_hold_whatever_is_found_later(alternative):
    rng = np.random.default_rng(6)
    for _ in range(40):
        seen = Perturbation(rng.uniform(0.1, 2), 0.3 * rng.normal())
        z = 2 * rng.normal()
        at = z + seen.shift
        searched = as_intervals([at - rng.uniform(0.1, 2), at + rng.uniform(0.1, 2)])
        known = as_intervals([at - 0.05, at + 0.05])
        bounds = selective_p(z, known, searched, alternative, seen)
        assert bounds.low <= bounds.p <= bounds.high
        more = rng.uniform(-6, 6, size=(6, 1)) + np.array([0.0, 0.4])
        more = more[(more[:, 1] < searched[0, 0]) | (more[:, 0] > searched[0, 1])]
        whole = as_intervals(np.concatenate([known, more]))
        found = selective_p(z, whole, EVERYWHERE, alternative, seen).p
        assert bounds.low - 1e-12 <= found <= bounds.high + 1e-12


def test_no_randomization_is_the_limit_of_a_little():
    observed = 2.0, as_intervals([[1.0, 3.0], [-2.5, -2.2]]), as_intervals([-4.0, 4.0])
    little = selective_p(*observed, perturbation=Perturbation(1e-6))
    assert little == pytest.approx(selective_p(*observed), abs=1e-5)


@pytest.mark.parametrize("references", [1, 5])
def test_statistic_and_randomization_are_independent_of_the_rest(references):
    """By covariances: of Gaussian variables that is all."""
    shape, gamma = (3, 4, 1), 0.6
    noise = ar1(0.5, 1.0)
    region = np.zeros(shape[:2], bool)
    region[1, :3] = True
    columns = np.stack([noise.apply(unit.reshape(shape)).ravel() for unit in np.eye(12)], axis=1)
    rng = np.random.default_rng(0)
    x, omega = rng.normal(size=(2, *shape))
    refs = rng.normal(size=(references, *shape))
    line = region_line(x, refs, region, noise, omega, gamma)
    np.testing.assert_allclose(line.base + line.direction * line.z_obs, x + omega, atol=1e-12)
    # The base as a linear function of (x, each reference, omega): a column for each unit vector.
    zero = np.zeros((2 + references, *shape))

    def base_of(block, unit):
        parts = zero.copy()
        parts[block] = unit.reshape(shape)
        found = region_line(parts[0], parts[1:-1], region, noise, parts[-1], gamma)
        return np.r_[found.base.ravel(), found.statistic, found.perturbation.shift * found.sd]

    scales = [1.0] * (1 + references) + [gamma**2]
    covariance = np.zeros((14, 14))
    for block, scale in enumerate(scales):
        matrix = np.stack([base_of(block, unit) for unit in np.eye(12)], axis=1)
        covariance += scale * matrix @ columns @ matrix.T
    v = covariance[:12, 12] + covariance[:12, 13]
    np.testing.assert_allclose(v, 0, atol=1e-12)  # what selection sees, beside the base
    assert covariance[12, 13] == pytest.approx(0, abs=1e-12)
    assert covariance[12, 12] == pytest.approx(line.sd**2)
    spread = line.perturbation.spread * line.sd
    assert covariance[13, 13] == pytest.approx(spread**2)


def test_gamma_of_zero_is_the_test_as_published():
    rng = np.random.default_rng(1)
    x, ref = rng.normal(size=(2, *SHAPE))
    region = np.zeros(SHAPE[:2], bool)
    region[:2, :2] = True
    one = region_line(x, ref, region, iid(1.0))
    two = region_line(x, ref, region, iid(1.0), np.zeros(SHAPE), 0.0)
    assert two.z_obs == one.z_obs
    np.testing.assert_array_equal(two.base, one.base)


@pytest.mark.parametrize(
    "localizer",
    [pooled_localizer(3), dense_localizer(4), jumping_localizer(5)],
    ids=["pooled", "dense", "jumping"],
)
def test_engines_agree(localizer):
    rng = np.random.default_rng(2)
    tested = 0
    for number in range(8):
        x, ref = rng.normal(size=(2, *localizer.image_shape))
        how = dict(randomization=0.5, name=number, precision=1e-6)
        found = dal_test(localizer, x, ref, "ar1:0.5:1", **how)
        if found.status is Status.NO_REGION:
            continue
        tested += 1
        exact = dal_test(localizer, x, ref, "ar1:0.5:1", engine="sweep", **how)
        assert found.p_value == pytest.approx(exact.p_value, abs=2e-6)
        assert (found.added, found.added_sd) == (exact.added, exact.added_sd)
        assert [found.ci_low, found.ci_high] == pytest.approx(
            [exact.ci_low, exact.ci_high], abs=0.05
        )
        assert found.ci_low < found.estimate < found.ci_high
        assert np.isfinite([found.ci_low, found.ci_high]).all()
    assert tested >= 3


def test_what_is_added_hangs_on_seed_and_name_alone(tmp_path):
    one = randomization(iid(2.0), SHAPE, 0.5, 1, "a")
    np.testing.assert_array_equal(one, randomization(iid(2.0), SHAPE, 0.5, 1, "a"))
    for other in (("b", 1), ("a", 2)):
        assert (one != randomization(iid(2.0), SHAPE, 0.5, other[1], other[0])).all()
    assert (
        randomization(iid(1.0), SHAPE, 1.0, 0, 3) != randomization(iid(1.0), SHAPE, 1.0, 0, "3")
    ).all()
    rng = np.random.default_rng(8)
    x, ref = rng.normal(size=(2, 12, *SHAPE))
    batch = dal_test_batch(LOCALIZER, x, ref, "iid:1", randomization=0.5)
    alone = dal_test(LOCALIZER, x[7], ref[7], "iid:1", randomization=0.5, name=7)
    np.testing.assert_array_equal(alone.score, batch[7].score)
    options = TestOptions(randomization=0.5)
    items = [Item(f"{k}", None, lambda k=k: Case(x[k], ref[k])) for k in range(12)]
    found = []
    for order, folder in ((items, "a"), (items[::-1], "b")):
        run = run_tests(tmp_path / folder, LOCALIZER, order, "iid:1", options)
        found.append({r["name"]: (r["max_score"], r["region"]) for r in run.finished().values()})
    assert found[0] == found[1]


@pytest.mark.parametrize("references", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_null_p_values_are_uniform(references):
    def brightness(params, draws, x):
        return x[..., 0]

    localizer = from_score(brightness, (1, 3, 1), 1.0)
    noise = parse_noise("ar1:0.5:1", (1, 3, 1))
    rng = np.random.default_rng(11)
    x = np.stack([noise.sample(rng, (1, 3, 1)) for _ in range(500)])
    ref = np.stack([[noise.sample(rng, (1, 3, 1)) for _ in range(references)] for _ in range(500)])
    results = dal_test_batch(localizer, x, ref, noise, randomization=0.5)
    p = np.array([r.p_value for r in results if r.status is Status.OK])
    assert len(p) > 150
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    limit = 3 * math.sqrt(0.05 * 0.95 / len(p))
    assert abs((p <= 0.05).mean() - 0.05) < limit


@pytest.mark.slow
def test_noise_of_another_shape_is_not_exact():
    """White randomization of correlated noise: the counter-example, and its exact counterpart."""
    rng, gamma, count = np.random.default_rng(12), 1.0, 6000
    sigma = np.array([[1.0, 0.9], [0.9, 1.0]])
    root = np.linalg.cholesky(sigma)

    class Pair:
        def apply(self, v):
            return (sigma @ v.ravel()).reshape(v.shape)

        def check(self, shape):
            pass

    region = np.array([[True, False]])
    rates = []
    for factor in (root, np.eye(2)):
        p = []
        while len(p) < count:
            x, ref = (root @ rng.normal(size=2) for _ in range(2))
            omega = gamma * factor @ rng.normal(size=2)
            y = x + omega
            if not y[1] > 1.5:  # the neighbour selects; it carries the noise of the tested pixel
                continue
            line = region_line(
                x.reshape(1, 2, 1),
                ref.reshape(1, 2, 1),
                region,
                Pair(),
                omega.reshape(1, 2, 1),
                gamma,
            )
            end = (1.5 - line.base[0, 1, 0]) / line.direction[0, 1, 0] * line.perturbation.scale
            kept = as_intervals([end, np.inf])
            p.append(
                selective_p(line.standardized, kept, EVERYWHERE, "greater", line.perturbation).p
            )
        rates.append(float((np.array(p) <= 0.05).mean()))
    error = math.sqrt(0.05 * 0.95 / count)
    assert abs(rates[0] - 0.05) < 3 * error
    assert rates[1] > 0.05 + 4 * error


@pytest.mark.parametrize(
    "spread", [pytest.param(s, marks=pytest.mark.slow) for s in (0, 1.5)] + [0.5]
)
def test_intervals_cover_and_estimates_are_as_often_too_high_as_too_low(spread):
    rng, mean, count = np.random.default_rng(13), 1.0, 200
    selected = as_intervals([[-1.2, -0.3], [0.8, 1.1], [1.5, 2.2], [2.6, 3.1]])
    found = []
    while len(found) < count:
        t, e = mean + rng.normal(), spread * rng.normal()
        if ((selected[:, 0] < t + e) & (t + e < selected[:, 1])).any():
            found.append(effect(Observed(t, selected, EVERYWHERE, Perturbation(spread, e)), 0.9))
    estimate, low, high = np.array(found).T
    covered = ((low <= mean) & (mean <= high)).mean()
    assert abs(covered - 0.9) < 3 * math.sqrt(0.9 * 0.1 / count)
    assert abs((estimate > mean).mean() - 0.5) < 3 * math.sqrt(0.25 / count)
    if spread:
        # Kivaranovic and Leeb: no longer than that of one quantile over what randomization leaves.
        assert (high - low).max() < 2 * stats.norm.ppf(0.95) * math.sqrt(1 + 1 / spread**2) + 1e-6


def test_randomization_gives_power_back():
    def brightness(params, draws, x):
        return x[..., 0]

    localizer = from_score(brightness, (3, 3, 1), 1.0)
    rng = np.random.default_rng(14)
    x, ref = rng.normal(size=(2, 100, 3, 3, 1))
    x[:, :2, :2] += 2.0
    rejected = []
    for gamma in (0.0, 1.0):
        results = dal_test_batch(localizer, x, ref, "iid:1", randomization=gamma)
        rejected.append(sum(r.p_value <= 0.05 for r in results))
    # Of the same 100 images: the difference seldom moves by more than 10.
    assert rejected[1] > rejected[0] + 10


def test_recalibration_of_randomized_p_values():
    """Noise that varies 1.5 times as much as the model says: the factor is found."""
    rng, spread, factor = np.random.default_rng(15), 0.5, 1.5
    selected = as_intervals([[-9.0, -1.0], [1.5, 9.0]])
    observed = []
    while len(observed) < 300:
        t, e = factor * rng.normal(), spread * rng.normal()
        if ((selected[:, 0] < t + e) & (t + e < selected[:, 1])).any():
            observed.append(Observed(t, selected, EVERYWHERE, Perturbation(spread, e)))
    law = inflation(observed)
    assert law.factor == pytest.approx(factor, abs=0.2)
    p = np.array([Law(factor).p_value(one).p for one in observed])
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    raw = np.array([Law().p_value(one).p for one in observed])
    assert (raw <= 0.05).mean() > 0.09


@pytest.mark.parametrize("gamma", [-0.1, math.inf, math.nan, "0.5", True, None])
def test_what_is_no_gamma_is_refused(gamma):
    with pytest.raises(InputError, match=r"randomization is .*, expected a finite number"):
        TestOptions(randomization=gamma)


def test_noise_that_cannot_be_sampled_is_refused():
    class Mute:
        def apply(self, v):
            return v

        def check(self, shape):
            pass

    x = np.full(SHAPE, 3.0)
    for engine in ("adaptive", "sweep"):
        with pytest.raises(InputError, match="can be sampled"):
            dal_test(LOCALIZER, x, 0 * x, Mute(), randomization=0.5, engine=engine)
    [result] = dal_test_batch(LOCALIZER, x[None], 0 * x[None], Mute(), randomization=0.5)
    assert result.status is Status.INVALID_INPUT
    assert dal_test(LOCALIZER, x, 0 * x, Mute()).status is not Status.INVALID_INPUT
