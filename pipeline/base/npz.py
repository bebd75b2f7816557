"""One ``.npz`` file: arrays, and facts about them as JSON. Nothing is ever pickled.

NumPy writes the same bytes for the same arrays, and anyone's NumPy can read them. The facts are an array of their own,
``header``: the bytes of a JSON object.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from pipeline.base.files import replacing
from pipeline.errors import InputError

__all__ = ["open_npz", "save_npz", "write_npz"]

_HEADER: Final = "header"


def write_npz(path: Path, arrays: Mapping[str, Any], header: Mapping[str, Any] | None = None) -> None:
    """Write arrays, with facts about them where there are any, to one file: whole, or not at all.

    Raises
    ------
    ResourceError
        If the disk is full or not writable; nothing is left behind.
    """
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        save_npz(stream, arrays, header)


def save_npz(stream: IO[bytes], arrays: Mapping[str, Any], header: Mapping[str, Any] | None = None) -> None:
    """Write arrays, with facts about them where there are any, to an open file."""
    facts = {} if header is None else {_HEADER: np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)}
    np.savez(stream, allow_pickle=False, **facts, **arrays)


@contextmanager
def open_npz(
    path: Path, refuse: Callable[[object], InputError], form: tuple[str, int] | None = None
) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
    """Give the facts and the arrays of a file; an array is read when it is asked for.

    Parameters
    ----------
    path
        What :func:`write_npz` wrote.
    refuse
        Makes the error of a file that cannot be used from the reason. Mistakes of the block's body count, too, such as
        an array that is missing.
    form
        Required ``format`` and ``version`` of the facts; None where the file has no facts.

    Raises
    ------
    InputError
        If the file is missing, damaged or of another form: what ``refuse`` makes of the reason.
    """
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            facts: dict[str, Any] = {}
            if form is not None:
                facts = json.loads(archive[_HEADER].tobytes().decode())
                if (facts.get("format"), facts.get("version")) != form:
                    raise ValueError(f"{form[0]} version {form[1]} is required")
            yield facts, archive
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise refuse(error) from None
