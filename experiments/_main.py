"""`python -m experiments.NAME`: the command line's verb `experiment`."""

import sys

from dal_jax.cli import main


def run_module(name: str) -> None:
    """Runs `dal-jax experiment NAME` with the words of this process and ends it.

    Args:
        name: of the experiment.
    """
    sys.exit(main(["experiment", name, *sys.argv[1:]]))
