"""One look for every figure: sizes, a colour-blind safe palette, axes, notes, saving.

Figures are made with :class:`matplotlib.figure.Figure` alone. ``pyplot`` keeps a registry of open figures and
chooses a backend for the whole process; neither belongs in a library.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from matplotlib import colormaps, rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure, FigureBase, SubFigure
from matplotlib.image import imsave
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from pipeline.base import replacing
from pipeline.errors import ConfigError
from pipeline.report.words import thresholds
from pipeline.scoring import BUILD, NOT_WORTH_IT, R2_GLOBAL, R2_ORACLE, UNDECIDED, Estimate, RunResults, Scope

__all__ = [
    "BLUES",
    "DPI",
    "FORMATS",
    "GLOBAL",
    "INK",
    "MUTED",
    "ORACLE",
    "SLIDE",
    "SMALL",
    "TEXT",
    "VERDICT_COLORS",
    "WARNING",
    "Medium",
    "add_interval",
    "add_title",
    "choose_ink",
    "draw_delta_curve",
    "draw_r2_curves",
    "drawing_into",
    "few_ticks",
    "finish_curves",
    "format_count",
    "format_counts",
    "format_value",
    "house_style",
    "is_narrow",
    "is_slide",
    "label_counts",
    "legend_size",
    "new_figure",
    "page_width",
    "place_panels",
    "prepare_file",
    "room_for_title",
    "save_figure",
    "show_empty",
    "style_axes",
    "tallest",
    "typeset",
    "typeset_figure",
]

DPI = 150
#: Of PNG files that are made for paper.
PAPER_DPI = 300
#: Inches of a 16:9 slide; at 150 dots per inch 2000 × 1125 pixels.
SLIDE = (13.333, 7.5)
#: Points. Nothing is smaller than SMALL.
SMALL, TEXT, TITLE = 11.0, 12.0, 15.0

# Okabe and Ito's palette, which survives the common kinds of colour blindness and grey printing.
GLOBAL, ORACLE, INK, MUTED = "#E69F00", "#0072B2", "#222222", "#6B6B6B"
#: What argues against experts, and the line of what should be.
WARNING = "#D55E00"
VERDICT_COLORS = {BUILD: "#009E73", UNDECIDED: "#B8B8B8", NOT_WORTH_IT: WARNING}
#: Densities on white paper: the palest blue must still differ from "nothing here".
BLUES = ListedColormap(colormaps["Blues"](np.linspace(0.22, 1.0, 256)), name="visible_blues")


class ShownFigure(Figure):
    """A figure that a notebook shows by itself, though pyplot does not know it; its words are typeset when drawn."""

    def draw(self, renderer: Any) -> None:
        """Typeset all words, then draw."""
        typeset_figure(self)
        super().draw(renderer)

    def _repr_png_(self) -> bytes:
        """Return the figure as notebooks ask for it."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


@dataclass(frozen=True)
class Medium:
    """What figures are drawn for.

    Figures are laid out on a page that is wider than the medium, in the usual size of print, and then made smaller as a
    whole. So lines, marks and letters keep their proportions.

    Attributes
    ----------
    width
        Inches of the finished figure; None for a slide.
    shows_title
        Whether title and small print stand in the figure. A paper has a caption instead.
    """

    width: float | None = None
    shows_title: bool = True

    @property
    def page_width(self) -> float:
        """Inches of the page on which a figure is laid out.

        A width below that of one or of two columns takes the page of these. Their layout is known to have room for
        everything, and print becomes a little smaller.
        """
        if self.width is None:
            return SLIDE[0]
        least = _COLUMN_WIDTH if self.width < _NARROW * PRINT_SCALE else 2 * _COLUMN_WIDTH
        return min(max(self.width, least) / PRINT_SCALE, SLIDE[0])

    @property
    def scale(self) -> float:
        """What the page is multiplied by, for the finished figure."""
        return 1.0 if self.width is None else self.width / self.page_width

    @property
    def is_narrow(self) -> bool:
        """Whether panels that stand side by side on a slide stand one below the other."""
        return self.page_width < _NARROW


#: Print of 12 points on a slide is print of 7.4 points in a paper.
PRINT_SCALE: Final = 0.62
#: Print that becomes 6 points, which is the least that most journals take.
_LEAST_IN_PAPER: Final = 6.0 / PRINT_SCALE
_NARROW: Final = 9.0
#: Inches of one column of most journals.
_COLUMN_WIDTH: Final = 3.5
#: Inches of the highest figure of a paper. LaTeX's ``article`` has 7.6 for the figure and its caption.
_TALLEST_IN_PAPER: Final = 7.0
#: Inches of the highest slide: one that is scrolled.
_TALLEST: Final = 15.9
#: Letters of a panel's title in one column.
_LETTERS_OF_COLUMN = 40
_ON_SLIDES: Final = Medium()
_MEDIUM: ContextVar[Medium] = ContextVar("medium", default=_ON_SLIDES)


@contextmanager
def house_style(medium: Medium | None = None) -> Iterator[None]:
    """Draw for a medium (a slide by default), with matplotlib's own settings, whatever ``matplotlibrc`` says.

    Figures look the same everywhere then, and need no LaTeX (``text.usetex``). Vector files have their fonts in them.
    """
    with _set(_MEDIUM, medium or Medium()), rc_context():
        rcdefaults()
        rcParams.update({"pdf.fonttype": 42, "svg.hashsalt": "headroom", "mathtext.fontset": "dejavusans"})
        yield


def page_width() -> float:
    """Return the inches that a figure of the present medium is laid out in."""
    return _MEDIUM.get().page_width


def is_narrow() -> bool:
    """Tell whether the present medium is one column of a paper."""
    return _MEDIUM.get().is_narrow


def is_slide() -> bool:
    """Tell whether the present medium is as wide as a slide, for which most figures were laid out."""
    return page_width() == SLIDE[0]


def tallest() -> float:
    """Return the largest height of a figure in the present medium, in inches: in a paper it leaves the caption room.

    A figure grows with the number of bins, or of panels that stand one below the other.
    """
    return _TALLEST if _MEDIUM.get().width is None else min(_TALLEST_IN_PAPER / _MEDIUM.get().scale, _TALLEST)


def place_panels(figure: Figure, columns: int, **options: Any) -> list[Axes]:
    """Return axes side by side; in one column of a paper they stand one below the other, and the figure grows."""
    if not is_narrow():
        return list(figure.subplots(1, columns, squeeze=False, **options).flat)
    options.pop("width_ratios", None)
    if (target := _TARGET.get()) is None:
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, min(min(height, 0.8 * width) * columns, tallest()))
    elif isinstance(target, Own):
        width, height = target.page
        target.page = width, min(min(height, 0.8 * width) * columns, tallest())
    return list(figure.subplots(columns, 1, squeeze=False, **options).flat)


#: Names that stand in plain text, and how they are typeset. The longest come first.
_TYPESET: Final = {
    "R²_oracle": r"$R^2_\mathrm{oracle}$",
    "R²_global": r"$R^2_\mathrm{global}$",
    "ΔR²": r"$\Delta R^2$",
    "R²": r"$R^2$",
    "T_eff": r"$T_\mathrm{eff}$",
    "log g": r"$\log\,g$",
    "log_g": r"$\log\,g$",
    "M_H": "[M/H]",
}
_NAMES = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in _TYPESET))


def typeset(text: str) -> str:
    """Return text in which the names of quantities are mathematics, such as T_eff with a subscript.

    Text that holds a dollar sign already is returned as it is.
    """
    return text if "$" in text else _NAMES.sub(lambda found: _TYPESET[found.group()], text)


def _typeset_tick(plain: Callable[[float, int | None], str], value: float, position: int | None = None) -> str:
    return typeset(plain(value, position))


def typeset_figure(figure: FigureBase | Axes) -> None:
    """Typeset every text of a figure or of axes, and the labels of ticks. Others may hold dollars without a meaning."""
    for axes in figure.findobj(Axes):
        for axis in (axes.xaxis, axes.yaxis):
            formatter = axis.get_major_formatter()
            if isinstance(formatter, FixedFormatter):
                formatter.seq = [typeset(label) for label in formatter.seq]
            elif isinstance(formatter, FuncFormatter):  # what ticks with given labels have
                formatter.func = partial(_typeset_tick, formatter.func)
    for text in figure.findobj(Text):
        plain, names = text.get_text(), tuple(_TYPESET.values())
        shown = typeset(plain)
        if shown != plain:
            text.set_text(shown)
        elif "$" in plain and not any(name in plain for name in names):
            text.set_parse_math(False)


class SeveralPanels(Exception):
    """A figure asks for more panels than somebody's own axes are. It never leaves the drawing of a figure."""


class OneAxes:
    """Stands in for the figure where a figure of one panel is drawn into somebody's own axes."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes

    def subplots(self, *panels: int, **look: Any) -> Axes:
        """Return the axes, which serve for one panel.

        Raises
        ------
        SeveralPanels
            If more are wanted.
        """
        if panels or look:
            self.refuse()
        return self.axes

    def refuse(self, *_: Any, **__: Any) -> Any:
        """Say that these axes do not serve for several panels, however they are asked for."""
        raise SeveralPanels

    subfigures = add_gridspec = add_subplot = refuse

    def colorbar(self, *arguments: Any, **look: Any) -> Any:
        """Return a colour bar beside the axes."""
        return self.axes.figure.colorbar(*arguments, **look)


@dataclass
class Own:
    """Somebody's own figure or sub-figure, and the inches of the page that a figure of the report is laid out on.

    What is drawn is made smaller as a whole, until the page fits.
    """

    figure: Figure | SubFigure
    page: tuple[float, float] = SLIDE

    @property
    def size(self) -> tuple[float, float]:
        """Inches of the figure."""
        return self.figure.bbox.width / self.figure.dpi, self.figure.bbox.height / self.figure.dpi

    @property
    def scale(self) -> float:
        """What the page is multiplied by; at most 1."""
        return min(1.0, self.size[0] / self.page[0], self.size[1] / self.page[1])


#: What figures are drawn into instead of a new one.
_TARGET: ContextVar[Own | Axes | None] = ContextVar("target", default=None)
#: The medium of narrow axes, and of sub-figures that are higher than wide: panels stand one below the other.
_COLUMN: Final = Medium(width=_COLUMN_WIDTH)


@contextmanager
def drawing_into(target: Figure | SubFigure | Axes) -> Iterator[None]:
    """Let :func:`new_figure` return this figure, or one that consists of these axes, within the block.

    At the end names are typeset. In a figure, everything is made smaller as a whole where it would not fit, and
    matplotlib's constrained layout keeps labels apart unless the figure has a layout of its own.
    """
    if isinstance(target, Axes):
        figure = _find_root(target)
        before = {*figure.axes} - {target}
        narrow = target.bbox.width / figure.dpi < _NARROW * PRINT_SCALE
        with _set(_TARGET, target), _set(_MEDIUM, _COLUMN if narrow else _ON_SLIDES):
            yield
        for axes in {*figure.axes, target} - before:
            typeset_figure(axes)
        return
    own = Own(target)
    if (root := _find_root(target)).get_layout_engine() is None:
        root.set_layout_engine("constrained")  # first: the bars of colours are made for the layout that there is
    with _set(_TARGET, own), _set(_MEDIUM, _COLUMN if own.size[1] > own.size[0] else _ON_SLIDES):
        yield
    typeset_figure(target)
    if own.scale < 1:
        from pipeline.report.figures.fitting import shrink

        shrink(target, own.scale)


def replace_axes(axes: Axes) -> SubFigure:
    """Put an empty sub-figure into the place of somebody's own axes, for a figure of several panels.

    Raises
    ------
    ConfigError
        If the axes have no place in a grid, which a sub-figure needs.
    """
    place = axes.get_subplotspec()
    if place is None or axes.figure is None:
        raise ConfigError(
            "this figure has several panels, and the axes of ax= have no place in a grid of plots, which they could "
            "take; make the axes by plt.subplots, or give figure=, such as a sub-figure of your own: "
            "figure.subfigures(1, 2)[0]"
        )
    figure = axes.figure
    axes.remove()
    return figure.add_subfigure(place)


def _find_root(target: Figure | SubFigure | Axes) -> Figure:
    """Return the figure that everything lies in. ``figure`` of axes may be a sub-figure; its own never is."""
    assert target.figure is not None
    return target.figure.figure


@contextmanager
def _set(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def new_figure(width: float = SLIDE[0], height: float = SLIDE[1]) -> Figure:
    """Return an empty figure whose layout makes room for every label; or that of :func:`drawing_into`."""
    target = _TARGET.get()
    if isinstance(target, Own):
        target.page = width, height
        return cast(Figure, target.figure)
    if target is not None:
        return cast(Figure, OneAxes(target))
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.05)
    figure = ShownFigure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def add_title(figure: Figure, title: str, note: str, *, simulated: bool) -> None:
    """Write a left-aligned, wrapped title above the axes and small print below them, where the medium shows them."""
    if isinstance(figure, OneAxes):
        if simulated:
            figure.axes.set_title("Simulated spectra", loc="right", fontsize=SMALL, color=MUTED)
        return
    if not _MEDIUM.get().shows_title:
        return
    target = _TARGET.get()
    width = target.size[0] / target.scale if isinstance(target, Own) else figure.get_size_inches()[0]
    # About 8.5 letters an inch at TITLE, 12 at SMALL, in the bundled font.
    wrapped = _wrap_evenly(title, max(20, int(width * 8.2)))
    figure.suptitle(wrapped, x=0.012, ha="left", fontsize=TITLE, fontweight="bold", color=INK)
    small_print = f"Simulated spectra. {note}" if simulated else note
    wrapped = textwrap.fill(small_print, max(24, int(width * 11.5)))
    figure.supxlabel(wrapped, x=0.012, ha="left", fontsize=SMALL, color=MUTED)


def _wrap_evenly(text: str, width: int) -> str:
    lines = len(textwrap.wrap(text, width))
    # The narrowest width that needs no further line: no word is left alone on the last one.
    while width > 20 and len(textwrap.wrap(text, width - 1)) == lines > 1:
        width -= 1
    return textwrap.fill(text, width)


def style_axes(axes: Axes, *, title: str = "", x: str = "", y: str = "", grid: str = "x") -> None:
    """Give axes the house look; ``grid`` names the value axis (``x``, ``y``, ``both`` or empty)."""
    axes.tick_params(labelsize=SMALL, colors=INK, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    if title:
        title = "\n".join(_wrap_evenly(line, _count_letters(axes)) for line in title.split("\n"))
        axes.set_title(title, loc="left", fontsize=TEXT, fontweight="bold", color=INK)
    axes.set_xlabel(x, fontsize=TEXT, color=INK)
    axes.set_ylabel(y, fontsize=TEXT, color=INK, labelpad=8)
    if grid in ("x", "both"):
        axes.grid(True, axis="x", color="#E3E3E3", linewidth=0.8)
    if grid in ("y", "both"):
        axes.grid(True, axis="y", color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)


def _count_letters(axes: Axes) -> int:
    """Return how many letters of a panel's title fit on a line; all on a slide, whose titles were written for it."""
    place = axes.get_subplotspec()
    if is_narrow() or is_slide() or place is None:
        return _LETTERS_OF_COLUMN if is_narrow() else 1000
    whole = page_width() * axes.figure.bbox.width / axes.figure.figure.bbox.width  # of a sub-figure its part
    columns = place.get_gridspec()
    widths = np.asarray(columns.get_width_ratios(), dtype=np.float64)
    part = widths[place.colspan.start : place.colspan.stop].sum() / widths.sum()
    return max(16, int(8.0 * (whole * part - 0.9)))


def legend_size() -> float:
    """Return the points of a legend that stands in a panel: smaller where the page is smaller than a slide."""
    return SMALL if is_slide() else _LEAST_IN_PAPER


def room_for_title() -> float:
    """Return the inches by which a figure of one column grows where it shows a title and small print."""
    return 1.1 if is_narrow() and _MEDIUM.get().shows_title else 0.0


def add_interval(axes: Axes, at: float, estimate: Estimate, *, horizontal: bool, color: str = INK) -> None:
    """Draw a confidence interval as a bar from its low to its high end; nothing where it is NaN."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return
    # Around the interval's own middle: its ends are then exact even where the mean is not inside.
    middle, half = (estimate.low + estimate.high) / 2, (estimate.high - estimate.low) / 2
    style: dict[str, Any] = {
        "fmt": "none",
        "ecolor": color,
        "elinewidth": 1.6,
        "capsize": 4,
        "capthick": 1.6,
        "zorder": 4,
    }
    if horizontal:
        axes.errorbar([middle], [at], xerr=[half], **style)
    else:
        axes.errorbar([at], [middle], yerr=[half], **style)


def format_value(value: float, form: str = ".3f") -> str:
    """Return a figure of merit as figures write it: with a true minus, and words where there is none."""
    return format(value, form).replace("-", "−") if math.isfinite(value) else "no R²"


def few_ticks(axes: Axes) -> None:
    """Keep the x axis to five round values: labels with a minus and two decimals need the room."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10], min_n_ticks=2))


def choose_ink(face: Sequence[float]) -> str:
    """Return print that has a contrast of at least 4.5 on a colour, by the relative luminance of WCAG 2.

    The house's ink is not black, so that on some middling colours neither it nor white would do: black does
    wherever white does not.
    """
    behind = _luminance(face)
    for ink in (INK, "#FFFFFF"):
        darker, lighter = sorted((behind, _luminance(to_rgb(ink))))
        if (lighter + 0.05) / (darker + 0.05) >= 4.5:
            return ink
    return "#000000"


def _luminance(color: Sequence[float]) -> float:
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color[:3])
    return float(0.2126 * red + 0.7152 * green + 0.0722 * blue)


def format_count(value: float) -> str:
    """Return a count in three digits, trailing zeros kept: ``62``, ``1.60k``, ``62.7k``, ``1.00M``."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        scaled = abs(value) / size
        # 999,500 and more would round to "1000k".
        if scaled >= 0.9995:
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{value / size:.{digits}f}{unit}"
    return f"{value:.0f}"


def format_counts(values: Sequence[float], *, exact_below: float = 100_000) -> list[str]:
    """Return counts that stand together in one style: exact with commas, or all in three digits if any is large.

    Zeros that say nothing are left out: 5k and 1M are exact.
    """
    exact = all(abs(value) < exact_below for value in values)
    return [f"{value:,.0f}" if exact else _strip_zeros(format_count(value), value) for value in values]


def _strip_zeros(text: str, value: float) -> str:
    number, unit = text[:-1], text[-1]
    if "." not in number or float(number) * {"k": 1e3, "M": 1e6, "G": 1e9}.get(unit, 0) != value:
        return text
    return f"{float(number):g}{unit}"


def label_counts(axes: Axes, counts: Sequence[float]) -> None:
    """Label the x axis with the very counts that were measured, thinned where they would touch."""
    low, high = min(counts), max(counts)
    logarithmic = high > 8 * low > 0
    if logarithmic:
        axes.set_xscale("log")

    def place(count: float) -> float:
        return math.log(count) if logarithmic else count

    # "48,000" takes a sixth of the dashboard's panel. Both ends come first: they say what was measured.
    gap = (place(high) - place(low)) * 0.19
    shown: list[float] = []
    for count in dict.fromkeys([high, low, *sorted(counts, reverse=True)]):
        if all(abs(place(other) - place(count)) >= gap for other in shown):
            shown.append(count)
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FixedFormatter(format_counts(shown)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def show_empty(axes: Axes, message: str) -> None:
    """Say why there is nothing to draw, instead of leaving axes blank."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, message, transform=axes.transAxes, ha="center", va="center", fontsize=TEXT, color=MUTED)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, PDF or SVG by the ending of its name, whole or not at all, as wide as the medium.

    The same figure gives the same bytes.
    """
    prepare_file(figure, path)()


def prepare_file(figure: Figure, path: Path) -> Callable[[], None]:
    """Draw a figure, and return what writes it as :func:`save_figure` does; that may happen in another thread."""
    width = _MEDIUM.get().width
    pack = _WRITERS[path.suffix](figure, 1.0 if width is None else width / figure.get_size_inches()[0])

    def write() -> None:
        content = pack()
        with replacing(path) as temporary:
            temporary.write_bytes(content)

    return write


def _draw_png(figure: Figure, scale: float) -> Callable[[], bytes]:
    # ``savefig`` would draw it twice, first for the layout alone. Level 3 packs faster, for a tenth more bytes.
    figure.set_dpi(DPI if scale == 1 else PAPER_DPI * scale)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    pixels, dpi = canvas.buffer_rgba(), figure.dpi if scale == 1 else PAPER_DPI
    unnamed: dict[str, Any] = {"Software": None}
    options = {"compress_level": 3, "dpi": (dpi, dpi)}

    def pack() -> bytes:
        buffer = io.BytesIO()
        imsave(buffer, pixels, format="png", origin="upper", metadata=unnamed, pil_kwargs=options)
        return buffer.getvalue()

    return pack


def _draw_vectors(figure: Figure, scale: float, suffix: str) -> Callable[[], bytes]:
    from pipeline.report.figures.vectors import write_pdf, write_svg  # which cost every run half a second

    buffer = io.BytesIO()
    if suffix == ".pdf":
        write_pdf(figure, buffer, scale)
    else:
        write_svg(figure, buffer, scale)
    return buffer.getvalue


_WRITERS: Final[dict[str, Callable[[Figure, float], Callable[[], bytes]]]] = {
    ".png": _draw_png,
    ".pdf": partial(_draw_vectors, suffix=".pdf"),
    ".svg": partial(_draw_vectors, suffix=".svg"),
}
#: Endings of files that figures can be written to.
FORMATS: Final = tuple(suffix.removeprefix(".") for suffix in _WRITERS)


# --- R² of both models, and ΔR², as curves along one quantity: the number of training spectra, or the noise level.


_LINES = ((R2_GLOBAL, "Global ridge", GLOBAL, "s"), (R2_ORACLE, "Oracle experts", ORACLE, "o"))


def draw_r2_curves(axes: Axes, at: Sequence[float], scopes: Sequence[Scope], *, legend: bool = True) -> None:
    """Draw R² of both models with intervals, at one place for each of some scopes."""
    for merit, label, color, marker in _LINES:
        estimates = [scope.merit(merit) for scope in scopes]
        values = [estimate.mean for estimate in estimates]
        axes.plot(at, values, color=color, marker=marker, linewidth=2, markersize=7, label=label, zorder=5)
        for position, estimate in zip(at, estimates, strict=True):
            add_interval(axes, position, estimate, horizontal=False, color=color)
    style_axes(axes, title="R² of both models", y="R²", grid="y")
    axes.margins(x=0.08)
    if not legend:
        return
    # Below the data: a legend among them would cover a curve sooner or later.
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, -0.01), fontsize=SMALL, frameon=False, ncols=2)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.22 * (high - low), high)


def draw_delta_curve(axes: Axes, at: Sequence[float], scopes: Sequence[Scope], results: RunResults) -> None:
    """Draw ΔR² with intervals and the thresholds of the decision."""
    decision, deltas = thresholds(results), [scope.delta_r2 for scope in scopes]
    axes.plot(at, [delta.mean for delta in deltas], color=INK, marker="D", linewidth=2, markersize=7, zorder=5)
    for position, delta in zip(at, deltas, strict=True):
        add_interval(axes, position, delta, horizontal=False)
    style_axes(axes, title="ΔR², what experts gain", y="ΔR²", grid="")
    axes.margins(x=0.08)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    lines = (
        (decision.continue_, BUILD, f"build experts: ≥ {decision.continue_:g}", "--"),
        (decision.stop, NOT_WORTH_IT, f"not worth it: < {decision.stop:g}", ":"),
    )
    for value, verdict, text, dashes in lines:
        axes.axhline(value, color=VERDICT_COLORS[verdict], linewidth=2, linestyle=dashes, label=text)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.15 * (high - low), high)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, -0.01), fontsize=SMALL, frameon=False, ncols=2)


def finish_curves(
    panels: tuple[Axes, Axes], counts: Sequence[float], results: RunResults, *, x: str, margin: float, room: float
) -> None:
    """Add to two panels with several curves each, of R² and of ΔR², all that both share: lines, axes and legend.

    Parameters
    ----------
    panels
        The panel of R² and the panel of ΔR², with their curves against the number of training spectra.
    counts
        Numbers of training spectra that the axis is labelled with.
    results
        Of the run, for the threshold of its verdict.
    x
        Label of the horizontal axis.
    margin
        Free space beside the curves, as a share of the axis.
    room
        Space for the legend below the curves, as a share of their height.
    """
    left, right = panels
    limit = thresholds(results).continue_
    right.axhline(0, color=MUTED, linewidth=0.8)
    right.axhline(limit, color=VERDICT_COLORS[BUILD], linewidth=2, linestyle=":", label=f"build experts: ≥ {limit:g}")
    style_axes(left, title="R² of both models", y="R²", grid="y")
    style_axes(right, title="ΔR², what experts gain", y="ΔR²", grid="")
    for axes in panels:
        axes.set_xlabel(x, fontsize=TEXT)
        axes.margins(x=margin)
        label_counts(axes, counts)
        low, high = axes.get_ylim()
        axes.set_ylim(low - room * (high - low), high)
        look: dict[str, Any] = {"frameon": False, "ncols": 2, "handlelength": 1.5, "columnspacing": 1.0}
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, -0.01), fontsize=legend_size(), **look)
