"""Specification of `dal-jax test`, from its options or from a TOML file with the same names."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dal_jax import TestOptions
from dal_jax._config import fit_fields, read_toml
from dal_jax._errors import InputError
from dal_jax.cli._options import open_localizer
from dal_jax.inspection import Inspection, inspect_images
from dal_jax.localizers import THRESHOLD, detector_named


@dataclass(frozen=True)
class TestSpec:
    """Specification of a run of tests, the same from the command line and from a file.

    Raises:
        InputError: The model, an image, a reference or the noise is missing.
    """

    model: Path | None  # None: the localizer is a detector
    images: tuple[Path, ...]
    references: tuple[Path, ...]
    noise: str  # in the units of the images; there is no default, since none fits all files
    draws: Path | None = None
    threshold: float = THRESHOLD
    devices: int | None = None
    batch_size: int | None = None
    # Use of the model's network, if not the trained one; or a detector.
    localizer: str | None = None
    options: TestOptions = TestOptions()  # noqa: RUF009 (frozen)

    __test__ = False  # keeps pytest from collecting the class because of its name

    def __post_init__(self) -> None:
        for name in ("images", "references"):
            if not getattr(self, name):
                raise InputError(f"--{name[:-1]}: got none, expected one or more files")
        if not self.noise:
            raise InputError(
                "--noise: got none, expected the covariance of an image in the units in which it "
                "is read (8-bit files are divided by 255), as in iid:0.02"
            )

    def inspect(self, out: Path | None, test_options: TestOptions, **how: Any) -> Inspection:
        """Open the model and test the images; arguments as in `inspect_images`."""
        seed = self.options.seed
        given = self.threshold, self.draws, seed, self.localizer
        localizer = open_localizer(self.model, *given, self.references[0])
        files = self.images, self.references
        return inspect_images(localizer, *files, self.noise, out, test_options, **how)


def read_spec(path: Path) -> TestSpec:
    """Read a run from a TOML file, in which paths are relative to the file's folder.

    Args:
        path: Path of the file. The keys `model`, `images`, `references` and `noise` are required
            (not `model` if `localizer` is an ONNX file; a file names no code); other fields and the
            options of `TestOptions` are optional. `images` and `references` may hold patterns,
            whose files are taken in order.

    Returns:
        The run.

    Raises:
        InputError: The file does not exist or is no TOML, a key is unknown, a value has another
            type, or no file matches a pattern.
    """
    source = f"--spec {str(path)!r}"
    entries = fit_fields(TestSpec, read_toml(path, "--spec"), source)
    detector = detector_named(entries.get("localizer"))
    if detector is not None and detector.is_code:
        told = f"{entries['localizer']!r} is code, which a file cannot name"
        raise InputError(f"{source}: localizer: {told}: give --localizer and the other options")
    folder = path.parent
    if detector is not None and "model" not in entries:
        entries["model"] = None
        file = Path(detector.source.partition(":")[2])
        entries["localizer"] = entries["localizer"].replace(str(file), str(folder / file), 1)
    for name in ("model", "images", "references", "noise"):
        if name not in entries:
            raise InputError(f"{source}: {name!r} is missing")
    if entries["model"] is not None:
        entries["model"] = folder / entries["model"]
    for name in ("images", "references"):
        entries[name] = expand_patterns(entries[name], folder, f"{source}: {name}")
    if "draws" in entries:
        entries["draws"] = folder / entries["draws"]
    noise = entries["noise"]
    if not noise.partition(":")[1]:  # path of a file
        entries["noise"] = str(folder / noise)
    return TestSpec(**entries)


def expand_patterns(patterns: Sequence[str | Path], folder: Path, name: str) -> tuple[Path, ...]:
    """Return the files that match patterns, pattern by pattern, in the order of their names.

    Args:
        patterns: Paths, or patterns with `*`, `?`, `[...]` or `**`.
        folder: Folder that relative paths and patterns start from.
        name: Name of the argument, for the error.

    Returns:
        Paths of the files; a pattern that is the name of an existing file stands for that file.

    Raises:
        InputError: No file matches a pattern.
    """
    found: list[Path] = []
    for pattern in map(str, patterns):
        if not glob.has_magic(pattern) or (folder / pattern).is_file():
            found.append(folder / pattern)
            continue
        # Relative to the folder, whose own name may hold brackets.
        fitting = sorted(glob.glob(pattern, root_dir=folder, recursive=True))
        if not fitting:
            raise InputError(f"{name}: no file fits {pattern!r}")
        found += [folder / file for file in fitting]
    return tuple(found)
