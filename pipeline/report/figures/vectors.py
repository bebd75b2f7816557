"""Figures as PDF and SVG, as wide as a column. No run draws them, so none imports what writes them."""

from __future__ import annotations

import io
import re
from typing import Any

from matplotlib.backends.backend_pdf import FigureCanvasPdf, Op, PdfFile, PdfPages
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = ["write_pdf", "write_svg"]


class _ScaledFile(PdfFile):
    """A PDF file whose pages are as many times smaller as the figure is to be."""

    scale = 1.0

    def newPage(self, width: float, height: float) -> None:
        """Begin a page of the finished size, and draw everything on it smaller."""
        super().newPage(width * self.scale, height * self.scale)  # type: ignore[no-untyped-call]
        # Lines and marks beyond these are left out of the file. They are drawn in the units of the figure.
        self.width, self.height = width, height
        self.output(self.scale, 0, 0, self.scale, 0, 0, Op.concat_matrix)  # type: ignore[no-untyped-call]


class _ScaledPages(PdfPages):
    """What ``print_pdf`` takes instead of a file name."""

    def __init__(self, buffer: io.BytesIO, scale: float) -> None:
        metadata = {"Creator": None, "Producer": None, "CreationDate": None}
        super().__init__(buffer, metadata=metadata)
        self._file = _ScaledFile(buffer, metadata=metadata)  # type: ignore[no-untyped-call]
        self._file.scale = scale


def write_pdf(figure: Figure, buffer: io.BytesIO, scale: float) -> None:
    """Write a figure as PDF, so many times its size."""
    canvas: Any = FigureCanvasPdf(figure)
    with _ScaledPages(buffer, scale) as pages:
        canvas.print_pdf(pages)


def write_svg(figure: Figure, buffer: io.BytesIO, scale: float) -> None:
    """Write a figure as SVG, so many times its size."""
    canvas: Any = FigureCanvasSVG(figure)
    drawn = io.StringIO()
    canvas.print_svg(drawn, metadata={"Date": None, "Creator": None})

    def shrink(found: re.Match[str]) -> str:
        return f'{found.group(1)}="{float(found.group(2)) * scale:.6g}pt"'

    # The first element alone has sizes in points; its view box keeps those of the page.
    text = re.sub(r'\b(width|height)="([\d.]+)pt"', shrink, drawn.getvalue(), count=2)
    buffer.write(text.encode())
