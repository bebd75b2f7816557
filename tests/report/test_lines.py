"""Named lines: where they are, and how figures mark them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from matplotlib.figure import Figure

from pipeline import SPECTRAL_LINES, InputError, SpectralLine, find_lines, mark_lines
from pipeline.report.figures.lines import LINE_NAMES
from pipeline.simulate.lines import CN_HEADS, PASCHEN_LINES, TIO_HEADS, list_lines


def test_find_lines_keeps_both_ends_and_the_names_asked_for() -> None:
    triplet = find_lines(8498.02, 8662.14, ["Ca II"])
    assert [line.wavelength for line in triplet] == [8498.02, 8542.09, 8662.14]
    assert find_lines(8498.03, 8662.13, ["Ca II"]) == (SpectralLine(8542.09, "Ca II"),)
    assert find_lines(0, 1e9) == SPECTRAL_LINES
    assert list(SPECTRAL_LINES) == sorted(SPECTRAL_LINES)
    assert {line.name for line in SPECTRAL_LINES} == set(LINE_NAMES)


def test_find_lines__raise_on_unknown_name() -> None:
    with pytest.raises(InputError, match=r"found 'Ca 2'.*did you mean 'Ca II'"):
        find_lines(7000, 9000, ["Ca 2"])


def test_simulated_spectra_have_the_named_lines_at_the_same_wavelengths() -> None:
    simulated = list_lines(7100, 8850)
    for species in ("Ca II", "Na I", "Mg I", "K I", "Fe I", "Ti I"):
        named = {line.wavelength for line in find_lines(7100, 8850, [species])}
        of_model = {wave for name, wave in zip(simulated.species, simulated.wave, strict=True) if name == species}
        assert named
        assert named <= of_model, species
    bands = {"Paschen": PASCHEN_LINES, "TiO": TIO_HEADS, "CN": CN_HEADS}
    for name, known in bands.items():
        assert {line.wavelength for line in find_lines(0, 1e9, [name])} <= {one[0] for one in known}


def test_mark_lines_draws_each_line_in_view_and_names_neighbours_once() -> None:
    axes = Figure().subplots()
    axes.set_xlim(8000, 8700)
    mark_lines(axes, ["Ca II", "Na I"])
    assert sorted(float(line.get_xdata()[0]) for line in axes.lines) == [8183.26, 8194.82, 8498.02, 8542.09, 8662.14]
    assert [text.get_text() for text in axes.texts] == ["Na I", "Ca II", "Ca II", "Ca II"], (
        "one name for the sodium doublet"
    )
    assert axes.get_xlim() == (8000, 8700)


def test_mark_lines_without_names_writes_none() -> None:
    axes = Figure().subplots()
    axes.set_xlim(7000, 9000)
    mark_lines(axes, named=False)
    assert axes.lines
    assert not axes.texts


def test_names_of_lines_do_not_overlap_and_stand_at_lines_of_theirs() -> None:
    figure = Figure(figsize=(12, 3), dpi=100)
    axes = figure.subplots()
    axes.set_xlim(7100, 8850)
    mark_lines(axes, LINE_NAMES)
    figure.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.x0)
    assert not [(a.x1, b.x0) for a, b in pairwise(boxes) if a.x1 > b.x0]
    for text in axes.texts:
        first = text.get_text().split(" · ")[0]
        assert SpectralLine(text.get_position()[0], first) in SPECTRAL_LINES


def test_lines_too_near_for_names_of_their_own_share_one() -> None:
    axes = Figure().subplots()
    axes.set_xlim(8000, 9000)
    mark_lines(axes, ["Ca II", "Paschen"])
    named = {text.get_position()[0]: text.get_text() for text in axes.texts}
    assert named[8542.09] == "Ca II · Paschen", "P15 lies in the wing of the calcium line"
    assert named[8598.39] == "Paschen"
