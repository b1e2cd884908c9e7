"""The exact scan: the windows of many lines, visited on all devices without the host in between.

The host cuts the parts of lines into segments, hands them to the lanes of the devices
(`_windows.py`), joins what these found, and queues again what they left.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dal_jax._arrays import cast_floats, power_of_2
from dal_jax._compat import exact_arithmetic
from dal_jax._typing import Float
from dal_jax.inference import as_intervals
from dal_jax.search._engines import EngineResult
from dal_jax.search._evaluator import devices_for
from dal_jax.search._line_search import ExactSearch, SearchResult
from dal_jax.search._selection import LineProblem, tree_spec
from dal_jax.search._windows import (
    GAP,
    INSIDE,
    POINT,
    SEGMENTS_PER_LANE,
    Lines,
    Queue,
    Walk,
    program_for,
)

# Lines of a device that share the lanes, at least: even of those that need one more stride of the
# line, there are several segments for each lane.
LINES = 64
# No segment is cut shorter than this, standard deviations: every segment repeats a window.
SHORTEST = 1 / 16
# Records of a lane; a turn adds two at most. Few lines have more than ten runs.
RECORDS = 64
# Windows a lane visits at most before the host looks at what there is: it can be interrupted then.
TURNS = 1024


class ScanRequest(NamedTuple):
    """Request to search a line exactly, beside others.

    Example:
        >>> from dal_jax.search import exact_search, select_region
        >>> bright, along = lambda params, draws, x: x[..., 0], np.array([[[1.0], [0.0]]])
        >>> selected = select_region(np.array([[2.0, 0.0]]), 1.0)  # at z = 2
        >>> problem = LineProblem(bright, (), (), 1.0, 0 * along, along, selected, 2.0)
        >>> ScanRequest(problem, exact_search(problem.z_obs)).problem.threshold
        1.0
    """

    problem: LineProblem
    search: ExactSearch  # not started


class ScanReply(NamedTuple):
    """Searched line that answers a request.

    Example:
        >>> from dal_jax.inference import SelectiveP
        >>> from dal_jax.search import Status
        >>> line = as_intervals([-4.0, 4.0])
        >>> searched = SearchResult(line, line, SelectiveP(0.05, 0.05, 0.05), 3, 9, Status.OK)
        >>> ScanReply(searched, np.array([1.5, 2.5])).window.tolist()
        [1.5, 2.5]
    """

    searched: SearchResult
    window: Float[np.ndarray, " 2"]  # affine piece of the observed image, standardized z


class _Found:
    """Results on one line since it was asked for them."""

    def __init__(self, z_obs: float):
        self.z_obs = z_obs
        self.window = np.full(2, np.nan)
        self.reset()

    def reset(self) -> None:
        """Forget all but the window."""
        self.inside: list[np.ndarray] = []
        self.gaps: list[np.ndarray] = []
        self.windows, self.finite, self.asked = 0, True, False

    def result(self) -> EngineResult:
        """Return the result on all parts that were asked for."""
        inside, gaps = (
            as_intervals(np.concatenate([np.zeros((0, 2)), *runs]))
            for runs in (self.inside, self.gaps)
        )
        return EngineResult(inside, gaps, self.windows, self.windows, self.finite)


class Scan:
    """Lines of equal functions and shapes, whose windows the lanes of all devices walk.

    Args:
        problem: Problem of any of the lines.
        devices: Devices to be used.
        count: Largest number of lines at a time.
        own_draws: Whether every line has its own draws.
    """

    @exact_arithmetic()
    def __init__(
        self, problem: LineProblem, devices: Sequence[Any], count: int, own_draws: bool = False
    ):
        self._own = own_draws
        self._devices = devices_for(tuple(devices), "float64")
        self._capacity = power_of_2(max(count, LINES))
        fixed = cast_floats((problem.params, () if own_draws else problem.draws), "float64")
        one = self._values(problem)
        specs = tree_spec(fixed), tree_spec(tuple(one))
        sizes = self._capacity, RECORDS, TURNS
        self._program = program_for(problem.membership, *specs, self._devices, *sizes)
        self._known = self._program.prepare(fixed)
        self._lines = jax.tree.map(lambda v: np.zeros((self._capacity, *v.shape), v.dtype), one)
        self._placed: Any = None  # the lines on the devices, unless they changed
        self._free = list(range(self._capacity))[::-1]
        self._found: dict[int, _Found] = {}
        self._waiting: list[tuple[int, float, float]] = []  # (line, lo, hi)

    def _values(self, problem: LineProblem) -> Lines:
        draws = problem.draws if self._own else ()
        floats = draws, problem.base, problem.direction, np.asarray(problem.threshold, np.float64)
        draws, base, direction, threshold = jax.tree.map(np.asarray, cast_floats(floats, "float64"))
        return Lines(draws, base, direction, problem.selected, threshold)

    def open(self, problem: LineProblem) -> int:
        """Take a line, and return its number."""
        number = self._free.pop()
        for rows, value in zip(
            jax.tree.leaves(self._lines), jax.tree.leaves(self._values(problem)), strict=True
        ):
            rows[number] = value
        self._placed, self._found[number] = None, _Found(problem.z_obs)
        return number

    def close(self, number: int) -> None:
        """Free the number of a line."""
        del self._found[number]
        self._free.append(number)

    def window(self, number: int) -> Float[np.ndarray, " 2"]:
        """Return the window of the observed image of a line whose point was asked for."""
        return self._found[number].window

    def ask(
        self, number: int, parts: Sequence[tuple[float, float]], observed: bool = False
    ) -> None:
        """Queue parts of a line and, if requested, the window of its observed image."""
        found = self._found[number]
        found.asked = True
        if observed:
            self._waiting.append((number, found.z_obs, found.z_obs))
        self._waiting += [(number, float(lo), float(hi)) for lo, hi in parts]

    @exact_arithmetic()
    def walk(self) -> list[tuple[int, EngineResult]]:
        """Walk what waits, as far as the capacities of one call reach.

        Returns:
            The lines of which all parts are done, with their results.
        """
        limits, devices = self._program.limits, len(self._devices)
        lanes, room = devices * limits.lanes, devices * limits.queue
        rows, self._waiting = cut_segments(self._waiting, lanes * SEGMENTS_PER_LANE, room)
        if rows:
            # Dealt like cards: neighbours, which are about as long to walk, go to all devices.
            dealt = [rows[k::devices] for k in range(devices)]
            queue = np.zeros((devices, limits.queue, 3))
            for own, some in zip(queue, dealt, strict=True):
                own[: len(some)] = np.asarray(some).reshape(-1, 3)
            line, lo, hi = queue.reshape(-1, 3).T
            used = np.array([len(some) for some in dealt], np.int32)
            if self._placed is None:
                mesh = Mesh(np.array(self._devices), ("lanes",))
                self._placed = jax.device_put(self._lines, NamedSharding(mesh, P()))
            given = Queue(line.astype(np.int32), np.array(lo), np.array(hi), used)
            done = self._program.walk(self._known, self._placed, given)
            self._collect(jax.tree.map(np.asarray, done), dealt)
        return self._finished()

    def _collect(self, done: Walk, dealt: list[list[tuple[int, float, float]]]) -> None:
        """Hand records to their lines, and queue again what is left."""
        rest = [row for some, taken in zip(dealt, done.taken, strict=True) for row in some[taken:]]
        lanes = done.lanes
        left = zip(*(column[lanes.busy].tolist() for column in lanes[:3]), strict=True)
        self._waiting = [*left, *rest, *self._waiting]
        records = done.records
        valid = np.arange(records.kind.shape[2]) < records.count[..., None]
        kind, line = records.kind[valid], records.line[valid]
        ends = np.stack([records.lo[valid], records.hi[valid]], axis=1)
        windows, finite = done.windows.sum(axis=0), done.finite.all(axis=0)
        for number, found in self._found.items():
            own = line == number
            found.inside.append(ends[own & (kind == INSIDE)])
            found.gaps.append(ends[own & (kind == GAP)])
            for window in ends[own & (kind == POINT)]:
                found.window = window
            found.windows += int(windows[number])
            found.finite &= bool(finite[number])

    def _finished(self) -> list[tuple[int, EngineResult]]:
        waiting = {number for number, _, _ in self._waiting}
        done = []
        for number, found in self._found.items():
            if found.asked and number not in waiting:
                done.append((number, found.result()))
                found.reset()
        return done


def cut_segments(
    waiting: Sequence[tuple[int, float, float]], count: int, room: int
) -> tuple[list[tuple[int, float, float]], list[tuple[int, float, float]]]:
    """Cut parts of lines into segments of nearly equal length, in order.

    Args:
        waiting: (line, lo, hi) of each part; points have no length and stay whole.
        count: Number of segments wanted, of which there may be one more for each part.
        room: Largest number of segments.

    Returns:
        Segments (line, lo, hi), and the parts that found no room.
    """
    total = sum(hi - lo for _, lo, hi in waiting)
    length = max(SHORTEST, total / count)
    rows: list[tuple[int, float, float]] = []
    for number, (line, lo, hi) in enumerate(waiting):
        pieces = min(max(1, int((hi - lo) / length)), room)
        if len(rows) + pieces > room:
            return rows, list(waiting[number:])
        edges = np.linspace(lo, hi, pieces + 1).tolist()
        rows += [(line, edges[k], edges[k + 1]) for k in range(pieces)]
    return rows, []


class ScanEngine:
    """Engine that walks the windows of one line, in float64.

    Args:
        problem: Problem of the line.

    Example:
        >>> from dal_jax.search import select_region
        >>> bright, along = lambda params, draws, x: x[..., 0], np.array([[[1.0], [0.0]]])
        >>> selected = select_region(np.array([[2.0, 0.0]]), 1.0)  # at z = 2
        >>> problem = LineProblem(bright, (), (), 1.0, 0 * along, along, selected, 2.0)
        >>> ScanEngine(problem)([(-4.0, 4.0)]).inside.round(6).tolist()
        [[1.0, 4.0]]
    """

    def __init__(self, problem: LineProblem):
        self._scan = Scan(problem, jax.local_devices()[:1], 1)
        self._line = self._scan.open(problem)

    def __call__(self, parts: Sequence[tuple[float, float]]) -> EngineResult:
        """Search parts of the line.

        Args:
            parts: (lo, hi) pairs, standardized z, disjoint, ascending, finite.

        Returns:
            The result within these parts.
        """
        self._scan.ask(self._line, parts)
        done: list[tuple[int, EngineResult]] = []
        while not done:
            done = self._scan.walk()
        return done[0][1]
