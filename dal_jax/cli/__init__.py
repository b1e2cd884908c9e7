"""The command `dal-jax`: thin, one module per verb."""

from dal_jax.cli._main import main as main
