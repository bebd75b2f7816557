"""Folds and partitions: how the rows are cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bins import choose_prefixes, count_in_folds, plan_folds, plan_partitions
from pipeline.errors import ConfigError


@given(st.lists(st.integers(0, 400), min_size=1, max_size=12), st.integers(2, 9))
def test_folds_cover_all_rows_once_and_nest_in_shards(lengths: list[int], n_folds: int) -> None:
    if min((length for length in lengths if length), default=0) < n_folds:
        return
    folds = plan_folds(lengths, n_folds)
    assert len(folds) == n_folds
    assert folds[0][0] == 0
    assert folds[-1][1] == sum(lengths)
    assert all(a[1] == b[0] and a[0] < a[1] for a, b in itertools.pairwise(folds))
    ends = {0, *np.cumsum(lengths).tolist()}
    for start, stop in folds:
        crossed = [end for end in ends if start < end < stop]
        # Either within one shard, or a group of whole shards.
        assert not crossed or (start in ends and stop in ends)


def test_folds_of_equal_shards_are_the_shards() -> None:
    assert plan_folds([200] * 5, 5) == tuple((200 * k, 200 * (k + 1)) for k in range(5))


def test_long_shards_get_more_folds() -> None:
    assert plan_folds([300, 100], 4) == ((0, 100), (100, 200), (200, 300), (300, 400))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 4), st.integers(1, 20), st.integers(0, 99))
def test_counts_in_folds_are_those_of_the_rows(lengths: list[int], n_folds: int, step: int, seed: int) -> None:
    if sum(lengths) < n_folds * len(lengths) or min(lengths) < n_folds:
        return
    folds = plan_folds(lengths, n_folds)
    bins = np.random.default_rng(seed).integers(-1, 3, sum(lengths))
    blocks = ((start, bins[start : start + step]) for start in range(0, len(bins), step))
    expected = [[int((bins[start:stop] == k).sum()) for k in range(3)] for start, stop in folds]
    assert count_in_folds(folds, blocks, 3).tolist() == expected


def test_prefixes_are_the_nearest_and_end_with_all() -> None:
    lengths = [100, 100, 50, 150]
    assert choose_prefixes(lengths) == {1: 100, 2: 200, 3: 250, 4: 400}
    assert choose_prefixes(lengths, [210, 240, 1]) == {1: 100, 2: 200, 3: 250, 4: 400}
    assert choose_prefixes(lengths, [210]) == {2: 200, 4: 400}
    assert choose_prefixes(lengths, [390, 9999]) == {4: 400}


def test_folds__raise_on_too_few_spectra() -> None:
    with pytest.raises(ConfigError, match="3 spectra, 5 folds"):
        plan_folds([3], 5)


@given(st.integers(1, 5000), st.integers(1, 700))
def test_partitions_cover_their_fold_and_stay_small(length: int, rows: int) -> None:
    partitions = plan_partitions([(0, 10), (10, 10 + length)], rows)
    assert [part.index for part in partitions] == list(range(len(partitions)))
    second = [part for part in partitions if part.fold == 1]
    assert second[0].start == 10
    assert second[-1].stop == 10 + length
    assert all(a.stop == b.start for a, b in itertools.pairwise(second))
    assert max(part.n_spectra for part in second) <= rows
