"""Reverse process: effect of its steps, its share of fresh noise and its start on power and cost.

dal-jax experiment steps --out DIR
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dal_jax import InputError
from dal_jax.diffusion import ReverseConfig, Schedule
from dal_jax.localizers import THRESHOLD
from experiments._experiment import Condition, ConditionResult, Context, Experiment, check_lengths
from experiments._methods import published_options
from experiments._models import Model, Use, localizer_of
from experiments._output import BARS, Row, Tables, finish, level_line, panels, pivot, row_table
from experiments._rates import counts_cell, middle_level, rate_cell, rejections
from experiments._records import regions_row, time_row, work_row
from experiments._simulation import Simulation

DEFAULT = "default"
VARIED = {"steps": "steps", "eta": "etas", "start": "starts"}  # process field: settings field
APART = 1000  # between the seeds of tested images and of those that set the thresholds
PALETTE = ("#55a868", "#c44e52", "#4c72b0", "#8172b3", "#dd8452")  # of the signals


@dataclass(frozen=True)
class Settings:
    """Reverse processes: the default one, and those that differ from it in one number.

    Raises:
        InputError: There is no such process, or a value does not fit.
    """

    size: int = 16  # side, pixels
    steps: tuple[int, ...] = (1, 2, 5, 10)
    etas: tuple[float, ...] = (0.0, 0.5, 1.0)
    starts: tuple[int, ...] = (115, 230, 460, 690)  # first levels of the reverse process
    default_steps: int = 5
    default_eta: float = 1.0
    default_start: int = 460
    # Of the default process; the others flag the same share of null pixels.
    threshold: float = THRESHOLD
    calibration_images: int = 64  # null images, not tested, that set the thresholds
    null_images: int = 100  # tested
    signals: tuple[float, ...] = (2.0, 3.0)  # heights of the square, standard deviations
    images: int = 50  # of a signal
    timed_images: int = 32  # null images whose tests are timed
    levels: tuple[float, ...] = (0.01, 0.05, 0.10)
    noise: str = "iid:1"
    channels: tuple[int, ...] = (32, 64, 128, 256)
    train_size: int = 16  # side of the squares trained on
    train_steps: int = 2000
    engine: str = "adaptive"
    precision: float = 1e-3
    over_conditioned: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (*VARIED.values(), "levels"):
            check_lengths(self, name)
        for name in ("calibration_images", "null_images", "images", "timed_images"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if 0.0 in self.signals:
            raise InputError("signals holds 0.0, expected other heights: null_images are tested")
        for reverse in processes(self).values():
            reverse.coefficients(Schedule())


def processes(settings: Settings) -> dict[tuple[str, str], ReverseConfig]:
    """Return the reverse processes, each once.

    Args:
        settings: Settings with lists of numbers and the default of each.

    Returns:
        Processes by name and value of the varied number; first the default one, by ("default", "").

    Raises:
        InputError: There is no such process.
    """
    default = ReverseConfig(settings.default_start, settings.default_steps, settings.default_eta)
    varied = {(DEFAULT, ""): default}
    for name, plural in VARIED.items():
        for value in getattr(settings, plural):
            if value != getattr(default, name):
                varied[name, str(value)] = replace(default, **{name: value})
    return varied


def measure(settings: Settings, context: Context) -> Tables:
    """Set the thresholds, then test null images and images with a square by every process."""
    thresholds = _thresholds(settings, context)
    results = context.tests(list(_conditions(settings, thresholds)))
    null = [one for one in results if not one.condition.simulation.signal]
    return {
        "steps": [
            row
            for one in results
            for row in rejections(_facts(one.condition), one.records, settings.levels)
        ],
        "thresholds": thresholds,
        "regions": [{**_facts(one.condition), **regions_row(one)} for one in results],
        "work": [_work(one) for one in results],
        "steps_times": [_name(one, time_row(one, context, settings.timed_images)) for one in null],
        "runs": [one.run for one in results],
    }


def _thresholds(settings: Settings, context: Context) -> list[Row]:
    """Return a threshold for every process, from null images that are not tested."""
    model = _model(settings)
    context.train([model])
    simulation = Simulation(settings.size, settings.noise, seed=settings.seed + APART)
    rows, count = [], 0
    for (varied, _), reverse in processes(settings).items():
        use = Use(settings.size, settings.threshold, reverse)
        localizer = localizer_of(model, use, context.models)
        scores = []
        for number in range(settings.calibration_images):
            case = simulation.case(number, np.shape(localizer.draws))
            scores.append(localizer.with_draws(case.draws).score(case.image))
        scores = np.ravel(scores)
        threshold = settings.threshold
        if varied == DEFAULT:
            count = int((scores > threshold).sum())
        else:
            threshold = threshold_for(scores, count)
        rows.append(
            {
                **_numbers(varied, reverse),
                "levels": " ".join(map(str, reverse.levels)),
                "threshold": threshold,
                "pixels": scores.size,
                "flagged": int((scores > threshold).sum()),
                "flagged_share": float((scores > threshold).mean()),
            }
        )
    return rows


def threshold_for(scores: np.ndarray, count: int) -> float:
    """Return the threshold above which a given number of scores lie.

    Args:
        scores: Scores (n,), 0 or more.
        count: Number of scores above it, 1 to n - 1.

    Returns:
        The middle between the two scores that it divides, to six decimals: the same on machines
        that round differently.

    Raises:
        InputError: Nothing or everything would lie above it.

    Example:
        >>> threshold_for(np.array([0.1, 0.4, 0.2, 0.3]), 1)
        0.35
    """
    if not 0 < count < scores.size:
        raise InputError(
            f"threshold flags {count} of {scores.size} calibration pixels with the default "
            "process, expected one that flags some and not all"
        )
    ordered = np.sort(scores)[::-1]
    return round(float(ordered[count - 1] + ordered[count]) / 2, 6)


def _model(settings: Settings) -> Model:
    return Model(
        settings.train_size,
        settings.noise,
        channels=settings.channels,
        steps=settings.train_steps,
        seed=settings.seed,
    )


def _conditions(settings: Settings, thresholds: Sequence[Row]) -> Iterator[Condition]:
    every = processes(settings).items()
    for ((varied, value), reverse), row in zip(every, thresholds, strict=True):
        for signal in (0.0, *settings.signals):
            yield Condition(
                {"varied": varied, "value": value, "signal": signal},
                _model(settings),
                Use(settings.size, row["threshold"], reverse),
                Simulation(settings.size, settings.noise, signal, seed=settings.seed),
                images=settings.images if signal else settings.null_images,
                options=published_options(settings),
            )


def _numbers(varied: str, reverse: ReverseConfig) -> Row:
    return {
        "varied": varied,
        "steps": reverse.steps,
        "eta": float(reverse.eta),
        "start": reverse.start,
    }


def _facts(condition: Condition) -> Row:
    """Return the first columns of the tables."""
    numbers = _numbers(condition.labels["varied"], condition.use.reverse)
    return {**numbers, "signal": condition.simulation.signal}


def _name(result: ConditionResult, row: Row) -> Row:
    """Return a row with those columns in place of the labels."""
    labels = result.condition.labels
    rest = {key: value for key, value in row.items() if key not in labels}
    return {**_facts(result.condition), **rest}


def _work(result: ConditionResult) -> Row:
    """Return evaluations of the score, and passes through the network: one a step in each."""
    condition = result.condition
    row, steps = work_row(condition.labels, result), condition.use.reverse.steps
    passes = {key: steps * row[f"evaluations_{key}"] for key in ("median", "mean", "se")}
    return _name(result, {**row, **{f"passes_{key}": value for key, value in passes.items()}})


def summary(tables: Tables) -> str:
    """Return rates at 0.05, or the level in the middle, and cost; Markdown."""
    rows = tables["steps"]
    alpha = middle_level(rows)
    own = [row for row in rows if row["alpha"] == alpha]
    selective = [row for row in own if row["method"] == "selective"]
    index = ("varied", "steps", "eta", "start")
    return "\n".join(
        [
            f"Selective test, rejected at {alpha:g}, among the images with a region (standard "
            "error), by the height of the square:\n",
            pivot(selective, index, "signal", rate_cell),
            "Null images, by method:\n",
            pivot([row for row in own if not row["signal"]], index, "method", rate_cell),
            "Images, without a region, failed:\n",
            pivot(selective, index, "signal", counts_cell),
            "Thresholds, and the share of the calibration pixels above them:\n",
            row_table(
                tables["thresholds"],
                (*index, "levels"),
                {"threshold; share": lambda r: f"{r['threshold']:.4f}; {r['flagged_share']:.4f}"},
            ),
            "Flagged of all pixels; of the square (standard error):\n",
            pivot(tables["regions"], index, "signal", _region_cell),
            "Evaluations of the score a test, mean (standard error); passes through the network:\n",
            pivot(tables["work"], index, "signal", _work_cell),
            "Seconds per null image with a region:\n",
            pivot(tables["steps_times"], index, "signal", lambda r: f"{r['seconds']:.3g}"),
        ]
    )


def _region_cell(row: Row) -> str:
    cell = f"{row['flagged_share']:.4f} ({row['flagged_se']:.4f})"
    return (
        f"{cell}; {row['covered_share']:.3f} ({row['covered_se']:.3f})" if row["signal"] else cell
    )


def _work_cell(row: Row) -> str:
    return f"{row['evaluations_mean']:.1f} ({row['evaluations_se']:.1f}); {row['passes_mean']:.0f}"


def draw(tables: Tables) -> dict[str, Any]:
    """Draw rejection rates against each number that is varied, a panel for each."""
    rows = [row for row in tables["steps"] if row["method"] == "selective"]
    alpha = middle_level(rows)
    rows = [row for row in rows if row["alpha"] == alpha]
    titles = {"steps": "reverse steps", "eta": "eta, share of fresh noise", "start": "start level"}
    figure, axes = panels(list(titles.values()))
    for axis, name in zip(axes, titles, strict=True):
        own = sorted((r for r in rows if r["varied"] in (DEFAULT, name)), key=lambda r: r[name])
        for colour, signal in zip(PALETTE, sorted({r["signal"] for r in rows}), strict=False):
            line = [row for row in own if row["signal"] == signal]
            axis.errorbar(
                range(len(line)),
                [row["rate"] for row in line],
                [row["se"] for row in line],
                label=f"signal {signal:g}" if signal else "null",
                color=colour,
                marker="o" if signal else "s",
                **BARS,
            )
        values = list(dict.fromkeys(row[name] for row in own))
        axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        level_line(axis, alpha)
        axis.set_ylim(-0.03, 1.03)
        axis.set_xlabel(name, fontsize=9)
    return {"steps": finish(figure, axes, f"rejected at {alpha:g}")}


STANDARD = Settings(null_images=200, images=100)
PAPER = Settings(
    calibration_images=1000, null_images=1000, signals=(1.0, 2.0, 3.0, 4.0), images=1000
)
EXPERIMENT = Experiment(
    "Steps, fresh noise and start of the reverse process",
    {"quick": Settings(), "standard": STANDARD, "paper": PAPER},
    measure,
    summary,
    draw,
)
