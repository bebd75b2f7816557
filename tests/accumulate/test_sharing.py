"""One reading for two loops: nothing is read twice, nothing changes, and neither loop outlives the other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
from loop_rows import SETTINGS, rows_of
from random_moments import take_sample

from pipeline.accumulate.hotloop import SpectraReader, accumulate_parts
from pipeline.accumulate.projection import project_parts
from pipeline.accumulate.sharing import read_together
from pipeline.convert import convert_shards
from pipeline.errors import InputError
from pipeline.moments import Basis, choose_basis
from pipeline.noise import MarginalNoise, NoiseDraw
from pipeline.shards import find_shards
from pipeline.store import SpectraStore

DRAWN, MARGINAL = NoiseDraw(1.0, 42, 0), MarginalNoise(1.0)
CUTS = [(0, 3), (3, 700), (700, 1501)]


@dataclass(eq=False)
class Counting:
    """A store that counts how often each row is read, and may fail at one."""

    store: SpectraStore
    fails_at: int = -1
    read: Counter[tuple[str, int]] = field(default_factory=Counter)
    lock: Any = field(default_factory=Lock)

    @property
    def n_pixels(self) -> int:
        return self.store.n_pixels

    @property
    def chunk_rows(self) -> int:
        return self.store.chunk_rows

    @property
    def starts(self) -> tuple[int, ...]:
        return self.store.starts

    def iter_blocks(self, start: int, stop: int) -> Any:
        return self.store.iter_blocks(start, stop)

    def read_rows(self, variable: str, start: int, stop: int, out: Any = None) -> Any:
        if start <= self.fails_at < stop:
            raise InputError("row cannot be read")
        with self.lock:
            self.read.update((variable, row) for row in range(start, stop))
        return self.store.read_rows(variable, start, stop, out)


@pytest.fixture(scope="module")
def basis(train_store: SpectraStore) -> Basis:
    means, variances = MARGINAL.read(train_store, 0, 400)
    assert variances is not None
    sample = take_sample(means - train_store.mean_flux, variances)
    return choose_basis(sample, train_store.mean_flux, 1e-4, 48, rank=20)[0]


def loops(store: SpectraStore, basis: Basis, found: dict[tuple[str, int, int], Any]) -> tuple[Any, Any]:
    """The dense and the factored loop over the same rows. They keep copies, because memory is reused."""
    parts = [rows_of(store, a, b) for a, b in CUTS]

    def keep_dense(number: int, _: int, cell: int, moments: Any) -> None:
        found["dense", number, cell] = moments.covariance_sums() if moments.count else None

    def keep_factored(number: int, _: int, cell: int, moments: Any) -> None:
        found["factored", number, cell] = moments

    def lead(reader: SpectraReader) -> None:
        accumulate_parts(reader, parts, parts[0].n_cells, [DRAWN], SETTINGS, keep_dense)

    def follow(reader: SpectraReader) -> None:
        n_labels = len(parts[0].labels)
        project_parts(reader, parts, parts[0].n_cells, n_labels, [MARGINAL], [basis], SETTINGS, keep_factored)

    return lead, follow


@pytest.mark.parametrize("chunk_rows", [96, 512])
def test_together_gives_the_same_bits_and_reads_every_row_once(
    train_store: SpectraStore, sample: Path, tmp_path: Path, basis: Basis, chunk_rows: int
) -> None:
    alone: dict[tuple[str, int, int], Any] = {}
    for loop in loops(train_store, basis, alone):
        loop(train_store)
    shards = find_shards([sample / "train"], sample)
    store = convert_shards(shards, tmp_path / "s.zarr", workers=1, chunk_rows=chunk_rows)
    together: dict[tuple[str, int, int], Any] = {}
    counting = Counting(store)
    read_together(counting, *loops(store, basis, together))
    assert set(together) == set(alone)
    for key, own in together.items():
        if key[0] == "factored":
            assert own.identical(alone[key])
        elif own is not None:
            for mine, other in zip(own, alone[key], strict=True):
                np.testing.assert_array_equal(mine, other)
    rows = CUTS[-1][1]
    assert counting.read == Counter((variable, row) for variable in ("flux", "error") for row in range(rows))


@pytest.mark.parametrize("fails", ["reading", "leader", "follower"])
def test_an_error_of_either_loop_ends_both(train_store: SpectraStore, basis: Basis, fails: str) -> None:
    lead, follow = loops(train_store, basis, {})

    def fail(reader: SpectraReader) -> None:
        raise InputError(f"the {fails} fails")

    reader = Counting(train_store, fails_at=900 if fails == "reading" else -1)
    with pytest.raises(InputError, match="row cannot" if fails == "reading" else f"the {fails} fails"):
        read_together(reader, fail if fails == "leader" else lead, fail if fails == "follower" else follow)
