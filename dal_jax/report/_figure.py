"""Figure of several tests: image, reconstruction, score, and the region with its p-value."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dal_jax._errors import InputError
from dal_jax.images import atomic_path
from dal_jax.report import _outcome as words
from dal_jax.report._outcome import Result, format_difference, format_p, outcome, parts
from dal_jax.report._overlay import outline

COLOURS = {
    words.SIGNIFICANT: "#d62728",
    words.NOT_SIGNIFICANT: "#1f77b4",
    words.UNDECIDED: "#9467bd",
    words.NO_REGION: "#666666",
    words.NOT_VALID: "#666666",
    words.NOT_TESTED: "#ff7f0e",
}
_PANELS = ("image", "reconstruction", "score", "flagged region")
_CELL = 1.05  # width and height of a panel, inches
_TEXT = 1.75  # width of the text beside the last panel, in widths of a panel
_SHOWN = 4  # largest number of components described beside the last panel
_LETTER = 0.075  # width of a letter of the titles, inches, a generous mean


def figure(
    images: Sequence[np.ndarray],
    results: Sequence[Result],
    path: str | Path,
    *,
    titles: Sequence[str] | None = None,
    truths: Sequence[np.ndarray | None] | None = None,
    alpha: float = 0.05,
    threshold: float | None = None,
    heading: str | None = None,
    blocks: Sequence[str] = ("",),
) -> None:
    """Draw one row per image and write the picture, whole or not at all.

    Each row shows the image, the reconstruction, the score, and the image with the flagged region
    outlined, in red where the selective p-value is significant at `alpha`. The row is labelled with
    the selective p-value, the naive p-value and the decision. Components that were tested one by
    one are numbered. Grey values are shown on one scale for all rows.

    Args:
        images: Tested images, each (H, W, C).
        results: Result of `dal_test` for each image.
        path: Path of the file, .png or another format that matplotlib writes.
        titles: Name of each row; None for no names.
        truths: True region of each row, bool (H, W), outlined by yellow dots, or None.
        alpha: Significance level in (0, 1).
        threshold: Score above which a pixel is flagged, marked on the colour bar.
        heading: Line of text above the picture; None for none.
        blocks: Titles of the blocks, which stand side by side; rows are distributed evenly, and the
            first block is filled first.

    Raises:
        InputError: There is no image, the lengths differ, an image is not (H, W, C), the package
            matplotlib is missing, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> from dal_jax.report import Maps
        >>> maps = Maps(np.eye(4) > 0, np.eye(4), np.zeros((4, 4, 1)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     figure([np.eye(4)[..., None]], [maps], f"{folder}/a.png", titles=["tile 1"])
        ...     print(Path(folder, "a.png").is_file())
        True
    """
    canvas_figure = _draw(
        images, results, titles, truths, alpha, threshold, heading, tuple(blocks) or ("",)
    )
    with atomic_path(path) as temporary:
        canvas_figure.savefig(temporary, dpi=110, facecolor="white")


def _draw(
    images: Sequence[np.ndarray],
    results: Sequence[Result],
    titles: Sequence[str] | None,
    truths: Sequence[np.ndarray | None] | None,
    alpha: float,
    threshold: float | None,
    heading: str | None,
    blocks: tuple[str, ...],
) -> Any:
    names = [""] * len(images) if titles is None else list(titles)
    masks = [None] * len(images) if truths is None else list(truths)
    if not len(images) or not len(images) == len(results) == len(names) == len(masks):
        raise InputError(
            f"figure: {len(images)} images, {len(results)} results, {len(names)} titles and "
            f"{len(masks)} truths, expected the same number of each, at least one"
        )
    for image in images:
        if np.ndim(image) != 3:
            raise InputError(f"images: got the shape {np.shape(image)}, expected (H, W, C)")
    margin = 0.2 + _LETTER * max(len(line) for name in names for line in name.split("\n"))
    page, axes, bar = _layout(math.ceil(len(images) / len(blocks)), blocks, heading, margin)
    grey = _limits(images)
    top = 2 * threshold if threshold else max(float(np.max(r.score)) for r in results)
    scores = None
    for k, (image, result, name, mask) in enumerate(
        zip(images, results, names, masks, strict=True)
    ):
        block, row = divmod(k, len(axes))
        panels = axes[row][block]
        _show(panels[0], image, grey)
        _show(panels[1], np.asarray(result.reconstruction), grey)
        scores = panels[2].imshow(np.asarray(result.score), cmap="magma", vmin=0, vmax=top or 1)
        _show(panels[3], image, grey)
        _label(panels, image, result, mask, name, alpha)
    seen = {outcome(part, alpha) for result in results for part in parts(result)}
    masked = any(mask is not None for mask in masks)
    p = "Holm's p" if any(result.components for result in results) else "selective p"
    _finish(page, bar, scores, alpha, threshold, seen, masked, p)
    return page


def blank_page(needed_by: str, **options: Any) -> Any:
    """Return an empty figure of matplotlib, without a window.

    Args:
        needed_by: Name of the function or verb that draws, for the error.
        **options: Arguments of `matplotlib.figure.Figure`.

    Returns:
        The figure.

    Raises:
        InputError: The package matplotlib is missing.

    Example:
        >>> blank_page("example", figsize=(4, 3)).get_size_inches().tolist()
        [4.0, 3.0]
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        hint = 'pip install "dal-jax[figures]"'
        raise InputError(f"{needed_by}: drawing needs matplotlib: {hint}") from error
    return Figure(**options)


def _layout(
    rows: int, blocks: tuple[str, ...], heading: str | None, margin: float
) -> tuple[Any, list, Any]:
    widths = ([margin / _CELL] + [1.0] * len(_PANELS) + [_TEXT]) * len(blocks)
    head, foot = (1.0 if heading else 0.6), 0.75  # inches
    width = max(_CELL * sum(widths), 7.8)
    height = _CELL * rows + head + foot
    page = blank_page("figure", figsize=(width, height))
    grid = page.add_gridspec(
        rows,
        len(widths),
        width_ratios=widths,
        left=0.0,
        right=1.0,
        bottom=foot / height,
        top=1 - head / height,
        wspace=0.06,
        hspace=0.08,
    )
    columns = len(_PANELS) + 2
    axes = [
        [
            [page.add_subplot(grid[row, columns * b + c + 1]) for c in range(len(_PANELS) + 1)]
            for b in range(len(blocks))
        ]
        for row in range(rows)
    ]
    for panel in (panel for line in axes for block in line for panel in block):
        panel.set_axis_off()
    for b, block in enumerate(blocks):
        for panel, text in zip(axes[0][b], _PANELS, strict=False):
            panel.set_title(text, fontsize=9, pad=4)
        box = axes[0][b][0].get_position()
        page.text(box.x0, box.y1 + 0.27 / height, block, fontsize=12, weight="bold", va="bottom")
    if heading:
        left = axes[0][0][0].get_position().x0
        page.text(left, 1 - 0.12 / height, heading, fontsize=13, va="top")
    bar = page.add_axes((0.75, 0.36 / height, 0.2, 0.14 / height))
    return page, axes, bar


def _limits(images: Sequence[np.ndarray]) -> tuple[float, float]:
    pixels = np.concatenate([np.ravel(image) for image in images])
    low, high = np.percentile(pixels, [0.5, 99.5])
    return float(low), float(high) if high > low else float(low) + 1.0


def _show(panel: Any, image: np.ndarray, limits: tuple[float, float]) -> None:
    low, high = limits
    if image.shape[-1] == 3:
        panel.imshow(np.clip((image - low) / (high - low), 0, 1))
    else:
        panel.imshow(np.mean(image, -1), cmap="gray", vmin=low, vmax=high)


def _label(
    panels: list,
    image: np.ndarray,
    result: Result,
    mask: np.ndarray | None,
    name: str,
    alpha: float,
) -> None:
    from matplotlib.collections import LineCollection

    decided = outcome(result, alpha)
    colour = COLOURS[decided]
    for number, part in enumerate(parts(result), 1):
        own, edges = COLOURS[outcome(part, alpha)], outline(np.asarray(part.region))
        panels[3].add_collection(LineCollection(list(edges), colors=own, linewidths=2.2))
        if result.components:
            top, left = np.argwhere(part.region)[0]
            at = (left - 0.5, top - 0.5)
            panels[3].text(*at, str(number), color=own, fontsize=8, weight="bold", va="bottom")
    if mask is not None:
        dots = LineCollection(list(outline(mask)), colors="#ffd500", linewidths=1.4)
        dots.set_linestyle((0, (1, 1)))
        panels[0].add_collection(dots)
    panels[0].text(
        -0.08, 0.5, name, transform=panels[0].transAxes, fontsize=9, ha="right", va="center"
    )
    lines = [(decided, colour, "bold", 9)]
    if result.components:
        lines = _component_lines(result, alpha)
    elif not math.isnan(result.p_value):
        lines.insert(0, (f"p = {format_p(result.p_value)}", colour, "bold", 12))
        if not math.isnan(result.estimate):
            lines.append((_difference(result), "#555555", "normal", 8))
        lines.append((f"naive p = {format_p(result.naive_p)}", "#555555", "normal", 8))
    if np.any(result.region):
        size = f"{int(np.sum(result.region))} of {np.size(result.region)} pixels"
        lines.append((size, "#555555", "normal", 8))
    for k, (text, shade, weight, points) in enumerate(lines):
        at = 0.5 + 0.2 * ((len(lines) - 1) / 2 - k)
        panels[4].text(0.03, at, text, color=shade, weight=weight, fontsize=points, va="center")


def _component_lines(result: Result, alpha: float) -> list[tuple[str, str, str, float]]:
    """Return lines of text for the components of smallest p-value, at most `_SHOWN` of them."""
    numbered = sorted(enumerate(parts(result), 1), key=lambda pair: (pair[1].p_holm, pair[0]))
    lines = []
    for number, part in numbered[:_SHOWN]:
        text = f"{number}: p = {format_p(part.p_value)}, Holm {format_p(part.p_holm)}"
        lines.append((text, COLOURS[outcome(part, alpha)], "bold", 7.5))
        if len(numbered) <= _SHOWN // 2 and not math.isnan(part.estimate):
            lines.append((f"   {_difference(part)}", "#555555", "normal", 7.5))
    if len(numbered) > _SHOWN:
        lines.append((f"and {len(numbered) - _SHOWN} more components", "#555555", "normal", 7.5))
    return lines


def _difference(result: Result) -> str:
    return f"difference {format_difference(result.estimate, result.ci_low, result.ci_high)}"


def _finish(
    page: Any,
    bar: Any,
    scores: Any,
    alpha: float,
    threshold: float | None,
    seen: set[str],
    truths: bool,
    p: str,
) -> None:
    from matplotlib.lines import Line2D

    page.colorbar(scores, cax=bar, orientation="horizontal")
    bar.tick_params(labelsize=8)
    bar.set_title("score" if not threshold else "score (white: threshold)", fontsize=8, pad=3)
    if threshold:
        bar.axvline(threshold, color="white", linewidth=2)
    meanings = {
        words.SIGNIFICANT: f"significant ({p} ≤ {alpha:g})",
        words.NOT_SIGNIFICANT: f"not significant ({p} > {alpha:g})",
        words.UNDECIDED: "undecided (bounds on p too wide)",
        words.NOT_TESTED: "flagged, not tested",
    }
    shown: dict[str, tuple[str, Any]] = {
        text: (COLOURS[key], "-") for key, text in meanings.items() if key in seen
    }
    if truths:
        shown["where the defect was put in"] = ("#ffd500", ":")
    handles = [Line2D([], [], color=c, ls=style, linewidth=2.2) for c, style in shown.values()]
    page.legend(
        handles,
        list(shown),
        loc="lower left",
        bbox_to_anchor=(0.02, 0.0),
        ncols=max(1, min(len(shown), int(page.get_figwidth() // 4))),  # beside the colour bar
        fontsize=8,
        frameon=False,
    )
