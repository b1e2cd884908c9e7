"""Files: written whole or not at all, read with one-line errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dal_jax import InputError
from dal_jax._errors import CheckpointError
from dal_jax._files import (
    atomic_path,
    csv_text,
    file_errors,
    read_array,
    read_arrays,
    read_json,
    write_array,
    write_text,
)


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


@pytest.mark.parametrize("text", ["", "{", "[1]", "1", '"{}"', "[" * 100_000, "\xe9"])
def test_json_without_an_object_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    message = r"^model '.*a\.json': damaged \(.*\); train again$"
    with pytest.raises(CheckpointError, match=message) as caught:
        read_json(path, "model", CheckpointError, "train again")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_json, read_array, read_arrays])
def test_missing_and_unreadable_files_are_one_line(
    tmp_path: Path, read: Callable[..., Any]
) -> None:
    with pytest.raises(InputError, match=r"^file '.*none': no such file$"):
        read(tmp_path / "none")
    with pytest.raises(InputError, match=r"^noise '.*': cannot be read \(Is a directory\)$"):
        read(tmp_path, "noise")


def test_damaged_arrays_are_one_line(tmp_path: Path) -> None:
    one, many = tmp_path / "x.npy", tmp_path / "x.npz"
    np.save(one, np.arange(100.0))
    np.savez(many, x=np.arange(100.0))
    for path, read in ((one, read_array), (many, read_arrays)):
        whole = path.read_bytes()
        for content in (b"", b"text", whole[: len(whole) // 2], whole[:-1]):
            path.write_bytes(content)
            with pytest.raises(InputError, match=rf"^file '.*{path.name}': damaged \(.+\)$"):
                read(path)
    np.save(one, np.array([{}]), allow_pickle=True)
    np.savez(many, allow_pickle=True, x=np.array([{}]))
    for path, read in ((one, read_array), (many, read_arrays)):
        with pytest.raises(InputError, match=r"damaged \(Object arrays cannot be loaded"):
            read(path)


def test_contents_are_refused_in_the_same_form(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(InputError, match=r"a\.json': damaged \(no 'size'\)$"), file_errors(path):
        {}["size"]
    with pytest.raises(InputError, match=r"^file '.*other': no such file"), file_errors(path):
        (tmp_path / "other").read_text()
    with pytest.raises(InputError, match=r"^size is 3$"), file_errors(path):
        raise InputError("size is 3")
    of_model = file_errors(path, "model", CheckpointError)
    with pytest.raises(CheckpointError, match=r"model .*: damaged \(size is 3\)"), of_model:
        raise InputError("size is 3")


def test_tables_have_no_formulas() -> None:
    rows = [{"name": "=1+1", "p": -0.5}, {"name": "a,b", "p": None}]
    assert csv_text(rows) == 'name,p\n\'=1+1,-0.5\n"a,b",\n'
    assert csv_text(rows, ["p"]) == 'p\n-0.5\n""\n'
    assert csv_text([]) == "\n"
