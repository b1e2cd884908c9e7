"""Writes `docs/licences.md`: the licences of what the package and its extra `all` need.

    python docs/write_licences.py

Licences are as the installed packages' own metadata say; `tests/test_licences.py` checks them.
"""

import importlib.metadata
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("all",)
PAGE = Path(__file__).with_name("licences.md")
# Licences that let anyone use and pass on this package with what it needs, under its own licence.
ALLOWED = {
    *("MIT", "MIT-CMU", "BSD-2-Clause", "BSD-3-Clause", "BSD", "0BSD", "ISC", "Zlib"),
    *("Apache-2.0", "PSF-2.0", "CC0-1.0", "Unlicense", "AFL-2.1", "BSL-1.0"),
    *("MPL-2.0", "LGPL-2.1-or-later", "LGPL-3.0-or-later"),
}
# How licences are called in older metadata.
_NAMES = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "Apache License 2.0": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "BSD": "BSD",
}


def asked_for(extras: Iterable[str] = EXTRAS) -> list[Requirement]:
    """What `pyproject.toml` asks for.

    Args:
        extras: of this package, beside the core.

    Returns:
        Requirements; extras that name other extras of this package are followed.
    """
    project = tomllib.loads((PAGE.parents[1] / "pyproject.toml").read_text())["project"]
    todo, found = list(extras), [Requirement(text) for text in project["dependencies"]]
    while todo:
        for text in project["optional-dependencies"][todo.pop()]:
            one = Requirement(text)
            if one.name == project["name"]:
                todo += one.extras
            else:
                found.append(one)
    return found


def needed() -> dict[str, bool]:
    """What the package needs here, directly or not.

    Returns:
        Names, and whether `pyproject.toml` asks for them itself.
    """
    direct = {canonicalize_name(one.name) for one in asked_for()}
    todo = [(canonicalize_name(one.name), frozenset(one.extras)) for one in asked_for()]
    seen: dict[str, frozenset[str]] = {}
    while todo:
        name, wanted = todo.pop()
        if name in seen and wanted <= seen[name]:
            continue
        seen[name] = seen.get(name, frozenset()) | wanted
        for text in importlib.metadata.requires(name) or []:
            one = Requirement(text)
            extras = (*wanted, "")
            if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in extras):
                todo.append((canonicalize_name(one.name), frozenset(one.extras)))
    return {name: name in direct for name in sorted(seen)}


def licence(name: str) -> str:
    """The licence of an installed package, as short as its metadata allow.

    Args:
        name: of the package.

    Returns:
        An SPDX expression, or what the metadata say.
    """
    facts = importlib.metadata.metadata(name)
    told: dict[str, Any] = facts.json
    if "license_expression" in told:
        return told["license_expression"]
    classifiers: list[str] = [
        line.rpartition(" :: ")[2]
        for line in told.get("classifier", ())
        if line.startswith("License ::")
    ]
    short = str(told.get("license", "")).strip().partition("\n")[0]
    if short in _NAMES or (re.search(r"\d|MIT", short) and len(short) < 30):
        return _NAMES.get(short, short)
    return " OR ".join(_NAMES.get(line, line) for line in classifiers) or short or "unknown"


def allowed(expression: str) -> bool:
    """Is everything that a licence may ask for among what is allowed?

    Args:
        expression: of SPDX.

    Returns:
        Whether one alternative consists of allowed licences alone.
    """
    return any(
        all(part.strip("() ") in ALLOWED for part in re.split(r"\bAND\b", alternative))
        for alternative in re.split(r"\bOR\b", expression)
    )


def page() -> str:
    """The page, from what is installed here.

    Returns:
        Markdown.
    """
    lines = [
        "# Licences",
        "",
        "`dal_jax` is under the MIT licence. This page is written by",
        "",
        "```console",
        "python docs/write_licences.py",
        "```",
        "",
        "from the metadata of the packages that the core and the extra `all` need; another",
        "environment may need others. Only permissive licences, and those of the kind of LGPL and",
        "MPL, are let in: `tests/test_licences.py`.",
        "",
        "| package | licence | asked for by dal_jax itself |",
        "|---|---|---|",
    ]
    for name, direct in needed().items():
        lines.append(f"| {name} | {licence(name)} | {'yes' if direct else ''} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
