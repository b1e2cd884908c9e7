"""Draws the pictures of `docs/idea.md` and `docs/index.md` and prints the numbers of the former.

    python docs/figures/draw_idea.py

The network is the one that `dal-jax demo` uses, the photograph is in scikit-image's wheel; nothing
is fetched. Null images are drawn from the noise model, so that nothing is there to be found.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import norm

from dal_jax import GAMMA, Localizer, TestResult, dal_test, dal_test_batch, randomization
from dal_jax.affine import sweep
from dal_jax.cli import _demo
from dal_jax.cli import _demo_data as data
from dal_jax.inference import Line, region_line
from dal_jax.noise import Covariance, estimate_dense
from dal_jax.report import figure, outline

RED, BLUE, GREY = "#d62728", "#1f77b4", "#888888"
ALPHA = 0.05
NORMAL, DEFECT = 1, 7  # numbers, from 0, of the views of the demonstration that are shown
STAIN = 6  # with and without randomization
AROUND = 4.0  # deviations on both sides of the observed value that the last picture shows


class Shown(NamedTuple):
    """A view, its test, and the line on which it lies."""

    image: np.ndarray  # (H, W, C)
    result: TestResult
    line: Line


class World(NamedTuple):
    """What all pictures need."""

    localizer: Localizer  # most pictures are of the test as published
    noisy: Localizer  # the same network, its threshold chosen on randomized views
    noise: Covariance
    references: np.ndarray  # (K, H, W, C)
    views: list[data.View]

    def tested(self, number: int, gamma: float) -> TestResult:
        """Tests a view, the whole line searched.

        Args:
            number: of the view.
            gamma: randomization.

        Returns:
            What became of it.
        """
        localizer = self.noisy if gamma else self.localizer
        image, how = self.views[number].image, {"precision": 0, "randomization": gamma}
        return dal_test(localizer, image, self.references, self.noise, name=number, **how)

    def shown(self, number: int) -> Shown:
        """Tests a view as published.

        Args:
            number: of the view.

        Returns:
            The view and what became of it.
        """
        image, result = self.views[number].image, self.tested(number, 0.0)
        line = region_line(image, self.references, result.region, self.noise)
        return Shown(image, result, line)


def world() -> World:
    """The demonstration's network, noise model and views.

    Returns:
        Them.
    """
    photo = data.photograph()
    normal = data.training_views(photo)
    scene = data.scene(photo, _demo.NUM_VIEWS, _demo.NUM_REFERENCES, seed=0)
    noise = estimate_dense(normal)
    published, noisy = (
        _demo._localizer(normal, noise, Path(), False, 0, gamma=gamma) for gamma in (0.0, GAMMA)
    )
    return World(published, noisy, noise, scene.references, scene.views)


def null_results(found: World, count: int) -> list[TestResult]:
    """Tests images in which nothing is there: image and references are noise alone.

    Args:
        found: the world.
        count: of images.

    Returns:
        Results of those with a region.
    """
    rng, shape = np.random.default_rng(1), found.localizer.image_shape

    def drawn(number: int) -> np.ndarray:
        return np.stack([found.noise.sample(rng, shape) for _ in range(number)])

    images = drawn(count)
    references = np.stack([drawn(len(found.references)) for _ in range(count)])
    results = dal_test_batch(found.localizer, images, references, found.noise, randomization=0)
    return [result for result in results if result.region.any()]


def draw_first(found: World, path: Path) -> None:
    """Draw the software's own picture of two views, for the first page.

    Args:
        found: Network, noise model and views.
        path: File of the picture.
    """
    views = [found.views[number] for number in (NORMAL, DEFECT)]
    figure(
        [view.image for view in views],
        [found.tested(number, GAMMA) for number in (NORMAL, DEFECT)],
        path,
        titles=["a normal view", "a spot was\nput in"],
        alpha=ALPHA,
        threshold=found.noisy.threshold,
    )


def draw_steps(found: World, path: Path) -> None:
    """Image, reconstruction, score and region of a view with a defect.

    Args:
        found: the world.
        path: of the picture.
    """
    image, result, _ = found.shown(DEFECT)
    titles = ("image x", "reconstruction D(x)", "score", "flagged region")
    _row(path, titles, image, result.reconstruction, result)


def _row(
    path: Path, titles: Sequence[str], image: np.ndarray, other: np.ndarray, result: TestResult
) -> None:
    """An image, another one, the score, and the image once more with the region outlined."""
    page, axes = _page(1, 4, (7.0, 2.1))
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    for axis, shown in zip(axes[0][[0, 1, 3]], (image, other, image), strict=True):
        axis.imshow(shown[..., 0], cmap="gray", vmin=-4, vmax=8)
    axes[0][2].imshow(result.score, cmap="magma")
    _outline(axes[0][3], result.region, RED)
    _save(page, path)


def draw_naive(results: Sequence[TestResult], path: Path) -> dict[str, float]:
    """Histograms of naive and selective p-values of null images.

    Args:
        results: of images with a region.
        path: of the picture.

    Returns:
        What the page says of them.
    """
    page, axes = _page(1, 2, (7.0, 2.7))
    p_values = {
        "naive": np.array([result.naive_p for result in results]),
        "selective": np.array([result.p_value for result in results]),
    }
    told = {"null images with a region": float(len(results))}
    highest = 0.0
    for axis, (name, p), colour in zip(axes[0], p_values.items(), (RED, BLUE), strict=True):
        p = p[np.isfinite(p)]
        rate = float(np.mean(p <= ALPHA))
        told[f"{name}, rejected at {ALPHA}"] = rate
        counts, *_ = axis.hist(p, bins=np.linspace(0, 1, 21), color=colour, alpha=0.75)
        highest = max(highest, float(np.max(counts)))
        axis.axhline(len(p) / 20, color="black", linewidth=1, linestyle="--")
        axis.set_title(f"{name}: {rate:.0%} below {ALPHA:g}", fontsize=11)
        axis.set_xlabel("p-value where nothing is there", fontsize=9)
    for axis in axes[0]:
        axis.set_ylim(0, 1.05 * highest)
        above = len(results) / 20 + 0.03 * highest
        axis.text(0.98, above, "uniform", ha="right", va="bottom", fontsize=9)
    _save(page, path)
    return told


def draw_line(found: World, path: Path) -> None:
    """Images X(z) of one line with their scores and regions.

    Args:
        found: the world.
        path: of the picture.
    """
    shown = found.shown(DEFECT)
    line, (low, high) = shown.line, _standard(shown)[0]
    points = (0.0, 0.6 * low, low - 0.4, line.z_obs, high + 0.6)
    page, axes = _page(2, len(points), (7.0, 3.4))
    for (above, below), z in zip(zip(*axes, strict=True), points, strict=True):
        image = line.base + line.direction * z
        score = found.localizer.score(image)
        region = score > found.localizer.threshold
        same = np.array_equal(region, shown.result.region)
        colour = BLUE if same else GREY
        title = f"z = {z:.1f}" + (", observed" if z == line.z_obs else "")
        above.set_title(title, fontsize=10, color="black" if same else "#555555")
        above.imshow(image[..., 0], cmap="gray", vmin=-4, vmax=8)
        below.imshow(score, cmap="magma", vmin=0, vmax=2 * found.localizer.threshold)
        _outline(below, region, "#4fc3f7" if same else "white")
        below.set_title("same region" if same else "another region", fontsize=9, color=colour)
        above.set_axis_off()
        below.set_axis_off()
    _save(page, path)


class Windows:
    """Affine pieces of a localizer's score along lines, compiled once.

    Args:
        localizer: piecewise affine.
    """

    def __init__(self, localizer: Localizer):
        def score(operands: Any, z: Any) -> Any:
            base, direction = operands
            return localizer.score_fn(localizer.params, localizer.draws, base + direction * z)

        image = jax.ShapeDtypeStruct(localizer.image_shape, np.float64)
        self._sweep = sweep(score, (image, image), jax.ShapeDtypeStruct((), np.float64))

    def ends(self, line: Line, span: tuple[float, float]) -> np.ndarray:
        """Where pieces end.

        Args:
            line: of images.
            span: part of it, standard deviations.

        Returns:
            Ascending, both ends of the part among them.
        """
        statics = self._sweep.bind((line.base, line.direction))
        parts = list(self._sweep.run(statics, [span]))
        return np.unique(np.concatenate([part.z for part in parts]))


def draw_truncation(found: World, path: Path) -> dict[str, float]:
    """Regions and windows along two lines, and the density that the p-value is a share of.

    Args:
        found: the world.
        path: of the picture.

    Returns:
        What the page says of them.
    """
    page, axes = _page(3, 2, (7.0, 5.6), heights=(1.0, 0.35, 1.3))
    told: dict[str, float] = {}
    windows = Windows(found.localizer)
    for column, (number, name) in enumerate(((NORMAL, "a normal view"), (DEFECT, "a defect"))):
        shown = found.shown(number)
        z = shown.line.z_obs
        told[f"{name}: z"] = z
        told[f"{name}: naive p"] = shown.result.naive_p
        told[f"{name}: selective p"] = shown.result.p_value
        span = (z - AROUND, z + AROUND)
        above, middle, below = (row[column] for row in axes)
        above.set_title(
            f"{name}\nnaive p = {shown.result.naive_p:.2g}\n"
            f"selective p = {shown.result.p_value:.2g}",
            fontsize=10,
        )
        _regions(above, found, shown, span)
        told[f"{name}: windows shown"] = float(_windows(middle, windows, shown, span))
        _densities(below, shown, span)
        for axis in (above, middle, below):
            axis.set_xlim(span)
            for start, end in _standard(shown):
                axis.axvspan(start, end, color=BLUE, alpha=0.12, linewidth=0)
            axis.axvline(z, color="black", linewidth=1)
    axes[0][0].set_ylabel("flagged pixels", fontsize=9)
    axes[1][0].set_ylabel("windows", fontsize=9)
    axes[2][0].set_ylabel("density", fontsize=9)
    _save(page, path)
    return told


def _regions(axis: Axes, found: World, shown: Shown, span: tuple[float, float]) -> None:
    points = np.linspace(*span, 401)
    counts = [
        int(found.localizer.region(shown.line.base + shown.line.direction * z).sum())
        for z in points
    ]
    axis.step(points, counts, where="mid", color="black", linewidth=1.2)
    axis.set_ylim(0, max(counts) * 1.25)
    start = _standard(shown)[0, 0]
    axis.text(start + 0.08, max(counts) * 1.1, "Z", color=BLUE, weight="bold")


def _windows(axis: Axes, windows: Windows, shown: Shown, span: tuple[float, float]) -> int:
    """Ticks where one affine piece of the network ends; their number."""
    ends = windows.ends(shown.line, span)
    axis.vlines(ends, 0, 1, color="black", linewidth=0.3)
    axis.set_yticks([])
    return len(ends) - 1


def _densities(axis: Axes, shown: Shown, span: tuple[float, float]) -> None:
    """The normal density, and the one that is left of it in Z, each scaled to its own height."""
    points = np.linspace(*span, 2001)
    intervals, z = _standard(shown), shown.line.z_obs
    inside = np.any([(start <= points) & (points <= end) for start, end in intervals], axis=0)
    density = np.where(inside, norm.pdf(points), 0.0)
    density /= density.max()
    axis.plot(points, norm.pdf(points) / norm.pdf(0), color=GREY, label="normal", linewidth=1.2)
    axis.plot(points, density, color=BLUE, label="given the region", linewidth=1.4)
    extreme = inside & (np.abs(points) >= abs(z))
    axis.fill_between(points, density, where=extreme, color=RED, alpha=0.6, label="p: this share")
    axis.set_yticks([])
    axis.set_xlabel("z: statistic in standard deviations", fontsize=9)
    axis.legend(fontsize=8, loc="upper left" if z < 0 else "upper right", frameon=False)


def draw_seen(found: World, path: Path) -> None:
    """What the network is given of a view, what it flags there, and where that is tested.

    Args:
        found: the world.
        path: of the picture.
    """
    image, result = found.views[STAIN].image, found.tested(STAIN, GAMMA)
    omega = randomization(found.noise, image.shape, GAMMA, 0, STAIN)
    titles = ("image x", "seen: y = x + omega", "score of y", "tested: x")
    _row(path, titles, image, image + omega, result)


def draw_evidence(found: World, path: Path) -> dict[str, float]:
    """The density that a p-value is a share of, as published and with randomization.

    Args:
        found: the world.
        path: of the picture.

    Returns:
        What the page says of it.
    """
    page, axes = _page(1, 2, (7.0, 3.0))
    told: dict[str, float] = {}
    for axis, gamma in zip(axes[0], (0.0, GAMMA), strict=True):
        result = found.tested(STAIN, gamma)
        z, ends, tau = (
            result.statistic / result.sd,
            result.truncation / result.sd,
            result.added_sd / result.sd,
        )
        points = np.linspace(-abs(z) - 4, abs(z) + 4, 4001)
        above, below = ends[:, 1] - points[:, None], ends[:, 0] - points[:, None]
        if tau:
            weight = (norm.cdf(above / tau) - norm.cdf(below / tau)).sum(axis=1)
        else:
            weight = ((below <= 0) & (above >= 0)).any(axis=1).astype(float)
        density = norm.pdf(points) * weight
        scaled = density / density.max()
        axis.plot(points, norm.pdf(points) / norm.pdf(0), color=GREY, linewidth=1.2, label="normal")
        axis.plot(points, scaled, color=BLUE, linewidth=1.4, label="given the region")
        extreme = np.abs(points) >= abs(z)
        axis.fill_between(points, scaled, where=extreme, color=RED, alpha=0.6, label="p")
        axis.axvline(z, color="black", linewidth=1)
        axis.set_title(f"gamma {gamma:g}: p = {result.p_value:.2g}", fontsize=11)
        axis.set_xlabel("statistic in standard deviations", fontsize=9)
        axis.set_yticks([])
        name = f"the stain, gamma {gamma:g}"
        told |= {
            f"{name}: z": z,
            f"{name}: p": result.p_value,
            f"{name}: estimate": result.estimate,
        }
        told |= {f"{name}: from": result.ci_low, f"{name}: to": result.ci_high}
    axes[0][0].legend(fontsize=8, loc="upper right", frameon=False)
    _save(page, path)
    return told


def _standard(shown: Shown) -> np.ndarray:
    """Z in standard deviations."""
    return shown.result.truncation / shown.result.sd


def _outline(axis: Axes, region: np.ndarray, colour: str) -> None:
    from matplotlib.collections import LineCollection

    axis.add_collection(LineCollection(list(outline(region)), colors=colour, linewidths=2))


def _page(
    rows: int, columns: int, size: tuple[float, float], heights: Sequence[float] | None = None
) -> tuple[Figure, np.ndarray]:
    page = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(page)
    axes = page.subplots(rows, columns, squeeze=False, height_ratios=heights)
    for axis in axes.ravel():
        axis.tick_params(labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return page, axes


def _save(page: Figure, path: Path) -> None:
    page.savefig(path, dpi=140, facecolor="white", metadata={"Software": None})


def draw(folder: Path, count: int) -> dict[str, float]:
    """Draws all pictures.

    Args:
        folder: where to; it exists.
        count: of null images.

    Returns:
        The numbers of the page.
    """
    found = world()
    draw_first(found, folder / "first.png")
    draw_steps(found, folder / "idea_steps.png")
    draw_line(found, folder / "idea_line.png")
    draw_seen(found, folder / "idea_seen.png")
    told = draw_evidence(found, folder / "idea_evidence.png")
    told |= draw_naive(null_results(found, count), folder / "idea_naive.png")
    return told | draw_truncation(found, folder / "idea_truncation.png")


def main() -> None:
    """Reads the command line, draws, and prints the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Plain)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder")
    parser.add_argument("--images", type=int, default=4000, help="null images")
    words = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    for name, value in draw(words.out, words.images).items():
        print(f"{name}: {value:.3g}" if value != int(value) else f"{name}: {value:.0f}")


class _Plain(argparse.RawDescriptionHelpFormatter):
    pass


if __name__ == "__main__":
    main()
