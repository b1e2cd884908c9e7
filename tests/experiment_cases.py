"""What the tests of experiments share: narrow networks, finished runs and their tables."""

import csv
import json
import shutil
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from dal_jax import TOLERANCE
from experiments import find
from experiments._experiment import RECORD, Context, run_experiment
from experiments._models import Model


def narrow_models(module: ModuleType) -> Any:
    """A fixture for all tests of a file: what a module trains has 4 and 8 channels, on 64 images.

    The paper's networks take a minute to compile.
    """

    @pytest.fixture(scope="module", autouse=True)
    def narrow():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "Model", partial(Model, channels=(4, 8), images=64))
            yield

    return narrow


def finished(name: str, settings: Any) -> Any:
    """A fixture: the directory of a finished run of an experiment."""

    @pytest.fixture(scope="module")
    def out(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp(name)
        run_experiment(name, find(name), settings, Context(out, models))
        return out

    return out


def table(out: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a table, from its npz."""
    with np.load(out / f"{name}.npz") as columns:
        found = {column: columns[column].tolist() for column in columns.files}
    return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]


def csv_table(out: Path, name: str) -> list[dict[str, str]]:
    """The rows of a table as text, from its csv."""
    with (out / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def records(out: Path, condition: str) -> list[dict[str, Any]]:
    """The records of a condition's images, in order."""
    lines = (out / "runs" / condition / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def tables(out: Path) -> dict[str, dict[str, list[Any]]]:
    """The columns of all tables, csv and npz, but for those of times."""
    found = {}
    for path in sorted(out.iterdir()):
        if path.stem.endswith("times"):
            continue
        if path.suffix == ".csv":
            rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
            found[path.name] = {
                key: [row[key] for row in rows] for key in (rows[0] if rows else ())
            }
        elif path.suffix == ".npz":
            with np.load(path) as archive:
                found[path.name] = {key: np.ravel(archive[key]).tolist() for key in archive.files}
    return found


def assert_same_tables(one: Path, other: Path) -> None:
    """Two runs of an experiment have the same tables, to what is promised of single tests.

    (docs/engines.md, "The same answer everywhere".)
    """
    found, expected = tables(one), tables(other)
    assert found.keys() == expected.keys() and found
    for name, columns in expected.items():
        assert found[name].keys() == columns.keys(), name
        for key, column in columns.items():
            # Means of what depends on where a search happened to look.
            words = ("evaluations", "low", "high", "windows", "length")
            searched = any(word in key for word in words)
            tolerance = 0.02 if searched else TOLERANCE
            assert len(found[name][key]) == len(column), (name, key)
            for a, b in zip(found[name][key], column, strict=True):
                assert a == b or _near(a, b, tolerance), (name, key, a, b)


def _near(a: Any, b: Any, tolerance: float) -> bool:
    try:
        return bool(np.isclose(float(a), float(b), rtol=tolerance, atol=tolerance, equal_nan=True))
    except ValueError:
        return False


def unfinished(out: Path, copy: Path) -> list[Path]:
    """Copies a run without its tables, figures and summary; gives the shards of the copy."""
    shutil.copytree(out, copy)
    for path in copy.iterdir():
        if path.is_file() and path.name != RECORD:
            path.unlink()
    return sorted(copy.glob("runs/*/shard-*.jsonl"))


def check_resumed(name: str, settings: Any, out: Path, context: Context, keep: int) -> None:
    """A copy in the context's directory, torn in its first or a later line, gets the same tables.

    Every shard keeps its head and some lines, the last of them torn.
    """
    for shard in unfinished(out, context.directory):
        lines = shard.read_bytes().splitlines(keepends=True)[: 2 + keep]
        shard.write_bytes(b"".join(lines[:-1]) + lines[-1][:-7])
    run_experiment(name, find(name), settings, context)
    assert_same_tables(context.directory, out)
    assert f"{name}.csv" in tables(out)
