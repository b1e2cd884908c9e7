"""The compiled programs of a round of searches."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from search_cases import pooled_localizer

from benchmarks.program_text import host_transfers
from dal_jax import Status, dal_test_batch
from dal_jax._compat import exact_arithmetic
from dal_jax.search import _lanes, _rounds
from dal_jax.search._choice import LineState

LINES, SIDE, POINTS, SLOTS = 64, 64, 64, 128


def shape(*sizes: int, dtype: Any = "float64") -> Any:
    return jax.ShapeDtypeStruct(sizes, np.dtype(dtype))


def round_programs() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Every program of a round of 64 lines of 64 x 64 pixels, with its arguments."""
    mesh = Mesh(np.array(jax.local_devices()[:1]), ("lanes",))
    lanes, rounds = _lanes._programs_for(mesh, "float64"), _rounds._programs_for(mesh)
    used, place = shape(1, dtype=int), shape(LINES, dtype=int)
    states = shape(LINES, len(LineState._fields))
    points = used, shape(LINES, 4, POINTS), place
    nodes, width = jax.eval_shape(rounds.arrange, *points)
    asked = _lanes.JudgedRows(
        nodes.slot, width, nodes.inside, nodes.noise, nodes.count, shape(LINES)
    )
    stored = shape(LINES, SLOTS, SIDE**2), shape(LINES, SIDE**2, dtype="int8")
    cells = jax.eval_shape(lanes.judge, *stored, used, place, asked)
    judged = jax.eval_shape(rounds.judge, used, nodes, cells, states)
    bounds = shape(LINES, 3)
    image = shape(LINES, SIDE, SIDE, 1)
    lines = _lanes._State(image, image, stored[1], shape(LINES), shape(LINES, SIDE**2), ())
    scores = shape(LINES, SIDE, SIDE)
    return {
        "images": (lanes.images["float32"], (lines, place, shape(LINES))),
        "store": (lanes.store, (stored[0], lines, scores, place, place, shape())),
        "arrange": (rounds.arrange, points),
        "cells": (lanes.judge, (*stored, used, place, asked)),
        "judge": (rounds.judge, (used, nodes, cells, states)),
        "bounds": (rounds.bounds, (used, judged.pieces, judged.holds, states)),
        "choose": (rounds.choose[64], (used, nodes, judged, states, bounds)),
        "interval": (rounds.interval, (used, judged.pieces, judged.holds, states, shape(LINES))),
    }


def text_of(program: Any, arguments: tuple[Any, ...]) -> str:
    return program.lower(*arguments).compile().as_text()


@pytest.mark.parametrize(
    "name", ["images", "store", "arrange", "cells", "judge", "bounds", "choose", "interval"]
)
def test_a_round_never_asks_the_host(name: str) -> None:
    with exact_arithmetic():
        found = text_of(*round_programs()[name])
    assert "ENTRY" in found
    assert not host_transfers(found)


def test_a_question_to_the_host_would_be_seen() -> None:
    def ask(x: Any) -> Any:
        return jax.pure_callback(lambda v: np.asarray(v) + 1, x, x)

    assert host_transfers(text_of(jax.jit(ask), (jnp.zeros(3),))) == ["callback"]


def test_the_choice_is_compiled_once_for_all_sizes_of_images() -> None:
    mesh = Mesh(np.array(jax.local_devices()), ("lanes",))
    programs = _rounds._programs_for(mesh)

    def compiled() -> list[int]:
        every = [programs.arrange, programs.judge, programs.choose[64], programs.interval]
        return [program._cache_size() for program in every]

    counts = []
    for side in (4, 6):
        localizer = pooled_localizer(5, side=side, threshold=1.5)
        x, x_ref = np.random.default_rng(3).normal(size=(2, 4, *localizer.image_shape))
        found = dal_test_batch(localizer, x, x_ref, "iid:1")
        assert Status.OK in {result.status for result in found}
        counts.append(compiled())
    assert counts[0] == counts[1]
    assert min(counts[0]) > 0


@pytest.mark.slow  # compiles every program once more
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_lines_side_by_side_are_searched_as_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, gamma: float
) -> None:
    """A CPU takes row after row, other devices all rows at a time."""
    localizer = pooled_localizer(5, side=6, threshold=1.5)
    x, x_ref = np.random.default_rng(3).normal(size=(2, 12, *localizer.image_shape))

    def found() -> list[Any]:
        for made in (_lanes._programs_for, _rounds._programs_for):
            made.cache_clear()
        return dal_test_batch(localizer, x, x_ref, "iid:1", randomization=gamma)

    one_by_one = found()
    for module in (_lanes, _rounds):
        together = partial(_on_rows, module.each_row)
        monkeypatch.setattr(module, "each_row", together)
    side_by_side = found()
    monkeypatch.undo()
    found()
    for one, other in zip(one_by_one, side_by_side, strict=True):
        assert one.status is other.status
        assert one.num_evaluations == other.num_evaluations
        np.testing.assert_array_equal(one.region, other.region)
        np.testing.assert_allclose(one.truncation, other.truncation, rtol=0, atol=1e-9)
        for name in ("p_value", "p_low", "p_high", "estimate", "ci_low", "ci_high"):
            # Sums of another order.
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-8)


def _on_rows(each_row: Any, one: Any, serial: bool, *columns: Any) -> Any:
    assert serial  # the platform of the tests
    return each_row(one, False, *columns)


@pytest.mark.parametrize("name", ["store", "cells"])
def test_the_margins_of_all_lanes_are_never_copied(name: str) -> None:
    with exact_arithmetic():
        program, arguments = round_programs()[name]
        analysis = program.lower(*arguments).compile().memory_analysis()
    margins = LINES * SLOTS * SIDE**2 * 8
    assert analysis.temp_size_in_bytes < margins / 2
