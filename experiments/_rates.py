"""How often the methods reject, with standard errors, and how far p-values are from uniform."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiments._output import Row, pivot
from experiments._parts import parts_of

METHODS = {
    "selective": lambda record: record["p_value"],
    "over-conditioned": lambda record: record["over_conditioned_p"],
    "naive": lambda record: record["naive_p"],
    "bonferroni": lambda record: 10.0 ** record["bonferroni_log10_p"],
    "permutation": lambda record: record["permutation_p"],
    # The same region, tested by what the localizer did not see; of components the smallest
    # adjusted p, as in the record.
    "thinned": lambda record: min(
        (part.p for part in parts_of(record, "thinned")), default=float("nan")
    ),
}
TESTED = "OK"
EMPTY = "NO_REGION"


def p_values(records: Sequence[dict[str, Any]], method: str) -> np.ndarray:
    """The p-values of the images that were tested.

    Args:
        records: of images.
        method: one of `METHODS`.

    Returns:
        (m,) p-values; none if the method was not asked for.
    """
    p = [METHODS[method](record) for record in records if record["status"] == TESTED]
    values = np.array(p, np.float64)
    return values[~np.isnan(values)]


def counts(records: Sequence[dict[str, Any]]) -> Row:
    """How many images there were, and what became of them.

    Args:
        records: of images.

    Returns:
        images, no_region (nothing flagged, nothing tested), failed (any other status but OK).
    """
    states = [record["status"] for record in records]
    empty, fine = states.count(EMPTY), states.count(TESTED)
    return {"images": len(states), "no_region": empty, "failed": len(states) - empty - fine}


def rejections(
    labels: Row, records: Sequence[dict[str, Any]], levels: Sequence[float]
) -> list[Row]:
    """Rejection rates among the images that had a region, for each method and level.

    Args:
        labels: first columns of every row.
        records: of images.
        levels: significance levels, in (0, 1).

    Returns:
        Rows with `labels`, method, alpha, `counts`, tested, rejected, rate, se (binomial standard
        error at the observed rate), low and high (95% Clopper-Pearson interval) and ks_p
        (Kolmogorov-Smirnov test of uniformity, which says nothing where there is a signal).
        Methods that were not asked for have no row; where no image at all was tested, every method
        has, with NaN for the numbers.
    """
    rows = []
    nothing = all(record["status"] != TESTED for record in records)
    for method in METHODS:
        p = p_values(records, method)
        if len(p) or nothing:
            rows += [
                {**labels, "method": method, "alpha": alpha, **counts(records), **_rate(p, alpha)}
                for alpha in levels
            ]
    return rows


def _rate(p: np.ndarray, alpha: float) -> Row:
    """How often p-values reject, and how uniform they are."""
    rejected = int(np.sum(p <= alpha))
    rate = se = low = high = ks_p = float("nan")
    if len(p):
        rate = rejected / len(p)
        se = float(np.sqrt(rate * (1 - rate) / len(p)))
        low, high = map(float, stats.binomtest(rejected, len(p)).proportion_ci(0.95))
        ks_p = float(stats.kstest(p, "uniform").pvalue)
    numbers = {"rate": rate, "se": se, "low": low, "high": high, "ks_p": ks_p}
    return {"tested": len(p), "rejected": rejected, **numbers}


def rate_cell(row: Row) -> str:
    """A rate with its standard error, for a Markdown table.

    Args:
        row: of `rejections`.

    Returns:
        "0.051 (0.007)".
    """
    return f"{row['rate']:.3f} ({row['se']:.3f})"


def counts_cell(row: Row) -> str:
    """What became of the images, for a Markdown table.

    Args:
        row: with `counts`.

    Returns:
        "200, 13, 0": images, without a region, failed.
    """
    return f"{row['images']}, {row['no_region']}, {row['failed']}"


def null_rates(rows: Sequence[Row], index: Sequence[str]) -> list[str]:
    """Rates of null images at each level, and how uniform the p-values are, Markdown.

    Args:
        rows: of `rejections`.
        index: keys on the left.

    Returns:
        Titles and tables, a column for each method.
    """
    parts = []
    for alpha in dict.fromkeys(row["alpha"] for row in rows):
        own = [row for row in rows if row["alpha"] == alpha]
        parts.append(
            f"Rejected at {alpha:g}, among the null images with a region (standard error):\n"
        )
        parts.append(pivot(own, index, "method", rate_cell))
    own = [row for row in rows if row["alpha"] == rows[0]["alpha"]]
    parts.append("Images, without a region, failed; Kolmogorov-Smirnov p of uniformity:\n")
    parts.append(pivot(own, index, "method", lambda r: f"{counts_cell(r)}; {r['ks_p']:.2g}"))
    return parts


def middle_level(rows: Sequence[Row]) -> float:
    """The level in the middle, for figures that show one only.

    Args:
        rows: of `rejections`.

    Returns:
        Of an even number of levels the upper of the two.
    """
    levels = sorted({row["alpha"] for row in rows})
    return levels[len(levels) // 2]
