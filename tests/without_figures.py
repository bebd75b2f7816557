"""``headroom`` that draws no figures, in a process of its own: drawing takes longer than the rest of a small run.

Usage: ``python tests/without_figures.py ARGUMENT...``. The page is written, as ever.
"""

from __future__ import annotations

from pipeline.cli import main
from pipeline.report import figures


def draw_nothing() -> None:
    """Let no run of this process draw."""
    figures.render_figures = lambda *_: []


if __name__ == "__main__":
    draw_nothing()
    main()
