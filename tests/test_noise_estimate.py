"""Every kind of estimate: parameters known from a simulation, and objects that count once."""

import numpy as np
import pytest
from noise_cases import CHANNELS, positive, table
from scipy.linalg import toeplitz as toeplitz_matrix

from dal_jax import InputError
from dal_jax.noise import (
    KINDS,
    Covariance,
    ar1,
    as_matrix,
    diagonal,
    estimate,
    estimate_dense,
    iid,
    kronecker,
    low_rank,
    scaled,
    stationary,
)

SMALL = (3, 4, 1)
VALUES = 12


def images(count: int, seed: int = 0) -> np.ndarray:
    rng, noise = np.random.default_rng(seed), ar1(0.5, 2.0)
    return 5.0 + np.stack([noise.sample(rng, SMALL) for _ in range(count)])


def matrix_of(noise: Covariance) -> np.ndarray:
    return np.stack([noise.apply(e.reshape(SMALL)).ravel() for e in np.eye(VALUES)], axis=1)


@pytest.mark.parametrize("target", ["diagonal", "identity"])
@pytest.mark.parametrize("count", [2, 3, 12, 13, 50])
def test_positive_definite_even_with_fewer_images_than_pixels(count, target):
    matrix = matrix_of(estimate_dense(images(count), target=target))
    smallest = np.linalg.eigvalsh(matrix)[0]
    # At least the least intensity, 0.001, of the smallest entry of the target remains.
    variances = images(count).reshape(count, -1).var(axis=0, ddof=1)
    goal = variances.min() if target == "diagonal" else variances.mean()
    assert smallest > 0.999e-3 * goal


@pytest.mark.parametrize("target", ["diagonal", "identity"])
def test_given_intensity_is_the_convex_combination(target):
    data = images(30)
    sample = np.cov(data.reshape(30, -1), rowvar=False)
    variances = np.diag(sample)
    goal = np.diag(variances) if target == "diagonal" else variances.mean() * np.eye(VALUES)
    for intensity in (0.0, 0.3, 1.0):
        matrix = matrix_of(estimate_dense(data, intensity, target))
        # 1e-13: sums of 30 products of order 10.
        np.testing.assert_allclose(matrix, (1 - intensity) * sample + intensity * goal, atol=1e-13)


@pytest.mark.parametrize("target", ["diagonal", "identity"])
def test_estimated_intensity_is_the_published_formula(target):
    """Loops over the entries as in Schaefer and Strimmer (2005), table 2 and section 2.3."""
    data = images(9).reshape(9, -1)
    deviations, n = data - data.mean(axis=0), len(data)
    sample = np.cov(data, rowvar=False)
    top = bottom = 0.0
    for i in range(VALUES):
        for j in range(VALUES):
            if i == j and target == "diagonal":
                continue
            w = deviations[:, i] * deviations[:, j]
            top += n / (n - 1) ** 3 * np.sum((w - w.mean()) ** 2)
            bottom += (sample[i, j] - (i == j) * np.diag(sample).mean()) ** 2
    assert 0.01 < top / bottom < 0.99
    expected = matrix_of(estimate_dense(data.reshape(9, *SMALL), top / bottom, target))
    found = matrix_of(estimate_dense(data.reshape(9, *SMALL), target=target))
    np.testing.assert_allclose(found, expected, rtol=1e-12)  # sums in another order


def test_many_images_give_the_covariance():
    truth, count = matrix_of(ar1(0.5, 2.0)), 4000
    matrix = matrix_of(estimate_dense(images(count)))
    standard_error = np.sqrt((truth**2 + 16.0) / count)
    # 5 standard errors: 4 for the largest of 78 entries, 1 for the shrinkage.
    assert np.max(np.abs(matrix - truth) / standard_error) < 5
    few = images(20)
    sample = np.cov(few.reshape(20, -1), rowvar=False)
    assert np.linalg.norm(matrix_of(estimate_dense(few)) - truth) < np.linalg.norm(sample - truth)


def test_bad_arguments_of_dense_estimates_are_refused():
    still = images(5)
    still[:, 1, 2, 0] = 7.0
    spoiled = images(5)
    spoiled[0, 0, 0, 0] = np.nan
    for arguments, message in [
        ((np.zeros(SMALL),), r"^images has shape \(3, 4, 1\), expected"),
        ((images(1),), r"^images has shape \(1, 3, 4, 1\), expected"),
        ((spoiled,), "^images holds a NaN"),
        ((still,), "^images do not vary in value 6"),
        ((np.ones((4, 2, 2, 1)), None, "identity"), "^images do not vary"),
        ((images(5), 1.5), "^shrinkage: got 1.5, expected"),
        ((images(5), np.nan), "^shrinkage: got nan, expected"),
        ((images(5), 0.0), "not positive definite"),
        ((images(5), None, "circle"), "^target: got 'circle', expected"),
    ]:
        with pytest.raises(InputError, match=message):
            estimate_dense(*arguments)
    assert np.linalg.eigvalsh(matrix_of(estimate_dense(still, target="identity")))[0] > 0


SHAPE = (5, 6, 2)


def draws(noise: Covariance, count: int, shape=SHAPE, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 3.0 + np.stack([noise.sample(rng, shape) for _ in range(count)])


def truths() -> dict[str, Covariance]:
    rng = np.random.default_rng(5)
    scale = rng.uniform(0.5, 2.0, SHAPE)
    short = stationary(table((10, 12), CHANNELS, 1.2), clip=True)
    return {
        "iid": iid(1.5),
        "ar1": ar1(0.6, 2.0),
        "diagonal": diagonal(scale),
        "stationary": short,
        "scaled_stationary": scaled(short, scale),
        "kronecker": kronecker(positive(5, 1), positive(6, 2), CHANNELS),
        "low_rank": low_rank(2 * rng.standard_normal((2, *SHAPE)), np.full(SHAPE, 0.5)),
        "dense_stationary": short,
        "dense": kronecker(positive(5, 3), positive(6, 4), CHANNELS),
    }


# Largest distance of the estimate from 1000 images, relative in the spectral norm. 30 samples
# per number of the matrix leave 2 sqrt(60 / 1000) = 0.5 to "dense" and to the low rank; the
# stationary ones are tapered on so small an image, by a tenth at lag 1.
TOLERANCES = {
    "iid": 0.02,
    "ar1": 0.05,
    "diagonal": 0.15,
    "stationary": 0.2,
    "scaled_stationary": 0.3,
    "kronecker": 0.05,
    "low_rank": 0.15,
    "dense": 0.4,
    "dense_stationary": 0.4,
}


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_recovered(kind):
    truth = truths()[kind]
    found = estimate(draws(truth, 1000), kind, rank=2 if kind == "low_rank" else None)
    matrix, expected = as_matrix(found, SHAPE), as_matrix(truth, SHAPE)
    distance = np.linalg.norm(matrix - expected, 2) / np.linalg.norm(expected, 2)
    assert distance < TOLERANCES[kind]
    assert np.linalg.eigvalsh(matrix)[0] > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 1), (4, 3, 2)], ids=str)
def test_positive_definite_from_few_images(kind, count, shape):
    if kind == "low_rank" and np.prod(shape) == 1:
        with pytest.raises(InputError, match=r"^rank: got 1, expected"):
            estimate(draws(iid(1.0), count, shape), kind)
        return
    matrix = as_matrix(estimate(draws(ar1(0.7, 2.0), count, shape), kind), shape)
    # The least shrinkage, 0.001 to each of three Kronecker factors, of the variances.
    assert np.linalg.eigvalsh(matrix)[0] > 1e-10 * np.abs(matrix).max()


def test_too_few_images_for_no_shrinkage():
    for shape in ((2, 8, 4, 1), (2, 4, 8, 1)):
        images = np.random.default_rng(0).standard_normal(shape)
        with pytest.raises(InputError, match=r"^shrinkage: got 0\.0, expected above 0"):
            estimate(images, "kronecker", shrinkage=0.0)


def test_simple_kinds_are_their_formulas():
    images = draws(ar1(0.6, 2.0), 40)
    flat = (images - images.mean(axis=0)).reshape(40, -1)
    variances = np.sum(flat**2, axis=0) / 39
    variance = as_matrix(estimate(images, "iid"), SHAPE)[0, 0]
    assert variance == pytest.approx(variances.mean(), rel=1e-12)
    kept = as_matrix(estimate(images, "diagonal", shrinkage=0.0), SHAPE)
    np.testing.assert_allclose(np.diag(kept), variances, rtol=1e-12)
    mean = np.broadcast_to(variances.reshape(SHAPE).mean(axis=(0, 1)), SHAPE)
    shrunk = as_matrix(estimate(images, "diagonal", shrinkage=1.0), SHAPE)
    np.testing.assert_allclose(np.diag(shrunk), mean.ravel(), rtol=1e-12)
    found = as_matrix(estimate(images, "low_rank", rank=5), SHAPE)
    np.testing.assert_allclose(np.diag(found), variances, rtol=1e-10)  # pixels keep theirs
    matrices = [as_matrix(estimate(images, kind), SHAPE) for kind in ("stationary", "kronecker")]
    by_channel = np.diag(matrices[0]).reshape(SHAPE)
    np.testing.assert_allclose(by_channel, mean, rtol=1e-12)


def test_stationary_estimate_is_the_tapered_autocovariance():
    """Sums over pairs of pixels, one lag after the other, where no clipping is needed."""
    images = draws(iid(1.0), 300, (3, 4, 1))
    deviations = images - images.mean(axis=0)
    found = as_matrix(estimate(images, "stationary", shrinkage=0.0), (3, 4, 1))
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 2), (2, 3)):
        products = deviations[:, dy:, dx:] * deviations[:, : 3 - dy, : 4 - dx]
        taper = (1 + np.cos(np.pi * dy / 3)) * (1 + np.cos(np.pi * dx / 4)) / 4
        expected = taper * products.mean(axis=(1, 2, 3)).sum() / 299
        assert found[0, 4 * dy + dx] == pytest.approx(expected, rel=1e-10)


def test_means():
    noise = iid(1.0)
    pattern = np.linspace(-3, 3, 60).reshape(SHAPE)
    images = draws(noise, 400) + pattern
    removed = {mean: estimate(images, "iid", mean=mean) for mean in ("image", "pixel", "none")}
    levels = {mean: as_matrix(noise, SHAPE)[0, 0] for mean, noise in removed.items()}
    within = pattern.var(axis=(0, 1)).mean()
    # 24000 values: standard error 0.009 of a variance of 1.
    assert levels["image"] == pytest.approx(1, abs=0.04)
    assert levels["pixel"] == pytest.approx(1 + within, rel=0.04)
    assert levels["none"] == pytest.approx(np.mean(images**2), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_an_image_change_nothing(kind):
    """Exposures that are copies, 1 to 4 of each object, give the estimate of the objects."""
    objects = draws(ar1(0.5, 1.0), 12)
    repeats = np.arange(12) % 4 + 1
    names = np.repeat([f"tile {k}" for k in range(12)], repeats)
    shuffle = np.random.default_rng(0).permutation(len(names))
    copies = np.repeat(objects, repeats, axis=0)[shuffle]
    one = as_matrix(estimate(objects, kind), SHAPE)
    other = as_matrix(estimate(copies, kind, groups=names[shuffle]), SHAPE)
    # Sums in another order; the Kronecker alternation ends at 1e-8.
    np.testing.assert_allclose(other, one, atol=1e-6 * np.abs(one).max())


def test_exposures_of_few_objects_do_not_pass_for_many_images():
    """30 nearly equal exposures of 6 objects: shrunk like 6 images, not like 180."""
    rng = np.random.default_rng(3)
    objects = draws(ar1(0.5, 1.0), 6)
    images = np.repeat(objects, 30, axis=0) + 0.05 * rng.standard_normal((180, *SHAPE))
    groups = np.repeat(np.arange(6), 30)
    truth = as_matrix(ar1(0.5, 1.0), SHAPE)

    def error(noise: Covariance) -> float:
        return float(np.linalg.norm(as_matrix(noise, SHAPE) - truth))

    aware = estimate_dense(images, groups=groups)
    few = estimate_dense(objects)
    assert error(aware) == pytest.approx(error(few), rel=0.05)
    assert error(estimate_dense(images)) > 1.3 * error(aware)
    # The variance, too: 6 objects with the mean removed leave 5 / 6 of it.
    ratio = as_matrix(estimate(images, "iid", groups=groups), SHAPE)[0, 0]
    ratio /= as_matrix(estimate(images, "iid"), SHAPE)[0, 0]
    assert ratio == pytest.approx(6 / 5 * 179 / 180, rel=1e-9)


def test_a_near_target_spares_images():
    """Nearly stationary noise, 40 images: the stationary target beats both of its ends."""
    scale = np.random.default_rng(6).uniform(0.7, 1.4, SHAPE)
    noise = scaled(stationary(table((10, 12), CHANNELS, 1.5), clip=True), scale)
    images, truth = draws(noise, 40), as_matrix(noise, SHAPE)
    error = {
        kind: np.linalg.norm(as_matrix(estimate(images, kind), SHAPE) - truth)
        for kind in ("dense", "stationary", "dense_stationary")
    }
    assert error["dense_stationary"] < min(error["dense"], error["stationary"])


def test_kronecker_of_separable_noise_is_separable():
    noise = kronecker(toeplitz_matrix(0.8 ** np.arange(5)), np.eye(6), CHANNELS)
    matrix = as_matrix(estimate(draws(noise, 500), "kronecker"), SHAPE)
    first = matrix.reshape(*SHAPE, *SHAPE)[:, 0, 0, :, 0, 0]
    # 500 images of 12 values a row: the correlation has the standard error 0.36 / 77 = 0.005.
    assert first[0, 1] / first[0, 0] == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("images", "kind", "options", "message"),
    [
        (np.ones((4, *SHAPE)), "white", {}, "^kind: got 'white', expected one of iid, "),
        (np.ones(SHAPE), "iid", {}, r"^images has shape \(5, 6, 2\), expected"),
        (np.ones((1, *SHAPE)), "iid", {}, r"^images has shape \(1, 5, 6, 2\), expected"),
        (np.full((4, *SHAPE), np.inf), "iid", {}, "^images holds a NaN"),
        (np.ones((4, *SHAPE)), "iid", {"groups": [1, 2, 3]}, "^groups holds 3 labels, expected 4"),
        (np.ones((4, *SHAPE)), "iid", {"groups": [1] * 4}, "^groups holds 1 group, expected"),
        (np.ones((4, *SHAPE)), "iid", {"groups": [{}] * 4}, "^groups holds a dict, expected"),
        (np.ones((4, *SHAPE)), "iid", {"mean": "median"}, "^mean: got 'median', expected one of"),
        (np.ones((4, *SHAPE)), "iid", {"shrinkage": 0.5}, "^shrinkage: got 0.5, expected None"),
        (
            np.ones((4, *SHAPE)),
            "dense",
            {"shrinkage": 2.0},
            "^shrinkage: got 2.0, expected None or",
        ),
        (
            np.ones((4, *SHAPE)),
            "iid",
            {"rank": 2},
            "^rank: got 2, expected None for the kind 'iid'",
        ),
        (
            np.eye(60).reshape(60, *SHAPE)[:9],
            "low_rank",
            {"rank": 9},
            "^rank: got 9, expected 1",
        ),
        (np.eye(60).reshape(60, *SHAPE), "low_rank", {"rank": 0}, "^rank: got 0, expected"),
    ],
    ids=range(13),
)
def test_bad_arguments_are_refused(images, kind, options, message):
    with pytest.raises(InputError, match=message):
        estimate(images, kind, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_do_not_vary_are_refused(kind):
    with pytest.raises(InputError, match=r"^images do not vary|variance holds 0\.0"):
        estimate(np.full((4, *SHAPE), 0.1), kind)
