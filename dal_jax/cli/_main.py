"""Entry point of the command, which turns errors into one line and an exit code."""

import os
import sys
from collections.abc import Sequence

from dal_jax._errors import DalJaxError, InputError

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


def main(args: Sequence[str] | None = None) -> int:
    """Run `dal-jax VERB ...`.

    Args:
        args: Words after the command's name; None for those of the process.

    Returns:
        Exit code: 0 for success; otherwise, with one line on standard error, 2 for bad input or a
        missing library, 1 for a run that cannot continue, and 130 for an interruption.
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
        # Not `command.main`, which would return at an interruption without what it says.
        with command.make_context("dal-jax", words) as context:
            code = command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except InputError as error:
        return _refuse(name, str(error))
    except DalJaxError as error:
        _refuse(name, str(error))
        return FAILED
    except (typer.Abort, EOFError, KeyboardInterrupt) as error:
        _refuse(name, f"interrupted: {error}" if str(error) else "interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # What is still to be flushed at the end has nowhere to go either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:  # a disk that is full or fails
        _refuse(name, str(error))
        return FAILED
    except Exception as error:
        # Errors of the parser have this method; typer does not export their class.
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        return _refuse(name, describe() or "no verb given, see dal-jax --help")
    return code if isinstance(code, int) else 0


def _refuse(name: str, message: str) -> int:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT
