"""Lines under search, whose evaluated score maps stay on the devices and are judged there.

A lane holds one line: its images, its pixels' roles and the margins at its evaluated points. The
host keeps the places of these points and receives a few numbers for each.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dal_jax._arrays import cast_floats
from dal_jax._compat import exact_arithmetic
from dal_jax._typing import Array, Bool, Float, Int, PyTree
from dal_jax.search._cells import CellShares, EvaluatedPoints, decide_cells
from dal_jax.search._selection import SelectedRegion

# Roles of pixels; the others do not count.
REGION, RIM, REST = 1, 2, 3
# Smallest numbers of points that a lane holds, and that are judged, which few searches exceed.
SLOTS, JUDGED = 128, 64
# There are lanes for as many pixels as this at least, so that small runs share their programs.
PIXELS = 4096


class SearchedLine(NamedTuple):
    """A line to be searched, and the score that selected its region.

    Example:
        >>> score, images = np.array([[2.0, 0.0]]), np.ones((2, 1, 2, 1))
        >>> from dal_jax.search import select_region
        >>> line = SearchedLine(*images, select_region(score, 1.0), score, 1.0, ())
        >>> line.base.shape
        (1, 2, 1)
    """

    base: Float[np.ndarray, "H W C"]  # independent of the statistic
    direction: Float[np.ndarray, "H W C"]  # per standard deviation of the statistic
    selected: SelectedRegion  # at the observed point
    score: Float[np.ndarray, "H W"]  # at the observed point, in float64
    threshold: float  # of the score
    draws: PyTree  # of this line, where every task has its own


class QueryPoints(NamedTuple):
    """Points of a line to be evaluated.

    Example:
        >>> QueryPoints(np.array([0.5, 1.0]), np.array([False, True])).z.tolist()
        [0.5, 1.0]
    """

    z: Float[np.ndarray, " k"]  # standardized
    wide: Bool[np.ndarray, " k"]  # in float64, whatever the precision of the search


class PointFacts(NamedTuple):
    """What the host learns of evaluated points.

    Example:
        >>> facts = PointFacts(np.array([True]), np.array([0.2]), np.array([0.7]))
        >>> bool(facts.inside[0]), float(facts.lowest[0])
        (True, 0.2)
    """

    inside: Bool[np.ndarray, " k"]  # the region is the observed one
    lowest: Float[np.ndarray, " k"]  # lowest margin, units of the score; NaN if one is not finite
    moved: Float[np.ndarray, " k"]  # largest distance of a margin from that at the observed point


class CellQuery(NamedTuple):
    """Points of a line whose cells are to be judged, ascending.

    Example:
        >>> places = np.array([-1.0, 0.5, 2.0])
        >>> query = CellQuery(np.array([1, 0, 2]), places, places > 0, np.zeros(3), safety=4.0)
        >>> query.inside.tolist()
        [False, True, True]
    """

    slot: Int[np.ndarray, " N"]  # number of each point in the order of evaluation; 0: the observed
    z: Float[np.ndarray, " N"]  # standardized
    inside: Bool[np.ndarray, " N"]
    noise: Float[np.ndarray, " N"]  # largest rounding error of a margin, units of the score
    safety: float  # factor on the interpolation error


class Cells(NamedTuple):
    """The N - 1 cells between neighbouring points; start >= stop where all of a cell is decided.

    Left of `start` a cell is like its left node, right of `stop` like its right node.

    Example:
        >>> cells = Cells(*(np.array([v]) for v in (0.2, 0.3, 0.25, 0.01)))
        >>> bool(cells.start < cells.stop)
        True
    """

    start: Float[np.ndarray, " N-1"]  # standardized z
    stop: Float[np.ndarray, " N-1"]
    root: Float[np.ndarray, " N-1"]  # end of the set by the chords; NaN if both nodes agree
    error: Float[np.ndarray, " N-1"]  # E of the pixel that crosses there, or of the lowest one


class _State(NamedTuple):
    base: Any  # (lanes, H, W, C)
    direction: Any  # (lanes, H, W, C)
    role: Any  # (lanes, pixels)
    threshold: Any  # (lanes,)
    draws: PyTree  # leaves (lanes, ...)


class _Judged(NamedTuple):
    """Queries of lanes, `rows` of each device; those of a `CellQuery`, and what follows from it."""

    lane: Any  # (rows,), on its device
    slot: Any  # (rows, N)
    width: Any  # (rows, N - 1)
    inside: Any  # (rows, N)
    noise: Any  # (rows, N)
    count: Any  # (rows,)
    safety: Any  # (rows,)


class Lanes:
    """Lanes on all devices of an evaluator.

    Args:
        line: Any of the lines, whose shapes all others have.
        devices: Devices, each with the same number of lanes.
        count: Number of lanes in all, 1 or more.
    """

    def __init__(self, line: SearchedLine, devices: Sequence[Any], count: int):
        self._devices = len(devices)
        self.dtype = _margin_dtype(devices[0])
        # Powers of 2, so that runs of about the same size share their programs.
        least = -(-PIXELS // line.score.size)
        self._each = _power_of_2(max(least, -(-count // self._devices)))
        lanes = np.arange(self._each * self._devices).reshape(self._devices, self._each)
        self._free = lanes[:, ::-1].tolist()  # of each device
        mesh = Mesh(np.array(devices), ("lanes",))
        self._programs = _programs_for(mesh, self.dtype)
        self._apart = NamedSharding(mesh, P("lanes"))
        with exact_arithmetic():
            self._state = jax.tree.map(self._zeros, self._values(line))
            self._margin = self._zeros(np.zeros((SLOTS, line.score.size), self.dtype))

    def _zeros(self, example: np.ndarray) -> Array:
        shape = (self._each * self._devices, *np.shape(example))
        return jnp.zeros(shape, example.dtype, device=self._apart)

    def _values(self, line: SearchedLine) -> _State:
        role = np.zeros(line.score.shape, np.int8)
        for number, pixels in zip((REGION, RIM, REST), line.selected, strict=True):
            role[pixels] = number
        floats = line.base, line.direction, np.asarray(line.threshold, np.float64), line.draws
        base, direction, threshold, draws = cast_floats(floats, self.dtype)
        return _State(base, direction, role.reshape(-1), threshold, draws)

    def device_of(self, lane: int) -> int:
        """Return the number of the device that holds a lane."""
        return lane // self._each

    @exact_arithmetic()
    def open(self, line: SearchedLine) -> int:
        """Give a line a free lane, with the observed point in slot 0, and return its number."""
        lane = max(self._free, key=len).pop()
        _, (place,) = self._deal([lane], 1)
        # Rounded after the threshold is subtracted, the margins keep their roots.
        above = (line.score - line.threshold).astype(self.dtype)
        self._state, self._margin = self._programs.open(
            self._state, self._margin, place, self._values(line), above
        )
        return lane

    def close(self, lane: int) -> None:
        """Free a lane."""
        self._free[self.device_of(lane)].append(lane)

    @exact_arithmetic()
    def images(self, lanes: Sequence[int], z: Any, rows: int, dtype: str) -> tuple[Array, PyTree]:
        """Compute the images at points of lines.

        Args:
            lanes: Lane of each point, at most `rows` on one device.
            z: Points (k,), standardized.
            rows: Number of images of each device.
            dtype: Dtype of the images.

        Returns:
            The images (devices rows, H, W, C) and the draws of their lines; `store` takes the
            scores in the same order.
        """
        _, (place, points) = self._deal(lanes, rows, np.asarray(z, np.float64))
        return self._programs.images[dtype](self._state, place, points)

    @exact_arithmetic()
    def store(
        self, score: Array | np.ndarray, lanes: Sequence[int], slots: Sequence[int]
    ) -> tuple[PointFacts, np.ndarray]:
        """Store the margins of evaluated points in their lanes.

        Args:
            score: Scores (devices rows, H, W) of images that `images` computed for these lanes; or
                scores less their thresholds (k, H, W), of each point, on the host.
            lanes: Lane of each point.
            slots: Number of each point in its lane, in the order of evaluation, from 1 on.

        Returns:
            Facts by row, on the devices, and the row of each point.
        """
        if max(slots) >= self._margin.shape[1]:
            self._margin = self._programs.grow(_power_of_2(max(slots) + 1), self._margin)
        columns = [np.asarray(slots)]
        if on_host := isinstance(score, np.ndarray):
            rows = _power_of_2(max(np.bincount([*map(self.device_of, lanes)])))
            columns.append(score.astype(self.dtype))
        else:
            rows = len(score) // self._devices
        at, (place, slot, *dealt) = self._deal(lanes, rows, *columns)
        share = np.asarray(not on_host, self.dtype)
        score = dealt[0] if on_host else score
        self._margin, facts = self._programs.store(
            self._margin, self._state, score, place, slot, share
        )
        return facts, at

    @exact_arithmetic()
    def judge(self, queries: Sequence[tuple[int, CellQuery]]) -> Callable[[], list[Cells]]:
        """Start to decide the cells of lines.

        Args:
            queries: Lanes with their queries, each lane at most once.

        Returns:
            A function that waits for the cells of each query and returns them.
        """
        # A long line is no burden on the others.
        lengths = [max(JUDGED, _power_of_2(len(query.z))) for _, query in queries]
        groups = [
            [number for number, own in enumerate(lengths) if own == length]
            for length in sorted({*lengths})
        ]
        started = [
            self._start_judging([queries[k] for k in own], lengths[own[0]]) for own in groups
        ]

        def collect() -> list[Cells]:
            found: dict[int, Cells] = {}
            for own, finish in zip(groups, started, strict=True):
                found |= zip(own, finish(), strict=True)
            return [found[number] for number in range(len(queries))]

        return collect

    def _start_judging(
        self, queries: Sequence[tuple[int, CellQuery]], points: int
    ) -> Callable[[], list[Cells]]:
        """Start to decide the cells of lines of at most `points` points."""
        lanes = [lane for lane, _ in queries]
        given = [_padded(query, points) for _, query in queries]
        columns = [np.stack(column) for column in zip(*given, strict=True)]
        used = np.bincount([self.device_of(lane) for lane in lanes], minlength=self._devices)
        rows = self._each if self._programs.serial else _power_of_2(max(used))
        at, dealt = self._deal(lanes, rows, *columns)
        shares = self._programs.judge(self._margin, self._state.role, used, _Judged(*dealt))

        def collect() -> list[Cells]:
            found = CellShares(*map(np.asarray, shares))
            return [
                _cells(query.z, CellShares(*(column[row, : len(query.z) - 1] for column in found)))
                for row, (_, query) in zip(at, queries, strict=True)
            ]

        return collect

    def _deal(
        self, lanes: Sequence[int], rows: int, *columns: np.ndarray
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Deal entries to the rows of their devices.

        Returns:
            The row of each entry, and the columns by row, that of the lanes' places first. In empty
            rows a place is that of no lane and other columns repeat their last entry.
        """
        used = [0] * self._devices
        at = np.empty(len(lanes), int)
        place = np.full(self._devices * rows, self._each)
        for number, lane in enumerate(lanes):
            device, own = divmod(lane, self._each)
            at[number] = device * rows + used[device]
            used[device] += 1
            place[at[number]] = own
        dealt = [place]
        for column in columns:
            dealt.append(np.repeat(column[-1:], len(place), axis=0))
            dealt[-1][at] = column
        return at, dealt


def _margin_dtype(device: Any) -> str:
    return "float32" if device.platform == "tpu" else "float64"  # a TPU has no float64


def _power_of_2(least: int) -> int:
    return 1 << int(least - 1).bit_length()


def _padded(query: CellQuery, points: int) -> tuple[Any, ...]:
    """Return the columns of `_Judged` but the lane, with arrays of a length of `points`."""
    rest = points - len(query.z)
    slot, inside, noise = (np.pad(v, (0, rest), "edge") for v in (query[0], *query[2:4]))
    width = np.pad(np.diff(query.z), (0, rest), constant_values=1.0)
    return slot, width, inside, noise, np.int32(len(query.z)), np.float64(query.safety)


def _cells(z: Float[np.ndarray, " N"], shares: CellShares) -> Cells:
    low, high, width = z[:-1], z[1:], np.diff(z)
    open_ = shares.start < shares.stop
    return Cells(
        np.where(open_, low + shares.start * width, high),
        np.where(open_, low + shares.stop * width, high),
        low + shares.root * width,
        np.asarray(shares.error, np.float64),
    )


class _Programs(NamedTuple):
    open: Any
    images: dict[str, Any]  # by dtype
    store: Any
    grow: Any
    judge: Any
    serial: bool  # whether `judge` takes one row after the other, so that empty rows cost nothing


@lru_cache(maxsize=16)
def _programs_for(mesh: Mesh, dtype: str) -> _Programs:
    everywhere, apart = P(), P("lanes")

    def mapped(function: Any, *specs: Any, donated: tuple[int, ...] = ()) -> Any:
        over = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=apart, check_vma=False)
        return jax.jit(over, donate_argnums=donated)

    serial = mesh.devices.flat[0].platform == "cpu"
    return _Programs(
        mapped(_open, apart, apart, apart, everywhere, everywhere, donated=(0, 1)),
        {kind: mapped(partial(_images, kind), *[apart] * 3) for kind in ("float32", "float64")},
        mapped(_store, *[apart] * 5, everywhere, donated=(0,)),
        lambda slots, margin: mapped(partial(_grow, slots), apart)(margin),
        mapped(partial(_judge, serial, dtype), *[apart] * 4),
        serial,
    )


def _open(
    state: _State, margin: Array, place: Array, values: _State, above: Array
) -> tuple[_State, Array]:
    none = jnp.zeros((), margin.dtype)
    observed, _ = _margins(above.reshape(-1), values.role, none, margin.dtype)

    def put(lanes: Array, one: Any) -> Array:
        return lanes.at[place[0]].set(one, mode="drop")

    return jax.tree.map(put, state, values), margin.at[place[0], 0].set(observed, mode="drop")


def _images(dtype: str, state: _State, place: Array, z: Array) -> tuple[Array, PyTree]:
    # Rows without a lane repeat the last lane's images.
    base, direction = (lanes.at[place].get(mode="clip") for lanes in state[:2])
    images = base + direction * z[:, None, None, None].astype(base.dtype)
    draws = jax.tree.map(lambda lanes: lanes.at[place].get(mode="clip"), state.draws)
    return images.astype(dtype), cast_floats(draws, dtype)


def _margins(
    score: Array, role: Array, threshold: Array, dtype: Any
) -> tuple[Array, tuple[Array, Array]]:
    """Return a score's margins as in `margins`, by pixel, with `inside` and the lowest of them."""
    over = score.astype(dtype) - threshold.astype(dtype)
    region, rim, rest = role == REGION, role == RIM, role == REST
    in_region = jnp.where(region, over, -jnp.inf)
    below = in_region.max() - over
    margin = jnp.where(region, over, jnp.where(rim, -over, jnp.where(rest, below, 0)))
    later = jnp.arange(len(over)) > in_region.argmax()  # `select_region` takes the first of equals
    lower = (below > 0) | ((below == 0) & later)
    as_observed = jnp.where(region, over > 0, jnp.where(rim, over <= 0, ~rest | lower))
    lowest = jnp.where(role > 0, margin, jnp.inf).min()
    finite = jnp.isfinite(jnp.where(role > 0, margin, 0)).all()
    return margin, (as_observed.all(), jnp.where(finite, lowest, jnp.nan))


def _store(
    margin: Array, state: _State, score: Array, place: Array, slot: Array, share: Array
) -> tuple[Array, PointFacts]:
    role, threshold = state.role[place], share * state.threshold[place]
    flat = score.reshape(len(score), -1)
    new, (inside, lowest) = jax.vmap(partial(_margins, dtype=margin.dtype))(flat, role, threshold)
    distance = jnp.where(role > 0, jnp.abs(new - margin[place, 0]), 0)
    facts: Any = inside, lowest, distance.max(axis=1)
    return margin.at[place, slot].set(new, mode="drop"), PointFacts(*facts)


def _grow(slots: int, margin: Array) -> Array:
    return jnp.pad(margin, ((0, 0), (0, slots - margin.shape[1]), (0, 0)))


def _judge(
    serial: bool, dtype: str, margin: Array, role: Array, used: Array, queries: _Judged
) -> CellShares:
    def one(query: _Judged) -> CellShares:
        width, noise, safety = cast_floats((query.width, query.noise, query.safety), dtype)
        nodes = EvaluatedPoints(
            width, margin[query.lane, query.slot], query.inside, noise, query.count
        )
        return decide_cells(nodes, role[query.lane] > 0, safety)

    if not serial:
        return jax.vmap(one)(queries)

    # One row after the other stays in the processor's caches.
    def put(row: Array, found: CellShares) -> CellShares:
        query = jax.tree.map(lambda column: column[row], queries)
        return jax.tree.map(lambda rows, new: rows.at[row].set(new), found, one(query))

    empty = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(jax.vmap(one), queries)
    )
    return lax.fori_loop(0, used[0], put, empty)
