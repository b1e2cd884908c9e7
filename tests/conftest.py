"""Test session settings: float64, strict promotion, slow tests and studies only if asked for."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

# How fast a machine is does not make a test fail.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")

CACHE = "JAX_COMPILATION_CACHE_DIR"
# Files of tests that take minutes begin first, so that none of them is left for one worker alone.
LONG = ("test_sameness.py", "test_notebooks.py", "test_localizers_mdps.py")


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled programs for all files, workers and the processes that they start."""
    if CACHE not in os.environ:  # they end with the session
        os.environ[CACHE] = tempfile.mkdtemp(prefix="dal-jax-tests.")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(CACHE), ignore_errors=True))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "true"
    jax.config.update("jax_compilation_cache_dir", os.environ[CACHE])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_enable_compilation_cache", True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects studies and slow tests unless `-m` names them; long files come first."""
    items.sort(key=lambda item: item.path.name not in LONG)
    if config.getoption("-m"):
        return
    skipped = [i for i in items if i.get_closest_marker("study") or i.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=skipped)
    items[:] = [i for i in items if i not in skipped]


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """Unload a file's programs: a system limits how many pieces of memory a process may have."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the models that experiments train, one for all tests of a file."""
    return tmp_path_factory.mktemp("models")
