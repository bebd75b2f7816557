"""What a run has made so far, and what each product was made of: a product whose key still holds is not made again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import TypeAdapter

from pipeline.base.files import replacing

__all__ = ["Products"]

_FILE = "products.json"
_RECORD = TypeAdapter(dict[str, str])


class Products:
    """The files that a run has made, each with the key of what it was made of.

    Parameters
    ----------
    folder
        The run folder; names of products are relative to it.
    note
        Told of a damaged record, after which everything is made again.
    """

    def __init__(self, folder: Path, note: Callable[[str], None]) -> None:
        self.folder = folder
        self._keys: dict[str, str] = {}
        path = folder / _FILE
        if path.exists():
            try:
                self._keys = _RECORD.validate_json(path.read_bytes())
            except ValueError:
                note(f"{path} is damaged; models and predictions are made again")

    def __getitem__(self, name: str) -> str:
        """Return the key that a product was made of."""
        return self._keys[name]

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def is_made(self, name: str, key: str) -> bool:
        """Whether a product is there, made of this key."""
        return self._keys.get(name) == key and (self.folder / name).exists()

    def record(self, name: str, key: str) -> None:
        """Remember that a product is there."""
        self._keys[name] = key
        with replacing(self.folder / _FILE) as temporary:
            temporary.write_text(json.dumps(self._keys, indent=1, sort_keys=True), encoding="utf-8")

    def keys_of(self, names: Iterable[str]) -> dict[str, str]:
        """Return some products with their keys."""
        return {name: self._keys[name] for name in names}

    def snapshot(self) -> dict[str, str]:
        """Return all products with their keys."""
        return dict(self._keys)
