"""Estimated covariance matrices: positive definite from few images, right from many."""

import numpy as np
import pytest

from dal_jax import InputError
from dal_jax.noise import Covariance, ar1, estimate_dense

SHAPE = (3, 4, 1)
SIZE = 12


def images(count: int, seed: int = 0) -> np.ndarray:
    rng, noise = np.random.default_rng(seed), ar1(0.5, 2.0)
    return 5.0 + np.stack([noise.sample(rng, SHAPE) for _ in range(count)])


def as_matrix(noise: Covariance) -> np.ndarray:
    return np.stack([noise.apply(e.reshape(SHAPE)).ravel() for e in np.eye(SIZE)], axis=1)


@pytest.mark.parametrize("target", ["diagonal", "identity"])
@pytest.mark.parametrize("count", [2, 3, 12, 13, 50])
def test_positive_definite_even_with_fewer_images_than_pixels(count, target):
    matrix = as_matrix(estimate_dense(images(count), target=target))
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
    goal = np.diag(variances) if target == "diagonal" else variances.mean() * np.eye(SIZE)
    for intensity in (0.0, 0.3, 1.0):
        matrix = as_matrix(estimate_dense(data, intensity, target))
        # 1e-13: sums of 30 products of order 10.
        np.testing.assert_allclose(matrix, (1 - intensity) * sample + intensity * goal, atol=1e-13)


@pytest.mark.parametrize("target", ["diagonal", "identity"])
def test_estimated_intensity_is_the_published_formula(target):
    """Loops over the entries as in Schaefer and Strimmer (2005), table 2 and section 2.3."""
    data = images(9).reshape(9, -1)
    deviations, n = data - data.mean(axis=0), len(data)
    sample = np.cov(data, rowvar=False)
    top = bottom = 0.0
    for i in range(SIZE):
        for j in range(SIZE):
            if i == j and target == "diagonal":
                continue
            w = deviations[:, i] * deviations[:, j]
            top += n / (n - 1) ** 3 * np.sum((w - w.mean()) ** 2)
            bottom += (sample[i, j] - (i == j) * np.diag(sample).mean()) ** 2
    assert 0.01 < top / bottom < 0.99
    expected = as_matrix(estimate_dense(data.reshape(9, *SHAPE), top / bottom, target))
    found = as_matrix(estimate_dense(data.reshape(9, *SHAPE), target=target))
    np.testing.assert_allclose(found, expected, rtol=1e-12)  # sums in another order


def test_many_images_give_the_covariance():
    truth, count = as_matrix(ar1(0.5, 2.0)), 4000
    matrix = as_matrix(estimate_dense(images(count)))
    standard_error = np.sqrt((truth**2 + 16.0) / count)
    # 5 standard errors: 4 for the largest of 78 entries, 1 for the shrinkage.
    assert np.max(np.abs(matrix - truth) / standard_error) < 5
    few = images(20)
    sample = np.cov(few.reshape(20, -1), rowvar=False)
    assert np.linalg.norm(as_matrix(estimate_dense(few)) - truth) < np.linalg.norm(sample - truth)


def test_bad_arguments_are_refused():
    still = images(5)
    still[:, 1, 2, 0] = 7.0
    spoiled = images(5)
    spoiled[0, 0, 0, 0] = np.nan
    for arguments, message in [
        ((np.zeros(SHAPE),), r"^images has shape \(3, 4, 1\), expected"),
        ((images(1),), r"^images has shape \(1, 3, 4, 1\), expected"),
        ((spoiled,), "^images holds a NaN"),
        ((still,), "^images do not vary in value 6"),
        ((np.ones((4, 2, 2, 1)), None, "identity"), "^images do not vary"),
        ((images(5), 1.5), "^shrinkage is 1.5, expected"),
        ((images(5), np.nan), "^shrinkage is nan, expected"),
        ((images(5), 0.0), "not positive definite"),
        ((images(5), None, "circle"), "^target is 'circle', expected"),
    ]:
        with pytest.raises(InputError, match=message):
            estimate_dense(*arguments)
    assert np.linalg.eigvalsh(as_matrix(estimate_dense(still, target="identity")))[0] > 0
