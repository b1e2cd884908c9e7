"""What the studies share: a model trained on noise, and runs of rows that can be continued."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dal_jax import DalConfig, Localizer, dal_localizer, load_localizer
from dal_jax.diffusion import TrainConfig, train
from dal_jax.images import write_text

# Rows between two savings.
CHUNK = 100


def trained(settings: Any) -> Localizer:
    """Trains the localizer of a study on normal images of pure noise N(0, I), or loads one.

    Args:
        settings: with `size` (side, pixels), `train_images`, `train_steps`, `threshold`, `seed`,
            and perhaps `model`, a checkpoint to be used instead unless it is empty.

    Returns:
        The localizer; its draws are replaced for each test.
    """
    model = getattr(settings, "model", "")
    if model:
        return load_localizer(model, settings.threshold)
    config = DalConfig(image_size=settings.size)
    rng = np.random.default_rng((settings.seed, 0))
    images = rng.standard_normal((settings.train_images, *config.image_shape), np.float32)
    plan = TrainConfig(steps=settings.train_steps, seed=settings.seed)
    return dal_localizer(train(images, config, plan), config, settings.threshold)


def study(
    settings_type: Any,
    run: Callable[[Localizer, Any, list[dict[str, Any]]], None],
    summary: Callable[[list[dict[str, Any]]], dict[str, Any]],
    description: str,
) -> None:
    """Runs a study from the command line: options from the settings, rows kept as they come.

    Args:
        settings_type: NamedTuple with defaults, as `trained` takes it; `images` is how many rows
            there will be.
        run: appends the rows that are missing up to `settings.images`; row k must depend on the
            settings and k alone.
        summary: of the rows.
        description: of the study, for --help.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="JSON file; continued if it exists")
    for name, default in settings_type()._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = vars(parser.parse_args())
    out = options.pop("out")
    settings = settings_type(**options)
    rows: list[dict[str, Any]] = []
    if out.exists():
        earlier = json.loads(out.read_text())
        if {**earlier["settings"], "images": settings.images} != settings._asdict():
            parser.error(f"--out {out} holds a run with other settings: {earlier['settings']}")
        rows = earlier["rows"]
    localizer, started, before = trained(settings), time.perf_counter(), len(rows)
    while len(rows) < settings.images:
        goal = min(len(rows) + CHUNK, settings.images)
        run(localizer, settings._replace(images=goal), rows)
        record = {"settings": settings._asdict(), "summary": summary(rows), "rows": rows}
        write_text(out, json.dumps(record))
        pace = (time.perf_counter() - started) / (len(rows) - before)
        print(f"{len(rows)}/{settings.images}  {pace:.3f} s an image", flush=True)
    print(json.dumps(summary(rows), indent=1))
