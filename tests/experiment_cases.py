"""Helpers of the tests of experiments: narrow networks, finished runs and their tables."""

import csv
import json
import shutil
from collections.abc import Callable, Sequence
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

# A network that is trained and compiled in seconds, for `localizer_preset`.
TINY = ",unet.channels=[2,4],unet.time_dim=4"


def narrow_models(module: ModuleType) -> Any:
    """A fixture for all tests of a file: models of a module have 4 and 8 channels, and 64 images.

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
    with (out / f"{name}.csv").open(newline="") as file:
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
            rows = csv_table(out, path.stem)
            found[path.name] = {
                key: [row[key] for row in rows] for key in (rows[0] if rows else ())
            }
        elif path.suffix == ".npz":
            with np.load(path) as archive:
                found[path.name] = {key: np.ravel(archive[key]).tolist() for key in archive.files}
    return found


def assert_figures_and_words(out: Path, figures: Sequence[str], words: Sequence[str] = ()) -> None:
    """Every figure is a PDF and a PNG, and the summary has the words."""
    for name in figures:
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF"), name
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
    summary = (out / "summary.md").read_text()
    assert summary.startswith("# ")
    for word in words:
        assert word in summary, word


def assert_same_tables(one: Path, other: Path) -> None:
    """Two runs of an experiment have the same tables, to the precision promised of single tests.

    (docs/engines.md, "The same answer everywhere".)
    """
    found, expected = tables(one), tables(other)
    assert found.keys() == expected.keys() and found
    for name, columns in expected.items():
        assert found[name].keys() == columns.keys(), name
        for key, column in columns.items():
            # Means of numbers that depend on the points at which a search looked.
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
    """Copies a run without its tables, figures and summary; returns the shards of the copy."""
    shutil.copytree(out, copy)
    for path in copy.iterdir():
        if path.is_file() and path.name != RECORD:
            path.unlink()
    return sorted(copy.glob("runs/*/shard-*.jsonl"))


def check_resumed(
    name: str, settings: Any, out: Path, context: Context, tear: Callable[[Path], None]
) -> None:
    """A copy in the context's directory, with torn shards, is continued to the same tables."""
    shards = unfinished(out, context.directory)
    assert shards
    for shard in shards:
        tear(shard)
    run_experiment(name, find(name), settings, context)
    assert_same_tables(context.directory, out)
    assert f"{name}.csv" in tables(out)


def tear_line(keep: int) -> Callable[[Path], None]:
    """Leaves a shard its head and some lines, the last of them torn."""

    def tear(shard: Path) -> None:
        lines = shard.read_bytes().splitlines(keepends=True)[: 2 + keep]
        shard.write_bytes(b"".join(lines[:-1]) + lines[-1][:-7])

    return tear


def tear_anywhere(seed: int) -> Callable[[Path], None]:
    """Cuts each shard anywhere; results may be collected already or not."""
    rng = np.random.default_rng(seed)

    def tear(shard: Path) -> None:
        content = shard.read_bytes()
        shard.write_bytes(content[: rng.integers(0, len(content) + 1)])
        if rng.uniform() < 0.5:
            shard.with_name("results.jsonl").unlink()

    return tear
