"""Score functions on numpy arrays: the same answers as JAX, jumps, refusals, null p-values."""

import functools
import math
from typing import Any

import jax
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from scipy import stats
from search_cases import jumping_localizer, pooled_localizer

from dal_jax import (
    ImageToTest,
    InputError,
    QueuedImage,
    Status,
    TestOptions,
    as_record,
    contradiction,
    dal_test,
    dal_test_batch,
    from_callable,
    run_tests,
    thinned,
    thinned_test,
)
from dal_jax._arrays import cast_floats
from dal_jax.inspection import threshold_of
from dal_jax.localizers import CallableScore, with_rescaling
from dal_jax.noise import iid
from dal_jax.search import HostScore

POOLED, JUMPING = pooled_localizer(), jumping_localizer(4)
SHAPE = POOLED.image_shape
# A float32 score places ends to about its rounding (1e-7) over slopes that are seldom below 1e-2.
FLOAT32_P = 1e-4


def same_scores(localizer: Any) -> Any:
    """A localizer's JAX score as a function on numpy arrays."""
    fn = jax.jit(jax.vmap(localizer.score_fn, (None, None, 0)))
    return lambda x: fn(*cast_floats((localizer.params, localizer.draws), x.dtype), x)


def images(count: int, shape: tuple[int, ...] = SHAPE, references: int = 2) -> Any:
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, *shape)), rng.normal(size=(count, references, *shape))


def brightness(x: np.ndarray) -> np.ndarray:
    """The mean of the channels."""
    return x.mean(axis=-1)


def dark(x: np.ndarray) -> np.ndarray:
    """Nothing is ever flagged."""
    return np.zeros(x.shape[:3])


def bright(x: np.ndarray) -> np.ndarray:
    """Everything is always flagged."""
    return np.ones(x.shape[:3], np.int64)


def steps(x: np.ndarray) -> np.ndarray:
    """A score of few levels."""
    return np.floor(2 * x.mean(axis=-1)) / 2


class Neighbours:
    """The distance of the patch around each pixel from the nearest of a bank of normal ones."""

    def __init__(self, side: int, count: int = 150):
        rng = np.random.default_rng(3)
        patches = self.patches(rng.normal(size=(64, side, side, 1))).reshape(-1, 9)
        self.bank = rng.permutation(patches)[:count]
        self.squares = (self.bank**2).sum(axis=1)

    @staticmethod
    def patches(x: np.ndarray) -> np.ndarray:
        padded = np.pad(x[..., 0], ((0, 0), (1, 1), (1, 1)))
        return sliding_window_view(padded, (3, 3), axis=(1, 2)).reshape(*x.shape[:3], 9)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        found = self.patches(x)
        squares = (found**2).sum(-1)[..., None] - 2 * found @ self.bank.T + self.squares
        return np.sqrt(np.maximum(squares.min(axis=-1), 0))


@pytest.mark.parametrize("region, gamma", [("all", 0.0), ("components", 0.5), ("peak", 0.5)])
@pytest.mark.parametrize("localizer", [POOLED, JUMPING], ids=["pooled", "jumping"])
def test_a_jax_score_gives_the_same_results_as_without_jax(localizer, region, gamma):
    called = from_callable(same_scores(localizer), SHAPE, localizer.threshold)
    assert called.score_fn.resolution == "float64"
    x, refs = images(12)
    how = {"region": region, "randomization": gamma, "seed": 2}
    for one, other in zip(
        dal_test_batch(localizer, x, refs, "iid:1", **how),
        dal_test_batch(called, x, refs, "iid:1", **how),
        strict=True,
    ):
        assert one.status is other.status
        np.testing.assert_array_equal(one.region, other.region)
        assert one.truncation.shape == other.truncation.shape
        np.testing.assert_allclose(one.truncation, other.truncation, atol=1e-5)  # the tolerance
        np.testing.assert_allclose(one.p_value, other.p_value, atol=1e-6)
        assert np.isnan(other.reconstruction).all()


def test_a_detector_in_float32_neither_stalls_nor_misjudges():
    called = from_callable(same_scores(POOLED), SHAPE, POOLED.threshold, dtype="float32")
    assert called.score_fn.resolution == "float32"
    x, refs = images(12)
    exact = dal_test_batch(POOLED, x, refs, "iid:1")
    found = dal_test_batch(called, x, refs, "iid:1")
    assert [r.status for r in found] == [r.status for r in exact]
    for one, other in zip(exact, found, strict=True):
        np.testing.assert_array_equal(one.region, other.region)
        np.testing.assert_allclose(one.p_value, other.p_value, atol=FLOAT32_P)
    work = [sum(r.num_evaluations for r in results) for results in (exact, found)]
    assert work[1] < 2 * work[0]
    again = dal_test_batch(called, x, refs, "iid:1", dtype="float64")  # it has its own precision
    assert [r.num_evaluations for r in again] == [r.num_evaluations for r in found]


def test_scores_of_float32_are_recognized_by_their_digits():
    def hidden(x):
        return x.astype(np.float32).mean(axis=-1).astype(np.float64)

    assert from_callable(hidden, SHAPE, 1.0).score_fn.resolution == "float32"
    assert from_callable(brightness, SHAPE, 1.0).score_fn.resolution == "float64"
    assert isinstance(from_callable(hidden, SHAPE, 1.0).score_fn, HostScore)


def test_jumps_and_constants_give_what_they_should():
    x, refs = np.full((1, 1, 1), 2.2), np.zeros((1, 1, 1))
    # The pixel is flagged from 1.5 on, where floor(2 x) / 2 is above a threshold between levels.
    jumps = from_callable(steps, x.shape, 1.25)
    found = dal_test(jumps, x, refs, "iid:1", randomization=0, precision=1e-6)
    continuous = from_callable(brightness, x.shape, 1.5 - 1e-9)
    expected = dal_test(continuous, x, refs, "iid:1", randomization=0, precision=1e-6)
    assert found.status is expected.status is Status.OK
    assert found.p_value == pytest.approx(expected.p_value, abs=2e-6)
    assert found.truncation[0, 0] == pytest.approx(expected.truncation[0, 0], abs=1e-5)
    none = dal_test(from_callable(dark, x.shape, 1.0), x, refs, "iid:1")
    assert none.status is Status.NO_REGION and math.isnan(none.p_value)
    every = dal_test(from_callable(bright, x.shape, 0.5), x, refs, "iid:1", precision=1e-6)
    assert every.status is Status.OK  # selection says nothing, p is the naive one
    assert every.p_value == pytest.approx(every.naive_p, abs=2e-6)


def test_the_engine_asks_in_batches_that_are_the_function_s_own():
    sizes: list[int] = []

    def careless(x):
        sizes.append(len(x))
        x -= 1.0  # its own copy
        return x[..., 0] + 1.0

    x, refs = images(6)
    localizer = from_callable(careless, SHAPE, 1.0, batch_size=5)
    assert sizes == [1, 1, 3]
    found = dal_test_batch(localizer, x, refs, "iid:1")
    expected = dal_test_batch(from_callable(brightness, SHAPE, 1.0), x, refs, "iid:1")
    assert max(sizes) == 5 and np.mean(sizes) > 4
    np.testing.assert_allclose([r.p_value for r in found], [r.p_value for r in expected])


def test_permutations_and_rescaling_and_thresholds():
    x, refs = images(2)
    localizer = from_callable(same_scores(POOLED), SHAPE, POOLED.threshold)
    how = {"permutations": 20}
    one = dal_test(POOLED, x[0], refs[0], "iid:1", **how)
    other = dal_test(localizer, x[0], refs[0], "iid:1", **how)
    assert one.permutation_p == other.permutation_p
    scaled = with_rescaling(localizer)
    np.testing.assert_allclose(scaled.score(x[0]), with_rescaling(POOLED).score(x[0]), rtol=1e-12)
    assert np.isnan(scaled.score(np.zeros(SHAPE))).all()
    result = dal_test(scaled, x[0], refs[0], "iid:1")
    expected = dal_test(with_rescaling(POOLED), x[0], refs[0], "iid:1")
    assert result.p_value == pytest.approx(expected.p_value, abs=1e-6)
    assert threshold_of(localizer, x, 0.1) == pytest.approx(threshold_of(POOLED, x, 0.1), rel=1e-5)


def test_runs_are_resumed_and_know_the_function_by_its_name(tmp_path):
    x, refs = images(5)
    localizer = from_callable(brightness, SHAPE, 1.0)
    items = [
        QueuedImage(f"{k}.npy", None, functools.partial(ImageToTest, x[k], refs[k]))
        for k in range(5)
    ]
    run_tests(tmp_path / "run", localizer, items[:2], "iid:1", TestOptions())
    records = run_tests(tmp_path / "run", localizer, items, "iid:1", TestOptions())
    for item, record in zip(items, records, strict=True):
        expected = dal_test(localizer, *item.load()[:2], "iid:1", name=item.name)
        assert contradiction(record, {"name": item.name, **as_record(expected)}) is None
    with pytest.raises(InputError, match="another run"):
        other = from_callable(bright, SHAPE, 1.0)
        run_tests(tmp_path / "run", other, items, "iid:1", TestOptions())
    with pytest.raises(InputError, match=r"or a name \(of from_callable\)"):
        unnamed = from_callable(lambda x: x[..., 0], SHAPE, 1.0)
        run_tests(tmp_path / "other", unnamed, items, "iid:1", TestOptions())
    named = from_callable(lambda x: x[..., 0], SHAPE, 1.0, name="red, version 1")
    run_tests(tmp_path / "other", named, items[:1], "iid:1", TestOptions())


class Dropout:
    """Other scores at each call."""

    rng = np.random.default_rng(0)

    def __call__(self, x):
        return x[..., 0] * (self.rng.uniform(size=x.shape[:3]) < 0.9)


WRONG: dict[str, tuple[Any, str]] = {
    "dropout": (Dropout(), "other scores when the same image comes again, expected the same"),
    "batch norm": (
        lambda x: abs((x - x.mean(axis=(0, 1, 2))) / x.std(axis=(0, 1, 2)))[..., 0],
        "other scores for an image among others than alone, expected the same",
    ),
    "scaled by the batch": (lambda x: x[..., 0] / x.max(), "is batch norm in training mode"),
    "error": (lambda x: [][0], r"failed on images \(1, 4, 4, 1\) of float64: IndexError: list"),
    "one image": (lambda x: x[0, ..., 0], r"shape \(4, 4\) for images \(1, 4, 4, 1\), expected"),
    "channels": (lambda x: x, r"scores of shape \(1, 4, 4, 1\) for images"),
    "half": (lambda x: x[..., 0].astype(np.float16), "of type float16, expected float64"),
    "complex": (lambda x: x[..., 0] + 1j, "scores of type complex128, expected float64"),
    "text": (lambda x: "scores", "scores of type <U6, expected float64 or float32"),
    "nothing": (lambda x: None, "scores of type object, expected float64"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_functions_are_refused_in_one_line(name):
    function, message = WRONG[name]
    with pytest.raises(InputError, match=message) as caught:
        from_callable(function, SHAPE, 1.0, name=name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_wrong_arguments_are_refused_in_one_line():
    for changes, message in (
        ({"dtype": "float16"}, "dtype: got 'float16', expected one of float64, float32"),
        ({"batch_size": 0}, "batch_size: got 0, expected 1 or more"),
        ({"threshold": -1.0}, "threshold: got -1.0"),
        ({"image_shape": (4, 4)}, "image_shape"),
        ({"function": 3}, "function: got int, expected a function of images"),
        ({"example": np.ones((2, 2, 1))}, r"example: got shape \(2, 2, 1\), expected"),
    ):
        given: Any = {"function": brightness, "image_shape": SHAPE, "threshold": 1.0, **changes}
        with pytest.raises(InputError, match=message):
            from_callable(**given)


def test_a_function_with_a_batch_of_one_is_never_asked_for_more():
    def one(x):
        (image,) = x
        return image[None, ..., 0] / image.max()

    x, refs = images(3)
    localizer = from_callable(one, SHAPE, 0.7, batch_size=1)
    assert {r.status for r in dal_test_batch(localizer, x, refs, "iid:1")} == {Status.OK}


def test_what_happens_in_a_test_is_a_status_or_one_line():
    x, refs = images(4)
    x[1] += 100.0

    def picky(x):
        return np.where((x.mean(axis=(1, 2)) > 50)[:, None], np.nan, x[..., 0])

    found = dal_test_batch(from_callable(picky, SHAPE, 1.0), x, refs, "iid:1")
    statuses = [r.status for r in found]
    assert statuses.pop(1) is Status.NON_FINITE and Status.NON_FINITE not in statuses
    assert math.isnan(found[1].p_value)

    def fragile(x):
        if (x > 50).any():
            raise ValueError("too bright")
        return x[..., 0]

    with pytest.raises(InputError, match=r"failed on images .*: ValueError: too bright"):
        dal_test_batch(from_callable(fragile, SHAPE, 1.0), x, refs, "iid:1")


@pytest.mark.parametrize("how", [{"engine": "sweep"}, {"engine": "scan"}, {"first_window": True}])
def test_engines_that_trace_the_score_are_refused_in_one_line(how, tmp_path):
    x, refs = images(1)
    localizer = from_callable(brightness, SHAPE, 1.0)
    with pytest.raises(InputError, match="expected 'adaptive', False: the score is not JAX"):
        dal_test(localizer, x[0], refs[0], "iid:1", **how)
    with pytest.raises(InputError, match="the score is not JAX"):
        run_tests(tmp_path / "run", localizer, [], "iid:1", TestOptions(**how))
    assert not (tmp_path / "run").exists()
    assert isinstance(localizer.score_fn, CallableScore)
    with pytest.raises(InputError, match="'brightness' is not JAX: expected engine 'adaptive'"):
        localizer.score_fn((), (), x[0])


def autoencoder(side: int) -> Any:
    """A convolutional autoencoder of PyTorch, trained for a little while on noise, in float32."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    nn = torch.nn
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1), nn.ReLU()),
        nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1),
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(300):
        x = torch.randn(32, 1, side, side)
        loss = ((model(x) - x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()

    def score(images: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
        with torch.no_grad():
            error = nn.functional.avg_pool2d((model(x) - x).abs(), 3, 1, padding=1)
        return error.numpy()[:, 0]

    return score


def null_p_values(
    detector: Any, side: int, count: int, gamma: float, dtype: str = "float64"
) -> tuple[np.ndarray, np.ndarray]:
    """p-values of null images with a region, and those of thinning with the same detector."""
    shape = (side, side, 1)
    localizer = from_callable(detector, shape, 1.0, dtype=dtype, name="detector")
    rng = np.random.default_rng(11)
    tuning = rng.normal(size=(64, *shape)) * math.sqrt(1 + gamma**2)
    localizer = localizer.with_threshold(threshold_of(localizer, tuning, 0.05))
    x, refs = rng.normal(size=(2, count, *shape))
    how = {"region": "peak", "randomization": gamma, "seed": 1}
    results = dal_test_batch(localizer, x, refs, "iid:1", **how)
    settled = [r for r in results if r.status in (Status.OK, Status.NOT_CONVERGED)]
    assert len(settled) > 0.8 * count
    assert sum(r.status is Status.NOT_CONVERGED for r in settled) <= 0.01 * count
    looks = []
    for number, (image, reference) in enumerate(zip(x, refs, strict=True)):
        halves = thinned(image, iid(1.0), gamma or 0.5, seed=1, name=number)
        region = localizer.region(halves.seen)
        if region.any():
            looks.append(thinned_test(halves, region, reference, iid(1.0)).p_value)
    return np.array([r.p_value for r in settled]), np.array(looks)


def assert_uniform(p: np.ndarray, what: str) -> None:
    told = []
    for level in (0.01, 0.05, 0.1):
        error = math.sqrt(level * (1 - level) / len(p))
        rate = (p <= level).mean()
        told.append(f"{rate:.4f} ({error:.4f})")
        assert abs(rate - level) < 3 * error, (what, level, rate)
    uniform = stats.kstest(p, "uniform").pvalue
    print(f"\n{what}: {len(p)} tests, {', '.join(told)}, KS {uniform:.3f}", end=" ")
    assert uniform > 1e-3


@pytest.mark.slow
def test_null_p_values_of_nearest_neighbours_are_uniform():
    for p, what in zip(
        null_p_values(Neighbours(8), 8, 200, 0.5), ("selective", "thinned"), strict=True
    ):
        assert_uniform(p, what)


@pytest.mark.study
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_null_p_values_of_nearest_neighbours_are_uniform_for_many_images(gamma):
    found = null_p_values(Neighbours(16), 16, 2_000, gamma)
    for p, what in zip(found, ("selective", "thinned"), strict=True):
        assert_uniform(p, f"{what}, gamma {gamma:g}")


@pytest.mark.study
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_null_p_values_of_a_torch_autoencoder_are_uniform(gamma):
    found = null_p_values(autoencoder(16), 16, 2_000, gamma, "float32")
    for p, what in zip(found, ("selective", "thinned"), strict=True):
        assert_uniform(p, f"autoencoder, {what}, gamma {gamma:g}")
