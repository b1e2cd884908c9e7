"""Results that reports read, the words for decisions and p-values, and the table of results."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from dal_jax._errors import InputError
from dal_jax.inference import SelectiveP, decision

SIGNIFICANT = "significant"
NOT_SIGNIFICANT = "not significant"
UNDECIDED = "undecided"
NO_REGION = "no region"
NOT_VALID = "no valid result"
NOT_TESTED = "not tested"


class Result(Protocol):
    """The fields of `dal_jax.TestResult` that reports read.

    Example:
        >>> import numpy as np
        >>> found: Result = Maps(np.eye(4) > 0, np.eye(4), np.zeros((4, 4, 1)))
        >>> math.isnan(found.p_value), found.status
        (True, 'NOT_TESTED')
    """

    @property
    def p_value(self) -> float:
        """Selective p-value."""
        ...

    @property
    def p_low(self) -> float:
        """Lower bound on the selective p-value."""
        ...

    @property
    def p_high(self) -> float:
        """Upper bound on the selective p-value."""
        ...

    @property
    def naive_p(self) -> float:
        """Naive p-value, which ignores the selection."""
        ...

    @property
    def estimate(self) -> float:
        """Mean difference inside the region, given that it was selected."""
        ...

    @property
    def ci_low(self) -> float:
        """Lower end of the confidence interval of the mean difference."""
        ...

    @property
    def ci_high(self) -> float:
        """Upper end of the confidence interval of the mean difference."""
        ...

    @property
    def p_holm(self) -> float:
        """P-value of a component, adjusted for the number of components; NaN otherwise."""
        ...

    @property
    def p_holm_low(self) -> float:
        """Lower bound on the adjusted p-value."""
        ...

    @property
    def p_holm_high(self) -> float:
        """Upper bound on the adjusted p-value."""
        ...

    @property
    def components(self) -> Any:
        """Results of the connected components if each was tested; empty otherwise."""
        ...

    @property
    def region(self) -> Any:
        """Flagged pixels, bool (H, W)."""
        ...

    @property
    def score(self) -> Any:
        """Score map (H, W)."""
        ...

    @property
    def reconstruction(self) -> Any:
        """Reconstruction (H, W, C)."""
        ...

    @property
    def status(self) -> Any:
        """Status code; OK for a valid result."""
        ...


class Maps(NamedTuple):
    """Maps of an image that was localized but not tested: a `Result` without p-values.

    Example:
        >>> import numpy as np
        >>> maps = Maps(np.eye(4) > 0, np.eye(4), np.zeros((4, 4, 1)))
        >>> outcome(maps), int(maps.region.sum())
        ('not tested', 4)
    """

    region: Any  # bool (H, W)
    score: Any  # (H, W)
    reconstruction: Any  # (H, W, C)
    p_value: float = math.nan  # selective p-value, in [0, 1]; NaN if not tested
    p_low: float = math.nan  # bounds on the selective p-value
    p_high: float = math.nan
    naive_p: float = math.nan  # p-value that ignores the selection
    status: str = "NOT_TESTED"  # or the name of a `Status`, for a tested image
    estimate: float = math.nan  # estimate of the mean difference, with its confidence interval
    ci_low: float = math.nan
    ci_high: float = math.nan
    p_holm: float = math.nan
    p_holm_low: float = math.nan
    p_holm_high: float = math.nan
    components: tuple[Any, ...] = ()


def parts(result: Result) -> list[Result]:
    """Return the results for the tested regions of an image: its components, or its one region.

    Args:
        result: Result of the image.

    Returns:
        One or more results.
    """
    return list(result.components) or [result]


def format_difference(estimate: float, low: float, high: float) -> str:
    """Format an estimated mean difference and its confidence interval.

    Args:
        estimate: Estimate, in any unit.
        low: Lower end of the interval, in the same unit.
        high: Upper end of the interval, in the same unit.

    Returns:
        Text such as "0.52 [0.11, 0.93]"; "-" if the estimate is NaN.

    Example:
        >>> format_difference(0.52, 0.111, 0.929)
        '0.52 [0.11, 0.93]'
    """
    return "-" if math.isnan(estimate) else f"{estimate:.2g} [{low:.2g}, {high:.2g}]"


def outcome(result: Result, alpha: float = 0.05) -> str:
    """Return the decision on a result at the level `alpha`, in words.

    The decision is "significant" if p_high <= alpha, "not significant" if p_low > alpha,
    "undecided" if the bounds lie on both sides, "no region" if nothing was flagged, "not tested"
    for `Maps`, and "no valid result" otherwise. For a component the adjusted p-value decides.

    Args:
        result: Result of `dal_test`, or `Maps`.
        alpha: Significance level in (0, 1).

    Returns:
        One of the six phrases.

    Example:
        >>> found = Maps(None, None, None, p_value=0.03, p_low=0.02, p_high=0.06, status="OK")
        >>> outcome(found), outcome(found, alpha=0.1)
        ('undecided', 'significant')
    """
    status = str(getattr(result.status, "value", result.status))
    if status in ("NO_REGION", "NOT_TESTED"):
        return NO_REGION if status == "NO_REGION" else NOT_TESTED
    if math.isnan(result.p_low) or math.isnan(result.p_high):
        return NOT_VALID
    words = {"reject": SIGNIFICANT, "accept": NOT_SIGNIFICANT, "undecided": UNDECIDED}
    bounds = SelectiveP(result.p_value, result.p_low, result.p_high)
    if not math.isnan(result.p_holm):
        bounds = SelectiveP(result.p_holm, result.p_holm_low, result.p_holm_high)
    return words[decision(bounds, alpha)]


def format_p(p: float) -> str:
    """Format a p-value: with three decimals, or with a power of ten if it is below 0.001.

    Args:
        p: P-value in [0, 1], or NaN.

    Returns:
        Text such as "0.042", "3e-05" or "<1e-300"; "-" for NaN.

    Example:
        >>> format_p(0.0416), format_p(0.00003)
        ('0.042', '3e-05')
    """
    if math.isnan(p):
        return "-"
    if p < 1e-300:
        return "<1e-300"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def table(
    results: Sequence[Result],
    titles: Sequence[str],
    *,
    truths: Sequence[str] | None = None,
    alpha: float = 0.05,
) -> str:
    """Return a table with one line per result: region size, p-values, bounds and decision.

    The p-values are the naive and the selective one. If any result has an estimate of the mean
    difference, the table has a column for it, with its interval. An image whose components were
    tested has one line per component, with Holm's adjusted p-value.

    Args:
        results: Results of `dal_test`, one per image.
        titles: Name of each image.
        truths: True kind of each image, shown in a column of its own; None for no such column.
        alpha: Significance level in (0, 1).

    Returns:
        The table, with aligned columns; lines are joined by newlines.

    Raises:
        InputError: The lengths of the arguments differ.

    Example:
        >>> from dal_jax.report import Maps
        >>> tested = Maps(np.eye(4) > 0, None, None, 0.03, 0.02, 0.04, 0.001, "OK")
        >>> print(table([tested], ["tile 1"]))
        image   region  naive p  selective p  bounds          decision
        ------  ------  -------  -----------  --------------  -----------
        tile 1  4 px    0.001    0.030        [0.020, 0.040]  significant
    """
    if len(titles) != len(results) or (truths is not None and len(truths) != len(results)):
        given = f"{len(titles)} and {'no' if truths is None else len(truths)}"
        raise InputError(
            f"titles, truths: got {given}, expected {len(results)}, one for each result"
        )
    columns = ["image", "truth", "region", "naive p", "selective p", "bounds"]
    columns += ["Holm p", "difference [interval]", "decision"]
    rows = [columns]
    for k, (result, title) in enumerate(zip(results, titles, strict=True)):
        for number, part in enumerate(parts(result), 1):
            name = f"{title} #{number}" if result.components else title
            rows.append([name, "" if truths is None else truths[k], *_cells(part, alpha)])
    tested = [part for result in results for part in parts(result)]
    left_out = {
        "truth": truths is None,
        "Holm p": all(math.isnan(part.p_holm) for part in tested),
        "difference [interval]": all(math.isnan(part.estimate) for part in tested),
    }
    kept = [k for k, column in enumerate(columns) if not left_out.get(column)]
    rows = [[row[k] for k in kept] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(_line(row, widths) for row in rows)


def _cells(result: Result, alpha: float) -> list[str]:
    bounds = f"[{format_p(result.p_low)}, {format_p(result.p_high)}]"
    return [
        f"{int(np.sum(result.region))} px",
        format_p(result.naive_p),
        format_p(result.p_value),
        "-" if np.isnan(result.p_low) else bounds,
        format_p(result.p_holm),
        format_difference(result.estimate, result.ci_low, result.ci_high),
        outcome(result, alpha),
    ]


def _line(row: list[str], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
