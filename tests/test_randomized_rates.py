"""Null rates and coverage of randomized tests of trained networks: `pytest -m study -s`.

2,000 images of size 8 a cell, 400 of size 16 where DAL_JAX_REFERENCE names the folder with that
network (see test_reference_cases.py); half a minute to two minutes a cell.
"""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from helpers import REFERENCE
from scipy import stats
from test_reference_cases import OWN

from dal_jax import (
    DalConfig,
    Localizer,
    Status,
    TestResult,
    as_record,
    dal_localizer,
    dal_test_batch,
    thinned,
    thinned_test,
)
from dal_jax.inference import NullLaw, SelectiveP, effect, holm
from dal_jax.inspection._calibration import observed_of
from dal_jax.models import UNetConfig, import_state_dict
from dal_jax.noise import parse_noise

pytestmark = pytest.mark.study
COUNTS, THRESHOLD, SEED = {8: 2_000, 16: 400}, 0.8, 1
LEVELS = (0.01, 0.05, 0.10)
NOISES, GAMMAS, REFERENCES = ("iid:1", "ar1:0.5:1"), (0.25, 0.5, 1.0), (1, 5)
KINDS, ALTERNATIVES = ("all", "peak", "components"), ("two-sided", "greater")
# Of the 1,000 rates of the grid one beyond this many standard errors has a probability of 6%.
FAR = 4.0
# Which localizer, how much is added, how many references, what is tested.
CELLS = list(product(COUNTS, NOISES, GAMMAS, REFERENCES, KINDS))


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Localizer]:
    """The trained networks among the reference cases, by size."""
    path = tmp_path_factory.mktemp("weights") / "weights.npz"
    with np.load(OWN) as archive:
        np.savez(path, **{k[8:]: archive[k] for k in archive.files if k.startswith("weights/")})
    files = {8: path, 16: REFERENCE / "weights16.npz"}
    return {
        size: dal_localizer(
            import_state_dict(file, UNetConfig()), DalConfig(image_size=size), THRESHOLD, draws=0
        )
        for size, file in files.items()
        if file.exists()
    }


def images(
    size: int, noise: str, references: int, signal: float = 0.0, seed: int | None = None
) -> tuple[Any, Any]:
    shape = (size, size, 1)
    rng = np.random.default_rng(references if seed is None else [references, seed])
    operator = parse_noise(noise, shape)
    drawn = [operator.sample(rng, shape) for _ in range(COUNTS[size] * (1 + references))]
    split = np.stack(drawn).reshape(COUNTS[size], 1 + references, *shape)
    x = split[:, 0].copy()
    x[:, 2:4, 2:4] += signal
    return x, split[:, 1:]


def tested(
    localizer: Localizer, noise: str, x: Any, refs: Any, **options: Any
) -> dict[int, list[TestResult]]:
    """What was tested of each image in which something was flagged."""
    results = dal_test_batch(localizer, x, refs, noise, **{"seed": SEED, **options})
    failed = [r for r in results if r.status in (Status.NON_FINITE, Status.INVALID_INPUT)]
    assert not failed
    return {
        number: list(result.components or [result])
        for number, result in enumerate(results)
        if result.status in (Status.OK, Status.NOT_CONVERGED)
    }


def told(name: str, p: np.ndarray, images: np.ndarray, most: bool = False) -> None:
    """Prints rates with standard errors by image, and asserts that they are the levels."""
    words = []
    for level in LEVELS:
        called = (p <= level) - level
        error = math.sqrt(level * (1 - level) / len(p))
        sums = np.bincount(images, called)  # the parts of one image are not independent
        error = max(error, math.sqrt(np.sum(sums**2)) / len(p))
        words.append(f"{(p <= level).mean():.4f} ({error:.4f})")
        excess = called.mean() / error
        assert excess < FAR and (most or excess > -FAR), (name, level, words)
    _, first = np.unique(images, return_index=True)
    uniform = stats.kstest(p[first], "uniform").pvalue
    print(f"\n{name}: {len(p)} tests, {', '.join(words)}, KS {uniform:.3f}", end=" ")
    assert most or uniform > 1e-4


@pytest.mark.parametrize("size, noise, gamma, references, kind", CELLS)
def test_null_p_values_are_uniform(networks, size, noise, gamma, references, kind):
    if size not in networks:
        pytest.skip("the network of this size is not here")
    x, refs = images(size, noise, references)
    found = tested(networks[size], noise, x, refs, randomization=gamma, region=kind)
    numbers = np.array([number for number, parts in found.items() for _ in parts])
    operator = parse_noise(noise, x.shape[1:])
    for alternative in ALTERNATIVES:
        p = [
            [NullLaw().p_value(observed_of(as_record(part)), alternative).p for part in parts]
            for parts in found.values()
        ]
        told(alternative, np.concatenate(p), numbers)
        if kind == "components":  # any of an image: at most the level
            least = [min(holm([SelectiveP(v, v, v) for v in own])).p for own in p]
            told(f"{alternative}, Holm", np.array(least), np.array(list(found)), most=True)
    p = []
    for number, parts in found.items():
        halves = thinned(x[number], operator, gamma, seed=SEED, name=number)
        p += [thinned_test(halves, part.region, refs[number], operator).p_value for part in parts]
    told("thinned", np.array(p), numbers)


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize("signal", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_intervals_cover_and_estimates_have_the_right_median(networks, gamma, signal, confidence):
    noise = "ar1:0.5:1"
    x, refs = images(8, noise, 1, signal)
    raised = np.zeros(x.shape[1:3])
    raised[2:4, 2:4] = signal
    found = tested(networks[8], noise, x, refs, randomization=gamma, confidence=confidence)
    results = [part for parts in found.values() for part in parts]
    true = np.array([raised[r.region].mean() for r in results])
    low, high, estimate = (
        np.array([getattr(r, name) for r in results]) for name in ("ci_low", "ci_high", "estimate")
    )
    covered = float(((low <= true) & (true <= high)).mean())
    above = float((estimate > true).mean())
    length = np.median((high - low) / [r.sd for r in results])
    print(
        f"\n{len(results)} regions, covered {covered:.4f}, above {above:.4f}, {length:.2f} sd",
        end=" ",
    )
    error = math.sqrt(confidence * (1 - confidence) / len(results))
    assert abs(covered - confidence) < FAR * error
    assert abs(above - 0.5) < FAR * math.sqrt(0.25 / len(results))


@pytest.mark.parametrize("seed", range(2, 6))  # other images and other added noise than above
def test_what_the_open_part_of_the_line_adds_to_an_interval(networks, seed):
    """Coverage of the reported interval, and of the one whose open part never has the region."""
    noise, signal, confidence = "ar1:0.5:1", 3.0, 0.9
    x, refs = images(8, noise, 1, signal, seed)
    raised = np.zeros(x.shape[1:3])
    raised[2:4, 2:4] = signal
    options = {"randomization": 0.5, "confidence": confidence, "seed": seed}
    found = tested(networks[8], noise, x, refs, **options)
    results = [part for parts in found.values() for part in parts]
    covered = np.zeros(2)
    for result in results:
        observed, true = observed_of(as_record(result)), raised[result.region].mean() / result.sd
        closed = effect(observed._replace(searched=np.array([[-np.inf, np.inf]])), confidence)
        ends = np.array([[result.ci_low, result.ci_high], np.multiply(closed[1:], result.sd)])
        assert ends[0, 0] < ends[1, 0] + 1e-6 and ends[0, 1] > ends[1, 1] - 1e-6  # the wider one
        covered += (ends[:, 0] <= true * result.sd) & (true * result.sd <= ends[:, 1])
    covered /= len(results)
    print(f"\n{len(results)} regions, covered {covered[0]:.4f}, closed {covered[1]:.4f}", end=" ")
    error = math.sqrt(confidence * (1 - confidence) / len(results))
    assert (abs(covered - confidence) < FAR * error).all()
