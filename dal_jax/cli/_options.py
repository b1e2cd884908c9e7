"""Options that several verbs share."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

from dal_jax._errors import InputError
from dal_jax.images import read_image
from dal_jax.localizers import FORM, Localizer, load_localizer

Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Model = Annotated[
    Path, typer.Option("--model", metavar="DIR", help="Checkpoint of train or import-weights.")
]
Image = Annotated[
    Path,
    typer.Option("--image", metavar="FILE", help="Image: .npy, .png, .jpg, .tif, .nii(.gz)."),
]
Draws = Annotated[
    Path | None,
    typer.Option(
        "--draws",
        metavar="FILE.npy",
        help="Draws (1 + steps, H, W, C), standard normal, fixed before the image is seen; "
        "by default drawn from --seed.",
    ),
]
Use = Annotated[
    str | None,
    typer.Option(
        "--localizer",
        metavar=FORM,
        help="Another use of the model's network, as in train: mdps:pl, glad:pl,start=300, ...; "
        "by default the one that it was trained for.",
    ),
]
Threshold = Annotated[
    float, typer.Option("--threshold", metavar="L", help="Pixels of a higher score are flagged.")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Write arrays, figure.png and result.json there."),
]

Devices = Annotated[
    int | None, typer.Option("--devices", metavar="N", help="Devices to use; by default all.")
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", metavar="N", help="Tests under way at a time.")
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="Keep compiled programs there for later runs; by default as the environment variable "
        "JAX_COMPILATION_CACHE_DIR says.",
    ),
]
Coordinator = Annotated[
    str | None,
    typer.Option("--coordinator", metavar="HOST:PORT", help="Where process 0 of several listens."),
]
NumProcesses = Annotated[
    int | None, typer.Option("--num-processes", metavar="N", help="Processes that share the run.")
]
ProcessId = Annotated[
    int | None, typer.Option("--process-id", metavar="I", help="Which of them this is, from 0.")
]


def noise_option(more: str = "") -> Any:
    """Declares `--noise`, once for all verbs that read a covariance.

    Args:
        more: of the help, what holds for one verb alone.

    Returns:
        The option.
    """
    text = (
        "Covariance of an image, in the units of the images as they are read (8-bit files divided "
        "by 255, 16-bit files by 65535); FILE.npz of save_noise, or FILE.npy with variances "
        f"(H, W[, C]) or a matrix (n, n).{more}"
    )
    return typer.Option("--noise", metavar="iid:SIGMA|ar1:RHO:SIGMA|FILE", help=text)


def refuse(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Refuses options that were given, rather than ignore them.

    Args:
        context: of the verb.
        names: of its parameters.
        why: what they do not go with.

    Raises:
        InputError: one of them was given.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InputError(f"--{name.replace('_', '-')}: expected none {why}")


def keep_compilations(directory: Path | None) -> None:
    """Lets JAX keep compiled programs on disk, so that a later process need not compile them.

    Args:
        directory: made if missing; None leaves JAX as it is.

    Raises:
        InputError: it is no directory and cannot be made.
    """
    if directory is None:
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--cache {str(directory)!r}: {error.strerror or error}") from error
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def open_localizer(
    model: Path, threshold: float, draws: Path | None, seed: int, use: str | None = None
) -> Localizer:
    """Loads a localizer as the options say.

    Args:
        model: checkpoint directory.
        threshold: positive, in units of the score.
        draws: .npy file, or None to draw from `seed`.
        seed: not negative.
        use: of the network, if not the one that it was trained for.

    Returns:
        The localizer.

    Raises:
        InputError: a file or a value does not fit.
    """
    if seed < 0:
        raise InputError(f"--seed: got {seed}, expected 0 or more")
    given = seed if draws is None else _read_draws(draws)
    return load_localizer(model, threshold, given, use)


def open_image(path: Path, localizer: Localizer) -> np.ndarray:
    """Reads an image and checks that the localizer can take it.

    Args:
        path: image file.
        localizer: what will see the image.

    Returns:
        float64 (H, W, C).

    Raises:
        InputError: unreadable, of another shape, or not finite.
    """
    image = finite_image(path)
    expected = tuple(localizer.image_shape)
    if image.shape != expected:
        raise InputError(f"image {str(path)!r}: shape {image.shape}, the model takes {expected}")
    return image


def finite_image(path: Path) -> np.ndarray:
    """Reads an image and checks its pixels.

    Args:
        path: image file.

    Returns:
        float64 (H, W, C).

    Raises:
        InputError: unreadable, or not finite.
    """
    image = read_image(path)
    if not np.isfinite(image).all():
        raise InputError(f"image {str(path)!r}: holds NaN or infinite pixels")
    return image


def _read_draws(path: Path) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        reason = "no such file" if not path.exists() else "not a whole .npy file of numbers"
        raise InputError(f"draws {str(path)!r}: {reason}") from error
