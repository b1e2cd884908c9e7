"""Licences of what the package needs: permissive, or of the kind of LGPL and MPL, and told."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
pytest.importorskip("packaging")


@pytest.fixture(scope="module")
def licences() -> Any:
    """The script that writes the page."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("write_licences")
    finally:
        sys.path.remove(str(DOCS))


def test_only_licences_that_are_let_in(licences: Any) -> None:
    found = {name: licences.licence(name) for name in licences.needed()}
    assert len(found) > 20
    assert not {name: text for name, text in found.items() if not licences.allowed(text)}


def test_the_page_names_what_is_asked_for(licences: Any) -> None:
    told = (DOCS / "licences.md").read_text(encoding="utf-8")
    asked = [name for name, direct in licences.needed().items() if direct]
    assert [name for name in asked if f"| {name} |" not in told] == []


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("MIT", True),
        ("Apache-2.0 OR BSD-2-Clause", True),
        ("GPL-3.0-only OR MIT", True),
        ("MPL-2.0 AND MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("unknown", False),
    ],
)
def test_alternatives_and_sums_of_licences(licences: Any, text: str, fine: bool) -> None:
    assert licences.allowed(text) is fine
