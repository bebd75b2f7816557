"""What the page is made of: tables of text, pictures with captions, and sections that hold them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.scoring import Draw, Part, RunResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Block", "Code", "Heading", "Links", "Picture", "Section", "Show", "Subject", "Table", "Terms"]


@dataclass(frozen=True)
class Table:
    """A table of text; columns from number ``numeric_from`` on are numbers, aligned to the right."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric_from: int = 99

    kind = "table"


@dataclass(frozen=True)
class Show:
    """The place of a picture on the page."""

    file: str

    kind = "picture"


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str

    kind = "heading"


@dataclass(frozen=True)
class Terms:
    """A list of terms with what they mean; a term may be empty."""

    items: tuple[tuple[str, str], ...]

    kind = "terms"


@dataclass(frozen=True)
class Links:
    """Files beside the page."""

    names: tuple[str, ...]

    kind = "links"


@dataclass(frozen=True)
class Code:
    """Text to be copied, in a language that highlighters know."""

    text: str
    language: str
    label: str

    kind = "code"


#: What a section is made of; a text is a paragraph.
Block = str | Table | Show | Heading | Terms | Links | Code


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes
    ----------
    anchor
        Where links lead to.
    title, short
        The heading, and its name in the contents.
    blocks
        Paragraphs, tables, pictures and the like, in order.
    """

    anchor: str
    title: str
    short: str
    blocks: tuple[Block, ...]

    @property
    def needs_captions(self) -> bool:
        """Whether only their captions tell the tables apart: there are several, and no headings between them."""
        kinds = [type(block) for block in self.blocks]
        return kinds.count(Table) > 1 and Heading not in kinds


@dataclass(frozen=True)
class Picture:
    """A figure of a run.

    Attributes
    ----------
    file
        The name of its PNG file.
    title
        What it shows.
    caption
        What to look for in it: a text, or what makes one from the results.
    draw
        Draws it.
    is_there
        Whether a run has anything to draw.
    """

    file: str
    title: str
    caption: str | Callable[[RunResults], str]
    draw: Callable[[RunResults], Figure]
    is_there: Callable[[RunResults], bool] = lambda results: True

    def describe(self, results: RunResults) -> str:
        """Return the caption."""
        return self.caption if isinstance(self.caption, str) else self.caption(results)


@dataclass(frozen=True)
class Subject:
    """A label that the interactive view can show.

    Attributes
    ----------
    label
        Which.
    levels
        For every noise level the scores over seeds, and those of every noise draw.
    leak
        Why its experts mean nothing; empty where they do.
    """

    label: str
    levels: Sequence[tuple[Part, Sequence[Draw]]]
    leak: str = ""
