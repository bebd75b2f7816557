"""The command line: ``headroom sample``, ``inspect``, ``convert``, ``plan``, ``run`` and the other commands.

Only this room prints, and only this module turns errors into exit codes: 0 for success, 2 for the user's input or
configuration, 3 for the environment, 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

import click

from pipeline.base import Terminated, terminations_raised
from pipeline.cli.cluster import cluster
from pipeline.cli.doctor import doctor
from pipeline.cli.predict import export, predict
from pipeline.cli.results import add, compare, moments, remove, report
from pipeline.cli.run import plan, run, submit
from pipeline.cli.spectra import convert, inspect, sample
from pipeline.cli.status import status
from pipeline.errors import HeadroomError, ResourceError, printable


class _Workflow(click.Group):
    """A group that lists its commands in the order in which they were added, not by the alphabet."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of the commands, in the order in which a user needs them."""
        return list(self.commands)


@click.group(cls=_Workflow, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="headroom", prog_name="headroom")
def cli() -> None:
    """Measure how much a mixture of experts would gain over one global ridge model.

    Commands are listed in the order of the work. Every command has --help with an example.

    \b
    Example, from nothing to a report:
      headroom sample spectra/
      HEADROOM_DEMO=spectra headroom run demo --out runs/demo
    """


for _command in (
    doctor,
    sample,
    inspect,
    convert,
    plan,
    run,
    submit,
    status,
    cluster,
    add,
    remove,
    report,
    compare,
    moments,
    export,
    predict,
):
    cli.add_command(_command)


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    """Turn what went wrong into a message and an exit code; a bug keeps its traceback."""
    try:
        yield
    except click.ClickException as error:  # a wrong option or argument
        error.show()
        sys.exit(error.exit_code)
    except HeadroomError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        reason = error.__cause__ if isinstance(error, click.Abort) else error
        by, code = (f" by {reason}", reason.exit_code) if isinstance(reason, Terminated) else ("", 130)
        _fail(f"interrupted{by}; run the same command again to resume", code)
    except OSError as error:
        _fail(f"{error.filename or type(error).__name__}: {error.strerror or error}", ResourceError.exit_code)
    except MemoryError:
        _fail("out of memory; `headroom plan` says what the run needs", ResourceError.exit_code)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"headroom: {printable(message)}", err=True)
    sys.exit(code)


def _call(arguments: Sequence[str] | None) -> None:
    """Run the command that the arguments name; None takes them from the process."""
    with _exit_codes(), terminations_raised():
        cli.main(args=None if arguments is None else list(arguments), standalone_mode=False)


def _end_now(code: object) -> NoReturn:
    """End this process at once; everything that needs cleaning up has been cleaned up.

    Python would take most of a second to dismantle itself, or would wait for threads whose results nobody wants.
    """
    status = code if isinstance(code, int) else int(code is not None)  # as the interpreter reads a SystemExit
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # the reader has left, or the disk is full: the output is not complete
        status = status or ResourceError.exit_code
    os._exit(status)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the ``headroom`` command.

    Parameters
    ----------
    arguments
        Its arguments. None takes those of the process, and the process ends with the command.

    Raises
    ------
    SystemExit
        With given arguments, if the exit code is not 0.
    """
    if arguments is not None:
        return _call(arguments)
    try:
        _call(None)
    except SystemExit as end:
        _end_now(end.code)
    _end_now(0)
