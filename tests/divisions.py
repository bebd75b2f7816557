"""Every division of a grid by straight cuts, the slow and obvious way."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.questions.bin_design.divisions import Rectangle


def all_divisions(whole: Rectangle) -> Iterator[frozenset[Rectangle]]:
    yield frozenset([whole])
    for first, second in whole.iter_cuts():
        for a in all_divisions(first):
            for b in all_divisions(second):
                yield a | b
