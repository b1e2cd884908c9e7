"""Reports of fit: nominal under the true model, clearly off where correlation is left out."""

import numpy as np
import pytest
from noise_cases import table

from dal_jax import InputError
from dal_jax.noise import KINDS, ar1, choose, estimate, fit_report, iid, stationary
from dal_jax.noise._fit import fixed_shapes

SHAPE = (14, 16, 1)
NOISE = stationary(table((28, 32), np.eye(1), 2.0), clip=True)


def draws(noise, count: int, seed: int = 0, shape=SHAPE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([noise.sample(rng, shape) for _ in range(count)])


def test_nominal_under_the_true_model():
    pattern = np.linspace(0, 5, 224).reshape(SHAPE)
    images = draws(NOISE, 300) + pattern
    for report in (
        fit_report(NOISE, images, mean=pattern, kind="truth"),
        fit_report(NOISE, images),  # the mean image of these 300 removed and allowed for
    ):
        # 4 standard errors: one of some 40 numbers exceeds it once in 400 seeds; it is fixed.
        for name in ("residual_mean", "residual_rows", "residual_columns"):
            found = getattr(report, name)
            assert abs(found.value) < 4 * found.standard_error + 1e-12
        variance = report.residual_variance
        assert abs(variance.value - 1) < 4 * variance.standard_error
        # Kurtosis of 67200 independent normal values: standard error sqrt(24 / 67200) = 0.019.
        assert abs(report.residual_kurtosis) < 0.08
        assert report.scale_spread < 0.03
        assert report.exact and report.num_images == report.num_groups == 300
        for region in report.regions:
            assert abs(region.rejection.value - 0.05) < 4 * region.rejection.standard_error
            assert abs(region.variance.value - 1) < 4 * region.variance.standard_error


def test_independence_is_found_wrong_on_correlated_noise():
    images = draws(NOISE, 200)
    zero = np.zeros(SHAPE)
    wrong, right = (fit_report(noise, images, mean=zero) for noise in (iid(1.0), NOISE))
    rates = {region.shape: region.rejection for region in wrong.regions}
    assert abs(rates[1, 1].value - 0.05) < 4 * rates[1, 1].standard_error  # one pixel is right
    for shape in ((2, 2), (3, 3), (5, 5), (8, 8), (1, 8), (7, 1)):
        assert rates[shape].value > 0.15 + 4 * rates[shape].standard_error
    assert wrong.residual_rows.value > 0.6 and wrong.residual_columns.value > 0.6
    difference = right.log_likelihood.value - wrong.log_likelihood.value
    assert difference > 10 * right.log_likelihood.standard_error


def test_tails_and_scales_are_seen():
    rng = np.random.default_rng(1)
    images = rng.standard_t(5, (200, 8, 8, 1)) / np.sqrt(5 / 3)
    assert fit_report(iid(1.0), images).residual_kurtosis > 1
    scales = np.exp(0.3 * rng.standard_normal((400, 1, 1, 1)))
    report = fit_report(iid(1.0), scales * rng.standard_normal((400, 8, 8, 1)))
    assert report.scale_spread == pytest.approx(0.3, abs=0.05)  # 4 times 0.3 / sqrt(800)


def test_errors_are_those_of_the_groups():
    """Six exposures of each of 40 objects, all alike: the errors of 40 images."""
    objects = draws(NOISE, 40)
    images, groups = np.repeat(objects, 6, axis=0), np.repeat(np.arange(40), 6)
    zero = np.zeros(SHAPE)
    one = fit_report(NOISE, objects, mean=zero)
    aware = fit_report(NOISE, images, groups, mean=zero)
    blind = fit_report(NOISE, images, mean=zero)
    assert (aware.num_images, aware.num_groups) == (240, 40)
    for a, b, c in zip(aware.regions, one.regions, blind.regions, strict=True):
        assert a.rejection == pytest.approx(b.rejection, rel=1e-9)
        assert c.rejection.standard_error < 0.5 * b.rejection.standard_error + 1e-9
    # The mean image of 3 objects leaves 2/3 of the variance, however often they were taken.
    few = fit_report(iid(1.0), np.repeat(draws(iid(1.0), 3), 5, axis=0), np.repeat([0, 1, 2], 5))
    assert few.residual_variance.value == pytest.approx(1, abs=0.2)  # 448 values, 3 se


def test_shapes_fit_the_image():
    assert fixed_shapes(32, 32)[-2:] == ((1, 16), (16, 1))
    assert [shape for shape in fixed_shapes(32, 40) if shape[0] == shape[1]][-1] == (12, 12)
    assert fixed_shapes(1, 1) == ((1, 1),)
    assert fixed_shapes(2, 5) == ((1, 1), (2, 2), (1, 2))
    report = fit_report(iid(1.0), draws(iid(1.0), 20, shape=(1, 3, 2)))
    assert np.isnan(report.residual_rows.value)  # there are no vertical neighbours
    assert [region.shape for region in report.regions] == [(1, 1)]


@pytest.mark.slow
def test_choice_finds_the_model_and_reports_all():
    images = draws(ar1(0.7, 2.0), 80, shape=(6, 7, 1))
    choice = choose(images, seed=1)
    assert choice.kind == "ar1" == choice.reports[0].kind
    assert {report.kind for report in choice.reports} == set(KINDS) and choice.refused == ()
    scores = [report.log_likelihood.value for report in choice.reports]
    assert scores == sorted(scores, reverse=True)
    again = choose(images, seed=1)
    assert again.reports == choice.reports and again.kind == choice.kind
    assert choice.reports != choose(images, seed=2).reports
    v = np.ones((6, 7, 1))
    assert np.array_equal(choice.covariance.apply(v), estimate(images, "ar1").apply(v))


def test_objects_are_never_split():
    """With copies in the training folds the flexible model would seem to know held-out images."""
    objects = draws(iid(1.0), 10, shape=(4, 4, 1))
    rng = np.random.default_rng(1)
    images = np.repeat(objects, 8, axis=0) + 0.01 * rng.standard_normal((80, 4, 4, 1))
    kinds, groups = ("iid", "dense"), np.repeat([f"tile {k}" for k in range(10)], 8)
    assert choose(images, kinds).kind == "dense"
    aware = choose(images, kinds, groups)
    assert aware.kind == "iid" and aware.reports[0].num_groups == 10


def test_choice_by_regions_ranks_by_their_variances():
    kinds = ("iid", "diagonal", "stationary")
    choice = choose(draws(NOISE, 60), kinds, by="regions")
    errors = [report.region_error for report in choice.reports]
    assert errors == sorted(errors) and choice.kind == "stationary"
    variances = [region.variance.value for region in choice.reports[0].regions]
    assert errors[0] == pytest.approx(np.sqrt(np.mean(np.log(variances) ** 2)), rel=1e-12)
    # 60 images tell a variance to sqrt(2 / 60) = 0.18; iid is wrong by factors of up to 12.
    assert errors[0] < 0.3 and errors[1] > 1


def test_kinds_that_cannot_be_fitted_are_told():
    images = draws(iid(1.0), 12, shape=(3, 3, 1))
    images[:, 1, 1] = 0.5
    choice = choose(images, ("iid", "dense", "low_rank"))
    assert choice.kind == "iid"
    assert [kind for kind, _ in choice.refused] == ["dense", "low_rank"]
    assert all(reason.startswith("images do not vary") for _, reason in choice.refused)
    with pytest.raises(InputError, match=r"^images allow none of the kinds: dense: images do not"):
        choose(images, ("dense",))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: fit_report(iid(1.0), x[0]), r"^images has shape \(4, 4, 1\), expected"),
        (lambda x: fit_report(iid(1.0), np.nan * x), "^images holds a NaN"),
        (lambda x: fit_report(iid(1.0), x, [1, 2]), "^groups holds 2 labels, expected 6"),
        (lambda x: fit_report(iid(1.0), x, [1] * 6), "^images are of 1 object, expected mean="),
        (
            lambda x: fit_report(iid(1.0), x, mean=np.ones(4)),
            r"^mean has shape \(4,\), expected \(4, ",
        ),
        (lambda x: fit_report(NOISE, np.ones((2, 40, 40, 1))), "^noise is cut from a torus"),
        (lambda x: choose(x, ("iid", "white")), "^kinds holds 'white', expected some of iid"),
        (lambda x: choose(x, ()), "^kinds is empty, expected some of iid"),
        (lambda x: choose(x, folds=1), "^folds: got 1, expected 2 or more"),
        (lambda x: choose(x, groups=[1, 1, 1, 2, 2, 2]), "^images: 2 objects, expected 3 or more"),
        (lambda x: choose(x, by="taste"), "^by: got 'taste', expected 'likelihood' or"),
        (lambda x: choose(x, seed=-1), "^seed: got -1, expected"),
    ],
    ids=range(12),
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(draws(iid(1.0), 6, shape=(4, 4, 1)))


def test_one_group_has_no_standard_error():
    report = fit_report(iid(1.0), draws(iid(1.0), 5), [0] * 5, mean=np.zeros(SHAPE))
    assert np.isnan(report.log_likelihood.standard_error)
    assert np.isfinite(report.log_likelihood.value)
