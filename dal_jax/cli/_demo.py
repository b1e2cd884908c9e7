"""`dal-jax demo`: twelve tests on a real photograph with a small model, and a picture of them."""

import importlib.resources
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from tqdm import tqdm

from dal_jax import TestResult, dal_test_batch
from dal_jax._dal_test import GAMMA, randomization
from dal_jax._errors import InputError
from dal_jax._files import dumps
from dal_jax.cli import _demo_data as data
from dal_jax.cli import _options as options
from dal_jax.cli._output import encode_regions, need_figures
from dal_jax.diffusion import DalConfig, ReverseConfig, TrainConfig
from dal_jax.images import write_text
from dal_jax.inspection import train_with_bar
from dal_jax.localizers import Localizer, load_localizer
from dal_jax.models import UNetConfig
from dal_jax.noise import Covariance, estimate_dense
from dal_jax.report import NO_REGION, SIGNIFICANT, figure, outcome, table

NUM_VIEWS = 12
NUM_REFERENCES = 8
ALPHA = 0.05
_FLAGGED = 0.5  # share of normal training views in which the threshold flags a pixel
_CALIBRATION = 200  # number of training views that set the threshold
_CONFIG = DalConfig(
    unet=UNetConfig(1, (8, 16, 32)),
    reverse=ReverseConfig(600, 3),
    image_size=(data.SIDE, data.SIDE),
)
_TRAINING = TrainConfig(steps=2500, ema_decay=0.99, checkpoint_every=2500, log_every=25)

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the picture.")]
Train = Annotated[
    bool, typer.Option("--train", help="Train a new model in DIR/model (one to two minutes).")
]


def demo(
    out: Out = Path("demo_output"),
    train: Train = False,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Looks for flaws in photographed brick faces and says which of them are real.

    A small diffusion model of normal brick faces flags regions in twelve new views, six of which
    have an added defect. Each region is tested against normal views.
    """
    need_figures(out)
    if seed < 0:
        raise InputError(f"--seed: got {seed}, expected 0 or more")
    photo = data.photograph()
    normal = data.training_views(photo)
    noise = estimate_dense(normal)
    localizer = _localizer(normal, noise, out, train, seed)
    scene = data.scene(photo, NUM_VIEWS, NUM_REFERENCES, seed)
    results = _tests(localizer, scene, noise, seed)
    picture = out / "demo.png"
    _draw(scene, results, picture, localizer.threshold)
    fields = _fields(scene, results, picture, localizer.threshold)
    write_text(out / "demo.json", dumps(fields) + "\n")
    if json:
        typer.echo(dumps(fields))
    else:
        typer.echo(_story(scene, results, picture, localizer.threshold))


def _localizer(
    normal: np.ndarray,
    noise: Covariance,
    out: Path,
    train: bool,
    seed: int,
    gamma: float = GAMMA,
) -> Localizer:
    """Load or train the model, and set the threshold from training views alone.

    As in the tests, the randomization is added to these views.
    """
    if train:
        train_with_bar(normal, _CONFIG, _TRAINING, out / "model", resume=False)
    with _model(out if train else None) as directory:
        localizer = load_localizer(directory, draws=seed)
    chosen = np.random.default_rng(seed).permutation(len(normal))[:_CALIBRATION]
    shape = normal.shape[1:]
    seen = (normal[k] + randomization(noise, shape, gamma, seed, f"tune {k}") for k in chosen)
    highest = [localizer.score(image).max() for image in seen]
    return localizer.with_threshold(float(np.quantile(highest, 1 - _FLAGGED)))


@contextmanager
def _model(trained: Path | None) -> Iterator[Path]:
    if trained is not None:
        yield trained / "model"
        return
    shipped = importlib.resources.files("dal_jax.cli") / "data" / "brick"
    with importlib.resources.as_file(shipped) as directory:
        yield directory


def _tests(
    localizer: Localizer, scene: data.Scene, noise: Covariance, seed: int
) -> list[TestResult]:
    images = np.stack([view.image for view in scene.views])
    references = np.stack([scene.references] * len(images))
    with tqdm(total=len(images), desc="testing", unit="view", disable=None) as bar:
        return dal_test_batch(
            localizer,
            images,
            references,
            noise,
            progress=lambda *_: bar.update(),
            randomization=GAMMA,
            seed=seed,
        )


def _titles(scene: data.Scene) -> list[str]:
    return [
        f"{k}" if view.kind == "normal" else f"{k}: {view.kind}"
        for k, view in enumerate(scene.views, 1)
    ]


def _draw(scene: data.Scene, results: list[TestResult], path: Path, threshold: float) -> None:
    figure(
        [view.image for view in scene.views],
        results,
        path,
        titles=[title.replace(": ", "\n") for title in _titles(scene)],
        truths=[None if view.kind == "normal" else view.truth for view in scene.views],
        alpha=ALPHA,
        threshold=threshold,
        heading="Which flagged regions on these brick faces are real flaws?",
        blocks=("Normal views", "Views with a defect put in"),
    )


def _fields(
    scene: data.Scene, results: list[TestResult], picture: Path, threshold: float
) -> dict[str, Any]:
    tests = [
        {"kind": view.kind, **encode_regions(result._asdict())}
        for view, result in zip(scene.views, results, strict=True)
    ]
    return {"figure": picture, "threshold": threshold, "alpha": ALPHA, "results": tests}


def _story(scene: data.Scene, results: list[TestResult], picture: Path, threshold: float) -> str:
    words = [outcome(result, ALPHA) for result in results]
    normal = [view.kind == "normal" for view in scene.views]
    flagged = sum(n and w != NO_REGION for n, w in zip(normal, words, strict=True))
    misled = sum(n and r.naive_p <= ALPHA for n, r in zip(normal, results, strict=True))
    false = sum(n and w == SIGNIFICANT for n, w in zip(normal, words, strict=True))
    found = sum(not n and w == SIGNIFICANT for n, w in zip(normal, words, strict=True))
    count, side, defects = sum(normal), data.SIDE, len(normal) - sum(normal)
    lines = [
        "",
        f"Views of brick faces, {side}x{side} pixels, standardized; none was seen in training.",
        f"Threshold {threshold:.3f}, fixed beforehand: it flags something in {_FLAGGED:.0%} of",
        "normal training views. Noise: a full covariance estimated from training views (the",
        "pixels of a brick are correlated; independent noise would be a wrong model).",
        f"Each region is compared with the mean of {NUM_REFERENCES} other normal views.",
        f"The network sees a noisier view (randomization {GAMMA:g}); the view itself is tested.",
        "",
        table(results, _titles(scene), alpha=ALPHA),
        "",
        f"Normal views: {flagged} of {count} have a flagged region. At level {ALPHA:g} the naive",
        f"test calls {misled} of them a flaw, the selective test {false}.",
        f"With a defect put in: the selective test is sure of {found} of {defects}.",
        "Real pixels are only nearly Gaussian, so its error rate holds approximately here.",
        f"The picture: {picture}",
    ]
    return "\n".join(lines)
