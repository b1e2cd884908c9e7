"""Effect of guidance, mask, stopping and fusion on the counterparts that MDPS and GLAD make.

dal-jax experiment counterparts --out DIR

A counterpart should be near the image where that is normal and far from it inside a defect. Nothing
is tested: scores and reconstructions only. Images and networks are those of `localizers`, from
higher levels than usual, where these parts matter more.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from dal_jax import InputError
from dal_jax.images import NORMAL, image_auroc, mask_views
from dal_jax.inspection import Reader, load_profile, open_model, to_test
from experiments import localizers
from experiments._experiment import Context, Experiment
from experiments._output import Row, Tables, finish, panels, pivot
from experiments.localizers import images_of, learn_localizer, select_images

ARMS = (
    "mdps:pl,start=600",
    "mdps:pl,start=600,weight=0,first_weight=0",
    "mdps:pl,start=600,first_start=0",
    "glad:pl,stop_distance=0.25",
    "glad:pl,stop_distance=inf",
    "glad:pl,stop_distance=0.25,fusion_centre=1e6",
)


@dataclass(frozen=True)
class Settings(localizers.Settings):
    """Settings as of `localizers`; those of tests are not used."""

    localizers: tuple[str, ...] = ARMS

    def __post_init__(self) -> None:
        super().__post_init__()
        if localizers.RX in self.localizers:
            raise InputError(f"localizers: got {localizers.RX!r}, expected some with counterparts")


class ViewScores(NamedTuple):
    """Scores and counterparts of one localizer, in units of the views."""

    labels: list[bool]  # of each view: whether its image is anomalous
    highest: list[float]  # of the score of each view
    normal: list[float]  # root mean square of the difference, views of good images
    defect: list[float]  # size of the mean difference inside the defect, views that show one


def measure(settings: Settings, context: Context) -> Tables:
    """Make counterparts with each localizer, one after the other."""
    root = images_of(settings, context)
    names = tqdm(settings.localizers, file=sys.stderr, disable=context.host.index > 0 or None)
    return {"counterparts": [_row(name, _scores(name, root, settings, context)) for name in names]}


def _scores(name: str, root: Path, settings: Settings, context: Context) -> ViewScores:
    home = learn_localizer(name, root, settings, context)
    profile = load_profile(home)
    localizer = open_model(home, profile)
    data = select_images(profile.source.open(root), profile, settings)
    reader, scores = Reader(data, profile.fitted, profile.seen()), ViewScores([], [], [], [])
    for sample in to_test(data, profile):
        _, mask, views = reader.read(sample)
        inside = None if mask is None else mask_views(profile.fitted, mask, views)
        for number, view in enumerate(views.pixels.astype(np.float32)):
            score, counterpart = localizer.evaluate(view)
            difference = (counterpart - view).mean(axis=2)
            scores.labels.append(sample.label != NORMAL)
            scores.highest.append(float(score.max()))
            if sample.label == NORMAL:
                scores.normal.append(float(np.sqrt(np.mean(difference**2))))
            elif inside is not None and inside[number].any():
                scores.defect.append(float(abs(difference[inside[number]].mean())))
    return scores


def _row(name: str, scores: ViewScores) -> Row:
    row: Row = {"localizer": name, "auroc": image_auroc(*map(np.array, scores[:2]))}
    for part in ("normal", "defect"):
        values = np.array(getattr(scores, part))
        row[part], row[f"{part}_views"] = values.mean(), len(values)
        row[f"{part}_se"] = values.std(ddof=1) / np.sqrt(len(values))
    return row


def summary(tables: Tables) -> str:
    """Return distances from normal images and defects, Markdown."""
    cells = [
        {**row, "of": of, "cell": cell}
        for row in tables["counterparts"]
        for of, cell in (
            ("normal images", f"{row['normal']:.3f} ({row['normal_se']:.3f})"),
            ("defects", f"{row['defect']:.3f} ({row['defect_se']:.3f}) of {row['defect_views']}"),
            ("AUROC of views", f"{row['auroc']:.3f}"),
        )
    ]
    return "\n".join(
        [
            "Distance of counterparts from normal images (root mean square) and from defects (of "
            "the mean inside), in units of the views (standard errors over views):\n",
            pivot(cells, ("localizer",), "of", lambda row: row["cell"]),
        ]
    )


def draw(tables: Tables) -> dict[str, Any]:
    """Draw both distances, by localizer."""
    rows = tables["counterparts"]
    place = np.arange(len(rows))
    figure, (axis,) = panels(["distance of counterparts, in units of the views"])
    figure.set_size_inches(9, 1.6 + 0.3 * len(rows))
    for part, label, colour in (("normal", "normal images", "C7"), ("defect", "defects", "C3")):
        values, errors = ([row[key] for row in rows] for key in (part, f"{part}_se"))
        axis.errorbar(values, place, xerr=errors, fmt="o", capsize=2, label=label, color=colour)
    axis.set_xlim(left=0)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_yticks(place, [row["localizer"] for row in rows], fontsize=7)
    return {"counterparts": finish(figure, [axis], "")}


QUICK = Settings()
PAPER = Settings(size=32, per_label=1000, steps=4000, batch_size=64)
EXPERIMENT = Experiment("Counterparts", {"quick": QUICK, "paper": PAPER}, measure, summary, draw)
