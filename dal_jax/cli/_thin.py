"""`dal-jax thin`: noisier copies of images for any detector, each with a record for the test."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from dal_jax import TestOptions, thinned
from dal_jax._config import build
from dal_jax._dal_test import check_randomization
from dal_jax._errors import InputError
from dal_jax._files import dumps, file_errors, read_json
from dal_jax._version import __version__
from dal_jax.cli import _options as options
from dal_jax.cli._spec import expand_patterns
from dal_jax.images import write_array, write_text
from dal_jax.noise import Covariance, parse_noise
from dal_jax.runs import fingerprint

Images = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE...",
        help="Images: .npy, .png, .jpg, .tif, .nii(.gz), or a quoted pattern such as "
        "'scans/*.png'. The added noise depends on the name of the file: do not rename it before "
        "the test.",
    ),
]
Noise = Annotated[str, options.noise_option()]
Randomization = Annotated[
    float, options.flag(TestOptions, "randomization", "Here 0.001 to 1000.", "--gamma")
]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder for the copies NAME.thinned.npy (float64, in the units of the image; (H, W) "
        "for grey images, otherwise (H, W, C)) and their records NAME.thinned.json.",
    ),
]
_MOST_NAMES = 3
_ADVICE = "expected a record that thin wrote"


@dataclass(frozen=True)
class Record:
    """Record of a thinned image, from which the test splits the image again."""

    image: str  # name of the file, which enters the seed of the added noise
    pixels_sha256: str
    gamma: float  # standard deviation of the added noise, in standard deviations of the noise
    seed: int
    noise: str  # option as given on the command line
    noise_sha256: str
    version: str  # version of this package

    @property
    def settings(self) -> tuple[Any, ...]:
        """Fields that determine the copy; the same noise may be given by different options."""
        return self.image, self.pixels_sha256, self.gamma, self.seed, self.noise_sha256


def thin(
    image: Images,
    noise: Noise,
    out: Out,
    randomization: Randomization = TestOptions.randomization,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Writes noisier copies of images, in which any program may flag a region for test-thinned.

    The copy is x + omega, with omega drawn from N(0, GAMMA^2 SIGMA) by --seed and the name of the
    file. A region flagged in the copy is tested in x - omega / GAMMA^2, which is independent of it.
    Choose GAMMA and the seed before any result is seen; a copy with other settings is not
    overwritten. An image that cannot be read does not stop the others. Copies that thin wrote are
    not thinned again.
    """
    check_randomization(randomization, "--randomization", none=False)
    paths = _without_copies(expand_patterns(image, Path(), "IMAGE"), image)
    _check_names(paths, out)

    @cache
    def opened(shape: tuple[int, ...]) -> tuple[Covariance, str]:
        covariance = parse_noise(noise, shape)
        return covariance, fingerprint(covariance)

    def made(path: Path) -> _Copy | None:
        x = options.finite_image(path)
        covariance, digest = opened(x.shape)
        halves = thinned(x, covariance, randomization, seed=seed, name=path.name)
        pixels = fingerprint(x)
        record = Record(path.name, pixels, halves.gamma, seed, noise, digest, __version__)
        return None if _is_there(path, x, halves.seen, record, out) else _Copy(halves.seen, record)

    refused = _write_each(paths, made, out)
    paths = tuple(path for path in paths if path not in refused)
    *others, last = dict.fromkeys(refused.values()) or [""]
    for told in others:
        print(f"dal-jax thin: {told}", file=sys.stderr)
    if paths and json:
        copies, records = zip(*(thinned_files(out, path) for path in paths), strict=True)
        shown = {"images": paths, "copies": copies, "records": records, "gamma": randomization}
        typer.echo(dumps({**shown, "seed": seed, "noise": noise, "version": __version__}))
    elif paths:
        number = "1 copy" if len(paths) == 1 else f"{len(paths)} copies"
        typer.echo(
            f"{number} with {randomization:g} times the noise added, written to {out} as "
            "NAME.thinned.npy, with NAME.thinned.json for test-thinned"
        )
    if last:
        raise InputError(last)


class _Copy(NamedTuple):
    seen: np.ndarray  # (H, W, C)
    record: Record


def _write_each(
    paths: tuple[Path, ...], made: Callable[[Path], _Copy | None], out: Path
) -> dict[Path, str]:
    """Write the copies that are made of images, and return why there is none of some of them."""
    refused = {}
    for path in paths:
        try:
            new = made(path)
        except InputError as error:
            refused[path] = str(error)
            continue
        if new is not None:
            copy, beside = thinned_files(out, path)
            # The copy comes first: if the process ends before the record, the copy is not tested.
            write_array(copy, new.seen[..., 0] if new.seen.shape[2] == 1 else new.seen)
            write_text(beside, dumps(asdict(new.record)) + "\n")
    return refused


def _is_there(path: Path, x: np.ndarray, seen: np.ndarray, record: Record, out: Path) -> bool:
    """Return whether the copy of an image is there; refuse another one in its place."""
    copy, beside = thinned_files(out, path)
    if beside.exists() and read_record(beside).settings != record.settings:
        raise InputError(
            f"--out {str(out)!r}: holds a copy of {path.name!r} with other settings, expected "
            "another folder"
        )
    if not (beside.exists() and copy.exists()):
        return False
    check_copy(copy, seen, seen - x)
    return True


def thinned_files(out: Path, image: Path) -> tuple[Path, Path]:
    """Return the paths of the files of a thinned image.

    Args:
        out: Folder of the files.
        image: Path of the image.

    Returns:
        Paths of the noisier copy and of its record.
    """
    return out / f"{image.stem}.thinned.npy", out / f"{image.stem}.thinned.json"


def read_record(path: Path) -> Record:
    """Read the record of a thinned image.

    Args:
        path: Path of the record that `thin` wrote.

    Returns:
        The record.

    Raises:
        InputError: The file is missing or is no complete record.
    """
    with file_errors(path, "record", advice=_ADVICE):
        entries = read_json(path, "record", advice=_ADVICE)
        return build(Record, entries, f"record {str(path)!r}")


def check_copy(path: Path, seen: np.ndarray, added: np.ndarray) -> None:
    """Refuse a copy that differs from the one that the image and its record determine.

    If the copy was edited, or if another release of a library draws other random numbers, the two
    halves of the image are dependent.

    Args:
        path: Path of the copy.
        seen: (H, W, C) expected pixels of the copy.
        added: (H, W, C) noise in the copy; differences far below it count as rounding.

    Raises:
        InputError: The copy differs or is missing.
    """
    copy = options.finite_image(path)
    # Between machines, factors of a covariance differ by up to 1e-8 of its largest root.
    rounding = 1e-6 * float(np.abs(added).max())
    if copy.shape != seen.shape or not np.abs(copy - seen).max() <= rounding:
        raise InputError(
            f"copy {str(path)!r}: differs from the image with the noise of its record, expected "
            "the unchanged file that thin wrote, and the same release of NumPy"
        )


def _without_copies(paths: tuple[Path, ...], given: list[str]) -> tuple[Path, ...]:
    """Leave out the copies among the files of patterns, in one line; refuse one given itself."""
    copies = [p for p in paths if p.name.endswith(".thinned.npy") and _record_of(p).is_file()]
    named = [path for path in copies if path in set(map(Path, given))]
    if named or (copies and len(copies) == len(paths)):
        name = str((named or copies)[0])
        raise InputError(f"IMAGE: got {name!r}, a copy that thin wrote, expected an image")
    if copies:
        more = ", ..." if len(copies) > _MOST_NAMES else ""
        shown = ", ".join(repr(str(path)) for path in copies[:_MOST_NAMES])
        print(
            f"IMAGE: not used: copies that thin wrote ({len(copies)}): {shown}{more}",
            file=sys.stderr,
        )
    return tuple(path for path in paths if path not in copies)


def _record_of(copy: Path) -> Path:
    return copy.with_suffix(".json")


def _check_names(paths: tuple[Path, ...], out: Path) -> None:
    taken: dict[Path, Path] = {}
    for path in paths:
        other = taken.setdefault(thinned_files(out, path)[0], path)
        if other is not path and other.absolute() == path.absolute():
            raise InputError(f"IMAGE: got {str(path)!r} twice, expected each file once")
        if other is not path:
            raise InputError(
                f"IMAGE {str(path)!r}: has the name of {str(other)!r} up to the suffix, expected "
                "different names, as their copies are in one folder"
            )
