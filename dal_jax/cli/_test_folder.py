"""`dal-jax test FOLDER`: every image of a data set, with tables and pictures."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import typer
from tqdm import tqdm

from dal_jax import TestOptions
from dal_jax._errors import InputError
from dal_jax.cli._output import dumps
from dal_jax.images import Sample, write_text
from dal_jax.inspection import (
    Calibration,
    Inspected,
    InspectOptions,
    Measures,
    Profile,
    Reader,
    VolumeMaps,
    assemble_images,
    image_row,
    load_calibration,
    load_profile,
    open_model,
    rows_of,
    test_samples,
    to_test,
    write_csv,
    write_rows,
)
from dal_jax.inspection._rows import picture_name, region_number, tally
from dal_jax.inspection._verdict import out_of_reach
from dal_jax.report import overlay
from dal_jax.runs import Host


def test_folder(
    model: Path,
    folder: Path,
    out: Path | None,
    alpha: float,
    decide_by: str | None,
    test_options: TestOptions,
    host: Host,
    devices: int | None,
    batch_size: int | None,
    overlays: bool,
    json: bool,
) -> None:
    """Tests the test images of a folder with a model that knows such images.

    Args:
        model: trained with --data.
        folder: data set of the same layout, or any folder of images.
        out: directory of the run.
        alpha: level for all views of an image together.
        decide_by: whose p-value decides; None: the one that the calibration names.
        test_options: of the tests; the region is the model's.
        host: this process.
        devices: to use.
        batch_size: tests under way at a time.
        overlays: whether to write pictures.
        json: whether to print one JSON object.

    Raises:
        InputError: something that all images need does not fit.
        RunError: the disk is full, or another process was lost.
    """
    if out is None:
        raise InputError("--out: got none, expected a directory for the results of a folder")
    profile = load_profile(model)
    calibration = load_calibration(model)
    data = profile.source.open(folder)
    samples = to_test(data, profile)
    reader = Reader(data, profile.fitted, profile.seen())
    decide_by = _decider(calibration, alpha, max(map(reader.num_views, samples)), decide_by)
    options = InspectOptions(alpha, decide_by, _discoveries(profile, samples, decide_by))
    # Whichever p-value decides, now or in a later call, its decision shall be certain.
    laws = () if calibration is None else calibration.deciding
    how = replace(
        test_options,
        region=profile.region,
        randomization=profile.randomization,
        level=options.alpha,
        recalibrations=laws,
    )
    with tqdm(unit="view", file=sys.stderr, disable=host.index > 0 or None) as bar:

        def follow(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        tested = test_samples(
            out / "run",
            open_model(model, profile),
            profile,
            reader,
            samples,
            how,
            host=host,
            devices=devices,
            batch_size=batch_size,
            progress=follow,
        )
    if host.index:
        return
    rows: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    names = {sample.name for sample in samples}
    measures, volumes = Measures(), VolumeMaps(out / "volumes")
    plain = rows_of(tested, calibration, options)
    for one in assemble_images(out / "run", reader, profile, tested, plain):
        rows += one.rows
        images.append(image_row(one.rows))
        measures.add(one)
        volumes.add(one)
        if overlays and one.image is not None:
            _picture(one, out / "overlays" / picture_name(one.sample.name, names))
    volumes.close()
    write_rows(out, rows)
    write_csv(out / "images.csv", images)
    write_text(out / "test.json", dumps(asdict(options)) + "\n")
    found = measures.result(options.alpha)
    if found:
        write_text(out / "metrics.json", dumps(found) + "\n")
    _say(rows, out, options, json)


test_folder.__test__ = False  # type: ignore[attr-defined]


def _decider(
    calibration: Calibration | None, alpha: float, num_views: int, asked: str | None
) -> str:
    """Whose p-value decides: the one that is asked for, or that the calibration names."""
    if calibration is None:
        return asked or "selective"
    decide_by = asked or calibration.decide_by
    told = out_of_reach(calibration, alpha, num_views) if decide_by == "conformal" else ""
    if decide_by == "selective" and calibration.unchecked:
        told = (
            f"The raw p-value decides unchecked: {calibration.num_groups} normal objects were too "
            "few to tell whether raw p-values hold the level."
        )
    if told:
        what = "Hold out more normal objects, or name another p-value by --decide-by."
        print(f"{told} {what}", file=sys.stderr)
    return decide_by


def _discoveries(profile: Profile, samples: Sequence[Sample], decide_by: str) -> str:
    """Benjamini and Hochberg's procedure only where no two tests share anything but their ranks."""
    apart = profile.each > 0 and len({sample.group for sample in samples}) == len(samples)
    one = profile.fitted.preparation.view != "tile" and profile.region != "components"
    return "bh" if apart and one and decide_by in ("selective", "conformal") else "by"


def _picture(one: Inspected, path: Path) -> None:
    assert one.image is not None and one.region is not None and one.significant is not None
    labels = [
        (region_number(row), (row["top"], row["left"]))
        for row in one.rows
        if row["component"] and row["top"] is not None  # lost in an image smaller than its view
    ]
    overlay(one.image, one.region, one.significant, path, truth=one.mask, labels=labels)


def _say(rows: list[dict[str, Any]], out: Path, options: InspectOptions, json: bool) -> None:
    for row in rows:
        for told in filter(None, (row["message"], row["warning"])):
            print(f"{row['name']}: {told}", file=sys.stderr)
    counted = tally(rows)
    found = sum(row["q_value"] <= options.alpha for row in rows)
    if json:
        shown = {name: getattr(counted, name) for name in ("views", "regions", "decisions")}
        shown |= {"discovered": found, "discoveries": options.discoveries}
        typer.echo(dumps({"out": out, **shown}))
        return
    name = {"by": "Benjamini-Yekutieli", "bh": "Benjamini-Hochberg"}[options.discoveries]
    typer.echo(
        f"{counted.words} (at {options.alpha:g} by the {options.decide_by} p-value); "
        f"{found} at a false discovery rate of {options.alpha:g} ({name}); written to {out}"
    )
