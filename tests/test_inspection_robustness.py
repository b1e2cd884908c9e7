"""A folder of which one file, one picture or one moment is bad: the rest is done and kept."""

import csv
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dal_jax import InputError, as_record
from dal_jax.cli import main
from dal_jax.report import overlay

SIDE = 20
AS_RECORD = "dal_jax._dal_test._stored_runs.as_record"
TRAIN = ("--view", "crop", "--size", "16", "--channels", "4,8", "--steps", "2", "--batch", "8")


def photograph(rng: np.random.Generator) -> Image.Image:
    grey = 120 + 12 * rng.standard_normal((SIDE, SIDE))
    return Image.fromarray(np.clip(grey, 1, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (root / "normal").mkdir()
    for number in range(12):
        photograph(rng).save(root / "normal" / f"{number}.png")
    words = ["train", "--data", root, "--out", root / "m", *TRAIN, "--noise", "iid"]
    assert main([str(word) for word in words]) == 0
    return root / "m"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for number in range(4):
        rng = np.random.default_rng(100 + number)
        photograph(rng).save(tmp_path / "data" / f"{number}.png")
    return tmp_path / "data"


def run(model: Path, folder: Path, *more: str) -> int:
    words = ["test", folder, "--model", model, "--out", folder.parent / "out", *more]
    return main([str(word) for word in words])


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder.parent / "out" / "results.csv", encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_a_folder_that_lost_and_gained_a_file_goes_on(
    model: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(model, photographs) == 0
    before = rows(photographs)
    (photographs / "1.png").unlink()
    photograph(np.random.default_rng(7)).save(photographs / "0a.png")
    tested: list[str] = []
    monkeypatch.setattr(AS_RECORD, lambda result: tested.append("one") or as_record(result))
    assert run(model, photographs) == 0
    assert tested == ["one"]  # nothing finished is done again
    after = rows(photographs)
    assert list(after) == ["0.png", "0a.png", "2.png", "3.png"]
    for name in ("0.png", "2.png", "3.png"):
        assert after[name]["p_value"] == before[name]["p_value"]
        assert (photographs.parent / "out" / "overlays" / name).is_file()


def test_whatever_a_decoder_raises_is_one_row(
    model: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Image.open

    def opened(path: Any, *more: Any, **options: Any) -> Any:
        if Path(path).name == "2.png":
            raise MemoryError
        return real(path, *more, **options)

    monkeypatch.setattr(Image, "open", opened)
    assert run(model, photographs) == 0
    found = rows(photographs)
    assert [row["status"] for row in found.values()].count("INVALID_INPUT") == 1
    assert "2.png': unreadable or damaged (MemoryError)" in found["2.png"]["message"]


def test_nothing_valid_is_not_exit_code_0(
    model: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in photographs.iterdir():
        path.write_bytes(b"\x89PNG, but no more")
    assert run(model, photographs) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no image has a valid result: image '" in told
    assert len(rows(photographs)) == 4


def test_tables_come_before_pictures_which_stop_nothing(
    model: Path,
    photographs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = []

    def draw(image: Any, region: Any, significant: Any, path: Path, **more: Any) -> None:
        seen.append((path.name, len(rows(photographs))))
        if path.name == "1.png":
            raise InputError(f"cannot write {str(path)!r}: {errno.ENOSPC}")
        overlay(image, region, significant, path, **more)

    monkeypatch.setattr("dal_jax.inspection._inspect.overlay", draw)
    assert run(model, photographs) == 0
    assert seen == [(f"{k}.png", 4) for k in range(4)]
    pictures = photographs.parent / "out" / "overlays"
    assert sorted(p.name for p in pictures.iterdir()) == ["0.png", "2.png", "3.png"]
    assert "1.png: cannot write" in capsys.readouterr().err


# With ".png" behind it the name has 251 bytes, and 255 is the limit.
def test_a_long_name_has_its_picture(model: Path, photographs: Path) -> None:
    shutil.copy(photographs / "0.png", photographs / f"{'n' * 243}.jpg")
    assert run(model, photographs) == 0
    assert (photographs.parent / "out" / "overlays" / f"{'n' * 243}.jpg.png").is_file()


def test_an_interruption_says_what_is_kept_and_how_to_go_on(
    model: Path,
    photographs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    count = [0]

    def interrupted(result: Any) -> dict[str, Any]:
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        return as_record(result)

    monkeypatch.setattr(AS_RECORD, interrupted)
    assert run(model, photographs) == 130
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("dal-jax test: interrupted: 2 of 4 tests are kept in ")
    assert told.endswith("the same command goes on with the others")
    assert run(model, photographs) == 0
    assert count == [5]  # the two that were not kept
    lines = (photographs.parent / "out" / "run" / "results.jsonl").read_text().splitlines()
    assert len({json.loads(line)["name"] for line in lines}) == 4
