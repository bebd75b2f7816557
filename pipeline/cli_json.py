"""Answers for machines: what ``--json`` prints, one object on standard output and nothing else there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import click

__all__ = ["json_option", "print_json"]

#: The same switch everywhere.
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else on standard output.")


def print_json(value: Any) -> None:
    """Print a value as JSON: dataclasses as objects, paths as text, NaN and infinity as null."""
    click.echo(json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
