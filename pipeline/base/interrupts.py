"""Signals that end a command as Ctrl-C does: what it started is stopped in order, and an exit code tells which it was.

A batch system sends SIGTERM before it kills, and a closed terminal SIGHUP. Python's own answer is to end on the spot,
which would leave worker jobs in the queue.

While a module is being imported, an interruption waits: third-party code turns it into other errors, or drops it.

Python drops what is raised while it runs a destructor or a weak reference's callback, Ctrl-C included: it prints
"Exception ignored" and goes on. Files and arrays that come and go by the thousand make that likely enough to be met.
Here such an interruption is raised again.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, Final

__all__ = ["Terminated", "terminations_deferred", "terminations_raised"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Between two attempts to raise an interruption that was dropped, or that waits for an import.
_SECONDS_UNTIL_AGAIN: Final = 0.01
#: How long an interruption waits for an import; the longest one takes about a second.
_SECONDS_OF_IMPORTS: Final = 10.0
_IMPORTING: Final = "<frozen importlib._bootstrap>"


#: How many blocks defer now, and the signals that came meanwhile; of the main thread, where signals arrive.
_DEFERRING: list[int] = [0]
_WAITING: list[int] = []


class Terminated(KeyboardInterrupt):
    """A signal asks this process to end; whatever cleans up after Ctrl-C cleans up after it.

    Attributes
    ----------
    number
        The signal's.
    exit_code
        128 and the signal's number, as shells say it: 143 for SIGTERM.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_code = 128 + number


@contextmanager
def terminations_raised() -> Iterator[None]:
    """Raise :class:`Terminated` in this block on SIGTERM and SIGHUP, once: the cleaning up is not interrupted again.

    Ctrl-C raises KeyboardInterrupt, as ever. A signal that is ignored stays ignored (``nohup``), and so does a handler
    that is not Python's own. All are raised again where Python drops them. Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    again = _Again()
    is_ending = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal is_ending
        if is_ending and number != signal.SIGINT:
            return  # not SIG_IGN: processes started from now on would inherit that
        if _drops(frame, raise_dropped.__code__) and again.send(number):
            return
        if again.is_late(number):
            return
        is_ending = is_ending or number != signal.SIGINT
        if _DEFERRING[0]:
            _WAITING.append(number)
        else:
            raise _interruption(number)

    def raise_dropped(unraisable: sys.UnraisableHookArgs) -> None:
        nonlocal is_ending
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            hook_before(unraisable)
            return
        error, number = unraisable.exc_value, int(signal.SIGINT)
        if isinstance(error, Terminated):
            number, is_ending = error.number, False
        again.send(number)

    hook_before, sys.unraisablehook = sys.unraisablehook, raise_dropped
    for one in _SIGNALS:
        if signal.getsignal(one) in (signal.SIG_DFL, signal.default_int_handler):
            before[one] = signal.signal(one, end)
    try:
        yield
    finally:
        sys.unraisablehook = hook_before
        for number, handler in before.items():
            signal.signal(number, handler)
        _WAITING.clear()
        again.leave_to_the_next()


def _interruption(number: int) -> KeyboardInterrupt:
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)


def _drops(frame: FrameType | None, hook: CodeType) -> bool:
    """Whether what is raised in a frame may be dropped: an import, or the hook that is told of what was dropped."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING or frame.f_code is hook:
            return True
        frame = frame.f_back
    return False


class _Again:
    """Sends a signal to the main thread again and again until it may be raised there.

    A real signal: it ends what the main thread waits for by then. There are no locks here, because a handler may
    interrupt itself.
    """

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._raised = -math.inf

    def send(self, number: int) -> bool:
        """Send a signal again in a moment; False where that is no use any more, or no thread can be started."""
        since = self._since.get(number)
        if since is not None:
            return time.monotonic() - since < _SECONDS_OF_IMPORTS
        self._since[number] = time.monotonic()
        try:
            threading.Thread(target=self._send, args=(number,), name="signals", daemon=True).start()
        except RuntimeError:
            self._since.pop(number, None)
            return False
        return True

    def is_late(self, number: int) -> bool:
        """Take note that a signal is raised now; whether it is only the last of those that were sent again."""
        if self._since.pop(number, None) is not None:
            self._raised = time.monotonic()
            return False
        return time.monotonic() - self._raised < 2 * _SECONDS_UNTIL_AGAIN

    def leave_to_the_next(self) -> None:
        """Give what still waits to the handlers that follow."""
        waiting, self._since = list(self._since), {}
        for number in waiting:
            signal.raise_signal(number)

    def _send(self, number: int) -> None:
        main = threading.main_thread().ident
        while number in self._since:
            time.sleep(_SECONDS_UNTIL_AGAIN)
            if number in self._since and main is not None:
                signal.pthread_kill(main, number)


@contextmanager
def terminations_deferred() -> Iterator[None]:
    """Let a signal wait until this block has ended: what the block makes is whole then, and can be stopped in order.

    For what takes seconds at most. The block's own exception goes first.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _DEFERRING[0] += 1
    try:
        yield
    finally:
        _DEFERRING[0] -= 1
    if _WAITING and not _DEFERRING[0]:
        raise _interruption(_WAITING.pop())
