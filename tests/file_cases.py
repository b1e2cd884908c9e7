"""The tables of docs/files.md: a row for each file that a test writes, and reads or refuses."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dal_jax import InputError

PAGE = Path(__file__).parents[1] / "docs" / "files.md"
_HEAD = "| File | Content | What is done |\n|---|---|---|\n"


class FileCase(NamedTuple):
    """A kind of file or a tag, and what is done with it."""

    kind: str  # first column: the format, "PNG"
    content: str  # second column: the tag or the content, "16 bits, RGB"
    done: str  # third column: "read: ..." in words, or the expected part of a refusal's message
    name: str  # of the file
    write: Callable[[Path], object]  # writes the file of this path
    expected: np.ndarray | None = None  # what is read, as `read_image` returns it; None: refused

    @property
    def row(self) -> str:
        """The row of the table."""
        done = self.done if self.expected is not None else f"refused: “{self.done}”"
        return f"| {self.kind} | {self.content} | {done} |\n"


def check(case: FileCase, folder: Path, read: Callable[[Path], np.ndarray]) -> None:
    """Write the file of a case and compare what is read, or the one line that refuses it."""
    path = folder / case.name
    case.write(path)
    if case.expected is not None:
        np.testing.assert_array_equal(read(path), case.expected)
        return
    try:
        read(path)
    except InputError as error:
        told = str(error)
        assert case.done in told and case.name in told and "\n" not in told, told
    else:
        raise AssertionError(f"{case.kind}, {case.content}: read, not refused")


def check_table(heading: str, cases: Iterable[FileCase]) -> None:
    """Compare the table under a heading of the page with the cases; WRITE_DOCS=1 writes it."""
    table = _HEAD + "".join(case.row for case in cases)
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(heading)}\n.*?^(\|.*?\n)(?!\|)", text, re.M | re.S)
    assert found, f"{PAGE.name} has no table under the heading {heading!r}"
    if os.environ.get("WRITE_DOCS") == "1":
        PAGE.write_text(text[: found.start(1)] + table + text[found.end(1) :], encoding="utf-8")
        return
    assert found[1] == table, f"{PAGE.name}, {heading}: run the test with WRITE_DOCS=1"
