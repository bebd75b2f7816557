"""Values as JSON text that every reader takes: no NaN, no infinity, nothing that needs Python."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

__all__ = ["json_text"]


def json_text(value: Any) -> str:
    """Return a value as JSON: dataclasses as objects, paths as text, NumPy scalars as numbers, NaN and ±∞ as null."""
    return json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a NumPy scalar; the command line starts without NumPy
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
