"""The pictures of the documentation can be drawn, and say what the page says."""

import importlib
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def draw_idea(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script that draws pictures."""
    monkeypatch.syspath_prepend(DOCS / "figures")
    return importlib.import_module("draw_idea")


@pytest.mark.slow
def test_the_pictures_can_be_drawn(draw_idea: Any, tmp_path: Path) -> None:
    told = draw_idea.draw(tmp_path, 8)
    text = (DOCS / "idea.md").read_text(encoding="utf-8")
    assert round(told["a normal view: selective p"], 2) == 0.83 and "selective p = 0.83" in text
    assert round(told["a defect: z"], 1) == 11.3 and "observed 11.3" in text
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in drawn if not (DOCS / "figures" / name).is_file()] == []
    assert all((DOCS / "figures" / name).stat().st_size < 150_000 for name in drawn)
