"""Compiles the device programs for one accelerator that need not be there; `targets.py` starts it.

python -m benchmarks.target_programs TASK, with TASK a `Task` as JSON; prints a JSON object a line.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from benchmarks.program_text import float64_use, host_transfers, moved_bytes
from benchmarks.targets import TARGETS, Row, Target, Task, prepare_environment


class Traced(NamedTuple):
    """A program traced for a target, and the part of a test that a call does on one device."""

    program: Any  # `jax.stages.Traced`
    units: int  # images, or lines, that a device takes at a time
    arithmetic: str  # key of `Chip.flops`
    float64: str = "none"  # the most that is right: "none", "arguments" or "arithmetic"


@dataclass(frozen=True)
class Case:
    """Size and devices for which programs are traced."""

    size: int
    devices: tuple[Any, ...]
    target: Target
    batch: int  # of the training

    @property
    def on_tpu(self) -> bool:
        """Whether there is no float64."""
        return self.devices[0].platform == "tpu"

    def placements(self) -> tuple[Any, Any]:
        """Return the placement on every device, and that of what is divided among them."""
        import jax
        import numpy as np

        mesh = jax.sharding.Mesh(np.array(self.devices), ("lanes",))
        spec = jax.sharding.PartitionSpec
        return jax.sharding.NamedSharding(mesh, spec()), jax.sharding.NamedSharding(
            mesh, spec("lanes")
        )

    def arrays(self, tree: Any, sharding: Any) -> Any:
        """Return the shapes of arrays with a placement."""
        import jax
        import numpy as np

        def shape(leaf: Any) -> Any:
            return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)

        return jax.tree.map(shape, tree)

    def localizer(self) -> Any:
        """Return the untrained localizer of the paper, on the host."""
        import jax

        from dal_jax.bench import Subject, open_subject

        with jax.default_device(jax.devices("cpu")[0]):
            return open_subject(Subject(self.size))[0]


def evaluation(case: Case, dtype: str, reconstruct: bool = False) -> Traced | str:
    """Trace the evaluator, with as many images as fit their scores."""
    from dal_jax._arrays import cast_floats
    from dal_jax.search import Functions
    from dal_jax.search._evaluator import TRIAL_LANES, lanes_within, traced_evaluation
    from dal_jax.search._selection import tree_spec

    if dtype == "float64" and case.on_tpu:
        return "a TPU has no float64: the host settles it"
    localizer = case.localizer()
    functions = Functions(localizer.score_fn, localizer.reconstruct_fn, localizer.image_shape)
    fixed = tree_spec(cast_floats((localizer.params, localizer.draws), dtype))
    at = partial(traced_evaluation, functions, fixed, None, dtype, case.devices)
    trial = at(TRIAL_LANES)[1].lower().compile().memory_analysis().temp_size_in_bytes
    lanes = lanes_within(case.target.chip.memory, trial / TRIAL_LANES, case.size**2)
    allowed = "arithmetic" if dtype == "float64" else "none"
    return Traced(at(lanes, reconstruct)[1], lanes, dtype, allowed)


class LineShapes(NamedTuple):
    """Shapes of the lanes of a run, on all devices."""

    programs: Any
    state: Any
    margin: Any
    rows: int  # of a device
    array: Callable[..., Any]  # (shape of a row, dtype) -> rows of all devices
    allowed: str  # use of float64


def line_shapes(case: Case) -> LineShapes:
    """Return the shapes of as many lines as a run of many tests has under way."""
    import jax
    import numpy as np

    from dal_jax._arrays import power_of_2
    from dal_jax._dal_test._many_tests import KEPT, LINES_BYTES
    from dal_jax.search import _lanes

    apart = case.placements()[1]
    count, pixels = len(case.devices), case.size**2
    dtype = "float32" if case.on_tpu else "float64"
    lines = LINES_BYTES // (KEPT * pixels) // count
    rows = power_of_2(max(1, min(lines, case.target.lines)))

    def array(*shape: int, dtype: Any = dtype) -> Any:
        return jax.ShapeDtypeStruct((count * rows, *shape), np.dtype(dtype), sharding=apart)

    image = array(case.size, case.size, 1)
    state = _lanes._State(image, image, array(pixels, dtype="int8"), array(), array(pixels), ())
    programs = _lanes._programs_for(apart.mesh, dtype)
    allowed = "arguments" if case.on_tpu else "arithmetic"
    margin = array(_lanes.SLOTS, pixels)
    return LineShapes(programs, state, margin, rows, array, allowed)


def opening(case: Case) -> Traced:
    """Trace the program that gives a line its lane."""
    import jax
    import numpy as np

    lines, (everywhere, apart) = line_shapes(case), case.placements()
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), lines.state)
    place = jax.ShapeDtypeStruct((len(case.devices),), np.dtype("int64"), sharding=apart)
    values = case.arrays(one, everywhere)
    program = lines.programs.open.trace(lines.state, lines.margin, place, values)
    return Traced(program, 1, lines.margin.dtype.name, lines.allowed)


def imaging(case: Case) -> Traced:
    """Trace the program that computes the images at points of lines."""
    lines = line_shapes(case)
    place, z = lines.array(dtype="int64"), lines.array(dtype="float64")
    program = lines.programs.images["float32"].trace(lines.state, place, z)
    return Traced(program, lines.rows, lines.margin.dtype.name, lines.allowed)


def storing(case: Case) -> Traced:
    """Trace the program that stores the margins of evaluated points."""
    import jax

    lines, everywhere = line_shapes(case), case.placements()[0]
    score = lines.array(case.size, case.size, dtype="float32")
    index = lines.array(dtype="int64")
    share = jax.ShapeDtypeStruct((), lines.margin.dtype, sharding=everywhere)
    program = lines.programs.store.trace(lines.margin, lines.state, score, index, index, share)
    return Traced(program, lines.rows, lines.margin.dtype.name, lines.allowed)


def judging(case: Case) -> Traced:
    """Trace the program that decides the cells of one round of each line."""
    import jax
    import numpy as np

    from dal_jax.search import _lanes, _rounds

    lines, apart = line_shapes(case), case.placements()[1]
    points = _rounds.POINTS
    used = jax.ShapeDtypeStruct((len(case.devices),), np.dtype("int64"), sharding=apart)
    asked = _lanes.JudgedRows(
        slot=lines.array(points, dtype="int64"),
        width=lines.array(points - 1, dtype="float64"),
        inside=lines.array(points, dtype="bool"),
        noise=lines.array(points, dtype="float64"),
        count=lines.array(dtype="int32"),
        safety=lines.array(dtype="float64"),
    )
    place = lines.array(dtype="int64")
    program = lines.programs.judge.trace(lines.margin, lines.state.role, used, place, asked)
    return Traced(program, lines.rows, lines.margin.dtype.name, lines.allowed)


def choosing(case: Case, name: str) -> Traced | str:
    """Trace a program of the choice of points of each line, by its name in `_rounds._Programs`."""
    import jax
    import numpy as np

    from dal_jax.search import _rounds
    from dal_jax.search._cells import CellShares
    from dal_jax.search._choice import LineState

    if case.on_tpu:
        return "a TPU has no float64: the host's processor chooses"
    lines, apart = line_shapes(case), case.placements()[1]
    programs, size = _rounds._programs_for(apart.mesh), _rounds.POINTS

    def shapes(program: Any, *arguments: Any) -> Any:
        return case.arrays(jax.eval_shape(program, *arguments), apart)

    used = jax.ShapeDtypeStruct((len(case.devices),), np.dtype("int64"), sharding=apart)
    states, bounds = lines.array(len(LineState._fields)), lines.array(3)
    points = used, lines.array(4, size), lines.array(dtype="int64")
    nodes, _ = shapes(programs.arrange, *points)
    cells = CellShares(*(lines.array(size - 1) for _ in CellShares._fields))
    judged = shapes(programs.judge, used, nodes, cells, states)
    known = used, judged.pieces, judged.holds, states
    program, arguments = {
        "arrange": (programs.arrange, points),
        "judge": (programs.judge, (used, nodes, cells, states)),
        "bounds": (programs.bounds, known),
        "choose": (programs.choose[_rounds.ROOM], (used, nodes, judged, states, bounds)),
        "interval": (programs.interval, (*known, lines.array())),
    }[name]
    return Traced(program.trace(*arguments), lines.rows, "float64", lines.allowed)


def exact(case: Case) -> Traced | str:
    """Trace the walk of the scan over the windows of many lines, with as many lanes as fit."""
    import numpy as np

    from dal_jax._arrays import cast_floats
    from dal_jax.search import LINES, Membership, select_region
    from dal_jax.search._evaluator import TRIAL_LANES, lanes_within
    from dal_jax.search._scan import RECORDS, TURNS
    from dal_jax.search._selection import tree_spec
    from dal_jax.search._windows import Limits, queue_length, traced_walk

    if case.on_tpu:
        return "float64 only, which a TPU does not have"
    localizer = case.localizer()
    base, score = np.zeros(localizer.image_shape), np.zeros(localizer.image_shape[:2])
    fixed = tree_spec(cast_floats((localizer.params, localizer.draws), "float64"))
    line = tree_spec(((), base, base, select_region(score, 1.0), np.asarray(1.0)))

    def at(lanes: int) -> Any:
        lines = LINES * len(case.devices)
        limits = Limits(lanes, queue_length(lanes), RECORDS, TURNS, lines)
        return traced_walk(Membership(localizer.score_fn), fixed, line, case.devices, limits)[1]

    trial = at(TRIAL_LANES).lower().compile().memory_analysis().temp_size_in_bytes
    lanes = lanes_within(case.target.chip.memory, trial / TRIAL_LANES, case.size**2)
    return Traced(at(lanes), lanes, "float64", "arithmetic")


def training(case: Case) -> Traced | str:
    """Trace the training step of the paper's network, in float32."""
    import jax
    import numpy as np

    from dal_jax.diffusion import Batch, TrainConfig, initial_state, update_function
    from dal_jax.localizers import localizer_preset

    if case.batch % len(case.devices):
        return f"a batch of {case.batch} is not divided by {len(case.devices)}"
    config: Any = localizer_preset("dal").config
    config = config.for_images((case.size, case.size, config.image_shape[2]))
    settings = TrainConfig(batch_size=case.batch)
    with jax.default_device(jax.devices("cpu")[0]):
        state = initial_state(settings, config.objective)
    everywhere, apart = case.placements()
    images = np.zeros((case.batch, *config.image_shape), np.float32)
    update: Any = update_function(settings, config.objective, case.devices)
    batch = Batch(case.arrays(images, apart), None, None)
    program = update.trace(case.arrays(state, everywhere), batch)
    return Traced(program, case.batch // len(case.devices), "training")


class Program(NamedTuple):
    """A device program: how it is traced, and in which arithmetic."""

    trace: Callable[[Case], Traced | str]  # or the reason why a target does not have it
    exact: bool = True  # traced in the arithmetic of detection and inference


# One entry a program; `targets.USES` says how often a test uses it.
PROGRAMS = {
    "evaluator": Program(partial(evaluation, dtype="float32")),
    "evaluator-float64": Program(partial(evaluation, dtype="float64")),
    "reconstruction": Program(partial(evaluation, dtype="float64", reconstruct=True)),
    "open": Program(opening),
    "images": Program(imaging),
    "store": Program(storing),
    "judge": Program(judging),
    "arrange": Program(partial(choosing, name="arrange")),
    "sets": Program(partial(choosing, name="judge")),
    "bounds": Program(partial(choosing, name="bounds")),
    "choose": Program(partial(choosing, name="choose")),
    "interval": Program(partial(choosing, name="interval")),
    "exact": Program(exact),
    "training": Program(training, exact=False),
}


def flops(jaxpr: Any) -> float:
    """Count the operations of a program, the turns of its loops where their number is known.

    A multiplication and its addition are two; other operations count one for each value they
    return (for each they read, if they reduce), and what only places values counts nothing. The
    body of a `while` loop counts once.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        inner = [flops(getattr(part, "jaxpr", part)) for part in _parts(eqn)]
        if inner:
            branches = eqn.primitive.name == "cond"
            total += (max(inner) if branches else sum(inner)) * eqn.params.get("length", 1)
        else:
            total += _flops_of(eqn)
    return total


def _parts(eqn: Any) -> Iterator[Any]:
    for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(part, "eqns") or hasattr(getattr(part, "jaxpr", None), "eqns"):
                yield part


_PLACED = frozenset(
    {
        *("reshape", "broadcast_in_dim", "transpose", "squeeze", "expand_dims", "slice", "gather"),
        *("concatenate", "pad", "dynamic_slice", "dynamic_update_slice", "copy", "scatter", "rev"),
        *("convert_element_type", "iota", "split", "bitcast_convert_type"),
    }
)


def _flops_of(eqn: Any) -> float:
    name, out = eqn.primitive.name, sum(getattr(v.aval, "size", 0) for v in eqn.outvars)
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        sides = eqn.invars[0].aval.shape
        for axis in contracted:
            out *= sides[axis]
        return 2.0 * out
    if name == "conv_general_dilated":
        kernel, numbers = eqn.invars[1].aval, eqn.params["dimension_numbers"]
        return 2.0 * out * kernel.size / kernel.shape[numbers.rhs_spec[0]]
    if name in _PLACED:
        return 0.0
    if name.startswith(("reduce_", "arg")):
        return float(eqn.invars[0].aval.size)
    return float(out)


def compile_one(name: str, case: Case) -> Row:
    """Compile one program, and describe it; `failure` says why it is not one to be used."""
    import jax

    from dal_jax._compat import exact_arithmetic

    known = Row(name=name, size=case.size, target=case.target.name)
    program, start = PROGRAMS[name], time.perf_counter()
    # What depends on the platform is traced for that of these devices.
    context = exact_arithmetic if program.exact else partial(jax.enable_x64, False)
    try:
        with context(), jax.default_device(case.devices[0]):
            traced = program.trace(case)
            if isinstance(traced, str):
                return known._replace(left_out=traced)
            traced_at = time.perf_counter()
            lowered = traced.program.lower()
            compiled = lowered.compile()
    except Exception as error:  # any failure of a compiler is a row
        return known._replace(failure=f"{type(error).__name__}: {error}".splitlines()[0][:300])
    done, memory, text = time.perf_counter(), compiled.memory_analysis(), compiled.as_text()
    row = known._replace(
        units=traced.units,
        arithmetic=traced.arithmetic,
        tracing=traced_at - start,
        compiling=done - traced_at,
        temporary=memory.temp_size_in_bytes,
        arguments=memory.argument_size_in_bytes,
        output=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        flops=flops(traced.program.jaxpr.jaxpr) * _share(name, case),
        bytes=moved_bytes(text),
        host=host_transfers(text),
        float64=float64_use(lowered.as_text()),
    )
    return row._replace(failure=_fault(row, traced, case.target))


def _share(name: str, case: Case) -> float:
    """Return the share of a device: what is divided by the compiler is traced as a whole."""
    return 1 / len(case.devices) if name == "training" else 1.0


def _fault(row: Row, traced: Traced, target: Target) -> str:
    uses = ["none", "arguments", "arithmetic"]
    if row.memory > target.chip.memory:
        return f"takes {row.memory / 2**30:.1f} GiB of {target.chip.memory / 2**30:.0f} GiB"
    if row.host:
        return f"transfers to the host: {', '.join(row.host)}"
    if uses.index(row.float64) > uses.index(traced.float64):
        return f"float64 where it must not be: {row.float64}"
    return ""


def topology(target: Target) -> tuple[Any, ...]:
    """Return the devices of a target, which are descriptions."""
    from jax.experimental import topologies

    if target.chip.description:
        made = topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            topology="1x1x1",
            target_config=target.chip.description,
        )
    else:
        made = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    return tuple(made.devices[: target.devices])


def main() -> None:
    """Compile what the task asks for, and print a row a line."""
    task = Task(**json.loads(sys.argv[1]))
    target = TARGETS[task.target]
    prepare_environment(target, os.environ)
    devices = topology(target)
    for size in task.sizes:
        for name in task.programs:
            row = compile_one(name, Case(size, devices, target, task.batch))
            print(json.dumps(row._asdict()), flush=True)


if __name__ == "__main__":
    main()
