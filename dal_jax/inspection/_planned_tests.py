"""Simulated tests of images with a raised square, for a plan."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from dal_jax._dal_test import (
    ImageToTest,
    QueuedImage,
    TestOptions,
    parts_of_record,
    region_of,
    run_tests,
)
from dal_jax._typing import Bool, Int
from dal_jax.images import NORMAL, Sample, with_change
from dal_jax.inspection._calibrate import drawn_image
from dal_jax.inspection._calibration import Calibration
from dal_jax.inspection._learn import LearnOptions, Normal, as_looked_at, set_threshold
from dal_jax.inspection._profile import Profile
from dal_jax.inspection._results import DECIDING, InspectOptions, ViewRef, view_results
from dal_jax.localizers import Localizer
from dal_jax.noise import scaled
from dal_jax.report import SIGNIFICANT, UNDECIDED

# Number of drawn views from which the threshold of other noise is computed.
_VIEWS = 128
# Number of places over which the variance of a region's mean is averaged.
_PLACES = 32


class PlanSetting(NamedTuple):
    """One setting of a plan.

    Example:
        >>> PlanSetting(size=4, noise_factor=1.0, references=20, randomization=0.5).name
        'size-4,noise-1,references-20,gamma-0.5'
    """

    size: int  # side of the square region, pixels of a view
    noise_factor: float  # factor of the noise's standard deviation
    references: int  # number K of references
    randomization: float  # gamma of the tests

    @property
    def name(self) -> str:
        """Name of the directory of its tests."""
        noise, gamma = f"noise-{self.noise_factor:g}", f"gamma-{self.randomization:g}"
        return f"size-{self.size},{noise},references-{self.references},{gamma}"


class PowerPoint(NamedTuple):
    """Simulated tests of one difference in one setting: a row of power.csv.

    Example:
        >>> PowerPoint(4, 1.0, 20, 0.5, 1.5, 200, 150, 0.75, 0.031, 160, 10, 0, 0).power
        0.75
    """

    size: int  # see `PlanSetting`, like the next three
    noise_factor: float
    references: int
    randomization: float
    difference: float  # in units of the view
    tests: int  # number of images
    found: int  # number of images with a significant region that touches the square
    power: float  # found / tests
    standard_error: float  # of the power
    touched: int  # number of images with a flagged region that touches the square
    no_region: int  # number of images in which nothing is flagged
    not_ok: int  # number of images whose status is neither OK nor NO_REGION
    undecided: int  # number of images with a region that the search left undecided


class PlannedModel(NamedTuple):
    """A model, and how its simulated tests are run and decided."""

    profile: Profile
    localizer: Localizer
    calibration: Calibration | None
    decide_by: str  # method whose p-value decides
    alpha: float  # level for all views of an image together
    num_views: int  # number of views of an image
    images: int  # number of images for each difference
    seed: int
    directory: Path  # directory of the runs
    devices: int | None = None
    progress: Callable[[str, int, int], None] | None = None

    @property
    def level(self) -> float:
        """Level of the decision on one view."""
        return self.alpha / self.num_views


class SimulatedSetting:
    """Tests of one setting, with the same noise and the same places for all differences.

    Args:
        model: Model and options.
        setting: Region size, noise, references and randomization.
    """

    def __init__(self, model: PlannedModel, setting: PlanSetting):
        self._model, self._setting = model, setting
        self._localizer = _localizer(model, setting)
        self._squares = [
            _square(model.profile, setting.size, model.seed, number)
            for number in range(model.images)
        ]
        self.points: list[PowerPoint] = []

    def __call__(self, difference: float) -> Bool[np.ndarray, " n"]:
        """Return whether each image was found, and keep the counts in `points`.

        Args:
            difference: Difference of the square, in units of the view.

        Returns:
            Whether a significant region touches the square, (n,).
        """
        records = _tested(self._model, self._setting, self._localizer, difference)
        found, point = _counted(self._model, self._setting, difference, records, self._squares)
        self.points.append(point)
        return found


def places(profile: Profile, size: int) -> Int[np.ndarray, "m 2"]:
    """Return the upper left corners of all squares within the foreground.

    Args:
        profile: Profile.
        size: Side of the squares, pixels of a view.

    Returns:
        Rows and columns (m, 2); empty if no square fits.
    """
    shape = profile.references.shape[1:3]
    if size > min(shape):
        return np.empty((0, 2), int)
    where = np.ones(shape, bool) if profile.where is None else profile.where
    whole = np.lib.stride_tricks.sliding_window_view(where, (size, size)).all(axis=(2, 3))
    return np.argwhere(whole)


def _square(profile: Profile, size: int, seed: int, number: int) -> Bool[np.ndarray, "H W"]:
    """Return the square of an image, at a place drawn at random within the foreground."""
    rng = np.random.default_rng((seed, 6, size, number))
    top, left = rng.choice(places(profile, size))
    square = np.zeros(profile.references.shape[1:3], bool)
    square[top : top + size, left : left + size] = True
    return square


def _raised(
    profile: Profile, setting: PlanSetting, difference: float, seed: int, number: int
) -> ImageToTest:
    """Return a drawn image whose square is raised by a difference, with drawn references.

    The square passes through the background and the scale of the preparation, as a defect does.
    """
    rng = np.random.default_rng((seed, 5, number))
    case = drawn_image(profile, rng, setting.references, setting.noise_factor)
    square = _square(profile, setting.size, seed, number)
    change = np.broadcast_to(difference * square[..., None], case.image.shape)
    return case._replace(image=with_change(profile.fitted, case.image, change))


def fixed_region(model: PlannedModel, setting: PlanSetting, power: float) -> float:
    """Return the difference that suffices for a square fixed in advance, as if all of it remained.

    It is `sd (z(1 - level / 2) + z(power))`, with the standard deviation sd of the difference of
    means in the square (root mean square over places) and quantiles z of the normal law.

    Args:
        model: Model and level.
        setting: Setting.
        power: Power to be reached.

    Returns:
        The difference, in units of the view.
    """
    profile, variances = model.profile, []
    for number in range(_PLACES):
        square = _square(profile, setting.size, model.seed, number)
        mean = np.repeat(square[..., None], profile.references.shape[-1], axis=2) / 1.0
        mean /= mean.sum()
        variances.append(np.sum(mean * profile.tested_noise.apply(mean)))
    sd = setting.noise_factor * np.sqrt(np.mean(variances) * (1 + 1 / setting.references))
    return float(sd * (ndtri(1 - model.level / 2) + ndtri(power)))


def _localizer(model: PlannedModel, setting: PlanSetting) -> Localizer:
    """Return the localizer with the threshold that fits the setting's noise and randomization.

    Training sets the threshold on views with their own noise and randomization. For others it
    changes in the ratio of the thresholds of drawn views.
    """
    own = PlanSetting(setting.size, 1.0, setting.references, model.profile.randomization)
    if setting == own:
        return model.localizer
    ratio = _drawn_threshold(model, setting) / _drawn_threshold(model, own)
    return model.localizer._replace(threshold=model.localizer.threshold * ratio)


def _drawn_threshold(model: PlannedModel, setting: PlanSetting) -> float:
    """Return the threshold that training would set on views drawn from the noise model."""
    profile, seed, factor = model.profile, model.seed, setting.noise_factor
    pixels = [
        drawn_image(profile, np.random.default_rng((seed, 8, number)), 1, factor).image
        for number in range(_VIEWS)
    ]
    shape = (_VIEWS, *profile.references.shape[1:3])
    where = np.ones(shape, bool) if profile.where is None else np.broadcast_to(profile.where, shape)
    normal = Normal(np.stack(pixels), ("",) * _VIEWS, ("",) * _VIEWS, where)
    options = LearnOptions(
        flag_share=profile.flag_share, randomization=setting.randomization, seed=seed
    )
    looked = as_looked_at(normal, scaled(profile.tested_noise, factor), options)
    return set_threshold(model.localizer, looked, options)


def _tested(
    model: PlannedModel, setting: PlanSetting, localizer: Localizer, difference: float
) -> list[dict[str, Any]]:
    """Test the images of one difference in a run directory of their own."""
    profile, name = model.profile, f"{setting.name}/{difference:g}"
    draw = partial(_raised, profile, setting, difference, model.seed)
    items = [
        QueuedImage(f"{number:06d}", None, partial(draw, number)) for number in range(model.images)
    ]
    # The decision is all that is needed of each test.
    laws = () if model.calibration is None else model.calibration.deciding
    methods = zip(DECIDING[1:], laws, strict=bool(laws))
    how = TestOptions(
        alpha=model.level,
        level=model.level,
        recalibrations=tuple(law for method, law in methods if method == model.decide_by),
        region=profile.region,
        randomization=setting.randomization,
        seed=model.seed,
    )

    def follow(done: int, record: dict[str, Any]) -> None:
        if model.progress is not None:
            model.progress(name, done, len(items))

    return run_tests(
        model.directory / name,
        localizer,
        items,
        scaled(profile.tested_noise, setting.noise_factor),
        how,
        shared=(profile.references, setting, difference),
        devices=model.devices,
        progress=follow,
    )


def _counted(
    model: PlannedModel,
    setting: PlanSetting,
    difference: float,
    records: Sequence[dict[str, Any]],
    squares: Sequence[Bool[np.ndarray, "H W"]],
) -> tuple[Bool[np.ndarray, " n"], PowerPoint]:
    """Decide on the tests of one difference as `test` does, and count."""
    sample = Sample("", Path(), "test", NORMAL, None, "")
    refs = [ViewRef(sample._replace(name=record["name"]), 0, model.num_views) for record in records]
    decisions = InspectOptions(model.alpha, model.decide_by)
    results = iter(
        view_results(list(zip(refs, records, strict=True)), model.calibration, decisions)
    )
    found, touched, undecided = (np.zeros(len(records), bool) for _ in range(3))
    for number, (record, square) in enumerate(zip(records, squares, strict=True)):
        for part in parts_of_record(record):
            decision = next(results).decision
            touches = bool((region_of(part["region"], square.shape) & square).any())
            touched[number] |= touches
            found[number] |= touches and decision == SIGNIFICANT
            undecided[number] |= decision == UNDECIDED
    statuses = [record["status"] for record in records]
    count, power = len(records), float(found.mean())
    point = PowerPoint(
        *setting,
        difference=difference,
        tests=count,
        found=int(found.sum()),
        power=power,
        standard_error=math.sqrt(power * (1 - power) / count),
        touched=int(touched.sum()),
        no_region=statuses.count("NO_REGION"),
        not_ok=sum(status not in ("OK", "NO_REGION") for status in statuses),
        undecided=int(undecided.sum()),
    )
    return found, point
