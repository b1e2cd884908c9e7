"""`dal-jax test`: a valid p-value for the region that a model flags in an image."""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from dal_jax import TestResult, dal_test
from dal_jax.cli import _options as options
from dal_jax.cli._output import dumps, filed, listed, need_figures
from dal_jax.images import write_text
from dal_jax.report import figure, table

References = Annotated[
    list[Path],
    typer.Option(
        "--reference",
        metavar="FILE",
        help="Normal image to compare with; give several to compare with their mean.",
    ),
]
Noise = Annotated[
    str,
    typer.Option(
        "--noise",
        metavar="iid:SIGMA|ar1:RHO:SIGMA|FILE",
        help="Covariance of an image; FILE.npy holds variances (H, W[, C]) or a matrix (n, n).",
    ),
]
Engine = Annotated[
    Literal["exact", "adaptive"], typer.Option("--engine", help="How the line is searched.")
]
Visit = Annotated[
    Literal["sweep", "scan"], typer.Option("--visit", help="How the exact engine visits windows.")
]
Alternative = Annotated[
    Literal["two-sided", "equal-tailed", "greater", "less"],
    typer.Option("--alternative", help="Which statistics count as extreme."),
]
Dtype = Annotated[
    Literal["float64", "float32"] | None,
    typer.Option(
        "--dtype",
        help="Computing type of the search; by default float32, settled in float64, for adaptive "
        "and float64 for exact.",
    ),
]
Precision = Annotated[
    float, typer.Option("--precision", metavar="P", help="Widest bounds on p to stop at.")
]
Level = Annotated[
    float | None,
    typer.Option("--alpha", help="Stop as soon as the decision at this level is certain."),
]


def test(
    model: options.Model,
    image: options.Image,
    reference: References,
    draws: options.Draws = None,
    noise: Noise = "iid:1",
    threshold: options.Threshold = 0.8,
    engine: Engine = "adaptive",
    visit: Visit = "sweep",
    precision: Precision = 1e-3,
    alpha: Level = None,
    alternative: Alternative = "two-sided",
    dtype: Dtype = None,
    out: options.Out = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Tests whether the region flagged in an image differs in mean from reference images.

    With --json one object of the result's fields is printed: region as runs [start, length] of
    flagged pixels in row-major order (with --out the maps as paths), NaN as null, infinite ends as
    "Infinity" and "-Infinity". An image in which nothing is flagged has status NO_REGION.
    """
    need_figures(out)
    localizer = options.open_localizer(model, threshold, draws, seed)
    x = options.open_image(image, localizer)
    x_ref = np.stack([options.open_image(path, localizer) for path in reference])
    result = dal_test(
        localizer,
        x,
        x_ref,
        noise,
        alternative=alternative,
        engine=visit if engine == "exact" else engine,
        dtype=dtype,
        precision=precision,
        alpha=alpha,
    )
    level = 0.05 if alpha is None else alpha
    shown = _shown(result, out)
    if out is not None:
        title = [image.name]
        figure([x], [result], out / "figure.png", titles=title, alpha=level, threshold=threshold)
        write_text(out / "result.json", dumps(shown) + "\n")
    typer.echo(dumps(shown) if json else _summary(result, image.name, level, out))


def _shown(result: TestResult, out: Path | None) -> dict[str, Any]:
    fields = result._asdict()
    return listed(fields) if out is None else filed(fields, out)


def _summary(result: TestResult, name: str, alpha: float, out: Path | None) -> str:
    lines = [table([result], [name], alpha=alpha), ""]
    lines.append(
        f"status {result.status.value}, engine {result.engine}, {_effort(result)}, "
        f"{result.seconds:.1f} s; decision at alpha = {alpha:g}"
    )
    if out is not None:
        lines.append(f"written to {out}")
    return "\n".join(lines)


def _effort(result: TestResult) -> str:
    if result.engine != "adaptive":
        return f"{result.num_windows} windows"
    checks = f"{result.num_checks} random points checked"
    if result.num_disagreements:
        checks += f", {result.num_disagreements} surprises followed up"
    return f"{result.num_evaluations} evaluations, {checks}"
