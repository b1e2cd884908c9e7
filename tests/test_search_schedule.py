from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same_record
from helpers import published_batch as dal_test_batch
from helpers import published_test as dal_test
from search_cases import dense_localizer, jumping_localizer, pooled_localizer

from dal_jax import Status, as_record, from_score
from dal_jax._dal_test import TestOptions
from dal_jax._dal_test._many_tests import _in_flight
from dal_jax.search import ScoreReply, ScoreRequest, run_side_by_side
from dal_jax.search._evaluator import Evaluated


def run(tasks: Any, evaluator: Any, in_flight: int) -> Any:
    return run_side_by_side(tasks, evaluator, in_flight)


class Doubling:
    """An evaluator: the score of an image is twice its sum over channels; counts its calls."""

    def __init__(self, capacity=4):
        self.size, self.calls = capacity, []

    def capacity(self, dtype):
        return self.size

    def __call__(self, images, draws, dtype, reconstruct=False):
        assert 1 <= len(images) <= self.size
        self.calls.append((dtype, len(images)))
        empty = np.full((self.size - len(images), *images.shape[1:]), np.nan)
        images = np.concatenate([images, empty]).astype(dtype)
        moved = 0.0
        if draws is not None:
            moved = np.concatenate([draws, np.zeros(self.size - len(draws))])[:, None, None]
        score: Any = 2 * images.sum(-1) + moved
        reconstruction: Any = -images if reconstruct else None
        return Evaluated(score, reconstruction)


def image(value):
    return np.full((2, 3, 1), float(value))


def task(number, rounds, started=None, draws=None):
    """Asks for 1, 2, ... images; adds up what it is told."""
    if started is not None:
        started.append(number)
    total = 0.0
    for count in range(1, rounds + 1):
        values = number + np.arange(count) / 10
        own = None if draws is None else np.array(draws)
        wide = np.arange(count) % 2 == 0
        wide[-1] = True
        images = np.stack([image(v) for v in values])
        answer = yield ScoreRequest(images, wide, own, reconstruct=count == 2)
        assert isinstance(answer, ScoreReply)
        expected = 2 * values + (0 if draws is None else draws)
        # Rounded to float32 where that was asked for.
        np.testing.assert_allclose(answer.score[:, 1, 2], expected, rtol=1e-6)
        np.testing.assert_array_equal(answer.score[wide, 0, 0], expected[wide])
        assert answer.score.dtype == np.float64
        assert (answer.reconstruction is None) == (count != 2)
        if answer.reconstruction is not None:
            np.testing.assert_array_equal(answer.reconstruction, -images[-1])
        total += answer.score[:, 0, 0].sum()
    return number, rounds, total


ROUNDS = [3, 0, 1, 5, 0, 0, 2, 4, 1, 7, 0]


@pytest.mark.parametrize("in_flight", [1, 2, 3, 20])
@pytest.mark.parametrize("capacity", [1, 4, 50])
def test_every_task_gets_its_own_answers(in_flight, capacity):
    tasks = [(f"key {k}", task(k, rounds)) for k, rounds in enumerate(ROUNDS)]
    done = dict(run(iter(tasks), Doubling(capacity), in_flight))
    assert sorted(done) == sorted(key for key, _ in tasks)
    for k, rounds in enumerate(ROUNDS):
        number, counted, total = done[f"key {k}"]
        assert (number, counted) == (k, rounds)
        expected = sum(2 * (k + j / 10) for n in range(1, rounds + 1) for j in range(n))
        assert total == pytest.approx(expected, rel=1e-6)  # some of it in float32


def test_tasks_with_draws_of_their_own():
    tasks = [(k, task(k, rounds, draws=100.0 * k)) for k, rounds in enumerate(ROUNDS)]
    assert len(dict(run(tasks, Doubling(), 5))) == len(ROUNDS)


def test_no_more_tasks_than_allowed_are_under_way():
    started, finished = [], []
    tasks = ((k, task(k, rounds, started)) for k, rounds in enumerate([3] * 9))
    for key, _ in run(tasks, Doubling(), 2):
        assert len(started) - len(finished) <= 2
        finished.append(key)
    assert sorted(finished) == list(range(9))
    assert list(run(iter([]), Doubling(), 3)) == []


def test_tasks_ask_for_tasks_and_wait_without_taking_room():
    under_way, most = set(), []

    def part(*number):
        under_way.add(number)
        most.append(len(under_way))
        result = yield from task(sum(number), 2)
        under_way.remove(number)
        return result[0]

    def whole(number):
        yield ScoreRequest(image(number)[None], np.array([True]), None)
        found = yield [part(number, k) for k in range(number)]
        inner = yield [whole(number - 1)] if number > 1 else [part(0)]
        return found, inner[0]

    def expected(number):
        inner = expected(number - 1) if number > 1 else 0
        return [number + k for k in range(number)], inner

    done = dict(run([(k, whole(k)) for k in (3, 1, 4)], Doubling(), 2))
    assert done == {k: expected(k) for k in (3, 1, 4)}
    assert max(most) == 2


def test_batches_are_full_while_there_is_work():
    evaluate = Doubling(8)
    tasks = [(k, task(k, 6)) for k in range(40)]
    assert len(list(run(tasks, evaluate, 40))) == 40
    images = sum(count for _, count in evaluate.calls)
    assert images == 40 * (1 + 2 + 3 + 4 + 5 + 6)
    assert images / (8 * len(evaluate.calls)) > 0.9


def test_every_device_holds_as_many_searches_as_its_memory():
    def count(side, platform, devices, memory=80 * 2**30):
        stats = {"bytes_limit": memory}
        device = SimpleNamespace(platform=platform, memory_stats=lambda: stats)
        fixed: Any = SimpleNamespace(devices=(device,) * devices, capacity=lambda dtype: 16)
        localizer = from_score(lambda params, draws, x: x.sum(-1), (side, side, 3), 0.5)
        return _in_flight(fixed, localizer, TestOptions())

    # At 256 x 256 one keeps 96 MiB. A processor has room for 16, however many devices it counts as.
    assert count(256, "cpu", 1) == count(256, "cpu", 8) == 16
    assert count(32, "cpu", 1) == count(256, "gpu", 1) == 2 * 16  # all that a full batch needs
    assert count(256, "gpu", 1, memory=2**30) == 2
    assert count(256, "gpu", 8, memory=2**30) == 21


def test_no_program_is_asked_for_in_a_dtype_that_no_image_needs():
    asked = set()

    class Counting(Doubling):
        def capacity(self, dtype):  # an `Evaluator` compiles the program of the dtype
            asked.add(dtype)
            return super().capacity(dtype)

    def wide_only():
        yield ScoreRequest(image(1)[None], np.array([True]), None)

    assert len(list(run([(k, wide_only()) for k in range(3)], Counting(), 3))) == 3
    assert asked == {"float64"}


def test_the_error_of_a_task_reaches_the_caller():
    def failing():
        yield ScoreRequest(image(1)[None], np.array([True]), None)
        raise RuntimeError("of the task")

    tasks = [(0, task(0, 2)), (1, failing()), (2, task(2, 9))]
    with pytest.raises(RuntimeError, match="of the task"):
        list(run(tasks, Doubling(), 3))

    def refused():
        raise RuntimeError("at once")
        yield

    with pytest.raises(RuntimeError, match="at once"):
        list(run([(0, refused())], Doubling(), 1))


def test_tasks_come_from_a_source_that_may_fail():
    def source():
        yield 0, task(0, 1)
        raise OSError("no more")

    done = run(source(), Doubling(), 1)
    assert next(done)[0] == 0
    with pytest.raises(OSError, match="no more"):
        next(done)


LOCALIZERS = {
    "pooled": pooled_localizer(5, side=6, threshold=1.8),
    "dense": dense_localizer(6),
    "jumping": jumping_localizer(7),
}


def same(one, two):
    """To rounding; settled numbers to 1e-9."""
    assert_same_record(as_record(one), as_record(two))


@pytest.mark.parametrize("name", LOCALIZERS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_result_does_not_depend_on_the_tests_beside_it(name, dtype):
    localizer = LOCALIZERS[name]
    rng = np.random.default_rng(0)
    x, x_ref = rng.normal(size=(2, 12, *localizer.image_shape))
    x[4] *= 1e-3  # nothing is flagged: done after one evaluation
    x[5, 0, 0, 0] = np.nan  # refused

    def test(order, **options):
        return dal_test_batch(localizer, x[order], x_ref[order], "iid:1", dtype=dtype, **options)

    expected = test(np.arange(12))
    assert expected[5].status is Status.INVALID_INPUT
    assert sum(r.status is Status.OK for r in expected) > 6
    for order, options in (
        (np.arange(12), {"batch_size": 1}),
        (np.arange(12), {"batch_size": 5}),
        (np.arange(12)[::-1], {"batch_size": 3}),
        (rng.permutation(12), {}),
        (np.array([7, 7, 2, 7]), {}),
    ):
        for number, result in zip(order, test(order, **options), strict=True):
            same(result, expected[number])
    same(dal_test(localizer, x[2], x_ref[2], "iid:1", dtype=dtype), expected[2])


@pytest.mark.parametrize("name", LOCALIZERS)
def test_lines_outgrow_their_lanes(name, monkeypatch):
    """Lanes that start with 4 points grow several times, and lines of all lengths are judged."""
    localizer = LOCALIZERS[name]
    x, x_ref = np.random.default_rng(6).normal(size=(2, 6, *localizer.image_shape))
    expected = dal_test_batch(localizer, x, x_ref, "iid:1")
    monkeypatch.setattr("dal_jax.search._lanes.SLOTS", 4)
    monkeypatch.setattr("dal_jax.search._rounds.POINTS", 16)
    monkeypatch.setattr("dal_jax.search._rounds.ROOM", 8)
    for one, other in zip(dal_test_batch(localizer, x, x_ref, "iid:1"), expected, strict=True):
        same(one, other)


@pytest.mark.parametrize("name", LOCALIZERS)
def test_devices_without_float64_leave_it_to_the_host(name, monkeypatch):
    """Margins rounded to float32 after the threshold was subtracted still have exact roots."""
    localizer = LOCALIZERS[name]
    x, x_ref = np.random.default_rng(4).normal(size=(2, 6, *localizer.image_shape))
    draws = np.random.default_rng(5).normal(size=(6, *localizer.image_shape))
    for own in (None, draws):
        expected = dal_test_batch(localizer, x, x_ref, "iid:1", draws=own)
        with monkeypatch.context() as patch:
            patch.setattr("dal_jax.search._lanes._margin_dtype", lambda device: "float32")
            found = dal_test_batch(localizer, x, x_ref, "iid:1", draws=own)
        for one, other in zip(found, expected, strict=True):
            assert one.status is other.status
            if one.status is not Status.OK:
                continue
            assert one.p_low <= other.p_high and other.p_low <= one.p_high
            np.testing.assert_array_equal(one.region, other.region)
            # An end is searched to 1e-6; the roots' own error is far below.
            np.testing.assert_allclose(one.truncation, other.truncation, rtol=0, atol=4e-6)


def test_images_with_draws_of_their_own_do_not_mix():
    localizer = LOCALIZERS["dense"]
    rng = np.random.default_rng(1)
    x, x_ref, draws = rng.normal(size=(3, 6, *localizer.image_shape))
    together = dal_test_batch(localizer, x, x_ref, "iid:1", draws=draws)
    for number in range(6):
        one = slice(number, number + 1)
        alone = dal_test_batch(localizer, x[one], x_ref[one], "iid:1", draws=draws[one])
        same(together[number], alone[0])
        own = localizer.with_draws(draws[number])
        result = dal_test(own, x[number], x_ref[number], "iid:1", dtype="float64")
        # Another program: its sums may be in another order; the ends are known to 1e-6.
        assert together[number].p_value == pytest.approx(result.p_value, abs=1e-5, nan_ok=True)


def broken_score(params, draws, x):
    """NaN wherever the image's corner is above a limit."""
    return jnp.where(x[0, 0, 0] > params, jnp.nan, jnp.abs(x).sum(-1))


def test_a_localizer_that_breaks_for_one_image_breaks_for_it_alone():
    localizer = from_score(broken_score, (3, 3, 1), 1.0, np.array(6.0))
    x, x_ref = np.random.default_rng(2).normal(size=(2, 5, 3, 3, 1))
    x[:, 2, 2, 0] = 1.5  # flagged
    x[:, 0, 0, 0] = [0.5, 0.4, 7.0, 5.5, -0.1]  # the third is broken, the fourth on its line
    results = dal_test_batch(localizer, x, x_ref, "iid:1")
    statuses = [r.status for r in results]
    assert statuses[2:4] == [Status.NON_FINITE] * 2
    assert np.isnan([r.p_value for r in results[2:4]]).all()
    for number in (0, 1, 4):
        same(results[number], dal_test(localizer, x[number], x_ref[number], "iid:1"))
        assert statuses[number] is Status.OK
