"""Selective inference beside its baselines: the conditions to test, and their rejection rates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

from dal_jax import InputError, TestOptions
from experiments._experiment import Condition, Measured
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
    """What is simulated; entries of `images` and so on belong to the sizes in order.

    Raises:
        InputError: lengths differ, or a value does not fit.
    """

    sizes: tuple[int, ...] = (8, 16, 32, 64)  # sides, pixels
    noises: tuple[str, ...] = ("iid:1", "ar1:0.5:1")
    images: tuple[int, ...] = (200, 100, 40, 12)  # of a size, a noise and, if any, a signal
    permutation_images: tuple[int, ...] = (12, 3, 0, 0)  # the first of them, 25 times dearer
    permutations: int = 1000
    levels: tuple[float, ...] = (0.05,)
    train_sizes: tuple[int, ...] = (8, 16, 16, 16)  # sides of the squares trained on
    train_steps: int = 2000
    threshold: float = 0.8
    engine: str = "adaptive"
    precision: float = TestOptions.precision
    over_conditioned: bool = True
    seed: int = 0
    # As `localizer_preset` takes them; the threshold is of "dal", others learn theirs.
    localizers: tuple[str, ...] = (DAL,)
    # Gammas of `dal_jax.TestOptions.randomization`; 0 is the test as published.
    randomizations: tuple[float, ...] = (0.0,)
    regions: tuple[str, ...] = ("all",)  # or "peak" and so on, see `dal_jax.TestOptions`
    references: tuple[int, ...] = (1,)  # of an image, independent, averaged

    def __post_init__(self) -> None:
        check_lengths(self, "sizes", "images", "permutation_images", "train_sizes")
        check_lengths(self, "noises")
        check_lengths(self, "levels")
        check_lengths(self, "localizers")
        for name, _ in OPTIONS.values():
            check_lengths(self, name)


class Counts(NamedTuple):
    """How many images of one setting are tested."""

    images: int
    permutation_images: int  # the first of them, which the permutation baseline takes too
    permutations: int


def comparisons(settings: ComparisonSettings, signals: Sequence[float] = ()) -> list[Condition]:
    """The conditions of all methods at every size, noise and signal.

    Args:
        settings: of the experiment.
        signals: heights of the square, a label of the conditions; without any, null images.

    Returns:
        Conditions of `compared`.
    """
    conditions = []
    for localizer in settings.localizers:
        for k, size in enumerate(settings.sizes):
            for noise in settings.noises:
                conditions += _signals(settings, signals, localizer, k, size, noise)
    return conditions


def _signals(
    settings: ComparisonSettings,
    signals: Sequence[float],
    localizer: str,
    k: int,
    size: int,
    noise: str,
) -> list[Condition]:
    """The conditions of one localizer, size and noise."""
    counts = Counts(settings.images[k], settings.permutation_images[k], settings.permutations)
    model = Model(
        settings.train_sizes[k],
        noise,
        steps=settings.train_steps,
        seed=settings.seed,
        localizer=localizer,
    )
    named = {} if settings.localizers == (DAL,) else {"localizer": localizer}
    found = []
    varied = {label: getattr(settings, name) for label, (name, _) in OPTIONS.items()}
    shown = [label for label, (_, usual) in OPTIONS.items() if varied[label] != (usual,)]
    first = {label: values[0] for label, values in varied.items()} | {"randomization": 0.0}
    for *values, signal in product(*varied.values(), signals or (0.0,)):
        option = dict(zip(varied, values, strict=True))
        labels = {**named, "size": size, "noise": noise, **{key: option[key] for key in shown}}
        condition = Condition(
            {**labels, "signal": signal} if signals else labels,
            model,
            Use(size, settings.threshold if localizer == DAL else None),
            Simulation(size, noise, signal, seed=settings.seed, references=option["references"]),
            settings.images[k],
            replace(
                test_options(settings),
                region=option["region"],
                randomization=option["randomization"],
            ),
        )
        # The permutation baseline flags on the image itself, whatever is compared: run it once.
        own = counts if option == first else counts._replace(permutation_images=0)
        found += compared(condition, own)
    return found


def index_of(rows: Sequence[Row], *names: str) -> tuple[str, ...]:
    """The columns that tell the settings of rows apart.

    Args:
        rows: of a table.
        *names: columns that all tables have.

    Returns:
        The names, after that of the localizer and before `OPTIONS`, where there are such columns.
    """
    before = ("localizer",) if "localizer" in rows[0] else ()
    return (*before, *names, *(name for name in OPTIONS if name in rows[0]))


def method_panels(rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[Row]]:
    """Sorts the rows of a table into the panels of a figure.

    Args:
        rows: of a table.
        names: columns that tell the panels apart, some of localizer, size, noise and `OPTIONS`;
            those that the table lacks do not count.

    Returns:
        Rows by the title of their panel, "8 x 8, noise iid:1, gamma 0.5" for instance.
    """
    found: dict[str, list[Row]] = {}
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
        found.setdefault(" ".join(", ".join(words).split()), []).append(row)
    return found


def compared(condition: Condition, counts: Counts) -> list[Condition]:
    """Makes of one setting the conditions that all methods together need.

    The permutation baseline costs some 25 tests: it has a run of its own, of fewer images. The
    rest of that run's tests is cut short, as nobody reads it.

    Args:
        condition: the setting; its number of images is not used.
        counts: of images.

    Returns:
        One or two conditions, each with its share of the images.
    """
    shuffled = TestOptions(
        precision=0.5,
        permutations=counts.permutations,
        seed=condition.options.seed,
        randomization=0.0,
    )
    parts = (
        ("window", counts.images, condition.options),
        ("permutation", counts.permutation_images, shuffled),
    )
    return [
        condition._replace(labels={**condition.labels, _PART: part}, images=images, options=options)
        for part, images, options in parts
        if images
    ]


def method_rows(measured: Sequence[Measured], levels: Sequence[float]) -> list[Row]:
    """Rejection rates of every method in every setting.

    Args:
        measured: conditions of `compared`, tested.
        levels: of significance.

    Returns:
        Rows of `rejections`, with the labels of the settings.
    """
    rows = []
    for one in measured:
        found = rejections(_labels_of(one), one.records, levels)
        own = _is_permutation(one)
        rows += [row for row in found if (row["method"] == "permutation") == own]
    return rows


def _labels_of(measured: Measured) -> Row:
    return {key: value for key, value in measured.condition.labels.items() if key != _PART}


def labelled(measured: Sequence[Measured]) -> list[tuple[Row, Measured]]:
    """The conditions that all methods but the permutation baseline are read from.

    Args:
        measured: conditions of `compared`, tested.

    Returns:
        Each with the labels of its setting.
    """
    return [(_labels_of(one), one) for one in measured if not _is_permutation(one)]


def _is_permutation(measured: Measured) -> bool:
    return measured.condition.labels[_PART] == "permutation"


def test_options(settings: Any) -> TestOptions:
    """The options of a selective test and its over-conditioned baseline.

    Args:
        settings: with `engine`, `precision` and `over_conditioned`.

    Returns:
        The options.
    """
    return TestOptions(
        engine=settings.engine,
        precision=settings.precision,
        first_window=settings.over_conditioned,
        randomization=0.0,  # as published
    )


test_options.__test__ = False  # type: ignore[attr-defined]


def check_lengths(settings: Any, name: str, *others: str) -> None:
    """Refuses settings whose lists do not belong together.

    Args:
        settings: a dataclass.
        name: the list that the others follow.
        others: lists with an entry for each of its entries.

    Raises:
        InputError: a length differs.
    """
    wanted = getattr(settings, name)
    if not wanted:
        raise InputError(f"{name} is empty, expected at least one entry")
    for other in others:
        found = getattr(settings, other)
        if len(found) != len(wanted):
            raise InputError(
                f"{other} has {len(found)} entries, expected {len(wanted)}, one for each of {name}"
            )
