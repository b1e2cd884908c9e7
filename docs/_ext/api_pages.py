"""The reference: the directives `api` and `verbs`, and docstrings made ready for them.

A block of `api` lists public names of a module; each becomes an entry made of its docstring:

    ```{api} dal_jax.noise
    iid
    KINDS: what `estimate` knows
    ```

Words after a name are for constants, which have no docstring. A name that `dal_jax` itself exports
has its entry there, and elsewhere a line that leads to it. `verbs` is the help of every verb.
"""

import importlib
import inspect
import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from numpy.typing import ArrayLike
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.typing import stringify_annotation

TOP = "dal_jax"
# Code in backticks, or a character that would mean something to reStructuredText.
_SPECIAL = re.compile(r"(`+[^`]*`+)|([*|])")
# What a page or style sheet would fetch: links that a reader follows are not meant.
_LOADED = re.compile(
    r"""<(?:script|img|iframe|video|source)[^>]*\ssrc=["']?(?:https?:)?//[^>]*"""
    r"""|<link[^>]*\srel=["']?(?:stylesheet|preload|icon|preconnect)[^>]*\shref=["']?(?:https?:)?//[^>]*"""
    r"""|<link[^>]*\shref=["']?(?:https?:)?//[^>]*\srel=["']?(?:stylesheet|preload|icon|preconnect)"""
    r"""|(?:@import\s+|url\()["']?(?:https?:)?//[^)]*"""
)
_logger = logging.getLogger(__name__)
_ARRAY_LIKE = stringify_annotation(ArrayLike, "smart")
# Inside of Args: names at four spaces; names within the words of one of them at eight.
_ARGUMENT, _INNER = re.compile(r" {4}\S.*:$"), re.compile(r" {8}(\w+): ")


class Api(Directive):
    """Entries of the names in its body, in their order."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Parses what stands for the names."""
        module = importlib.import_module(self.arguments[0])
        text: list[str] = []
        for line in self.content:
            name, _, words = (part.strip() for part in line.partition(":"))
            if name:
                text += ["", *entry(module, name, words)]
        return _nested(self, text)


class Verbs(Directive):
    """The help of every verb of the command."""

    def run(self) -> list[nodes.Node]:
        """Asks each verb."""
        import typer

        from dal_jax.cli._app import app

        group: Any = typer.main.get_command(app)
        text: list[str] = []
        for name, verb in group.commands.items():
            context = verb.make_context(name, [], resilient_parsing=True, terminal_width=76)
            words = verb.get_help(context).replace(f"Usage: {name}", f"Usage: dal-jax {name}")
            text += ["", f"## {name}", "", "```text", *words.splitlines(), "```"]
        return _nested(self, text)


def _nested(directive: Directive, text: Sequence[str]) -> list[nodes.Node]:
    """Parses lines of MyST, headings among them, where a directive stands."""
    node = nodes.Element()
    lines = StringList(list(text), "api")
    directive.state.nested_parse(lines, directive.content_offset, node, match_titles=True)
    return node.children


def entry(module: Any, name: str, words: str) -> Iterator[str]:
    """The lines of MyST that stand for a name.

    Args:
        module: that exports it.
        name: of the object.
        words: what it is, for constants.

    Yields:
        Lines.
    """
    found, path = getattr(module, name), f"{module.__name__}.{name}"
    top = importlib.import_module(TOP)
    if module is not top and getattr(top, name, None) is found:
        yield f"- `{name}`: see {{py:obj}}`{TOP}.{name}`"
        return
    yield "```{eval-rst}"
    if words:
        yield from (f".. py:data:: {path}", "", f"   {words}")
    elif inspect.isclass(found):
        others = {base.__name__ for base in found.__mro__ if not base.__module__.startswith(TOP)}
        inherited = f"   :inherited-members: {','.join(sorted(others))}"  # all but those
        yield from (f".. autoclass:: {path}", "   :members:", inherited)
    else:
        yield f".. autofunction:: {path}"
    yield "```"


def field_comments(cls: type) -> dict[str, str]:
    """What the comments say of the fields of a class.

    Args:
        cls: a NamedTuple, a dataclass or an enumeration, with comments beside its fields.

    Returns:
        Words by field; "" where there is no comment; empty if there is none at all.
    """
    known = {*getattr(cls, "_fields", ()), *getattr(cls, "__dataclass_fields__", ())}
    known |= set(getattr(cls, "__members__", ()))
    try:
        source = inspect.cleandoc("\n" + inspect.getsource(cls))
    except (OSError, TypeError):
        return {}
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source + "\n").readline)
        if token.type == tokenize.COMMENT and token.line.strip()[:1] != "#"
    }
    found: dict[str, str] = {}
    for number, line in enumerate(source.splitlines(), 1):
        match = re.match(r" {4}(\w+)(?::| =)", line)
        if match and match[1] in known:
            found[match[1]] = comments.get(number, "")
    return found if any(found.values()) else {}


def prepare_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Adds the fields of a class, and makes plain text safe for reStructuredText.

    Args:
        app: of Sphinx.
        what: kind of object.
        name: of the object.
        obj: itself.
        options: of the directive.
        lines: of the docstring, changed in place.
    """
    told = field_comments(obj) if what == "class" else {}
    if told and "Args:" not in lines:
        fields = [f"    {field}: {words}" for field, words in told.items()]
        lines += ["", "Fields:", *fields, ""]
    lines[:] = _prepared(lines)


def _prepared(lines: Sequence[str]) -> Iterator[str]:
    """Names within the words of an argument become a list; what is returned has no type."""
    section, inside = "", False
    for line in lines:
        if line[:1].strip():
            section = line
        if section == "Example:":
            yield line
            continue
        if section == "Args:" and inside and line.startswith(" " * 8):
            first = _INNER.match(line)
            start = " " * 10 if first is None else f"        - `{first[1]}`: "
            yield _escaped(start + (line.strip() if first is None else line[first.end() :]))
            continue
        inside = bool(_ARGUMENT.match(line))
        yield _escaped(line)
        if section == "Args:" and inside:
            yield ""
        elif line in ("Returns:", "Yields:"):
            yield "    :"  # without: a colon in the words that follow would make a type of them


def _escaped(line: str) -> str:
    """Bars and stars outside of code are meant as they stand."""
    return _SPECIAL.sub(lambda match: match[1] or "\\" + match[2], line)


def shorten_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: Any, returned: Any
) -> tuple[Any, Any]:
    """Writes `ArrayLike` in place of all that it stands for; a protocol is not called.

    Args:
        app: of Sphinx.
        what: kind of object.
        name: of the object.
        obj: itself.
        options: of the directive.
        signature: as autodoc wrote it, or None.
        returned: its annotation, or None.

    Returns:
        Both.
    """
    if getattr(obj, "_is_protocol", False):
        return "", None
    return signature and signature.replace(_ARRAY_LIKE, "ArrayLike"), returned


def skip_member(
    app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any
) -> bool | None:
    """Leaves out what only repeats the fields of a named tuple.

    Args:
        app: of Sphinx.
        what: kind of the object that holds it.
        name: of the member.
        obj: itself.
        skipped: what autodoc would do.
        options: of the directive.

    Returns:
        True for such members, else None.
    """
    return True if type(obj).__name__ == "_tuplegetter" else None


def only_notebooks_there(app: Sphinx, page: str, source: list[str]) -> None:
    """Takes the notebooks out of the table of contents where there are none, without a warning.

    Args:
        app: of Sphinx.
        page: that was read.
        source: its text, changed in place.
    """
    folder = app.srcdir / "notebooks"
    if page == "index" and not (folder / "index.md").is_file():
        there = "notebooks/*" if any(folder.glob("*.ipynb")) else ""
        source[0] = source[0].replace("\nnotebooks/index\n", f"\n{there}\n")


def check_offline(app: Sphinx, error: Exception | None) -> None:
    """Warns of pages that would load something from elsewhere.

    Args:
        app: of Sphinx.
        error: that ended the build, or None.
    """
    if error is not None or app.builder.format != "html":
        return
    for path in sorted(Path(app.outdir).rglob("*")):
        if path.suffix in (".html", ".css"):
            found = _LOADED.search(path.read_text(encoding="utf-8", errors="replace"))
            if found:
                _logger.warning("%s loads %s", path.relative_to(app.outdir), found[0][:120])


def setup(app: Sphinx) -> dict[str, Any]:
    """Tells Sphinx.

    Args:
        app: of Sphinx.

    Returns:
        What Sphinx wants to know of an extension.
    """
    app.add_directive("api", Api)
    app.add_directive("verbs", Verbs)
    app.connect("autodoc-process-docstring", prepare_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("build-finished", check_offline)
    app.connect("source-read", only_notebooks_there)
    app.connect("autodoc-skip-member", skip_member)
    return {"parallel_read_safe": True}
