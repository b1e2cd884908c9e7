"""Power: how often each method finds a raised square, against its height.

dal-jax experiment power --out DIR
"""

from dataclasses import dataclass
from typing import Any

from ._experiment import Condition, Context, Experiment, runs
from ._figures import finish, panels, rate_lines
from ._main import run_module
from ._methods import (
    Counts,
    check_lengths,
    compared,
    is_permutation,
    labels_of,
    method_rows,
    test_options,
)
from ._models import Model, Use
from ._output import Tables, pivot
from ._rates import rate_cell
from ._records import regions_row
from ._simulation import Simulation


@dataclass(frozen=True)
class Settings:
    """What is simulated; entries of `images` and so on belong to the sizes in order.

    Raises:
        InputError: lengths differ, or a value does not fit.
    """

    sizes: tuple[int, ...] = (8, 16, 32, 64)  # sides, pixels
    noises: tuple[str, ...] = ("iid:1", "ar1:0.5:1")
    signals: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)  # heights of the square, standard deviations
    images: tuple[int, ...] = (200, 100, 40, 12)  # of a size, a noise and a signal
    permutation_images: tuple[int, ...] = (12, 3, 0, 0)  # the first of them, 25 times dearer
    permutations: int = 1000
    levels: tuple[float, ...] = (0.05,)
    train_sizes: tuple[int, ...] = (8, 16, 16, 16)  # sides of the squares trained on
    train_steps: int = 2000
    threshold: float = 0.8
    engine: str = "adaptive"
    precision: float = 1e-3
    over_conditioned: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_lengths(self, "sizes", "images", "permutation_images", "train_sizes")
        for name in ("noises", "signals", "levels"):
            check_lengths(self, name)


def measure(settings: Settings, context: Context) -> Tables:
    """Tests images of every size, noise and signal; permutations with the first ones of each."""
    conditions = []
    for k, size in enumerate(settings.sizes):
        counts = Counts(settings.images[k], settings.permutation_images[k], settings.permutations)
        for noise in settings.noises:
            for signal in settings.signals:
                condition = Condition(
                    {"size": size, "noise": noise, "signal": signal},
                    Model(
                        settings.train_sizes[k],
                        noise,
                        steps=settings.train_steps,
                        seed=settings.seed,
                    ),
                    Use(size, settings.threshold),
                    Simulation(size, noise, signal, seed=settings.seed),
                    settings.images[k],
                    test_options(settings),
                )
                conditions += compared(condition, counts)
    measured = context.tests(conditions)
    return {
        "power": method_rows(measured, settings.levels),
        "regions": [
            {**labels_of(one), **regions_row(one)} for one in measured if not is_permutation(one)
        ],
        "runs": runs(measured),
    }


def summary(tables: Tables) -> str:
    """Power at the first level, Markdown."""
    rows = tables["power"]
    alpha = rows[0]["alpha"]
    own = [row for row in rows if row["alpha"] == alpha]
    index = ("size", "noise", "signal")
    return "\n".join(
        [
            f"Rejected at {alpha:g}, among the images with a region (standard error):\n",
            pivot(own, index, "method", rate_cell),
            "Images, without a region, failed:\n",
            pivot(
                own, index, "method", lambda r: f"{r['images']}, {r['no_region']}, {r['failed']}"
            ),
            "Flagged regions:\n",
            pivot(
                [{**row, "": "touch the square; flag; cover"} for row in tables["regions"]],
                index,
                "",
                lambda r: (
                    f"{r['touching']} of {r['images'] - r['no_region']}; "
                    f"{r['flagged_share']:.0%}; {r['covered_share']:.0%}"
                ),
            ),
        ]
    )


def draw(tables: Tables) -> dict[str, Any]:
    """A panel for each size and noise: power at the first level against the signal."""
    rows = tables["power"]
    alpha = rows[0]["alpha"]
    settings = list(dict.fromkeys((row["noise"], row["size"]) for row in rows))
    settings.sort(key=lambda pair: pair[0] != rows[0]["noise"])
    figure, axes = panels([f"{size} x {size}, noise {noise}" for noise, size in settings])
    for axis, (noise, size) in zip(axes, settings, strict=True):
        own = [r for r in rows if (r["noise"], r["size"], r["alpha"]) == (noise, size, alpha)]
        rate_lines(axis, own, "signal")
        axis.set_ylim(-0.03, 1.03)
    return {"power": finish(figure, axes, f"power at {alpha:g}")}


STANDARD = Settings(images=(200, 200, 100, 40), permutation_images=(40, 10, 0, 0))
PAPER = Settings(
    images=(1000, 1000, 1000, 1000),
    permutation_images=(1000, 1000, 100, 20),
    train_sizes=(8, 16, 32, 64),
)
EXPERIMENT = Experiment(
    "Power", {"quick": Settings(), "standard": STANDARD, "paper": PAPER}, measure, summary, draw
)

if __name__ == "__main__":
    run_module("power")
