"""Command line `dal-jax`: thin functions, one module per verb."""

from dal_jax._config import nearest as nearest
from dal_jax.cli._main import main as main
