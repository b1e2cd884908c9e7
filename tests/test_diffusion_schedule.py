import numpy as np
import pytest

from dal_jax import InputError
from dal_jax.diffusion import ReverseConfig, Schedule


def test_alpha_bar_is_the_product_of_one_minus_beta():
    alpha_bar = Schedule().alpha_bar
    assert alpha_bar.shape == (1001,)
    assert alpha_bar[0] == 1.0
    assert alpha_bar[1] == 1.0 - 1e-4
    by_hand = 1.0
    for t in range(1000):
        by_hand *= 1.0 - (1e-4 + (0.02 - 1e-4) * t / 999)
    assert abs(alpha_bar[-1] / by_hand - 1.0) < 1e-12  # rounding of a thousand products


def test_levels():
    assert ReverseConfig().levels == (460, 345, 230, 115, 0)
    assert ReverseConfig(start=10, steps=1).levels == (10,)
    assert ReverseConfig(start=10, steps=4).levels == (10, 7, 3, 0)
    assert ReverseConfig(start=3, steps=4).levels == (3, 2, 1, 0)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_coefficients_reproduce_signal_and_noise(eta):
    schedule = Schedule(num_levels=50)
    reverse = ReverseConfig(start=40, steps=4, eta=eta)
    c = reverse.coefficients(schedule)
    share = schedule.alpha_bar[np.array(reverse.levels) + 1]
    following = np.append(share[1:], 1.0)
    # With the true noise e, x = sqrt(a) s + sqrt(1-a) e becomes sqrt(n) s + c1 draw + c2 e.
    np.testing.assert_allclose(c.keep * np.sqrt(share), np.sqrt(following), rtol=1e-14)  # rounding
    rest = c.keep * np.sqrt(1.0 - share) + c.denoise
    np.testing.assert_allclose(rest**2 + c.draw**2, 1.0 - following, atol=1e-14)  # rounding
    assert c.draw[-1] == 0.0
    assert (c.draw[:-1] > 0.0).all() == (eta > 0.0)
    np.testing.assert_allclose(c.start_keep**2 + c.start_draw**2, 1.0, rtol=1e-15)  # rounding


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (Schedule, {"num_levels": 0}),
        (Schedule, {"beta_start": 0.0}),
        (Schedule, {"beta_start": 0.5}),
        (Schedule, {"beta_end": 1.0}),
        (Schedule, {"beta_end": float("nan")}),
        (ReverseConfig, {"start": -1}),
        (ReverseConfig, {"steps": 0}),
        (ReverseConfig, {"start": 2, "steps": 4}),
        (ReverseConfig, {"eta": 1.1}),
        (ReverseConfig, {"eta": float("nan")}),
    ],
)
def test_bad_configuration_is_refused(kind, bad):
    with pytest.raises(InputError, match="got"):
        kind(**bad)


def test_start_beyond_the_schedule_is_refused():
    with pytest.raises(InputError, match="start: got 460, expected a level below 100"):
        ReverseConfig().coefficients(Schedule(num_levels=100))
