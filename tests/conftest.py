"""Test session settings: float64, strict promotion, slow tests and studies only if asked for."""

import os
from pathlib import Path

# The command line keeps no compiled programs in the home of whoever runs the tests.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import hypothesis
import jax
import pytest

# How fast a machine is does not make a test fail.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects studies and slow tests unless `-m` names them."""
    if config.getoption("-m"):
        return
    skipped = [i for i in items if i.get_closest_marker("study") or i.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=skipped)
    items[:] = [i for i in items if i not in skipped]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the models that experiments train, one for all tests of a file."""
    return tmp_path_factory.mktemp("models")
