"""Options that are declared once: keys of files, options of verbs, checks."""

from dataclasses import dataclass
from typing import get_args

import pytest

from dal_jax import InputError, TestOptions
from dal_jax._config import fit_fields, options_of
from dal_jax.cli._options import annotation


@dataclass(frozen=True)
class Run:
    name: str
    how: TestOptions = TestOptions()  # noqa: RUF009 (frozen)


def test_a_part_is_made_of_the_keys_of_its_options() -> None:
    found = fit_fields(Run, {"name": "a", "engine": "sweep", "alpha": 0.01}, "run")
    assert Run(**found) == Run("a", TestOptions(engine="sweep", alpha=0.01))
    assert Run(**fit_fields(Run, {"name": "a"}, "run")) == Run("a")
    for key in ("how", "adaptive"):  # neither a part itself, nor what no option declares
        with pytest.raises(InputError, match=f"run: unknown key '{key}'"):
            fit_fields(Run, {key: 1}, "run")


def test_choices_are_refused_by_the_options_and_offered_by_the_verbs() -> None:
    with pytest.raises(InputError, match="engine is 'exact', expected one of adaptive, sweep"):
        TestOptions(engine="exact")
    for name, own in options_of(TestOptions).items():
        declared = get_args(annotation(TestOptions, name))[0]
        offered = [one for part in (declared, *get_args(declared)) for one in get_args(part)]
        assert set(own.metadata["choices"]) <= set(offered) | set(get_args(declared)), name
