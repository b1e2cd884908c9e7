"""Planning: the smallest difference that a model finds with a given power, by simulation."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from dal_jax._config import option, same_option
from dal_jax._dal_test import TestOptions, check_randomization
from dal_jax._errors import InputError
from dal_jax._files import csv_text, dumps
from dal_jax.images import Preparation, write_text
from dal_jax.inspection._calibration import Calibration, load_calibration
from dal_jax.inspection._planned_tests import (
    PlannedModel,
    PlanSetting,
    PowerPoint,
    SimulatedSetting,
    fixed_region,
    places,
)
from dal_jax.inspection._power import search_differences, smallest_difference
from dal_jax.inspection._profile import Profile, load_profile, open_model
from dal_jax.inspection._results import DECIDING, InspectOptions, check_decider
from dal_jax.inspection._verdict import out_of_reach
from dal_jax.report import plan_picture

TABLE, POINTS, PICTURE, SETTINGS = "plan.csv", "power.csv", "plan.png", "plan.json"
# Words for the units of a view, by scale and intensity of its preparation.
_SCALES = {"view": "standard deviations of the view", "train": "standard deviations in training"}
_INTENSITIES = {"log": "log grey values", "raw": "grey values"}


@dataclass(frozen=True)
class PlanOptions:
    """Options of a plan: what is to be found, in which settings, and the size of the simulation.

    Raises:
        InputError: A field is out of range or unknown.

    Example:
        >>> options = PlanOptions(region_sizes=(2, 4), references=(1, 5, 20))
        >>> options.power, options.images
        (0.8, 200)
    """

    power: float = option(0.8, "Probability with which the difference is to be found.")
    alpha: float = option(0.05, "Level of the decision on an image, of all of its views together.")
    views: int | None = option(
        None,
        "Number of views of an image, each of which is decided at alpha / V; by default 1, to be "
        "given for models of tiles.",
        metavar="V",
    )
    # Empty: a sixteenth, an eighth and a quarter of the side of a view.
    region_sizes: tuple[int, ...] = option(
        (),
        "Sides of the square regions, pixels of a view; by default a sixteenth, an eighth and a "
        "quarter of its side.",
        metavar="S,...",
    )
    noise_factors: tuple[float, ...] = option(
        (1.0,),
        "Factors of the noise's standard deviation, in image and references alike.",
        metavar="C,...",
    )
    # Empty: the profile's number.
    references: tuple[int, ...] = option(
        (), "Numbers of references; by default the model's.", metavar="K,..."
    )
    # Empty: the profile's gamma.
    randomizations: tuple[float, ...] = option(
        (), "Randomizations gamma of the tests; by default the model's.", metavar="GAMMA,..."
    )
    images: int = option(
        200, "Number of images drawn for each difference, the same noise for all.", metavar="N"
    )
    largest: float = option(
        8.0,
        "Largest difference tried, in multiples of that which suffices for a region fixed in "
        "advance.",
    )
    decide_by: str | None = option(
        None,
        "P-value that decides; by default the one that the calibration names, or the raw one.",
        choices=DECIDING,
    )
    seed: int = same_option(TestOptions, "seed")

    def __post_init__(self) -> None:
        InspectOptions(self.alpha, self.decide_by or "selective")  # checks both
        if not 0 < self.power < 1:
            raise InputError(f"power: got {self.power}, expected a probability in (0, 1)")
        for name, least in (("region_sizes", 1), ("references", 1)):
            if any(value < least for value in getattr(self, name)):
                raise InputError(f"{name}: got {getattr(self, name)}, expected {least} or more")
        for name, least in (("images", 20), ("views", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name}: got {value}, expected {least} or more")
        if not all(0 < factor < math.inf for factor in self.noise_factors):
            raise InputError(f"noise_factors: got {self.noise_factors}, expected positive numbers")
        if not 1 <= self.largest < math.inf:
            raise InputError(f"largest: got {self.largest}, expected a number of 1 or more")
        for gamma in self.randomizations:
            check_randomization(gamma, "randomizations")


class PlanRow(NamedTuple):
    """Smallest difference of one setting: a row of plan.csv.

    Example:
        >>> row = PlanRow(4, 1.0, 20, 0.5, 1.7, 1.6, 1.9, 9.6, 1.2, "grey values", 200, 1400, 0, 0)
        >>> row.is_found
        True
    """

    size: int  # see `PlanSetting`, like the next three
    noise_factor: float
    references: int
    randomization: float
    difference: float  # smallest one found with the power, in units of the view; infinite if none
    low: float  # 95% interval; if no difference is found, a lower bound
    high: float  # infinite if the simulated differences do not bound it
    largest: float  # largest difference that would have been tried
    fixed_region: float  # difference that suffices for a region fixed in advance, without selection
    units: str  # units of the differences
    images: int  # number of images for each difference
    tests: int  # number of tests
    not_ok: int  # number of tests whose status is neither OK nor NO_REGION
    undecided: int  # number of tests with a region that the search left undecided
    smallest_conformal: float = math.nan  # smallest conformal p-value; NaN without a calibration
    objects_needed: int = 0  # number of held-out normal objects that a conformal decision needs

    @property
    def is_found(self) -> bool:
        """Whether any simulated difference has the power."""
        return math.isfinite(self.difference)


class Plan(NamedTuple):
    """Results of a plan.

    Example:
        >>> Plan(PlanOptions(), "selective", [], [], ["Nothing was simulated."]).decide_by
        'selective'
    """

    options: PlanOptions  # with all defaults filled in
    decide_by: str  # method whose p-value decides
    rows: list[PlanRow]  # smallest difference of each setting
    points: list[PowerPoint]  # all simulated differences
    sentences: list[str]  # on references, normal images, and what was not searched


def plan_inspection(
    model: Path,
    out: Path,
    options: PlanOptions = PlanOptions(),
    *,
    localizer: str | None = None,
    devices: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Plan:
    """Simulate which differences a model finds, and write tables and a picture.

    Images and references are drawn from the profile's noise model, as the control of `calibrate`
    draws them. A square at a random place within the foreground is raised by a difference, as if
    before background and scale were fitted, and the model's detector and test are applied. An image
    counts as found if a region that touches the square is significant by the deciding p-value.
    Differences are chosen by `search_differences`, and the smallest one of the wanted power follows
    from a monotone fit. After an interruption the same call resumes.

    Args:
        model: Directory of a model trained with --data.
        out: Directory for plan.csv, power.csv, plan.png and plan.json, and for the tests.
        options: Power, level, settings and size of the simulation; every combination of the
            settings is simulated.
        localizer: Name of the model's detector, if that is code; else None.
        devices: Number of devices to use; None for all.
        progress: Function called with (setting and difference, number of finished tests, number of
            tests).

    Returns:
        The plan, as written.

    Raises:
        InputError: An option does not fit the model, or the deciding p-value can never be small
            enough.
        CheckpointError: The model is missing or damaged.
        RunError: The disk is full.

    Example:
        >>> plan = plan_inspection(Path("model"), Path("plan"))  # doctest: +SKIP
        >>> [(row.size, row.difference) for row in plan.rows]  # doctest: +SKIP
        [(2, 3.1), (4, 1.9), (8, 1.2)]
    """
    profile, calibration = load_profile(model), load_calibration(model)
    options = _with_defaults(options, profile)
    decide_by = options.decide_by or (calibration.decide_by if calibration else "selective")
    check_decider(decide_by, calibration)
    needed = objects_needed(calibration, options.alpha, options.views or 1)
    if calibration is not None and decide_by == "conformal":
        told = out_of_reach(calibration, options.alpha, options.views or 1)
        if told:
            raise InputError(
                f"decide_by: got 'conformal', expected another p-value. {told} It needs {needed} "
                f"held-out normal objects, and there are {calibration.num_groups}."
            )
    found = PlannedModel(
        profile,
        open_model(model, profile, localizer),
        calibration,
        decide_by,
        options.alpha,
        options.views or 1,
        options.images,
        options.seed,
        out / "run",
        devices,
        progress,
    )
    rows, points = [], list[PowerPoint]()
    for setting in map(PlanSetting._make, product(*_factors(options))):
        row, own = _plan_setting(found, setting, options)
        least = math.nan if calibration is None else calibration.selective.least
        rows.append(row._replace(smallest_conformal=least, objects_needed=needed))
        points += own
    plan = Plan(options, decide_by, rows, points, _sentences(found, rows, needed))
    _write(out, plan)
    return plan


def objects_needed(calibration: Calibration | None, alpha: float, num_views: int) -> int:
    """Return the number of held-out normal objects that a conformal decision needs.

    The smallest conformal p-value of G objects is `1 / (1 + s G)`, where s is the share of normal
    views that have a region, averaged over objects.

    Args:
        calibration: Calibration that gives s; None for s = 1.
        alpha: Level for all views of an image together.
        num_views: Number of views V of an image.

    Returns:
        The smallest G with `1 / (1 + s G) <= alpha / V`.
    """
    share = 1.0
    if calibration is not None:
        share = sum(calibration.selective.weights) / calibration.num_groups
    return math.ceil((num_views / alpha - 1) / share - 1e-9)


def _with_defaults(options: PlanOptions, profile: Profile) -> PlanOptions:
    """Return the options with all defaults filled in, checked against the profile."""
    preparation, shape = profile.fitted.preparation, profile.references.shape[1:3]
    if options.views is None and preparation.view == "tile":
        raise InputError("views: got none, expected the number of tiles of an image")
    side = min(shape)
    usual = tuple(sorted({max(1, side // part) for part in (16, 8, 4)}))
    filled = replace(
        options,
        views=options.views or 1,
        region_sizes=options.region_sizes or usual,
        references=options.references or (profile.num_references,),
        randomizations=options.randomizations or (profile.randomization,),
    )
    for size in filled.region_sizes:
        if not len(places(profile, size)):
            raise InputError(
                f"region_sizes: got {size}, expected squares that fit into the foreground of a "
                f"view of {shape[0]} x {shape[1]} pixels"
            )
    return filled


def _factors(options: PlanOptions) -> list[tuple[Any, ...]]:
    """Return the values of each field of `PlanSetting`, without repetitions."""
    fields = options.region_sizes, options.noise_factors, options.references, options.randomizations
    return [tuple(dict.fromkeys(own)) for own in fields]


def units_of(preparation: Preparation) -> str:
    """Return the units of a view's pixels in words."""
    own = _INTENSITIES[preparation.intensity]
    return own if preparation.scale == "none" else _SCALES[preparation.scale]


def _plan_setting(
    model: PlannedModel, setting: PlanSetting, options: PlanOptions
) -> tuple[PlanRow, list[PowerPoint]]:
    """Simulate one setting and return its smallest difference, with all simulated points."""
    simulated, fixed = SimulatedSetting(model, setting), fixed_region(model, setting, options.power)
    largest = float(f"{options.largest * fixed:.4g}")
    found = search_differences(simulated, fixed, largest, options.power)
    smallest = smallest_difference(found, options.power, options.seed)
    points = sorted(simulated.points, key=lambda point: point.difference)
    row = PlanRow(
        *setting,
        difference=smallest.difference,
        low=min(smallest.low, max(found)),
        high=smallest.high,
        largest=largest,
        fixed_region=fixed,
        units=units_of(model.profile.fitted.preparation),
        images=options.images,
        tests=sum(point.tests for point in points),
        not_ok=sum(point.not_ok for point in points),
        undecided=sum(point.undecided for point in points),
    )
    return row, points


def _sentences(model: PlannedModel, rows: Sequence[PlanRow], needed: int) -> list[str]:
    """Return what the plan says of references, of normal images and of what was not searched."""
    told = []
    by_rest: dict[tuple[Any, ...], list[PlanRow]] = {}
    for row in rows:
        by_rest.setdefault((row.size, row.noise_factor, row.randomization), []).append(row)
    for own in by_rest.values():
        few = min(own, key=lambda row: row.references)
        many = max(own, key=lambda row: row.references)
        if few is not many and few.is_found and many.is_found:
            told.append(
                f"Regions of {few.size} x {few.size} pixels (noise {few.noise_factor:g}, gamma "
                f"{few.randomization:g}): {few.difference:.3g} with K = {few.references}, "
                f"{many.difference:.3g} with K = {many.references} references."
            )
    held, level = model.calibration, f"{model.level:.3g}"
    reach = "" if held is None else f"; the calibration has {held.num_groups}"
    told.append(f"A conformal decision at {level} needs {needed} held-out normal objects{reach}.")
    tests, not_ok = sum(row.tests for row in rows), sum(row.not_ok for row in rows)
    undecided = sum(row.undecided for row in rows)
    told.append(
        f"{not_ok} of {tests} tests have a status other than OK, and the search left {undecided} "
        "undecided; a region counts as found if the upper bound of its p-value is small enough."
    )
    return told


def _write(directory: Path, plan: Plan) -> None:
    write_text(directory / TABLE, csv_text([row._asdict() for row in plan.rows]))
    write_text(directory / POINTS, csv_text([point._asdict() for point in plan.points]))
    facts = {
        "options": asdict(plan.options),
        "decide_by": plan.decide_by,
        "sentences": plan.sentences,
        "rows": [row._asdict() for row in plan.rows],
    }
    write_text(directory / SETTINGS, dumps(facts) + "\n")
    plan_picture(directory / PICTURE, plan.rows, plan.points, plan.options.power)
