"""The notebooks of the documentation: clean as they are stored, and they run."""

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

nbformat: Any = pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"
NAMES = ("first_steps", "industrial", "medical")
# What comes with Jupyter, and what a clone of the repository has.
JUPYTER, CLONE = {"IPython"}, {"dal_jax", "experiments"}
SECONDS = 300  # for one cell, on a slow machine
# Warnings that a page explains beside the command that prints them.
EXPLAINED = dict.fromkeys(("industrial", "medical"), "The raw p-value decides unchecked: ")


def _read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def _source(notebook: Any, kind: str) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == kind)


def _installed(extras: str) -> set[str]:
    """Names of the packages that the core and some extras, "one,two", ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted, names = [*project["dependencies"]], set[str]()
    for extra in extras.split(","):
        wanted += project["optional-dependencies"][extra]
    for requirement in wanted:
        own = re.fullmatch(r"dal-jax\[(.*)\]", requirement)
        found = re.match(r"[\w-]+", requirement)
        assert found
        names |= _installed(own[1]) if own else {found[0].replace("-", "_")}
    return names


def _imported(code: str) -> set[str]:
    """Full names of the modules that some code imports."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_notebook_is_known():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_without_what_a_run_leaves(name: str):
    notebook = _read(name)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}
    for cell in notebook.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_imports_what_it_says_is_needed(name: str):
    notebook = _read(name)
    told = re.search(r'`pip install -e "\.\[([a-z,]+)\]"`', _source(notebook, "markdown"))
    assert told
    imported = _imported(_source(notebook, "code"))
    packages = {module.split(".")[0] for module in imported} - set(sys.stdlib_module_names)
    assert packages <= _installed(told[1]) | JUPYTER | CLONE
    private = {m for m in imported if m.startswith("dal_jax.") and "._" in m}
    assert not private


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_knows_no_absolute_path_and_no_network(name: str):
    code = _source(_read(name), "code")
    texts = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    for text in texts:
        assert not (isinstance(text, str) and re.match(r"/\w|[A-Z]:\\|~|https?:", text)), text


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name: str):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for needed in ("matplotlib", "typer", "skimage", "nibabel", "nilearn", "jinja2"):
        pytest.importorskip(needed)
    notebook = _read(name)
    where = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(notebook, timeout=SECONDS, resources=where).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in shown if "image/png" in output.get("data", {})]
    assert len(pictures) >= 3
    errors = "".join(output.text for output in shown if output.get("name") == "stderr")
    explained = EXPLAINED.get(name)
    assert not [
        line for line in errors.splitlines() if not (explained and line.startswith(explained))
    ]
