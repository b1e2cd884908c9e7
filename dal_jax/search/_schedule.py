"""Many tests side by side, whose evaluations share the batches of the devices."""

from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from dal_jax._typing import Bool, Float, PyTree
from dal_jax.search._evaluator import Evaluated, Evaluator
from dal_jax.search._lanes import CellQuery, Lanes, PointFacts, QueryPoints, SearchedLine

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


class LineRequest(NamedTuple):
    """Request about a line: the facts of points to be evaluated, or the cells between them.

    Example:
        >>> from dal_jax.search import select_region
        >>> score, images = np.array([[2.0, 0.0]]), np.ones((2, 1, 2, 1))
        >>> line = SearchedLine(*images, select_region(score, 1.0), score, 1.0, ())
        >>> points = QueryPoints(np.array([0.5]), np.array([True]))
        >>> LineRequest(line, points).query.wide.tolist()
        [True]
    """

    line: SearchedLine
    query: QueryPoints | CellQuery


# Yields a `ScoreRequest` and is sent its `ScoreReply`, yields a `LineRequest` and is sent
# `PointFacts` or `Cells`, or yields a list of tasks and is sent their results. The requests of one
# task are about one line.
Task = Generator[Any, Any, Result]


class _Running:
    """A task that waits for its turn, for an answer, or for its subtasks."""

    def __init__(self, key: Any, task: Any, whole: "_Running | None" = None):
        self.key, self.task, self.whole = key, task, whole
        self.results: list[Any] = []
        self.missing = 0
        self.lane: int | None = None  # of its line
        self.evaluated = 0  # points of its line

    def parts(self, tasks: Sequence[Any]) -> list["_Running"]:
        """Return the subtasks."""
        self.results, self.missing = [None] * len(tasks), len(tasks)
        return [_Running(number, task, self) for number, task in enumerate(tasks)]

    def take(self, number: int, result: Any) -> bool:
        """Take the result of a subtask; return whether it was the last one."""
        self.results[number] = result
        self.missing -= 1
        return not self.missing


class _Images:
    """Images that are being scored."""

    def __init__(self, task: _Running, request: ScoreRequest):
        self.task, self.request, self.wide = task, request, request.wide
        self.missing = len(request.images)
        self.score = np.empty(request.images.shape[:3])
        self.reconstruction: np.ndarray | None = None

    def take(self, row: int, outputs: Evaluated, place: int) -> None:
        """Take the outputs of one image."""
        self.score[row] = outputs.score[place]
        if self.request.reconstruct and row == len(self.score) - 1:
            self.reconstruction = np.asarray(outputs.reconstruction)[place]

    def reply(self) -> ScoreReply:
        """Return the answer."""
        return ScoreReply(self.score, self.reconstruction)


class _Points:
    """Points of a line that are being evaluated."""

    def __init__(self, task: _Running, line: SearchedLine, points: QueryPoints):
        self.task, self.line, self.z, self.wide = task, line, points.z, points.wide
        self.missing = len(points.z)
        self.first_slot = 1 + task.evaluated
        task.evaluated += len(points.z)
        empty = np.empty(len(points.z))
        self.facts = PointFacts(np.empty(len(points.z), bool), empty, empty.copy())

    def take(self, row: int, outputs: PointFacts, place: int) -> None:
        """Take the facts of one point."""
        for own, found in zip(self.facts, outputs, strict=True):
            own[row] = found[place]

    def reply(self) -> PointFacts:
        """Return the answer."""
        return self.facts


class _Call(NamedTuple):
    rows: list[tuple[Any, int]]  # of `_Images` or of `_Points`
    outputs: Any  # `Evaluated` or `PointFacts`, on the devices
    at: Any  # place of each row in the outputs


def run_side_by_side(
    tasks: Iterable[tuple[Any, Task[Result]]], evaluator: Evaluator, in_flight: int
) -> Iterator[tuple[Any, Result]]:
    """Run tasks that request evaluations, a number of them at a time, until all are done.

    A batch starts when it is full, or when no other is in progress; a finished task makes room for
    the next one, so that the devices never wait for the slowest. A task that waits for its subtasks
    takes no room; subtasks come before tasks that have not started.

    Args:
        tasks: Pairs (key, generator). A generator yields a `ScoreRequest` and receives the
            `ScoreReply`, yields a `LineRequest` and receives `PointFacts` or `Cells`, or yields a
            list of one or more such generators and receives their results, in order.
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
    batches = _Batches(evaluator, in_flight)
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
                batches.release(one)
                if one.whole is None:
                    yield one.key, end.value
                elif one.whole.take(one.key, end.value):
                    ready.append((one.whole, one.whole.results))
                    active += 1
                continue
            if isinstance(asked, list):
                assert asked  # nothing would wake the task again
                parts.extend(one.parts(asked))
                active -= 1
            else:
                batches.ask(one, asked)
        answered = batches.advance()
        if not answered:
            return
        ready.extend(answered)


class _Batches:
    """Requests of tasks that wait for a batch, and the batches in progress."""

    def __init__(self, evaluator: Evaluator, in_flight: int):
        self._evaluator, self._in_flight = evaluator, in_flight
        self._lanes: Lanes | None = None  # of the lines; made for the first one
        # Rows by dtype, and by whether they are points of lines or images.
        self._waiting: dict[tuple[str, type], deque[tuple[Any, int]]] = {
            (dtype, kind): deque()
            for dtype in ("float32", "float64")
            for kind in (_Points, _Images)
        }
        self._unjudged: list[tuple[_Running, CellQuery]] = []
        self._calls: deque[_Call] = deque()

    def ask(self, task: _Running, request: ScoreRequest | LineRequest) -> None:
        """Take the request of a task."""
        ticket: _Images | _Points
        if isinstance(request, ScoreRequest):
            ticket = _Images(task, request)
        else:
            if task.lane is None:
                if self._lanes is None:
                    self._lanes = Lanes(request.line, self._evaluator.devices, self._in_flight)
                task.lane = self._lanes.open(request.line)
            if isinstance(request.query, CellQuery):
                self._unjudged.append((task, request.query))
                return
            ticket = _Points(task, request.line, request.query)
        assert ticket.missing  # nothing would wake the task again
        for row, wide in enumerate(ticket.wide):
            self._waiting["float64" if wide else "float32", type(ticket)].append((ticket, row))

    def release(self, task: _Running) -> None:
        """Free what a finished task holds."""
        if task.lane is not None and self._lanes is not None:
            self._lanes.close(task.lane)

    def advance(self) -> list[tuple[_Running, Any]]:
        """Start what can be started, and wait for some answers; there are none if none are left."""
        while self._unjudged or self._calls or any(self._waiting.values()):
            judged = None
            if self._unjudged:
                assert self._lanes is not None
                tasks = [task for task, _ in self._unjudged]
                judged = self._lanes.judge([(t.lane or 0, q) for t, q in self._unjudged])
                self._unjudged = []
            self._start()
            if judged is not None:
                return list(zip(tasks, judged(), strict=True))
            answered = [(ticket.task, ticket.reply()) for ticket in self._collect()]
            if answered:
                return answered
        return []

    def _start(self) -> None:
        while len(self._calls) < CALLS:
            share = {
                kind: len(rows) / self._evaluator.capacity(kind[0])
                for kind, rows in self._waiting.items()
                if rows
            }
            fullest = max(share, key=lambda kind: share[kind], default=None)
            if fullest is None or (share[fullest] < 1 and self._calls):
                return
            start = self._start_points if fullest[1] is _Points else self._start_images
            self._calls.append(start(self._waiting[fullest], fullest[0]))

    def _start_images(self, waiting: deque[tuple[Any, int]], dtype: str) -> _Call:
        count = min(len(waiting), self._evaluator.capacity(dtype))
        rows = [waiting.popleft() for _ in range(count)]
        images = np.stack([ticket.request.images[row] for ticket, row in rows])
        draws = _stacked([ticket.request.draws for ticket, _ in rows])
        return _Call(rows, self._evaluator(images, draws, dtype), range(count))

    def _start_points(self, waiting: deque[tuple[Any, int]], dtype: str) -> _Call:
        lanes, capacity = self._lanes, self._evaluator.capacity(dtype)
        assert lanes is not None
        on_host = dtype == "float64" and lanes.dtype != dtype  # the devices have no float64
        if on_host:
            rows = [waiting.popleft() for _ in range(min(len(waiting), capacity))]
        else:
            each = capacity // len(self._evaluator.devices)
            rows = _take(waiting, each, lambda entry: lanes.device_of(entry[0].task.lane))
        places = [ticket.task.lane for ticket, _ in rows]
        slots = [ticket.first_slot + row for ticket, row in rows]
        z = np.array([ticket.z[row] for ticket, row in rows])
        if on_host:
            lines = [ticket.line for ticket, _ in rows]
            images = np.stack(
                [line.base + line.direction * at for line, at in zip(lines, z, strict=True)]
            )
            draws = _stacked([line.draws for line in lines])
            score = np.asarray(self._evaluator(images, draws, dtype).score)[: len(rows)]
            above = score - np.array([line.threshold for line in lines])[:, None, None]
            return _Call(rows, *lanes.store(above, places, slots))
        images, draws = lanes.images(places, z, each, dtype)
        score = self._evaluator(images, draws, dtype, len(rows)).score
        return _Call(rows, *lanes.store(score, places, slots))

    def _collect(self) -> Iterator[Any]:
        """Wait for the oldest call, hand its rows to their tickets, and yield complete ones."""
        rows, outputs, at = self._calls.popleft()
        if isinstance(outputs, PointFacts):
            outputs = PointFacts(*map(np.asarray, outputs))
        else:
            outputs = outputs._replace(score=np.asarray(outputs.score))
        for place, (ticket, row) in zip(at, rows, strict=True):
            ticket.take(row, outputs, place)
            ticket.missing -= 1
            if not ticket.missing:
                yield ticket


def _stacked(draws: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *draws)


def _take(waiting: deque[Any], each: int, device_of: Any) -> list[Any]:
    """Take entries from a queue, at most `each` of one device."""
    taken: list[Any] = []
    passed: list[Any] = []
    used: Counter[int] = Counter()
    while waiting:
        entry = waiting.popleft()
        device = device_of(entry)
        (taken if used[device] < each else passed).append(entry)
        used[device] += 1
    waiting.extend(passed)
    return taken
