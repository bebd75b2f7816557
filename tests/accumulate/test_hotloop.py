from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from threading import Thread

import numpy as np
import pytest
from loop_rows import SETTINGS, rows_of
from tracing import trace_peak

from pipeline.accumulate import available_threads, loop_memory
from pipeline.accumulate.hotloop import accumulate_parts, accumulate_rows
from pipeline.errors import InputError
from pipeline.moments import Moments
from pipeline.noise import NoiseDraw
from pipeline.schema import LABELS
from pipeline.scoring import read_noisy_rows
from pipeline.store import SpectraStore

DRAWS = [NoiseDraw(1.0, 42, 0), NoiseDraw(0.2, 42, 0), NoiseDraw(1.0, 7, 0), NoiseDraw(0.0, 7, 0)]


@pytest.mark.parametrize(("precision", "rtol"), [("float64", 1e-12), ("float32", 2e-6)])
@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.name)
def test_moments_equal_those_of_the_noisy_rows(
    train_store: SpectraStore, draw: NoiseDraw, precision: str, rtol: float
) -> None:
    # A range that starts and ends in the middle of a noise group and of a chunk.
    start, stop = 37, 1501
    rows = rows_of(train_store, start, stop)
    [found] = accumulate_rows(train_store, rows, [draw], replace(SETTINGS, precision=precision))
    noisy = read_noisy_rows(train_store, start, stop, draw, precision)
    for cell in range(rows.n_cells):
        members = rows.cells == cell
        expected = Moments.from_samples(
            noisy[members], rows.y[members], LABELS, x_origin=rows.x_origin, y_origin=rows.y_origin
        )
        assert found[cell].count == members.sum()
        scale = np.abs(expected.gram).max()
        np.testing.assert_allclose(found[cell].gram, expected.gram, rtol=rtol, atol=rtol * scale)
        np.testing.assert_allclose(found[cell].cross, expected.cross, rtol=rtol, atol=rtol * 1e5)
        np.testing.assert_allclose(found[cell].x_sum, expected.x_sum, rtol=rtol, atol=rtol * 100)
        np.testing.assert_array_equal(found[cell].y_sum, expected.y_sum)
        np.testing.assert_allclose(found[cell].y_gram, expected.y_gram, rtol=1e-13)


def test_bits_depend_on_neither_threads_nor_company(train_store: SpectraStore) -> None:
    rows = rows_of(train_store)
    together = accumulate_rows(train_store, rows, DRAWS, SETTINGS)
    for draw, expected in zip(DRAWS, together, strict=True):
        for threads in (1, 5):
            [alone] = accumulate_rows(train_store, rows, [draw], replace(SETTINGS, threads=threads))
            assert all(a.identical(b) for a, b in zip(alone, expected, strict=True))


def test_parts_in_a_row_have_the_bits_of_each_alone(train_store: SpectraStore) -> None:
    cuts = [0, 3, 700, 700, 701, train_store.n_spectra]
    parts = [rows_of(train_store, a, b) for a, b in pairwise(cuts)]
    found: dict[tuple[int, int, int], Moments] = {}

    def keep(part: int, draw: int, cell: int, moments: Moments) -> None:
        time.sleep(0.002)  # so that the next part's rows wait for their tiles
        found[part, draw, cell] = replace(moments, gram=moments.gram.copy())

    accumulate_parts(train_store, iter(parts), 10, DRAWS, SETTINGS, keep)
    assert len(found) == len(parts) * len(DRAWS) * 10
    for number, rows in enumerate(parts):
        for draw, expected in enumerate(accumulate_rows(train_store, rows, DRAWS, SETTINGS)):
            assert all(found[number, draw, cell].identical(one) for cell, one in enumerate(expected))


@pytest.mark.parametrize("part", [0, 2])
def test_an_error_in_keeping_ends_the_loop(train_store: SpectraStore, part: int) -> None:
    def keep(number: int, *_: object) -> None:
        if number == part:
            raise OSError("the disk is full")

    parts = [rows_of(train_store, 500 * k, 500 * (k + 1)) for k in range(3)]
    with pytest.raises(OSError, match="the disk is full"):
        accumulate_parts(train_store, parts, 10, DRAWS, SETTINGS, keep)


def test_progress_counts_every_row(train_store: SpectraStore) -> None:
    told: list[int] = []
    accumulate_rows(train_store, rows_of(train_store, 0, 1000), DRAWS[:1], SETTINGS, told.append)
    assert sum(told) == 1000
    assert max(told) == train_store.chunk_rows


class Failing:
    """A store whose chunks are damaged from some row on."""

    def __init__(self, store: SpectraStore, row: int) -> None:
        self._store, self._row = store, row
        self.n_pixels, self.chunk_rows = store.n_pixels, store.chunk_rows

    def iter_blocks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        return self._store.iter_blocks(start, stop)

    def read_rows(self, variable: str, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        if stop > self._row:
            raise InputError(f"rows {start} to {stop} are damaged")
        return self._store.read_rows(variable, start, stop, out)


@pytest.mark.parametrize("row", [0, 700])
def test_an_error_in_the_filling_half_ends_the_loop(train_store: SpectraStore, row: int) -> None:
    with pytest.raises(InputError, match="are damaged"):
        accumulate_rows(Failing(train_store, row), rows_of(train_store), DRAWS, SETTINGS)


@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_in_the_summing_half_ends_the_loop(
    train_store: SpectraStore, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("pipeline.accumulate.hotloop.add_gram", fail)
    with pytest.raises(MemoryError, match="no room"):
        accumulate_rows(train_store, rows_of(train_store), DRAWS, replace(SETTINGS, run_rows=64, threads=threads))


@pytest.mark.timeout(20)
def test_a_thread_that_cannot_be_started_ends_the_loop(
    train_store: SpectraStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under ``ulimit``: the half that runs already must not wait for the one that never will."""
    start = Thread.start

    def refuse(thread: Thread) -> None:
        if thread.name == "halves_1":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        accumulate_rows(train_store, rows_of(train_store), DRAWS, replace(SETTINGS, run_rows=64))


def test_no_rows_give_no_moments(train_store: SpectraStore) -> None:
    [cells] = accumulate_rows(train_store, rows_of(train_store, 5, 5), DRAWS[:1], SETTINGS)
    assert [cell.count for cell in cells] == [0] * 10


def test_allocations_stay_within_the_projection(train_store: SpectraStore) -> None:
    rows = rows_of(train_store)
    accumulate_rows(train_store, rows, DRAWS, SETTINGS)  # compiles, and fills caches
    _, peak = trace_peak(lambda: accumulate_rows(train_store, rows, DRAWS, SETTINGS))
    # The per-row labels, cells and one decoded chunk come on top of the loop's own buffers.
    own = 3 * (rows.y.nbytes + rows.cells.nbytes) + 4 * train_store.chunk_rows * train_store.n_pixels * 4 + 600_000
    assert (
        peak <= loop_memory(train_store.n_pixels, 3, rows.n_cells, len(DRAWS), train_store.chunk_rows, SETTINGS) + own
    )


def test_threads_can_be_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADROOM_THREADS", "3")
    assert available_threads() == 3
    monkeypatch.setenv("HEADROOM_THREADS", "many")
    assert available_threads() >= 1
