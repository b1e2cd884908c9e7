"""The house: rooms import from those before them, and no module or function grows too large."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dal_jax"
# In the order of the way that data take; one level each, top down.
ROOMS = (
    ("_typing", "_errors", "_version", "_compat"),
    ("_arrays", "_files"),
    ("_config",),
    ("affine",),
    ("inference",),
    ("search",),
    ("noise",),
    ("models",),
    ("diffusion",),
    ("localizers",),
    ("images",),
    ("runs",),
    ("_dal_test",),
    ("report",),
    ("inspection",),
    ("bench",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
# The modules of the first three levels, which serve the package, its tests and its studies.
SHARED = {f"dal_jax.{name}" for names in ROOMS[:3] for name in names}
# Files that import private modules of other rooms, and why. `tests/test_ROOM_MODULE.py` holds the
# tests of `dal_jax.ROOM._MODULE` and may import it.
STEPS = "the steps of the folder pipeline, one by one"
PRIVATE_IMPORTS = {
    "benchmarks/host_share.py": "programs of search._lanes, _rounds, whose time is taken apart",
    "benchmarks/noise_kinds.py": "views of groups as training reads them, of inspection._learn",
    "benchmarks/target_programs.py": "programs that are compiled and not run: search, _many_tests",
    "tests/perceptual_cases.py": "stepwise checks of diffusion, of localizers._chain",
    "tests/cells_oracle.py": "a constant of search._cells, of which it is the oracle",
    "tests/effect_oracle.py": "the parts of inference, of which it is made",
    "tests/test_inference_traced.py": "the formulas of inference._randomized",
    "tests/test_bench.py": "a task of a process without the process, of bench._run",
    "tests/test_cli_bench.py": "cli._repository without a repository",
    "tests/test_cli_demo.py": "the images of the demo, of cli._demo_data",
    "tests/test_cli_report.py": STEPS,
    "tests/test_cli_test.py": "the patterns of files, of cli._spec; observed_of of a record",
    "tests/test_cli_thin.py": "a covariance without samples, of _dal_test._inputs",
    "tests/test_cli_verbs.py": "the views of train, of cli._train",
    "tests/test_config.py": "the options of all verbs, of cli._options",
    "tests/test_docs.py": "the command line and the columns of its files are documented",
    "tests/test_experiments_real_images.py": STEPS,
    "tests/test_inspection.py": STEPS,
    "tests/test_inspection_page.py": STEPS,
    "tests/test_inspection_plan.py": "simulated tests and the fit, one by one",
    "tests/test_inspection_validity.py": STEPS,
    "tests/test_inspection_views.py": STEPS,
    "tests/test_localizers_glad.py": "stepwise checks of GLAD: _chain, _localizer, _perceptual",
    "tests/test_localizers_mdps.py": "stepwise checks of MDPS: _chain, _perceptual",
    "tests/test_localizers_perceptual.py": "its resizing, of localizers._localizer",
    "tests/test_models_blocks.py": "its fast paths are compared with models._convolve, _fold",
    "tests/test_models_unet.py": "its fast paths are compared with models._convolve, _fold",
    "tests/test_noise_stationary.py": "the blocks of its sums, of noise._blocks",
    "tests/test_permutation.py": "the tests of _dal_test._one_test",
    "tests/test_randomized_rates.py": "statistics of stored results, of inspection._calibration",
    "tests/test_recalibrated_rates.py": STEPS,
    "tests/search_oracle.py": "constants of search._adaptive, _choice, of which it is the oracle",
    "tests/test_search_adaptive.py": "lines driven by functions, of search._lanes, _rounds",
    "tests/test_search_cells.py": "cells as search._lanes asks for them, points of _choice",
    "tests/test_search_engines.py": "the nodes of a sweep, of affine._sweep",
    "tests/test_search_rounds.py": "the programs of search._lanes, a state of _choice",
    "tests/test_search_scan.py": "one turn of a lane, and the whole walk, of search._windows",
    "tests/test_search_schedule.py": "a fake of search._evaluator.Evaluated",
    "tests/test_test_run.py": "the text of records, of runs._records",
}
LONGEST_MODULE = 500  # lines
LONGEST_FUNCTION = 60  # lines without the docstring; verbs hand on lists of options


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """The rooms that a module imports from; names of the top are of the whole package."""
    here = ["dal_jax", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[list[str]] = []
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            whole = base == ["dal_jax"]
            names = [[*base, alias.name] for alias in node.names] if whole else [base]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        for name in names:
            if name[0] == "dal_jax" and len(name) > 1:
                yield name[1]


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem != "__init__")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_import_from_those_before_them(path: Path) -> None:
    room = room_of(path)
    assert room in LEVEL, f"{room} has no place in the order of the rooms"
    for other in set(imported(path)) - {room}:
        if other in LEVEL:
            assert LEVEL[other] < LEVEL[room], f"{room} imports {other}"
        else:  # a public name of the package's top: for what stands behind all of it
            assert LEVEL[room] > LEVEL["_dal_test"], f"{room} imports {other} from the top"


def test_experiments_and_benchmarks_are_never_imported() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"experiments", "benchmarks"}, path


def sources() -> list[Path]:
    return [path for folder in ("dal_jax", "experiments") for path in (ROOT / folder).rglob("*.py")]


def test_modules_are_of_a_size_to_be_read() -> None:
    long = {str(p): n for p in sources() if (n := len(p.read_text().splitlines())) > LONGEST_MODULE}
    assert long == {}


def test_functions_are_of_a_size_to_be_read() -> None:
    long = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                name = f"{path.relative_to(ROOT)}:{node.name}"
                if lines > LONGEST_FUNCTION:
                    long[name] = lines
    assert long == {}


def private_imports(path: Path) -> set[str]:
    """The private modules of other rooms that a file imports, without the package's name."""
    relative = path.relative_to(ROOT)
    room = relative.parts[1].removesuffix(".py") if relative.parts[0] == "dal_jax" else ""
    whole = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            joined = [f"{node.module}.{alias.name}" for alias in node.names]
            whole += [name for name in joined if is_module(name)] or [node.module]
        elif isinstance(node, ast.Import):
            whole += [alias.name for alias in node.names]
    found = {name for name in whole if name.startswith("dal_jax.")}
    found -= SHARED
    if relative.parts[0] == "tests":
        found -= {"dal_jax._dal_test"}
    return {
        name.removeprefix("dal_jax.")
        for name in found
        if name.split(".")[1] != room and any(part[0] == "_" for part in name.split(".")[1:])
        if not (room and name == "dal_jax._dal_test")
    }


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def module_under_test(path: Path) -> str:
    """The module whose tests a file holds, as `PRIVATE_IMPORTS` names it."""
    for room in (path.name for path in PACKAGE.iterdir() if path.is_dir()):
        start = f"test_{room.strip('_')}_"
        if path.stem.startswith(start):
            return f"{room}._{path.stem.removeprefix(start)}"
    return ""


def test_private_modules_are_imported_by_their_own_room_alone() -> None:
    folders = ("dal_jax", "experiments", "benchmarks", "tests")
    found = {}
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        modules = private_imports(path) - {module_under_test(path)}
        if modules:
            found[str(path.relative_to(ROOT))] = sorted(modules)
    new = {name: modules for name, modules in found.items() if name not in PRIVATE_IMPORTS}
    assert new == {}, "expected public names of the rooms"
    assert set(PRIVATE_IMPORTS) - set(found) == set(), "listed, but no longer needed"
