"""What `dal-jax test` is to do: from its options, or from a TOML file with the same names."""

import glob
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dal_jax import TestOptions
from dal_jax._errors import InputError


@dataclass(frozen=True)
class TestSpec:
    """A run of tests; the same from the command line and from a file.

    Raises:
        InputError: there is no model, image or reference.
    """

    model: Path
    images: tuple[Path, ...]
    references: tuple[Path, ...]
    draws: Path | None = None
    noise: str = "iid:1"
    threshold: float = 0.8
    engine: str = "adaptive"  # or "exact"
    visit: str = "sweep"  # how the exact engine visits the windows
    dtype: str | None = None
    precision: float = 1e-3
    alpha: float | None = None
    alternative: str = "two-sided"
    seed: int = 0
    devices: int | None = None
    batch_size: int | None = None

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __post_init__(self) -> None:
        for name in ("images", "references"):
            if not getattr(self, name):
                raise InputError(f"--{name[:-1]}: got none, expected one or more files")
        if self.engine not in ("exact", "adaptive"):
            raise InputError(f"engine: got {self.engine!r}, expected 'exact' or 'adaptive'")

    @property
    def options(self) -> TestOptions:
        """What the tests are told."""
        return TestOptions(
            alternative=self.alternative,
            engine=self.visit if self.engine == "exact" else self.engine,
            dtype=self.dtype,
            precision=self.precision,
            alpha=self.alpha,
            seed=self.seed,
        )


def read_spec(path: Path) -> TestSpec:
    """Reads a run from a TOML file; paths in it are relative to the file's folder.

    Args:
        path: of the file; `model`, `images` and `references` must be there, others may.

    Returns:
        The run; `images` and `references` may hold patterns, whose files are taken in order.

    Raises:
        InputError: no such file, not TOML, an unknown key, a value of another type, or no file
            that fits a pattern.
    """
    try:
        entries = tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"--spec {str(path)!r}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--spec {str(path)!r}: {error}") from error
    known = {field.name: str(field.type) for field in fields(TestSpec)}
    for name, value in entries.items():
        if name not in known:
            raise InputError(
                f"--spec {str(path)!r}: unknown key {name!r}, expected {', '.join(known)}"
            )
        _check_type(path, name, value, known[name])
    for name in ("model", "images", "references"):
        if name not in entries:
            raise InputError(f"--spec {str(path)!r}: {name!r} is missing")
    folder = path.parent
    entries["model"] = folder / entries["model"]
    for name in ("images", "references"):
        entries[name] = expanded(entries[name], folder, f"--spec {str(path)!r}: {name}")
    if "draws" in entries:
        entries["draws"] = folder / entries["draws"]
    noise = entries.get("noise", "iid:1")
    if not noise.partition(":")[1]:  # a file
        entries["noise"] = str(folder / noise)
    return TestSpec(**entries)


def expanded(patterns: Sequence[str], folder: Path, name: str) -> tuple[Path, ...]:
    """Files that fit patterns, pattern by pattern, in the order of their names.

    Args:
        patterns: paths, or patterns with `*`, `?`, `[...]` or `**`.
        folder: that relative ones start from.
        name: of the argument, for the error.

    Returns:
        The paths.

    Raises:
        InputError: no file fits a pattern.
    """
    found: list[Path] = []
    for pattern in patterns:
        full = str(folder / pattern)
        if not glob.has_magic(pattern):
            found.append(Path(full))
            continue
        fitting = sorted(glob.glob(full, recursive=True))
        if not fitting:
            raise InputError(f"{name}: no file fits {pattern!r}")
        found.extend(Path(file) for file in fitting)
    return tuple(found)


def _check_type(path: Path, name: str, value: Any, declared: str) -> None:
    if "tuple" in declared:
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
        expected = "a list of paths or patterns"
    elif "Path" in declared or "str" in declared:
        fits, expected = isinstance(value, str), "a string"
    elif "int" in declared:
        fits, expected = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    else:
        fits, expected = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    if not fits:
        raise InputError(f"--spec {str(path)!r}: {name} is {value!r}, expected {expected}")
