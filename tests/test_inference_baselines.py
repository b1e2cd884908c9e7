"""Naive, Bonferroni, over-conditioned and permutation p-values."""

import numpy as np
import pytest
from scipy.stats import norm, permutation_test

from dal_jax import InputError
from dal_jax.inference import bonferroni_log10_p, naive_p, over_conditioned_p, permutation_p


def test_naive_is_the_normal_tail():
    # 1e-13: exp of a log is rounded at |log| * 2e-16.
    assert naive_p(-1.3) == naive_p(1.3) == naive_p(1.3, "equal-tailed")
    assert naive_p(1.3) == pytest.approx(2 * norm.sf(1.3), rel=1e-13)
    assert naive_p(1.3, "greater") == pytest.approx(norm.sf(1.3), rel=1e-13)
    assert naive_p(1.3, "less") == pytest.approx(norm.cdf(1.3), rel=1e-13)
    assert naive_p(0.0) == 1.0
    # shared/golden/cases16.npz, case01.
    assert naive_p(6.306257098907103) == pytest.approx(2.8586403776345845e-10, rel=1e-13)
    assert np.isnan(naive_p(np.nan))


def test_bonferroni_does_not_overflow():
    assert bonferroni_log10_p(2.0, 4096) == 0.0
    expected = np.log10(2 * norm.sf(10.0)) + 64 * np.log10(2)
    assert bonferroni_log10_p(10.0, 64) == pytest.approx(min(0.0, expected), rel=1e-13)
    far = (np.log(2) + norm.logsf(200.0)) / np.log(10) + 4096 * np.log10(2)
    # 1e-12: the difference of two numbers near 1e4.
    assert bonferroni_log10_p(-200.0, 4096) == pytest.approx(far, rel=1e-12)
    assert np.isnan(bonferroni_log10_p(np.nan, 64))


# shared/golden/cases{8,16,32}.npz: z_obs, oc_interval, oc_p, oc_p_equal_tailed.
@pytest.mark.parametrize(
    ("z", "window", "p", "equal_tailed"),
    [
        (
            *(-0.4763624631908712, [[-0.49144632512858505, -0.47393101609996324]]),
            *(0.8606779516822511, 0.2786440966354986),
        ),
        (
            *(6.306257098907103, [6.300258170688975, 6.310101469873907]),
            *(0.383187761935741, 0.7663755238715619),
        ),
        (
            *(0.9741850148634122, [0.9709421054393365, 0.9797871624579835]),
            *(0.6323631308182127, 0.7352737383636158),
        ),
    ],
)
def test_over_conditioned_reference(z, window, p, equal_tailed):
    # 1e-12: the reference subtracts masses of 0.005, rounded at 1e-16, in the middle of the line.
    assert over_conditioned_p(z, window) == pytest.approx(p, abs=1e-12)
    assert over_conditioned_p(z, window, "equal-tailed") == pytest.approx(equal_tailed, abs=1e-12)


def _difference(a, b):
    return a.mean() - b.mean()


@pytest.mark.parametrize("seed", range(4))
def test_permutation_p_counts_as_scipy_does(seed):
    # Small whole numbers: many values are tied with the observed one.
    a, b = np.random.default_rng(seed).integers(0, 3, (2, 5)) + np.array([[seed % 2], [0]])
    for alternative in ("two-sided", "greater", "less"):
        found = permutation_test(
            (a, b),
            _difference,
            vectorized=False,
            n_resamples=99,
            alternative=alternative,
            rng=np.random.default_rng(seed),
        )
        # What scipy calls two-sided doubles the smaller tail.
        ours = "equal-tailed" if alternative == "two-sided" else alternative
        observed = float(found.statistic)
        p = permutation_p(observed, found.null_distribution, ours)
        assert p == pytest.approx(found.pvalue, rel=1e-15)
        extreme = [abs(v) > abs(observed) - 1e-9 for v in found.null_distribution]
        p = permutation_p(observed, found.null_distribution)
        assert p == (1 + sum(extreme)) / 100


def test_permutation_p_at_the_borders():
    assert permutation_p(3.0, [1.0, -2.0, 0.0]) == 0.25
    assert permutation_p(-3.0, [1.0, -2.0, 3.0]) == 0.5
    assert permutation_p(-3.0, [1.0, -2.0, 3.0], "greater") == 1.0
    assert permutation_p(-3.0, [1.0, -2.0, 3.0], "less") == 0.25
    assert permutation_p(-3.0, [1.0, -2.0, 3.0], "equal-tailed") == 0.5
    assert permutation_p(0.0, [0.0, 1.0], "equal-tailed") == 1.0
    assert permutation_p(2.0, []) == 1.0
    assert np.isnan(permutation_p(np.nan, [0.0]))
    # Another order of summation is no smaller value.
    assert permutation_p(0.1 + 0.2, [0.3, -0.3]) == permutation_p(0.3, [0.1 + 0.2, -0.3]) == 1.0
    for alternative in ("two-sided", "greater", "less"):
        assert permutation_p(1.0, [np.nan] * 3, alternative) == 1.0


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match=r"^alternative: got 'up'"):
        permutation_p(0.0, [1.0], "up")
    with pytest.raises(InputError, match=r"^permuted has shape \(1, 1\)"):
        permutation_p(0.0, [[1.0]])
    with pytest.raises(InputError, match=r"^alternative: got 'up'"):
        naive_p(0.0, "up")
    with pytest.raises(InputError, match=r"^alternative: got 'up'"):
        bonferroni_log10_p(0.0, 4, "up")
    with pytest.raises(InputError, match=r"^num_pixels: got 0"):
        bonferroni_log10_p(0.0, 0)
    with pytest.raises(InputError, match=r"^intervals holds"):
        over_conditioned_p(0.0, [1.0, -1.0])
    assert np.isnan(over_conditioned_p(0.0, [1.0, 2.0]))
