"""Predictions on their way to a Parquet file: finished parts wait beside it, and become its row groups at the end.

Whatever was killed, running again skips the parts that are there. A part is whole or absent.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.files import disk_errors_told, remove_leftovers, replacing

__all__ = ["PARTIAL_SUFFIX", "PredictionParts", "read_facts"]

#: The folder of unfinished predictions is called like their file, and this.
PARTIAL_SUFFIX: Final = ".partial"
_KEY_FILE: Final = "key.json"
_FACTS: Final = b"headroom_predictions"


def read_facts(path: Path) -> dict[str, Any] | None:
    """Return what a file of predictions says of how they were made; None if it is no such file."""
    try:
        found = (pq.read_schema(path).metadata or {}).get(_FACTS)
        return None if found is None else dict(json.loads(found))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class PredictionParts:
    """The parts of one file of predictions.

    Attributes
    ----------
    path
        The file that they become.
    facts
        How they are made; ``key`` among them tells whether parts that are there already are of the same.
    """

    path: Path
    facts: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Where finished parts wait."""
        return self.path.with_name(self.path.name + PARTIAL_SUFFIX)

    def require_writable(self, *, overwrite: bool) -> None:
        """Refuse a path that may not be written.

        Raises
        ------
        InputError
            If anything is there; with ``overwrite``, anything but predictions.
        """
        if self.path.is_dir():
            raise InputError(f"--out {self.path}: a file is required, found a folder; name a file in it")
        if not self.path.exists():
            return
        if read_facts(self.path) is None:
            raise InputError(f"--out {self.path}: it is there already and holds no predictions; choose another name")
        if not overwrite:
            raise InputError(
                f"--out {self.path}: it holds predictions of another model, of other spectra or with other settings; "
                "choose another name, or replace it with --overwrite"
            )

    def make_folder(self) -> None:
        """Make the folder if it is not there.

        Raises
        ------
        ResourceError
            If that cannot be.
        """
        with disk_errors_told(self.path):
            self.folder.mkdir(parents=True, exist_ok=True)

    def claim(self) -> None:
        """Take the folder; parts of another computation, which nobody will finish, are deleted.

        Raises
        ------
        ResourceError
            If the folder is not writable.
        """
        key_file, text = self.folder / _KEY_FILE, json.dumps({"key": self.facts["key"]})
        with disk_errors_told(self.path):
            remove_leftovers(self.folder)
            if key_file.is_file() and key_file.read_text(encoding="utf-8") == text:
                return
            for part in self.folder.glob("part-*.parquet"):
                part.unlink()
        with replacing(key_file) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def find(self, number: int, n_rows: int) -> bool:
        """Tell whether a part is there, whole."""
        try:
            return bool(pq.read_metadata(self._file(number)).num_rows == n_rows)
        except (OSError, ValueError):
            return False  # absent, or damaged: it is made again and replaced

    def write(self, number: int, table: pa.Table) -> None:
        """Write a part."""
        with replacing(self._file(number)) as temporary:
            pq.write_table(table, temporary, row_group_size=max(1, table.num_rows))

    def finish(self, n_parts: int) -> None:
        """Write the file from all parts, a row group each, and delete them."""
        with replacing(self.path) as temporary:
            first = pq.read_schema(self._file(0))
            schema = first.with_metadata({_FACTS: json.dumps(dict(self.facts)).encode()})
            with pq.ParquetWriter(temporary, schema) as writer:
                for table in self._read(n_parts):
                    writer.write_table(table.cast(schema), row_group_size=max(1, table.num_rows))
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, n_parts: int) -> Iterator[pa.Table]:
        for number in range(n_parts):
            yield pq.read_table(self._file(number))

    def _file(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"
