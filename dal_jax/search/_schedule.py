"""Many tests side by side, whose evaluations share the batches of the devices."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from dal_jax._compat import exact_arithmetic
from dal_jax._typing import Bool, Float, PyTree
from dal_jax.search._adaptive import LineRequest, LineSearch
from dal_jax.search._evaluator import Evaluated, Evaluator
from dal_jax.search._lanes import Lanes
from dal_jax.search._rounds import Rounds
from dal_jax.search._scan import Scan, ScanReply, ScanRequest
from dal_jax.search._selection import Membership

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


# Yields a `ScoreRequest` and is sent its `ScoreReply`, a `LineRequest` and is sent the
# `AdaptiveResult`, a `ScanRequest` and is sent its `ScanReply`, or yields a list of tasks and is
# sent their results.
Task = Generator[Any, Any, Result]


class _Running:
    """A task that waits for its turn, for an answer, or for its subtasks."""

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


class _Line:
    """A line that is being searched."""

    def __init__(self, task: _Running, request: LineRequest, lane: int):
        self.task, self.request, self.search = task, request, LineSearch(request, lane)


class _Scanning:
    """Lines that are searched exactly, with their tasks."""

    def __init__(self, scan: Scan):
        self._scan = scan
        self.tasks: dict[int, tuple[_Running, ScanRequest]] = {}  # by number of the line

    def open(self, task: _Running, request: ScanRequest) -> None:
        """Begin the search of a line."""
        parts = next(request.search)
        number = self._scan.open(request.problem)
        self.tasks[number] = task, request
        self._scan.ask(number, parts, observed=True)

    def advance(self) -> list[tuple[_Running, ScanReply]]:
        """Walk what waits, and answer the tasks whose searches ended."""
        answered = []
        for number, found in self._scan.walk():
            task, request = self.tasks[number]
            try:
                self._scan.ask(number, request.search.send(found))
            except StopIteration as end:
                answered.append((task, ScanReply(end.value, self._scan.window(number))))
                self._scan.close(number)
                del self.tasks[number]
        return answered


class _Queue:
    """Images or points that wait for a batch of one precision, in groups of one request."""

    def __init__(self) -> None:
        self.groups: deque[tuple[Any, np.ndarray]] = deque()  # `_Images` or `_Line`, and its rows
        self.length = 0

    def put(self, ticket: Any, rows: np.ndarray) -> None:
        """Add rows of a request."""
        if len(rows):
            self.groups.append((ticket, rows))
            self.length += len(rows)

    def take(
        self, each: int, device_of: Any = lambda ticket: 0, devices: int = 1
    ) -> list[tuple[Any, np.ndarray]]:
        """Take the first rows, at most `each` of one device."""
        taken: list[tuple[Any, np.ndarray]] = []
        passed: list[tuple[Any, np.ndarray]] = []
        room = [each] * devices
        while self.groups and any(room):
            ticket, rows = self.groups.popleft()
            device = device_of(ticket)
            own, rest = rows[: room[device]], rows[room[device] :]
            if len(own):
                taken.append((ticket, own))
                room[device] -= len(own)
                self.length -= len(own)
            if len(rest):
                passed.append((ticket, rest))
        self.groups.extendleft(reversed(passed))
        return taken


class _Call(NamedTuple):
    groups: list[tuple[Any, np.ndarray]]  # of `_Images` or of `_Line`, with rows
    outputs: Any  # `Evaluated`, or facts as `Lanes.store` returns them, on the devices
    at: np.ndarray  # place of each row in the outputs


def run_side_by_side(
    tasks: Iterable[tuple[Any, Task[Result]]], evaluator: Evaluator, in_flight: int
) -> Iterator[tuple[Any, Result]]:
    """Run tasks that request evaluations, a number of them at a time, until all are done.

    A batch starts when it is full, or when no other is in progress; a finished task makes room for
    the next one, so that the devices never wait for the slowest. A task that waits for its subtasks
    takes no room; subtasks come before tasks that have not started.

    Args:
        tasks: Pairs (key, generator). A generator yields a `ScoreRequest` and receives the
            `ScoreReply`, yields a `LineRequest` and receives the `AdaptiveResult`, yields a
            `ScanRequest` and receives the `ScanReply`, or yields a list of one or more such
            generators and receives their results, in order.
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
        self._scans: dict[Membership, _Scanning] = {}  # each made for the first line
        self._lanes: Lanes | None = None  # of the lines; made for the first one
        self._rounds: Rounds | None = None
        # Rows by dtype, and by whether they are points of lines or images.
        self._waiting = {
            (dtype, kind): _Queue() for dtype in ("float32", "float64") for kind in (_Line, _Images)
        }
        self._capacity: dict[str, int] = {}
        self._evaluated: list[_Line] = []  # whose points wait for a round
        self._calls: deque[_Call] = deque()

    def ask(self, task: _Running, request: ScoreRequest | LineRequest | ScanRequest) -> None:
        """Take the request of a task."""
        if isinstance(request, ScanRequest):
            self._scan_of(request).open(task, request)
            return
        if isinstance(request, ScoreRequest):
            assert len(request.wide)  # nothing would wake the task again
            self._enqueue(_Images(task, request), request.wide)
            return
        if self._lanes is None:
            self._lanes = Lanes(request.line, self._evaluator.devices, self._in_flight)
            self._rounds = Rounds(self._lanes)
        line = _Line(task, request, self._lanes.open(request.line))
        self._enqueue(line, line.search.wide)

    def _scan_of(self, request: ScanRequest) -> _Scanning:
        kind = request.problem.membership
        if kind not in self._scans:
            evaluator = self._evaluator
            how = evaluator.devices, self._in_flight, evaluator.own_draws
            self._scans[kind] = _Scanning(Scan(request.problem, *how))
        return self._scans[kind]

    def _enqueue(self, ticket: "_Images | _Line", wide: np.ndarray) -> None:
        kind = type(ticket)
        self._waiting["float32", kind].put(ticket, np.flatnonzero(~wide))
        self._waiting["float64", kind].put(ticket, np.flatnonzero(wide))

    @exact_arithmetic()
    def advance(self) -> list[tuple[_Running, Any]]:
        """Start what can be started, and wait for some answers; there are none if none are left."""
        while self._evaluated or self._calls or any(q.length for q in self._waiting.values()):
            lines: list[_Line] = []
            if not self._is_full():  # else more lines share a round
                lines, self._evaluated = self._evaluated, []
            going = [line for line in lines if line.search.settle()]
            finish = None
            if going:
                assert self._rounds is not None
                finish = self._rounds.start([line.search for line in going])
            self._start()
            if finish is not None:
                finish()
            answered = [self._close(line) for line in lines if line.search.result is not None]
            for line in going:
                if line.search.result is None:
                    self._enqueue(line, line.search.wide)
            if not lines:
                answered = self._collect()
            if answered:
                return answered
        # All images are scored that could be: the lanes walk as many lines as there are.
        while scans := [scan for scan in self._scans.values() if scan.tasks]:
            if answered := [answer for scan in scans for answer in scan.advance()]:
                return answered
        return []

    def _is_full(self) -> bool:
        """Return whether enough waits for a full batch."""
        # Asking for its capacity compiles the program of a dtype; an empty queue may never need it.
        return any(
            queue.length and queue.length >= self._capacity_of(dtype)
            for (dtype, _), queue in self._waiting.items()
        )

    def _close(self, line: _Line) -> tuple[_Running, Any]:
        assert self._lanes is not None
        self._lanes.close(line.search.lane)
        return line.task, line.search.result

    def _capacity_of(self, dtype: str) -> int:
        if dtype not in self._capacity:
            self._capacity[dtype] = self._evaluator.capacity(dtype)
        return self._capacity[dtype]

    def _start(self) -> None:
        while len(self._calls) < CALLS:
            share = {
                kind: queue.length / self._capacity_of(kind[0])
                for kind, queue in self._waiting.items()
                if queue.length
            }
            fullest = max(share, key=lambda kind: share[kind], default=None)
            if fullest is None or (share[fullest] < 1 and self._calls):
                return
            start = self._start_points if fullest[1] is _Line else self._start_images
            self._calls.append(start(self._waiting[fullest], fullest[0]))

    def _start_images(self, waiting: _Queue, dtype: str) -> _Call:
        groups = waiting.take(self._capacity_of(dtype))
        images = np.concatenate([ticket.request.images[rows] for ticket, rows in groups])
        draws = _stacked([ticket.request.draws for ticket, rows in groups for _ in rows])
        shown = any(
            ticket.request.reconstruct and len(ticket.score) - 1 in rows for ticket, rows in groups
        )
        outputs = self._evaluator(images, draws, dtype, reconstruct=shown)
        return _Call(groups, outputs, np.arange(len(images)))

    def _start_points(self, waiting: _Queue, dtype: str) -> _Call:
        lanes, each = self._lanes, self._capacity_of(dtype)
        assert lanes is not None
        on_host = dtype == "float64" and lanes.dtype != dtype  # the devices have no float64
        if on_host:
            groups = waiting.take(each)
        else:
            devices = len(lanes.devices)
            each = each // devices
            groups = waiting.take(each, lambda line: lanes.device_of(line.search.lane), devices)
        lines = [(line.search, rows) for line, rows in groups]
        places = np.array([one.lane for one, rows in lines for _ in range(len(rows))])
        slots = np.concatenate([one.count + rows for one, rows in lines])
        z = np.concatenate([one.z[rows] for one, rows in lines])
        if on_host:
            return _Call(groups, *lanes.store(self._on_host(groups, dtype, z), places, slots))
        images, draws = lanes.images(places, z, each, dtype)
        score = self._evaluator(images, draws, dtype, lanes.count(places)).score
        return _Call(groups, *lanes.store(score, places, slots))

    def _on_host(self, groups: list[tuple[_Line, np.ndarray]], dtype: str, z: Any) -> np.ndarray:
        """Return scores less their thresholds."""
        lines = [line.request.line for line, rows in groups for _ in rows]
        images = np.stack(
            [line.base + line.direction * at for line, at in zip(lines, z, strict=True)]
        )
        draws = _stacked([line.draws for line in lines])
        score = np.asarray(self._evaluator(images, draws, dtype).score)[: len(lines)]
        return score - np.array([line.threshold for line in lines])[:, None, None]

    def _collect(self) -> list[tuple[_Running, Any]]:
        """Wait for the oldest call, hand its rows to their tickets, and answer complete ones."""
        groups, outputs, at = self._calls.popleft()
        answered, first = [], 0
        if not isinstance(outputs, Evaluated):
            facts = np.asarray(outputs)[at]
            for line, rows in groups:
                if line.search.take(rows, facts[first : (first := first + len(rows))]):
                    self._evaluated.append(line)
            return []
        outputs = outputs._replace(score=np.asarray(outputs.score))
        for ticket, rows in groups:
            for place, row in zip(at[first:], rows.tolist(), strict=False):
                ticket.take(row, outputs, place)
            first += len(rows)
            ticket.missing -= len(rows)
            if not ticket.missing:
                answered.append((ticket.task, ticket.reply()))
        return answered


def _stacked(draws: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *draws)
