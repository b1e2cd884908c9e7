"""`dal-jax localize`: score map, region and reconstruction of an image, without a test."""

import numpy as np
import typer

from dal_jax._errors import InputError
from dal_jax._files import dumps
from dal_jax.cli import _options as options
from dal_jax.cli._output import encode_regions, need_figures
from dal_jax.images import write_array, write_text
from dal_jax.inspection import open_image
from dal_jax.localizers import THRESHOLD
from dal_jax.report import Maps, figure


def localize(
    model: options.Model,
    image: options.Image,
    localizer: options.Use = None,
    draws: options.Draws = None,
    threshold: options.Threshold = THRESHOLD,
    out: options.Out = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Flags the region in which an image differs from its reconstruction, without a test."""
    need_figures(out)
    found = options.open_localizer(model, threshold, draws, seed, localizer)
    x = open_image(image, found.image_shape)
    score = found.score(x)
    reconstruction = found.reconstruct(x)
    if not np.isfinite(score).all():
        raise InputError(
            f"model {str(model)!r}: NaN or infinite scores for this image, expected finite scores"
        )
    region = score > found.threshold
    maps = {"region": region, "score": score, "reconstruction": reconstruction}
    fields = {"threshold": found.threshold, "num_flagged": int(region.sum()), **maps}
    shown = encode_regions(fields)
    if out is not None:
        for name, array in maps.items():
            write_array(out / f"{name}.npy", array)
        shown |= {name: str(out / f"{name}.npy") for name in maps}
        figure([x], [Maps(**maps)], out / "figure.png", titles=[image.name], threshold=threshold)
        write_text(out / "result.json", dumps(shown) + "\n")
    if json:
        typer.echo(dumps(shown))
        return
    typer.echo(f"{int(region.sum())} of {region.size} pixels flagged (score > {threshold:g})")
    typer.echo(f"largest score {np.max(score):.4g}")
    if out is not None:
        typer.echo(f"written to {out}")
