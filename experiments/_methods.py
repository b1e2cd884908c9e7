"""Selective inference beside its baselines: the conditions to test, and their rejection rates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from dal_jax import TestOptions
from dal_jax.localizers import THRESHOLD
from experiments._experiment import Condition, ConditionResult, check_lengths
from experiments._models import DAL, Model, Use
from experiments._output import Row
from experiments._rates import rejections
from experiments._simulation import Simulation

# Labels that a table has where the setting of this name is not the usual value alone.
OPTIONS = {
    "randomization": ("randomizations", 0.0),
    "region": ("regions", "all"),
    "references": ("references", 1),
}
_PART = "baselines"  # label that tells the two conditions of one setting apart


@dataclass(frozen=True)
class ComparisonSettings:
    """Simulated images and tests; entries of `images` and so on belong to the sizes in order.

    Raises:
        InputError: Lengths differ, or a value does not fit.
    """

    sizes: tuple[int, ...] = (8, 16, 32, 64)  # sides, pixels
    noises: tuple[str, ...] = ("iid:1", "ar1:0.5:1")
    images: tuple[int, ...] = (200, 100, 40, 12)  # of a size, a noise and, if any, a signal
    permutation_images: tuple[int, ...] = (12, 3, 0, 0)  # the first of them, 25 times dearer
    permutations: int = 1000
    levels: tuple[float, ...] = (0.05,)
    train_sizes: tuple[int, ...] = (8, 16, 16, 16)  # sides of the squares trained on
    train_steps: int = 2000
    threshold: float = THRESHOLD
    engine: str = "adaptive"
    precision: float = TestOptions.precision
    over_conditioned: bool = True
    seed: int = 0
    # As `localizer_preset` takes them; the threshold is that of "dal", others learn theirs.
    localizers: tuple[str, ...] = (DAL,)
    # Gammas of `dal_jax.TestOptions.randomization`; 0 is the test as published.
    randomizations: tuple[float, ...] = (0.0,)
    regions: tuple[str, ...] = ("all",)  # or "peak" and so on, see `dal_jax.TestOptions`
    references: tuple[int, ...] = (1,)  # of an image, independent, averaged

    def __post_init__(self) -> None:
        check_lengths(self, "sizes", "images", "permutation_images", "train_sizes")
        for name in ("noises", "levels", "localizers", *(name for name, _ in OPTIONS.values())):
            check_lengths(self, name)


def comparisons(settings: ComparisonSettings, signals: Sequence[float] = ()) -> list[Condition]:
    """Return the conditions of all methods at every size, noise and signal.

    The permutation baseline costs some 25 tests: it has conditions of its own, of fewer images.

    Args:
        settings: Settings of the experiment.
        signals: Heights of the square, a label of the conditions; without any, null images.

    Returns:
        One or two conditions for each setting.
    """
    places = product(settings.localizers, range(len(settings.sizes)), settings.noises)
    return [condition for place in places for condition in _signals(settings, signals, *place)]


def _signals(
    settings: ComparisonSettings, signals: Sequence[float], localizer: str, k: int, noise: str
) -> list[Condition]:
    """Return the conditions of one localizer, size and noise."""
    size = settings.sizes[k]
    model = Model(
        settings.train_sizes[k],
        noise,
        steps=settings.train_steps,
        seed=settings.seed,
        localizer=localizer,
    )
    use = Use(size, settings.threshold if localizer == DAL else None)
    named = {} if settings.localizers == (DAL,) else {"localizer": localizer}
    varied = {label: getattr(settings, name) for label, (name, _) in OPTIONS.items()}
    shown = [label for label, (_, usual) in OPTIONS.items() if varied[label] != (usual,)]
    first = {label: values[0] for label, values in varied.items()} | {"randomization": 0.0}
    conditions = []
    for *values, signal in product(*varied.values(), signals or (0.0,)):
        option = dict(zip(varied, values, strict=True))
        labels = {**named, "size": size, "noise": noise, **{key: option[key] for key in shown}}
        labels |= {"signal": signal} if signals else {}
        simulation = Simulation(
            size, noise, signal, seed=settings.seed, references=option["references"]
        )
        options = replace(
            published_options(settings),
            region=option["region"],
            randomization=option["randomization"],
        )
        parts = [("window", settings.images[k], options)]
        # The permutation baseline flags on the image itself, whatever is compared: run it once.
        if option == first:
            parts.append(
                ("permutation", settings.permutation_images[k], _permutation_options(settings))
            )
        conditions += [
            Condition({**labels, _PART: part}, model, use, simulation, images, chosen)
            for part, images, chosen in parts
            if images
        ]
    return conditions


def _permutation_options(settings: ComparisonSettings) -> TestOptions:
    """Return the options of the permutation baseline; its search, which nobody reads, is short."""
    return TestOptions(precision=0.5, permutations=settings.permutations, randomization=0.0)


def index_of(rows: Sequence[Row], *names: str) -> tuple[str, ...]:
    """Return the columns that tell the settings of rows apart.

    Args:
        rows: Rows of a table.
        *names: Columns that all tables have.

    Returns:
        The names, after that of the localizer and before `OPTIONS`, where there are such columns.
    """
    before = ("localizer",) if "localizer" in rows[0] else ()
    return (*before, *names, *(name for name in OPTIONS if name in rows[0]))


def method_panels(rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[Row]]:
    """Sort the rows of a table into the panels of a figure.

    Args:
        rows: Rows of a table.
        names: Columns that tell the panels apart, some of localizer, size, noise and `OPTIONS`;
            those that the table lacks do not count.

    Returns:
        Rows by the title of their panel, "8 x 8, noise iid:1, gamma 0.5" for instance.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        own = {name: row[name] for name in names if name in row}
        size = f"{own['size']} x {own['size']}," if "size" in own else ""
        words = [f"{own.get('localizer', '')} {size} noise {row['noise']}"]
        if "randomization" in own:
            words.append(f"gamma {own['randomization']:g}")
        if "region" in own:
            words.append(own["region"])
        if "references" in own:
            words.append(f"{own['references']} references")
        groups.setdefault(" ".join(", ".join(words).split()), []).append(row)
    return groups


def method_rows(results: Sequence[ConditionResult], levels: Sequence[float]) -> list[Row]:
    """Return the rejection rates of every method in every setting.

    Args:
        results: Results of the conditions of `comparisons`.
        levels: Significance levels, in (0, 1).

    Returns:
        Rows of `rejections`, with the labels of the settings.
    """
    return [
        row
        for one in results
        for row in rejections(_labels_of(one), one.records, levels)
        if (row["method"] == "permutation") == _is_permutation(one)
    ]


def main_results(results: Sequence[ConditionResult]) -> list[tuple[Row, ConditionResult]]:
    """Select the results that all methods but the permutation baseline are read from.

    Args:
        results: Results of the conditions of `comparisons`.

    Returns:
        Each with the labels of its setting.
    """
    return [(_labels_of(one), one) for one in results if not _is_permutation(one)]


def _labels_of(result: ConditionResult) -> Row:
    return {key: value for key, value in result.condition.labels.items() if key != _PART}


def _is_permutation(result: ConditionResult) -> bool:
    return result.condition.labels[_PART] == "permutation"


def published_options(settings: Any) -> TestOptions:
    """Return the options of the test as published and its over-conditioned baseline.

    Args:
        settings: Settings with `engine`, `precision` and `over_conditioned`.

    Returns:
        The options.
    """
    return TestOptions(
        engine=settings.engine,
        precision=settings.precision,
        first_window=settings.over_conditioned,
        randomization=0.0,
    )
