"""Command line `dal-jax`: thin functions, one module per verb."""

from dal_jax.cli._main import main as main
