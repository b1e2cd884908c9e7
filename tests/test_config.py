"""Options that are declared once: keys of files, options of verbs, checks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from dal_jax import InputError, TestOptions
from dal_jax._config import build, fit_fields, options_of, set_field, split_settings
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
    with pytest.raises(InputError, match="engine: got 'exact', expected one of adaptive, sweep"):
        TestOptions(engine="exact")
    for name, own in options_of(TestOptions).items():
        declared = get_args(annotation(TestOptions, name))[0]
        offered = [one for part in (declared, *get_args(declared)) for one in get_args(part)]
        assert set(own.metadata["choices"]) <= set(offered) | set(get_args(declared)), name


@dataclass(frozen=True)
class Part:
    size: int
    scale: float = 1.0


@dataclass(frozen=True)
class Whole:
    part: Part
    shape: int | tuple[int, ...] = 8
    mean: tuple[float, ...] | None = None
    kind: Literal["a", "b"] = "a"
    folder: Path = Path()
    other: Part = Part(1)


def test_nested_tables_become_dataclasses() -> None:
    entries = {"part": {"size": 3, "scale": 2}, "shape": [4, 6], "mean": [1, 2.5], "folder": "x"}
    found = build(Whole, entries, "file")
    assert found == Whole(Part(3, 2.0), (4, 6), (1.0, 2.5), folder=Path("x"))
    assert isinstance(found.part.scale, float) and isinstance(found.mean[0], float)
    assert build(Whole, {"part": {"size": 3}, "mean": None, "kind": "b"}, "").kind == "b"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (3, "file: got 3, expected a table"),
        ({}, "file: 'part' is missing"),
        ({"part": {}}, "file: part: 'size' is missing"),
        ({"part": 3}, "file: part: got 3, expected a table"),
        ({"part": {"sise": 3}}, "file: part: unknown key 'sise', did you mean 'size'?"),
        ({"part": {"size": 1.0}}, "file: part: size: got 1.0, expected a whole number"),
        ({"part": {"size": True}}, "file: part: size: got True, expected a whole number"),
        ({"part": {"size": None}}, "file: part: size: got None, expected a whole number"),
        ({"part": {"size": 1, "scale": 10**400}}, "file: part: scale: got 1000"),
        ({"shape": "x"}, "file: shape: got 'x', expected a whole number"),
        ({"shape": [1.5]}, "file: shape: got 1.5, expected a whole number"),
        ({"mean": 3}, "file: mean: got 3, expected a list"),
        ({"kind": "c"}, "file: kind: got 'c', expected one of a, b"),
        ({"kind": ["a"]}, "file: kind: got ['a'], expected one of a, b"),
        ({"folder": 3}, "file: folder: got 3, expected a path"),
        ({"colour": 3}, "file: unknown key 'colour', expected part, shape, mean, kind, folder"),
    ],
)
def test_wrong_entries_are_refused_in_one_form(entries: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        build(Whole, entries, "file")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_errors_of_the_dataclass_name_the_origin() -> None:
    with pytest.raises(InputError, match=r"^run: precision: got 2\.0, expected a number in"):
        build(TestOptions, {"precision": 2}, "run")


def test_settings_behind_a_name_are_read_as_in_toml() -> None:
    head, given = split_settings("a:b, x=[1, 2],y = text,z.w=1.5,q='1,2'")
    assert (head, given) == ("a:b", {"x": [1, 2], "y": "text", "z.w": 1.5, "q": "1,2"})
    table: dict[str, Any] = {"z": 3}
    for key, value in given.items():
        set_field(table, key, value)
    assert table == {"x": [1, 2], "y": "text", "z": {"w": 1.5}, "q": "1,2"}
