"""`dal-jax test`: valid p-values for the regions that a model flags in images."""

import importlib.util
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from tqdm import tqdm

from dal_jax import TestOptions
from dal_jax._dal_test import parts_of_record
from dal_jax._errors import InputError
from dal_jax._files import csv_text, dumps
from dal_jax.cli import _options as options
from dal_jax.cli._output import need_figures
from dal_jax.cli._spec import TestSpec, expand_patterns, read_spec
from dal_jax.inspection import (
    Inspection,
    StreamRow,
    ViewResult,
    drift_warning,
    inspect_folder,
    stage_progress,
    watch_folder,
)
from dal_jax.localizers import DETECTOR_FORM, FORM, detector_named
from dal_jax.report import NOT_VALID, format_difference, format_p
from dal_jax.runs import join_hosts, leave_hosts
from dal_jax.search import misjudged_length

Folder = Annotated[
    Path | None,
    typer.Argument(
        metavar="[FOLDER]",
        help="Data set whose test images are tested, with a --model trained with --data.",
    ),
]
Spec = Annotated[
    Path | None,
    typer.Option(
        "--spec",
        metavar="FILE.toml",
        help="Take all that follows but --out, --maps, --overlays, --cache, --json and the "
        "processes from a file instead: model, images, references, noise, ...",
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
Localizer = Annotated[
    str | None,
    typer.Option(
        "--localizer",
        metavar=f"{FORM}|{DETECTOR_FORM}",
        help="Without FOLDER: another localizer for the model's network, such as mdps:pl, by "
        "default the one that it was trained for; or, without --model, a detector: a function of "
        "a Python module (B, H, W, C) -> (B, H, W), or an ONNX file. With a model made from "
        "MODULE:FUNCTION by train, that name again: a model's code runs only if it is named.",
    ),
]
Noise = Annotated[str | None, options.noise_option(" Required without FOLDER.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Write tables, pictures and all results there; the same command resumes the run. "
        "Without it, the results are printed.",
    ),
]
Maps = Annotated[
    bool,
    typer.Option(
        "--maps",
        help="Also write region, score and reconstruction of each image that is tested now, and a "
        "figure of them, to maps/ in --out.",
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
    bool,
    typer.Option("--overlays/--no-overlays", help="Write a picture of each image to --out."),
]
Watch = Annotated[
    float | None,
    typer.Option(
        "--watch",
        metavar="SECONDS",
        help="FOLDER: test new images as they come, until Ctrl-C, looking at the folder this "
        "often. stream.csv in --out holds them in order, with discoveries at a false discovery "
        "rate of --alpha, and there is a warning when images drift.",
    ),
]
# Options that a model trained with --data has fixed; the alternative is that of the calibration.
_FIXED = (
    *("noise", "threshold", "draws"),
    *("region", "alternative", "randomization"),
)
_PROCESSES = ("coordinator", "num_processes", "process_id")
# Options that are allowed beside --spec, since its file does not hold them.
_BESIDE = (
    *("spec", "out", "maps", "overlays", "json", "cache"),
    *_PROCESSES,
)

# Columns of the table of one image.
_TITLES: tuple[str, ...] = (
    *("image", "region", "naive p", "selective p", "bounds", "adjusted p"),
    *("difference [interval]", "decision"),
)


@options.with_fields(
    TestOptions,
    "how",
    {
        "alpha": "Here the level of the decision on an image, of all of its views together, 0.05 "
        "by default; the search goes on until the decision is certain."
    },
)
def test(
    context: typer.Context,
    folder: Folder = None,
    spec: Spec = None,
    model: Model = None,
    image: Images = [],  # noqa: B006 (typer copies it)
    reference: References = [],  # noqa: B006
    localizer: Localizer = None,
    draws: options.Draws = None,
    noise: Noise = None,
    threshold: options.Threshold = TestSpec.threshold,
    how: TestOptions = TestOptions(),  # noqa: B008 (a constant)
    devices: options.Devices = None,
    batch_size: options.BatchSize = None,
    out: Out = None,
    maps: Maps = False,
    decide_by: DecideBy = None,
    overlays: Overlays = True,
    watch: Watch = None,
    cache: options.Cache = None,
    coordinator: options.Coordinator = None,
    num_processes: options.NumProcesses = None,
    process_id: options.ProcessId = None,
    json: options.Json = False,
) -> None:
    """Tests whether the regions flagged in images differ in mean from reference images.

    One image, several and a FOLDER are tested in the same way: side by side, on all devices. With
    --out the results are stored as they come: the same command goes on after an interruption, and
    processes that are started together (by Slurm, Open MPI, or with --coordinator, --num-processes
    and --process-id) share the images. Without --out, the table of one image or the CSV rows of
    several are printed.

    With --json one object is printed: settings, counts and, without --out, all numbers of each
    region: its pixels as runs [start, length] in row-major order, NaN as null, infinite ends as
    "Infinity" and "-Infinity". An image in which nothing is flagged has status NO_REGION.
    """
    options.keep_compilations(cache)
    _need_libraries(out, maps, overlays)
    if folder is not None:
        if model is None or spec is not None or image or reference:
            raise InputError(
                "FOLDER: expected --model with it, and no --spec, --image, --reference"
            )
        options.refuse(context, _FIXED, "with FOLDER, the model has fixed it")
        if watch is not None:
            options.refuse(context, _PROCESSES, "with --watch, which is one process")
        inspect = partial(inspect_folder, folder, model, localizer=localizer, decide_by=decide_by)
    else:
        options.refuse(context, ("decide_by", "watch"), "without FOLDER")
        if spec is not None:
            given = [name for name in context.params if name not in _BESIDE]
            options.refuse(context, given, "with --spec, the file says it")
            wanted = read_spec(spec)
        else:
            if model is None and detector_named(localizer) is None:
                expected = f"a checkpoint (or --spec, or --localizer {DETECTOR_FORM})"
                raise InputError(f"--model: got none, expected {expected}")
            wanted = TestSpec(
                model=model,
                images=expand_patterns(image, Path(), "--image"),
                references=expand_patterns(reference, Path(), "--reference"),
                draws=draws,
                noise=noise or "",
                threshold=threshold,
                devices=devices,
                batch_size=batch_size,
                localizer=localizer,
                options=how,
            )
        _say_tested_references(wanted)
        inspect = wanted.inspect
        how, devices, batch_size = wanted.options, wanted.devices, wanted.batch_size
    common: dict[str, Any] = {
        "alpha": 0.05 if how.alpha is None else how.alpha,
        "overlays": overlays,
        "maps": maps,
        "devices": devices,
        "batch_size": batch_size,
    }
    how = replace(how, alpha=None)
    if watch is not None:
        if folder is None or model is None or out is None:
            raise InputError("--watch: expected --out with it, where the stream is written")
        common |= {"localizer": localizer, "decide_by": decide_by, "every": watch}
        _follow(watch_folder(folder, model, out, how, **common), json)
        return
    host = join_hosts(coordinator, num_processes, process_id)
    with tqdm(unit="view", file=sys.stderr, disable=host.index > 0 or None) as bar:
        found = inspect(out, how, host=host, progress=stage_progress(bar), **common)
    if host.index == 0:
        _say(found, json)
        if not found.tally.decisions.keys() - {NOT_VALID}:
            message = next((one.message for one in found.images if one.message), "see the tables")
            raise InputError(f"no image has a valid result: {message}")
    leave_hosts()


def _follow(stream: Iterator[tuple[Inspection, list[StreamRow]]], json: bool) -> None:
    """Print the images of a stream as they come."""
    done, warned = 0, False
    for found, rows in stream:
        new, done = rows[done:], len(rows)
        for row in new:
            if json:
                typer.echo(dumps(row._asdict()))
                continue
            what = "DISCOVERY" if row.discovery else "-"
            level = (
                "" if math.isnan(row.level) else f"p {row.p_adjusted:.2g}, level {row.level:.2g}"
            )
            typer.echo(f"{row.number:6d}  {what:9s}  {row.name}  {level or 'no region'}")
        discoveries = sum(row.discovery for row in rows)
        print(
            f"{len(rows)} images, {discoveries} discoveries at a false discovery rate of "
            f"{found.options.alpha:g}; drift {rows[-1].drift:.2g}",
            file=sys.stderr,
        )
        warning = drift_warning(rows)
        if warning and not warned:
            print(warning, file=sys.stderr)
        warned = bool(warning)


def _say_tested_references(wanted: TestSpec) -> None:
    """Print which images are references, too, as a pattern may have it."""
    references = {path.resolve() for path in wanted.references}
    both = [path.name for path in wanted.images if path.resolve() in references]
    if both:
        told = f"also a reference: {', '.join(both[:3])}{', ...' if len(both) > 3 else ''}"
        print(
            f"--image: {len(both)} of {len(wanted.images)} {told}: compared with itself, its "
            "p-value means nothing",
            file=sys.stderr,
        )


def _need_libraries(out: Path | None, maps: bool, overlays: bool) -> None:
    """Refuse, before any other work, files that cannot be written."""
    if maps and out is None:
        raise InputError("--maps: expected --out with it, where they are written")
    need_figures(out if maps else None)
    if out is not None and overlays and importlib.util.find_spec("PIL") is None:
        hint = 'pip install "dal-jax[images]", or give --no-overlays'
        raise InputError(f"--out: the pictures need pillow: {hint}")


def _say(found: Inspection, json: bool) -> None:
    """Print the results, and messages and warnings on standard error."""
    for one in found.views:
        for text in filter(None, (one.message, one.warning)):
            print(f"{one.name}: {text}", file=sys.stderr)
    if json:
        typer.echo(dumps(_fields(found)))
        return
    if len(found.images) == 1:
        typer.echo(_summary(found))
    elif found.directory is None:
        typer.echo(csv_text([one.as_row() for one in found.views]), nl=False)
    if found.directory is not None:
        typer.echo(_counts(found))


def _fields(found: Inspection) -> dict[str, Any]:
    counts = found.tally._asdict()
    del counts["words"]
    shown = {**found.settings, **counts, "discovered": found.discovered, "out": found.directory}
    if found.directory is not None:
        return shown
    parts = [part for record in found.records for part in parts_of_record(record)]
    results = [{**part, **one.as_row()} for part, one in zip(parts, found.views, strict=True)]
    return {**shown, "results": results}


def _counts(found: Inspection) -> str:
    chosen = found.options
    name = {"by": "Benjamini-Yekutieli", "bh": "Benjamini-Hochberg"}[chosen.discoveries]
    text = (
        f"{found.tally.words} (at {chosen.alpha:g} by the {chosen.decide_by} p-value); "
        f"{found.discovered} at a false discovery rate of {chosen.alpha:g} ({name}); "
        f"written to {found.directory}"
    )
    checks, wrong = (
        sum(record[name] for record in found.records)
        for name in ("num_checks", "num_disagreements")
    )
    if not checks or len(found.records) == 1:
        return text
    return (
        f"{text}\n{checks} random points checked, {wrong} disagreed and were followed up: with 95% "
        f"confidence at most {misjudged_length(checks, wrong):.2g} of the searched length in z was "
        "misjudged before that"
    )


def _summary(found: Inspection) -> str:
    """Return the table of one image and, if it has one view, a few sentences on its test."""
    lines = [_table(found.views)]
    if len(found.records) > 1:
        return lines[0]
    record, one = found.records[0], found.views[0]
    lines += ["", f"status {record['status']}, engine {record['engine']}, {_effort(record)}"]
    lines[-1] += f", {record['seconds']:.1f} s; decision at alpha = {found.options.alpha:g}"
    if not math.isnan(record["estimate"]):
        confidence = 100 * found.settings["confidence"]
        lines.append(
            f"mean difference in the region {one.estimate:.3g}, between {one.ci_low:.3g} and "
            f"{one.ci_high:.3g} with {confidence:g}% confidence, given that this region was "
            "selected"
        )
    if one.num_ties:
        lines.append(
            f"{one.num_ties} pixels have the threshold as their score, to rounding: another "
            "machine may flag another region"
        )
    return "\n".join(lines)


def _table(views: list[ViewResult]) -> str:
    rows: list[list[str]] = [list(_TITLES)]
    for one in views:
        p = one.p["selective"]
        number = f" #{one.component}" if one.component else ""
        rows.append(
            [
                f"{one.name}{f'@{one.view}' if one.views > 1 else ''}{number}",
                f"{one.num_tested} px",
                format_p(one.p["naive"].p),
                format_p(p.p),
                "-" if math.isnan(p.low) else f"[{format_p(p.low)}, {format_p(p.high)}]",
                format_p(one.p_adjusted),
                format_difference(one.estimate, one.ci_low, one.ci_high),
                one.decision,
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _effort(record: dict[str, Any]) -> str:
    if record["engine"] != "adaptive":
        return f"{record['num_windows']} windows"
    checks = f"{record['num_checks']} random points checked"
    if record["num_disagreements"]:
        checks += f", {record['num_disagreements']} surprises followed up"
    return f"{record['num_evaluations']} evaluations, {checks}"
