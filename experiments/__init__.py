"""The paper's experiments, one module each: `dal-jax experiment NAME`."""

import importlib
from typing import Any

from dal_jax import InputError
from dal_jax._config import nearest

NAMES = (
    "type1_error",
    "power",
    "robustness",
    "piecewise_linear",
    "intervals",
    "scaling",
    "steps",
    "engine_agreement",
    "real_images",
    "localizers",
    "counterparts",
)


def find(name: str) -> Any:
    """Import an experiment by its name.

    Args:
        name: Name of the experiment, one of `NAMES`.

    Returns:
        Its `Experiment`.

    Raises:
        InputError: There is no experiment of this name.
    """
    if name not in NAMES:
        raise InputError(f"NAME: unknown experiment {name!r}, {nearest(name, NAMES)}")
    return importlib.import_module(f"{__name__}.{name}").EXPERIMENT
