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
    ("_arrays", "_files", "_json", "_toml"),
    ("affine",),
    ("inference",),
    ("search",),
    ("noise",),
    ("models",),
    ("diffusion",),
    ("localizers",),
    ("images",),
    ("runs",),
    ("_options", "_result"),
    ("_permutation", "_randomization"),
    ("_thinning",),
    ("_one_test",),
    ("_dal_test",),
    ("_test_run",),
    ("report",),
    ("inspection",),
    ("bench",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
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
            assert LEVEL[room] > LEVEL["_test_run"], f"{room} imports {other} from the top"


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
