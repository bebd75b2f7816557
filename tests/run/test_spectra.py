"""The check for test spectra that models are trained on, against comparing each with each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.run.spectra import SetHeader, require_disjoint

Columns = Mapping[str, NDArray[Any]]
NAMES = ("id", "T_eff", "log_g", "M_H")


def make_header(role: str, columns: Columns, block: int, gap: int = 0, fingerprint: str = "") -> SetHeader:
    """Return a set whose columns come in blocks, with rows that are left out between them."""
    n = len(columns["id"])

    def iter_columns(names: Sequence[str]) -> Iterator[tuple[int, Columns]]:
        for number, start in enumerate(range(0, n, block)):
            yield start + number * gap, {name: columns[name][start : start + block] for name in names}

    sources = ((fingerprint or role, "night_1/spectra.nc"),)
    return SetHeader(
        role, role, (n,), np.arange(4.0), NAMES, iter_columns, chunk_rows=block, kept=((0, n),), sources=sources
    )


def draw_columns(rng: np.random.Generator, n: int, base: int) -> Columns:
    """Return few values, so that many stars are equal or nearly so; some values are unknown."""
    kind = rng.choice(["i8", "u8", "f8", "f4"])
    columns: dict[str, NDArray[Any]] = {"id": (base + 128 * rng.integers(0, 12, n)).astype(kind)}
    columns |= {name: rng.integers(-1, 1, n) * 0.1 for name in NAMES[1:]}
    for values in columns.values():
        if values.dtype.kind == "f" and rng.random() < 0.5:
            values[rng.random(n) < 0.1] = np.nan
    if columns["id"].dtype.kind == "f":
        columns["id"][0] = float(base)
    return columns


def list_rows(header: SetHeader) -> list[tuple[int, int | float, list[float]]]:
    return [
        (start + k, block["id"][k].item(), [float(block[name][k]) for name in NAMES[1:]])
        for start, block in header.iter_columns(NAMES)
        for k in range(len(block["id"]))
    ]


def is_same(one: int | float, other: int | float) -> bool:
    """Whole numbers are compared as such, whatever their size; others as far as double precision goes."""
    return one == other if isinstance(one, int) and isinstance(other, int) else float(one) == float(other)


@pytest.mark.parametrize("seed", range(60))
def test_shared_spectra_are_those_of_every_pair(seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = (0, 2**61 + 7168)[seed % 2]  # in double precision, 2**61 and 2**61 + 128 are the same
    train = make_header("train", draw_columns(rng, int(rng.integers(1, 50)), base), int(rng.integers(1, 20)), gap=3)
    test = make_header("test", draw_columns(rng, int(rng.integers(1, 50)), base), int(rng.integers(1, 20)), gap=5)
    first_rows = {
        row: min(matches)
        for row, star, labels in list_rows(test)
        if (
            matches := [
                at
                for at, other, known in list_rows(train)
                if is_same(star, other) and np.array_equal(labels, known, equal_nan=True)
            ]
        )
    }
    if not first_rows:
        assert require_disjoint(train, test) == []
        return
    with pytest.raises(InputError) as caught:
        require_disjoint(train, test)
    found = re.search(r"^(\d+) of \d+ .* row (\d+) of test, row (\d+) of train", str(caught.value))
    assert found is not None
    row = min(first_rows)
    assert [int(word) for word in found.groups()] == [len(first_rows), row, first_rows[row]]


def test_without_ids_a_shard_of_the_training_set_is_refused_unless_it_is_left_out() -> None:
    unknown = {name: np.full(3, np.nan) for name in NAMES}
    train, test = (make_header(role, unknown, 3, fingerprint="abc") for role in ("train", "test"))
    with pytest.raises(
        InputError, match=r"night_1/spectra\.nc \(fingerprint abc\): its test spectra also occur in train"
    ):
        require_disjoint(train, test)
    [told] = require_disjoint(replace(train, left_out=(0,)), test)
    assert "no usable ids" in told
    assert require_disjoint(train, make_header("test", unknown, 3)) == [told]
