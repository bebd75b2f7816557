"""Figures: files, sizes, legible and free of overlaps for the grids people use, and no global state."""

from __future__ import annotations

import functools
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from commands import invoke
from matplotlib.axes import Axes
from matplotlib.axis import Axis, Tick
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text
from results_factory import SNR_EDGES, FakeRun, change_summary, list_pictures, make_results

import pipeline
from pipeline.errors import ResourceError
from pipeline.report import learning_points
from pipeline.report.figures import render_figures
from pipeline.report.figures.canvas import (
    PRINT_SCALE,
    SMALL,
    Medium,
    choose_ink,
    format_count,
    format_counts,
    format_value,
    house_style,
    save_figure,
    typeset,
)
from pipeline.report.figures.per_bin import draw_delta_heatmap
from pipeline.report.words import conclusion, interval_labels, over_seeds
from pipeline.scoring import RunResults

LONG_NAMES = {
    "T_eff": ("Extremely cool dwarfs and giants", "Middling", r"$\frac$ hot and bright"),
    "M_H": ("Very metal-poor halo stars", "Solar neighbourhood", "Super-solar bulge stars"),
}
TWELVE = {"T_eff": (3750.0, 4300.0, 4900.0, 5500.0, 6000.0), "M_H": (-2.0, -1.0, 0.0, 0.5)}
#: The users' own: neither evenly spaced nor short to write.
ALPHAS = (1e2, 1e4, 1e5, 5e5, 1e6)
RUNS = {
    "reference": FakeRun(),
    "one bin": FakeRun(edges={"T_eff": (3750.0, 6000.0)}, seeds=(1,)),
    "four snr bins": FakeRun(
        edges=SNR_EDGES, seeds=(42,), n_test=300, alphas=ALPHAS, design=True, gate=True, features=30
    ),
    "twelve in a row": FakeRun(edges={"T_eff": tuple(np.linspace(3750, 6000, 13))}, n_test=3000),
    "twelve, noise levels, NaN": FakeRun(
        edges=TWELVE,
        seeds=(42, 123),
        levels=(0.0, 0.2, 1.0, 2.0),
        nan_bins=(3,),
        n_test=3000,
        alphas=ALPHAS,
        marginal=True,
        design=True,
        gate=True,
    ),
    "few bins, every question": FakeRun(
        edges={"T_eff": (3750.0, 4875.0, 6000.0), "M_H": (-2.0, -0.5, 0.5)},
        levels=(0.2, 1.0),
        alphas=(1e2, 1e4),
        seeds=(42,),
        marginal=True,
        design=True,
        gate=True,
    ),
    "three columns": FakeRun(
        edges={"T_eff": (3750.0, 4500.0, 6000.0), "M_H": (-2.0, -1.0, 0.5), "snr": (2.0, 5.0, 8.0, 28.0)}
    ),
    "long names, real spectra": FakeRun(bin_names=LONG_NAMES, simulated=False, alphas=ALPHAS),
    "every bin NaN": FakeRun(edges=SNR_EDGES, nan_bins=(0, 1, 2, 3), n_test=200, alphas=(1e5, 2.5e6), gate=True),
}


PICTURES = list_pictures()
NOISE_LEVELS_FIGURE = "moe_noise_amplification.png"
#: Figures whose layout depends on the grid are drawn for every run, the others where they could go wrong.
GRID_FIGURES = tuple(PICTURES)[:3]
OPTIONAL = ("moe_ablation.png", "moe_marginal_noise.png", "moe_bin_design.png")
PLAIN_RUNS = ("four snr bins", "twelve, noise levels, NaN", "every bin NaN")
SAMPLE_RUNS = (*PLAIN_RUNS, "reference", "three columns")
DRAWN = [
    *((name, figure) for name in RUNS if name != "few bins, every question" for figure in GRID_FIGURES),
    *((name, "moe_sample_distribution.png") for name in SAMPLE_RUNS),
    *((name, "moe_ablation.png") for name in ("reference", "three columns", "twelve, noise levels, NaN")),
    *(
        (name, figure)
        for name in PLAIN_RUNS
        for figure in PICTURES
        if figure not in (*GRID_FIGURES, *OPTIONAL)  # not every run has them
    ),
]
DRAWN += [("twelve, noise levels, NaN", "moe_marginal_noise.png")]
DRAWN += [(name, "moe_bin_design.png") for name in ("twelve, noise levels, NaN", "four snr bins")]
DRAWN += [("long names, real spectra", "moe_alpha_search.png")]
DRAWN = list(dict.fromkeys(DRAWN))
#: Usual and extreme runs; what lies between is drawn by the slow tests.
SOON = ("reference", "twelve, noise levels, NaN", "long names, real spectra")


@pytest.fixture(scope="module")
def find_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunResults]:
    return functools.cache(lambda name: make_results(tmp_path_factory.mktemp("run"), RUNS[name]))


def test_render_figures__writes_every_figure_at_slide_size(tmp_path: Path) -> None:
    results = make_results(tmp_path, RUNS["few bins, every question"])
    written = render_figures(results, list(PICTURES.values()))
    assert [picture.file for picture, _ in written] == list(PICTURES)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(PICTURES)
    for picture, path in written:
        assert path == tmp_path / "figures" / picture.file
        width, height = _png_size(path)
        assert 1999 <= width <= 3200
        assert 640 <= height <= 2400
        assert path.stat().st_mode & 0o777 == (tmp_path / "results.csv").stat().st_mode & 0o777


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_save_figure__same_results_give_same_bytes(
    find_run: Callable[[str], RunResults], tmp_path: Path, ending: str
) -> None:
    with house_style(Medium(3.5)):
        for name in ("first", "second"):
            save_figure(draw_delta_heatmap(find_run("four snr bins")), tmp_path / f"{name}.{ending}")
    assert (tmp_path / f"first.{ending}").read_bytes() == (tmp_path / f"second.{ending}").read_bytes()


@pytest.mark.parametrize("width", [3.5, 7.0])
def test_files_for_paper_are_as_wide_as_asked_and_have_their_fonts(
    find_run: Callable[[str], RunResults], tmp_path: Path, width: float
) -> None:
    with house_style(Medium(width)):
        for name in ("one.pdf", "one.svg", "one.png"):
            save_figure(draw_delta_heatmap(find_run("four snr bins")), tmp_path / name)
    pdf = (tmp_path / "one.pdf").read_bytes()
    [box] = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", pdf)
    assert float(box[0]) == pytest.approx(72 * width, rel=1e-4)
    assert b"/FontFile2" in pdf, "a TrueType font is embedded"
    assert b"/Type3" not in pdf
    svg = (tmp_path / "one.svg").read_text()
    [size] = re.findall(r'<svg [^>]*width="([\d.]+)pt"', svg)
    [page] = re.findall(r'viewBox="0 0 ([\d.]+) ', svg)
    assert float(size) == pytest.approx(72 * width, rel=1e-4)
    assert float(page) > float(size), "the page is wider and drawn smaller"
    assert _png_size(tmp_path / "one.png")[0] == pytest.approx(300 * width, abs=2)


def test_widths_below_one_or_two_columns_take_the_page_of_these() -> None:
    """Page and print are made smaller together, so what has room in a column has room in a narrower one."""
    pages = {width: Medium(width).page_width for width in (3.0, 3.17, 3.5, 4.5, 5.6, 6.48, 7.0, 8.0)}
    assert pages[3.0] == pages[3.17] == pages[3.5] == 3.5 / PRINT_SCALE
    assert pages[5.6] == pages[6.48] == pages[7.0] == 7.0 / PRINT_SCALE
    assert pages[4.5] == 4.5 / PRINT_SCALE
    assert pages[8.0] == 8.0 / PRINT_SCALE
    assert Medium(3.17).scale == pytest.approx(3.17 / 3.5 * PRINT_SCALE)


@pytest.mark.parametrize("width", [8.0, 4.0, 2.0])
def test_a_small_pdf_holds_all_that_a_large_one_holds(tmp_path: Path, width: float) -> None:
    """The same operators after the one that makes everything smaller: no line and no mark is left out."""
    figure = Figure(figsize=(8.0, 6.0))
    axes = figure.subplots()
    axes.errorbar(range(30), range(30), yerr=2.0, marker="o", capsize=3)
    axes.barh(range(30), range(30))
    axes.scatter(range(30), range(30, 0, -1), s=range(30))
    with house_style(Medium(None)):
        save_figure(figure, tmp_path / "large.pdf")
    with house_style(Medium(width)):
        save_figure(figure, tmp_path / "small.pdf")
    large, small = (_read_operators(tmp_path / f"{name}.pdf") for name in ("large", "small"))
    scale = f"{width / 8:g} 0 0 {width / 8:g} 0 0 cm\n".encode()
    assert small.count(scale) == 1
    assert small.replace(scale, b"1 0 0 1 0 0 cm\n") == large


def _read_operators(path: Path) -> bytes:
    """Return what a PDF file draws on its page: its first stream."""
    return zlib.decompressobj().decompress(path.read_bytes().partition(b"stream\n")[2])


@pytest.mark.parametrize(
    ("plain", "shown"),
    [
        ("T_eff (K)", r"$T_\mathrm{eff}$ (K)"),
        ("true log g (dex)", r"true $\log\,g$ (dex)"),
        ("ΔR² = R²_oracle − R²_global", r"$\Delta R^2$ = $R^2_\mathrm{oracle}$ − $R^2_\mathrm{global}$"),
        ("M_H only", "[M/H] only"),
        ("catalog general", "catalog general"),
        ("T_effective", "T_effective"),
        ("cheap: $5 T_eff", "cheap: $5 T_eff"),
    ],
)
def test_names_of_quantities_are_typeset(plain: str, shown: str) -> None:
    assert typeset(plain) == shown
    assert typeset(shown) == shown


def test_the_command_lists_and_writes_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_results(tmp_path / "run", RUNS["four snr bins"])
    code, out, _ = invoke(capsys, "plot", tmp_path / "run")
    assert code == 0
    assert "learning_curve " in out
    assert "ceiling" not in out, "the run has none"
    options = ("--width", 3.5, "--no-title")
    code, out, _ = invoke(capsys, "plot", tmp_path / "run", "learning_curve", *options)
    assert code == 0
    path = tmp_path / "run/figures/learning_curve.pdf"
    # What the figure no longer says, the caption does.
    assert out.startswith(f"{path}: Simulated spectra. First panel: R² of both models on covered test spectra")
    assert path.read_bytes().startswith(b"%PDF")
    out_file = tmp_path / "a.svg"
    assert invoke(capsys, "plot", tmp_path / "run", "gate", "--format", "svg", "--out", out_file)[0] == 0
    assert out_file.is_file()
    for wrong, words in (
        (("learning_curv",), "learning_curve"),
        (("gate", "--out", tmp_path / "b.png"), "--format pdf"),
        (("gate", "--out", tmp_path), "it is a folder; name the file"),
        (("gate", "--all"), "--all"),
        (("gate", "--width", 1), "--width"),
    ):
        code, _, err = invoke(capsys, "plot", tmp_path / "run", *wrong)
        assert code == 2
        assert words in err


def test_captions_are_whole_sentences_about_what_is_shown(find_run: Callable[[str], RunResults]) -> None:
    run = find_run("few bins, every question")
    said = {name: picture.describe(run) for name, picture in PICTURES.items()}
    for name, caption in said.items():
        assert caption[0].isupper(), name
        assert caption.endswith("."), name
        assert len(re.findall(r"[.;] ", caption)) >= 2, name
    assert len(set(said.values())) == len(said)


@pytest.mark.parametrize(
    ("run", "noted"),
    [("few bins, every question", ", seed 42"), ("reference", f", mean over {len(FakeRun().seeds)} seeds")],
)
def test_notes_say_of_how_many_draws_a_number_is_the_mean(
    find_run: Callable[[str], RunResults], run: str, noted: str
) -> None:
    assert over_seeds(find_run(run)) == noted
    note = draw_delta_heatmap(find_run(run)).get_supxlabel().replace("\n", " ")
    assert f"Noise level 1{noted}." in note


def test_notes_name_no_seed_where_no_noise_was_drawn(tmp_path: Path) -> None:
    results = make_results(tmp_path, FakeRun(no_draws=True))
    assert over_seeds(results) == ""


def test_predictions_are_those_of_the_headline_level_whose_noise_has_no_seed(tmp_path: Path) -> None:
    """Test noise is drawn at level 0.2, with seeds, and that of the file, without one, is taken at level 1."""
    results = make_results(tmp_path, FakeRun(no_draws=True, noise_test="stored", levels=(0.2, 1.0)))
    assert results.overall["seed"].nunique() > 1
    assert over_seeds(results) == ""
    figure = PICTURES["moe_pred_vs_true.png"].draw(results)
    assert figure.axes[0].get_title(loc="left").startswith("Global ridge:")
    assert "seed" not in figure.get_supxlabel()


def test_empty_cells_have_no_tint(find_run: Callable[[str], RunResults]) -> None:
    """Nor does the scale begin at zero, whose colour would be that of the fewest spectra."""
    figure = PICTURES["moe_sample_distribution.png"].draw(find_run("reference"))
    for axes in figure.axes[:2]:
        [mesh] = [one for one in axes.collections if isinstance(one, QuadMesh)]
        values = np.ma.masked_invalid(mesh.get_array())
        assert values.min() > 0, "cells without spectra are masked, and white"
        assert mesh.norm.vmin is not None
        assert 0 < mesh.norm.vmin <= values.min()


def test_figures_show_themselves_in_a_notebook(tmp_path: Path) -> None:
    image = draw_delta_heatmap(make_results(tmp_path))._repr_png_()
    assert image.startswith(b"\x89PNG")
    width, height = struct.unpack(">2I", image[16:24])
    assert (width, height) == tuple(draw_delta_heatmap(make_results(tmp_path)).canvas.get_width_height())


def test_render_figures__one_level_removes_an_old_noise_figure_and_leaves_global_state_alone(tmp_path: Path) -> None:
    from matplotlib import pyplot

    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    results = make_results(tmp_path, RUNS["one bin"])
    stale = tmp_path / "figures" / NOISE_LEVELS_FIGURE
    stale.parent.mkdir()
    stale.write_bytes(b"from an earlier run")
    written = render_figures(results, list(PICTURES.values()))
    assert NOISE_LEVELS_FIGURE not in [picture.file for picture, _ in written]
    assert not stale.exists()
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend() == backend


def test_figures_are_upright_whatever_the_user_has_set(tmp_path: Path) -> None:
    results, chosen = make_results(tmp_path, RUNS["one bin"]), list(PICTURES.values())[:3]
    files = [path.read_bytes() for _, path in render_figures(results, chosen)]
    with matplotlib.rc_context({"image.origin": "lower"}):
        assert [path.read_bytes() for _, path in render_figures(results, chosen)] == files


def test_render_figures__unwritable_folder_names_the_path(tmp_path: Path) -> None:
    results = make_results(tmp_path, RUNS["one bin"])
    (tmp_path / "figures").write_text("a file where the folder should be")
    with pytest.raises(ResourceError, match=r"cannot write .*moe_oracle_dashboard\.png"):
        render_figures(results)


def test_render_figures__failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = make_results(tmp_path, RUNS["one bin"])
    target = tmp_path / "figures" / next(iter(PICTURES))
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


@pytest.mark.parametrize(
    ("name", "figure_name"),
    [pytest.param(*one, marks=[] if one[0] in SOON else pytest.mark.slow) for one in DRAWN],  # sixty figures in all
)
def test_figures__no_text_overlaps_is_clipped_or_too_small(
    find_run: Callable[[str], RunResults], name: str, figure_name: str
) -> None:
    run = find_run(name)
    figure = PICTURES[figure_name].draw(run)
    shown = " ".join(text.get_text() for text in _texts(figure)).replace("\n", " ")  # before it is typeset
    assert _find_flaws(figure) == []
    assert ("simulated spectra" in shown.lower()) == run.metadata["simulated"]
    # The sample is the same at every level, and the figure of noise levels shows all of them.
    if len(run.summary.levels) > 1 and figure_name not in ("moe_sample_distribution.png", NOISE_LEVELS_FIGURE):
        assert "oise level 1" in shown, "which of the levels it shows"


@pytest.mark.slow  # every figure three times
@pytest.mark.parametrize("figure_name", list(PICTURES))
def test_figures__of_one_column_are_as_legible(find_run: Callable[[str], RunResults], figure_name: str) -> None:
    run, smallest = find_run("few bins, every question"), 6.0 / PRINT_SCALE
    with house_style(Medium(3.5, shows_title=False)):
        figure = PICTURES[figure_name].draw(run)
        assert _find_flaws(figure, smallest=smallest) == []
    assert not figure.get_suptitle()
    assert not figure.get_supxlabel()
    width, height = figure.get_size_inches()
    assert width == pytest.approx(3.5 / PRINT_SCALE), "so much smaller is all print"
    assert height * PRINT_SCALE <= 7.1, "a page of LaTeX's article has room for the figure and its caption"
    for medium in (Medium(3.5), Medium(7.0)):
        with house_style(medium):
            assert _find_flaws(PICTURES[figure_name].draw(run), smallest=smallest) == []


@pytest.mark.parametrize("run", ["long names, real spectra", "few bins, every question"])
def test_panels_of_penalties_leave_no_place_empty_but_for_the_legend(
    find_run: Callable[[str], RunResults], run: str
) -> None:
    with house_style(Medium(3.5, shows_title=False)):
        figure = PICTURES["moe_alpha_search.png"].draw(find_run(run))
        assert _find_flaws(figure, smallest=6.0 / PRINT_SCALE) == []
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    assert len(legends) == 1
    assert all(axes.lines or axes.get_legend() for axes in figure.axes)


@pytest.mark.slow  # figures of 300 dots an inch
@pytest.mark.parametrize("size", [(5.0, 4.0), (2.6, 4.4)])
@pytest.mark.parametrize("name", ["learning_curve", "oracle_dashboard", "perbin_r2_grouped", "gate", "alpha_search"])
def test_figures_fit_into_small_subfigures(
    find_run: Callable[[str], RunResults], name: str, size: tuple[float, float]
) -> None:
    figure = Figure(figsize=(2 * size[0], size[1]), dpi=300)
    FigureCanvasAgg(figure)
    left, right = figure.subfigures(1, 2)
    pipeline.draw_figure(find_run("few bins, every question"), name, figure=left)
    assert _find_flaws(figure, smallest=2) == []
    inside = left.bbox.padded(1)
    for text in _texts(figure):
        box = text.get_window_extent()
        assert inside.x0 < box.x0 < box.x1 < inside.x1, text.get_text()
    assert not right.axes


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
    level = run.summary.headline
    shown = {text.get_text().replace("\n", " ") for text in draw_delta_heatmap(run).axes[0].texts}
    exact = 1000 if name == "twelve in a row" else 100_000
    parts = ([entry[part] for entry in level["bins"]] for part in ("n_train", "n_test"))
    counts = zip(*(format_counts(part, exact_below=exact) for part in parts), strict=True)
    for entry, (n_train, n_test) in zip(level["bins"], counts, strict=True):
        delta = entry["delta_r2"]
        assert f"{n_train} / {n_test}" in shown
        if np.isnan(delta["mean"]):
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

    def lower(summary: dict[str, Any]) -> None:
        for merit in ("delta_r2", "r2_oracle"):
            for end in ("mean", "low", "high"):
                summary["levels"][0]["bins"][3][merit][end] -= 40

    results = change_summary(results, lower)
    for name in GRID_FIGURES:
        assert _find_flaws(PICTURES[name].draw(results)) == []
    small_print = [text.get_text() for text in _texts(PICTURES["moe_perbin_r2_grouped.png"].draw(results))]
    assert any("cut at −0.6" in text for text in small_print)
    assert any(text.startswith("−39.") for text in small_print)


def test_learning_points__are_means_over_seeds_at_the_headline_level(find_run: Callable[[str], RunResults]) -> None:
    results = find_run("twelve, noise levels, NaN")
    frame = results.learning.query("noise_level == 1.0 and scope == 'covered'")
    points = learning_points(results)
    assert [point.n_train for point in points] == sorted(set(frame["n_train"]))
    for point in points:
        rows = frame[frame["n_train"] == point.n_train]
        assert len(rows) == len(RUNS["twelve, noise levels, NaN"].seeds)
        assert set(rows["n_test"]) == {point.n_test}
        for merit in ("r2_oracle", "r2_global", "delta_r2"):
            assert point[merit].mean == pytest.approx(rows[merit].mean(), abs=1e-9)


def test_learning_points__end_at_the_key_numbers_and_may_lack_a_number(find_run: Callable[[str], RunResults]) -> None:
    results = find_run("twelve, noise levels, NaN")

    def lose(summary: dict[str, Any]) -> None:
        [level] = [level for level in summary["levels"] if level["noise_level"] == 1.0]
        level["curve"][0]["delta_r2"] = {"mean": None, "std": None, "low": None, "high": None}
        level["curve"][1]["delta_r2"]["low"] = -7.5

    changed = change_summary(results, lose)
    shown = learning_points(changed)
    assert np.isnan(shown[0].delta_r2.mean)
    assert shown[1].delta_r2.low == -7.5
    assert shown[-1] == changed.summary.headline.covered
    assert _find_flaws(PICTURES["moe_learning_curve.png"].draw(changed)) == []


def test_interval_labels__edges_once_and_with_a_true_minus(tmp_path: Path) -> None:
    named = make_results(tmp_path / "a", RUNS["reference"])
    assert interval_labels(named, "M_H") == ["Poor\n−2 to −1", "Solar\n−1 to 0", "Rich\n0 to 0.5"]
    assert interval_labels(make_results(tmp_path / "b", RUNS["four snr bins"]), "snr")[0] == "2–5"
    two = FakeRun(edges={"M_H": (-2.0, -0.5, 0.5)})
    assert interval_labels(make_results(tmp_path / "c", two), "M_H") == ["−2 to −0.5", "−0.5 to 0.5"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (62, "62"),
        (999, "999"),
        (1000, "1.00k"),
        (1600, "1.60k"),
        (9996, "10.0k"),
        (62_700, "62.7k"),
        (999_960, "1.00M"),
        (1_234_567, "1.23M"),
    ],
)
def test_format_count__three_digits(count: int, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("counts", "texts"),
    [
        ((1600, 1553, 62), ["1,600", "1,553", "62"]),
        ((200_000, 98_123, 62), ["200k", "98.1k", "62"]),
        ((), []),
        ((5_000, 12_345_678, 10_000_000), ["5k", "12.3M", "10M"]),
    ],
)
def test_format_counts__one_style_for_what_stands_together(counts: tuple[int, ...], texts: list[str]) -> None:
    assert format_counts(counts) == texts


def test_choose_ink__is_legible_on_every_color_of_the_heatmap() -> None:
    inks = set()
    for face in matplotlib.colormaps["RdBu"](np.linspace(0, 1, 512)):
        ink = choose_ink(face)
        inks.add(ink)
        assert _contrast(face[:3], matplotlib.colors.to_rgb(ink)) >= 4.5, face
    assert len(inks) > 1


def test_learning_axis__counts_have_one_style(find_run: Callable[[str], RunResults]) -> None:
    axes = PICTURES["moe_learning_curve.png"].draw(find_run("four snr bins")).axes[0]
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert len(labels) > 2
    assert len({label[-1].isdigit() for label in labels}) == 1


def test_learning_axis__labels_keep_their_distance(tmp_path: Path) -> None:
    results = make_results(tmp_path, RUNS["reference"])

    def shorten(summary: dict[str, Any]) -> None:
        points = summary["levels"][0]["curve"]
        for point, n_train in zip(points, (8000, 16_000, 32_000, 48_000, 64_000), strict=True):
            point["n_train"] = n_train

    results = change_summary(results, shorten)
    figure = PICTURES["moe_oracle_dashboard.png"].draw(results)
    figure.draw_without_rendering()
    axes = next(one for one in figure.findobj(Axes) if "training spectra" in one.get_title(loc="left"))
    labels = sorted(axes.get_xticklabels(), key=lambda text: text.get_position()[0])
    assert [text.get_text() for text in labels] == ["8,000", "32,000", "48,000", "64,000"]
    boxes = [text.get_window_extent() for text in labels]
    assert all(right.x0 - left.x1 > 15 for left, right in pairwise(boxes))


def test_dashboard__negative_values_leave_room_between_tick_labels(tmp_path: Path) -> None:
    results = make_results(tmp_path, RUNS["reference"])

    def lose(summary: dict[str, Any]) -> None:
        (level,) = summary["levels"]
        for entry in (*level["scopes"].values(), *level["bins"]):
            entry["delta_r2"] = {"mean": -0.1234, "std": 0.0, "low": -0.1411, "high": -0.1069}

    results = change_summary(results, lose)
    figure = PICTURES["moe_oracle_dashboard.png"].draw(results)
    assert _find_flaws(figure) == []
    renderer = figure.canvas.get_renderer()
    for axes in figure.findobj(Axes):
        if axes.axison:
            shown = [t for t in _texts(figure) if t in axes.get_xticklabels()]
            boxes = sorted((text.get_window_extent(renderer) for text in shown), key=lambda box: box.x0)
            # Two digits' room at least: labels that nearly touch read as one number.
            assert all(right.x0 - left.x1 > 15 for left, right in pairwise(boxes))


def test_every_figure_is_drawn_of_several_levels() -> None:
    """Then every one must say which level it shows, see above."""
    assert {figure for name, figure in DRAWN if name == "twelve, noise levels, NaN"} == set(PICTURES)


def test_dashboard__leaves_the_verdict_to_the_page(find_run: Callable[[str], RunResults]) -> None:
    run = find_run("twelve, noise levels, NaN")
    shown = " ".join(text.get_text() for text in _texts(PICTURES["moe_oracle_dashboard.png"].draw(run)))
    shown = shown.replace("\n", " ")
    assert conclusion(run) not in shown
    assert run.summary.headline.decision.verdict not in shown.split("not worth it <")[0]


def test_conclusion__names_its_level_and_the_verdicts_of_the_others_in_order(tmp_path: Path) -> None:
    verdicts = ("not worth it", "build experts", "undecided")

    def decide(summary: dict[str, Any]) -> None:
        for level, verdict in zip(summary["levels"], verdicts, strict=True):
            level["decision"] = {"verdict": verdict, "sentence": f"It is {verdict}."}

    results = change_summary(make_results(tmp_path, FakeRun(levels=(2.0, 1.0, 0.2))), decide)
    assert conclusion(results) == (
        "At noise level 1: It is build experts. (At noise level 2: not worth it; at 0.2: undecided.)"
    )
    results = change_summary(results, lambda summary: summary.update(levels=summary["levels"][1:2]))
    assert conclusion(results) == "It is build experts."


def test_predictions__panels_name_the_seed(find_run: Callable[[str], RunResults]) -> None:
    run = find_run("four snr bins")
    panels = PICTURES["moe_pred_vs_true.png"].draw(run).axes[:2]
    assert all("seed 42" in axes.get_title(loc="left") for axes in panels)


def _contrast(one: Sequence[float], other: Sequence[float]) -> float:
    def luminance(color: Sequence[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _png_size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", header[16:24])
    return width, height


def _is_in_view(axis: Axis, tick: Tick) -> bool:
    """Whether matplotlib draws a tick: within the limits, or next to them."""
    low, high = sorted(axis.get_transform().transform(axis.get_view_interval()))
    [at] = axis.get_transform().transform([tick.get_loc()])
    margin = 1e-9 * (high - low)
    return bool(low - margin <= at <= high + margin)


def _texts(figure: Figure) -> list[Text]:
    """Every text that is drawn. Tick labels beyond the limits exist, too, but matplotlib leaves them out."""
    hidden = set()
    for axes in figure.findobj(Axes):
        for axis in (axes.xaxis, axes.yaxis):
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            labels = {id(label) for tick in ticks for label in (tick.label1, tick.label2)}
            drawn = {id(label) for tick in ticks if _is_in_view(axis, tick) for label in (tick.label1, tick.label2)}
            if not axes.axison:
                drawn, labels = set(), labels | {id(axis.label)}
            hidden |= labels - drawn
    every = figure.findobj(Text)
    return [text for text in every if text.get_text().strip() and text.get_visible() and id(text) not in hidden]


def _find_flaws(figure: Figure, smallest: float = SMALL) -> list[str]:
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    paper = figure.bbox.padded(1)
    boxes = [(text, text.get_window_extent(renderer).padded(-1)) for text in _texts(figure)]
    assert len(boxes) > 4
    flaws = [f"{text.get_text()!r} is too small" for text, _ in boxes if text.get_fontsize() < smallest]
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
