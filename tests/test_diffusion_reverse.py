import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_unet

from dal_jax import InputError
from dal_jax.diffusion import ReverseConfig, Schedule, reverse_process
from dal_jax.models import UNetConfig, denoiser, import_state_dict

SCHEDULE = Schedule(num_levels=100)


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_equals_numpy_reference(tmp_path, eta):
    rng = np.random.default_rng(0)
    config = UNetConfig(2, (3, 4), 6)
    arrays = reference_unet.random_state_dict(rng, 2, (3, 4), 6)
    np.savez(tmp_path / "w.npz", **arrays)
    variables = import_state_dict(tmp_path / "w.npz", config)
    reverse = ReverseConfig(start=60, steps=3, eta=eta)
    x, draws = rng.standard_normal((4, 6, 2)), rng.standard_normal((4, 4, 6, 2))
    levels, shares = list(reverse.levels), SCHEDULE.alpha_bar
    expected = reference_unet.reconstruct(arrays, x, draws, levels, eta, shares)

    @jax.jit
    def run(image):
        denoise = denoiser(variables, config, (4, 6), image.dtype)
        return reverse_process(denoise, image, jnp.asarray(draws), SCHEDULE, reverse)

    scale = np.abs(expected).max()
    # Rounding through three passes of the network.
    np.testing.assert_allclose(run(jnp.asarray(x)[None])[0], expected, atol=1e-12 * scale)
    pair = run(jnp.asarray(np.stack([x + 1.0, x])))
    np.testing.assert_allclose(pair[1], expected, atol=1e-12 * scale)


def test_with_the_true_noise_the_image_comes_back():
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.standard_normal((3, 3, 1)))

    def true_noise(y, level):
        share = jnp.asarray(SCHEDULE.alpha_bar)[level.astype(int) + 1]
        return (y - jnp.sqrt(share) * image) / jnp.sqrt(1.0 - share)

    draws = jnp.asarray(rng.standard_normal((6, 3, 3, 1)))
    reverse = ReverseConfig(start=90, steps=5)
    back = reverse_process(true_noise, image, draws, SCHEDULE, reverse)
    # Rounding, enlarged by division by sqrt(1 - share) = 0.01 at level 0.
    np.testing.assert_allclose(back, image, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_follows_the_image(dtype):
    draws = np.zeros((3, 2, 2, 1))
    reverse = ReverseConfig(start=9, steps=2)
    y = reverse_process(lambda y, t: y * t, jnp.ones((2, 2, 1), dtype), draws, SCHEDULE, reverse)
    assert y.dtype == dtype


@pytest.mark.parametrize("shape", [(5, 2, 2, 1), (6, 2, 3, 1), (6, 2, 2)])
def test_draws_of_wrong_shape_are_refused(shape):
    with pytest.raises(InputError, match="draws: got shape"):
        reverse_process(
            lambda y, t: y, jnp.ones((2, 2, 1)), jnp.zeros(shape), Schedule(), ReverseConfig()
        )
