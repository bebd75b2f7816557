"""How a process becomes ``headroom``, and how it ends: with an exit code and at most one message.

The codes are 0 for success, 2 for the user's input or configuration, 3 for the environment, 70 for a fault of our own,
130 after Ctrl-C and 143 after SIGTERM.

What other people's machines set up meets third-party libraries while these are imported: variables that they cannot
read, streams that are closed or no UTF-8, limits. So this module imports nothing of theirs before it has put these in
order. Only this room prints, and only this module turns errors into exit codes.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import errno
import io
import logging
import os
import resource
import shlex
import signal
import sys
import tempfile
import threading
import traceback
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Final, NoReturn

from pipeline.base import MEMORY_VARIABLES, Terminated, spare_imports, terminations_raised
from pipeline.errors import DeprecatedName, HeadroomError, ResourceError, printable

__all__ = ["main"]

#: EX_SOFTWARE of sysexits.h.
_FAULT: Final = 70
_ENVIRONMENT: Final = ResourceError.exit_code
#: Below this limit on addresses (``ulimit -v``) NumPy's BLAS may end the process, while it is imported or later.
_LEAST_ADDRESSES: Final = 1280 * 2**20
#: Read as whole numbers by numexpr, which pandas imports, and by numba; OpenMP itself takes a list such as 4,2.
_THREAD_COUNTS: Final = ("OMP_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS", "NUMBA_NUM_THREADS")
_SPELLED: Final = {"Δ": "d", "α": "a", "ρ": "r", "σ": "s", "→": ">", "×": "x", "−": "-", "–": "-", "…": "."}
_LETTERS: Final = 300
#: What threads and destructors raised, which nobody waits for; told if the command crashes.
_ASIDE: Final[list[str]] = []


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
    signals = [one for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) != signal.SIG_IGN]
    for one in signals:
        signal.signal(one, _leave)
    spare_imports()
    try:
        _mend_streams()
        _mend_environment()
        _call(None, signals)
    except SystemExit as end:
        _end_now(end.code)
    _end_now(0)


def _leave(number: int, _frame: Any) -> NoReturn:
    """End at once: before the command begins, and after it has ended, there is nothing to clean up."""
    with contextlib.suppress(OSError):
        os.write(2, b"headroom: interrupted\n")
    os._exit(128 + number)


def _call(arguments: Sequence[str] | None, signals: Sequence[signal.Signals] = ()) -> None:
    """Run the command that the arguments name; None takes them from the process."""
    with _exit_codes():
        from pipeline.cli.app import cli

        with _default_handlers(signals), terminations_raised(), _deprecations_told():
            cli.main(args=None if arguments is None else list(arguments), prog_name="headroom", standalone_mode=False)


@contextlib.contextmanager
def _deprecations_told() -> Iterator[None]:
    """Tell of deprecated names in one line each, without the line of code that used them."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, DeprecatedName):
            print(f"headroom: note: {printable(str(message))}", file=sys.stderr)
        else:
            before(message, category, *place, **more)

    with warnings.catch_warnings():
        before = warnings.showwarning
        warnings.simplefilter("always", DeprecatedName)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _default_handlers(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Give signals Python's own handlers for the block, in which a command cleans up."""
    for one in signals:
        signal.signal(one, signal.default_int_handler if one == signal.SIGINT else signal.SIG_DFL)
    try:
        yield
    finally:
        for one in signals:
            signal.signal(one, _leave)


# --- What is put in order first.


def _mend_streams() -> None:
    """Open closed streams on nothing, and let those that are no UTF-8 spell what they lack.

    A closed stream's number would go to the next file that is opened, and whoever writes to the stream, to that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115  of the lowest free number, which is the stream's own
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    codecs.register_error("headroom", _spell)
    sys.stdout, sys.stderr = (_Stream(stream) for stream in (sys.stdout, sys.stderr))


class _Stream(io.TextIOWrapper):
    """A standard stream whose errors name it, as those of files do."""

    def __init__(self, stream: Any) -> None:
        self._words = {1: "standard output", 2: "standard error"}.get(stream.fileno(), stream.name)
        encoding, buffering = stream.encoding, (stream.line_buffering, stream.write_through)
        super().__init__(stream.detach(), encoding, "headroom", None, *buffering)

    def write(self, text: str) -> int:
        """Write text, as any stream does."""
        with self._named():
            return super().write(text)

    def flush(self) -> None:
        """Write what is waiting, as any stream does."""
        with self._named():
            super().flush()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = self._words
            raise


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Write letters that an encoding lacks as the nearest ones of ASCII, one for one: ``ΔR²`` as ``dR2``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    spelled = (_SPELLED.get(one) or unicodedata.normalize("NFKD", one)[0] for one in lacking)
    return "".join(one if one.isascii() else "?" for one in spelled), error.end


def _mend_environment() -> None:
    """Set what NumPy reads; take away what libraries fail on while they are imported, and what they print unasked."""
    for name, value in MEMORY_VARIABLES.items():
        if not os.environ.get(name, "").strip().isdecimal():
            os.environ[name] = value
    os.environ["MPLBACKEND"] = "agg"  # an unknown one is an error, and figures are drawn without any
    for name in _THREAD_COUNTS:
        count = os.environ.get(name, "").partition(",")[0].strip()
        if count.isascii() and count.isdigit() and int(count):
            os.environ[name] = count
        else:
            os.environ.pop(name, None)
    for name in [name for name in os.environ if name.startswith("ZARR_")]:
        del os.environ[name]  # they would change what stores are made of, or make a sound one unreadable
    logging.getLogger().addHandler(logging.NullHandler())
    threading.excepthook = lambda told: _put_aside(told.exc_value)
    sys.unraisablehook = lambda told: _put_aside(told.exc_value)


def _put_aside(error: BaseException | None) -> None:
    if error is not None and len(_ASIDE) < 20:
        _ASIDE.extend(traceback.format_exception(error))


def _require_addresses() -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < _LEAST_ADDRESSES:
        raise ResourceError(
            f"the limit on addresses (ulimit -v) is {limit // 2**20} MiB, and the libraries need "
            f"{_LEAST_ADDRESSES // 2**20} MiB; raise it (ulimit -v unlimited), or ask for a job with more memory"
        )


# --- How it ends.


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    """Turn what went wrong into one message and an exit code; the traceback of what nobody expected goes to a file."""
    try:
        _require_addresses()
        yield
    except HeadroomError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt as error:
        _fail_interrupted(error)
    except MemoryError:
        _fail(_OUT_OF_MEMORY, _ENVIRONMENT)
    except Exception as error:
        _fail_otherwise(error)


_OUT_OF_MEMORY: Final = "out of memory; `headroom plan` says what the run needs, and `ulimit -v` may limit it"
_NO_THREAD: Final = (
    "no further thread can be started; see `ulimit -u` (threads) and `ulimit -v` (addresses), or ask for a job with "
    "more memory"
)


def _fail_interrupted(error: BaseException | None) -> NoReturn:
    by, code = (f" by {error}", error.exit_code) if isinstance(error, Terminated) else ("", 130)
    _fail(f"interrupted{by}; run the same command again to resume", code)


def _fail_otherwise(error: Exception) -> NoReturn:
    """Tell what is no error of ours: what click says, what the machine lacks, and what nobody expected."""
    click = sys.modules.get("click")
    if click is not None and isinstance(error, click.Abort):
        _fail_interrupted(error.__cause__)
    if click is not None and isinstance(error, click.ClickException):  # a wrong option or argument
        if type(error).__name__ == "NoArgsIsHelpError":  # no command at all: its message is the help
            with contextlib.suppress(OSError):
                error.show()
            sys.exit(error.exit_code)
        context = getattr(error, "ctx", None)
        more = f"; see `{context.command_path} --help`" if context is not None else ""
        _fail(f"{error.format_message().rstrip('.')}{more}", error.exit_code)
    causes = list(_causes(error))
    if any("can't start new thread" in str(cause) for cause in causes):
        _fail(_NO_THREAD, _ENVIRONMENT)
    if any(isinstance(cause, MemoryError) or _is_refused_memory(cause) for cause in causes):
        _fail(_OUT_OF_MEMORY, _ENVIRONMENT)
    library = _failed_import(error)
    if library is not None:
        _fail(
            f"{library} cannot be imported ({_describe(error)}); mend its settings on this machine (variables, files "
            f"below ~/.config), or install it again; {_write_crash(error)}",
            _ENVIRONMENT,
        )
    if isinstance(error, FileNotFoundError) and error.filename is None and not _has_working_directory():
        _fail("the folder that you are in is gone; change to one that exists, and try again", _ENVIRONMENT)
    if isinstance(error, OSError):
        _fail(f"{error.filename or type(error).__name__}: {error.strerror or error}", _ENVIRONMENT)
    _fail(f"a fault of headroom's own, {_describe(error)}; {_write_crash(error)}: please report it", _FAULT)


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_refused_memory(error: BaseException) -> bool:
    """Whether the operating system refused memory, as it also does for a library that is loaded."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    is_limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    return isinstance(error, SystemError | ImportError | OSError) and (
        (is_limited and isinstance(error, SystemError)) or "failed to map segment" in str(error)
    )


def _failed_import(error: BaseException) -> str | None:
    """Return the library that raised an error while it was imported; None if that was nothing of the kind."""
    library = None
    for frame, _ in traceback.walk_tb(error.__traceback__):  # Python leaves out the frames of the import itself
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in ("pipeline", "cluster", "__main__"):
            library = None
        elif frame.f_code.co_name == "<module>":
            library = library or package
    return library or (error.name if isinstance(error, ImportError) else None)


def _describe(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS]}…"


def _write_crash(error: BaseException) -> str:
    """Write a traceback, the command and the versions to a file of the user's own; return words that name the file."""
    lines = [f"command: {shlex.join(sys.argv)}\n", *traceback.format_exception(error)]
    if _ASIDE:
        lines += ["\nIn other threads, or while objects were destroyed:\n", *_ASIDE]
    with contextlib.suppress(Exception):  # whatever is wrong here is not what is to be told
        from pipeline.base import describe_environment

        lines.insert(1, "".join(f"{key}: {value}\n" for key, value in describe_environment().items()))
    try:
        handle, path = tempfile.mkstemp(prefix="headroom-crash-", suffix=".txt")  # of mode 0600
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)
    except OSError as refusal:
        return f"its traceback cannot be written ({refusal}), set TMPDIR to a folder that can be"
    return f"its traceback is in {path}"


def _fail(message: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError, ValueError):  # the exit code must tell where nothing else can
        print(f"headroom: {printable(message)}", file=sys.stderr, flush=True)
    sys.exit(code)


def _end_now(code: object) -> NoReturn:
    """End this process at once; everything that needs cleaning up has been cleaned up.

    Python would take most of a second to dismantle itself, or would wait for threads whose results nobody wants.
    """
    status = code if isinstance(code, int) else int(code is not None)  # as the interpreter reads a SystemExit
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:  # the reader has left, or the disk is full: the output is not complete
        if not status and not isinstance(error, BrokenPipeError):
            with contextlib.suppress(SystemExit):
                _fail(f"{error.filename}: {error.strerror}", _ENVIRONMENT)
        status = status or _ENVIRONMENT
    os._exit(status)
