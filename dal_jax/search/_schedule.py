"""Many tests side by side, whose evaluations share the batches of the devices."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from dal_jax._typing import Bool, Float, PyTree
from dal_jax.search._evaluator import Evaluated, Evaluator

# Calls in progress at a time: the host works on one while the device computes the other.
CALLS = 2

Result = TypeVar("Result")


class ScoreRequest(NamedTuple):
    """Request for the scores of one or more images.

    Example:
        >>> ScoreRequest(np.zeros((2, 4, 4, 1)), np.array([False, True]), ()).reconstruct
        False
    """

    images: Float[np.ndarray, "k H W C"]
    wide: Bool[np.ndarray, " k"]  # in float64; others in float32
    draws: PyTree  # of all of these images, where every task has its own
    reconstruct: bool = False  # whether to reconstruct the last image, which must be wide


class ScoreReply(NamedTuple):
    """Scores that answer a request.

    Example:
        >>> ScoreReply(np.zeros((2, 4, 4)), None).score.shape
        (2, 4, 4)
    """

    score: Float[np.ndarray, "k H W"]  # float64
    reconstruction: Float[np.ndarray, "H W C"] | None  # of the last image, if requested


# Yields a `ScoreRequest` and is sent its `ScoreReply`, or yields a list of tasks and is sent their
# results.
Task = Generator[Any, Any, Result]


class _Running:
    """A task that waits for its turn, for scores, or for its subtasks."""

    def __init__(self, key: Any, task: Any, whole: "_Running | None" = None):
        self.key, self.task, self.whole = key, task, whole
        self.results: list[Any] = []
        self.missing = 0

    def parts(self, tasks: Sequence[Any]) -> list["_Running"]:
        """Return the subtasks."""
        self.results, self.missing = [None] * len(tasks), len(tasks)
        return [_Running(number, task, self) for number, task in enumerate(tasks)]

    def take(self, number: int, result: Any) -> bool:
        """Take the result of a subtask; return whether it was the last one."""
        self.results[number] = result
        self.missing -= 1
        return not self.missing


class _Ticket:
    """A request that is being answered, row by row."""

    def __init__(self, task: _Running, request: ScoreRequest):
        self.task, self.request = task, request
        self.missing = len(request.images)
        self.score = np.empty(request.images.shape[:3])
        self.reconstruction: np.ndarray | None = None


class _Call(NamedTuple):
    rows: list[tuple[_Ticket, int]]
    evaluated: Evaluated


def run_side_by_side(
    tasks: Iterable[tuple[Any, Task[Result]]], evaluator: Evaluator, in_flight: int
) -> Iterator[tuple[Any, Result]]:
    """Run tasks that request evaluations, a number of them at a time, until all are done.

    A batch starts when it is full, or when no other is in progress; a finished task makes room for
    the next one, so that the devices never wait for the slowest. A task that waits for its subtasks
    takes no room; subtasks come before tasks that have not started.

    Args:
        tasks: Pairs (key, generator). A generator yields a `ScoreRequest` and receives the
            `ScoreReply`, or yields a list of one or more such generators and receives their
            results, in order.
        evaluator: Evaluator of the images.
        in_flight: Number of tasks at a time, 1 or more.

    Yields:
        (key, result of the generator), in the order in which the tasks finish.

    Example:
        >>> from dal_jax.search import Functions
        >>> def brightest(image):
        ...     answer = yield ScoreRequest(image[None], np.array([True]), ())
        ...     return float(answer.score.max())
        >>> functions = Functions(lambda p, d, x: x[..., 0], lambda p, d, x: x, (1, 2, 1))
        >>> tasks = [(name, brightest(np.full((1, 2, 1), name))) for name in (1.0, 2.0, 3.0)]
        >>> sorted(run_side_by_side(tasks, Evaluator(functions, (), ()), in_flight=2))
        [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    """
    queue = (_Running(key, task) for key, task in tasks)
    parts: deque[_Running] = deque()  # subtasks that have not started
    ready: deque[tuple[_Running, Any]] = deque()  # tasks, each with the value to send
    waiting: dict[str, deque[tuple[_Ticket, int]]] = {"float32": deque(), "float64": deque()}
    calls: deque[_Call] = deque()
    active = 0
    while True:
        while ready or active < in_flight:
            if not ready:
                new = parts.popleft() if parts else next(queue, None)
                if new is None:
                    break
                ready.append((new, None))
                active += 1
            one, sent = ready.popleft()
            try:
                asked = one.task.send(sent)  # None starts it
            except StopIteration as end:
                active -= 1
                if one.whole is None:
                    yield one.key, end.value
                elif one.whole.take(one.key, end.value):
                    ready.append((one.whole, one.whole.results))
                    active += 1
                continue
            if isinstance(asked, ScoreRequest):
                _ask(_Ticket(one, asked), waiting)
            else:
                assert len(asked)  # nothing would wake the task again
                parts.extend(one.parts(asked))
                active -= 1
        _start_calls(waiting, calls, evaluator)
        if not calls:
            return
        for ticket in _collect(calls.popleft()):
            ready.append((ticket.task, ScoreReply(ticket.score, ticket.reconstruction)))


def _ask(ticket: _Ticket, waiting: Any) -> None:
    assert ticket.missing  # nothing would wake the task again
    for row, wide in enumerate(ticket.request.wide):
        waiting["float64" if wide else "float32"].append((ticket, row))


def _start_calls(waiting: Any, calls: deque[_Call], evaluator: Evaluator) -> None:
    while len(calls) < CALLS:
        full = [d for d, rows in waiting.items() if rows and len(rows) >= evaluator.capacity(d)]
        some = [d for d, rows in waiting.items() if rows]
        if not full and (calls or not some):
            return
        dtype = max(full or some, key=lambda d: len(waiting[d]) / evaluator.capacity(d))
        count = min(len(waiting[dtype]), evaluator.capacity(dtype))
        rows = [waiting[dtype].popleft() for _ in range(count)]
        images = np.stack([ticket.request.images[row] for ticket, row in rows])
        own = [ticket.request.draws for ticket, _ in rows]
        draws = jax.tree.map(lambda *leaves: np.stack(leaves), *own)
        calls.append(_Call(rows, evaluator(images, draws, dtype)))


def _collect(call: _Call) -> Iterator[_Ticket]:
    """Wait for a call, hand its rows to their tickets, and yield the complete tickets."""
    score = np.asarray(call.evaluated.score)
    for number, (ticket, row) in enumerate(call.rows):
        ticket.score[row] = score[number]
        ticket.missing -= 1
        if ticket.request.reconstruct and row == len(ticket.score) - 1:
            ticket.reconstruction = np.asarray(call.evaluated.reconstruction)[number]
        if not ticket.missing:
            yield ticket
