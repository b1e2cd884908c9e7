"""Rejection rates of the experiments on records made by hand, with scipy as the judge."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from experiments._rates import METHODS, counts, p_values, rate_cell, rejections

NAN = math.nan


def _record(p: float, status: str = "OK", **changed: float) -> dict[str, Any]:
    """A record whose methods' p-values are all p, but for those that are named."""
    fields = {
        "p_value": p,
        "over_conditioned_p": p,
        "naive_p": p,
        "bonferroni_log10_p": math.log10(p) if p == p else p,
        "permutation_p": p,
        **_halves(p),
    }
    return {"status": status, **fields, **changed}


def _halves(p: float) -> dict[str, Any]:
    """A region with one reference, gamma 1 and nothing added, where thinning's p is p."""
    statistic = math.sqrt(1.5) * stats.norm.isf(p / 2)
    halves = {"statistic": statistic, "sd": 1.0, "added": 0.0, "added_sd": math.sqrt(2)}
    return {"region": [[0, 1]], "region_shape": [2, 2], "randomization": 1.0, **halves}


RECORDS = [
    *(_record(p) for p in (0.004, 0.01, 0.03, 0.05, 0.0500001, 0.2, 0.6, 1.0)),
    *(_record(NAN, "NO_REGION") for _ in range(3)),
    _record(NAN, "NON_FINITE"),
    _record(0.001, "NOT_CONVERGED"),
]


def _row(method: str, alpha: float) -> dict[str, Any]:
    rows = rejections({"size": 8}, RECORDS, (0.01, 0.05))
    return next(row for row in rows if row["method"] == method and row["alpha"] == alpha)


def test_counts_of_every_image():
    assert counts(RECORDS) == {"images": 13, "no_region": 3, "failed": 2}
    assert counts([]) == {"images": 0, "no_region": 0, "failed": 0}


@pytest.mark.parametrize("method", METHODS)
def test_only_tested_images_have_p_values(method):
    expected = [0.004, 0.01, 0.03, 0.05, 0.0500001, 0.2, 0.6, 1.0]
    # Bonferroni's comes through a logarithm, thinning's through a quantile: a few roundings.
    np.testing.assert_allclose(p_values(RECORDS, method), expected, rtol=1e-14)


@pytest.mark.parametrize(("alpha", "rejected"), [(0.01, 2), (0.05, 4)])
def test_a_rate_is_that_of_scipy(alpha, rejected):
    row = _row("selective", alpha)
    assert row["size"] == 8
    assert (row["tested"], row["rejected"], row["rate"]) == (8, rejected, rejected / 8)
    assert (row["images"], row["no_region"], row["failed"]) == (13, 3, 2)
    # The 95% interval of Clopper and Pearson: quantiles of beta distributions.
    low = stats.beta.ppf(0.025, rejected, 8 - rejected + 1)
    high = stats.beta.ppf(0.975, rejected + 1, 8 - rejected)
    # The quantiles are found by another iteration, which stops at 1e-12 or so.
    np.testing.assert_allclose([row["low"], row["high"]], [low, high], rtol=1e-9)
    np.testing.assert_allclose(row["se"], stats.binom(8, rejected / 8).std() / 8, rtol=1e-14)
    p = p_values(RECORDS, "selective")
    judge: Any = stats.ks_1samp(p, stats.uniform.cdf)
    assert row["ks_p"] == judge.pvalue


def test_methods_not_asked_for_have_no_row():
    without: Any = {"over_conditioned_p": NAN, "permutation_p": NAN, "randomization": 0.0}
    records = [_record(0.5, **without) for _ in range(4)]
    methods = {row["method"] for row in rejections({}, records, (0.05,))}
    assert methods == {"selective", "naive", "bonferroni"}


def test_bonferroni_of_huge_families_does_not_overflow():
    # 2^4096 regions: the corrected p-value is 1; one far in the tail is 0.
    records = [_record(0.5, bonferroni_log10_p=0.0), _record(0.5, bonferroni_log10_p=-400.0)]
    np.testing.assert_array_equal(p_values(records, "bonferroni"), [1.0, 0.0])


def test_the_same_columns_in_every_row():
    rows = rejections({"size": 8}, RECORDS, (0.01, 0.05, 0.1))
    assert len(rows) == 3 * len(METHODS)
    assert len({tuple(row) for row in rows}) == 1


def test_a_cell_tells_rate_and_error():
    assert rate_cell({"rate": 0.0512, "se": 0.00731}) == "0.051 (0.007)"


@pytest.mark.parametrize("records", [[_record(NAN, "NO_REGION"), _record(NAN, "NON_FINITE")], []])
def test_where_nothing_was_tested_the_images_are_counted(records):
    rows = rejections({}, records, (0.05,))
    assert [row["method"] for row in rows] == list(METHODS)
    for row in rows:
        assert {key: row[key] for key in ("images", "no_region", "failed")} == counts(records)
        assert row["tested"] == row["rejected"] == 0
        assert np.isnan([row[key] for key in ("rate", "se", "low", "high", "ks_p")]).all()
