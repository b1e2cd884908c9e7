"""The cache of compiled programs: where it is, when it is off, and that it never stops a verb."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("tqdm")

from dal_jax.cli import _options as options
from dal_jax.cli import main
from dal_jax.diffusion import DalConfig, save_checkpoint
from dal_jax.models import UNetConfig, init_unet

VERB = ["localize", "--model", "nowhere", "--image", "nowhere.npy"]  # ends before it compiles
SETTINGS = {
    "jax_enable_compilation_cache": True,
    "jax_compilation_cache_dir": None,
    "jax_persistent_cache_min_compile_time_secs": 1.0,
}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Another home, with JAX's settings as a user has them; nothing is compiled meanwhile."""
    former = {name: getattr(jax.config, name) for name in SETTINGS}
    for name, value in SETTINGS.items():
        jax.config.update(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    yield tmp_path
    for name, value in former.items():
        jax.config.update(name, value)


def directory() -> Path | None:
    found = jax.config.jax_compilation_cache_dir  # pyright: ignore
    return None if found is None else Path(found)


def test_verbs_have_a_cache_in_the_home_of_the_user(home: Path) -> None:
    assert main(VERB) == 2
    found = directory()
    assert found is not None and found.parent == home / ".cache" / "dal_jax"
    assert not list(home.iterdir())  # until JAX stores a program


@pytest.mark.parametrize(
    ("given", "expected"), [("own", "own/dal_jax"), ("relative", ".cache/dal_jax")]
)
def test_another_folder_for_caches(
    home: Path, monkeypatch: pytest.MonkeyPatch, given: str, expected: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", given if given == "relative" else str(home / given))
    assert main(VERB) == 2
    found = directory()
    assert found is not None and found.parent == home / expected


def test_processors_with_other_instructions_have_directories_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = set()
    for flags in ("avx avx2", "avx avx2 avx512f", "avx avx2"):
        monkeypatch.setattr(options, "_instruction_sets", lambda flags=flags: flags)
        options.keep_compilations(tmp_path)
        found.add(directory())
    assert len(found) == 2 and all(one is not None and one.parent == tmp_path for one in found)


def test_settings_of_jax_come_first(tmp_path: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))  # as the variable does
    assert main(VERB) == 2
    assert directory() == tmp_path / "own"
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    assert main(VERB) == 2
    assert directory() is None


def test_the_option_moves_the_cache_or_turns_it_off(tmp_path: Path) -> None:
    assert main(["test", "--cache", str(tmp_path / "here")]) == 2
    found = directory()
    assert found is not None and found.parent == tmp_path / "here" and found.parent.is_dir()
    assert main(["test", "--cache", "none"]) == 2
    assert directory() is None


def test_a_directory_that_cannot_be_written_is_one_line(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / ".cache").write_text("")  # permissions do not stop everybody
    assert main(VERB) == 2
    first, *others = capsys.readouterr().err.splitlines()
    assert first == (
        f"dal-jax: compiled programs are not kept: cannot write to {str(home / '.cache')!r}"
    )
    assert len(others) == 1 and "nowhere" in others[0]  # what was wrong anyway
    assert directory() is None


def test_programs_unused_for_longest_go_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = home / ".cache" / "dal_jax" / "machine"
    kept.mkdir(parents=True)
    for age, name in enumerate(("new-cache", "old-cache", "oldest-cache", "other")):
        (kept / name).write_bytes(bytes(100))
        os.utime(kept / name, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(options, "CACHE_BYTES", 250)
    assert main(VERB) == 2
    assert sorted(path.name for path in kept.iterdir()) == ["new-cache", "old-cache", "other"]


@pytest.mark.slow
def test_a_second_process_compiles_nothing_that_was_kept(tmp_path: Path) -> None:
    unet = UNetConfig(1, (2, 3), time_dim=4)
    save_checkpoint(tmp_path / "model", init_unet(unet, 0), DalConfig(unet, image_size=8))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(8, 8)))
    words = ["localize", "--model", tmp_path / "model", "--image", tmp_path / "x.npy", "--json"]
    code = "import sys; from dal_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *map(str, words)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    del environment["JAX_COMPILATION_CACHE_DIR"]
    del environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]
    answers, kept = [], []
    for _ in range(3):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == ""
        answers.append(done.stdout)
        files = list(tmp_path.glob("cache/dal_jax/*/*-cache"))
        kept.append({path.name: path.stat().st_mtime_ns for path in files})
        if len(kept) == 2:  # as a process leaves them that is killed
            for path in files:
                path.write_bytes(path.read_bytes()[:100])
    assert kept[0] and kept[1] == kept[0]
    assert answers[0] == answers[1] == answers[2]
