"""Application of typer, which registers the verb of each module."""

import typer

import dal_jax
from dal_jax.cli._bench import bench
from dal_jax.cli._calibrate import calibrate
from dal_jax.cli._demo import demo
from dal_jax.cli._experiment import experiment
from dal_jax.cli._import_weights import import_weights
from dal_jax.cli._localize import localize
from dal_jax.cli._options import keep_compilations_by_default
from dal_jax.cli._plan import plan
from dal_jax.cli._report import report
from dal_jax.cli._test import test
from dal_jax.cli._test_thinned import test_thinned
from dal_jax.cli._thin import thin
from dal_jax.cli._train import train

app = typer.Typer(
    name="dal-jax",
    help="Valid p-values for regions flagged by a diffusion model.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(dal_jax.__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Valid p-values for regions flagged by a diffusion model."""
    keep_compilations_by_default()


app.command("demo")(demo)
app.command("train")(train)
app.command("calibrate")(calibrate)
app.command("plan")(plan)
app.command("localize")(localize)
app.command("test")(test)
app.command("thin")(thin)
app.command("test-thinned")(test_thinned)
app.command("report")(report)
app.command("import-weights")(import_weights)
app.command("bench")(bench)
app.command("experiment")(experiment)
