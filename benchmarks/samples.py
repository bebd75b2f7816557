"""Simulated spectra for the benchmarks: made by the package's own commands on first use, then kept."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from measure import measure

__all__ = ["HEADROOM", "Sample", "Sizes"]

HEADROOM = (sys.executable, "-m", "pipeline")
#: The first shard is the smaller of the two training sets whose memory is compared.
SHARDS = 4


@dataclass(frozen=True)
class Sizes:
    """What the user asked for; parts that cannot take that much time take the smaller of it and their own size."""

    rows: int = 100_000
    pixels: int = 4096
    repeats: int | None = None

    def limited(self, rows: int, pixels: int) -> tuple[int, int]:
        """Return at most the given size."""
        return min(self.rows, rows), min(self.pixels, pixels)


@dataclass(frozen=True)
class Sample:
    """Shards of one size, and their stores, below a folder that is kept.

    Attributes
    ----------
    base
        The benchmark's folder.
    rows, pixels
        Training spectra, in :data:`SHARDS` shards, and pixels.
    """

    base: Path
    rows: int
    pixels: int

    @property
    def n_test(self) -> int:
        """Test spectra."""
        return max(500, self.rows // 20)

    @property
    def size(self) -> str:
        """Rows and pixels, for people."""
        return f"{self.rows:,} × {self.pixels:,}"

    @cached_property
    def folder(self) -> Path:
        """The folder of this size; its shards are simulated first if needed."""
        path = self.base / f"{self.rows}x{self.pixels}"
        _simulate(path / "shards", self.rows, self.n_test, self.pixels)
        return path

    @property
    def train_shards(self) -> Path:
        """Folder of the training shards."""
        return self.folder / "shards" / "train"

    @property
    def first_shard(self) -> Path:
        """Folder of the first training shard, a quarter of the spectra."""
        return self.train_shards / "shard_0"

    @property
    def test_shards(self) -> Path:
        """Folder of the test shard."""
        return self.folder / "shards" / "test"

    @cached_property
    def train_store(self) -> Path:
        """Store of all training spectra."""
        return self._store(self.train_shards, "train")

    @cached_property
    def first_store(self) -> Path:
        """Store of the first shard."""
        return self._store(self.first_shard, "first")

    @cached_property
    def test_store(self) -> Path:
        """Store of the test spectra."""
        return self._store(self.test_shards, "test")

    def scratch(self, name: str) -> Path:
        """Return the path of an empty folder that does not exist, for one measurement."""
        path = self.base / "scratch" / name
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _store(self, shards: Path, name: str) -> Path:
        store = self.folder / f"{name}.zarr"
        if not (store / "zarr.json").exists():
            measure([*HEADROOM, "convert", shards, store, "--quiet"], interval=0)
        return store


@cache
def _simulate(folder: Path, train: int, test: int, pixels: int) -> None:
    # The command finds what it wrote before, finishes what was interrupted and does nothing otherwise.
    words = ["--train", train, "--shards", SHARDS, "--test", test, "--pixels", pixels]
    measure([*HEADROOM, "sample", folder, *map(str, words), "--quiet"], interval=0)
