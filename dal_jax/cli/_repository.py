"""Import of parts of the repository that are not installed with the package."""

import importlib
import sys
from pathlib import Path
from typing import Any

import dal_jax
from dal_jax._errors import InputError


def import_beside(module: str, needed_by: str) -> Any:
    """Import a module of the repository, from the working directory or from beside the package.

    Args:
        module: Full name of the module, such as "benchmarks.peer_rounds".
        needed_by: Name of the option or verb, for the error.

    Returns:
        The module.

    Raises:
        InputError: The repository is missing.
    """
    folder, *_ = module.split(".")
    for root in (Path.cwd(), Path(dal_jax.__file__).parents[1]):
        if (root / folder / "__init__.py").is_file():
            sys.path.insert(0, str(root))
            try:
                return importlib.import_module(module)
            finally:
                sys.path.remove(str(root))
    raise InputError(
        f"{needed_by}: got no folder {folder} here, expected that of the dal-jax repository: run "
        "the command there"
    )
