"""Entry point of the command: runs a verb and turns refusals into one line and exit code 2."""

import sys
from collections.abc import Sequence

from dal_jax._errors import DalJaxError, InputError

BAD_INPUT = 2
INTERRUPTED = 130


def main(args: Sequence[str] | None = None) -> int:
    """Runs `dal-jax VERB ...`.

    Args:
        args: the words after the command's name; by default those of the process.

    Returns:
        The exit code: 0; else, with one line on standard error, 2 for bad input or a missing
        library, 1 for a run that cannot go on, 130 for an interruption.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        import tqdm  # noqa: F401
        import typer
    except ImportError as error:
        missing = f'the command line needs {error.name}: pip install "dal-jax[cli]"'
        return _refuse("dal-jax", missing)
    from dal_jax.cli._app import app

    command = typer.main.get_command(app)
    verbs = getattr(command, "commands", {})
    name = " ".join(["dal-jax", *(word for word in words[:1] if word in verbs)])
    try:
        code = command.main(args=words, prog_name="dal-jax", standalone_mode=False)
    except InputError as error:
        return _refuse(name, str(error))
    except DalJaxError as error:
        _refuse(name, str(error))
        return 1
    except (typer.Abort, KeyboardInterrupt):
        _refuse(name, "interrupted")
        return INTERRUPTED
    except Exception as error:
        # The parser's own refusals; typer keeps their class to itself, so they are known by form.
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        return _refuse(name, describe() or "no verb given, see dal-jax --help")
    return code if isinstance(code, int) else 0


def _refuse(name: str, message: str) -> int:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT
