"""Calibration: tests of the held-out normal images, recalibrations and verdict."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dal_jax._dal_test import (
    ImageToTest,
    QueuedImage,
    TestOptions,
    parts_of_record,
    region_of,
    run_tests,
)
from dal_jax._errors import InputError
from dal_jax._files import csv_text
from dal_jax.images import NORMAL, UNKNOWN, DataSet, Sample, write_text
from dal_jax.inspection._calibration import (
    LEVELS,
    Calibration,
    Rate,
    cross_fitted_p,
    fit_calibration,
    p_with_sigma,
    rates,
    save_calibration,
    smallest_p,
    uniformity,
    view_p,
)
from dal_jax.inspection._learn import Images, distinct, rescale_to_foreground
from dal_jax.inspection._profile import Profile, check_options, load_profile, open_model
from dal_jax.inspection._results import ViewRef
from dal_jax.inspection._verdict import ALPHA, by_distance, decider, unchecked, verdict
from dal_jax.inspection._views import Reader, list_views, queue_views
from dal_jax.noise import Covariance, FitReport, fit_report, stretch_correlation
from dal_jax.report import calibration_picture, overlay
from dal_jax.runs import Host

# Wider laws give the far tails more weight, and conformal p-values are ranks: both need precise p.
PRECISION = 1e-6
# Of images drawn from the noise model only the rates at these levels are taken.
_CONTROL_LEVELS, _CONTROL_PRECISION = (ALPHA, LEVELS[-1]), 1e-3
# Factors of the noise's standard deviation, which need no new search, and of its correlation
# length, which do.
SIGMA_FACTORS = (0.8, 0.9, 1.0, 1.1, 1.25)
LENGTH_FACTORS = (0.7, 1.4)
# Largest number of normal views of smallest p-value that are shown.
_SHOWN = 12


@dataclass(frozen=True)
class CalibrateOptions:
    """Options of a calibration: additional tests, and the seed.

    Example:
        >>> options = CalibrateOptions(control=0)  # quicker
        >>> options.control, options.lengths, options.seed
        (0, False, 0)
    """

    control: int = 200  # number of images drawn from the fitted noise model; 0 for none
    lengths: bool = False  # whether views are also tested under other correlation lengths
    seed: int = 0  # seed of the folds and of the drawn images


class Calibrated(NamedTuple):
    """Results of a calibration.

    Example:
        >>> from dal_jax.inference import NullLaw, Ranks
        >>> from dal_jax.noise import iid
        >>> fit = fit_report(iid(1.0), np.random.default_rng(0).normal(size=(20, 4, 4, 1)))
        >>> p, one = (0.3,), (1.0,)
        >>> laws = NullLaw(1.2), NullLaw(1.1, 5.0), Ranks(p, p, p, one)
        >>> held = Calibration(*laws, p, p, one, 1, 1)
        >>> found = Calibrated(held, [], [], {}, [], [], [], fit, [], [], ["Good."], [])
        >>> found.calibration.inflated.factor, found.fit.num_images
        (1.2, 20)
    """

    calibration: Calibration  # recalibrations for p-values of further images
    records: list[dict[str, Any]]  # records of the held-out normal views
    groups: list[str]  # physical object of each view
    p_values: dict[str, np.ndarray]  # cross-fitted p-values, by method
    rates: list[Rate]  # rates of false calls on the held-out views
    control: list[dict[str, Any]]  # records of images drawn from the noise model
    control_rates: list[Rate]  # rates of false calls on the drawn images
    fit: FitReport  # fit of the noise model to the held-out views
    sensitivity: list[dict[str, Any]]  # false calls under another standard deviation or length
    moved: list[dict[str, Any]]  # p-value of each view under each factor
    verdict: list[str]  # verdict in sentences
    smallest: list[tuple[dict[str, Any], np.ndarray]]  # records and views (H, W, C), see `smallest`


# Function (directory, items, noise, whether they are drawn from it) -> records.
Runner = Callable[[Path, Sequence[QueuedImage], Covariance, bool], list[dict[str, Any]]]


def calibrate_folder(
    folder: Path,
    model: Path,
    options: CalibrateOptions = CalibrateOptions(),
    test_options: TestOptions = TestOptions(precision=PRECISION),  # noqa: B008
    *,
    localizer: str | None = None,
    out: Path | None = None,
    add: Sequence[Path] = (),
    select: Callable[[DataSet, Profile], DataSet] | None = None,
    host: Host = Host(0, 1),  # noqa: B008
    devices: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Calibrated:
    """Test the normal images that training held out, then fit and write the recalibrations.

    After an interruption the same call resumes the run. Of several processes that share the
    directory the first one writes; all return the results.

    Args:
        folder: Data set that the model was trained on.
        model: Directory of the model.
        options: Additional tests, and the seed.
        test_options: Options of the search; the profile's region and randomization replace theirs.
        localizer: Name of the model's detector, if that is code; else None.
        out: Directory for calibration.json and the folder calibration; None for that of the model,
            where `inspect_folder` reads them.
        add: Folders of further normal images, such as those of later days, which join the held-out
            ones. Each object of such a folder counts as one that was not seen before; of copies of
            one picture only the first is used.
        select: Function that selects images of the data set; None for all images.
        host: This process among those that share the runs.
        devices: Number of devices to use; None for all.
        progress: Function called with (name of the run, number of finished tests, number of tests).

    Returns:
        The calibration, with the tests and the fit that it is based on.

    Raises:
        InputError: The data have fewer than two held-out objects, too few views have a region, or
            an added folder has images with defects, or the name of another one or of a folder of
            the data set.
        CheckpointError: The model is missing or damaged.
        RunError: The disk is full, or another process was lost.

    Example:
        >>> found = calibrate_folder(Path("tiles"), Path("model"))  # doctest: +SKIP
        >>> load_calibration(Path("model")) == found.calibration  # doctest: +SKIP
        True
    """
    profile = load_profile(model)
    opened, how = open_model(model, profile, localizer), profile.adapt(test_options)
    check_options(how, profile)
    data = profile.source.open(folder)
    data = data if select is None else select(data, profile)
    out = model if out is None else out

    def run(
        directory: Path, items: Sequence[QueuedImage], noise: Covariance, drawn: bool
    ) -> list[Any]:
        def follow(done: int, record: dict[str, Any]) -> None:
            if progress is not None:
                progress(directory.name, done, len(items))

        return run_tests(
            directory,
            opened,
            items,
            noise,
            _for_rates(how) if drawn else how,
            host=host,
            shared=profile.references,
            devices=devices,
            progress=follow,
        )

    parts = [_held_out(data, profile), *_added(add, data, profile)]
    found = _calibrated(parts, profile, run, out / "calibration", options)
    if host.index == 0:
        _write(out, found)
    return found


def stage_progress(bar: Any, before: str = "") -> Callable[[str, int, int], None]:
    """Return a function that shows the name and the progress of the current run on a bar.

    Args:
        bar: Progress bar of tqdm.
        before: Text before the name of the run.

    Returns:
        Function for the argument `progress` of `calibrate_folder` and `inspect_folder`.

    Example:
        >>> from tqdm import tqdm
        >>> with tqdm(disable=True) as bar:
        ...     stage_progress(bar)("views", 3, 10)
    """

    def follow(what: str, done: int, total: int) -> None:
        bar.set_description(before + what, refresh=False)
        if bar.total != total or done < bar.n:
            bar.reset(total)
        bar.update(done - bar.n)

    return follow


class _Part(NamedTuple):
    """Normal images of one folder."""

    data: DataSet
    reader: Reader
    listed: list[ViewRef]


def _held_out(data: DataSet, profile: Profile) -> _Part:
    held = set(profile.roles["calibrate"])
    samples = [s for s in data.samples if s.split == "train" and s.group in held]
    _need_objects(data, [s.group for s in samples])
    reader = Reader(data, profile.fitted, profile.seen(but="calibrate"))
    return _Part(data, reader, list_views(reader, samples))


def _added(folders: Sequence[Path], known: DataSet, profile: Profile) -> list[_Part]:
    names = [Path(os.path.abspath(folder)).name for folder in folders]
    taken = {text.partition("/")[0] for s in known.samples for text in (s.name, s.group)}
    opened: list[tuple[DataSet, list[Sample]]] = []
    for folder, name in zip(folders, names, strict=True):
        if names.count(name) > 1:
            raise InputError(f"add: got two folders {name!r}, expected different names")
        if name in taken:
            raise InputError(
                f"add: got {str(folder)!r}, whose name a folder of {str(known.root)!r} has, "
                "expected another name"
            )
        data = profile.source.open(folder)
        wrong = [s.name for s in data.samples if s.label not in (NORMAL, UNKNOWN)]
        if wrong:
            raise InputError(
                f"add: got {str(folder)!r} with defects, such as {wrong[0]!r}, expected normal "
                "images alone"
            )
        samples = [
            s._replace(name=f"{name}/{s.name}", group=f"{name}/{s.group}") for s in data.samples
        ]
        opened.append((data, samples))
    parts = []
    for (data, _), samples in zip(opened, _without_copies(opened), strict=True):
        reader = Reader(data, profile.fitted, profile.seen())
        parts.append(_Part(data, reader, list_views(reader, samples)))
    return parts


def _without_copies(opened: Sequence[tuple[DataSet, list[Sample]]]) -> list[list[Sample]]:
    """Return the first sample of each picture; the objects of its copies are one object."""
    pictures: dict[str, str] = {}
    for data, samples in opened:
        pictures |= Images(data, samples).pictures()
    every = [sample for _, samples in opened for sample in samples]
    first, objects = distinct(every, pictures)
    if len(first) < len(every):
        told = f"{len(every) - len(first)} of {len(every)} added images are copies of others"
        print(f"{told}: left out", file=sys.stderr)
    kept = {s.name: s._replace(group=group) for s, group in zip(first, objects, strict=True)}
    return [[kept[s.name] for s in samples if s.name in kept] for _, samples in opened]


def _calibrated(
    parts: Sequence[_Part],
    profile: Profile,
    run: Runner,
    directory: Path,
    options: CalibrateOptions,
) -> Calibrated:
    data, listed = parts[0].data, [one for part in parts for one in part.listed]
    readers = [part.reader for part in parts for _ in part.listed]
    own = profile.references_of([one.sample.group for one in listed], calibrating=True)
    items = [item for part in parts for item in queue_views(part.reader, part.listed, own)]
    found = run(directory / "views", items, profile.tested_noise, False)
    kept = _usable(found)
    records = [found[k] for k in kept]
    groups = [listed[k].sample.group for k in kept]
    _need_objects(data, groups)
    p_values = cross_fitted_p(records, groups, options.seed)
    control = _control(profile, run, directory, options)
    own_rates = rates(p_values, groups)
    control_rates = rates(
        {"selective": np.array([view_p(record).p for record in control])},
        [str(k) for k in range(len(control))],
        _CONTROL_LEVELS,
    )
    pixels, where = _read([(readers[k], listed[k]) for k in kept])
    some = where.any(axis=(1, 2))  # a tile without foreground shows no noise
    shown, objects = rescale_to_foreground(pixels[some], where[some]), np.array(groups)[some]
    fit = fit_report(profile.noise, shown, objects, kind=profile.noise_kind)
    moved = _moved(found, profile, run, directory, items, options)
    calibration = fit_calibration(records, groups)
    joined = [k for k in kept if readers[k] is not parts[0].reader]
    added = filter(None, (readers[k].pictures[listed[k].sample.name] for k in joined))
    most = max(listed[k].num_views for k in kept)
    by = decider(own_rates, calibration, most)
    calibration = replace(
        calibration,
        decide_by=by,
        unchecked=unchecked(own_rates),
        object_scores=_object_scores([listed[k] for k in kept], records),
        added=tuple(dict.fromkeys(added)),
    )
    told = verdict(own_rates, control_rates, fit, profile.noise_kind, calibration, most)
    return Calibrated(
        calibration,
        records,
        groups,
        p_values,
        own_rates,
        control,
        control_rates,
        fit,
        _sensitivity(moved),
        moved,
        told,
        [(records[k], pixels[k]) for k in smallest(records)],
    )


def _write(directory: Path, found: Calibrated) -> None:
    """Write a calibration, its picture, and pictures of the normal views of smallest p-value."""
    facts = {
        "verdict": found.verdict,
        "rates": [rate._asdict() for rate in found.rates],
        "control_rates": [rate._asdict() for rate in found.control_rates],
        "uniformity": {method: uniformity(p) for method, p in found.p_values.items()},
        "by_distance": by_distance(found.records),
        "sensitivity": found.sensitivity,
        "smallest": [record["name"] for record, _ in found.smallest],
    }
    save_calibration(directory, found.calibration, facts)
    folder = directory / "calibration"
    write_text(folder / "sensitivity.csv", csv_text(found.moved))
    held, path = found.calibration, folder / "calibration.png"
    raw, count = held.selective.p, held.num_groups
    calibration_picture(path, raw, held.naive, count, found.fit, found.rates)
    for number, (record, view) in enumerate(found.smallest, 1):
        region = region_of(record["region"], view.shape[:2])
        called = region & bool(view_p(record).p <= ALPHA)
        limits = (-3.0, 3.0) if view.min() < 0 else None  # in standard deviations of the view
        overlay(view, region, called, folder / "smallest" / f"{number:02d}.png", limits=limits)


def smallest(records: Sequence[dict[str, Any]]) -> list[int]:
    """Return the views of smallest raw selective p-value, where contaminated images show.

    Args:
        records: Records of the views.

    Returns:
        Indices of at most 12 views, in ascending order of p.
    """
    p = [view_p(record).p for record in records]
    return sorted(np.flatnonzero(~np.isnan(p)).tolist(), key=lambda k: p[k])[:_SHOWN]


def _object_scores(
    listed: Sequence[ViewRef], records: Sequence[dict[str, Any]]
) -> tuple[float, ...]:
    """Return the largest score of the first image of each object that has one."""
    scores: dict[str, dict[str, float]] = {}
    for one, record in zip(listed, records, strict=True):
        if np.isfinite(record["max_score"]):
            own = scores.setdefault(one.sample.group, {})
            name, score = one.sample.name, record["max_score"]
            own[name] = max(own.get(name, score), score)
    return tuple(next(iter(own.values())) for own in scores.values())


def _need_objects(data: DataSet, groups: Sequence[str]) -> None:
    count = len(set(groups))
    if count < 2:
        raise InputError(
            f"data {str(data.root)!r}: {count} of the objects that training kept aside can be "
            "used, expected 2 or more"
        )


def _usable(found: Sequence[dict[str, Any]]) -> list[int]:
    """Return the indices of the tested views, and print the reason for each of the others."""
    for record in found:
        if record["status"] == "INVALID_INPUT":
            print(f"{record['name']}: left out: {record['message']}", file=sys.stderr)
    return [k for k, record in enumerate(found) if record["status"] != "INVALID_INPUT"]


def _read(listed: Sequence[tuple[Reader, ViewRef]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the views (N, H, W, C) and a mask of the pixels that may be flagged (N, H, W)."""
    found = [(reader.read(one.sample)[2], one.view) for reader, one in listed]
    pixels, where = zip(*((cut.pixels[k], cut.foreground[k]) for cut, k in found), strict=True)
    return np.stack(pixels), np.stack(where)


def _control(
    profile: Profile, run: Runner, directory: Path, options: CalibrateOptions
) -> list[dict[str, Any]]:
    """Test images drawn from the fitted model itself, whose raw p-values must be uniform."""
    if not options.control:
        return []
    items = [
        QueuedImage(f"{number:06d}", None, partial(_drawn, profile, options.seed, number))
        for number in range(options.control)
    ]
    name = f"control-{options.seed}-{options.control}"
    return run(directory / name, items, profile.tested_noise, True)


def _for_rates(options: TestOptions) -> TestOptions:
    """Return options of a search that ends as soon as the decisions at two levels are certain."""
    level, highest = _CONTROL_LEVELS
    precision = max(options.precision, _CONTROL_PRECISION)
    return replace(options, precision=precision, alpha=highest, level=level)


def _drawn(profile: Profile, seed: int, number: int) -> ImageToTest:
    rng = np.random.default_rng((seed, 3, number))
    return drawn_image(profile, rng, profile.num_references)


def drawn_image(
    profile: Profile, rng: np.random.Generator, num_references: int, factor: float = 1.0
) -> ImageToTest:
    """Draw a normal image and its references from a profile's noise model.

    Args:
        profile: Profile, whose mean reference is the mean of all.
        rng: Generator; from the same state more references begin with those of fewer.
        num_references: Number K of references, 1 or more.
        factor: Factor of the noise's standard deviation.

    Returns:
        Image (H, W, C) with K references, in the units of a view.
    """
    mean, noise = profile.references.mean(axis=0), profile.tested_noise
    drawn = [mean + factor * noise.sample(rng, mean.shape) for _ in range(1 + num_references)]
    return ImageToTest(drawn[0], np.stack(drawn[1:]), where=profile.where)


def _moved(
    found: Sequence[dict[str, Any]],
    profile: Profile,
    run: Runner,
    directory: Path,
    items: Sequence[QueuedImage],
    options: CalibrateOptions,
) -> list[dict[str, Any]]:
    """Return the raw p-value of each view under noise of another standard deviation or length.

    Another standard deviation leaves the line of each test unchanged, so that no new search is
    needed. Another correlation length changes the line.
    """
    rows = []
    for factor in SIGMA_FACTORS:
        for record in found:
            own = [p_with_sigma(part, factor) for part in parts_of_record(record)]
            p = smallest_p("selective", own).high
            rows.append(_row(record["name"], "sigma", factor, p))
    shape = profile.references.shape[1:]
    for factor in LENGTH_FACTORS if options.lengths else ():
        noise = profile._replace(
            noise=stretch_correlation(profile.noise, shape, factor)
        ).tested_noise
        for record in run(directory / f"length-{factor:g}", items, noise, False):
            rows.append(_row(record["name"], "correlation length", factor, view_p(record).high))
    return rows


def _row(name: str, what: str, factor: float, p: float) -> dict[str, Any]:
    return {"name": name, "what": what, "factor": factor, "p_value": p, "called": p <= ALPHA}


def _sensitivity(moved: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count the false calls under each factor, and the decisions that differ from factor 1."""
    plain = {row["name"]: row["called"] for row in moved if row["factor"] == 1.0}
    rows = []
    for what, factor in dict.fromkeys((row["what"], row["factor"]) for row in moved):
        own = [row for row in moved if (row["what"], row["factor"]) == (what, factor)]
        rows.append(
            {
                "what": what,
                "factor": factor,
                "tested": sum(not np.isnan(row["p_value"]) for row in own),
                "rejected": sum(row["called"] for row in own),
                "changed": sum(row["called"] != plain[row["name"]] for row in own),
                "alpha": ALPHA,
            }
        )
    return rows
