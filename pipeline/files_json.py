"""Values as JSON text that every reader takes: no NaN, no infinity, nothing that needs Python; and read back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import InputError

__all__ = ["json_text", "read_json"]

Built = TypeVar("Built")


def json_text(value: Any) -> str:
    """Return a value as JSON: dataclasses as objects, paths as text, NumPy scalars as numbers, NaN and ±∞ as null."""
    return json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False)


def read_json(path: Path, build: Callable[[dict[str, Any]], Built]) -> Built:
    """Return what ``build`` makes of a JSON object that a run wrote into its folder.

    Raises
    ------
    InputError
        If the file cannot be read, or holds something else than ``build`` takes; says to delete it.
    """
    try:
        return build(json.loads(path.read_text(encoding="utf-8")))
    except InputError as error:
        reason = str(error)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise InputError(f"{path} is damaged ({reason}); delete the file, and run again with the same --out")


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
