"""Scores of many images at a time, in batches that many tests share."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dal_jax._arrays import cast_floats
from dal_jax._compat import exact_arithmetic, split_known
from dal_jax._errors import InputError
from dal_jax._typing import Array, Bool, Float, PyTree
from dal_jax.search._selection import tree_from_spec, tree_spec

# Pixels per device and call on a CPU (more leave the cache, fewer waste time between calls), and
# the largest number of images.
CPU_PIXELS, CPU_LANES = 2048, 32
# On other devices: pixels that keep a device busy, the largest number of images per call (more
# would be padding), and the share of the memory that a call may take.
DEVICE_PIXELS, DEVICE_LANES, MEMORY_SHARE = 2**20, 1024, 0.25


class Functions(NamedTuple):
    """Functions of a localizer; hashable, and equal ones share their programs.

    Example:
        >>> def brightness(params, draws, x):
        ...     return x.mean(-1)
        >>> Functions(brightness, lambda params, draws, x: x, (28, 28, 1)).image_shape
        (28, 28, 1)
    """

    score: Any  # (params, draws, x (H, W, C)) -> (H, W)
    reconstruct: Any  # (params, draws, x (H, W, C)) -> (H, W, C)
    image_shape: tuple[int, int, int]  # (H, W, C)


class Evaluated(NamedTuple):
    """Arrays on the devices, perhaps still being computed."""

    score: Array  # (capacity, H, W)
    reconstruction: Array | None  # (capacity, H, W, C), with float64 only


class _Program(NamedTuple):
    prepare: Any  # parameters and shared draws -> values that need no image
    apply: Any  # (prepared, draws of each image or (), images) -> outputs
    lanes: int  # images a device takes at a time
    temporary_bytes: int  # temporary memory of one device


class Evaluator:
    """Evaluator of images, `capacity` at a time, in float32 or in float64.

    Every device computes the same number of images with the same program, whichever tests they
    belong to. The place of an image in a batch, and the other images, change its scores by rounding
    alone: a matrix product may treat the last rows of a block differently from the first.

    Args:
        functions: Functions of the localizer.
        params: Parameters of the functions.
        draws: Draws shared by all images or, with `own_draws`, an example of the draws of one
            image.
        own_draws: Whether every image comes with its own draws.
        devices: Devices to be used; None selects all devices of this process.

    Raises:
        InputError: No devices; at the first use, scores whose shape is not that of the images.

    Example:
        >>> def brightness(params, draws, x):
        ...     return x.mean(-1)
        >>> functions = Functions(brightness, lambda params, draws, x: x, (1, 2, 1))
        >>> evaluated = Evaluator(functions, (), ())(np.full((3, 1, 2, 1), 7.0), (), "float32")
        >>> evaluated.score[:3].tolist()
        [[[7.0, 7.0]], [[7.0, 7.0]], [[7.0, 7.0]]]
    """

    @exact_arithmetic()
    def __init__(
        self,
        functions: Functions,
        params: PyTree,
        draws: PyTree,
        own_draws: bool = False,
        devices: Sequence[Any] | None = None,
    ):
        self._devices = tuple(jax.local_devices() if devices is None else devices)
        if not self._devices:
            raise InputError("devices is empty, expected at least one device")
        self._functions, self._own = functions, own_draws
        self._fixed = (params, () if own_draws else draws)
        self._one_draws = draws
        self._bound: dict[str, tuple[_Program, Any]] = {}

    def capacity(self, dtype: str) -> int:
        """Return the number of images of one call.

        Args:
            dtype: "float32" or "float64".

        Returns:
            The number, for all devices together.
        """
        return self._program(dtype)[0].lanes * len(_devices_for(self._devices, dtype))

    @exact_arithmetic()
    def __call__(
        self, images: Float[np.ndarray, "k H W C"], draws: PyTree, dtype: str
    ) -> Evaluated:
        """Start the evaluation of up to `capacity` images.

        Args:
            images: (k, H, W, C), k <= capacity.
            draws: Draws with a leading axis k if every image has its own, else unused.
            dtype: "float32" or "float64".

        Returns:
            The outputs, of which the first k rows are valid.
        """
        program, prepared = self._program(dtype)
        capacity = self.capacity(dtype)
        own = cast_floats(draws, dtype) if self._own else ()
        filled = jax.tree.map(lambda v: _pad(v, capacity), (own, images.astype(dtype)))
        outputs = program.apply(prepared, *filled)
        return Evaluated(outputs[0], outputs[1] if len(outputs) > 1 else None)

    @exact_arithmetic()
    def _program(self, dtype: str) -> tuple[_Program, Any]:
        if dtype not in self._bound:
            fixed = cast_floats(self._fixed, dtype)
            devices = _devices_for(self._devices, dtype)
            draws = tree_spec(cast_floats(self._one_draws, dtype)) if self._own else None
            program = _program_for(self._functions, tree_spec(fixed), draws, dtype, devices)
            self._bound[dtype] = program, program.prepare(fixed)
        return self._bound[dtype]


def _devices_for(devices: tuple[Any, ...], dtype: str) -> tuple[Any, ...]:
    """Return the devices, or the host's processor if they have no float64."""
    if dtype == "float64" and devices[0].platform == "tpu":
        return tuple(jax.local_devices(backend="cpu")[:1])
    return devices


def _pad(values: np.ndarray, count: int) -> np.ndarray:
    if len(values) == count:
        return values
    return np.concatenate(
        [values, np.zeros((count - len(values), *values.shape[1:]), values.dtype)]
    )


@lru_cache(maxsize=64)
def _program_for(
    functions: Functions, fixed: Any, draws: Any, dtype: str, devices: tuple[Any, ...]
) -> _Program:
    pixels = int(np.prod(functions.image_shape[:2]))
    if devices[0].platform == "cpu":
        lanes = int(np.clip(CPU_PIXELS // pixels, 1, CPU_LANES))
        return _compile(functions, fixed, draws, dtype, devices, lanes)
    trial = _compile(functions, fixed, draws, dtype, devices, 8)
    limit = (devices[0].memory_stats() or {}).get("bytes_limit", 2**33)
    fitting = MEMORY_SHARE * limit / max(1, trial.temporary_bytes / trial.lanes)
    wanted = min(DEVICE_PIXELS // pixels, DEVICE_LANES)
    lanes = 2 ** int(np.log2(np.clip(min(fitting, wanted), 1, DEVICE_LANES)))
    return _compile(functions, fixed, draws, dtype, devices, lanes)


def _compile(
    functions: Functions, fixed: Any, draws: Any, dtype: str, devices: tuple[Any, ...], lanes: int
) -> _Program:
    wanted = [functions.score]
    if dtype == "float64":  # the observed images, whose reconstructions are shown
        wanted.append(functions.reconstruct)

    def evaluate(given: Any, moving: Any) -> list[Array]:
        params, shared = given
        own, images = moving
        axes = (None, None, 0) if draws is None else (None, 0, 0)
        every = shared if draws is None else own
        return [jax.vmap(function, axes)(params, every, images) for function in wanted]

    def moving(count: int) -> Any:
        own = () if draws is None else tree_from_spec(draws)
        one = (own, jax.ShapeDtypeStruct(functions.image_shape, np.dtype(dtype)))
        return jax.tree.map(lambda v: jax.ShapeDtypeStruct((count, *v.shape), v.dtype), one)

    scores = jax.eval_shape(evaluate, tree_from_spec(fixed), moving(1))[0].shape[1:]
    if scores != functions.image_shape[:2]:
        raise InputError(f"localizer has scores {scores}, expected {functions.image_shape[:2]}")
    prepare, apply = split_known(evaluate, tree_from_spec(fixed), moving(lanes))
    mesh = Mesh(np.array(devices), ("lanes",))
    everywhere, apart = NamedSharding(mesh, P()), NamedSharding(mesh, P("lanes"))
    prepare = jax.jit(prepare, out_shardings=everywhere)
    mapped = jax.shard_map(
        lambda known, own, images: apply(known, (own, images)),
        mesh=mesh,
        in_specs=(P(), P("lanes"), P("lanes")),
        out_specs=P("lanes"),
        check_vma=False,
    )
    shapes = jax.eval_shape(prepare, tree_from_spec(fixed))
    program = jax.jit(mapped, in_shardings=(everywhere, apart, apart), out_shardings=apart)
    compiled = program.lower(shapes, *moving(lanes * len(devices))).compile()
    analysis = compiled.memory_analysis()
    return _Program(prepare, compiled, lanes, getattr(analysis, "temp_size_in_bytes", 0))


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
