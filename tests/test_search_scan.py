"""The scan of many lines: as one by one, whatever its capacities and devices."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from search_cases import (
    dense_localizer,
    jumping_localizer,
    pooled_localizer,
    random_problem,
    same_set,
    scalar_problem,
)

from benchmarks.program_text import host_transfers
from dal_jax import TestResult, dal_test, dal_test_batch
from dal_jax._arrays import cast_floats
from dal_jax._compat import exact_arithmetic
from dal_jax.inference import as_intervals
from dal_jax.search import ScanEngine, SweepEngine, _scan
from dal_jax.search._scan import Scan, cut_segments
from dal_jax.search._selection import Membership, tree_spec
from dal_jax.search._windows import (
    GAP,
    INSIDE,
    Limits,
    Lines,
    Queue,
    _begin,
    _turn,
    traced_walk,
)

RANGE = (-6.0, 6.0)
SIDE8 = pooled_localizer(5, side=8, threshold=2.0)


def images(count: int) -> Any:
    """Images, every third with a square, so that regions differ, and references."""
    x, x_ref = np.random.default_rng(2).normal(size=(2, count, *SIDE8.image_shape))
    x[::3, :3, :3] += 2
    return x, x_ref


def agree(found: TestResult, other: TestResult) -> None:
    """The promise of docs/engines.md."""
    assert (found.status, found.message) == (other.status, other.message)
    np.testing.assert_array_equal(found.region, other.region)
    for name in ("p_value", "p_low", "p_high", "estimate", "ci_low", "ci_high", "window"):
        pair = getattr(found, name), getattr(other, name)
        np.testing.assert_allclose(*pair, rtol=1e-9, atol=1e-9, err_msg=name)
    same_set(found.truncation / other.sd, other.truncation / other.sd, 1e-9)
    assert len(found.components) == len(other.components)
    for one, two in zip(found.components, other.components, strict=True):
        agree(one, two)


def lines(problems: Any, parts: Any = (RANGE,)) -> list[Any]:
    """Search the same parts of several lines side by side."""
    scan = Scan(problems[0], jax.local_devices(), len(problems))
    numbers = [scan.open(problem) for problem in problems]
    for number in numbers:
        scan.ask(number, parts)
    found: dict[int, Any] = {}
    while len(found) < len(numbers):
        found |= dict(scan.walk())
    return [found[number] for number in numbers]


@pytest.mark.parametrize("made", [dense_localizer, jumping_localizer])
def test_many_lines_are_found_as_one_by_one(made):
    problems = [random_problem(made(), seed) for seed in range(5)]
    for found, problem in zip(lines(problems), problems, strict=True):
        alone, swept = ScanEngine(problem)([RANGE]), SweepEngine(problem)([RANGE])
        same_set(found.inside, swept.inside)
        same_set(alone.inside, swept.inside)
        assert found.finite and not found.gaps.size


HOW = {
    "all": {},
    "peak": {"region": "peak"},
    "components": {"region": "components"},
    "published, whole range": {"randomization": 0.0, "precision": 0.0, "z_max": 5.0},
    "early": {"alpha": 0.05, "level": 0.01},
}


@pytest.mark.parametrize(
    "how", [pytest.param(n, marks=() if n == "components" else pytest.mark.slow) for n in HOW]
)
def test_a_batch_is_as_the_sweep_and_as_its_images_alone(how):
    x, x_ref = images(6)
    where = np.random.default_rng(0).random((6, 8, 8)) < 0.9
    batch = dal_test_batch(SIDE8, x, x_ref, "ar1:0.5:1", where=where, engine="scan", **HOW[how])
    assert np.isfinite([result.p_value for result in batch]).any() or how == "components"
    assert len({result.region.tobytes() for result in batch}) > 3
    pairs = dal_test_batch(
        SIDE8, x, x_ref, "ar1:0.5:1", where=where, engine="scan", batch_size=2, **HOW[how]
    )
    for k, (found, two) in enumerate(zip(batch, pairs, strict=True)):
        told = {"where": where[k], "name": k, **HOW[how]}
        agree(found, two)
        for engine in ("sweep", "scan"):
            agree(found, dal_test(SIDE8, x[k], x_ref[k], "ar1:0.5:1", engine=engine, **told))


@pytest.mark.parametrize("limit", [("RECORDS", 2), ("RECORDS", 3), ("TURNS", 1), ("TURNS", 3)])
def test_what_is_over_a_capacity_is_not_lost(limit, monkeypatch):
    problems = [random_problem(dense_localizer(), seed) for seed in range(4)]
    expected = lines(problems)
    monkeypatch.setattr(_scan, *limit)
    for found, other in zip(lines(problems), expected, strict=True):
        same_set(found.inside, other.inside)
        assert not found.gaps.size and found.num_windows >= other.num_windows


def test_a_queue_without_room_leaves_the_rest_for_later(monkeypatch):
    problems = [random_problem(dense_localizer(), seed) for seed in range(4)]
    # More parts than the queue has rows: 4 x 100 of 256.
    edges = np.linspace(*RANGE, 101)
    parts = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    for found, other in zip(lines(problems, parts), lines(problems), strict=True):
        same_set(found.inside, other.inside)


def ramp(params, draws, x):
    return jnp.where(x > params["bad"], jnp.nan, jnp.abs(x))[..., 0]


def test_lines_keep_their_troubles_to_themselves():
    whole = scalar_problem(ramp, 1.5, [True], bad=9.0)
    scan = Scan(whole, jax.local_devices(), 2)
    # The parameters are shared; the second line meets them sooner.
    far = whole._replace(direction=2 * whole.direction)
    numbers = [scan.open(problem) for problem in (whole, far)]
    for number in numbers:
        scan.ask(number, [RANGE], observed=True)
    found = dict(scan.walk())
    assert found[numbers[0]].finite and not found[numbers[0]].gaps.size
    same_set(found[numbers[0]].inside, as_intervals([[-6.0, -0.8], [0.8, 6.0]]))
    assert not found[numbers[1]].finite
    assert found[numbers[1]].gaps[-1, 1] == 6.0
    np.testing.assert_allclose(scan.window(numbers[0]), [0.8, 9.0])
    np.testing.assert_allclose(scan.window(numbers[1]), [0.4, 4.5])


def visited(windows: Any, ends: Any, records: int = 8) -> Any:
    """Records of one lane that visits windows (lo, hi, inside) up to `ends`."""
    lo, hi, inside = (jnp.array(column, float) for column in zip(*windows, strict=True))
    one = np.ones(1, np.int32)
    queue = Queue(jnp.array(0 * one), jnp.array(ends[:1]), jnp.array(ends[1:]), jnp.array(one))
    walk = _begin(1, records, 1)
    for turn in range(len(windows)):

        def piece(own: Any, z: Any, turn: int = turn) -> Any:
            return lo[turn, None], hi[turn, None], inside[turn, None] > 0, jnp.zeros(1, int)

        walk = _turn(piece, Lines((), jnp.zeros(1), *[jnp.zeros(1)] * 3), queue, walk)
    found = walk.records
    count = int(found.count[0])
    columns = (column[0, :count].tolist() for column in (found.kind, found.lo, found.hi))
    return walk, list(zip(*columns, strict=True))


def test_records_of_a_lane():
    # Windows that begin where the lane stood, to the left of it, and to rounding: one run.
    walk, found = visited([(0, 1, 1), (0.5, 2, 1), (2 + 5e-12, 3, 1)], [0.0, 2.5])
    assert found == [(INSIDE, 0.0, 2.5)]
    assert not walk.lanes.busy[0] and int(walk.windows[0]) == 3
    # A window that begins beyond leaves a gap, and a run of its own.
    _, found = visited([(0, 1, 1), (1.3, 2, 1)], [0.0, 2.5])
    assert found == [(INSIDE, 0.0, 1.0), (GAP, 1.0, 1.3), (INSIDE, 1.3, 2.0)]
    # Rounding is that of larger numbers far out.
    _, found = visited([(50 + 4e-10, 51, 1)], [50.0, 60.0])
    assert found == [(INSIDE, 50.0, 51.0)]
    # A window beyond the end of the segment: all of the segment is a gap, and nothing is found.
    _, found = visited([(3, 4, 1)], [1.0, 2.0])
    assert found == [(GAP, 1.0, 2.0)]
    # The run is interrupted where the region is another.
    _, found = visited([(0, 1, 1), (1, 2, 0), (2, 3, 1)], [0.0, 3.0])
    assert found == [(INSIDE, 0.0, 1.0), (INSIDE, 2.0, 3.0)]
    # A lane without room for two more records stays where it is.
    walk, found = visited([(0, 1, 1), (1, 2, 0), (2, 3, 1)], [0.0, 3.0], records=2)
    assert found == [(INSIDE, 0.0, 1.0)]
    assert walk.lanes.busy[0] and float(walk.lanes.at[0]) == 1.0


def test_segments_tile_the_parts():
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 4, 7, 32, 33):
        parts = np.sort(rng.normal(size=2 * count) * 5).reshape(-1, 2)
        waiting = [(k, float(lo), float(hi)) for k, (lo, hi) in enumerate(parts)]
        rows, rest = cut_segments(waiting, 32, 256)
        assert not rest and count <= len(rows) <= 32 + count
        np.testing.assert_array_equal(as_intervals([row[1:] for row in rows]), parts)
        rows, rest = cut_segments(waiting, 32, 8)
        assert len(rows) <= 8 and rows
        done = {row[0] for row in rows}
        assert done.isdisjoint(row[0] for row in rest) and len(done) + len(rest) == count
    rows, _ = cut_segments([(0, 0.0, 0.1), (1, 2.0, 2.0)], 32, 256)
    assert rows == [(0, 0.0, 0.1), (1, 2.0, 2.0)]


def test_a_walk_of_64_lines_never_asks_the_host():
    problem = random_problem(SIDE8, 0)
    with exact_arithmetic():
        fixed = tree_spec(cast_floats((problem.params, problem.draws), "float64"))
        line = (), problem.base, problem.direction, problem.selected, np.float64(1.0)
        limits = Limits(lanes=64, queue=256, records=64, turns=1024, lines=64)
        devices = tuple(jax.local_devices()[:1])
        how = Membership(problem.score_fn), fixed, tree_spec(line), devices, limits
        text = traced_walk(*how)[1].lower().compile().as_text()
    assert "while(" in text and "f64[64," in text
    assert not host_transfers(text)


EIGHT = """
import json, sys
import jax, numpy as np
sys.path.insert(0, sys.argv[1])
from test_search_scan import SIDE8, images
from dal_jax import as_record, dal_test_batch
x, x_ref = images(6)
draws = np.random.default_rng(1).normal(size=(6, *SIDE8.image_shape))
found = dal_test_batch(SIDE8, x, x_ref, "iid:1", engine="scan", draws=draws)
print(json.dumps([jax.local_device_count(),
                  *([r.p_value, (r.truncation / r.sd).ravel().tolist()] for r in found)]))
"""


@pytest.mark.slow
def test_eight_devices_find_what_one_does():
    here, found = Path(__file__).parent, []
    for count in (1, 8):
        flags = f"--xla_force_host_platform_device_count={count}"
        path = os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")])
        env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
        command = [sys.executable, "-c", EIGHT, str(here)]
        run = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        assert run.returncode == 0, run.stderr
        devices, *results = json.loads(run.stdout.splitlines()[-1])
        assert devices == count
        found.append(results)
    for (p, ends), (other_p, other_ends) in zip(*found, strict=True):
        np.testing.assert_allclose(p, other_p, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(ends, other_ends, rtol=1e-9, atol=1e-9)
