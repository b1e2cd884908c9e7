"""The documentation: examples run, commands parse, links lead somewhere, every name is told."""

import ast
import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, get_origin

import jax
import numpy as np
import pytest

import dal_jax
from dal_jax import DalConfig, Status, TestResult
from dal_jax.cli import main
from dal_jax.diffusion import save_checkpoint
from dal_jax.inference import SelectiveP
from dal_jax.inspection import METHODS, ViewResult
from dal_jax.models import UNetConfig, init_unet

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# Those whose examples run in the quick round of tests.
FIRST_PAGES = ("README.md", "docs/index.md")
# Blocks of Python that cannot run here, and why: (page, text in the block) -> reason.
CANNOT_RUN: dict[tuple[str, str], str] = {
    ("docs/own_detector.md", "from_onnx"): "a file of the user",
}
# Commands that take no more than a second or two here.
CHEAP = (
    "dal-jax experiment list",
    "dal-jax localize",
    "dal-jax test --model model --image x.png",
)
SIDE = 16


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int  # of its first line, from 1
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found, fence, start, language, body = [], "", 0, "", []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        mark = re.match(r"\s*(`{3,})\s*(\S*)", line)
        if not fence and mark:
            fence, start, language, body = mark[1], number + 1, mark[2], []
        elif fence and line.strip() == fence:
            name = str(page.relative_to(ROOT))
            found.append(Block(name, start, language, "\n".join(body)))
            fence = ""
        elif fence:
            body.append(line)
    assert not fence, f"{page}: a block is not closed"
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]


@contextmanager
def as_users_have_it() -> Iterator[None]:
    """JAX without the settings of the tests."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pages take for granted: a model and two images."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("docs")
    config = DalConfig(UNetConfig(1, (4, 8)), image_size=SIDE)
    save_checkpoint(folder / "model", init_unet(config.unet, 0), config)
    rng = np.random.default_rng(0)
    for name in ("x.png", "y.png"):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), np.uint8)).save(folder / name)
    return folder


def given() -> dict[str, Any]:
    """What pages take for granted in Python."""
    rng = np.random.default_rng(0)
    x, x_ref, template = rng.normal(size=(3, SIDE, SIDE, 1))
    return {"x": x, "x_ref": x_ref, "template": template, "f": abs, "z": 1.0}


def examples(page: str) -> list[Block]:
    """The blocks of a page that are to be run."""
    own = [block for block in BLOCKS if block.page == page and block.language == "python"]
    return [b for b in own if not any(p == page and t in b.text for p, t in CANNOT_RUN)]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(name, marks=() if name in FIRST_PAGES else pytest.mark.slow)
        for name in NAMES
        if examples(name)
    ],
)
def test_examples_run(
    page: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(ROOT)
    namespace = given()
    with as_users_have_it():
        for block in examples(page):
            code = "\n" * (block.line - 1) + block.text  # so that errors tell the line of the page
            exec(compile(code, str(ROOT / page), "exec"), namespace)
    if page == "docs/index.md":
        # As that page says; the search is not told to be more exact than 0.001.
        assert namespace["result"].p_value == pytest.approx(3.8e-12, rel=0.2)
        assert namespace["result"].naive_p == pytest.approx(3.8e-18, rel=0.02)
        assert capsys.readouterr().out.endswith("OK\n")


def commands(block: Block) -> Iterator[list[str]]:
    """The commands of a block as words; variables set in the block are put in."""
    values: dict[str, str] = {}
    for line in block.text.replace("\\\n", " ").splitlines():
        for name, value in values.items():
            line = line.replace(f"${name}", value)
        assignment = re.fullmatch(r'([A-Z]+)="([^"]*)"', line.strip())
        if assignment:
            values[assignment[1]] = assignment[2]
            continue
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if words:
            yield words


SHELL = [block for block in BLOCKS if block.language in ("", "console", "bash")]
COMMANDS = [(block, words) for block in SHELL for words in commands(block)]
KNOWN = ("dal-jax", "make", "python", "pip")


@pytest.mark.parametrize("page", sorted({b.page for b, w in COMMANDS if w[0] in KNOWN}))
def test_commands_parse(page: str) -> None:
    for block, words in COMMANDS:
        if block.page == page and words[0] in KNOWN:
            try:
                {"dal-jax": verb, "make": target, "python": module, "pip": extras}[words[0]](words)
            except Exception as error:
                pytest.fail(f"{page}, block at line {block.line}: {shlex.join(words)}: {error}")


def verb(words: list[str]) -> None:
    """Refuses an unknown verb or option of the command."""
    import typer

    from dal_jax.cli._app import app

    known: Any = typer.main.get_command(app)
    assert words[1] in known.commands, f"no verb {words[1]}"
    known.commands[words[1]].make_context(words[1], words[2:])


def target(words: list[str]) -> None:
    """Refuses an unknown target of the Makefile."""
    text = (ROOT / "Makefile").read_text()
    for word in words[1:]:
        assert "=" in word or re.search(rf"^{re.escape(word)}:", text, re.M), f"no target {word}"


def module(words: list[str]) -> None:
    """Refuses an unknown module or script of the repository, or an option it does not have."""
    by_name = words[1] == "-m"
    if by_name and words[2] in ("pytest", "venv"):
        return
    path = ROOT / (words[2].replace(".", "/") + ".py" if by_name else words[1])
    text = path.read_text(encoding="utf-8")
    for word in words[2:]:
        if word.startswith("--"):
            assert f'"{word}"' in text, f"no option {word}"


def extras(words: list[str]) -> None:
    """Refuses an unknown extra of the package."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for names in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(names.split(",")) <= set(known["optional-dependencies"]), f"no extra {names}"


def test_cheap_commands_run(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(ROOT)
    wanted = [shlex.join(words) for _, words in COMMANDS]
    chosen = [text for text in dict.fromkeys(wanted) if text.startswith(CHEAP)]
    assert len(chosen) >= len(CHEAP)
    for text in chosen:
        with as_users_have_it():
            assert main(shlex.split(text)[1:]) == 0, f"{text}: {capsys.readouterr().err}"


@pytest.mark.parametrize("page", NAMES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        there, _, anchor = target.partition("#")
        found = (path.parent / there).resolve() if there else path
        assert found.exists(), f"{page} leads to {target}"
        if anchor:
            assert anchor in anchors(found), f"{page} leads to {target}"
    for name in re.findall(r"`((?:dal_jax|docs|tests|experiments|benchmarks|\.ci)/[^`\s]*)`", text):
        if not re.search(r"[<*]|NAME", name):
            assert (ROOT / name.partition("::")[0]).exists(), f"{page} speaks of {name}"


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in found}


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = {"docs/index.md"}
    for block in BLOCKS:
        if block.language == "{toctree}":
            folder = Path(block.page).parent
            lines = [line for line in block.text.splitlines() if line and line[0] != ":"]
            listed |= {str(folder / f"{line}.md") for line in lines}
    pages = {name for name in NAMES if name.startswith("docs/") and "/notebooks/" not in name}
    assert pages - listed == set()


def rooms() -> dict[str, list[str]]:
    """The public names of the package and of each of its rooms."""
    found = {}
    for path in sorted((ROOT / "dal_jax").glob("**/__init__.py")):
        name = ".".join(path.parent.relative_to(ROOT).parts)
        if "._" in name:  # its public names are those of the package
            continue
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        found[name] = [alias.asname or alias.name for node in nodes for alias in node.names]
    return found


@pytest.mark.parametrize("room", sorted(rooms()))
def test_every_public_name_has_an_entry(room: str) -> None:
    page = DOCS / "api" / f"{room.partition('.')[2] or room}.md"
    listed = [
        line.partition(":")[0].strip()
        for block in blocks(page)
        if block.language == "{api}"
        for line in block.text.splitlines()
        if line.strip()
    ]
    told, public = set(listed), set(rooms()[room])
    assert not public - told, f"docs/api/{page.name} does not list {sorted(public - told)}"
    assert not told - public, f"docs/api/{page.name} lists {sorted(told - public)}, not public"
    assert len(listed) == len(told), f"docs/api/{page.name} lists a name twice"


@pytest.mark.parametrize("room", sorted(rooms()))
def test_every_public_name_has_a_docstring(room: str) -> None:
    for name in rooms()[room]:
        found, full = getattr(importlib.import_module(room), name), f"{room}.{name}"
        if not callable(found) or get_origin(found) or found.__module__ == "typing":
            continue  # constants and types: docs/api says what they are
        text = inspect.getdoc(found) or ""
        assert text, f"{full} has no docstring"
        if str(getattr(found, "__module__", "")).startswith("dal_jax"):
            assert ">>>" in text or room.endswith(".cli"), f"{full} has no example"
        if inspect.isfunction(found):
            signature = inspect.signature(found)
            missing = [p for p in signature.parameters if not re.search(rf"\b{p}:", text)]
            assert not missing, f"the docstring of {full} does not tell {missing}"
            returns = signature.return_annotation not in (None, "None", inspect.Signature.empty)
            assert not returns or re.search(r"^(Returns|Yields):", text, re.M), f"{full}: Returns"


def test_docstring_examples_run() -> None:
    failed = []
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(verbose=False)
    with as_users_have_it():
        for info in pkgutil.walk_packages(dal_jax.__path__, "dal_jax."):
            if info.name.endswith("__main__"):
                continue
            for test in finder.find(importlib.import_module(info.name)):
                told: list[str] = []
                if test.examples and runner.run(test, out=told.append).failed:
                    failed.append("".join(told))
    assert not failed, "\n".join(failed)
    assert runner.tries > 50


def test_the_result_page_tells_every_field_status_and_column() -> None:
    text = (DOCS / "result.md").read_text(encoding="utf-8")
    p = SelectiveP(0.5, 0.4, 0.6)
    row = ViewResult("a", 0, 1, 0, 0, "", "a", "OK", p=dict.fromkeys(METHODS, p))
    for name in (*TestResult._fields, *row.as_row()):
        assert f"`{name}`" in text, name
    for status in Status:
        assert f"| {status.value} |" in text, status
