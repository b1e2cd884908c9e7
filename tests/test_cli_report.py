"""The verb `report`: a page, one line or one JSON object, refusals in one line."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("jinja2")

from dal_jax.cli import main
from dal_jax.inspection._calibration import METHODS
from dal_jax.inspection._rows import COLUMNS, DECIDING, LOW, write_rows
from dal_jax.runs import decode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = {"label": "normal", "group": "g", "status": "OK", "message": ""}
    texts["decision"] = "significant"
    numbers = {"view": 0, "views": 1, "component": 0, "components": 0, "num_tested": 3}
    numbers |= dict.fromkeys((*COLUMNS.values(), "p_low", "p_high"), 0.01)
    numbers |= dict.fromkeys(("statistic", "sd", "z", "max_score", "q_value", "p_adjusted"), 1.0)
    numbers |= {"estimate": 1.0, "ci_low": 0.5, "ci_high": math.inf}
    for method in METHODS:
        if method not in ("selective", "naive"):
            numbers[COLUMNS[method]] = math.nan
    numbers |= {COLUMNS[method] + LOW: math.nan for method in DECIDING[1:]}
    write_rows(tmp_path, [{"name": f"{k}.png", **texts, **numbers} for k in range(3)])
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_page_is_written_and_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "report", folder)
    assert code == 0 and (folder / "report.html").is_file()
    assert "3 views of 3 images: 3 significant; 0 pictures, WITHOUT calibration" in out


def test_regions_are_not_called_views(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (folder / "rows.jsonl").read_text().splitlines()
    one = {**decode(json.loads(lines[0])), "name": "a.png", "views": 2}
    parts = [{**one, "component": k, "components": 4} for k in (1, 2, 3, 4)]
    parts[3]["decision"] = "not significant"
    none = {"view": 1, "num_tested": 0, "decision": "no region", "p_value": math.nan}
    write_rows(folder, [*parts, {**one, **none, "status": "NO_REGION"}])
    told = "4 regions of 2 views of 1 image: 3 significant, 1 not significant; "
    told += "views without regions: 1 no region"
    assert run(capsys, "report", folder)[1].startswith(f"{told}; ")
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "2 views of 1 image from" in text
    assert "3 of 4 regions" in text and "smallest of 4 regions" in text
    assert "Counted above, and below by label, are regions, and views without a region." in text
    found = json.loads(run(capsys, "report", folder, "--json")[1])
    assert found["counts"] == told and found["num_views"] == 2


def test_json_and_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = folder / "new" / "page.html"
    code, out, _ = run(capsys, "report", folder, "--out", page, "--pictures", 2, "--json")
    found = json.loads(out)
    assert code == 0 and Path(found["path"]) == page and page.is_file()
    assert found["num_bytes"] == page.stat().st_size
    assert found["decisions"] == {"significant": 3} and found["num_left_out"] == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--pictures", "-1"], "pictures: got -1"),
        (["--model", "nowhere"], "model 'nowhere': no such folder"),
        (["--out", "/dev/null/page.html"], "cannot write"),
    ],
)
def test_refusals_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    code, out, err = run(capsys, "report", folder, *words)
    assert code == 2 and not out and err.count("\n") == 1
    assert err.startswith("dal-jax report: ") and told in err


def test_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "report", tmp_path / "x")[0] == 2
    code, _, err = run(capsys, "report", tmp_path)
    assert code == 2 and "no rows.jsonl, expected the --out of dal-jax test FOLDER" in err
