"""`dal-jax test-thinned`: test of a region that a detector flagged in a copy by `dal-jax thin`."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy import ndimage

from dal_jax import TestOptions, ThinnedTest, thinned, thinned_test
from dal_jax._errors import InputError
from dal_jax._files import dumps
from dal_jax._version import __version__
from dal_jax.cli import _options as options
from dal_jax.cli._spec import expand_patterns
from dal_jax.cli._test import References
from dal_jax.cli._thin import Record, check_copy, read_record, thinned_files
from dal_jax.images import read_mask, read_pixels
from dal_jax.inference import SelectiveP, holm
from dal_jax.noise import Covariance, parse_noise
from dal_jax.report import NOT_SIGNIFICANT, SIGNIFICANT
from dal_jax.runs import fingerprint
from dal_jax.search import label_components

Mask = Annotated[
    Path,
    typer.Option(
        "--mask",
        metavar="FILE",
        help="What the detector flagged in the copy: .npy, .png, .tif or .nii(.gz) of bool, or of "
        "0 and one other value above it. Scores must be cut at a threshold first.",
    ),
]
Copies = Annotated[
    Path, typer.Option("--thinned", metavar="DIR", help="Folder that thin wrote the copy to.")
]
Noise = Annotated[
    str | None,
    options.noise_option(
        " The one that the image was thinned with; by default as the record names it, a file being "
        "read again."
    ),
]
Randomization = Annotated[
    float | None,
    typer.Option(
        "--randomization",
        "--gamma",
        metavar="GAMMA",
        help="Expected in the record of the copy; others are refused.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="Expected in the record of the copy; others are refused."),
]
Alpha = Annotated[float, typer.Option("--alpha", help="Level of the decision.")]
Confidence = Annotated[float, typer.Option("--confidence", help="Of the interval.")]
Components = Annotated[
    bool,
    typer.Option(
        "--components",
        help="Test each connected component of the mask on its own, diagonal neighbours included; "
        "Holm's adjusted p decides.",
    ),
]

# Accepted values of a mask that flags every pixel. Without a 0, other values could be scores.
_WHITE = (1, 255, 65535)


@options.declared(TestOptions, "alternative")
def test_thinned(
    mask: Mask,
    copies: Copies,
    image: options.Image,
    reference: References = [],  # noqa: B006 (typer copies it)
    noise: Noise = None,
    randomization: Randomization = None,
    alternative: str = TestOptions.alternative,
    confidence: Confidence = TestOptions.confidence,
    alpha: Alpha = 0.05,
    seed: Seed = None,
    components: Components = False,
    json: options.Json = False,
) -> None:
    """Tests whether a region that any program flagged in a thinned copy differs from references.

    The mean of image minus references inside the mask is estimated from the half of the image that
    the copy does not hold. p and interval are valid if the mask depends on the copy alone, neither
    on the image itself nor on the references. Several masks of one copy may be tested; correct for
    their number, as --components does for the parts of one mask.
    """
    if not 0 < alpha < 1:
        raise InputError(f"--alpha: got {alpha}, expected a level between 0 and 1")
    references = expand_patterns(reference, Path(), "--reference")
    if not references:
        raise InputError("--reference: got none, expected one or more files")
    x = options.finite_image(image)
    copy, beside = thinned_files(copies, image)
    record = read_record(beside)
    _check_record(record, image, x, {"--randomization": randomization, "--seed": seed})
    covariance = _open_noise(record, noise, x.shape)
    halves = thinned(x, covariance, record.gamma, seed=record.seed, name=record.image)
    check_copy(copy, halves.seen, halves.seen - x)
    region = _region(mask, x.shape)
    labels = label_components(region) if components else region.astype(int)
    against = np.stack([_reference(path, x, halves.seen) for path in references])
    how: dict[str, Any] = {"alternative": alternative, "confidence": confidence}
    found = [
        thinned_test(halves, labels == number, against, covariance, **how)
        for number in range(1, int(labels.max()) + 1)
    ]
    shown = {
        **how,
        "alpha": alpha,
        "region": "components" if components else "all",
        "gamma": record.gamma,
        "seed": record.seed,
        "image": image,
        "mask": mask,
        "references": references,
        "noise": noise or record.noise,
        "version": __version__,
        "results": _results(found, labels, alpha),
    }
    typer.echo(dumps(shown) if json else _summary(shown))


def _results(found: list[ThinnedTest], labels: np.ndarray, alpha: float) -> list[dict[str, Any]]:
    """Return a row for each part of the mask, with Holm's adjusted p, which decides."""
    adjusted = [p.p for p in holm([SelectiveP(*[one.p_value] * 3) for one in found])]
    boxes: Any = ndimage.find_objects(labels)
    return [
        {
            "component": number,
            "components": len(found),
            "top": rows.start,
            "left": columns.start,
            "bottom": rows.stop,
            "right": columns.stop,
            "num_tested": int((labels == number).sum()),
            "decision": SIGNIFICANT if p <= alpha else NOT_SIGNIFICANT,
            "p_adjusted": p,
            **one._asdict(),
            "z": one.statistic / one.sd,
        }
        for number, (one, (rows, columns), p) in enumerate(
            zip(found, boxes, adjusted, strict=True), 1
        )
    ]


def _check_record(record: Record, path: Path, x: np.ndarray, given: dict[str, Any]) -> None:
    if record.image != path.name:
        raise InputError(
            f"--image {str(path)!r}: the copy is of {record.image!r}, expected that name"
        )
    if record.pixels_sha256 != fingerprint(x):
        raise InputError(
            f"--image {str(path)!r}: other pixels than those that were thinned, expected the same "
            "image"
        )
    known = {"--randomization": record.gamma, "--seed": record.seed}
    for name, value in given.items():
        if value is not None and value != known[name]:
            raise InputError(
                f"{name}: got {value}, expected {known[name]}, with which {record.image!r} was "
                "thinned"
            )


def _open_noise(record: Record, given: str | None, shape: tuple[int, ...]) -> Covariance:
    text = given or record.noise
    covariance = parse_noise(text, shape)
    if fingerprint(covariance) != record.noise_sha256:
        raise InputError(
            f"--noise: got {text!r}, another covariance than {record.image!r} was thinned with, "
            f"expected {record.noise!r} as it was then"
        )
    return covariance


def _region(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    source = f"--mask {str(path)!r}"
    try:
        values = read_pixels(path)
    except InputError as error:
        raise InputError(f"--mask {str(error).removeprefix('image ')}") from error
    if values.dtype.kind not in "biuf":
        raise InputError(f"{source}: values of type {values.dtype}, expected bool or numbers")
    values = values.max(-1) if values.ndim == 3 and values.size else values  # maximum of colours
    if values.shape != shape[:2]:
        raise InputError(f"{source}: shape {values.shape}, expected {shape[:2]} as the image")
    region = values != 0
    if not region.any():
        raise InputError(
            f"{source}: is empty, expected at least one flagged pixel: there is nothing to test"
        )
    levels = np.unique(values[region])
    without = region.all() and levels[0] not in _WHITE
    if len(levels) > 1 or not 0 < levels[0] < np.inf or without:
        shown = ", ".join([f"{level:g}" for level in levels[:3]] + ["..."] * (len(levels) > 3))
        raise InputError(
            f"{source}: holds {shown}, expected 0 and one other value above it: cut scores at a "
            "threshold first"
        )
    try:
        return read_mask(path, labels=True)  # it refuses marks in an unclear colour or transparency
    except InputError as error:
        raise InputError(f"--mask {str(error).removeprefix('mask ')}") from error


def _reference(path: Path, image: np.ndarray, copy: np.ndarray) -> np.ndarray:
    reference = options.finite_image(path)
    if reference.shape != image.shape:
        raise InputError(
            f"--reference {str(path)!r}: shape {reference.shape}, expected {image.shape} as the "
            "image"
        )
    if any(np.allclose(reference, own, rtol=0, atol=1e-9) for own in (image, copy)):
        raise InputError(
            f"--reference {str(path)!r}: is the tested image or its copy, expected an image that "
            "is independent of it"
        )
    return reference


def _summary(shown: dict[str, Any]) -> str:
    confidence, lines = 100 * shown["confidence"], []
    for row in shown["results"]:
        place, p = "mask", f"p = {row['p_value']:.3g} ({shown['alternative']})"
        if shown["region"] == "components":
            place = "component"
            p = (
                f"component {row['component']} of {row['components']}, rows {row['top']} to "
                f"{row['bottom'] - 1}, columns {row['left']} to {row['right'] - 1}: {p}, adjusted "
                f"{row['p_adjusted']:.3g}"
            )
        count = row["num_tested"]
        lines += [
            f"{p}: {row['decision']} at alpha = {shown['alpha']:g}",
            f"mean difference in the {place} ({count} pixel{'s' if count > 1 else ''}) "
            f"{row['statistic']:.3g}, between {row['ci_low']:.3g} and {row['ci_high']:.3g} with "
            f"{confidence:g}% confidence; standard deviation {row['sd']:.3g}",
        ]
    return "\n".join(lines)
