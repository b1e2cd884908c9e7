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

from dal_jax._arrays import cast_floats, power_of_2
from dal_jax._compat import exact_arithmetic
from dal_jax._typing import Array, Float, PyTree
from dal_jax.search._cells import CellShares, EvaluatedPoints, decide_cells
from dal_jax.search._selection import Margins, SelectedRegion

# Roles of pixels; the others do not count.
REGION, RIM, REST = 1, 2, 3
# Smallest number of points that a lane holds, which few searches exceed.
SLOTS = 128
# There are lanes for as many pixels as this at least, so that small runs share their programs.
PIXELS = 4096
# Rounds have room for as many lines of a device as this at least, for the same reason.
ROWS = 64


class SearchedLine(NamedTuple):
    """A line to be searched, and the margins by which its region was selected.

    Example:
        >>> score, images = np.array([[2.0, 0.0]]), np.ones((2, 1, 2, 1))
        >>> from dal_jax.search import margins, select_region
        >>> selected = select_region(score, 1.0)
        >>> observed = margins(score[None], 1.0, selected)
        >>> line = SearchedLine(*images, selected, observed, 1.0, ())
        >>> line.base.shape
        (1, 2, 1)
    """

    base: Float[np.ndarray, "H W C"]  # independent of the statistic
    direction: Float[np.ndarray, "H W C"]  # per standard deviation of the statistic
    selected: SelectedRegion  # at the observed point
    observed: Margins  # the row of the observed point, in units of the score, in float64
    threshold: float  # of the score
    draws: PyTree  # of this line, where every task has its own


class _State(NamedTuple):
    base: Any  # (lanes, H, W, C)
    direction: Any  # (lanes, H, W, C)
    role: Any  # (lanes, pixels)
    threshold: Any  # (lanes,)
    # (lanes, pixels), margins at the observed point. A program that read them from the lanes' other
    # margins, which it changes, would copy those.
    observed: Any
    draws: PyTree  # leaves (lanes, ...)


class JudgedRows(NamedTuple):
    """Points of lines whose cells are to be judged, ascending, `rows` lines of each device."""

    slot: Any  # (rows, N), number of each point in the order of evaluation; 0: the observed one
    width: Any  # (rows, N - 1), of the cells, standardized
    inside: Any  # (rows, N), the region is the observed one
    noise: Any  # (rows, N), largest rounding error of a margin, units of the score
    count: Any  # (rows,), of points
    safety: Any  # (rows,), factor on the interpolation error


class Lanes:
    """Lanes on all devices of an evaluator, whose methods expect `exact_arithmetic`.

    Args:
        line: Any of the lines, whose shapes all others have.
        devices: Devices, each with the same number of lanes.
        count: Number of lanes in all, 1 or more.
    """

    def __init__(self, line: SearchedLine, devices: Sequence[Any], count: int):
        self.devices, self._devices = tuple(devices), len(devices)
        self.dtype = _margin_dtype(devices[0])
        # Powers of 2, so that runs of about the same size share their programs.
        least = -(-PIXELS // line.selected.region.size)
        self._each = power_of_2(max(least, -(-count // self._devices)))
        lanes = np.arange(self._each * self._devices).reshape(self._devices, self._each)
        self._free = lanes[:, ::-1].tolist()  # of each device
        mesh = Mesh(np.array(devices), ("lanes",))
        self._programs = _programs_for(mesh, self.dtype)
        with exact_arithmetic():
            self._state = jax.tree.map(self._zeros, self._values(line))
            self._margin = self._zeros(np.zeros((SLOTS, line.selected.region.size), self.dtype))

    def _zeros(self, example: np.ndarray) -> Array:
        shape = (self._each * self._devices, *np.shape(example))
        return self._programs.zeros(shape, str(example.dtype))

    def _values(self, line: SearchedLine) -> _State:
        """Return the values of a lane."""
        region, rim, rest = (mask.view(np.int8) for mask in line.selected)
        role = REGION * region + RIM * rim + REST * rest
        role, observed = role.reshape(-1), line.observed.margin[0]
        if len(observed) < len(role):
            every = np.zeros(len(role))
            every[line.selected.counts.reshape(-1)] = observed
            observed = every
        floats = (
            line.base,
            line.direction,
            np.asarray(line.threshold, np.float64),
            observed,
            line.draws,
        )
        base, direction, *others = cast_floats(floats, self.dtype)
        return _State(base, direction, role, *others)

    def device_of(self, lane: int) -> int:
        """Return the number of the device that holds a lane."""
        return lane // self._each

    @exact_arithmetic()
    def open(self, line: SearchedLine) -> int:
        """Give a line a free lane, with the observed point in slot 0, and return its number."""
        lane = max(self._free, key=len).pop()
        _, (place,) = self.deal([lane], 1)
        self._state, self._margin = self._programs.open(
            self._state, self._margin, place, self._values(line)
        )
        return lane

    def close(self, lane: int) -> None:
        """Free a lane."""
        self._free[self.device_of(lane)].append(lane)

    def images(self, lanes: Any, z: Any, rows: int, dtype: str) -> tuple[Array, PyTree]:
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
        _, (place, points) = self.deal(lanes, rows, np.asarray(z, np.float64))
        return self._programs.images[dtype](self._state, place, points)

    def store(self, score: Array | np.ndarray, lanes: Any, slots: Any) -> tuple[Array, np.ndarray]:
        """Store the margins of evaluated points in their lanes.

        Args:
            score: Scores (devices rows, H, W) of images that `images` computed for these lanes; or
                scores less their thresholds (k, H, W), of each point, on the host.
            lanes: Lane of each point.
            slots: Number of each point in its lane, in the order of evaluation, from 1 on.

        Returns:
            Facts (devices rows, 3) on the devices, and the row of each point: whether the region is
            the observed one (1 or 0), the lowest margin (NaN if a margin is not finite) and the
            largest distance of a margin from that at the observed point, units of the score.
        """
        if max(slots) >= self._margin.shape[1]:
            self._margin = self._programs.grow(power_of_2(max(slots) + 1), self._margin)
        columns = [np.asarray(slots)]
        if on_host := isinstance(score, np.ndarray):
            rows = power_of_2(max(np.bincount(np.asarray(lanes) // self._each)))
            columns.append(score.astype(self.dtype))
        else:
            rows = len(score) // self._devices
        at, (place, slot, *dealt) = self.deal(lanes, rows, *columns)
        share = np.asarray(not on_host, self.dtype)
        score = dealt[0] if on_host else score
        self._margin, facts = self._programs.store(
            self._margin, self._state, score, place, slot, share
        )
        return facts, at

    def judge(self, place: Any, used: np.ndarray, rows: JudgedRows) -> CellShares:
        """Start to decide the cells of lines.

        Args:
            place: Place of the lane of each row on its device, from `deal`.
            used: Number of rows of each device that count, the first ones.
            rows: Points of the lines, on the devices of the lanes or on the host.

        Returns:
            The cells by row, on the devices.
        """
        return self._programs.judge(self._margin, self._state.role, used, place, rows)

    def rows_for(self, lanes: Sequence[int]) -> tuple[int, np.ndarray]:
        """Return the number of rows of each device for a round of lanes, and of those that count.

        It is the same for almost all rounds. In turn, empty rows cost nothing.
        """
        used = self.count(lanes)
        return max(ROWS, power_of_2(max(used))), used

    def count(self, lanes: Any) -> np.ndarray:
        """Return how many of some lanes each device holds."""
        return np.bincount(np.asarray(lanes) // self._each, minlength=self._devices)

    def deal(
        self, lanes: Any, rows: int, *columns: np.ndarray
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Deal entries to the rows of their devices.

        Returns:
            The row of each entry, and the columns by row, that of the lanes' places first. In empty
            rows a place is that of no lane and other columns repeat their last entry.
        """
        device, own = np.divmod(np.asarray(lanes), self._each)
        size = self._devices * rows
        at = np.arange(len(own))
        if self._devices > 1:  # the number of earlier entries of the same device
            earlier = np.array([np.count_nonzero(device[:k] == device[k]) for k in range(len(own))])
            at = device * rows + earlier
        elif len(own) == size:
            return at, [own, *columns]
        place = np.full(size, self._each)
        place[at] = own
        dealt = [place]
        for column in columns:
            every = np.empty((size, *column.shape[1:]), column.dtype)
            every[:] = column[-1]
            every[at] = column
            dealt.append(every)
        return at, dealt


def _margin_dtype(device: Any) -> str:
    return "float32" if device.platform == "tpu" else "float64"  # a TPU has no float64


class _Programs(NamedTuple):
    zeros: Any
    open: Any
    images: dict[str, Any]  # by dtype
    store: Any
    grow: Any
    judge: Any


@lru_cache(maxsize=16)
def _programs_for(mesh: Mesh, dtype: str) -> _Programs:
    everywhere, apart = P(), P("lanes")

    def mapped(function: Any, *specs: Any, donated: tuple[int, ...] = ()) -> Any:
        over = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=apart, check_vma=False)
        return jax.jit(over, donate_argnums=donated)

    serial = mesh.devices.flat[0].platform == "cpu"
    zeros = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=NamedSharding(mesh, apart))
    return _Programs(
        zeros,
        mapped(_open, apart, apart, apart, everywhere, donated=(0, 1)),
        {kind: mapped(partial(_images, kind), *[apart] * 3) for kind in ("float32", "float64")},
        mapped(_store, *[apart] * 5, everywhere, donated=(0,)),
        lambda slots, margin: mapped(partial(_grow, slots), apart)(margin),
        mapped(partial(_judge, serial, dtype), *[apart] * 5),
    )


def _open(state: _State, margin: Array, place: Array, values: _State) -> tuple[_State, Array]:
    def put(lanes: Array, one: Any) -> Array:
        return lanes.at[place[0]].set(one, mode="drop")

    state = jax.tree.map(put, state, values)
    return state, margin.at[place[0], 0].set(values.observed, mode="drop")


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
) -> tuple[Array, Array]:
    role, threshold = state.role[place], share * state.threshold[place]
    flat = score.reshape(len(score), -1)
    new, (inside, lowest) = jax.vmap(partial(_margins, dtype=margin.dtype))(flat, role, threshold)
    distance = jnp.where(role > 0, jnp.abs(new - state.observed[place]), 0)
    facts = jnp.stack([inside.astype(lowest.dtype), lowest, distance.max(axis=1)], axis=1)
    return margin.at[place, slot].set(new, mode="drop"), facts


def _grow(slots: int, margin: Array) -> Array:
    return jnp.pad(margin, ((0, 0), (0, slots - margin.shape[1]), (0, 0)))


def _judge(
    serial: bool,
    dtype: str,
    margin: Array,
    role: Array,
    used: Array,
    place: Array,
    rows: JudgedRows,
) -> CellShares:
    def one(lane: Array, own: JudgedRows) -> CellShares:
        width, noise, safety = cast_floats((own.width, own.noise, own.safety), dtype)
        nodes = EvaluatedPoints(width, margin[lane, own.slot], own.inside, noise, own.count)
        return decide_cells(nodes, role[lane] > 0, safety)

    return each_row(one, serial, used, place, rows)


def each_row(one: Callable[..., Any], serial: bool, used: Array, *columns: Any) -> Any:
    """Apply a function to every row of columns, by `vmap`, or to the first rows in turn.

    Args:
        one: Function of the entries of one row.
        serial: Whether to take one row after the other, which stays in a processor's caches, and
            whose results do not depend on the number of rows.
        used: Number (1,) of rows that count, in turn.
        *columns: Pytrees of arrays with a leading axis of the rows.

    Returns:
        The results by row; in turn, zeros in rows that do not count.
    """
    if not serial:
        return jax.vmap(one)(*columns)

    def own(row: Any) -> Any:
        return jax.tree.map(lambda column: column[row], columns)

    def put(row: Array, found: Any) -> Any:
        return jax.tree.map(
            lambda rows, new: lax.dynamic_update_index_in_dim(rows, new, row, 0),
            found,
            one(*own(row)),
        )

    count = len(jax.tree.leaves(columns)[0])
    shapes = jax.eval_shape(lambda: one(*own(0)))
    empty = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), shapes)
    return lax.fori_loop(0, used[0], put, empty)
