"""Randomized selection from the image to the p-value: the line, the test, batches, runs."""

import math
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from search_cases import pooled_localizer

from dal_jax import (
    ImageToTest,
    InputError,
    QueuedImage,
    Status,
    TestOptions,
    dal_test,
    dal_test_batch,
    from_score,
    randomization,
    run_tests,
)
from dal_jax.inference import (
    Perturbation,
    as_intervals,
    contains,
    intersect,
    naive_p,
    on_line,
    region_line,
    selective_p,
)
from dal_jax.noise import ar1, dense, iid

LINE = as_intervals([-np.inf, np.inf])
LOCALIZER = pooled_localizer()
SHAPE = LOCALIZER.image_shape
NOISE = ar1(0.5, 1.0)
SWEEP, SCAN, ADAPTIVE = ({"engine": name} for name in ("sweep", "scan", "adaptive"))
X, X_REF = np.random.default_rng(0).normal(size=(2, *SHAPE))


def drawn(seed, shape=SHAPE, count=1, noise=NOISE):
    """An image, references and what is added, all of one covariance."""
    rng = np.random.default_rng(seed)
    x, omega, *references = (noise.sample(rng, shape) for _ in range(2 + count))
    return x, np.array(references), omega


def same(one, two):
    """Two results agree to the bit in all but the time taken."""
    for name, a, b in zip(one._fields, one, two, strict=True):
        if name != "seconds":
            np.testing.assert_array_equal(a, b, err_msg=name)


# The line.


@pytest.mark.parametrize("count", [1, 5])
def test_the_line_goes_through_what_the_localizer_saw(count):
    x, references, omega = drawn(1, (4, 3, 2), count)
    region = np.random.default_rng(2).random((4, 3)) < 0.4
    line = region_line(x, references, region, NOISE, 0.5 * omega, 0.5)
    # 1e-13: a few roundings of numbers of about 1.
    np.testing.assert_allclose(line.base + line.direction * line.z_obs, x + 0.5 * omega, atol=1e-13)
    plain = region_line(x, references, region, NOISE)
    assert (line.statistic, line.sd) == (plain.statistic, plain.sd)
    share = 1 + 1 / count
    added = 0.5 * omega[region].mean() * share
    assert line.perturbation.shift * line.sd == pytest.approx(added, rel=1e-13)
    assert line.perturbation.spread == pytest.approx(0.5 * math.sqrt(share), rel=1e-14)
    assert line.unit == pytest.approx(line.sd * math.sqrt(1 + 0.25 * share), rel=1e-14)
    assert line.z_obs == pytest.approx((line.statistic + added) / line.unit, rel=1e-13)
    observed = on_line(line.z_obs, LINE, LINE, line.perturbation)
    assert observed.z_obs == pytest.approx(line.standardized, rel=1e-13)


def test_without_randomization_it_is_the_old_line():
    x, references, _ = drawn(3, count=5)
    region = np.eye(4, dtype=bool)
    line = region_line(x, references, region, NOISE, None, 0.0)
    nu = np.broadcast_to(region[..., None] / 4, x.shape)
    covariance = NOISE.apply(nu)
    sd = float(np.sqrt(float(np.sum(nu * covariance)) * (1 + 1 / 5)))
    statistic = float(np.sum(nu * (x - references.mean(axis=0))))
    assert (line.statistic, line.sd, line.z_obs) == (statistic, sd, statistic / sd)
    np.testing.assert_array_equal(line.direction, covariance / sd)
    np.testing.assert_array_equal(line.base, x - covariance / sd * (statistic / sd))
    assert line.perturbation == Perturbation() == (0.0, 0.0)
    assert line.unit == line.sd


def covariances(count, gamma, white=False):
    """Covariance matrix of (base, T, V, added) under correlated noise, from the line of units."""
    shape, region = (3, 2, 2), np.array([[True, False], [True, True], [False, False]])
    matrix = np.random.default_rng(0).normal(size=(12, 15)) / 4
    matrix = matrix @ matrix.T
    parts = np.eye(36).reshape(36, 3, *shape)
    rows = []
    for x, reference, omega in parts:
        line = region_line(x, reference[None].repeat(count, 0), region, dense(matrix), omega, gamma)
        added = line.perturbation.shift * line.sd
        rows.append([*line.base.ravel(), line.statistic, line.z_obs * line.unit, added])
    blocks = np.zeros((36, 36))
    other = np.eye(12) if white else matrix
    for k, block in enumerate((matrix, matrix / count, gamma**2 * other)):
        blocks[12 * k : 12 * k + 12, 12 * k : 12 * k + 12] = block
    return np.transpose(rows) @ blocks @ np.array(rows), line


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("gamma", [0.25, 1.0])
def test_statistic_added_and_the_rest_are_independent(count, gamma):
    found, line = covariances(count, gamma)
    # 1e-13: a few dozen products of about 1 are summed.
    np.testing.assert_allclose(found[:12, 12:], 0, atol=1e-13)  # base with T, V and what was added
    assert found[12, 14] == pytest.approx(0, abs=1e-13)
    sd_added = line.perturbation.spread * line.sd
    variances = [line.sd**2, line.unit**2, sd_added**2]
    np.testing.assert_allclose(np.diag(found)[12:], variances, rtol=1e-12)
    assert found[12, 13] == pytest.approx(line.sd**2, rel=1e-12)
    white, line = covariances(count, gamma, white=True)
    assert np.abs(white[:12, 13]).max() > 0.01 * gamma**2  # the check can see a mistake
    assert white[13, 13] != pytest.approx(line.unit**2, rel=0.01)


@pytest.mark.parametrize("omega", [np.zeros((4, 4)), np.zeros((4, 4, 2)), np.zeros(())])
def test_what_was_added_has_the_shape_of_the_image(omega):
    with pytest.raises(InputError, match=r"^omega"):
        region_line(X, X_REF, np.eye(4, dtype=bool), NOISE, omega, 0.5)


def test_what_was_added_and_its_size_come_together():
    region = np.eye(4, dtype=bool)
    for omega, gamma in ((X, 0.0), (None, 0.5), (X, -0.5), (X, math.nan)):
        with pytest.raises(InputError, match=r"gamma|omega"):
            region_line(X, X_REF, region, NOISE, omega, gamma)


# The test of one image.


def test_gamma_zero_is_the_published_test():
    # What this image gave before there was randomization (1fdb56a).
    known = {"sweep": 0.3840631935291659, "adaptive": 0.3840631935291659}
    ends = [[-0.8255208685673123, -0.1852004179422857]]
    for engine, p in known.items():
        plain = dal_test(LOCALIZER, X, X_REF, "ar1:0.5:1", engine=engine, randomization=0.0)
        assert plain.p_value == pytest.approx(p, abs=1e-12)
        assert plain.statistic == pytest.approx(-0.5241337778713475, abs=1e-14)
        np.testing.assert_allclose(plain.truncation, ends, rtol=0, atol=1e-12)
        for gamma in (0, 0.0, np.float64(0)):
            other = dal_test(
                LOCALIZER, X, X_REF, "ar1:0.5:1", name="b", engine=engine, randomization=gamma
            )
            same(plain, other)
        assert plain.randomization == plain.added == plain.added_sd == 0


def randomized(way=None, gamma=0.5, **more):
    told = {**(way or SWEEP), "randomization": gamma, **more}
    return dal_test(LOCALIZER, X, X_REF, "ar1:0.5:1", **told)


def test_a_result_tells_what_was_added():
    for way in (SWEEP, ADAPTIVE):
        result = randomized(way, seed=3, name="a")
        omega = randomization(NOISE, SHAPE, 0.5, 3, "a")
        assert result.status is Status.OK
        assert result.randomization == 0.5
        np.testing.assert_array_equal(result.region, LOCALIZER.region(X + omega))
        np.testing.assert_allclose(result.score, LOCALIZER.score(X + omega), atol=1e-14)
        assert result.added == pytest.approx(2 * omega[result.region].mean(), abs=1e-14)
        assert result.added_sd == pytest.approx(0.5 * math.sqrt(2) * result.sd, rel=1e-14)
        mean = X[result.region].mean() - X_REF[result.region].mean()
        assert result.statistic == pytest.approx(mean, abs=1e-14)
        assert contains(result.truncation, result.statistic + result.added)
        assert result.naive_p == naive_p(result.statistic / result.sd)


def test_the_p_value_of_a_result_is_that_of_its_sets():
    for alternative in ("two-sided", "equal-tailed", "greater", "less"):
        for way in (SWEEP, ADAPTIVE):
            r = randomized(way, alternative=alternative)
            seen = Perturbation(r.added_sd / r.sd, r.added / r.sd)
            sets = r.truncation / r.sd, r.searched / r.sd
            bounds = selective_p(r.statistic / r.sd, *sets, alternative, seen)
            found = (r.p_value, r.p_low, r.p_high)
            # Ends were multiplied and divided by sd; the adaptive p counts their last 1e-6, too.
            np.testing.assert_allclose(found, bounds, rtol=1e-9 if way is SWEEP else 1e-5)
            assert r.p_low <= r.p_value <= r.p_high <= r.p_low + 1e-3
            if way is SWEEP:
                sure = selective_p(r.statistic / r.sd, r.window / r.sd, LINE, alternative, seen)
                assert r.over_conditioned_p == pytest.approx(sure.p, rel=1e-9)


def test_the_truncation_is_where_the_region_of_the_noisier_image_stays():
    result = randomized(precision=0)
    y = X + randomization(NOISE, SHAPE, 0.5, 0, 0)
    nu = result.region[..., None] / result.region.sum()
    along = NOISE.apply(nu) / result.sd**2
    values = np.linspace(-6, 6, 400) * math.hypot(result.sd, result.added_sd)
    moves = values - result.statistic - result.added
    moved = np.array([LOCALIZER.region(y + along * t) for t in moves])
    stays = (moved == result.region).all((1, 2))
    assert 5 < stays.sum() < 395
    np.testing.assert_array_equal(stays, contains(result.truncation, values))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_engines_agree(dtype):
    sweep, scan = (randomized(way, precision=0) for way in (SWEEP, SCAN))
    np.testing.assert_allclose(scan.truncation, sweep.truncation, atol=1e-10)
    assert scan.p_value == pytest.approx(sweep.p_value, abs=1e-10)
    found = randomized(ADAPTIVE, precision=1e-6, dtype=dtype)
    ends = intersect(sweep.truncation, found.searched[[0, -1], [0, -1]][None])
    np.testing.assert_allclose(found.truncation, ends, atol=1e-6)
    assert found.p_value == pytest.approx(sweep.p_value, abs=1e-6)
    assert found.p_low - 1e-9 <= sweep.p_value <= found.p_high + 1e-9


def test_seed_and_name_decide_what_is_added():
    def omega(seed, name):
        return randomization(NOISE, SHAPE, 0.5, seed, name)

    np.testing.assert_array_equal(omega(0, "a"), omega(0, "a"))
    np.testing.assert_array_equal(2 * omega(0, "a"), randomization(NOISE, SHAPE, 1.0, 0, "a"))
    told = [(0, "a"), (1, "a"), (0, "b"), (0, 0), (0, "0"), (0, 1), (1, 0), (0, ""), (2**40, "a")]
    drawn = np.array([omega(*one).ravel() for one in told])
    gaps = np.abs(drawn[:, None] - drawn).max(axis=2)
    assert gaps[~np.eye(len(told), dtype=bool)].min() > 0.05
    same(randomized(seed=2, name="a"), randomized(seed=2, name="a"))
    added = {randomized(seed=s, name=n).added for s, n in ((2, "a"), (2, "b"), (3, "a"))}
    assert len(added) == 3
    # Not the pixels.
    other = dal_test(LOCALIZER, X + 0.5, X_REF, "ar1:0.5:1", randomization=0.5)
    assert other.score.shape == SHAPE[:2]
    y = X + 0.5 + omega(0, 0)
    np.testing.assert_allclose(other.score, LOCALIZER.score(y), atol=1e-14)


def test_a_name_is_the_same_in_other_types():
    one = randomization(NOISE, SHAPE, 0.5, 0, 3)
    np.testing.assert_array_equal(randomization(NOISE, SHAPE, 0.5, 0, np.int64(3)), one)  # type: ignore
    one = randomization(NOISE, SHAPE, 0.5, 0, "a.png")
    np.testing.assert_array_equal(randomization(NOISE, SHAPE, 0.5, 0, np.str_("a.png")), one)


def test_a_name_that_is_no_unicode_is_a_name():
    # A file's name in another encoding, as Python gives it.
    for name in (b"\xff.png".decode("utf-8", "surrogateescape"), "\ud800"):
        assert np.isfinite(randomization(NOISE, SHAPE, 0.5, 0, name)).all()


def test_what_is_added_has_the_covariance_of_the_noise():
    rows = np.array([randomization(NOISE, (2, 3, 1), 0.5, 0, k).ravel() for k in range(3000)])
    lags = np.abs(np.arange(6)[:, None] - np.arange(6))
    # Five standard errors of a covariance of 3,000 pairs.
    np.testing.assert_allclose(np.cov(rows.T), 0.25 * 0.5**lags, atol=5 * 0.25 * 2**0.5 / 3000**0.5)
    assert np.abs(rows.mean(axis=0)).max() < 5 * 0.5 / 3000**0.5


# Many images.


@pytest.mark.parametrize("way", [SWEEP, ADAPTIVE])
def test_image_k_of_a_batch_is_the_image_of_that_name(way):
    x, refs = np.random.default_rng(5).normal(size=(2, 3, *SHAPE))
    x[2], refs[2] = x[1], refs[1]
    found = dal_test_batch(LOCALIZER, x, refs, NOISE, randomization=0.5, **way)
    for k, result in enumerate(found):
        one = dal_test(LOCALIZER, x[k], refs[k], NOISE, name=k, randomization=0.5, **way)
        # Batches add in another order than one image alone.
        assert result.p_value == pytest.approx(one.p_value, abs=1e-9, nan_ok=True)
        assert result.added == pytest.approx(one.added, abs=1e-14, nan_ok=True)
        np.testing.assert_allclose(result.score, one.score, atol=1e-14)
    assert np.abs(found[1].score - found[2].score).max() > 0.01


@pytest.mark.parametrize("way", [SWEEP, ADAPTIVE])
def test_a_run_randomizes_by_the_names_of_its_items(way, tmp_path):
    images = {f"{k}.png": drawn(k)[:2] for k in range(4)}
    items = [
        QueuedImage(n, None, partial(ImageToTest, x, refs, None)) for n, (x, refs) in images.items()
    ]
    options = TestOptions(randomization=0.5, **way)
    runs = [
        run_tests(tmp_path / name, LOCALIZER, listed, NOISE, options)
        for name, listed in (("forth", items), ("back", items[:1:-1]))
    ]
    for records in runs:
        for record in records:
            x, refs = images[record["name"]]
            told = {"name": record["name"], "randomization": 0.5, **way}
            one = dal_test(LOCALIZER, x, refs, NOISE, **told)
            assert record["status"] == one.status.value
            assert record["added"] == pytest.approx(one.added, abs=1e-14, nan_ok=True)
            assert record["p_value"] == pytest.approx(one.p_value, abs=1e-9, nan_ok=True)
            assert record["randomization"] == 0.5
    assert [len(records) for records in runs] == [4, 2]


def test_a_run_of_another_randomization_is_another_run(tmp_path):
    items = [QueuedImage("a", None, partial(ImageToTest, X, X_REF))]
    run_tests(tmp_path, LOCALIZER, items, NOISE, TestOptions(randomization=0.5))
    with pytest.raises(InputError):
        run_tests(tmp_path, LOCALIZER, items, NOISE, TestOptions(randomization=0.25))


@pytest.mark.parametrize("gamma", [1, np.float32(0.5), np.int64(1)])
def test_a_randomization_of_another_type_can_be_filed(gamma, tmp_path):
    items = [QueuedImage("a", None, partial(ImageToTest, X, X_REF))]
    options = TestOptions(randomization=gamma)
    [record] = run_tests(tmp_path, LOCALIZER, items, NOISE, options)
    assert record["randomization"] == float(gamma)


# Validity and power.


def brightness(params, draws, x):
    return jnp.abs(x).sum(-1) * params


def value(params, draws, x):
    return x[..., 0]


def bright_p(x, references, omega, noise, gamma, threshold, whole=False, side="two-sided"):
    """The p-value where pixels above a threshold are flagged, or all where their mean is."""
    y = x + omega
    flagged = np.full(y.shape[:2], y.mean() > threshold) if whole else y[..., 0] > threshold
    if not flagged.any():
        return math.nan
    line = region_line(x, references, flagged, noise, omega if gamma else None, gamma)
    base, slope = line.base[..., 0], line.direction[..., 0]
    if whole:
        base, slope = base.mean(keepdims=True), slope.mean(keepdims=True)
    root, above = (threshold - base) / slope, np.all(flagged) if whole else flagged
    lower = above == (slope > 0)
    ends = [np.where(lower, root, -np.inf).max(), np.where(lower, np.inf, root).min()]
    seen = on_line(line.z_obs, as_intervals(ends), LINE, line.perturbation)
    return selective_p(seen.z_obs, seen.truncation, LINE, side, seen.perturbation).p


def simulated(count, factor, gamma, threshold, other=None, signal=0.0, references=1, **more):
    """P-values of images with something flagged; `factor` and `other`: roots of covariances."""
    rng = np.random.default_rng(8)
    n, p = len(factor), []
    noise = dense(factor @ factor.T)
    other = factor if other is None else other
    for _ in range(count):
        x, omega, *refs = rng.normal(size=(2 + references, n))
        x, omega = factor @ x + signal, gamma * (other @ omega)
        images = [v.reshape(1, n, 1) for v in (x, *(factor @ ref for ref in refs), omega)]
        arguments = images[0], np.array(images[1:-1]), images[-1]
        p.append(bright_p(*arguments, noise, gamma, threshold, **more))
    p = np.array(p)
    return p[~np.isnan(p)]


def check_uniform(p):
    """Kolmogorov-Smirnov, and rejection at 0.05 within three standard errors; the seed is fixed."""
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert abs(np.mean(p <= 0.05) - 0.05) < 3 * math.sqrt(0.05 * 0.95 / len(p))


AR1 = np.linalg.cholesky(0.5 ** np.abs(np.arange(4)[:, None] - np.arange(4)))


@pytest.mark.parametrize("references", [1, 5])
@pytest.mark.parametrize("gamma", [0.5, pytest.param(2.0, marks=pytest.mark.slow)])
def test_null_p_values_are_uniform(references, gamma):
    check_uniform(simulated(400, AR1, gamma, 0.7, references=references))


PAIR = np.linalg.cholesky([[1.0, -0.9], [-0.9, 1.0]])


def test_white_omega_is_not_valid_with_correlated_noise():
    told: dict[str, Any] = {"whole": True, "threshold": 0.3, "side": "less"}
    check_uniform(simulated(800, PAIR, 1.0, **told))
    p = simulated(800, PAIR, 1.0, other=np.eye(2), **told)
    error = math.sqrt(0.05 * 0.95 / len(p))
    assert np.mean(p <= 0.05) > 0.05 + 10 * error


def test_randomization_gives_power_back():
    lags = np.abs(np.arange(16)[:, None] - np.arange(16))
    signal = np.repeat([2.0, 0.0], 8)
    root = np.linalg.cholesky(0.5**lags)
    plain, found = (simulated(150, root, gamma, 2.0, signal=signal) for gamma in (0.0, 0.5))
    assert np.mean(found <= 0.05) > 2 * np.mean(plain <= 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 5])
def test_null_p_values_of_whole_tests_are_uniform(count):
    localizer = from_score(brightness, (2, 3, 1), 1.5, np.ones(()))
    rng = np.random.default_rng(count)
    x = np.array([NOISE.sample(rng, (2, 3, 1)) for _ in range(1000)])
    refs = np.array([[NOISE.sample(rng, (2, 3, 1)) for _ in range(count)] for _ in range(1000)])
    told: dict[str, Any] = {"randomization": 0.5, "precision": 1e-2, "seed": 1}
    found = dal_test_batch(localizer, x, refs, "ar1:0.5:1", **told)
    p = np.array([r.p_value for r in found])
    check_uniform(p[~np.isnan(p)])
    assert {r.status for r in found} <= {Status.OK, Status.NO_REGION}
    naive = np.array([r.naive_p for r in found if r.status is Status.OK])
    assert np.mean(naive <= 0.05) > 0.1  # selection is there to be seen


@pytest.mark.slow
def test_randomization_gives_power_back_to_whole_tests():
    localizer = from_score(value, (4, 4, 1), 2.0)
    cases = [drawn(k) for k in range(80)]
    x, refs = (np.stack([case[k] for case in cases]) for k in (0, 1))
    x[:, :2] += 3
    plain, found = (
        dal_test_batch(localizer, x, refs, NOISE, precision=1e-2, randomization=gamma)
        for gamma in (0.0, 0.5)
    )
    plain, found = (np.mean([r.p_value <= 0.05 for r in each]) for each in (plain, found))
    assert found > plain + 0.25


# What is refused, and extremes.


@pytest.mark.parametrize(
    "gamma", [-0.1, 1e-9, 1e15, math.inf, math.nan, "x", True, None, 1j, np.complex128(1)]
)
def test_a_randomization_that_is_no_number_is_refused(gamma):
    with pytest.raises(InputError, match=r"^randomization: got ") as told:
        dal_test(LOCALIZER, X, X_REF, NOISE, randomization=gamma)
    assert "\n" not in str(told.value)


class Unsampled:
    """A covariance that can only be applied."""

    def apply(self, v):
        return 1.0 * v

    def check(self, shape):
        pass


@pytest.mark.parametrize("way", [SWEEP, ADAPTIVE])
def test_noise_that_cannot_be_sampled_is_refused_where_it_is_needed(way):
    found = dal_test(LOCALIZER, X, X_REF, Unsampled(), randomization=0.0, **way)
    assert found.status is Status.OK
    with pytest.raises(InputError, match=r"^noise is of type Unsampled without `sample`"):
        dal_test(LOCALIZER, X, X_REF, Unsampled(), **way)


@pytest.mark.parametrize("way", [SWEEP, ADAPTIVE])
def test_one_image_whose_noise_cannot_be_sampled_spoils_no_batch(way):
    x, refs = np.stack([X] * 3), np.stack([X_REF] * 3)
    noises = [None, Unsampled(), None]
    found = dal_test_batch(LOCALIZER, x, refs, iid(1.0), noises=noises, randomization=0.5, **way)
    assert [r.status for r in found] == [Status.OK, Status.INVALID_INPUT, Status.OK]
    assert "without `sample`" in found[1].message


@pytest.mark.parametrize("way", [SWEEP, ADAPTIVE])
def test_noise_of_all_images_that_cannot_be_sampled_is_refused_as_a_whole(way):
    with pytest.raises(InputError, match=r"^noise is of type Unsampled without `sample`"):
        dal_test_batch(LOCALIZER, X[None], X_REF[None], Unsampled(), randomization=0.5, **way)


@pytest.mark.parametrize("gamma", [1e-3])
def test_hardly_any_randomization_is_nearly_none(gamma):
    plain = dal_test(LOCALIZER, X, X_REF, NOISE, randomization=0.0, **SWEEP)
    found = randomized(gamma=gamma)
    assert found.status is Status.OK
    assert found.p_value == pytest.approx(plain.p_value, abs=0.05)


def everything(params, draws, x):
    return 1.0 + 0 * x[..., 0]


ALWAYS = from_score(everything, SHAPE, 0.5)


@pytest.mark.parametrize("gamma", [1e3, 1e15, 1e300])
def test_huge_randomization_is_the_naive_test_or_refused(gamma):
    """Or else the statistic drowns in the rounding of what was added."""
    try:
        result = dal_test(ALWAYS, X, X_REF, NOISE, randomization=gamma, **SWEEP)
    except InputError as error:
        assert str(error).startswith("randomization: got ")
    else:
        assert result.p_value == pytest.approx(result.naive_p, rel=1e-3)
