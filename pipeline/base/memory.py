"""How a process gets its memory, and when Python looks for what is no longer used.

NumPy asks Linux for large pages where arrays are large. Where files fill the memory, as after the first gigabytes of a
store, the system makes each of them by moving other pages: that took 0.75 s for 256 MiB, and small pages 0.1 s.
Python does not look for garbage while libraries are imported, since what they make stays.
"""

from __future__ import annotations

import gc
from typing import Any, Final

__all__ = ["MEMORY_VARIABLES", "end_imports", "spare_imports"]

#: What NumPy reads in the environment when it is imported; a user's own values come first.
MEMORY_VARIABLES: Final = {"NUMPY_MADVISE_HUGEPAGE": "0"}
_THRESHOLDS: Final = gc.get_threshold()


def spare_imports() -> None:
    """Let the garbage collector wait until :func:`end_imports`.

    Libraries make half a million objects. Python looks through them after every 700 by default, which was a quarter of
    the time to start a run. It looks all the same if there are many more.
    """
    gc.callbacks.append(_end)
    gc.set_threshold(700_000)


def end_imports() -> None:
    """Let it work as usual, but for what is there by now; large arrays would otherwise wait for it."""
    if _end in gc.callbacks:
        _end("stop", {})


def _end(phase: str, _info: dict[str, Any]) -> None:
    if phase == "stop":
        gc.callbacks.remove(_end)
        gc.freeze()
        gc.set_threshold(*_THRESHOLDS)
