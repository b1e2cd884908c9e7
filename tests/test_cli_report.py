"""The verb `report`: a page, one line or one JSON object, refusals in one line."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
pytest.importorskip("jinja2")

from dal_jax.cli import main
from dal_jax.inference import SelectiveP
from dal_jax.inspection import METHODS, ViewResult
from dal_jax.inspection._results import write_views


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_views(tmp_path, [result(f"{k}.png") for k in range(3)])
    return tmp_path


def result(name: str, **changes: Any) -> ViewResult:
    p = {method: SelectiveP(math.nan, math.nan, math.nan) for method in METHODS}
    p |= dict.fromkeys(("selective", "naive"), SelectiveP(0.01, 0.01, 0.01))
    one = ViewResult(name, 0, 1, 0, 0, "normal", "g", "OK", "significant", 1.0, 1.0, p)
    numbers = dict.fromkeys(("statistic", "sd", "z", "max_score", "estimate"), 1.0)
    numbers |= {"ci_low": 0.5, "ci_high": math.inf}
    return one._replace(num_tested=3, **numbers)._replace(**changes)


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_page_is_written_and_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "report", folder)
    assert code == 0 and (folder / "report.html").is_file()
    assert "3 views of 3 images: 3 significant; 0 pictures, WITHOUT calibration" in out


def test_regions_are_not_called_views(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = result("a.png", views=2)
    parts = [one._replace(component=k, components=4) for k in (1, 2, 3, 4)]
    parts[3] = parts[3]._replace(decision="not significant")
    none = {"view": 1, "num_tested": 0, "decision": "no region", "status": "NO_REGION"}
    nothing = dict.fromkeys(METHODS, SelectiveP(math.nan, math.nan, math.nan))
    write_views(folder, [*parts, one._replace(p=nothing, **none)])
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
    assert code == 2 and "no rows.jsonl, expected the --out of dal-jax test" in err
