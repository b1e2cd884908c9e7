"""Real images: false calls and power of the whole chain, from a folder to decisions.

dal-jax experiment real_images --out DIR

Photographs of brick, grass and gravel, and patients simulated from a template of the head, are
written as data sets, trained on, calibrated and tested as `dal-jax train --data`, `calibrate` and
`test FOLDER` do. Defects of a given contrast are put in. `_textures` and `_brain` describe the data
and their limits.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from dal_jax import DalConfig, InputError, TestOptions
from dal_jax.diffusion import TrainConfig
from dal_jax.images import Preparation, region_counts
from dal_jax.inspection import (
    COLUMNS,
    CalibrateOptions,
    LearnOptions,
    Source,
    learn,
    train_with_bar,
)
from dal_jax.models import UNetConfig
from dal_jax.runs import fingerprint, wait_for_hosts
from experiments._brain import MIDDLE, BrainPlan, lesions_of, write_patients
from experiments._chain import ALPHA, Chain, run_chain
from experiments._experiment import Context, Experiment, check_lengths
from experiments._output import (
    BARS,
    COLOURS,
    MARKERS,
    Row,
    Tables,
    finish,
    level_line,
    panels,
    pivot,
)
from experiments._records import EMPTY, TESTED
from experiments._textures import GROUPS, KINDS, PATCH, TexturePlan, contrast_of, write_textures

BRAIN = "brain"
METHODS = ("selective", "inflated", "conformal", "naive")
HELD_OUT, GOOD, DEFECT = "held out", "test", "defect"
_COLOURS = {**COLOURS, "inflated": "#4c72b0", "conformal": "#55a868"}
_MARKERS = {**MARKERS, "inflated": "s", "conformal": "v"}


@dataclass(frozen=True)
class Settings:
    """Data sets, training, calibration and tests.

    Raises:
        InputError: A value does not fit.
    """

    data: tuple[str, ...] = (*KINDS, BRAIN)
    contrasts: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)  # deviations of photograph or brain
    shots: int = 2  # images of a block of a photograph
    test_blocks: int = 32  # of each photograph, for the test
    size: int = 16  # side of a view of a photograph, pixels; a divisor of 32
    patients: int = 300
    slices: int = 2  # of a patient
    brain_size: int = 20  # side of a view of a slice, pixels; a divisor of 40
    channels: tuple[int, ...] = (16, 32, 64)
    steps: int = 800  # of training
    noise: str = "dense_stationary"  # kind of noise model; "auto" compares all
    flag_share: float = 0.02
    region: str = "peak"
    randomization: float = LearnOptions.randomization  # 0: the test as published
    control: int = 0  # number of images drawn from the noise model and tested too
    lengths: bool = False  # whether to test under other correlation lengths, too
    seed: int = 0

    def __post_init__(self) -> None:
        check_lengths(self, "data")
        for name in self.data:
            if name not in (*KINDS, BRAIN):
                names = ", ".join((*KINDS, BRAIN))
                raise InputError(f"data holds {name!r}, expected some of {names}")
        for name, whole in (("size", PATCH), ("brain_size", MIDDLE)):
            side = getattr(self, name)
            if side < 2 or whole % side:
                raise InputError(f"{name}: got {side}, expected a divisor of {whole} above 1")
        _ = self.textures, self.brain

    @property
    def textures(self) -> TexturePlan:
        """Blocks and defects of the photographs."""
        return TexturePlan(tuple(self.contrasts), self.shots, self.test_blocks, self.seed)

    @property
    def brain(self) -> BrainPlan:
        """Settings of the simulated patients."""
        contrasts = tuple(self.contrasts)
        return BrainPlan(contrasts, self.patients, self.slices, seed=self.seed)


class Subject(NamedTuple):
    """A data set of this experiment, as it is written and read."""

    name: str
    plan: TexturePlan | BrainPlan
    source: Source
    preparation: Preparation
    views_per_image: int  # random ones, to train on


class DataSetResult(NamedTuple):
    """Results of the chain on one data set."""

    subject: Subject
    chain: Chain
    rows: list[Row]  # of the tested views, with `touches_mask` and `contrast`


def measure(settings: Settings, context: Context) -> Tables:
    """Take every data set through the chain, one after the other."""
    results = []
    with tqdm(unit="view", file=sys.stderr, disable=context.host.index > 0 or None) as bar:
        for name in settings.data:
            results.append(_test(subject_of(name, settings), settings, context, bar))
    return {
        "real_images": [row for one in results for row in _rates(one)],
        "data_sets": [_facts(one) for one in results],
    }


def subject_of(name: str, settings: Settings) -> Subject:
    """Return a data set of the experiment.

    Args:
        name: Name of the data set, one of `Settings.data`.
        settings: Settings of the experiment.

    Returns:
        The data set.
    """
    # One camera and one light, so one scale for all. With it the whitened residuals of the training
    # blocks have lighter tails than with the logarithm and a scale of each view.
    how: dict[str, Any] = {"view": "crop", "intensity": "raw", "scale": "train"}
    if name == BRAIN:
        # Anatomy has its place: no crops from elsewhere to train on.
        reduce = MIDDLE // settings.brain_size
        preparation = Preparation(settings.brain_size, **how, reduce=reduce)
        return Subject(name, settings.brain, Source("brats2021", contrast="t1"), preparation, 0)
    preparation = Preparation(settings.size, **how, reduce=PATCH // settings.size)
    return Subject(name, settings.textures, Source("mvtec", groups=GROUPS), preparation, 8)


def write_data(folder: Path, subject: Subject) -> None:
    """Write a data set unless it exists.

    Args:
        folder: Folder of the data set.
        subject: The data set.

    Raises:
        InputError: An optional package is missing.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(subject.plan, BrainPlan):
        write_patients(folder, subject.plan)
    else:
        write_textures(folder, subject.name, subject.plan)


def learn_subject(folder: Path, subject: Subject, settings: Settings, models: Path) -> Path:
    """Train on a data set, or continue the training, unless it is finished.

    Args:
        folder: Folder of the data set.
        subject: The data set.
        settings: Settings of the experiment.
        models: Folder of all models.

    Returns:
        The folder of the model.
    """
    config = DalConfig(unet=UNetConfig(1, tuple(settings.channels)))
    training = TrainConfig(steps=settings.steps, seed=settings.seed)
    options = LearnOptions(
        views_per_image=subject.views_per_image,
        noise=settings.noise,
        flag_share=settings.flag_share,
        region=settings.region,
        randomization=settings.randomization,
        seed=settings.seed,
    )
    asked = fingerprint(tuple(subject), config, training, options)
    home = models / f"real-{subject.name}-{asked[:8]}"
    if not (home / "profile.json").is_file():  # written last
        source, preparation = subject.source, subject.preparation
        learn(folder, source, preparation, config, training, options, home, train_with_bar)
    return home


def _test(subject: Subject, settings: Settings, context: Context, bar: Any) -> DataSetResult:
    root = context.directory / "data" / subject.name
    if context.host.index == 0:
        write_data(root, subject)
        learn_subject(root, subject, settings, context.models)
    wait_for_hosts(f"learnt {subject.name}")
    home = learn_subject(root, subject, settings, context.models)
    directory = context.directory / "runs" / subject.name
    wanted = CalibrateOptions(settings.control, settings.lengths, settings.seed)
    chain = run_chain(root, home, directory, context, bar, subject.name, wanted, TestOptions())
    contrast, rows = _contrasts(subject, root), [one.as_row() for one in chain.inspection.views]
    rows = [{**row, "contrast": contrast(row)} for row in rows]
    return DataSetResult(subject, chain, rows)


def _contrasts(subject: Subject, root: Path) -> Callable[[Row], float]:
    """What tells the contrast of a tested view."""
    if subject.name != BRAIN:
        return lambda row: contrast_of(row["label"])
    lesions = lesions_of(root)
    return lambda row: lesions.get(row["group"], 0.0)


def _rates(result: DataSetResult) -> list[Row]:
    """Return the rates at which each method calls views significant, by their contrast."""
    subject, calibrated, rows = result.subject, result.chain.calibrated, []
    for method in METHODS:
        held, views = calibrated.p_values[method], calibrated.records
        rows.append(_rate(subject, HELD_OUT, 0.0, method, held, views, calibrated.groups))
        for contrast in (0.0, *subject.plan.contrasts):
            own = [row for row in result.rows if row["contrast"] == contrast]
            p = np.array([row[COLUMNS[method]] for row in own], np.float64)
            groups = [row["group"] for row in own]
            part = DEFECT if contrast else GOOD
            rows.append(_rate(subject, part, contrast, method, p, own, groups))
    return rows


def _rate(
    subject: Subject,
    part: str,
    contrast: float,
    method: str,
    p: np.ndarray,
    views: Sequence[Row],
    groups: Sequence[str],
) -> Row:
    states = [view["status"] for view in views]
    known = [k for k, state in enumerate(states) if state == TESTED]
    kinds = ["anomalous" if part == DEFECT else "normal"] * len(known)
    touches = [views[k]["touches_mask"] if part == DEFECT else None for k in known]
    regions = region_counts(p[known], kinds, [groups[k] for k in known], touches, ALPHA)
    # Of normal views all regions count, of others those that touch the defect.
    share = regions.touching if "anomalous" in kinds else regions.normal
    empty = states.count(EMPTY)
    return {
        "data": subject.name,
        "part": part,
        "contrast": contrast,
        "method": method,
        "alpha": ALPHA,
        "views": len(views),
        "no_region": empty,
        "failed": len(views) - empty - len(known),
        "elsewhere": len(known) - share.num_decided - share.num_undecided,
        "tested": share.num_decided,
        "rejected": share.num_significant,
        "rate": share.share,
        "se": share.standard_error,
        "low": share.low,
        "high": share.high,
        "objects": share.num_groups,
        "found": share.num_significant / len(views),  # of all views
    }


def _facts(result: DataSetResult) -> Row:
    """Return facts of the profile and the calibration."""
    profile, calibrated = result.chain.profile, result.chain.calibrated
    roles = {f"{role}_objects": len(groups) for role, groups in profile.roles.items()}
    control = next((rate for rate in calibrated.control_rates if rate.alpha == ALPHA), None)
    return {
        "data": result.subject.name,
        **roles,
        "test_objects": len({row["group"] for row in result.rows}),
        "noise": profile.noise_kind,
        "threshold": profile.threshold,
        "kurtosis": calibrated.fit.residual_kurtosis,
        "inflation": calibrated.calibration.inflated.factor,
        "least_conformal": calibrated.calibration.selective.least,
        "control": float("nan") if control is None else control.rate,
        "verdict": calibrated.verdict[0],
        "parameters": fingerprint(result.chain.localizer.params),
    }


def summary(tables: Tables) -> str:
    """Return false calls, power and the verdicts of the calibration, Markdown."""
    rows = [{**row, "": f"{row['part']}, {row['method']}"} for row in tables["real_images"]]
    normal = [row for row in rows if row["part"] != DEFECT]
    defect = [row for row in rows if row["part"] == DEFECT]
    once = [row for row in rows if row["method"] == METHODS[0]]
    parts = [
        f"Normal views with a region, called significant at {ALPHA:g} (95% interval by object):\n",
        pivot(normal, ("data", "part"), "method", _interval_cell),
        f"Regions that touch a defect, called significant at {ALPHA:g} (standard error by object), "
        "by contrast in standard deviations of the photograph or brain:\n",
        pivot(defect, ("data", "contrast"), "method", lambda r: f"{r['rate']:.3f} ({r['se']:.3f})"),
        "Of all views with a defect, those whose region touches it and is called significant:\n",
        pivot(defect, ("data", "contrast"), "method", lambda r: f"{r['found']:.3f}"),
        "Views, without a region, failed, region elsewhere; objects with a tested region:\n",
        pivot(
            [{**row, "": _kind(row)} for row in once],
            ("data",),
            "",
            lambda r: (
                f"{r['views']}, {r['no_region']}, {r['failed']}, {r['elsewhere']}; {r['objects']}"
            ),
        ),
        "Verdicts of the calibration:\n",
        *(
            f"- {row['data']}: {row['verdict']} Least conformal p: {row['least_conformal']:.2g}."
            for row in tables["data_sets"]
        ),
    ]
    if any(row["data"] == BRAIN for row in rows):
        parts.append("\nThe patients are simulated from one template of the head.")
    return "\n".join(parts) + "\n"


def _kind(row: Row) -> str:
    return f"contrast {row['contrast']:g}" if row["part"] == DEFECT else row["part"]


def _interval_cell(row: Row) -> str:
    return f"{row['rate']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def draw(tables: Tables) -> dict[str, Any]:
    """Draw false calls by data set and power against contrast, with 95% intervals by object."""
    rows = tables["real_images"]
    normal = [row for row in rows if row["part"] != DEFECT]
    figure, axes = panels(["held-out normal views", "normal test views"])
    for axis, part in zip(axes, (HELD_OUT, GOOD), strict=True):
        _points(axis, [row for row in normal if row["part"] == part], "data", lines=False)
        level_line(axis, ALPHA)
        axis.set_ylim(0, 1.03 * float(np.nanmax([2 * ALPHA, *(row["high"] for row in normal)])))
    figures = {"real_images_false_calls": finish(figure, axes, f"called at {ALPHA:g}")}
    names = list(dict.fromkeys(row["data"] for row in rows))
    figure, axes = panels(names)
    for axis, name in zip(axes, names, strict=True):
        own = [row for row in rows if row["data"] == name and row["part"] == DEFECT]
        _points(axis, own, "contrast", lines=True)
        level_line(axis, ALPHA)
        axis.set_ylim(-0.03, 1.03)
        axis.set_xlabel("contrast, standard deviations", fontsize=9)
    figures["real_images_power"] = finish(figure, axes, f"called at {ALPHA:g}")
    return figures


def _points(axis: Any, rows: Sequence[Row], x: str, lines: bool) -> None:
    """Draw rates with their intervals, a colour for each method."""
    places = {value: k for k, value in enumerate(dict.fromkeys(row[x] for row in rows))}
    for k, method in enumerate(METHODS):
        own = [row for row in rows if row["method"] == method]
        shift = 0.12 * (k - (len(METHODS) - 1) / 2)  # keeps the error bars apart
        rates = np.array([row["rate"] for row in own])
        ends = np.array([[row["low"] for row in own], [row["high"] for row in own]])
        axis.errorbar(
            [places[row[x]] + shift for row in own],
            rates,
            np.abs(ends - rates),
            label=method,
            color=_COLOURS[method],
            marker=_MARKERS[method],
            linestyle="-" if lines else "none",
            **BARS,
        )
    axis.set_xticks(list(places.values()), [_tick(value) for value in places])


def _tick(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


PAPER = Settings(
    contrasts=(0.5, 1.0, 1.5, 2.0, 3.0, 4.0),
    test_blocks=34,
    size=32,
    patients=600,
    slices=3,
    brain_size=40,
    channels=(32, 64, 128, 256),
    steps=4000,
    noise="auto",
    control=200,
    lengths=True,
)
EXPERIMENT = Experiment(
    "Real images", {"quick": Settings(), "paper": PAPER}, measure, summary, draw
)
