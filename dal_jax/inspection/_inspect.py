"""Inspection of a folder: tests of all images, with tables, pictures and metrics."""

import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dal_jax._dal_test import TestOptions, run_tests
from dal_jax._files import dumps
from dal_jax.images import (
    NORMAL,
    UNKNOWN,
    DataSet,
    PixelMetrics,
    Sample,
    axial_slice,
    image_metrics,
    is_volume,
    read_volume,
    region_counts,
    write_text,
    write_volume,
)
from dal_jax.inspection._calibration import METHODS, Calibration, load_calibration
from dal_jax.inspection._profile import Profile, check_options, load_profile, open_model
from dal_jax.inspection._results import (
    ImageResult,
    InspectOptions,
    Tally,
    ViewRef,
    ViewResult,
    adjusted_p,
    check_decider,
    image_result,
    picture_name,
    region_number,
    tally,
    view_results,
    write_csv,
    write_views,
)
from dal_jax.inspection._verdict import out_of_reach
from dal_jax.inspection._views import (
    AssembledImage,
    Reader,
    assemble_images,
    keep_maps,
    list_views,
    queue_views,
    to_test,
)
from dal_jax.localizers import Localizer
from dal_jax.report import overlay
from dal_jax.runs import Host

METRICS, SETTINGS, PICTURES = "metrics.json", "test.json", "overlays"


class Inspection(NamedTuple):
    """Results of a tested folder.

    Example:
        >>> counts = Tally(1, 1, 0, {"no region": 1}, "1 view of 1 image: 1 no region")
        >>> found = Inspection(Path("run"), InspectOptions(), [], [], {}, counts, 0)
        >>> found.options.decide_by, found.tally.decisions
        ('selective', {'no region': 1})
    """

    directory: Path  # directory of the tables
    options: InspectOptions  # level, deciding p-value and procedure for q-values
    views: list[ViewResult]  # results of views and their components, image by image
    images: list[ImageResult]
    metrics: dict[str, Any]  # see `Measures.result`; empty if no image has a known label
    tally: Tally
    discovered: int  # number of regions with a q-value of at most the level


def inspect_folder(
    folder: Path,
    model: Path,
    out: Path,
    test_options: TestOptions = TestOptions(),  # noqa: B008 (a constant)
    *,
    alpha: float = 0.05,
    decide_by: str | None = None,
    calibration: Calibration | None = None,
    select: Callable[[DataSet, Profile], DataSet] | None = None,
    overlays: bool = True,
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
        out: Directory for the results.
        test_options: Options of the search; region and randomization are replaced by the profile's,
            level and recalibrations by those that the decisions need.
        alpha: Level for all views of an image together, in (0, 1).
        decide_by: Method whose p-value decides, one of `DECIDING`; None for the one that the
            calibration names.
        calibration: Calibration of the model; None for the one in the model's directory, if any.
        select: Function that selects images of the data set; None for all images.
        overlays: Whether to write pictures of the images.
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
    reader = Reader(data, profile.fitted, profile.seen())
    decide_by = _decider(calibration, alpha, max(map(reader.num_views, samples)), decide_by)
    options = InspectOptions(alpha, decide_by, _discoveries(profile, samples, decide_by))
    # The search goes on until the decision by each of these p-values is certain, so that a later
    # call may decide by another one.
    laws = () if calibration is None else calibration.deciding
    tested = _test_views(
        out / "run",
        open_model(model, profile),
        profile,
        reader,
        samples,
        replace(profile.adapt(test_options), level=alpha, recalibrations=laws),
        progress,
        host,
        devices=devices,
        batch_size=batch_size,
    )
    results = view_results(tested, calibration, options)
    images = assemble_images(out / "run", reader, profile, tested, results)
    pictures = {sample.name for sample in samples} if overlays else ()
    found = _collect(images, out, options, pictures, write=host.index == 0)
    if host.index == 0:
        _write(found)
    return found


def _test_views(
    directory: Path,
    localizer: Localizer,
    profile: Profile,
    reader: Reader,
    samples: Sequence[Sample],
    options: TestOptions,
    progress: Callable[[str, int, int], None] | None,
    host: Host,
    **places: Any,
) -> list[tuple[ViewRef, dict[str, Any]]]:
    """Test all views of samples in a run directory, which also stores their maps."""
    check_options(options, profile)
    listed = list_views(reader, samples)
    own = profile.references_of([one.sample.group for one in listed])
    items = queue_views(reader, listed, own, options.level)
    numbers = {item.name: number for number, item in enumerate(items)}
    run = run_tests(
        directory,
        localizer,
        items,
        profile.tested_noise,
        options,
        host=host,
        shared=profile.references,
        progress=None if progress is None else lambda done, _: progress("test", done, len(items)),
        keep=lambda item, result: keep_maps(directory, numbers[item.name], result),
        **places,
    )
    return list(zip(listed, run.finished().values(), strict=True))


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
    directory: Path,
    options: InspectOptions,
    pictures: Collection[str],
    write: bool,
) -> Inspection:
    """Collect the results of images, one in memory at a time, and write pictures and volumes."""
    views: list[ViewResult] = []
    sums: list[ImageResult] = []
    measures, maps = Measures(), VolumeMaps(directory / "volumes")
    for one in images:
        views += one.views
        sums.append(image_result(one.views))
        measures.add(one)
        if not write:
            continue
        maps.add(one)
        if pictures and one.image is not None:
            _draw(one, directory / PICTURES / picture_name(one.sample.name, pictures))
    maps.close()
    discovered = sum(one.q_value <= options.alpha for one in views)
    metrics = measures.result(options.alpha)
    return Inspection(directory, options, views, sums, metrics, tally(views), discovered)


def _write(found: Inspection) -> None:
    write_views(found.directory, found.views)
    write_csv(found.directory / "images.csv", [one._asdict() for one in found.images])
    write_text(found.directory / SETTINGS, dumps(asdict(found.options)) + "\n")
    if found.metrics:
        write_text(found.directory / METRICS, dumps(found.metrics) + "\n")


def _draw(one: AssembledImage, path: Path) -> None:
    """Write the picture of an image, with numbered components."""
    assert one.image is not None and one.region is not None and one.significant is not None
    labels = [
        (region_number(part), part.box[:2])
        for part in one.views
        if part.component and part.box  # no box if the component vanishes in a smaller image
    ]
    overlay(one.image, one.region, one.significant, path, truth=one.mask, labels=labels)


class Measures:
    """Metrics of a folder of labelled images; of the pixels only `PixelMetrics` is stored.

    Example:
        >>> measures = Measures()
        >>> for label, score in (("normal", 0.2), ("crack", 0.9)):
        ...     sample = Sample(label, Path(f"{label}.png"), "test", label, None, label)
        ...     measures.add(AssembledImage(sample, [], score=np.full((2, 2), score)))
        >>> measures.result(alpha=0.05)["image"]["auroc"]
        1.0
    """

    def __init__(self) -> None:
        self._pixels = PixelMetrics()
        self._any_pixels = False
        self._labels: list[bool] = []
        self._scores: list[float] = []
        self._views: list[ViewResult] = []

    def add(self, one: AssembledImage) -> None:
        """Add an image to the metrics, unless it was not tested or has no known label.

        Args:
            one: Image with its results.
        """
        if one.score is None or one.sample.label == UNKNOWN:
            return
        inside = np.isfinite(one.score)
        if not inside.any():
            return
        self._labels.append(one.sample.label != NORMAL)
        self._scores.append(float(one.score[inside].max()))
        self._views += [view for view in one.views if view.num_tested]
        if one.mask is not None:
            self._pixels.add(one.score, one.mask, inside)
            self._any_pixels = True

    def result(self, alpha: float) -> dict[str, Any]:
        """Return the metrics of the images added so far.

        Args:
            alpha: Level at which regions are called significant.

        Returns:
            JSON values: image (AUROC, AP, F1-max), pixel (the same and AUPRO), and for each
            p-value, adjusted like decisions, the share of tested regions that it calls significant
            on normal and on anomalous images. Empty if no image has a known label.
        """
        if not self._labels:
            return {}
        found: dict[str, Any] = {
            "alpha": alpha,
            "image": image_metrics(np.array(self._labels), np.array(self._scores))._asdict(),
        }
        if self._any_pixels:
            pixel = self._pixels.result()
            found["pixel"] = {**pixel._asdict(), "max_error": pixel.max_error._asdict()}
        kinds = ["normal" if one.label == NORMAL else "anomalous" for one in self._views]
        groups = [one.group for one in self._views]
        touches = [one.touches_mask for one in self._views]
        if self._views:
            found["significant"] = {
                method: _shares(self._adjusted(method), kinds, groups, touches, alpha)
                for method in METHODS
            }
        return found

    def _adjusted(self, method: str) -> np.ndarray:
        """Return upper bounds on the adjusted p-values, for components and views of an image."""
        upper = [p.high for p in adjusted_p(self._views, method)]
        return np.minimum(1.0, np.array(upper) * [one.views for one in self._views])


def _shares(
    p: np.ndarray, kinds: list[str], groups: list[str], touches: list[bool | None], alpha: float
) -> dict[str, Any]:
    counts = region_counts(p, kinds, groups, touches, alpha)
    return {
        name: getattr(counts, name)._asdict()
        for name in ("normal", "anomalous", "touching", "elsewhere")
    }


class VolumeMaps:
    """Writer of three maps for each tested volume, as soon as its last slice has been added.

    The map `score` is NaN outside the tested views; `p_adjusted`, the adjusted p-value of the
    decision, is NaN outside the tested regions; `significant` is 1 in significant regions and 0
    elsewhere.

    Args:
        folder: Folder of the maps, named `<name of the volume>_<kind>.nii.gz`; of two volumes with
            the same name, the second one keeps its file extension in the name.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path, score = Path(folder, "brain.nii.gz"), np.ones((6, 4))
        ...     write_volume(path, np.zeros((4, 6, 1)), np.eye(4))
        ...     sample = Sample("brain.nii.gz#0", path, "test", "unknown", None, "brain", 0)
        ...     maps = VolumeMaps(Path(folder, "maps"))
        ...     one = AssembledImage(sample, [], None, None, score, score > 2, score > 2, score)
        ...     maps.add(one)
        ...     maps.close()
        ...     print(float(read_volume(Path(folder, "maps", "brain_score.nii.gz")).voxels.sum()))
        24.0
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._path: Path | None = None
        self._name = ""
        self._names: set[str] = set()  # names of all volumes so far
        self._affine: Any = None
        self._maps: dict[str, np.ndarray] = {}

    def add(self, one: AssembledImage) -> None:
        """Add a slice; an image that is no slice of a NIfTI volume is ignored.

        Args:
            one: Image with its results; the slices of a volume have to be added in succession.

        Raises:
            InputError: A volume cannot be read or written.
        """
        sample = one.sample
        if sample.slice is None or not is_volume(sample.path) or one.score is None:
            return
        assert one.p_adjusted is not None and one.significant is not None
        if sample.path != self._path:
            self.close()
            self._open(sample)
        shown = {"score": one.score, "p_adjusted": one.p_adjusted, "significant": one.significant}
        for kind, values in shown.items():
            axial_slice(self._maps[kind], self._affine, sample.slice)[...] = values

    def close(self) -> None:
        """Write the maps of the current volume, if any.

        Raises:
            InputError: A map cannot be written.
        """
        for kind, voxels in self._maps.items():
            write_volume(self._folder / f"{self._name}_{kind}.nii.gz", voxels, self._affine)
        self._path, self._maps = None, {}

    def _open(self, sample: Sample) -> None:
        volume = read_volume(sample.path)
        shape = volume.voxels.shape
        self._path, self._affine = sample.path, volume.affine
        whole = sample.name.rpartition("#")[0]  # path below the root of the data set
        name = whole.removesuffix(".gz").removesuffix(".nii")
        self._name = whole if name in self._names else name
        self._names.add(self._name)
        self._maps = {
            "score": np.full(shape, np.nan, np.float32),
            "p_adjusted": np.full(shape, np.nan, np.float32),
            "significant": np.zeros(shape, bool),
        }
