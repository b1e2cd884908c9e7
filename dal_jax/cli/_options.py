"""Options that several verbs share."""

import contextlib
import hashlib
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import jax
import numpy as np
import typer

from dal_jax import TestOptions
from dal_jax._config import options_of
from dal_jax._errors import InputError
from dal_jax._files import read_array
from dal_jax.images import read_image
from dal_jax.localizers import DETECTOR_FORM, FORM, Localizer, detector_named, load_localizer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Model = Annotated[
    Path,
    typer.Option(
        "--model",
        metavar="DIR",
        help="Folder of the checkpoint that train or import-weights wrote.",
    ),
]
Image = Annotated[
    Path,
    typer.Option(
        "--image", metavar="FILE", help="Image file: .npy, .png, .jpg, .tif or .nii(.gz)."
    ),
]
Draws = Annotated[
    Path | None,
    typer.Option(
        "--draws",
        metavar="FILE.npy",
        help="Standard normal draws (1 + steps, H, W, C), fixed before the image is seen; by "
        "default they are drawn with --seed.",
    ),
]
Use = Annotated[
    str | None,
    typer.Option(
        "--localizer",
        metavar=FORM,
        help="Another localizer for the model's network, in the form of train --localizer, such "
        "as mdps:pl or glad:pl,start=300; by default the one that it was trained for. The "
        "MODULE:FUNCTION that the model was made with: its code runs only if it is named again.",
    ),
]
Detector = Annotated[
    str | None,
    typer.Option(
        "--localizer",
        metavar="MODULE:FUNCTION",
        help="Function that the model was made with by train --localizer: its code runs only if it "
        "is named again.",
    ),
]
Threshold = Annotated[
    float,
    typer.Option(
        "--threshold", metavar="L", help="Threshold of the score; pixels above it are flagged."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder for the arrays, figure.png and result.json."),
]

Devices = Annotated[
    int | None,
    typer.Option("--devices", metavar="N", help="Number of devices; by default all are used."),
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", metavar="N", help="Number of concurrent tests.")
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR|none",
        help="Folder that keeps compiled programs for later runs, or none to keep none; by default "
        "that of the environment variable JAX_COMPILATION_CACHE_DIR or, if it is not set, one in "
        "the user's cache folder ($XDG_CACHE_HOME or ~/.cache).",
    ),
]
Coordinator = Annotated[
    str | None,
    typer.Option("--coordinator", metavar="HOST:PORT", help="Address at which process 0 listens."),
]
NumProcesses = Annotated[
    int | None,
    typer.Option("--num-processes", metavar="N", help="Number of processes that share the run."),
]
ProcessId = Annotated[
    int | None, typer.Option("--process-id", metavar="I", help="Number of this process, from 0.")
]

CACHE_BYTES = 2**30  # compiled programs in the user's cache directory when a verb starts


def flag(kind: Any, name: str, more: str = "", *also: str) -> Any:
    """Return the command-line option that a field of a dataclass declares.

    Args:
        kind: Dataclass of the field.
        name: Name of the field, declared by `dal_jax._config.option`.
        more: End of the help text, for conditions of a single verb.
        *also: Other names of the option.

    Returns:
        The option, for the annotation of a parameter.
    """
    words, word = options_of(kind)[name].metadata, name.replace("_", "-")
    both = f"/--no-{word}" if get_type_hints(kind)[name] is bool else ""
    text = words["help"] + (f" {more}" if more else "")
    return typer.Option(
        words["name"] or f"--{word}{both}", *also, metavar=words["metavar"], help=text
    )


def annotation(kind: Any, name: str, more: str = "") -> Any:
    """Return the annotation of a verb's parameter that a field declares; arguments as in `flag`.

    A tuple becomes an option that may be repeated and takes several entries with commas between.
    """
    declared, choices = get_type_hints(kind)[name], options_of(kind)[name].metadata["choices"]
    if choices:
        one_of: Any = Literal[choices]
        declared = one_of | None if type(None) in get_args(declared) else one_of
    declared = list[str] if get_origin(declared) is tuple else declared
    return Annotated[declared, flag(kind, name, more)]


def declared(kind: Any, *names: str) -> Callable[[Any], Any]:
    """Let fields of a dataclass declare parameters of a verb that have their names.

    Args:
        kind: Dataclass of the fields.
        *names: Names of the fields, declared by `dal_jax._config.option`.

    Returns:
        Decorator of the verb.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        verb.__annotations__ |= {name: annotation(kind, name) for name in names}
        return verb

    return decorate


def with_fields(kind: Any, parameter: str, more: dict[str, str]) -> Callable[[Any], Any]:
    """Give a verb the options that a dataclass declares, in place of one parameter.

    Args:
        kind: Dataclass that declares the options.
        parameter: Parameter of the verb that takes an instance, built from the options.
        more: Ends of help texts, by field.

    Returns:
        Decorator of the verb.
    """
    made = [
        Parameter(
            name,
            Parameter.POSITIONAL_OR_KEYWORD,
            default=_texts(own.default),
            annotation=annotation(kind, name, more.get(name, "")),
        )
        for name, own in options_of(kind).items()
    ]

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        own = list(signature(verb).parameters.values())
        place = [one.name for one in own].index(parameter)
        parameters = [*own[:place], *made, *own[place + 1 :]]

        @wraps(verb)
        def run(**values: Any) -> None:
            given = {one.name: _value(kind, one.name, values.pop(one.name)) for one in made}
            verb(**values, **{parameter: kind(**given)})

        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def _texts(value: Any) -> Any:
    return list(map(str, value)) if isinstance(value, tuple) else value


def _value(kind: Any, name: str, value: Any) -> Any:
    """Return the value of a field; that of a tuple from its texts."""
    declared = get_type_hints(kind)[name]
    if get_origin(declared) is not tuple:
        return value
    parts = [part.strip() for text in value for part in text.split(",") if part.strip()]
    kind = get_args(declared)[0]
    if kind is str:
        return tuple(parts)
    try:
        if kind is int and not all(part.isdecimal() for part in parts):
            raise ValueError
        return tuple(kind(part) for part in parts)
    except ValueError:
        word, numbers = name.replace("_", "-"), "whole numbers" if kind is int else "numbers"
        text = ",".join(value)
        expected = f"expected {numbers} with commas between them"
        raise InputError(f"--{word}: got {text!r}, {expected}") from None


def noise_option(more: str = "") -> Any:
    """Return the option `--noise`, shared by all verbs that read a covariance.

    Args:
        more: End of the help text, for conditions of a single verb.

    Returns:
        The option.
    """
    text = (
        "Covariance of an image, in the units of the images as they are read (8-bit files divided "
        "by 255, 16-bit files by 65535); FILE.npz of save_noise, or FILE.npy with variances "
        f"(H, W[, C]) or a matrix (n, n).{more}"
    )
    return typer.Option("--noise", metavar="iid:SIGMA|ar1:RHO:SIGMA|FILE", help=text)


Seed = Annotated[int, flag(TestOptions, "seed")]


def refuse(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Refuse options that were given but would be ignored.

    Args:
        context: Context of the verb.
        names: Names of the parameters to refuse.
        why: End of the message, which names the reason.

    Raises:
        InputError: One of the options was given.
    """
    for name in names:
        if is_given(context, name):
            known = {one.name: one.opts[0] for one in context.command.params}
            raise InputError(f"{known[name]}: expected none {why}")


def is_given(context: typer.Context, name: str) -> bool:
    """Return whether a parameter of a verb is on the command line, and not at its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def keep_compilations(directory: Path | None) -> None:
    """Let JAX store compiled programs on disk, so that later processes need not compile them.

    Args:
        directory: Directory of the programs, created if missing; "none" to store none; None to
            leave JAX unchanged.

    Raises:
        InputError: The path is no directory and cannot be made one.
    """
    if directory is None:
        return
    if str(directory) == "none":
        jax.config.update("jax_compilation_cache_dir", None)
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--cache {str(directory)!r}: {error.strerror or error}") from error
    _keep_in(directory)


def keep_compilations_by_default() -> None:
    """Let JAX store compiled programs in the user's cache directory.

    The directory is `dal_jax` in `$XDG_CACHE_HOME` or else in `~/.cache`; JAX creates it when it
    first stores a program. If it holds more than `CACHE_BYTES`, the programs that were not used for
    longest are removed first. Nothing changes where JAX's own settings name a directory or turn the
    cache off. A directory that cannot be written is one line on standard error.
    """
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache:
        return
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the specification of the variable wants it ignored
        base = os.path.expanduser("~/.cache")
    if not os.path.isabs(base):  # no home
        return
    directory = Path(base) / "dal_jax"
    there = next(path for path in (directory, *directory.parents) if os.path.exists(path))
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        why = f"cannot write to {str(there)!r}"
        print(f"dal-jax: compiled programs are not kept: {why}", file=sys.stderr)
        return
    _remove_unused(directory)
    _keep_in(directory)


def _remove_unused(directory: Path) -> None:
    # Not by JAX's own limit: it needs a package more, and locks that a shared home may not have.
    with contextlib.suppress(OSError):  # another process removes files, too
        files = [(path, path.stat()) for path in directory.glob("*/*-cache")]
        size = sum(found.st_size for _, found in files)
        for path, found in sorted(files, key=lambda one: max(one[1].st_atime, one[1].st_mtime)):
            if size <= CACHE_BYTES:
                break
            path.unlink(missing_ok=True)
            size -= found.st_size


def _keep_in(directory: Path) -> None:
    """Store programs in the part of a directory for this kind of processor.

    A program may use instructions that another processor lacks, and machines may share a home.
    """
    kind = hashlib.sha256(_instruction_sets().encode()).hexdigest()[:12]
    part = directory / f"{platform.machine()}-{kind}"
    jax.config.update("jax_compilation_cache_dir", str(part))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # A program that cannot be read or stored, as on a full disk, is compiled.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")


def _instruction_sets() -> str:
    """Return what the system says of the processor's instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    of_features = (line for line in lines if line.startswith(("flags", "Features")))
    return " ".join(sorted(next(of_features, "").partition(":")[2].split()))


def open_localizer(
    model: Path | None,
    threshold: float,
    draws: Path | None,
    seed: int,
    use: str | None = None,
    like: Path | None = None,
) -> Localizer:
    """Load the localizer that the options describe.

    Args:
        model: Checkpoint directory; None for a detector that `use` names.
        threshold: Threshold of the score, positive, in units of the score.
        draws: File .npy of the draws, or None to draw from `seed`.
        seed: Seed of the draws, not negative.
        use: Use of the network; None for the one that it was trained for. Name of a detector.
        like: Image of the size that a detector without a model is for.

    Returns:
        The localizer.

    Raises:
        InputError: A file or a value does not fit.
    """
    if seed < 0:
        raise InputError(f"--seed: got {seed}, expected 0 or more")
    detector = detector_named(use)
    if model is None:
        if detector is None or like is None:
            expected = f"expected a checkpoint, or --localizer {DETECTOR_FORM}"
            raise InputError(f"--model: got none, {expected}")
        if draws is not None:
            raise InputError(f"--draws: got {str(draws)!r}, expected none with a detector")
        return detector.for_images(finite_image(like).shape).open(threshold)
    given = seed if draws is None else read_array(draws, "draws")
    return load_localizer(model, threshold, given, use)


def finite_image(path: Path) -> np.ndarray:
    """Read an image and check its pixels.

    Args:
        path: Path of the image file.

    Returns:
        Image (H, W, C), float64.

    Raises:
        InputError: The image cannot be read, or is not finite.
    """
    image = read_image(path)
    if not np.isfinite(image).all():
        raise InputError(f"image {str(path)!r}: holds NaN or infinite pixels")
    return image
