"""Selective inference beside its baselines: the conditions to test, and their rejection rates."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from dal_jax import InputError, TestOptions

from ._experiment import Condition, Measured
from ._output import Row
from ._rates import rejections

_PART = "baselines"  # label that tells the two conditions of one setting apart


class Counts(NamedTuple):
    """How many images of one setting are tested."""

    images: int
    permutation_images: int  # the first of them, which the permutation baseline takes too
    permutations: int


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
        precision=0.5, permutations=counts.permutations, seed=condition.options.seed
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
        found = rejections(labels_of(one), one.records, levels)
        own = is_permutation(one)
        rows += [row for row in found if (row["method"] == "permutation") == own]
    return rows


def labels_of(measured: Measured) -> Row:
    """The labels of the setting that a condition of `compared` belongs to.

    Args:
        measured: the condition.

    Returns:
        Labels.
    """
    return {key: value for key, value in measured.condition.labels.items() if key != _PART}


def is_permutation(measured: Measured) -> bool:
    """Says whether a condition of `compared` is that of the permutation baseline.

    Args:
        measured: the condition.

    Returns:
        True for the one with fewer images.
    """
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
