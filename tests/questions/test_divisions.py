from __future__ import annotations

import numpy as np
import pytest
from divisions import all_divisions
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.questions.bin_design.divisions import Division, Rectangle, best_divisions, iter_rectangles


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 10_000))
def test_divisions_are_the_best_of_all(n_rows: int, n_columns: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rectangles = list(iter_rectangles((n_rows, n_columns)))
    # Whole numbers: sums are exact, whatever their order. Some rectangles have no expert.
    errors = {
        one: float(generator.integers(1, 50)) for one in rectangles if generator.random() < 0.8 or one == rectangles[-1]
    }
    possible: dict[int, float] = {}
    for division in all_divisions(rectangles[-1]):
        if all(one in errors for one in division):
            error = sum(errors[one] for one in division)
            possible[len(division)] = min(error, possible.get(len(division), np.inf))
    found = best_divisions(errors, (n_rows, n_columns), n_rows * n_columns)
    assert {len(one.rectangles): one.error for one in found} == possible
    for one in found:
        assert sum(errors[rectangle] for rectangle in one.rectangles) == one.error
        covered = np.zeros((n_rows, n_columns), int)
        for rectangle in one.rectangles:
            covered[slice(*rectangle.rows), slice(*rectangle.columns)] += 1
        assert (covered == 1).all()


def test_a_grid_of_the_expected_size_takes_no_time() -> None:
    errors = {one: 1.0 / (1 + k) for k, one in enumerate(iter_rectangles((6, 7)))}
    assert len(errors) == 21 * 28
    assert [len(one.rectangles) for one in best_divisions(errors, (6, 7), 12)] == list(range(1, 13))


def test_one_row() -> None:
    errors = {Rectangle((0, 1), (0, 2)): 5.0, Rectangle((0, 1), (0, 1)): 1.0, Rectangle((0, 1), (1, 2)): 2.0}
    one, two = best_divisions(errors, (1, 2), 4)
    assert one == Division((Rectangle((0, 1), (0, 2)),), 5.0)
    assert two == Division((Rectangle((0, 1), (0, 1)), Rectangle((0, 1), (1, 2))), 3.0)


def test_divisions__raise_where_none_is_possible() -> None:
    with pytest.raises(InputError, match="use wider fine bins"):
        best_divisions({Rectangle((0, 1), (0, 1)): 1.0}, (1, 2), 2)
