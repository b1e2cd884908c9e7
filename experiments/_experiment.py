"""Experiments and their runs: tests in run directories, then tables and figures."""

import json
import platform
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

import dal_jax
from dal_jax import InputError, QueuedImage, TestOptions, run_tests
from dal_jax._files import file_errors, read_json, write_text
from dal_jax.runs import Host, encode, fingerprint, wait_for_hosts
from experiments._models import Model, Use, localizer_of, variables_of
from experiments._output import Row, Tables, code_version, write_figures, write_tables
from experiments._simulation import Simulation

RECORD = "experiment.json"


class Condition(NamedTuple):
    """One setting of an experiment, under which many images are tested."""

    labels: dict[str, Any]  # its columns of the tables; together they differ from all others
    model: Model
    use: Use
    simulation: Simulation
    images: int
    options: TestOptions
    assumed: str = ""  # noise that the tests assume, see `Simulation.case`; "": the true covariance

    @property
    def name(self) -> str:
        """Name of the condition's folder."""
        words = "-".join(f"{key}={value}" for key, value in self.labels.items())
        return re.sub(r"[^A-Za-z0-9_.=-]", "_", words)

    @property
    def effort(self) -> float:
        """Rough duration in arbitrary units, for the progress bar."""
        each = 1 if self.options.engine == "adaptive" else 20
        each += self.options.permutations / 40
        return self.images * each * self.simulation.size**2 * self.use.reverse.steps


class ConditionResult(NamedTuple):
    """A condition and the results of its tests."""

    condition: Condition
    records: list[dict[str, Any]]  # of the images, in order; see `dal_jax.as_record`
    run: Row  # origin of the numbers: fingerprints, engine, dtype, seeds
    draws_shape: tuple[int, ...]  # of an image's draws

    def square(self, number: int) -> np.ndarray:
        """Return the place of the square of an image, bool (H, W)."""
        return self.condition.simulation.square(number, self.draws_shape)


def progress_bar(total: float, hidden: bool = False) -> Any:
    """Return a bar of effort on the terminal, with the time that is left.

    Args:
        total: Total effort.
        hidden: Whether to hide the bar; without a terminal it is hidden anyway.

    Returns:
        A context manager of tqdm.
    """
    return tqdm(
        total=total,
        bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}",
        file=sys.stderr,
        disable=hidden or None,  # None hides the bar where stderr is no terminal
    )


@dataclass(frozen=True)
class Context:
    """Surroundings of an experiment: its directory, the models, the processes and devices."""

    directory: Path
    models: Path
    host: Host = Host(0, 1)  # noqa: RUF009 (a constant)
    devices: int | None = None
    batch_size: int | None = None

    def tests(self, conditions: Sequence[Condition]) -> list[ConditionResult]:
        """Test the images of conditions; results of an earlier run are kept.

        Args:
            conditions: Conditions with different labels.

        Returns:
            A result for each, in order.

        Raises:
            InputError: There is nothing to test, or the directory holds something else.
            RunError: The disk is full, or another process was lost.
        """
        if not conditions:
            raise InputError("settings: nothing to be tested, expected 1 image or more")
        names = [condition.name for condition in conditions]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"conditions: {twice} is there twice, expected different labels")
        self.train([condition.model for condition in conditions])
        total = sum(condition.effort for condition in conditions)
        results: list[ConditionResult] = []
        with progress_bar(total, hidden=self.host.index > 0) as bar:
            for condition in conditions:
                bar.set_postfix_str(condition.name)
                results.append(self._test(condition, bar))
        return results

    def train(self, models: Sequence[Model]) -> None:
        """Train missing models in the first process, while the others wait.

        Args:
            models: Models that are needed.
        """
        if self.host.index == 0:
            for model in dict.fromkeys(models):
                variables_of(model, self.models)
        wait_for_hosts("models")

    def _test(self, condition: Condition, bar: Any) -> ConditionResult:
        localizer = localizer_of(condition.model, condition.use, self.models)
        shape = np.shape(localizer.draws)
        simulation, assumed = condition.simulation, condition.assumed
        items = [
            QueuedImage(f"{number:06d}", None, _Load(simulation, number, shape, assumed))
            for number in range(condition.images)
        ]
        before = bar.n

        def follow(done: int, _: Any) -> None:
            bar.update(before + condition.effort * done / condition.images - bar.n)

        directory = self.directory / "runs" / condition.name
        records = run_tests(
            directory,
            localizer,
            items,
            simulation.noise,
            condition.options,
            host=self.host,
            shared=(simulation, assumed),
            own_draws=True,
            batch_size=self.batch_size,
            devices=self.devices,
            progress=follow,
        )
        return ConditionResult(
            condition,
            records,
            {
                "condition": condition.name,
                "run": json.loads((directory / "run.json").read_text())["fingerprint"],
                "model": condition.model.name,
                "parameters": fingerprint(localizer.params),
                "engine": condition.options.engine,
                "dtype": condition.options.dtype,
                "seed": simulation.seed,
                "images": condition.images,
            },
            shape,
        )


class _Load(NamedTuple):
    """Drawing of an image when its turn comes."""

    simulation: Simulation
    number: int
    draws_shape: tuple[int, ...]
    assumed: str

    def __call__(self) -> Any:
        return self.simulation.case(self.number, self.draws_shape, self.assumed)


class Experiment(NamedTuple):
    """An experiment: its question, its presets, and the tables and figures of the answer."""

    title: str
    presets: dict[str, Any]  # "quick", "paper", perhaps "standard": dataclasses with a `seed`
    measure: Callable[[Any, Context], Tables]  # (settings, context) -> tables by name
    summary: Callable[[Tables], str]  # Markdown
    draw: Callable[[Tables], dict[str, Any]]  # figures of matplotlib by name


def check_lengths(settings: Any, name: str, *others: str) -> None:
    """Raise an error if lists of settings are empty or differ in length.

    Args:
        settings: A dataclass.
        name: Name of the list that sets the length.
        *others: Names of lists with an entry for each of its entries.

    Raises:
        InputError: The list is empty, or another has a different length.
    """
    expected = len(getattr(settings, name))
    if not expected:
        raise InputError(f"{name} is empty, expected at least one entry")
    for other in others:
        length = len(getattr(settings, other))
        if length != expected:
            raise InputError(
                f"{other} has {length} entries, expected {expected}, one for each of {name}"
            )


def run_experiment(name: str, experiment: Experiment, settings: Any, context: Context) -> str:
    """Run or continue an experiment, and write its tables, figures and summary.

    The tables depend on the settings alone: not on interruptions, devices or processes. (On one
    kind of machine: another one rounds differently.) Columns of time are the exception; they are
    in tables whose name ends in "times".

    Args:
        name: Name of the experiment.
        experiment: The experiment.
        settings: One of its presets, changed or not.
        context: Directory, models, processes and devices.

    Returns:
        The summary, Markdown; empty in processes other than the first.

    Raises:
        InputError: The directory holds another experiment, or one with other settings.
        RunError: The disk is full, or another process was lost.
    """
    fresh = claim(context.directory, name, settings)
    wait_for_hosts("claimed")
    try:
        tables = experiment.measure(settings, context)
    except InputError:
        if fresh and [path.name for path in context.directory.iterdir()] == [RECORD]:
            (context.directory / RECORD).unlink()  # so that the settings can be corrected
        raise
    if context.host.index:
        return ""
    write_tables(context.directory, tables)
    write_figures(context.directory, experiment.draw(tables))
    summary = experiment.summary(tables)
    write_text(context.directory / "summary.md", f"# {experiment.title}\n\n{summary}")
    return summary


def claim(directory: Path, name: str, settings: Any) -> bool:
    """Mark a directory as that of an experiment, or check that it is.

    Args:
        directory: Directory of the experiment, made if missing.
        name: Name of the experiment.
        settings: Settings of the experiment.

    Returns:
        Whether the directory is newly marked.

    Raises:
        InputError: It holds something else; nothing is written then.
    """
    path = directory / RECORD
    facts = {"experiment": name, "settings": json.loads(json.dumps(encode(asdict(settings))))}
    if path.is_file():
        _check_same(directory, facts)
        return False
    if directory.is_dir():
        others = sorted(p.name for p in directory.iterdir() if not p.name.startswith("."))
        if others:
            raise InputError(
                f"--out {str(directory)!r}: holds {others[0]!r} and no {RECORD}, expected an empty "
                "directory or one of this experiment"
            )
    facts |= {
        "fingerprint": fingerprint(name, settings, dal_jax.__version__),
        "versions": {
            "dal_jax": dal_jax.__version__,
            "code": code_version(),
            "jax": jax.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "device": jax.local_devices()[0].device_kind,
    }
    write_text(path, json.dumps(facts, indent=1) + "\n")
    return True


def _check_same(directory: Path, facts: dict[str, Any]) -> None:
    """Raise an error if the directory has an experiment of another name or other settings."""
    path = directory / RECORD
    with file_errors(path, "--out"):
        record = read_json(path, "--out")
        held = {key: record[key] for key in facts}
    if held["experiment"] != facts["experiment"]:
        raise InputError(
            f"--out {str(directory)!r}: holds experiment {held['experiment']!r}, expected "
            f"{facts['experiment']!r} or an empty directory"
        )
    for key, value in facts["settings"].items():
        other = held["settings"].get(key)
        if other != value:
            raise InputError(
                f"--out {str(directory)!r}: holds a run with {key} = {other!r}, expected "
                f"{value!r} or an empty directory"
            )
