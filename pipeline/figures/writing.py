"""Whole files or none: a reader of the run folder never meets half a figure or half a report."""

from __future__ import annotations

import secrets
from pathlib import Path

from pipeline.errors import ResourceError

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name in the same folder, then rename it.

    Raises
    ------
    ResourceError
        If the folder or the file cannot be written; an earlier version of the file is left as it was.
    """
    # A name of its own for each writer: two reports rendered at once must not share a temporary file.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "make the run folder writable or free disk space, then render the report again"
        ) from None
