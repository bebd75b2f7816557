"""Figures: files, sizes, legible and free of overlaps for the grids people use, and no global state."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from results_factory import SNR_EDGES, FakeRun, make_results

from pipeline.errors import ResourceError
from pipeline.figures import FIGURES, NOISE_LEVELS_FIGURE, render_figures
from pipeline.figures.canvas import SMALL, format_count, format_value, save_figure
from pipeline.figures.per_bin import draw_delta_heatmap
from pipeline.figures.views import interval_labels, learning_points
from pipeline.results import RunResults

LONG_NAMES = {
    "T_eff": ("Extremely cool dwarfs and giants", "Middling", r"$\frac$ hot and bright"),
    "M_H": ("Very metal-poor halo stars", "Solar neighbourhood", "Super-solar bulge stars"),
}
TWELVE = {"T_eff": (3750.0, 4300.0, 4900.0, 5500.0, 6000.0), "M_H": (-2.0, -1.0, 0.0, 0.5)}
RUNS = {
    "reference": FakeRun(),
    "one bin": FakeRun(edges={"T_eff": (3750.0, 6000.0)}, seeds=(1,)),
    "four snr bins": FakeRun(edges=SNR_EDGES, seeds=(42,), n_test=300),
    "twelve in a row": FakeRun(edges={"T_eff": tuple(np.linspace(3750, 6000, 13))}, n_test=3000),
    "twelve, noise levels, NaN": FakeRun(edges=TWELVE, levels=(0.0, 0.2, 1.0, 2.0), nan_bins=(3,), n_test=3000),
    "three columns": FakeRun(
        edges={"T_eff": (3750.0, 4500.0, 6000.0), "M_H": (-2.0, -1.0, 0.5), "snr": (2.0, 5.0, 8.0, 28.0)}
    ),
    "long names, real spectra": FakeRun(bin_names=LONG_NAMES, simulated=False),
    "every bin NaN": FakeRun(edges=SNR_EDGES, nan_bins=(0, 1, 2, 3), n_test=200),
}


#: Figures whose layout depends on the grid are drawn for every run, the others where they could go wrong.
GRID_FIGURES = tuple(FIGURES)[:3]
PLAIN_RUNS = ("four snr bins", "twelve, noise levels, NaN", "every bin NaN")
SAMPLE_RUNS = (*PLAIN_RUNS, "reference", "three columns")
DRAWN = [
    *((name, figure) for name in RUNS for figure in GRID_FIGURES),
    *((name, "moe_sample_distribution.png") for name in SAMPLE_RUNS),
    *((name, figure) for name in PLAIN_RUNS for figure in FIGURES if figure not in GRID_FIGURES),
]
DRAWN = list(dict.fromkeys(DRAWN))


@pytest.fixture(scope="module")
def find_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunResults]:
    return functools.cache(lambda name: make_results(tmp_path_factory.mktemp("run"), RUNS[name]))


def test_render_figures__writes_every_figure_at_slide_size(tmp_path: Path) -> None:
    results = make_results(tmp_path, RUNS["twelve, noise levels, NaN"])
    written = render_figures(results)
    assert list(written) == list(FIGURES)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(FIGURES)
    for path in written.values():
        width, height = _png_size(path)
        assert 1999 <= width <= 3200
        assert 640 <= height <= 2400
        assert path.stat().st_mode & 0o777 == (tmp_path / "results.csv").stat().st_mode & 0o777


def test_save_figure__same_results_give_same_bytes(tmp_path: Path) -> None:
    results = make_results(tmp_path, RUNS["four snr bins"])
    for name in ("first.png", "second.png"):
        save_figure(draw_delta_heatmap(results), tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_render_figures__one_level_removes_an_old_noise_figure_and_leaves_global_state_alone(tmp_path: Path) -> None:
    from matplotlib import pyplot

    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    results = make_results(tmp_path, RUNS["one bin"])
    stale = tmp_path / "figures" / NOISE_LEVELS_FIGURE
    stale.parent.mkdir()
    stale.write_bytes(b"from an earlier run")
    assert NOISE_LEVELS_FIGURE not in render_figures(results)
    assert not stale.exists()
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend() == backend


def test_render_figures__unwritable_folder_names_the_path(tmp_path: Path) -> None:
    results = make_results(tmp_path, RUNS["one bin"])
    (tmp_path / "figures").write_text("a file where the folder should be")
    with pytest.raises(ResourceError, match=r"cannot write .*moe_oracle_dashboard\.png"):
        render_figures(results)


def test_render_figures__failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = make_results(tmp_path, RUNS["one bin"])
    target = tmp_path / "figures" / next(iter(FIGURES))
    target.parent.mkdir()
    target.write_bytes(b"old")

    def run_out_of_space(path: Path, content: bytes) -> int:
        with path.open("wb") as stream:
            stream.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", run_out_of_space)
    with pytest.raises(ResourceError, match="the disk is full"):
        render_figures(results)
    assert target.read_bytes() == b"old"
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize(("name", "figure_name"), DRAWN)
def test_figures__no_text_overlaps_is_clipped_or_too_small(
    find_run: Callable[[str], RunResults], name: str, figure_name: str
) -> None:
    run = find_run(name)
    figure = FIGURES[figure_name](run)
    assert _find_flaws(figure) == []
    shown = any("simulated spectra" in text.get_text().lower() for text in _texts(figure))
    assert shown == run.metadata["simulated"]


def test_find_flaws__sees_overlap_clipping_and_small_print(tmp_path: Path) -> None:
    figure = draw_delta_heatmap(make_results(tmp_path, RUNS["reference"]))
    assert _find_flaws(figure) == []
    cell = next(text for text in figure.axes[0].texts if text.get_text() == "bin 4")
    cell.set_y(cell.get_position()[1] - 0.3)
    assert any("overlaps" in flaw and "bin 4" in flaw for flaw in _find_flaws(figure))
    figure.text(0.98, 0.5, "beyond the edge", fontsize=8)
    flaws = _find_flaws(figure)
    assert any("clipped" in flaw for flaw in flaws)
    assert any("small" in flaw for flaw in flaws)


@pytest.mark.parametrize("name", ["reference", "twelve in a row", "twelve, noise levels, NaN"])
def test_heatmap__cells_state_the_summary(find_run: Callable[[str], RunResults], name: str) -> None:
    run = find_run(name)
    level = next(e for e in run.summary["levels"] if e["noise_level"] == run.summary["headline_level"])
    shown = {text.get_text().replace("\n", " ") for text in draw_delta_heatmap(run).axes[0].texts}
    for entry in level["bins"]:
        delta = entry["delta_r2"]
        assert f"{format_count(entry['n_train'])} / {format_count(entry['n_test'])}" in shown
        if delta["mean"] is None:
            assert "no R²" in shown
        else:
            assert format_value(delta["mean"], "+.3f") in shown
            assert f"{format_value(delta['low'], '+.3f')} to {format_value(delta['high'], '+.3f')}" in shown


def test_heatmap__bins_lie_where_their_labels_say(tmp_path: Path) -> None:
    axes = draw_delta_heatmap(make_results(tmp_path, RUNS["reference"])).axes[0]
    place = {text.get_text(): text.get_position() for text in axes.texts}
    rows = {round(y): label.get_text() for y, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)}
    columns = {round(x): label.get_text() for x, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)}
    x, y = place["bin 5"]
    assert rows[round(y)].startswith("Mid")
    assert columns[round(x)].startswith("Rich")


def test_figures__wild_values_stay_legible(tmp_path: Path) -> None:
    results = make_results(tmp_path, RUNS["reference"])
    for end in ("mean", "low", "high"):
        results.summary["levels"][0]["bins"][3]["delta_r2"][end] -= 40
        results.summary["levels"][0]["bins"][3]["r2_oracle"][end] -= 40
    for name in GRID_FIGURES:
        assert _find_flaws(FIGURES[name](results)) == []
    small_print = [text.get_text() for text in _texts(FIGURES["moe_perbin_r2_grouped.png"](results))]
    assert any("cut at −0.6" in text for text in small_print)
    assert any(text.startswith("−39.") for text in small_print)


def test_learning_points__is_the_mean_over_seeds_at_the_headline_level(tmp_path: Path) -> None:
    results = make_results(tmp_path, RUNS["twelve, noise levels, NaN"])
    frame = results.learning.query("noise_level == 1.0 and scope == 'covered'")
    points = learning_points(results)
    assert list(points["n_train"]) == sorted(set(frame["n_train"]))
    last = frame[frame["n_train"] == frame["n_train"].max()]
    assert len(last) == len(RUNS["twelve, noise levels, NaN"].seeds)
    assert points["delta_r2_low"].iloc[-1] == pytest.approx(last["delta_r2_low"].sum() / len(last))


def test_interval_labels__edges_once_and_with_a_true_minus(tmp_path: Path) -> None:
    named = make_results(tmp_path / "a", RUNS["reference"])
    assert interval_labels(named, "M_H") == ["Poor\n−2 to −1", "Solar\n−1 to 0", "Rich\n0–0.5"]
    assert interval_labels(make_results(tmp_path / "b", RUNS["four snr bins"]), "snr")[0] == "2–5"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (62, "62"), (999, "999"), (1000, "1k"), (62_700, "62.7k"), (999_960, "1M"), (1_234_567, "1.23M")],
)
def test_format_count__three_digits(count: int, text: str) -> None:
    assert format_count(count) == text


def _png_size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", header[16:24])
    return width, height


def _texts(figure: Figure) -> list[Text]:
    """Every text that is drawn. Tick labels beyond the limits exist, too, but matplotlib leaves them out."""
    hidden = set()
    for axes in figure.findobj(Axes):
        for axis in (axes.xaxis, axes.yaxis):
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            labels = {id(label) for tick in ticks for label in (tick.label1, tick.label2)}
            drawn = {id(label) for tick in axis._update_ticks() for label in (tick.label1, tick.label2)}
            if not axes.axison:
                drawn, labels = set(), labels | {id(axis.label)}
            hidden |= labels - drawn
    every = figure.findobj(Text)
    return [text for text in every if text.get_text().strip() and text.get_visible() and id(text) not in hidden]


def _find_flaws(figure: Figure) -> list[str]:
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    paper = figure.bbox.padded(1)
    boxes = [(text, text.get_window_extent(renderer).padded(-1)) for text in _texts(figure)]
    assert len(boxes) > 4
    flaws = [f"{text.get_text()!r} is too small" for text, _ in boxes if text.get_fontsize() < SMALL]
    flaws += [
        f"{text.get_text()!r} is clipped"
        for text, box in boxes
        if box.x0 < paper.x0 or box.y0 < paper.y0 or box.x1 > paper.x1 or box.y1 > paper.y1
    ]
    return flaws + [
        f"{first.get_text()!r} overlaps {second.get_text()!r}"
        for (first, one), (second, other) in combinations(boxes, 2)
        if one.overlaps(other)
    ]
