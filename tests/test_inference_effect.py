import math

import numpy as np
import pytest
from scipy import stats

from dal_jax import InputError
from dal_jax.inference import Observed, Perturbation, as_intervals, effect

EVERYWHERE = as_intervals([-np.inf, np.inf])


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.5])
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


def test_without_selection_it_is_the_interval_of_a_textbook():
    found = effect(Observed(1.7, EVERYWHERE, EVERYWHERE), confidence=0.9)
    half = stats.norm.ppf(0.95)
    assert found == pytest.approx((1.7, 1.7 - half, 1.7 + half), abs=1e-6)


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_what_was_not_searched_widens_the_interval(spread):
    truncation = as_intervals([[-2.0, -1.0], [0.5, 1.5], [3.0, 3.5]])
    seen = Perturbation(spread, 0.0)
    whole = effect(Observed(1.0, truncation, EVERYWHERE, seen))
    part = effect(Observed(1.0, truncation, as_intervals([-2.5, 2.5]), seen))
    assert part.low <= whole.low < whole.high < part.high


def test_it_is_infinite_where_nothing_bounds_it():
    # At the upper end of its interval: any mean, however high, makes that as likely as not.
    found = effect(Observed(1.5, as_intervals([1.0, 1.5]), EVERYWHERE))
    assert found.high == math.inf
    randomized = effect(Observed(1.5, as_intervals([1.0, 1.5]), EVERYWHERE, Perturbation(0.5)))
    assert np.isfinite(randomized).all()


@pytest.mark.parametrize("spread", [0.2, 0.5, 1.0])
def test_it_moves_with_the_statistic_however_far_out(spread):
    """The same sets elsewhere, with all that is far from them not searched."""
    near, far = (
        effect(
            Observed(
                z,
                as_intervals([[z - 0.4, z + 0.1], [z + 0.3, z + 0.9]]),
                as_intervals([z - 8.0, z + 8.0]),
                Perturbation(spread, 0.05),
            )
        )
        for z in (0.0, 30.0)
    )
    assert np.array(far) - 30.0 == pytest.approx(np.array(near), abs=1e-6)


def test_a_confidence_that_is_none_is_refused():
    for confidence in (0.0, 1.0, math.nan):
        with pytest.raises(InputError, match="confidence: got"):
            effect(Observed(1.0, EVERYWHERE, EVERYWHERE), confidence)
