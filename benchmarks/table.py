"""The rows of the benchmark's table, and the table as Markdown."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Row", "render_lines", "render_table"]

_COMPARISONS = {"≤": operator.le, "≥": operator.ge}
HEADINGS = ("name", "measured", "reference", "ratio", "target", "met?")


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes
    ----------
    name
        What was measured, with its size.
    measured, reference
        Our figure and what it is held against, with units.
    value
        What is judged: mostly ``measured / reference``.
    target
        Bound on the value; None where there is nothing to meet.
    sense
        Whether the value must be at most or at least the target.
    form
        How the value and the target are written.
    """

    name: str
    measured: str
    reference: str
    value: float
    target: float | None = None
    sense: Literal["≤", "≥"] = "≤"
    form: str = ".2f"

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        return None if self.target is None else bool(_COMPARISONS[self.sense](self.value, self.target))

    def cells(self) -> tuple[str, ...]:
        """Return the row's texts."""
        target = "–" if self.target is None else f"{self.sense} {self.target:{self.form}}"
        met = {None: "–", True: "yes", False: "**no**"}[self.met]
        return self.name, self.measured, self.reference, f"{self.value:{self.form}}", target, met


def render_table(rows: Iterable[Row]) -> str:
    """Return rows as a Markdown table whose columns line up in plain text too."""
    return render_lines([HEADINGS, *(row.cells() for row in rows)])


def render_lines(lines: Sequence[Sequence[str]]) -> str:
    """Return texts as a Markdown table, the headings first."""
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    texts = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    texts.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(texts)
