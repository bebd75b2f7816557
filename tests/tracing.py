"""How much memory a call takes, for the tests that hold it against what is projected."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def trace_peak(call: Callable[[], T]) -> tuple[T, int]:
    """Return what a call returns, and the most bytes that were allocated at a time."""
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
