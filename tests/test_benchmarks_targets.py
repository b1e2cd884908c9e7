"""Compiling for accelerators that are not there: reading of programs, tables, refusals."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import targets
from benchmarks.program_text import float64_use, host_transfers, moved_bytes
from benchmarks.queue_model import requests
from benchmarks.target_programs import PROGRAMS, Case, compile_one, flops
from benchmarks.targets import Chip, Row, Target, call_seconds
from dal_jax._compat import enable_x64

ROOT = Path(__file__).parents[1]
CHIP = Chip(1000, 10.0, {"float32": 100.0, "float64": 50.0})


def compiled(function, *arguments) -> str:  # type: ignore[no-untyped-def]
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_a_callback_is_seen_in_a_compiled_program() -> None:
    def ask(x: jax.Array) -> jax.Array:
        return jax.pure_callback(lambda v: v, jax.ShapeDtypeStruct((3,), np.float32), x) + x

    x = np.ones(3, np.float32)
    assert host_transfers(compiled(ask, x)) == ["callback"]
    assert host_transfers(compiled(lambda x: x + x, x)) == []


@pytest.mark.parametrize(
    ("line", "kinds"),
    [
        ("  %a = (f32[2]{0}, token[]) infeed(%t)", ["infeed"]),
        ("  %o = token[] outfeed(%a, %t)", ["outfeed"]),
        ("  %s = (f32[2]{0}) send(%a, %t), is_host_transfer=true", ["transfer"]),
        ("  %s = (f32[2]{0}) send(%a, %t), channel_id=1", []),
        ('  %c = f32[2]{0} custom-call(%a), custom_call_target="Sharding"', []),
    ],
)
def test_other_ways_to_the_host(line: str, kinds: list[str]) -> None:
    assert host_transfers(line) == kinds


def test_float64_is_told_from_values_that_are_only_handed_over() -> None:
    def text(function, *arguments) -> str:  # type: ignore[no-untyped-def]
        return jax.jit(function).lower(*arguments).as_text()

    with enable_x64():
        narrow, wide = np.ones(3, np.float32), np.ones(3)
        assert float64_use(text(lambda x: x * np.float32(2), narrow)) == "none"
        given = text(lambda x, z: x * z[:, None].astype(np.float32), narrow, wide)
        assert float64_use(given) == "arguments"
        assert float64_use(text(lambda x: (2 * x).astype(np.float32), wide)) == "arithmetic"


def test_operations_of_loops_count_once_a_turn() -> None:
    def loop(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda y, _: (y @ w + y, None), x, None, length=5)[0]

    x, w = np.ones((2, 3), np.float32), np.ones((3, 3), np.float32)
    assert flops(jax.make_jaxpr(loop)(x, w).jaxpr) == 5 * (2 * 2 * 3 * 3 + 6)
    images, kernel = np.ones((2, 8, 8, 3), np.float32), np.ones((3, 3, 3, 4), np.float32)
    numbers = ("NHWC", "HWIO", "NHWC")

    def convolve(x: jax.Array, k: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=numbers)

    wanted = 2 * (2 * 8 * 8 * 4) * 3 * 3 * 3
    assert flops(jax.make_jaxpr(convolve)(images, kernel).jaxpr) == wanted
    halves = jax.make_jaxpr(lambda a: jnp.sum(a[0]))(images)
    assert flops(halves.jaxpr) == images[0].size


def test_bytes_of_a_program() -> None:
    x = np.ones(1000, np.float32)
    assert moved_bytes(compiled(lambda x: x + 1, x)) == 2 * x.nbytes


PROGRAM = """HloModule test

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %y = f32[8]{0} negate(%x)
  %near = f32[8]{0:T(8)S(1)} copy(%y)
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %near)
}

%write (a: f32[100,8], b: f32[1,8]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %b = f32[1,8]{1,0} parameter(1)
  ROOT %new = f32[100,8]{1,0} dynamic-update-slice(%a, %b, %i, %i)
}

%read (c: f32[100,8]) -> f32[1,8] {
  %c = f32[100,8]{1,0} parameter(0)
  ROOT %row = f32[1,8]{1,0} dynamic-slice(%c, %i, %i), dynamic_slice_sizes={1,8}
}

ENTRY %main (m: f32[100,8]) -> f32[100,8] {
  %m = f32[100,8]{1,0} parameter(0)
  %loop = (s32[], f32[8]{0}) while(%s), condition=%c, body=%body, TURNS
  %row = f32[1,8]{1,0} fusion(%m), kind=kLoop, calls=%read
  ROOT %out = f32[100,8]{1,0} fusion(%m, %row), kind=kLoop, calls=%write
}
"""


COUNTER = """
%counted (s: (s32[], f32[8])) -> pred[] {
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %limit = s32[] constant(5)
  ROOT %go = pred[] compare(%i, %limit), direction=LT
}

ENTRY"""


def test_bytes_of_loops_and_rows() -> None:
    known, turns = 'backend_config={"known_trip_count":{"n":"5"}}', 5
    row = 8 * 4
    loop = 2 * row + row  # one reads and writes, a copy to the chip's own memory only reads
    rest = 2 * row + 2 * row  # a row of an array is read, one is written in place
    assert moved_bytes(PROGRAM.replace("TURNS", known)) == turns * loop + rest
    plain = PROGRAM.replace(", TURNS", "")
    assert moved_bytes(plain) == loop + rest
    counted = plain.replace("condition=%c,", "condition=%counted,").replace("\nENTRY", COUNTER)
    assert moved_bytes(counted) == turns * loop + rest


def test_time_at_best_is_that_of_arithmetic_or_memory() -> None:
    row = Row("judge", 16, "x", units=2, compiling=1.0, flops=1000.0, bytes=50)
    assert call_seconds(row, CHIP) == 10
    assert call_seconds(row._replace(arithmetic="float64"), CHIP) == 20
    assert call_seconds(row._replace(bytes=500), CHIP) == 50
    parts = targets.test_seconds([row, row._replace(name="training")], CHIP)
    assert parts == {"judge": targets.ROUNDS * 10 / 2}


def test_a_table_estimates_where_all_programs_of_a_test_are_there() -> None:
    target = Target("x", CHIP, 4, 8)
    known = {"compiling": 1.0, "flops": 100.0, "bytes": 10, "units": 1}
    rows = [Row(name, 16, "x", **known) for name in targets.USES if name != "evaluator-float64"]
    assert not any("estimate" in line for line in targets.table(rows, target))
    rows.append(Row("evaluator-float64", 16, "x", left_out="no float64"))
    *lines, estimate = targets.table(rows, target)
    uses = sum(targets.USES.values()) - targets.USES["evaluator-float64"]
    assert f"an estimate by the roofline, not a measurement: {4 / uses:.3g} tests/s" in estimate
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert any("left out: no float64" in line for line in lines)
    failed = Row("exact", 16, "x", failure="no")
    assert any("failed: no" in line for line in targets.table([failed], target))


def test_every_program_has_an_entry() -> None:
    assert set(targets.PROGRAMS) == set(PROGRAMS) and set(targets.USES) < set(PROGRAMS)
    assert len([*requests(targets.EVALUATIONS)]) - 1 == targets.ROUNDS


LARGE = ("evaluator", "exact", "training")


@pytest.mark.parametrize(
    "name",
    ["open", "images", "store", "judge", *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE)],
)
def test_every_program_compiles_for_the_host(name: str) -> None:
    chip = Chip(2**33, 1e10, {"float32": 1e10})
    case = Case(8, tuple(jax.devices()[:1]), Target("host", chip, 1, 2), batch=2)
    row = compile_one(name, case)
    assert row.failure == row.left_out == "" and row.measured
    assert row.host == [] and row.bytes > 0 and row.flops > 0 and row.memory > 0
    assert (row.float64 == "none") == (name in ("evaluator", "training"))


def test_a_failure_to_compile_and_what_does_not_fit_are_rows() -> None:
    chip = Chip(2**20, 1e10, {"float32": 1e10})
    case = Case(8, tuple(jax.devices()[:1]), Target("host", chip, 1, 64), batch=2)
    assert compile_one("judge", case).failure.startswith("takes ")
    assert compile_one("judge", replace(case, devices=(None,))).failure.startswith("AttributeError")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--targets", "v5e,a100"], "--targets: got 'a100', expected one of v5e, v5e-4, h100"),
        (["--programs", "judg"], "--programs: got 'judg', expected one of evaluator"),
        (["--sizes", "16,x"], "--sizes: got '16,x', expected numbers of pixels such as 16,64"),
    ],
)
def test_what_is_unknown_is_refused_in_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert targets.main(words) == 2
    written = capsys.readouterr()
    assert written.out == "" and said in written.err and written.err.count("\n") == 1


def test_missing_packages_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(targets, "missing_packages", lambda target: ["libtpu"])
    assert targets.main(["--targets", "v5e"]) == 2
    assert capsys.readouterr().err == "targets: v5e: not installed: libtpu\n"


def test_a_process_that_ends_is_a_failure_of_what_it_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(targets, "missing_packages", lambda target: [])
    row = json.dumps(Row("judge", 16, "v5e", units=1, compiling=1.0)._asdict())
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho '{row}'\necho no more >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    kept = tmp_path / "rows.json"
    words = ["--targets", "v5e", "--programs", "judge,store", "--json", str(kept)]
    assert targets.main(words) == 1
    written = capsys.readouterr()
    assert "| 16 | store | failed: the process ended: 3 |" in written.out
    assert "no more\n" in written.err
    assert "targets: v5e 16 store: the process ended: 3\n" in written.err
    assert [Row(**entry).name for entry in json.loads(kept.read_text())] == ["judge", "store"]


def test_the_command_line_needs_no_jax() -> None:
    code = "import sys, benchmarks.targets; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
