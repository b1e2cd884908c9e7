"""Inspection of images: tests of all views, with tables, pictures and metrics."""

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dal_jax._dal_test import MAPS, QueuedImage, TestOptions, TestResult, run_tests
from dal_jax._errors import InputError
from dal_jax._files import csv_text, dumps
from dal_jax._version import __version__
from dal_jax.images import UNKNOWN, DataSet, Sample, is_volume, write_array, write_text
from dal_jax.inference import Noise
from dal_jax.inspection._calibration import Calibration, load_calibration
from dal_jax.inspection._measures import Measures, VolumeMaps
from dal_jax.inspection._profile import Profile, check_options, load_profile, open_model
from dal_jax.inspection._results import (
    ImageResult,
    InspectOptions,
    Tally,
    ViewRef,
    ViewResult,
    check_decider,
    image_result,
    picture_name,
    region_number,
    tally,
    view_results,
    write_views,
)
from dal_jax.inspection._verdict import out_of_reach
from dal_jax.inspection._views import (
    AssembledImage,
    ImageReader,
    Reader,
    assemble_images,
    keep_maps,
    list_views,
    open_image,
    queue_views,
    to_test,
)
from dal_jax.localizers import Localizer
from dal_jax.report import figure, overlay
from dal_jax.runs import Host
from dal_jax.search import Status

METRICS, SETTINGS, PICTURES = "metrics.json", "test.json", "overlays"


class Inspection(NamedTuple):
    """Results of tested images.

    Example:
        >>> counts = Tally(1, 1, 0, {"no region": 1}, "1 view of 1 image: 1 no region")
        >>> found = Inspection(Path("run"), InspectOptions(), [], [], {}, counts, 0, [], {})
        >>> found.options.decide_by, found.tally.decisions
        ('selective', {'no region': 1})
    """

    directory: Path | None  # directory of the tables; None if none were written
    options: InspectOptions  # level, deciding p-value, procedure for q-values and alternative
    views: list[ViewResult]  # results of views and their components, image by image
    images: list[ImageResult]
    metrics: dict[str, Any]  # see `Measures.result`; empty if no image has a known label
    tally: Tally
    discovered: int  # number of regions with a q-value of at most the level
    records: list[dict[str, Any]]  # record of the test of each view, see `dal_jax.as_record`
    settings: dict[str, Any]  # settings of the tests, as in test.json


class _Tests(NamedTuple):
    """Images to be tested, and the parts that decide the results."""

    samples: Sequence[Sample]
    reader: ImageReader
    localizer: Localizer
    noise: Noise | str  # covariance of a view
    options: TestOptions
    shared: np.ndarray  # references of all images, (K, H, W, C)
    references: dict[str, np.ndarray]  # references (K, H, W, C) of each group
    decisions: InspectOptions
    calibration: Calibration | None
    origin: dict[str, Any]  # settings of the images, their noise and references


class _Work(NamedTuple):
    """How the tests are carried out and what is written; see `inspect_images`."""

    overlays: bool
    maps: bool
    host: Host
    devices: int | None
    batch_size: int | None
    progress: Callable[[str, int, int], None] | None


def inspect_folder(
    folder: Path,
    model: Path,
    out: Path | None,
    test_options: TestOptions = TestOptions(),  # noqa: B008 (a constant)
    *,
    alpha: float = 0.05,
    localizer: str | None = None,
    decide_by: str | None = None,
    calibration: Calibration | None = None,
    select: Callable[[DataSet, Profile], DataSet] | None = None,
    overlays: bool = True,
    maps: bool = False,
    host: Host = Host(0, 1),  # noqa: B008 (a constant)
    devices: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Inspection:
    """Test every image of a folder that the model has not seen, and write tables and pictures.

    After an interruption the same call resumes the run. Of several processes that share `out` the
    first one writes; all return the results.

    Args:
        folder: Data set of the layout that the model was trained on, or any folder of images.
        model: Directory of a model trained with --data.
        out: Directory for the results; None to write none.
        test_options: Options of the search; region and randomization are replaced by the profile's,
            level and recalibrations by those that the decisions need.
        alpha: Level for all views of an image together, in (0, 1).
        localizer: Name of the model's detector, if that is code; else None.
        decide_by: Method whose p-value decides, one of `DECIDING`; None for the one that the
            calibration names.
        calibration: Calibration of the model; None for the one in the model's directory, if any.
        select: Function that selects images of the data set; None for all images.
        overlays: Whether to write pictures of the images.
        maps: Whether to write region, score and reconstruction of each view, and a figure of them.
        host: This process among those that share the run.
        devices: Number of devices to use; None for all.
        batch_size: Number of tests that run at the same time; None to fill the devices.
        progress: Function called with ("test", number of finished views, number of views).

    Returns:
        The results, as written to the tables.

    Raises:
        InputError: An argument does not fit, or a condition that all images share is violated.
        CheckpointError: The model or its calibration is missing or damaged.
        RunError: The disk is full, or another process was lost.

    Example:
        >>> found = inspect_folder(Path("tiles"), Path("model"), Path("run"))  # doctest: +SKIP
        >>> len(found.images) == found.tally.images  # doctest: +SKIP
        True
    """
    profile = load_profile(model)
    calibration = load_calibration(model) if calibration is None else calibration
    data = profile.source.open(folder)
    data = data if select is None else select(data, profile)
    samples = to_test(data, profile)
    seen = profile.seen().union(() if calibration is None else calibration.added)
    reader = Reader(data, profile.fitted, seen, profile.warnings)
    decide_by = _decider(calibration, alpha, max(map(reader.num_views, samples)), decide_by)
    # The search goes on until the decision by each of these p-values is certain, so that a later
    # call may decide by another one.
    laws = () if calibration is None else calibration.deciding
    options = replace(profile.adapt(test_options), level=alpha, recalibrations=laws)
    check_options(options, profile)
    discoveries = _discoveries(profile, samples, decide_by)
    tests = _Tests(
        samples,
        reader,
        open_model(model, profile, localizer),
        profile.tested_noise,
        options,
        profile.references,
        profile.references_of([sample.group for sample in samples]),
        InspectOptions(alpha, decide_by, discoveries, options.alternative),
        calibration,
        {
            "folder": folder,
            "model": model,
            "noise": profile.noise_kind,
            "num_references": profile.num_references,
        },
    )
    return _inspect(tests, out, _Work(overlays, maps, host, devices, batch_size, progress))


def inspect_images(
    localizer: Localizer,
    images: Sequence[Path],
    references: Sequence[Path],
    noise: Noise | str,
    out: Path | None,
    test_options: TestOptions = TestOptions(),  # noqa: B008 (a constant)
    *,
    alpha: float = 0.05,
    overlays: bool = True,
    maps: bool = False,
    host: Host = Host(0, 1),  # noqa: B008 (a constant)
    devices: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Inspection:
    """Test images as they are, without a profile, and write the same files as `inspect_folder`.

    After an interruption the same call resumes the run. Of several processes that share `out` the
    first one writes; all return the results.

    Args:
        localizer: Localizer, as in `dal_test`.
        images: Image files. Their names in the tables are those of the files, or the paths below
            their common folder if two files have the same name.
        references: Files of independent normal images; each image is compared with their mean.
        noise: Covariance of an image, as in `dal_test`.
        out: Directory for the results; None to write none.
        test_options: Options of the tests; the level is replaced by `alpha`.
        alpha: Level of the decision on each image, in (0, 1). The search goes on until the decision
            is certain.
        overlays: Whether to write pictures of the images.
        maps: Whether to write region, score and reconstruction of each view, and a figure of them.
        host: This process among those that share the run.
        devices: Number of devices to use; None for all.
        batch_size: Number of tests that run at the same time; None to fill the devices.
        progress: Function called with ("test", number of finished views, number of views).

    Returns:
        The results, as written to the tables. An image that cannot be read has a row with the
        reason.

    Raises:
        InputError: An argument does not fit, an image is given twice, or a reference or the only
            image cannot be read.
        RunError: The disk is full, or another process was lost.

    Example:
        >>> from dal_jax import from_score
        >>> def brightness(params, draws, x):
        ...     return x[..., 0]
        >>> localizer = from_score(brightness, (1, 2, 1), 2.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     x, y = Path(folder, "x.npy"), Path(folder, "y.npy")
        ...     np.save(x, [[3.0, 0.0]])
        ...     np.save(y, np.zeros((1, 2)))
        ...     as_published = TestOptions(randomization=0)
        ...     found = inspect_images(localizer, [x], [y], "iid:1.0", None, as_published)
        >>> [(one.name, one.decision, one.box) for one in found.views]
        [('x.npy', 'not significant', (0, 0, 1, 1))]
    """
    if not references:
        raise InputError("references: got none, expected one or more files")
    shape = tuple(localizer.image_shape)
    normal = np.stack([open_image(path, shape) for path in references])
    samples = [
        Sample(name, path, "test", UNKNOWN, None, name)
        for name, path in zip(_names(images), images, strict=True)
    ]
    reader = ImageReader(shape)
    if len(samples) == 1:
        reader.read(samples[0])
    options = replace(test_options, level=alpha)
    text = noise if isinstance(noise, str) else type(noise).__name__
    tests = _Tests(
        samples,
        reader,
        localizer,
        noise,
        options,
        normal,
        dict.fromkeys([sample.group for sample in samples], normal),
        InspectOptions(alpha, alternative=options.alternative),
        None,
        {"noise": text, "references": list(references), "num_references": len(references)},
    )
    return _inspect(tests, out, _Work(overlays, maps, host, devices, batch_size, progress))


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the names of image files, or their paths below a common folder if names coincide."""
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        whole = [Path(os.path.abspath(path)) for path in paths]
        root = os.path.commonpath([path.parent for path in whole])
        names = [path.relative_to(root).as_posix() for path in whole]
    names = [name.encode("utf-8", "backslashreplace").decode() for name in names]
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"images: {name!r} is given {count} times, expected once")
    return names


def _inspect(tests: _Tests, out: Path | None, work: _Work) -> Inspection:
    """Test images in a run directory, decide on them, and write the files."""
    if out is None and (work.maps or work.host.count > 1):
        what = "the maps" if work.maps else "all processes"
        raise InputError(f"out: got none, expected a directory for {what}")
    scratch = tempfile.TemporaryDirectory(prefix="dal-jax-") if out is None else nullcontext(out)
    with scratch as home:
        tested = _test_views(Path(home), tests, work)
        results = view_results(tested, tests.calibration, tests.decisions)
        assembled = partial(assemble_images, Path(home) / "run", tests.reader, tested, results)
        found = _collect(assembled(), tests, tested)
        if out is not None and work.host.index == 0:
            _write(found, out)
            names = {sample.name for sample in tests.samples} if work.overlays else ()
            if names or any(is_volume(sample.path) for sample in tests.samples):
                _draw_all(assembled(), out, names)
    return found._replace(directory=out)


def _test_views(
    directory: Path, tests: _Tests, work: _Work
) -> list[tuple[ViewRef, dict[str, Any]]]:
    """Test all views of samples in a run directory, which also stores their maps."""
    listed = list_views(tests.reader, tests.samples)
    items = queue_views(tests.reader, listed, tests.references, tests.options.level)
    listed = [one._replace(key=item.key) for one, item in zip(listed, items, strict=True)]
    names = {one.key: one.sample.name for one in listed}

    def keep(item: QueuedImage, result: TestResult) -> None:
        if result.status is not Status.INVALID_INPUT:
            keep_maps(directory / "run", item.key, result, tests.reader.pictures[names[item.key]])
            if work.maps:
                _write_maps(directory / "maps" / item.name, item, result, tests)

    def follow(done: int, record: dict[str, Any]) -> None:
        if work.progress is not None:
            work.progress("test", done, len(items))

    records = run_tests(
        directory / "run",
        tests.localizer,
        items,
        tests.noise,
        tests.options,
        host=work.host,
        shared=tests.shared,
        devices=work.devices,
        batch_size=work.batch_size,
        progress=follow,
        keep=keep,
    )
    return list(zip(listed, records, strict=True))


def _write_maps(folder: Path, item: QueuedImage, result: TestResult, tests: _Tests) -> None:
    """Write the maps of a view, and a figure of them with the decision on the raw p-value."""
    for name in MAPS:
        write_array(folder / f"{name}.npy", getattr(result, name))
    view = item.load()
    figure(
        [view.image],
        [result],
        folder / "figure.png",
        titles=[item.name],
        alpha=view.level or tests.decisions.alpha,
        threshold=tests.localizer.threshold,
    )


def _decider(
    calibration: Calibration | None, alpha: float, num_views: int, asked: str | None
) -> str:
    """Return the method whose p-value decides, and print a warning about it where one applies."""
    decide_by = asked or ("selective" if calibration is None else calibration.decide_by)
    check_decider(decide_by, calibration)  # before the tests, which may take hours
    if calibration is None:
        return decide_by
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
    """Return the procedure for q-values: "bh" if tests share nothing but ranks, "by" otherwise."""
    apart = profile.each > 0 and len({sample.group for sample in samples}) == len(samples)
    one = profile.fitted.preparation.view != "tile" and profile.region != "components"
    return "bh" if apart and one and decide_by in ("selective", "conformal") else "by"


def _collect(
    images: Iterable[AssembledImage],
    tests: _Tests,
    tested: Sequence[tuple[ViewRef, dict[str, Any]]],
) -> Inspection:
    """Collect the results of images, one in memory at a time."""
    views: list[ViewResult] = []
    sums: list[ImageResult] = []
    measures, alpha = Measures(), tests.decisions.alpha
    for one in images:
        views += one.views
        sums.append(image_result(one.views))
        measures.add(one)
        del one  # before the next image is read
    return Inspection(
        None,
        tests.decisions,
        views,
        sums,
        measures.result(alpha),
        tally(views),
        sum(one.q_value <= alpha for one in views),
        [record for _, record in tested],
        _settings(tests),
    )


def _write(found: Inspection, directory: Path) -> None:
    write_views(directory, found.views)
    write_text(directory / "images.csv", csv_text([one._asdict() for one in found.images]))
    write_text(directory / SETTINGS, dumps(found.settings) + "\n")
    if found.metrics:
        write_text(directory / METRICS, dumps(found.metrics) + "\n")


def _draw_all(images: Iterable[AssembledImage], directory: Path, pictures: Collection[str]) -> None:
    """Write pictures and volumes, after the tables; what cannot be written stops nothing."""
    maps, told = VolumeMaps(directory / "volumes"), set[str]()
    for one in images:
        try:
            maps.add(one)
            if pictures and one.image is not None:
                _draw(one, directory / PICTURES / picture_name(one.sample.name, pictures))
        except InputError as error:
            if str(error) not in told:
                print(f"{one.sample.name}: {error}", file=sys.stderr)
            told.add(str(error))
        del one  # before the next image is read
    maps.close()


def _settings(tests: _Tests) -> dict[str, Any]:
    names = ("engine", "region", "randomization", "seed", "precision", "confidence")
    return {
        **asdict(tests.decisions),
        **{name: getattr(tests.options, name) for name in names},
        "threshold": tests.localizer.threshold,
        **tests.origin,
        "version": __version__,
    }


def _draw(one: AssembledImage, path: Path) -> None:
    """Write the picture of an image, with numbered components."""
    assert one.image is not None and one.region is not None and one.significant is not None
    labels = [
        (region_number(part), part.box[:2]) for part in one.views if part.component and part.box
    ]
    overlay(one.image, one.region, one.significant, path, truth=one.mask, labels=labels)
