"""Answers for machines: what ``--json`` prints, one object on standard output and nothing else there."""

from __future__ import annotations

from typing import Any

import click

from pipeline.files_json import json_text

__all__ = ["json_option", "print_json"]

#: The same switch everywhere.
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else on standard output.")


def print_json(value: Any) -> None:
    """Print a value as :func:`pipeline.files_json.json_text` writes it."""
    click.echo(json_text(value))
