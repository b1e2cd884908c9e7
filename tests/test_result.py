import numpy as np
import pytest

from dal_jax import InputError, region_of, run_lengths


@pytest.mark.parametrize("seed", range(5))
def test_runs_code_any_region(seed):
    rng = np.random.default_rng(seed)
    region = rng.random((rng.integers(1, 6), rng.integers(1, 7))) < 0.5
    runs = run_lengths(region)
    assert region_of(runs, region.shape).tolist() == region.tolist()
    assert sum(length for _, length in runs) == region.sum()


def test_runs_outside_of_the_shape_are_refused():
    with pytest.raises(InputError, match=r"runs hold \[3, 2\], expected them within 4"):
        region_of([[3, 2]], (2, 2))
