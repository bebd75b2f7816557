"""How objects show themselves in a notebook: a heading, some lines, a small table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["render_html"]

_MOST_ROWS = 24


def render_html(
    title: str, lines: Sequence[str] = (), headings: Sequence[str] = (), rows: Sequence[Sequence[object]] = ()
) -> str:
    """Return HTML for ``_repr_html_``; all texts are escaped, and a long table is cut.

    Parameters
    ----------
    title
        The heading.
    lines
        Lines of text below it.
    headings, rows
        The table; its first column is text, the others are numbers.
    """

    def row(cells: Sequence[object], tag: str) -> str:
        styles = ["text-align:left", *["text-align:right"] * (len(cells) - 1)]
        made = [f'<{tag} style="{s}">{escape(str(cell))}</{tag}>' for s, cell in zip(styles, cells, strict=True)]
        return f"<tr>{''.join(made)}</tr>"

    parts = [f"<strong>{escape(title)}</strong>", *(f"<div>{escape(line)}</div>" for line in lines)]
    if rows:
        body = "".join(row(cells, "td") for cells in rows[:_MOST_ROWS])
        parts.append(f"<table><thead>{row(headings, 'th')}</thead><tbody>{body}</tbody></table>")
    if len(rows) > _MOST_ROWS:
        parts.append(f"<div>and {len(rows) - _MOST_ROWS} more</div>")
    return "".join(parts)
