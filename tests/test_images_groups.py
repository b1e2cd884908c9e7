"""Groups: what is one object, splits that never cut one, and errors that count them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from dal_jax import InputError
from dal_jax.images import cluster_interval, cluster_standard_error, group_of, split_groups


def test_forms_of_groups(tmp_path: Path) -> None:
    names = ["a/e1_num_10.png", "a/e2_num_9.png", "b/e1_num_300.png", "a/e3_num_31.png"]
    assert group_of(names) == names
    assert group_of(names, r"regex:(e\d)") == ["e1", "e2", "e1", "e3"]
    assert group_of(names, "gap:20") == ["from9", "from9", "from300", "from31"]
    assert group_of(names, "gap:25") == ["from9", "from9", "from300", "from9"]
    # The last number of all: of a row or slice, of a name without an ending.
    assert group_of(["s2.npy#1", "s2.npy#2", "s2.npy#9"], "gap:3") == ["from1", "from1", "from9"]
    assert group_of(["1.2.10", "1.2.90", "7.nii.gz"], "gap:20") == ["from7", "from90", "from7"]
    table = tmp_path / "a:b.csv"
    rows = "\n".join(f'"{name}",{k // 2}' for k, name in enumerate(names))
    table.write_text(f"name,tile\n{rows}\n", encoding="utf-8")
    assert group_of(names, f"csv:{table}:tile") == ["0", "0", "1", "1"]


def test_runs_are_in_natural_order_and_within_a_folder() -> None:
    names = ["x/10.png", "x/9.png", "x/8.png", "x/11.png", "y/1.png"]
    found = group_of(names, "runs:2")
    assert found == ["x/run1", "x/run0", "x/run0", "x/run1", "y/run0"]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("tile", "expected 'regex:PATTERN'"),
        ("regex:", "expected 'regex:PATTERN'"),
        ("regex:(", "not a pattern"),
        ("regex:a", "0 capture groups"),
        ("regex:(a)(b)", "2 capture groups"),
        ("regex:(z)", "no match in the name 'a/1.png'"),
        ("runs:0", "whole number"),
        ("gap:x", "whole number"),
        ("csv:absent.csv:tile", "cannot read"),
        ("csv:tile", "csv:FILE:COLUMN"),
    ],
)
def test_groups_refusals(groups: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        group_of(["a/1.png", "b.png"], groups)
    assert "\n" not in str(caught.value)


def test_table_and_gap_refusals(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("name,tile\na.png,1\nb.png,\n")
    with pytest.raises(InputError, match="expected 'name' and 'object'"):
        group_of(["a.png"], f"csv:{tmp_path / 't.csv'}:object")
    with pytest.raises(InputError, match=r"no 'tile' for the name 'b\.png'"):
        group_of(["a.png", "b.png"], f"csv:{tmp_path / 't.csv'}:tile")
    (tmp_path / "t.csv").write_text("name,tile\na.png,1\na.png,1\nb.png,2\na.png,2\n")
    with pytest.raises(InputError, match=r"two 'tile' for the name 'a\.png'"):
        group_of(["b.png"], f"csv:{tmp_path / 't.csv'}:tile")
    with pytest.raises(InputError, match=r"no number in the name 'c\.png'"):
        group_of(["c.png"], "gap:3")


@given(
    sizes=st.lists(st.integers(1, 9), min_size=3, max_size=25),
    shares=st.lists(st.floats(0.01, 1), min_size=1, max_size=3),
    seed=st.integers(0, 5),
)
def test_no_group_is_cut(sizes: list[int], shares: list[float], seed: int) -> None:
    groups = [f"g{k}" for k, size in enumerate(sizes) for _ in range(size)]
    parts = split_groups(groups, shares, seed)
    assert len(parts) == len(shares) and all(len(part) for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    held = [{groups[i] for i in part} for part in parts]
    assert sum(len(h) for h in held) == len(sizes)
    again = split_groups(groups, shares, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_split_shares_and_refusals() -> None:
    groups = [f"g{k // 4}" for k in range(400)]
    parts = split_groups(groups, [0.6, 0.3, 0.1], seed=1)
    # A part is off by less than one group of 4.
    np.testing.assert_allclose([len(p) for p in parts], [240, 120, 40], atol=4)
    assert not np.array_equal(parts[0], split_groups(groups, [0.6, 0.3, 0.1], seed=2)[0])
    with pytest.raises(InputError, match="1 of them, expected 2"):
        split_groups(["a", "a"], [1, 1])
    for shares in ([], [0.5, 0.0], [1.0, float("nan")]):
        with pytest.raises(InputError, match="shares"):
            split_groups(groups, shares)


def test_groups_of_one_give_the_usual_error() -> None:
    values = np.random.default_rng(0).exponential(size=50)
    found = cluster_standard_error(values, [str(k) for k in range(50)])
    assert found == pytest.approx(values.std(ddof=1) / np.sqrt(50), rel=1e-12)


def test_standard_error_against_simulation() -> None:
    """Rates with a common cause per group, groups of unequal size: not symmetric."""
    rng = np.random.default_rng(4)
    sizes = np.tile([1, 2, 3, 6, 8], 16)
    groups = np.repeat(np.arange(len(sizes)), sizes).astype(str).tolist()
    means, errors, iid, inside = [], [], [], []
    rate = 0.2
    for _ in range(800):
        chance = rng.beta(0.5, 2.0, len(sizes))  # mean 0.2, strongly correlated within a group
        values = (rng.random(len(groups)) < np.repeat(chance, sizes)).astype(float)
        means.append(values.mean())
        errors.append(cluster_standard_error(values, groups))
        iid.append(values.std(ddof=1) / np.sqrt(len(values)))
        low, high = cluster_interval(values, groups)
        inside.append(low <= rate <= high)
    truth = np.std(means)
    # The error of a standard deviation from 800 repeats is 2.5%; the sandwich of 80 groups is
    # low by a few percent.
    assert np.mean(errors) == pytest.approx(truth, rel=0.1)
    assert np.mean(iid) < 0.75 * truth
    # 4 standard errors of a coverage of 0.95 from 800 repeats are 0.031; skewness costs 0.02.
    assert 0.90 < np.mean(inside) < 0.981


def test_few_events_do_not_exclude_what_none_would_allow() -> None:
    """24 objects of 5 alike views: a rate of 0.10 was excluded by one interval in ten."""
    groups = [str(k // 5) for k in range(120)]
    none, one = cluster_interval(np.zeros(120), groups), cluster_interval(np.eye(1, 120)[0], groups)
    assert one[1] == none[1] > 0.14 and one[0] <= 0
    flipped = cluster_interval(1 - np.eye(1, 120)[0], groups)
    assert flipped == pytest.approx((1 - one[1], 1 - one[0]), rel=1e-12)
    rng, rate, too_low = np.random.default_rng(0), 0.1, 0
    for _ in range(400):
        own = np.sqrt(0.9) * rng.normal(size=(24, 1)) + np.sqrt(0.1) * rng.normal(size=(24, 5))
        values = (own < special.ndtri(rate)).astype(float).ravel()
        too_low += cluster_interval(values, groups)[1] < rate
    assert too_low <= 20  # 2.5% are promised; 5% are allowed for chance


def test_interval_edges() -> None:
    groups = [str(k // 5) for k in range(50)]
    low, high = cluster_interval(np.zeros(50), groups)
    assert low == 0 and high == pytest.approx(1 - 0.025 ** (1 / 10), rel=1e-12)
    assert cluster_interval(np.ones(50), groups)[0] == pytest.approx(1 - high, rel=1e-12)
    assert np.isnan(cluster_standard_error(np.ones(3), ["a"] * 3))
    assert np.isnan(cluster_interval(np.ones(3), ["a"] * 3)).all()
    wide = cluster_interval(np.arange(4.0), list("abcd"), level=0.99)
    narrow = cluster_interval(np.arange(4.0), list("abcd"), level=0.9)
    # t quantiles of 3 degrees of freedom, from tables.
    assert (wide[1] - 1.5) / (narrow[1] - 1.5) == pytest.approx(5.841 / 2.353, rel=1e-3)
    with pytest.raises(InputError, match="level"):
        cluster_interval(np.zeros(2), ["a", "b"], level=95)
    with pytest.raises(InputError, match="2 of them for 3 values"):
        cluster_standard_error(np.zeros(3), ["a", "b"])
    for values in (np.zeros(0), np.array([np.nan]), np.zeros((2, 2))):
        with pytest.raises(InputError, match="finite numbers"):
            cluster_standard_error(values, ["a"] * len(values))
