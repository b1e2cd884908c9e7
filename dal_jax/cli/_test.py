"""`dal-jax test`: valid p-values for the regions that a model flags in images."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from dal_jax import TestOptions, TestResult, dal_test
from dal_jax._errors import InputError
from dal_jax._files import dumps
from dal_jax._version import __version__
from dal_jax.cli import _options as options
from dal_jax.cli._output import encode_regions, file_maps, need_figures
from dal_jax.cli._spec import TestSpec, expand_patterns, read_spec
from dal_jax.cli._test_folder import test_folder
from dal_jax.cli._test_many import test_many
from dal_jax.images import write_text
from dal_jax.inspection import decide
from dal_jax.report import figure, table
from dal_jax.runs import join_hosts, leave_hosts

Spec = Annotated[
    Path | None,
    typer.Option(
        "--spec",
        metavar="FILE.toml",
        help="Take all that follows but --out, --maps, --cache, --json and the processes from a "
        "file instead: model, images, references, noise, ...",
    ),
]
Model = Annotated[
    Path | None,
    typer.Option("--model", metavar="DIR", help="Checkpoint of train or import-weights."),
]
Images = Annotated[
    list[str],
    typer.Option(
        "--image",
        metavar="FILE",
        help="Image: .npy, .png, .jpg, .tif, .nii(.gz); may be repeated, or a quoted pattern "
        "such as 'scans/*.png'.",
    ),
]
References = Annotated[
    list[str],
    typer.Option(
        "--reference",
        metavar="FILE",
        help="Normal image to compare with; give several to compare with their mean.",
    ),
]
Noise = Annotated[str | None, options.noise_option(" Required without FOLDER.")]
Maps = Annotated[
    bool,
    typer.Option("--maps", help="Several images: also write each one's maps and figure to --out."),
]
Folder = Annotated[
    Path | None,
    typer.Argument(
        metavar="[FOLDER]",
        help="Data set whose test images are tested, with a --model trained with --data.",
    ),
]
DecideBy = Annotated[
    Literal["selective", "inflated", "heavy_tails", "conformal"] | None,
    typer.Option(
        "--decide-by",
        help="FOLDER: p-value of the decision; others are shown beside. By default selective, the "
        "raw one, where calibrate found no excess, or could not tell and has too few objects for "
        "ranks; else conformal. heavy_tails has little power. Choose before the results are seen.",
    ),
]
Overlays = Annotated[
    bool, typer.Option("--overlays/--no-overlays", help="FOLDER: a picture of each image.")
]
# Options that a model trained with --data has fixed; the alternative is that of the calibration.
_FIXED = (
    "noise",
    "threshold",
    "draws",
    "localizer",
    "maps",
    "region",
    "alternative",
    "randomization",
)
# Options that are allowed beside --spec, since its file does not hold them.
_BESIDE = ("spec", "out", "maps", "json", "cache", "coordinator", "num_processes", "process_id")


@options.with_fields(
    TestOptions,
    "how",
    {
        "alpha": "FOLDER: level of all views of an image together (0.05), searched for until each "
        "decision is certain."
    },
)
def test(
    context: typer.Context,
    folder: Folder = None,
    spec: Spec = None,
    model: Model = None,
    image: Images = [],  # noqa: B006 (typer copies it)
    reference: References = [],  # noqa: B006
    localizer: options.Use = None,
    draws: options.Draws = None,
    noise: Noise = None,
    threshold: options.Threshold = TestSpec.threshold,
    how: TestOptions = TestOptions(),  # noqa: B008 (a constant)
    devices: options.Devices = None,
    batch_size: options.BatchSize = None,
    out: options.Out = None,
    maps: Maps = False,
    decide_by: DecideBy = None,
    overlays: Overlays = True,
    cache: options.Cache = None,
    coordinator: options.Coordinator = None,
    num_processes: options.NumProcesses = None,
    process_id: options.ProcessId = None,
    json: options.Json = False,
) -> None:
    """Tests whether the regions flagged in images differ in mean from reference images.

    With --json one object of the result's fields is printed: region as runs [start, length] of
    flagged pixels in row-major order (with --out the maps as paths), NaN as null, infinite ends as
    "Infinity" and "-Infinity". An image in which nothing is flagged has status NO_REGION.

    Several images are tested side by side, on all devices. With --out the results are filed as
    they come: the same command goes on after an interruption, and processes that are started
    together (by Slurm, Open MPI, or with --coordinator, --num-processes and --process-id) share
    the images.
    """
    options.keep_compilations(cache)
    if folder is not None:
        if model is None or spec is not None or image or reference:
            raise InputError(
                "FOLDER: expected --model with it, and no --spec, --image, --reference"
            )
        options.refuse(context, _FIXED, "with FOLDER, the model has fixed it")
        host = join_hosts(coordinator, num_processes, process_id)
        decide = 0.05 if how.alpha is None else how.alpha, decide_by
        how = replace(how, alpha=None)
        test_folder(model, folder, out, *decide, how, host, devices, batch_size, overlays, json)
        leave_hosts()
        return
    options.refuse(context, ("decide_by", "overlays"), "without FOLDER")
    if spec is not None:
        told = [name for name in context.params if name not in _BESIDE]
        options.refuse(context, told, "with --spec, the file says it")
        wanted = read_spec(spec)
    else:
        if model is None:
            raise InputError("--model: got none, expected a checkpoint (or --spec)")
        here = Path()
        wanted = TestSpec(
            model=model,
            images=expand_patterns(image, here, "--image"),
            references=expand_patterns(reference, here, "--reference"),
            draws=draws,
            noise=noise or "",
            threshold=threshold,
            devices=devices,
            batch_size=batch_size,
            localizer=localizer,
            options=how,
        )
    need_figures(out if len(wanted.images) == 1 or maps else None)
    if len(wanted.images) == 1 and spec is None:
        _test_one(wanted, out, json)
        return
    host = join_hosts(coordinator, num_processes, process_id)
    test_many(wanted, out, maps, json, host)
    leave_hosts()


def _test_one(wanted: TestSpec, out: Path | None, json: bool) -> None:
    localizer = wanted.open_localizer()
    path = wanted.images[0]
    x = options.open_image(path, localizer)
    x_ref = np.stack([options.open_image(file, localizer) for file in wanted.references])
    result = dal_test(localizer, x, x_ref, wanted.noise, name=path.name, **vars(wanted.options))
    level = wanted.level
    shown = {**_shown(result, out), **_circumstances(wanted, result)}
    if out is not None:
        titles, threshold = [path.name], wanted.threshold
        figure([x], [result], out / "figure.png", titles=titles, alpha=level, threshold=threshold)
        write_text(out / "result.json", dumps(shown) + "\n")
    typer.echo(dumps(shown) if json else _summary(result, path.name, level, out))


def _shown(result: TestResult, out: Path | None) -> dict[str, Any]:
    fields = result._asdict()
    return encode_regions(fields) if out is None else file_maps(fields, out)


def _circumstances(wanted: TestSpec, result: TestResult) -> dict[str, Any]:
    """Return the settings that make the record of one test complete without other files."""
    return {
        "z": result.statistic / result.sd,
        "decision": decide(result.status.value, (result.p_low, result.p_high), wanted.level, 1),
        "alpha": wanted.level,
        "alternative": wanted.options.alternative,
        "region_kind": wanted.options.region,
        "noise": wanted.noise,
        "threshold": wanted.threshold,
        "seed": wanted.options.seed,
        "image": str(wanted.images[0]),
        "references": [str(file) for file in wanted.references],
        "version": __version__,
    }


def _summary(result: TestResult, name: str, alpha: float, out: Path | None) -> str:
    lines = [table([result], [name], alpha=alpha), ""]
    lines.append(
        f"status {result.status.value}, engine {result.engine}, {_effort(result)}, "
        f"{result.seconds:.1f} s; decision at alpha = {alpha:g}"
    )
    if not math.isnan(result.estimate):
        lines.append(
            f"mean difference in the region {result.estimate:.3g}, between {result.ci_low:.3g} and "
            f"{result.ci_high:.3g} with 95% confidence, given that this region was selected"
        )
    if result.num_ties:
        lines.append(
            f"{result.num_ties} pixels have the threshold as their score, to rounding: another "
            "machine may flag another region"
        )
    if out is not None:
        lines.append(f"written to {out}")
    return "\n".join(lines)


def _effort(result: TestResult) -> str:
    if result.engine != "adaptive":
        return f"{result.num_windows} windows"
    checks = f"{result.num_checks} random points checked"
    if result.num_disagreements:
        checks += f", {result.num_disagreements} surprises followed up"
    return f"{result.num_evaluations} evaluations, {checks}"
