import jax
import numpy as np
import pytest
from cells_oracle import Cells, EvaluatedPoints
from cells_oracle import decide_cells as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from dal_jax._compat import exact_arithmetic
from dal_jax.search import SearchedLine, select_region
from dal_jax.search import margins as margins_of
from dal_jax.search._cells import ROUNDED
from dal_jax.search._choice import arrange
from dal_jax.search._lanes import JudgedRows, Lanes

# Shares of a cell are quotients of numbers of about 1 in float64.
ROUNDING = 1e-12


def nodes_of(z, margin, noise=0.0):
    """EvaluatedPoints with exact membership."""
    z, margin = np.asarray(z, float), np.asarray(margin, float)
    inside = np.asarray((margin > 0).all(axis=1))
    return EvaluatedPoints(z, margin, inside, np.full(len(z), float(noise)))


def decide_cells(nodes, safety):
    """The cells by the compiled program, with the margins as scores of a region of all pixels."""
    points, pixels = nodes.margin.shape
    side = 16  # as many pixels as any case here; those that do not count hold what may be there
    score = np.full((points, side), np.nan)
    score[:, :pixels] = nodes.margin
    region = np.arange(side)[None] < pixels
    selected = select_region(region.astype(float), 0.5, where=region)
    observed = margins_of(score[:1, None], 0.0, selected)
    line = SearchedLine(*np.zeros((2, 1, side, 1)), selected, observed, 0.0, ())
    with exact_arithmetic():
        lanes = Lanes(line, jax.local_devices()[:1], 1)
        lane = lanes.open(line)
        lanes.store(score[1:, None], [lane] * (points - 1), np.arange(1, points))
        return judged(lanes, [(lane, np.arange(points), nodes)], safety)[0]


def judged(lanes, lines, safety):
    """The cells of lines (lane, slots, nodes) in one round, in places on the line."""
    size = 1 << max(6, (max(len(slots) for _, slots, _ in lines) - 1).bit_length())
    columns = []
    for _, slots, nodes in lines:
        rest = (0, size - len(slots))
        widths = np.pad(np.diff(nodes.z), rest, constant_values=1.0)
        padded = (np.pad(v, rest) for v in (slots, nodes.inside, nodes.noise))
        slot, inside, noise = padded
        columns.append((slot, widths, inside, noise, np.int64(len(slots)), np.float64(safety)))
    own = [lane for lane, _, _ in lines]
    rows, used = lanes.rows_for(own)
    stacked = [np.stack(column) for column in zip(*columns, strict=True)]
    at, (place, *dealt) = lanes.deal(own, rows, *stacked)
    shares = lanes.judge(place, used, JudgedRows(*dealt))
    return [
        in_places(nodes, *(np.asarray(column)[row, : len(nodes.z) - 1] for column in shares))
        for row, (_, _, nodes) in zip(at, lines, strict=True)
    ]


def in_places(nodes, start, stop, root, error):
    """Cells in places on the line, from shares of their widths."""
    low, high, width = nodes.z[:-1], nodes.z[1:], np.diff(nodes.z)
    open_ = start < stop
    starts = np.where(open_, low + start * width, high)
    return Cells(starts, np.where(open_, low + stop * width, high), low + root * width, error)


def undecided(cells):
    """The open parts, by cell."""
    return [(a, b) if a < b else None for a, b in zip(cells.start, cells.stop, strict=True)]


def errors(nodes, safety):
    """E by its definition, one cell and one pixel after the other."""
    count, pixels = len(nodes.z) - 1, nodes.margin.shape[1]
    width = np.diff(nodes.z)
    slope = np.diff(nodes.margin, axis=0) / width[:, None]
    change = np.zeros((count, pixels))
    for c in range(count):
        for p in range(pixels):
            sides = [abs(slope[c, p] - slope[o, p]) for o in (c - 1, c + 1) if 0 <= o < count]
            change[c, p] = sum(sides) * 2 / len(sides)
    rest = np.sqrt((change**2).mean(axis=1))
    # All nodes have the same noise here, of which a slope has twice as much over its width.
    blurred = np.zeros(count)
    for c in range(count):
        sides = [1 / width[c] + 1 / width[o] for o in (c - 1, c + 1) if 0 <= o < count]
        blurred[c] = ROUNDED * 2 * nodes.noise[0] * sum(sides) * 2 / len(sides)
    least = np.maximum(rest, blurred)[:, None]
    return safety * width[:, None] / 4 * np.maximum(change, least)


@st.composite
def random_nodes(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, pixels = draw(st.integers(3, 7)), draw(st.integers(1, 5))
    z = np.cumsum(rng.uniform(0.1, 1.0, count))
    # Around a slanted plane, so that errors are smaller than margins here and larger there.
    bend = draw(st.sampled_from([0.0, 0.01, 0.1, 1.0]))
    margin = rng.normal(size=pixels) * z[:, None] + 3 * rng.normal(size=pixels)
    margin = margin + bend * rng.normal(size=(count, pixels))
    return nodes_of(z, margin, draw(st.sampled_from([0.0, 0.05])))


@settings(max_examples=150, deadline=None)
@given(random_nodes(), st.sampled_from([1.0, 4.0]))
def test_decided_parts_by_brute_force(nodes, safety):
    cells, error = decide_cells(nodes, safety), errors(nodes, safety)
    shares = np.linspace(0, 1, 401)[1:-1]
    for c, part in enumerate(undecided(cells)):
        z = nodes.z[c] + shares * (nodes.z[c + 1] - nodes.z[c])
        chord = nodes.margin[c] + shares[:, None] * (nodes.margin[c + 1] - nodes.margin[c])
        slack = error[c] + nodes.noise[0]
        sure_in, sure_out = (chord > slack).all(axis=1), (chord < -slack).any(axis=1)
        decided = np.ones(len(z), bool) if part is None else (z < part[0]) | (z > part[1])
        # Whatever is called decided is beyond the error, on the side of its end.
        like_left = z < (cells.start[c] if part else np.nan)
        clear = np.abs(chord).min(axis=1) > ROUNDING
        for end, mask in ((c, like_left), (c + 1, decided & ~like_left)):
            if part is None and nodes.inside[c] != nodes.inside[c + 1]:
                continue  # decided up to the root from one side, from there on from the other
            right = sure_in if nodes.inside[end] else sure_out
            assert right[mask & clear].all()
        # And what is open cannot be told from its nearest end.
        if part:
            assert nodes.z[c] <= part[0] < part[1] <= nodes.z[c + 1]
            first = np.flatnonzero(z > part[0] + ROUNDING)[:1]
            same = sure_in if nodes.inside[c] else sure_out
            near = shares[first] - (part[0] - nodes.z[c]) / (nodes.z[c + 1] - nodes.z[c]) < 3e-3
            if nodes.inside[c] and near.all():
                assert not same[first].any()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_affine_margins_leave_nothing_open(seed):
    rng = np.random.default_rng(seed)
    z = np.cumsum(rng.uniform(0.1, 1.0, 6))
    slope, root = rng.normal(size=4), rng.uniform(-1, 5, 4)
    nodes = nodes_of(z, slope * (z[:, None] - root))
    cells = decide_cells(nodes, 4.0)
    close = 1e-11 / np.abs(slope).min()  # margins of 1 and widths of 0.1, divided by slopes
    for part in filter(None, undecided(cells)):
        # Only the set itself, where it lies between two nodes, is left to be looked at.
        middle = slope * (np.mean(part) - root)
        assert part[1] - part[0] < close or (middle > 0).all()
    # The one interval that such a set is ends where the limiting pixel does.
    above, below = root[slope > 0].max(initial=-np.inf), root[slope < 0].min(initial=np.inf)
    for c in np.flatnonzero(np.diff(nodes.inside.astype(int))):
        expected = below if nodes.inside[c] else above
        assert cells.root[c] == pytest.approx(expected, abs=close)
    alike = nodes.inside[1:] == nodes.inside[:-1]
    assert np.isnan(cells.root[alike]).all()
    assert (cells.error < 1e-10).all()  # slopes of 1, from values of 1 and widths of 0.1


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_error_bounds_a_function_of_one_kink(seed):
    rng = np.random.default_rng(seed)
    z = np.cumsum(rng.uniform(0.1, 1.0, 6))
    kink, slope, jump = rng.uniform(z[1], z[-2]), rng.normal(), rng.normal()

    def function(t):
        return slope * t + jump * np.abs(t - kink) + 0.3

    nodes = nodes_of(z, function(z)[:, None])
    cells = decide_cells(nodes, 1.0)
    for c, part in enumerate(undecided(cells)):
        t = np.linspace(z[c], z[c + 1], 500)
        inside = function(t) > 0
        lo, hi = part or (cells.root[c],) * 2
        same = nodes.inside[c] == nodes.inside[c + 1]
        if part is None and same:
            lo = hi = z[c + 1]
        clear = np.abs(function(t)) > ROUNDING
        assert (inside[(t < lo) & clear] == nodes.inside[c]).all()
        assert (inside[(t > hi) & clear] == nodes.inside[c + 1]).all()


def test_an_excursion_opens_the_cells_at_the_node_that_sees_it():
    z = np.arange(6.0)
    dips = np.maximum(0, 1 - 2 * np.abs(z - 3)) * 0.8
    cells = decide_cells(nodes_of(z, (1 - dips)[:, None]), 1.0)
    assert [part is not None for part in undecided(cells)] == [False, False, True, True, False]
    hidden = decide_cells(nodes_of(z, np.ones((6, 1))), 4.0)  # between nodes nothing can be seen
    assert undecided(hidden) == [None] * 5


def test_no_pixel_is_trusted_more_than_the_rest():
    z = np.arange(6.0)
    margin = np.full((6, 9), 0.5)
    margin[:, 1:] = 20 + 3 * np.abs(z[:, None] - 2.5)  # far from mattering, but with kinks
    quiet = undecided(decide_cells(nodes_of(z, margin[:, :1]), 4.0))
    assert quiet == [None] * 5
    assert undecided(decide_cells(nodes_of(z, margin), 4.0))[2] is not None


def test_a_jump_is_never_decided_by_its_cell():
    for width in (1.0, 1e-2, 1e-4, 1e-6):
        z = np.array([-2.0, -1.0, 0.0, width, 1 + width, 2 + width])
        nodes = nodes_of(z, np.where(z <= 0, 1.0, -1.0)[:, None])
        cells = decide_cells(nodes, 2.0)
        assert cells.start[2] == 0
        assert cells.stop[2] == pytest.approx(width, rel=1e-9)


def test_two_nodes_decide_nothing():
    cells = decide_cells(nodes_of([0.0, 1.0], [[5.0], [-5.0]]), 1.0)
    assert undecided(cells) == [(0.0, 1.0)]
    assert cells.root == 0.5


def test_noise_keeps_a_part_open():
    z, slope = np.arange(4.0), -1.0
    nodes = nodes_of(z, (1.5 + slope * z)[:, None], noise=0.1)
    cells = decide_cells(nodes, 1.0)
    assert [part is not None for part in undecided(cells)] == [False, True, False]
    # The chord is known to 0.1, and it falls by 1 a unit; rounding bends it, too: four changes of
    # slope by as much as 0.2 each, of which a share is reckoned with, make h / 4 of that.
    known = 0.1 + 4 * 0.2 * ROUNDED / 4
    expected = (1.5 - known, 1.5 + known)
    np.testing.assert_allclose([cells.start[1], cells.stop[1]], expected, rtol=1e-12)


def test_of_two_nodes_at_one_place_the_exact_one_stays():
    z, inside = [0.0, 1.0, 1.0, 0.5, 0.0], [1.0, 1.0, 0.0, 1.0, 1.0]
    lowest, noise = [1.0, 2.0, -7.0, 3.0, 9.0], [0.1, 0.1, 0.0, 0.1, 0.2]
    points = np.pad(np.array([z, inside, lowest, noise]), ((0, 0), (0, 3)))
    nodes = jax.jit(arrange)(points, np.int64(5))
    assert nodes.count == 3
    np.testing.assert_array_equal(nodes.z, [0.0, 0.5, 1.0, *[np.inf] * 5])
    np.testing.assert_array_equal(nodes.slot[:3], [0, 3, 2])
    np.testing.assert_array_equal(nodes.lowest[:3], [1.0, 3.0, -7.0])
    np.testing.assert_array_equal(nodes.inside[:3], [True, True, False])
    np.testing.assert_array_equal(nodes.noise[:3], [0.1, 0.1, 0.0])


def line_of(rng, kind="all", side=4):
    """A line whose score at every point is drawn, with its observed score."""
    while True:
        score = rng.normal(size=(side, side))
        selected = select_region(score, 0.4, kind, rng.random((side, side)) < 0.8)
        if selected.region.any():
            break
    base, direction = rng.normal(size=(2, side, side, 2))
    observed = margins_of(score[None], 0.4, selected)
    return SearchedLine(base, direction, selected, observed, 0.4, ()), score


@pytest.mark.parametrize("kind", ["all", "peak"])
@pytest.mark.parametrize("count", [1, 5, 200])
def test_lanes_judge_like_the_oracle(kind, count):
    """Several lines at a time; 200 points exceed what a lane holds at first."""
    rng = np.random.default_rng(count)
    lines, observed = zip(*(line_of(rng, kind) for _ in range(3)), strict=True)
    lanes = Lanes(lines[0], jax.local_devices()[:1], 3)
    at = [lanes.open(line) for line in lines]
    z = [rng.permutation(np.linspace(-3, 3, count)) for _ in lines]
    score = [rng.normal(size=(count, 4, 4)) + one for one in observed]
    facts = {}
    for first in range(0, count, 8):  # in batches of rows of several lines
        chosen = [(k, row) for k in range(3) for row in range(first, min(first + 8, count))]
        scores = np.full((32, 4, 4), np.nan)
        scores[: len(chosen)] = [score[k][row] for k, row in chosen]
        with exact_arithmetic():
            on_devices = jax.numpy.asarray(scores)
        places, slots = [at[k] for k, _ in chosen], [1 + row for _, row in chosen]
        if first == 8:  # on the host and less the threshold, as for devices without float64
            on_devices = scores[: len(chosen)] - 0.4
        with exact_arithmetic():
            found, rows = lanes.store(on_devices, places, slots)
        facts |= zip(chosen, np.asarray(found)[rows], strict=True)
    queries, expected = [], []
    for k, line in enumerate(lines):
        every = margins_of(np.concatenate([observed[k][None], score[k]]), 0.4, line.selected)
        for row in range(count):
            inside, lowest, moved = facts[k, row]
            assert inside == every.inside[1 + row]
            assert lowest == every.margin[1 + row].min()
            assert moved == np.abs(every.margin[1 + row] - every.margin[0]).max()
        places = np.concatenate([[4.0], z[k]])
        order = np.argsort(places)
        noise = rng.uniform(0, 0.01, count + 1)[order]
        nodes = EvaluatedPoints(places[order], every.margin[order], every.inside[order], noise)
        expected.append(oracle(nodes, 1.5))
        queries.append((at[k], order, nodes))
    with exact_arithmetic():
        found = judged(lanes, queries, 1.5)
    for cells, true in zip(found, expected, strict=True):
        for column, right in zip(cells, true, strict=True):
            # The same sums in another order.
            np.testing.assert_allclose(column, right, rtol=1e-12, atol=1e-12)


def test_scores_that_are_not_finite_are_noticed_where_they_count():
    rng = np.random.default_rng(0)
    line = line_of(rng)[0]
    lanes = Lanes(line, jax.local_devices()[:1], 1)
    lane = lanes.open(line)
    counts = line.selected.region | line.selected.must_not_flag
    assert counts.any() and not counts.all()
    bad = np.stack([np.where(counts, 1.0, np.nan), np.where(counts, 1.0, np.inf)] * 2)
    bad[2:][:, counts] = [[np.nan] * counts.sum(), [np.inf] * counts.sum()]
    with exact_arithmetic():
        facts, rows = lanes.store(bad, [lane] * 4, [1, 2, 3, 4])
    assert np.isnan(np.asarray(facts)[rows, 1]).tolist() == [False, False, True, True]


def test_images_are_those_of_the_lines():
    rng = np.random.default_rng(1)
    lines = [line_of(rng)[0]._replace(draws=rng.normal(size=3)) for _ in range(2)]
    lanes = Lanes(lines[0], jax.local_devices()[:1], 2)
    at = [lanes.open(line) for line in lines]
    places, z = [at[1], at[0], at[1]], [0.5, -2.0, 3.25]
    for dtype, tolerance in (("float64", 1e-14), ("float32", 1e-6)):
        with exact_arithmetic():
            images, draws = lanes.images(places, z, 4, dtype)
        assert images.dtype == dtype and draws.dtype == dtype
        for row, (number, point) in enumerate(zip((1, 0, 1), z, strict=True)):
            expected = lines[number].base + point * lines[number].direction
            np.testing.assert_allclose(images[row], expected, rtol=0, atol=10 * tolerance)
            np.testing.assert_allclose(draws[row], lines[number].draws, rtol=0, atol=tolerance)
    lanes.close(at[0])
    other = line_of(rng)[0]._replace(draws=np.zeros(3))
    assert lanes.open(other) == at[0]
    with exact_arithmetic():
        images, _ = lanes.images([at[0]], [0.0], 4, "float64")
    np.testing.assert_array_equal(images[0], other.base)


def test_a_closed_lane_is_given_again():
    line = line_of(np.random.default_rng(2))[0]
    lanes = Lanes(line, jax.local_devices()[:1], 3)
    assert len({lanes.open(line) for _ in range(3)}) == 3
    lanes.close(1)
    assert lanes.open(line) == 1
