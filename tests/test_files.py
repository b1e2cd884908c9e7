"""Writing files: whole or not at all."""

from pathlib import Path

import numpy as np
import pytest

from dal_jax import InputError
from dal_jax.images import atomic_path, write_array, write_text


def test_written_files_read_back(tmp_path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3)
    write_array(tmp_path / "new" / "a.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "a.npy"), array)
    write_text(tmp_path / "t.txt", "é\n")
    assert (tmp_path / "t.txt").read_text(encoding="utf-8") == "é\n"
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a.npy", "t.txt"]


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "t.txt", "old")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "t.txt") as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert (tmp_path / "t.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["t.txt"]


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    with atomic_path(path) as one:
        one.write_text("one")
        write_text(path, "other")
        assert path.read_text() == "other"
    assert path.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["t.txt"]


def test_unwritable_place_is_one_line(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "")
    with pytest.raises(InputError, match="cannot write") as caught:
        write_text(tmp_path / "file" / "below.txt", "")
    assert "\n" not in str(caught.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_text(tmp_path / "folder", "")
