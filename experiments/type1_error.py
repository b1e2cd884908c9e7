"""Type I error: how often each method calls a region significant where nothing is.

dal-jax experiment type1_error --out DIR
"""

from dataclasses import dataclass
from typing import Any

from ._experiment import Condition, Context, Experiment, runs
from ._figures import finish, panels, rate_lines
from ._main import run_module
from ._methods import Counts, check_lengths, compared, method_rows, test_options
from ._models import Model, Use
from ._output import Tables, pivot
from ._rates import rate_cell
from ._simulation import Simulation


@dataclass(frozen=True)
class Settings:
    """What is simulated; entries of `images` and so on belong to the sizes in order.

    Raises:
        InputError: lengths differ, or a value does not fit.
    """

    sizes: tuple[int, ...] = (8, 16, 32, 64)  # sides, pixels
    noises: tuple[str, ...] = ("iid:1", "ar1:0.5:1")
    images: tuple[int, ...] = (1000, 400, 120, 40)  # null images of a size and a noise
    permutation_images: tuple[int, ...] = (60, 12, 2, 0)  # the first of them, 25 times dearer
    permutations: int = 1000
    levels: tuple[float, ...] = (0.01, 0.05, 0.10)
    train_sizes: tuple[int, ...] = (8, 16, 16, 16)  # sides of the squares trained on
    train_steps: int = 2000
    threshold: float = 0.8
    engine: str = "adaptive"
    precision: float = 1e-3
    over_conditioned: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_lengths(self, "sizes", "images", "permutation_images", "train_sizes")
        check_lengths(self, "noises")
        check_lengths(self, "levels")


def measure(settings: Settings, context: Context) -> Tables:
    """Tests null images of every size and noise; permutations with the first ones of each."""
    conditions = []
    for k, size in enumerate(settings.sizes):
        counts = Counts(settings.images[k], settings.permutation_images[k], settings.permutations)
        for noise in settings.noises:
            condition = Condition(
                {"size": size, "noise": noise},
                Model(
                    settings.train_sizes[k], noise, steps=settings.train_steps, seed=settings.seed
                ),
                Use(size, settings.threshold),
                Simulation(size, noise, seed=settings.seed),
                settings.images[k],
                test_options(settings),
            )
            conditions += compared(condition, counts)
    measured = context.tests(conditions)
    return {"type1_error": method_rows(measured, settings.levels), "runs": runs(measured)}


def summary(tables: Tables) -> str:
    """Rates at each level, Markdown."""
    rows = tables["type1_error"]
    parts = []
    for alpha in dict.fromkeys(row["alpha"] for row in rows):
        own = [row for row in rows if row["alpha"] == alpha]
        parts.append(
            f"Rejected at {alpha:g}, among the null images with a region (standard error):\n"
        )
        parts.append(pivot(own, ("size", "noise"), "method", rate_cell))
    chosen = [row for row in rows if row["alpha"] == rows[0]["alpha"]]
    parts.append("Images, without a region, failed; Kolmogorov-Smirnov p of uniformity:\n")
    parts.append(
        pivot(
            chosen,
            ("size", "noise"),
            "method",
            lambda r: f"{r['images']}, {r['no_region']}, {r['failed']}; {r['ks_p']:.2g}",
        )
    )
    return "\n".join(parts)


def draw(tables: Tables) -> dict[str, Any]:
    """A panel for each noise: rates at 0.05, or at the level in the middle, against the size."""
    rows = tables["type1_error"]
    levels = sorted({row["alpha"] for row in rows})
    alpha = levels[len(levels) // 2]
    noises = list(dict.fromkeys(row["noise"] for row in rows))
    figure, axes = panels([f"noise {noise}" for noise in noises])
    for axis, noise in zip(axes, noises, strict=True):
        own = [row for row in rows if row["noise"] == noise and row["alpha"] == alpha]
        rate_lines(axis, own, "size")
        axis.axhline(alpha, color="black", linewidth=0.8, linestyle=":")
        axis.set_ylim(bottom=0)
    return {"type1_error": finish(figure, axes, f"rejected at {alpha:g}")}


STANDARD = Settings(images=(1000, 1000, 500, 200), permutation_images=(200, 40, 10, 0))
PAPER = Settings(
    images=(5000, 2000, 1000, 1000),
    permutation_images=(1000, 1000, 100, 20),
    levels=(0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.10),
    train_sizes=(8, 16, 32, 64),
)
EXPERIMENT = Experiment(
    "Type I error",
    {"quick": Settings(), "standard": STANDARD, "paper": PAPER},
    measure,
    summary,
    draw,
)

if __name__ == "__main__":
    run_module("type1_error")
