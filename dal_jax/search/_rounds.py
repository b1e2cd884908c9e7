"""Rounds of many searches: judge the cells between evaluated points, and choose the next ones.

The host hands over the facts of the evaluated points, starts a handful of compiled programs, and
receives numbers of points, the points, and at the end the sets, bounds and interval.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dal_jax._arrays import power_of_2
from dal_jax._compat import quick_cpu_compilation
from dal_jax._typing import Array
from dal_jax.inference import Pieces, mean_effect, p_bounds
from dal_jax.search._adaptive import LineSearch
from dal_jax.search._cells import CellShares
from dal_jax.search._choice import (
    Chosen,
    Judged,
    LineState,
    Nodes,
    arrange,
    choose,
    judge_sets,
    seen_of,
    widths,
)
from dal_jax.search._lanes import JudgedRows, Lanes, each_row

# Smallest number of points that a round has room for, and of next points, which few exceed.
POINTS, ROOM = 64, 64


class Rounds:
    """Rounds of the searches that lanes hold.

    Args:
        lanes: Lanes of the searches.
    """

    def __init__(self, lanes: Lanes):
        self._lanes = lanes
        # Devices without float64 leave the choice to the host's processor.
        self._away = lanes.dtype != "float64"
        devices = jax.local_devices(backend="cpu")[:1] if self._away else lanes.devices
        self._programs = _programs_for(Mesh(np.array(devices), ("lanes",)))

    def start(self, searches: Sequence[LineSearch]) -> Callable[[], None]:
        """Start a round of searches whose points have all been evaluated.

        Args:
            searches: Searches with their lanes, each at most once.

        Returns:
            A function that waits for the round and hands its outcome to the searches, which then
            have new points or a result.
        """
        # A long line is no burden on the others.
        sizes = [max(POINTS, power_of_2(search.count)) for search in searches]
        rounds = [
            _Round(self._lanes, self._programs, self._away, own, size)
            for size in sorted({*sizes})
            for own in [[s for s, n in zip(searches, sizes, strict=True) if n == size]]
        ]

        def collect() -> None:
            for one in rounds:
                one.collect()

        return collect


class _Round:
    """A round of searches of about the same number of points."""

    def __init__(
        self,
        lanes: Lanes,
        programs: "_Programs",
        away: bool,
        searches: Sequence[LineSearch],
        size: int,
    ):
        self._searches, self._programs = searches, programs
        own = [search.lane for search in searches]
        rows, used = lanes.rows_for(own)
        points = np.zeros((len(searches), 4, size))
        for number, search in enumerate(searches):
            points[number, :, : search.count] = search.points[:, : search.count]
        self._counts = np.array([search.count for search in searches])
        self._deal = partial(lanes.deal, own, rows)
        self._at, (place, points, counts, states) = self._deal(points, self._counts, self._states())
        self._used = np.array([len(place)]) if away else used
        nodes, width = programs.arrange(self._used, points, counts)
        safety = states[:, LineState._fields.index("safety")]
        asked = JudgedRows(nodes.slot, width, nodes.inside, nodes.noise, nodes.count, safety)
        if away:
            asked = jax.tree.map(_for_device, asked)
        shares = lanes.judge(place, used, asked)
        if away:
            shares = CellShares(*map(np.asarray, shares))
        self._nodes: Nodes = nodes
        self._judged: Judged = programs.judge(self._used, nodes, shares, states)
        self._has_bounds = any(search.needs_bounds for search in searches)
        self._bounds: Any = np.full((len(place), 3), np.nan)
        if self._has_bounds:
            pieces, holds = self._judged.pieces, self._judged.holds
            self._bounds = programs.bounds(self._used, pieces, holds, states)
        self._chosen: Chosen = self._choose(states, ROOM)
        self._fetched: Any = None  # outcome on the host, if a search needs it

    def _states(self) -> np.ndarray:
        return np.array([search.state for search in self._searches])

    def _choose(self, states: np.ndarray, room: int) -> Chosen:
        return self._programs.choose[room](
            self._used, self._nodes, self._judged, states, self._bounds
        )

    def collect(self) -> None:
        """Wait for the round, and hand its outcome to the searches."""
        waiting, room = list(enumerate(self._searches)), ROOM
        while waiting:
            chosen = Chosen(*map(np.asarray, self._chosen))
            more = int(chosen.total[self._at].max())
            if more > room:
                room = power_of_2(more)
                _, (_, states) = self._deal(self._states())
                self._chosen = self._choose(states, room)
                continue
            again = []
            for number, search in waiting:
                row = self._at[number]
                own = Chosen(*(column[row] for column in chosen))
                if not search.follow(own, partial(self._outcome, row)):
                    again.append((number, search))
            if again:
                _, (_, states) = self._deal(self._states())
                self._chosen = self._choose(states, room)
            waiting = again
        self._conclude()

    def _outcome(self, row: int) -> tuple[Nodes, Judged, np.ndarray]:
        """Return nodes, sets and bounds of a row, as numpy arrays."""
        if self._fetched is None:
            every = self._nodes, self._judged, self._bounds
            self._fetched = jax.tree.map(np.asarray, every)
        return jax.tree.map(lambda column: column[row], self._fetched)

    def _conclude(self) -> None:
        """Compute the bounds and the interval of searches that ended."""
        ended = [number for number, one in enumerate(self._searches) if one.ended]
        if not ended:
            return
        rows = np.full(max(ROOM, power_of_2(len(ended))), self._at[ended[-1]])
        rows[: len(ended)] = self._at[ended]
        assert self._fetched is not None  # for the ends of these searches
        judged: Judged = self._fetched[1]
        low, high, member, counts = (column[rows] for column in judged.pieces)
        # Few sets have more pieces than this, however many points it took to find them.
        room = max(ROOM, power_of_2(counts.max()))
        low, high, member = (_fitted(column, room) for column in (low, high, member))
        pieces = Pieces(low, high, member, counts)
        numbers = ended + ended[-1:] * (len(rows) - len(ended))
        searches = [self._searches[number] for number in numbers]
        states = np.array([search.state for search in searches])
        confidence = np.array([search.request.confidence for search in searches])
        first, holds = np.array([len(ended)]), judged.holds[rows]
        interval = np.asarray(self._programs.interval(first, pieces, holds, states, confidence))
        bounds = self._fetched[2][rows]
        if not self._has_bounds:
            bounds = np.asarray(self._programs.last_bounds(first, pieces, holds, states))
        for row, number in enumerate(ended):
            self._searches[number].conclude(bounds[row], interval[row])


def _fitted(column: np.ndarray, room: int) -> np.ndarray:
    """Return columns (rows, room) of what counts, in arrays of any length."""
    return np.pad(column[:, :room], ((0, 0), (0, max(0, room - column.shape[1]))))


def _for_device(column: Array) -> np.ndarray:
    """Return an array of the host's processor, for a device without float64."""
    values = np.asarray(column)
    return values.astype(np.float32) if values.dtype == np.float64 else values


class _Programs(NamedTuple):
    arrange: Any
    judge: Any
    bounds: Any
    choose: Any  # by room
    # Of the few that end at a time:
    last_bounds: Any
    interval: Any


class _ByRoom(dict[int, Any]):
    """Programs by the number of points that they have room for."""

    def __init__(self, make: Callable[[int], Any]):
        super().__init__()
        self._make = make

    def __missing__(self, room: int) -> Any:
        self[room] = self._make(room)
        return self[room]


@lru_cache(maxsize=16)
def _programs_for(mesh: Mesh) -> _Programs:
    serial, apart = mesh.devices.flat[0].platform == "cpu", P("lanes")
    first = Mesh(mesh.devices[:1], ("lanes",))

    def mapped(one: Callable[..., Any], columns: int, mesh: Mesh = mesh) -> Any:
        over = jax.shard_map(
            partial(each_row, one, serial),
            mesh=mesh,
            in_specs=(apart,) * (1 + columns),
            out_specs=apart,
            check_vma=False,
        )
        return jax.jit(over, compiler_options=quick_cpu_compilation() if serial else None)

    return _Programs(
        mapped(_arrange, 2),
        mapped(_judge, 3),
        mapped(_bounds, 3),
        _ByRoom(lambda room: mapped(partial(_choose, room), 4)),
        mapped(_bounds, 3, first),
        mapped(_interval, 4, first),
    )


def _arrange(points: Array, count: Array) -> tuple[Nodes, Array]:
    nodes = arrange(points, count)
    return nodes, widths(nodes)


def _judge(nodes: Nodes, shares: CellShares, state: Array) -> Judged:
    return judge_sets(nodes, shares, LineState(*state))


def _bounds(pieces: Pieces, holds: Array, state: Array) -> Array:
    return p_bounds(pieces, seen_of(LineState(*state)), holds)


def _choose(room: int, nodes: Nodes, judged: Judged, state: Array, bounds: Array) -> Chosen:
    return choose(nodes, judged, LineState(*state), bounds, room)


def _interval(pieces: Pieces, holds: Array, state: Array, confidence: Array) -> Array:
    return mean_effect(pieces, seen_of(LineState(*state)), confidence, holds)
