"""The figure and the table: words, outlines, whole files."""

import math
from pathlib import Path

import numpy as np
import pytest

from dal_jax import InputError
from dal_jax.report import Maps, figure, format_p, outcome, outline, overlay, table

matplotlib = pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


def result(p: float, width: float = 0.0, status: str = "OK", channels: int = 1) -> Maps:
    score = np.random.default_rng(0).uniform(size=(6, 6))
    region = np.zeros((6, 6), bool) if status == "NO_REGION" else score > 0.8
    maps = region, score, np.zeros((6, 6, channels))
    return Maps(*maps, p, p, p + width, p / 10, status)


NOTHING = result(np.nan, status="NO_REGION")


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (result(0.01), "significant"),
        (result(0.06), "not significant"),
        (result(0.04, 0.02), "undecided"),
        (NOTHING, "no region"),
        (result(np.nan, status="NON_FINITE"), "no valid result"),
    ],
)
def test_outcome(case: Maps, expected: str) -> None:
    assert outcome(case, 0.05) == expected


def test_format_p() -> None:
    values = [0.0416, 1.0, 0.001, 3e-5, 0.0, np.nan]
    assert [format_p(p) for p in values] == ["0.042", "1.000", "0.001", "3e-05", "<1e-300", "-"]


def test_outline_is_the_perimeter() -> None:
    region = np.zeros((4, 5), bool)
    assert outline(region).shape == (0, 2, 2)
    region[0, 0:2] = region[2, 2] = True
    edges = outline(region)
    # Two pixels in a row have 6 edges, a lone one 4; every edge is one pixel long.
    assert edges.shape == (10, 2, 2)
    assert np.abs(np.diff(edges, axis=1)).sum(axis=(1, 2)).tolist() == [1.0] * 10
    assert edges.min() == -0.5


def test_components_have_lines_of_their_own(tmp_path: Path) -> None:
    one, other = result(0.01), result(0.2)
    parts = (
        one._replace(p_holm=0.02, p_holm_low=0.02, p_holm_high=0.02, estimate=1.0),
        other._replace(p_holm=0.2, p_holm_low=0.2, p_holm_high=0.2, estimate=-1.0),
    )
    whole = result(0.02)._replace(components=parts)
    lines = table([whole, NOTHING], ["a", "b"]).splitlines()
    assert "Holm p" in lines[0]
    assert lines[2].startswith("a #1") and lines[2].endswith("  significant")
    assert lines[3].startswith("a #2") and lines[3].endswith("not significant")
    assert "Holm p" not in table([NOTHING], ["b"])
    assert outcome(parts[0], 0.015) == "not significant"  # by the adjusted p
    figure([np.zeros((6, 6, 1))] * 2, [whole, NOTHING], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5_000


def test_the_legend_names_the_p_value_that_decides(tmp_path: Path) -> None:
    part = result(0.01)._replace(p_holm=0.02, p_holm_low=0.02, p_holm_high=0.02)
    whole = result(0.02)._replace(components=(part,))
    for one, name in ((part, "selective p ≤"), (whole, "Holm's p ≤")):
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            figure([np.zeros((6, 6, 1))], [one], tmp_path / "a.svg")
        assert f"significant ({name} 0.05)" in (tmp_path / "a.svg").read_text()


def test_labels_are_written_on_overlays(tmp_path: Path) -> None:
    image, region = np.zeros((40, 40, 1)), np.zeros((40, 40), bool)
    for name, labels in (("plain", []), ("labelled", [("1", (0, 0)), ("12", (39, 39))])):
        overlay(image, region, region, tmp_path / f"{name}.png", labels=labels)
    files = (tmp_path / f"{name}.png" for name in ("plain", "labelled"))
    plain, labelled = (np.asarray(Image.open(file)) for file in files)
    assert plain.shape == labelled.shape and plain.max() == 0 and labelled.max() > 200


def test_table_has_one_line_each() -> None:
    text = table([result(0.01), NOTHING], ["a", "b"], truths=["defect", "normal"])
    lines = text.splitlines()
    assert len(lines) == 4
    assert "0.010" in lines[2] and "defect" in lines[2] and lines[2].endswith("significant")
    assert "0 px" in lines[3] and lines[3].endswith("no region")
    assert "truth" not in table([result(0.01)], ["a"])
    assert "difference" not in text
    known = result(0.01)._replace(estimate=-0.52, ci_low=-math.inf, ci_high=-0.1)
    lines = table([known, NOTHING], ["a", "b"]).splitlines()
    assert "difference [interval]" in lines[0]
    assert "-0.52 [-inf, -0.1]" in lines[2]
    assert " - " in lines[3]
    with pytest.raises(InputError, match="one for each"):
        table([result(0.01)], ["a", "b"])


@pytest.mark.parametrize("channels", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_figure_is_written_whole(tmp_path: Path, channels: int) -> None:
    results = [result(0.01, channels=channels), result(0.5, channels=channels), NOTHING]
    images = [np.random.default_rng(k).normal(size=(6, 6, channels)) for k in range(3)]
    results[2] = results[2]._replace(reconstruction=np.zeros((6, 6, channels)))
    path = tmp_path / "figure.png"
    truth = np.eye(6, dtype=bool)
    figure(
        images,
        results,
        path,
        titles=["a", "b", "c"],
        truths=[None, None, truth],
        threshold=0.8,
        heading="heading",
        blocks=("left", "right"),
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]


def test_figure_of_one_constant_image(tmp_path: Path) -> None:
    flat = NOTHING._replace(score=np.zeros((6, 6)))
    figure([np.zeros((6, 6, 1))], [flat], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_figure_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the same number of each"):
        figure([], [], tmp_path / "figure.png")
    with pytest.raises(InputError, match="the same number of each"):
        figure([np.zeros((6, 6, 1))], [NOTHING], tmp_path / "f.png", titles=["a", "b"])
    with pytest.raises(InputError, match=r"^images: got the shape \(6, 6\), expected \(H, W, C\)"):
        figure([np.zeros((6, 6))], [NOTHING], tmp_path / "f.png")
    assert list(tmp_path.iterdir()) == []


def test_overlay_refuses_masks_of_another_shape(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    masks = {"region": np.zeros((6, 6), bool), "significant": np.zeros((6, 6), bool)}
    for name in (*masks, "truth"):
        given = {**masks, name: np.zeros((5, 6), bool)}
        with pytest.raises(InputError, match=rf"^{name} has shape \(5, 6\), expected \(6, 6\)"):
            overlay(np.zeros((6, 6, 1)), path=tmp_path / "f.png", **given)
    assert list(tmp_path.iterdir()) == []
