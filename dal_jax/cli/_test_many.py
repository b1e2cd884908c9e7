"""Several images of `dal-jax test`, tested side by side in memory or as a run on disk."""

import csv
import io
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import typer
from tqdm import tqdm

from dal_jax import Status, TestResult, run_tests
from dal_jax._dal_test import (
    ImageToTest,
    QueuedImage,
    as_record,
    covariance_of,
    parts_of_record,
    stream_tests,
)
from dal_jax._errors import InputError
from dal_jax._files import dumps
from dal_jax.cli import _options as options
from dal_jax.cli._output import file_maps
from dal_jax.cli._spec import TestSpec
from dal_jax.images import write_text
from dal_jax.inference import discovery_q
from dal_jax.localizers import Localizer
from dal_jax.report import figure
from dal_jax.runs import Host
from dal_jax.search import misjudged_length

# Columns of results.csv, which has a row per image or component. The file results.jsonl holds all
# fields but the maps.
COLUMNS: tuple[str, ...] = (
    "name",
    "component",
    "status",
    "p_value",
    "p_low",
    "p_high",
    "p_holm",
    "q_value",
    "naive_p",
    "bonferroni_log10_p",
    "over_conditioned_p",
    "permutation_p",
    "statistic",
    "sd",
    "randomization",
    "estimate",
    "ci_low",
    "ci_high",
    "num_tested",
    "num_evaluations",
    "num_windows",
    "num_checks",
    "num_disagreements",
    "num_ties",
    "seconds",
    "message",
)


def test_many(wanted: TestSpec, out: Path | None, maps: bool, json: bool, host: Host) -> None:
    """Test all images of a run, or this process's share of them.

    Args:
        wanted: Specification of the run.
        out: Directory for the results, or None to print them.
        maps: Whether to write the maps and a figure of each image to the directory.
        json: Whether to print one JSON object.
        host: This process among those that share the run.

    Raises:
        InputError: An option does not fit, or a condition that all images share is violated.
        RunError: The disk is full, or another process was lost.
    """
    if maps and out is None:
        raise InputError("--maps: expected --out with it, where they are written")
    localizer = wanted.open_localizer()
    references = np.stack([options.open_image(file, localizer) for file in wanted.references])
    items = [
        # The name alone identifies an image: with many processes, reading the size of every file
        # takes hours.
        QueuedImage(name, None, partial(_case, path, localizer, references))
        for name, path in zip(_names(wanted.images), wanted.images, strict=True)
    ]
    bar = tqdm(total=len(items), unit="image", file=sys.stderr, disable=host.index > 0 or None)
    with bar:
        if out is None:
            records = _in_memory(localizer, items, wanted, bar)
            _say(records, None, json)
            return
        run = run_tests(
            out,
            localizer,
            items,
            wanted.noise,
            wanted.options,
            host=host,
            shared=references,
            batch_size=wanted.batch_size,
            devices=wanted.devices,
            progress=lambda done, record: _show(bar, done),
            keep=partial(_keep, out / "maps", wanted) if maps else None,
        )
    if host.index == 0:
        _say(list(run.finished().values()), out, json)


def _names(paths: tuple[Path, ...]) -> list[str]:
    """Return the file names of the images, or their paths if file names coincide."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _case(path: Path, localizer: Localizer, references: np.ndarray) -> ImageToTest:
    return ImageToTest(options.open_image(path, localizer), references)


def _in_memory(
    localizer: Localizer, items: list[QueuedImage], wanted: TestSpec, bar: Any
) -> list[dict[str, Any]]:
    records: dict[int, dict[str, Any]] = {}
    for number, result in stream_tests(
        localizer,
        ((number, item.case) for number, item in enumerate(items)),
        covariance_of(wanted.noise, localizer),
        wanted.options,
        batch_size=wanted.batch_size,
        devices=wanted.devices,
    ):
        records[number] = {"name": items[number].name, **as_record(result)}
        _show(bar, len(records))
    return [records[number] for number in range(len(items))]


def _show(bar: Any, done: int) -> None:
    bar.update(done - bar.n)


def _keep(folder: Path, wanted: TestSpec, item: QueuedImage, result: TestResult) -> None:
    if result.status is Status.INVALID_INPUT:
        return
    own = folder / item.name.replace("/", "_")
    file_maps(result._asdict(), own)
    figure(
        [item.load().image],
        [result],
        own / "figure.png",
        titles=[item.name],
        alpha=wanted.level,
        threshold=wanted.threshold,
    )


def _say(records: list[dict[str, Any]], out: Path | None, json: bool) -> None:
    if out is not None:
        write_text(out / "results.csv", _csv(records))
    counts = {status.value: 0 for status in Status}
    for record in records:
        counts[record["status"]] += 1
        if record["message"]:
            print(f"{record['name']}: {record['message']}", file=sys.stderr)
    if json:
        shown = {"counts": counts, "out": out} if out else {"counts": counts, "results": records}
        typer.echo(dumps(shown))
        return
    if out is None:
        typer.echo(_csv(records), nl=False)
    else:
        told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        typer.echo(f"{len(records)} images: {told}; written to {out}")
        checks = sum(record["num_checks"] for record in records)
        if checks:
            wrong = sum(record["num_disagreements"] for record in records)
            typer.echo(
                f"{checks} random points checked, {wrong} disagreed and were followed up: with 95% "
                f"confidence at most {misjudged_length(checks, wrong):.2g} of the searched length "
                "in z was misjudged before that"
            )


def _csv(records: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    rows = []
    for record in records:
        parts = parts_of_record(record)
        for number, part in enumerate(parts, 1):
            tested = sum(length for _, length in part["region"])
            named = {"name": record["name"], "component": number if record["components"] else 0}
            rows.append({**part, **named, "num_tested": tested})
    # The tests share their references and are dependent, for which "by" is valid.
    q_values = discovery_q([row["p_high"] for row in rows], "by")
    writer.writerows({**row, "q_value": q} for row, q in zip(rows, q_values, strict=True))
    return text.getvalue()
