"""Many tests side by side: the evaluations that they ask for share the batches of the devices."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from .._typing import Bool, Float, PyTree
from ._evaluator import Evaluated, Evaluator

# Calls that are under way at a time: the host works on one while the device computes the other.
CALLS = 2

Result = TypeVar("Result")


class Request(NamedTuple):
    """Images to be scored, one or more.

    Example:
        >>> Request(np.zeros((2, 4, 4, 1)), np.array([False, True]), ()).reconstruct
        False
    """

    images: Float[np.ndarray, "k H W C"]
    wide: Bool[np.ndarray, " k"]  # in float64; others in float32
    draws: PyTree  # for all of these images, where every task has its own
    reconstruct: bool = False  # of the last image, which must be wide


class Answer(NamedTuple):
    """Their scores.

    Example:
        >>> Answer(np.zeros((2, 4, 4)), None).score.shape
        (2, 4, 4)
    """

    score: Float[np.ndarray, "k H W"]  # float64
    reconstruction: Float[np.ndarray, "H W C"] | None  # of the last image, if asked for


Task = Generator[Request, Answer, Result]


def side_by_side(tasks: Sequence[Task[Result]]) -> Task[list[Result]]:
    """Makes one task of several: what they ask for at a time is asked for together.

    Args:
        tasks: which share their draws, and of which none asks for a reconstruction.

    Yields:
        The requests of those that are not done yet, as one.

    Returns:
        What each returned, in order.

    Example:
        >>> def brightest(image):
        ...     answer = yield Request(image[None], np.array([True]), ())
        ...     return float(answer.score.max())
        >>> task = side_by_side([brightest(np.full((1, 2, 1), value)) for value in (1.0, 2.0)])
        >>> asked = next(task)
        >>> try:
        ...     task.send(Answer(asked.images[..., 0], None))
        ... except StopIteration as end:
        ...     end.value
        [1.0, 2.0]

    Source: this project.
    """
    found: dict[int, Result] = {}
    asked: dict[int, Request] = {}

    def advance(number: int, answer: Answer | None) -> None:
        task: Any = tasks[number]
        try:
            asked[number] = task.send(answer)  # None starts it
        except StopIteration as end:
            found[number] = end.value

    for number in range(len(tasks)):
        advance(number, None)
    while asked:
        requests, asked = asked, {}
        parts = list(requests.values())
        images, wide = (np.concatenate(part) for part in list(zip(*parts, strict=True))[:2])
        answer = yield Request(images, wide, parts[0].draws)
        ends = np.cumsum([len(part.images) for part in parts])
        for number, score in zip(requests, np.split(answer.score, ends[:-1]), strict=True):
            advance(number, Answer(score, None))
    return [found[number] for number in range(len(tasks))]


class _Ticket:
    """A request that is being answered, row by row."""

    def __init__(self, key: Any, task: Any, request: Request):
        self.key, self.task, self.request = key, task, request
        self.missing = len(request.images)
        self.score = np.empty(request.images.shape[:3])
        self.reconstruction: np.ndarray | None = None


class _Call(NamedTuple):
    rows: list[tuple[_Ticket, int]]
    evaluated: Evaluated


def run_side_by_side(
    tasks: Iterable[tuple[Any, Task[Result]]], evaluator: Evaluator, in_flight: int
) -> Iterator[tuple[Any, Result]]:
    """Runs tasks that ask for evaluations, a number of them at a time, until all are done.

    A batch is started when it is full, or when nothing else is under way; a finished task makes
    room for the next one, so that the devices never wait for the slowest.

    Args:
        tasks: (key, generator) each; a generator yields `Request`, receives `Answer`.
        evaluator: of the images.
        in_flight: how many tasks at a time, 1 or more.

    Yields:
        (key, what the generator returned), in the order in which they finish.

    Example:
        >>> from dal_jax.search import Functions
        >>> def brightest(image):
        ...     answer = yield Request(image[None], np.array([True]), ())
        ...     return float(answer.score.max())
        >>> functions = Functions(lambda p, d, x: x[..., 0], lambda p, d, x: x, (1, 2, 1))
        >>> tasks = [(name, brightest(np.full((1, 2, 1), name))) for name in (1.0, 2.0, 3.0)]
        >>> sorted(run_side_by_side(tasks, Evaluator(functions, (), ()), in_flight=2))
        [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]

    Source: this project.
    """
    queue = iter(tasks)
    waiting: dict[str, deque[tuple[_Ticket, int]]] = {"float32": deque(), "float64": deque()}
    calls: deque[_Call] = deque()
    active, exhausted = 0, False
    while True:
        while active < in_flight and not exhausted:
            key, task = next(queue, (None, None))
            if task is None:
                exhausted = True
                break
            finished = _advance(key, task, None, waiting)
            if finished:
                yield key, finished[0]
            else:
                active += 1
        _start_calls(waiting, calls, evaluator)
        if not calls:
            return
        for ticket in _collect(calls.popleft()):
            answer = Answer(ticket.score, ticket.reconstruction)
            finished = _advance(ticket.key, ticket.task, answer, waiting)
            if finished:
                active -= 1
                yield ticket.key, finished[0]


def _advance(key: Any, task: Any, answer: Answer | None, waiting: Any) -> tuple[Any, ...]:
    """Lets a task go on until its next request; its result in a tuple if it is done."""
    try:
        request = next(task) if answer is None else task.send(answer)
    except StopIteration as end:
        return (end.value,)
    assert len(request.images)  # nothing would wake the task again
    ticket = _Ticket(key, task, request)
    for row, wide in enumerate(request.wide):
        waiting["float64" if wide else "float32"].append((ticket, row))
    return ()


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
    """Waits for a call and hands its rows to their tickets; those that are complete."""
    score = np.asarray(call.evaluated.score)
    for number, (ticket, row) in enumerate(call.rows):
        ticket.score[row] = score[number]
        ticket.missing -= 1
        if ticket.request.reconstruct and row == len(ticket.score) - 1:
            ticket.reconstruction = np.asarray(call.evaluated.reconstruction)[number]
        if not ticket.missing:
            yield ticket
