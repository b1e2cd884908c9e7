"""Localizers compared on one data set: detection, false calls, power and cost.

dal-jax experiment localizers --out DIR

All are trained on the same views with the same number of updates of the same batches, unless a
preset has its own; those that share network and objective share the training. "rx" is a detector
without a network, called as one of a user is. The default is a photograph with defects put in;
`experiments/specs/tiles.toml` is for photographs of magnetic tiles.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from dal_jax import DalConfig, InputError, TestOptions, dal_test_batch
from dal_jax.diffusion import TrainConfig, save_checkpoint
from dal_jax.images import DataSet, Preparation
from dal_jax.inspection import (
    CalibrateOptions,
    LearnOptions,
    Profile,
    Source,
    learn,
    train_with_bar,
)
from dal_jax.localizers import Preset, localizer_preset
from dal_jax.runs import fingerprint, wait_for_hosts
from experiments._chain import ALPHA, Chain, run_chain
from experiments._experiment import Context, Experiment
from experiments._output import Row, Tables, finish, panels, pivot
from experiments._rx import DETECTOR
from experiments._textures import GROUPS, PATCH, TexturePlan, write_textures

MAIN = ("dal:small", "mdps:pl", "mdps:faithful", "glad:pl", "glad:faithful", "autoencoder:small")
# Localizers without one part: mask or guidance of MDPS, stopping or fusion of GLAD.
PARTS = (
    "mdps:pl,first_start=0",
    "mdps:pl,weight=0,first_weight=0",
    "glad:pl,stop_distance=inf",
    "glad:pl,fusion_centre=1e6",
)
RX = "rx"
METHODS = ("selective", "naive")
_METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro")


@dataclass(frozen=True)
class Settings:
    """Localizers, images, training and tests.

    Raises:
        InputError: A value does not fit.
    """

    localizers: tuple[str, ...] = (*MAIN, RX, *PARTS)  # as `localizer_preset` takes them, or RX
    data: str = ""  # folder of images; "": a photograph of gravel with defects put in
    layout: str = "auto"
    groups: str | None = None  # images of one object, as --groups takes them
    view: str = "resize"
    size: int = 32  # side of a view, pixels
    reduce: int = 1
    labels: tuple[str, ...] = ()  # of the test images; (): all
    per_label: int = 60  # largest number of test images of each label
    held_out: int = 60  # largest number of normal images kept for false calls
    steps: int = 600  # of training
    batch_size: int = 16
    noise: str = "auto"
    flag_share: float = 0.02
    region: str = "peak"
    randomization: float = LearnOptions.randomization  # 0: the test as published
    # Widest bounds on p, for scores that jump much (masks, stopping); with `decide`, a search ends
    # as soon as the decision at 0.05 is certain. Only decisions are compared.
    precision: float = 0.01
    decide: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for text in self.localizers:
            _preset(text)
        for name in ("per_label", "held_out"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if not self.data and not 1 <= self.size <= PATCH:
            raise InputError(f"size: got {self.size}, expected 1 to {PATCH} without data")

    @property
    def preparation(self) -> Preparation:
        """Preparation of each image."""
        if self.data:
            return Preparation(self.size, self.view, reduce=self.reduce)  # type: ignore[arg-type]
        how: dict[str, Any] = {"view": "crop", "intensity": "raw", "scale": "train"}
        return Preparation(self.size, **how, reduce=PATCH // self.size)

    @property
    def source(self) -> Source:
        """Source of the images."""
        if self.data:
            return Source(self.layout, groups=self.groups)
        return Source("mvtec", groups=GROUPS)


def _preset(name: str) -> Preset:
    return Preset(DETECTOR, {}) if name == RX else localizer_preset(name)


class LocalizerResult(NamedTuple):
    """Results of one localizer."""

    name: str
    chain: Chain
    seconds: float  # of a test
    evaluations: float  # of the score in a test


def measure(settings: Settings, context: Context) -> Tables:
    """Train, calibrate and test with each localizer, one after the other."""
    root = images_of(settings, context)
    with tqdm(unit="view", file=sys.stderr, disable=context.host.index > 0 or None) as bar:
        results = [_test(name, root, settings, context, bar) for name in settings.localizers]
    return {
        "localizers": [_row(one) for one in results],
        "localizers_times": [
            {"localizer": one.name, "seconds": one.seconds, "evaluations": one.evaluations}
            for one in results
        ],
    }


def images_of(settings: Settings, context: Context) -> Path:
    """Return the folder of the images; the first process writes them if they are not the user's."""
    root = Path(settings.data) if settings.data else context.directory / "data"
    if context.host.index == 0 and not settings.data:
        write_textures(root, "gravel", TexturePlan((2.0, 4.0), 2, 32, settings.seed))
    wait_for_hosts("data")
    return root


def learn_localizer(name: str, root: Path, settings: Settings, context: Context) -> Path:
    """Return the folder of a localizer; the first process trains it if it is missing."""
    if context.host.index == 0:
        _learn(name, root, settings, context.models)
    wait_for_hosts(f"learnt {name}")
    return _learn(name, root, settings, context.models)


def _test(name: str, root: Path, settings: Settings, context: Context, bar: Any) -> LocalizerResult:
    home = learn_localizer(name, root, settings, context)
    directory = context.directory / "runs" / fingerprint(name)[:12]
    wanted = CalibrateOptions(control=0, lengths=False, seed=settings.seed)
    select = partial(select_images, settings=settings)
    options = TestOptions(precision=settings.precision, alpha=ALPHA if settings.decide else None)
    code = DETECTOR.source if name == RX else None
    chain = run_chain(root, home, directory, context, bar, name, wanted, options, select, code)
    return LocalizerResult(name, chain, *_cost(chain, options))


def _cost(chain: Chain, options: TestOptions) -> tuple[float, float]:
    """Return seconds of a test among several side by side, without compiling, and evaluations."""
    profile = chain.profile
    x = profile.references[:4]
    arguments = (chain.localizer, x, np.roll(x, 1, axis=0), profile.noise)
    how = vars(replace(options, region=profile.region))
    dal_test_batch(*arguments, **how)  # compiles
    begun = time.perf_counter()
    results = dal_test_batch(*arguments, **how)
    seconds = (time.perf_counter() - begun) / len(x)
    return seconds, float(np.mean([result.num_evaluations for result in results]))


def _learn(name: str, root: Path, settings: Settings, models: Path) -> Path:
    """Train a localizer, or take the network of another one with the same training."""
    config, own = _preset(name)
    same = {"steps": settings.steps, "batch_size": settings.batch_size, "seed": settings.seed}
    training = TrainConfig(**{**same, **own})
    options = LearnOptions(
        noise=settings.noise,
        flag_share=settings.flag_share,
        region=settings.region,
        randomization=settings.randomization,
        seed=settings.seed,
    )
    asked = (settings.source, settings.preparation, config, training, options, str(root.resolve()))
    home = models / f"localizer-{config.kind}-{fingerprint(*asked)[:8]}"
    if not (home / "profile.json").is_file():  # written last
        learn(
            root,
            settings.source,
            settings.preparation,
            config,
            training,
            options,
            home,
            partial(_train, models),
        )
    return home


def _train(
    models: Path,
    views: np.ndarray,
    config: Any,
    training: TrainConfig,
    home: Path,
    finish: Callable[[Any], Any],
    **more: Any,
) -> None:
    """Train a network for its objective, once for all localizers that have it."""
    objective = config.objective
    plain = config
    if config.kind != "autoencoder":  # settings of the localizer are not the network's
        plain = DalConfig(config.unet, config.schedule, image_size=config.image_size)
    name = f"network-{fingerprint(repr(objective), training, views)[:8]}"
    variables: list[Any] = []

    def catch(learned: Any) -> Any:
        variables.append(learned)
        return plain

    more = {"objective": objective, "finish": catch, **more}
    train_with_bar(views, plain, training, models / name, **more)
    save_checkpoint(home, variables[0], finish(variables[0]))


def select_images(data: DataSet, profile: Profile, settings: Settings) -> DataSet:
    """Select the images to test by the seed, without regard to their content."""
    rng = np.random.default_rng((settings.seed, 5))
    held = set(profile.roles["calibrate"])
    kept = [s for s in data.samples if s.split == "train" and s.group not in held]
    parts = [[s for s in data.samples if s.split == "train" and s.group in held]]
    labels = list(dict.fromkeys(s.label for s in data.samples if s.split == "test"))
    for label in settings.labels or labels:
        parts.append([s for s in data.samples if s.split == "test" and s.label == label])
    for number, part in enumerate(parts):
        most = settings.per_label if number else settings.held_out
        kept += [part[k] for k in sorted(rng.permutation(len(part))[:most])]
    return data._replace(samples=tuple(kept))


def _row(one: LocalizerResult) -> Row:
    metrics = one.chain.inspection.metrics
    image, pixel = metrics["image"], metrics.get("pixel", {})
    row: Row = {
        "localizer": one.name,
        "image_auroc": image["auroc"],
        "image_ap": image["ap"],
        **{name: pixel.get(name, float("nan")) for name in ("pixel_auroc", "pixel_ap", "aupro")},
        "threshold": one.chain.profile.threshold,
        "parameters": fingerprint(one.chain.localizer.params),
    }
    rates = {(rate.method, rate.alpha): rate for rate in one.chain.calibrated.rates}
    for method in METHODS:
        found = metrics["significant"][method]
        for part, share in (("normal", found["normal"]), ("defect", found["touching"])):
            row[f"{part}_{method}"] = share["share"]
            row[f"{part}_{method}_se"] = share["standard_error"]
        row[f"{method}_regions"] = found["normal"]["num_decided"]
        row[f"{method}_touching"] = found["touching"]["num_decided"]
        held = rates[method, ALPHA]
        row[f"held_{method}"] = held.rate
        row[f"held_{method}_low"], row[f"held_{method}_high"] = held.low, held.high
    return row


def summary(tables: Tables) -> str:
    """Return metrics, false calls, detected defects and cost, Markdown."""
    rows = tables["localizers"]
    metrics = [{**row, "metric": name, "value": row[name]} for row in rows for name in _METRICS]
    calls = [
        {**row, "what": what, "cell": _call(row, key, method), "method": method}
        for row in rows
        for what, key in (("held out", "held"), ("good", "normal"), ("defects", "defect"))
        for method in METHODS
    ]
    times = tables["localizers_times"]
    return "\n".join(
        [
            "Detection by the largest score of an image, and pixel by pixel:\n",
            pivot(metrics, ("localizer",), "metric", lambda row: f"{row['value']:.3f}"),
            f"Regions called significant at {ALPHA:g}: of held-out normal images (95% interval), "
            "of good test images, and of those that touch a defect (standard errors):\n",
            pivot(calls, ("localizer", "what"), "method", lambda row: row["cell"]),
            "Cost of a test, several side by side:\n",
            pivot(
                [{**row, "": "seconds; evaluations"} for row in times],
                ("localizer",),
                "",
                lambda row: f"{row['seconds']:.2f}; {row['evaluations']:.0f}",
            ),
        ]
    )


def _call(row: Row, key: str, method: str) -> str:
    if key == "held":
        low, high = row[f"held_{method}_low"], row[f"held_{method}_high"]
        return f"{row[f'held_{method}']:.3f} ({low:.3f} to {high:.3f})"
    count = row[f"{method}_{'regions' if key == 'normal' else 'touching'}"]
    return f"{row[f'{key}_{method}']:.2f} ({row[f'{key}_{method}_se']:.2f}) of {count}"


def draw(tables: Tables) -> dict[str, Any]:
    """Draw detection, and the shares called significant, by localizer."""
    rows = tables["localizers"]
    place = np.arange(len(rows))
    figure, axes = panels(["detection", "called significant, selective"])
    figure.set_size_inches(12, 1.6 + 0.3 * len(rows))
    for name in ("image_auroc", "pixel_auroc", "aupro"):
        axes[0].plot([row[name] for row in rows], place, "o", label=name.replace("_", " "))
    parts = (("defect", "touching a defect", "C3"), ("normal", "good test images", "C7"))
    for key, label, colour in parts:
        rates = [row[f"{key}_selective"] for row in rows]
        errors = [row[f"{key}_selective_se"] for row in rows]
        axes[1].errorbar(rates, place, xerr=errors, fmt="o", capsize=2, label=label, color=colour)
    axes[1].axvline(ALPHA, color="black", linewidth=0.8, linestyle=":")
    for axis in axes:
        axis.set_xlim(-0.03, 1.03)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_yticks(place, [])
    axes[0].set_yticks(place, [row["localizer"] for row in rows], fontsize=7)
    return {"localizers": finish(figure, axes, "")}


QUICK = Settings()
PAPER = Settings(size=32, per_label=1000, held_out=1000, steps=4000, batch_size=64)
EXPERIMENT = Experiment(
    "Localizers compared", {"quick": QUICK, "paper": PAPER}, measure, summary, draw
)
