"""Null rates and coverage of randomized tests of a trained network: `pytest -m study -s`.

2,000 images a cell, a minute or two each; the whole takes two hours.
"""

import math
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats
from test_reference_cases import OWN

from dal_jax import DalConfig, Localizer, Status, dal_localizer, dal_test_batch
from dal_jax.models import UNetConfig, import_state_dict
from dal_jax.noise import parse_noise

pytestmark = pytest.mark.study
SIZE, COUNT, THRESHOLD = 8, 2_000, 0.8
LEVELS = (0.01, 0.05, 0.10)
NOISES, GAMMAS, REFERENCES = ("iid:1", "ar1:0.5:1"), (0.25, 0.5, 1.0), (1, 5)
KINDS, ALTERNATIVES = ("all", "peak"), ("two-sided", "greater")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Localizer:
    """The trained network of size 8 among the reference cases."""
    path = tmp_path_factory.mktemp("weights") / "weights.npz"
    with np.load(OWN) as archive:
        np.savez(path, **{k[8:]: archive[k] for k in archive.files if k.startswith("weights/")})
    variables = import_state_dict(path, UNetConfig())
    return dal_localizer(variables, DalConfig(image_size=SIZE), THRESHOLD, draws=0)


@lru_cache
def images(noise: str, references: int, signal: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    shape = (SIZE, SIZE, 1)
    operator, rng = parse_noise(noise, shape), np.random.default_rng(references)
    drawn = [operator.sample(rng, shape) for _ in range(COUNT * (1 + references))]
    split = np.stack(drawn).reshape(COUNT, 1 + references, *shape)
    x = split[:, 0].copy()
    x[:, 2:4, 2:4] += signal
    return x, split[:, 1:]


def tested(network: Localizer, noise: str, x: Any, refs: Any, **options: Any) -> list[Any]:
    results = dal_test_batch(network, x, refs, noise, seed=1, **options)
    return [r for r in results if r.status in (Status.OK, Status.NOT_CONVERGED)]


@pytest.mark.parametrize(
    "noise, gamma, references, kind, alternative",
    list(product(NOISES, GAMMAS, REFERENCES, KINDS, ALTERNATIVES)),
)
def test_null_p_values_are_uniform(network, noise, gamma, references, kind, alternative):
    x, refs = images(noise, references)
    found = tested(
        network, noise, x, refs, randomization=gamma, region=kind, alternative=alternative
    )
    p = np.array([r.p_value for r in found])
    rates = [float((p <= level).mean()) for level in LEVELS]
    errors = [math.sqrt(level * (1 - level) / len(p)) for level in LEVELS]
    uniform = stats.kstest(p, "uniform").pvalue
    told = ", ".join(f"{rate:.4f} ({error:.4f})" for rate, error in zip(rates, errors, strict=True))
    print(f"\n{len(p)} regions, rejected {told}, KS {uniform:.3f}", end=" ")
    # Of 144 rates one beyond 3.5 standard errors has a probability of 7%.
    for rate, level, error in zip(rates, LEVELS, errors, strict=True):
        assert abs(rate - level) < 3.5 * error
    assert uniform > 1e-4


@pytest.mark.parametrize("signal", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_intervals_cover_and_estimates_have_the_right_median(network, signal, gamma):
    noise = "ar1:0.5:1"
    x, refs = images(noise, 1, signal)
    raised = np.zeros((SIZE, SIZE))
    raised[2:4, 2:4] = signal
    found = tested(network, noise, x, refs, randomization=gamma)
    true = np.array([raised[r.region].mean() for r in found])
    low, high, estimate = (
        np.array([getattr(r, name) for r in found]) for name in ("ci_low", "ci_high", "estimate")
    )
    covered = float(((low <= true) & (true <= high)).mean())
    above = float((estimate > true).mean())
    length = np.median((high - low) / [r.sd for r in found])
    print(
        f"\n{len(found)} regions, covered {covered:.4f}, above {above:.4f}, {length:.2f} sd",
        end=" ",
    )
    assert abs(covered - 0.95) < 3.5 * math.sqrt(0.95 * 0.05 / len(found))
    assert abs(above - 0.5) < 3.5 * math.sqrt(0.25 / len(found))
