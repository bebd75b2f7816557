"""Reports: the numbers of the files, nothing from outside, and no way in for hostile names."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from results_factory import SNR_EDGES, FakeRun, change_summary, list_pictures, make_results, render_page

from pipeline.errors import ResourceError
from pipeline.questions.ablation import Ablation
from pipeline.questions.amplification import Amplification
from pipeline.questions.bin_design import BinDesign
from pipeline.questions.gate import Gates
from pipeline.questions.learning_curve import LearningCurve
from pipeline.questions.marginal_curve import MarginalCurve
from pipeline.report import Picture, learning_points, render_report
from pipeline.report.figures import draw_delta_heatmap
from pipeline.report.page import escape_markdown
from pipeline.report.words import collapse_warnings, describe_words, list_commands
from pipeline.schema import SIMULATED_REMARK
from pipeline.scoring import RunResults, Scope, read_results

#: The smallest PNG there is: what a report embeds need not be drawn first.
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = "/data/<script>alert(1)</script>|\"'> `x` {{ 7*7 }} ](javascript:alert(2))"
MERIT_NAMES = {"R²_global": "r2_global", "R²_oracle": "r2_oracle", "ΔR²": "delta_r2"}


def _report(folder: Path, run: FakeRun | None = None) -> tuple[RunResults, str, _Page]:
    results = make_results(folder, run)
    figures = {name: folder / "figures" / name for name in list_pictures(results)}
    (folder / "figures").mkdir()
    for path in figures.values():
        path.write_bytes(PIXEL)
    markdown, page = render_page(results, figures)
    return results, markdown.read_text(encoding="utf-8"), _Page.parse(page.read_text(encoding="utf-8"))


class _Page(HTMLParser):
    """What a browser would make of the report: tables by caption, tags, ids, text."""

    def __init__(self) -> None:
        super().__init__()
        self.source = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self._rows: list[list[str]] = []
        self._open: str | None = None
        self._caption = ""

    @classmethod
    def parse(cls, source: str) -> _Page:
        page = cls()
        page.source = source
        page.feed(source)
        page.close()
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        if tag in ("td", "th", "caption", "style", "title"):
            self._open = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            assert self._caption not in self.tables, "captions tell tables apart"
            self.tables[self._caption] = self._rows
        if tag == self._open:
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open in ("td", "th"):
            self._rows[-1][-1] += data
        elif self._open == "caption":
            self._caption += data
        if self._open != "style":
            self.text += data


def _markdown_tables(source: str) -> list[list[list[str]]]:
    """Every pipe table as GitHub reads it, without the line that aligns columns."""
    tables: list[list[list[str]]] = []
    previous = ""
    for line in source.splitlines():
        if line.startswith("|"):
            if not previous.startswith("|"):
                tables.append([])
            cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                tables[-1].append(cells)
        previous = line
    return tables


def _records(rows: list[list[str]]) -> list[list[tuple[str, str]]]:
    return [list(zip(rows[0], row, strict=True)) for row in rows[1:]]


def _numbers_of(scope: Scope) -> list[float]:
    """The figures of merit in the order of the page, each with its interval."""
    estimates = [scope[name] for name in MERIT_NAMES.values()]
    return [value for one in estimates for value in (one.mean, one.low, one.high)]


def _agrees(shown: str, stored: float | None, digits: int = 4) -> bool:
    if stored is None or math.isnan(stored):
        return shown == "–"
    assert "-" not in shown, "a negative number has a minus sign, not a hyphen"
    return float(shown.replace(",", "").replace("−", "-")) == pytest.approx(stored, abs=0.5001 * 10**-digits)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResults, str, _Page]:
    warnings = ("bin 4 has one test spectrum", "clock went back")
    alphas = (1e4, 1e5, 2.5e6)
    run = FakeRun(
        levels=(0.2, 1.0),
        nan_bins=(4,),
        warnings=warnings,
        alphas=alphas,
        marginal=True,
        design=True,
        gate=True,
        features=5,
    )
    return _report(tmp_path_factory.mktemp("full"), run)


def test_key_numbers__equal_the_summary_and_the_csv(full: tuple[RunResults, str, _Page]) -> None:
    results, _, page = full
    for level in results.summary["levels"]:
        records = _records(page.tables[f"Key numbers, noise level {level['noise_level']:g}"])
        assert len(records) == 6
        for record in records:
            row = dict(record)
            scope, merit = level["scopes"][row["Test spectra"]], MERIT_NAMES[row["Figure of merit"]]
            for heading, key in {"mean": "mean", "± seeds": "std", "low": "low", "high": "high"}.items():
                assert _agrees(row[heading], scope[merit][key])
            counts = (int(row["n train"].replace(",", "")), int(row["n test"].replace(",", "")))
            assert counts == (scope["n_train"], scope["n_test"])
            frame = results.overall.query("noise_level == @level['noise_level'] and scope == @row['Test spectra']")
            assert _agrees(row["mean"], frame[merit].mean())


def test_bins__equal_the_summary_and_the_csv(full: tuple[RunResults, str, _Page]) -> None:
    results, _, page = full
    for level in results.summary["levels"]:
        records = _records(page.tables[f"Bins, noise level {level['noise_level']:g}"])
        assert [dict(record)["Bin"] for record in records] == [str(entry["bin"]) for entry in level["bins"]]
        for record, entry in zip(records, level["bins"], strict=True):
            row = dict(record)
            assert (row["T_eff"], row["[M/H]"]) == entry["names"]
            assert _agrees(row["R²_global"], entry["r2_global"]["mean"])
            assert _agrees(row["R²_oracle"], entry["r2_oracle"]["mean"])
            for heading, key in {"ΔR²": "mean", "± seeds": "std", "low": "low", "high": "high"}.items():
                assert _agrees(row[heading], entry["delta_r2"][key])
            assert float(row["α"]) == entry["alpha"]
            assert (row["n train"], row["n test"]) == (f"{entry['n_train']:,}", f"{entry['n_test']:,}")
            frame = results.per_bin.query("noise_level == @level['noise_level'] and bin == @entry['bin']")
            assert _agrees(row["MAE oracle (dex)"], frame["mae_oracle"].mean())


def test_learning__equals_the_points_and_ends_at_the_key_numbers(full: tuple[RunResults, str, _Page]) -> None:
    results, _, page = full
    rows = page.tables["Covered test spectra, noise level 1, mean and interval over seeds"][1:]
    points = learning_points(results)
    frame = results.learning.query("noise_level == 1 and scope == 'covered'")
    assert len(rows) == len(points) == 5
    for row, point in zip(rows, points, strict=True):
        assert [int(cell.replace(",", "")) for cell in row[:2]] == [point.n_train, point.n_test]
        assert all(_agrees(cell, value) for cell, value in zip(row[2:], _numbers_of(point), strict=True))
        of_size = frame[frame["n_train"] == point.n_train]
        assert all(_agrees(row[2 + 3 * k], of_size[name].mean()) for k, name in enumerate(MERIT_NAMES.values()))
    numbers = [row for row in page.tables["Key numbers, noise level 1"] if row[0] == "covered"]
    assert rows[-1][2:] == [cell for row in numbers for cell in (row[2], row[4], row[5])]
    assert rows[-1][:2] == numbers[0][6:]


def test_marginal__holds_both_curves_against_each_other(full: tuple[RunResults, str, _Page]) -> None:
    results, markdown, page = full
    answer = MarginalCurve.read(results)
    assert answer is not None
    assert answer.sentence in page.text
    assert answer.sentence in markdown
    rows = page.tables["Covered test spectra, noise level 1, by training noise"][1:]
    points = [("drawn", one) for one in learning_points(results)] + [("marginal", one) for one in answer.points]
    for row, (name, point) in zip(rows, points, strict=True):
        assert row[:3] == [name, f"{point.n_train:,}", f"{point.n_test:,}"]
        assert all(_agrees(cell, value) for cell, value in zip(row[3:], _numbers_of(point), strict=True))
    frame = results.table("marginal_learning_curve.csv").query("noise_level == 1 and scope == 'covered'")
    for row in rows[5:]:
        of_size = frame[frame["n_train"] == int(row[1].replace(",", ""))]
        assert all(_agrees(row[3 + 3 * k], of_size[name].mean()) for k, name in enumerate(MERIT_NAMES.values()))


def test_ablation__equals_the_summary_and_the_csv(full: tuple[RunResults, str, _Page]) -> None:
    results, _, page = full
    answer = Ablation.read(results)
    assert answer is not None
    table = results.table("ablation.csv")
    for level in answer.levels:
        header, *rows = page.tables[f"Binnings, noise level {level.noise_level:g}"]
        assert [row[0] for row in rows] == ["bins", "T_eff only", "M_H only"]
        for row, one in zip(rows, level.binnings, strict=True):
            assert row[1:3] == [" × ".join(one.columns).replace("M_H", "[M/H]"), str(one.n_bins)]
            delta, share = one.delta_r2, one.share
            numbers = [one.r2_global.mean, one.r2_oracle.mean, delta.mean, delta.std, delta.low, delta.high]
            assert all(_agrees(cell, value) for cell, value in zip(row[3:9], numbers, strict=True))
            assert row[9:12] == [
                "–" if math.isnan(value) else f"{value:.0%}" for value in (share.mean, share.low, share.high)
            ]
            frame = table[(table["binning"] == one.name) & (table["noise_level"] == level.noise_level)]
            assert _agrees(row[header.index("ΔR²")], frame["delta_r2"].mean())
            assert row[12:] == [f"{one.coverage:.1%}", f"{one.n_test:,}"]


def test_labels__equal_the_csv_and_leave_out_what_the_bins_know(tmp_path: Path) -> None:
    results, markdown, page = _report(tmp_path, FakeRun(labels=True, levels=(0.2, 1.0)))
    for level in (0.2, 1.0):
        rows = page.tables[f"Other labels, noise level {level:g}"][1:]
        of_level = results.labels[results.labels["noise_level"] == level]
        merits = {"T_eff": ["R²_global"], "a_M": list(MERIT_NAMES)}
        assert [tuple(row[:3]) for row in rows] == [
            (label, scope, merit) for label in merits for scope in ("covered", "all") for merit in merits[label]
        ]
        for label, scope, merit, mean, *_ in rows:
            frame = of_level[(of_level["target"] == label) & (of_level["part"] == scope)]
            assert _agrees(mean, frame[MERIT_NAMES[merit]].mean())
    assert "the choice of the expert gives its value away" in page.text
    assert "the choice of the expert gives its value away" in markdown
    leaked = results.labels.query("target == 'T_eff'")
    assert leaked[["r2_oracle", "delta_r2", "mae_oracle"]].isna().all(axis=None)


def test_markdown_and_html__show_the_same_tables(full: tuple[RunResults, str, _Page]) -> None:
    _, markdown, page = full
    expected = [[[html.escape(cell, quote=False) for cell in row] for row in rows] for rows in page.tables.values()]
    shown = [
        [[html.escape(html.unescape(cell), quote=False).replace("\\", "") for cell in row] for row in rows]
        for rows in _markdown_tables(markdown)
    ]
    assert shown == expected


def test_report__opens_with_the_decision(full: tuple[RunResults, str, _Page]) -> None:
    results, markdown, page = full
    sentence = results.summary.headline.decision.sentence
    other = results.summary.levels[0].decision.verdict
    assert markdown.splitlines()[2] == f"**At noise level 1: {sentence} (At noise level 0.2: {other}.)**"
    assert page.text.index(sentence) < page.text.index("Simulated spectra") < page.text.index("Key numbers")
    # Once in a page; the dashboard has it, too, but is a picture.
    assert page.text.count(sentence) == markdown.count(sentence) == 1
    assert not any(sentence in str(value) for _, found in page.tags for value in found.values())


def test_report__several_levels_stand_in_the_order_of_the_configuration(tmp_path: Path) -> None:
    _, markdown, page = _report(tmp_path, FakeRun(levels=(2.0, 1.0, 0.2)))
    for kind in ("Hypotheses", "Key numbers", "Bins"):
        captions = [caption for caption in page.tables if caption.startswith(f"{kind}, noise level")]
        assert captions == [f"{kind}, noise level {level}" for level in ("2", "1", "0.2")]
    assert [row[0] for row in page.tables["Covered test spectra at every noise level"][1:]] == ["2", "1", "0.2"]
    assert all("Figures show noise level 1" in text for text in (page.text, markdown))
    assert "Figures show" not in _report(tmp_path / "one", FakeRun())[1]


def _caption_of_levels(results: RunResults, means: tuple[float | None, ...]) -> str:
    """Return what stands under the comparison of noise levels 0.2 and 1 with these ΔR²."""
    question = Amplification(cast(Any, None))
    for level, mean in zip((0.2, 1.0), means, strict=True):
        score = SimpleNamespace(covered=SimpleNamespace(delta_r2=math.nan if mean is None else mean))
        draw = SimpleNamespace(level=level, scores=[score])
        question.hear(cast(Any, SimpleNamespace(trained=SimpleNamespace(is_compared=False), draw=draw)), ())
    answer = question.answer()
    assert answer is not None

    def state(summary: dict[str, Any]) -> None:
        for level, mean in zip(reversed(summary["levels"]), means, strict=True):
            level["scopes"]["covered"]["delta_r2"]["mean"] = mean
        summary["answers"][Amplification.name] = answer.to_dict()

    return list_pictures()["moe_noise_amplification.png"].describe(change_summary(results, state))


@pytest.mark.parametrize(
    ("means", "words"),
    [
        ((0.2, 0.3), "ΔR² crosses no threshold: at all these noise levels it is at or above 0.05."),
        ((0.03, 0.04), "it is between 0.02 and 0.05."),
        ((0.01, 0.3), "ΔR² crosses 0.05 and 0.02 between noise levels 0.2 and 1."),
        ((0.06, 0.03), "ΔR² crosses 0.05 between noise levels 0.2 and 1."),
        ((0.02, 0.05), "ΔR² at noise level 1 is 2.5 times that at 0.2."),
        ((None, None), "ΔR² is undefined at every noise level."),
    ],
)
def test_caption__claims_only_crossings_that_are_there(
    tmp_path: Path, means: tuple[float | None, ...], words: str
) -> None:
    results = make_results(tmp_path, FakeRun(levels=(1.0, 0.2)))
    assert words in _caption_of_levels(results, means)


@pytest.mark.parametrize("means", [(-0.1, 0.2), (0.2, -0.1), (0.0, 0.1), (None, 0.1)])
def test_caption__no_ratio_where_experts_gain_nothing(tmp_path: Path, means: tuple[float | None, ...]) -> None:
    results = make_results(tmp_path, FakeRun(levels=(1.0, 0.2)))
    assert "times that" not in _caption_of_levels(results, means)


def test_report__warnings_stand_under_the_conclusion_and_at_the_end(full: tuple[RunResults, str, _Page]) -> None:
    results, markdown, page = full
    for text in (page.text, markdown):
        for warning in results.metadata["warnings"]:
            assert text.index("At noise level 1") < text.index(warning) < text.index("Simulated spectra")
            assert text.count(warning) == 2
        assert "Read this first" in text


def test_report__settings_that_a_warning_names_are_code_and_nothing_else_is(tmp_path: Path) -> None:
    warnings = ("set `compute: {moments: <b>}` there", "one ` alone <i>")
    path, *_ = (one for one in render_page(make_results(tmp_path, FakeRun(warnings=warnings))) if one.suffix == ".html")
    html = path.read_text(encoding="utf-8")
    assert html.count("<li>set <code>compute: {moments: &lt;b&gt;}</code> there</li>") == 2
    assert html.count("<li>one ` alone &lt;i&gt;</li>") == 2


def test_report__no_warnings_no_box(tmp_path: Path) -> None:
    _, markdown, page = _report(tmp_path)
    assert "Read this first" not in markdown + page.text


def test_report__says_whose_hypotheses_these_are(tmp_path: Path) -> None:
    results = make_results(tmp_path)
    assert results.metadata["config"]["hypotheses"] is None
    for path in render_page(results):
        assert "those of the reference run are tested" in path.read_text(encoding="utf-8")
    results.metadata["config"]["hypotheses"] = {"r2_oracle": 0.5, "delta_r2": 0.1, "lowest_r2_bins": None}
    for path in render_page(results):
        assert "those of the reference run are tested" not in path.read_text(encoding="utf-8")


def test_design__numbers_are_the_summarys_and_the_rectangles_the_recommended(
    full: tuple[RunResults, str, _Page],
) -> None:
    results, markdown, page = full
    design = BinDesign.read(results)
    assert design is not None
    assert design.chosen is not None
    assert design.sentence in page.text
    assert design.sentence in markdown
    caption = next(name for name in page.tables if name.startswith("Best division for each number of experts"))
    assert caption.endswith(
        f"noise level 1, {design.n_train:,} training and {design.divisions[0].n_test:,} test spectra"
    )
    table = results.table("design.csv")
    assert list(table.loc[table["recommended"], "experts"]) == [design.recommended]
    for one, row in zip(design.divisions, _records(page.tables[caption]), strict=True):
        found, [stored] = dict(row), table[table["experts"] == one.experts].to_dict("records")
        recommended = " (recommended)" if one.experts == design.recommended else ""
        assert found["Experts"] == f"{one.experts}{recommended}"
        assert stored["n_test"] == one.n_test
        for heading, value, column in (
            ("ΔR², held-out", one.delta_r2, "delta_r2_cv"),
            ("R²_oracle, held-out", one.r2_oracle, "r2_oracle_cv"),
            ("R²_global, held-out", one.r2_global, "r2_global_cv"),
            ("ΔR², test", one.test["delta_r2"].mean, "delta_r2_test"),
            ("low", one.test["delta_r2"].low, "delta_r2_test_low"),
            ("high", one.test["delta_r2"].high, "delta_r2_test_high"),
        ):
            assert _agrees(found[heading], value)
            assert stored[column] == pytest.approx(value, abs=1e-9)
    rows = page.tables["Rectangles of the recommended division, as numbered in the figure"][1:]
    assert [[float(cell.replace("−", "-")) for cell in row[1:]] for row in rows] == [
        [pytest.approx(end, rel=1e-5) for span in one.values() for end in span] for one in design.chosen.rectangles
    ]


def test_gate__numbers_are_the_summarys_on_both_sets_of_spectra(full: tuple[RunResults, str, _Page]) -> None:
    results, markdown, page = full
    answer, table = Gates.read(results), results.table("routing.csv")
    assert answer is not None
    assert [one.noise_level for one in answer.levels] == [one.noise_level for one in results.summary.levels]
    for routing in answer.levels:
        assert routing.sentence in page.text
        assert routing.sentence in markdown
        records = [dict(row) for row in _records(page.tables[f"Routing at noise level {routing.noise_level:g}"])]
        assert [(row["Spectra"], row["Routing"]) for row in records] == [
            (scope, route) for scope in ("covered", "all") for route in ("oracle", "hard", "soft", "fallback")
        ]
        for row in records:
            entry = routing.scopes[row["Spectra"]][row["Routing"]]
            assert _agrees(row["R²"], entry.r2.mean)
            assert row["ρ ≥ 0.7"] == (entry.verdict or "–")
            own = table[(table["scope"] == row["Spectra"]) & (table["route"] == row["Routing"])]
            own = own[own["noise_level"] == routing.noise_level]
            assert _agrees(row["R²"], own["r2"].mean())
            assert _agrees(row["gain over global"].replace("−", "-"), own["gain"].mean())


def test_gate__is_silent_where_there_is_none(tmp_path: Path) -> None:
    _, markdown, page = _report(tmp_path)
    assert "gate" not in {found.get("id") for _, found in page.tags}
    assert "Routing without labels" not in markdown


def test_design__is_silent_where_there_is_none(tmp_path: Path) -> None:
    _, markdown, page = _report(tmp_path)
    assert "design" not in {found.get("id") for _, found in page.tags}
    assert "## How many experts" not in markdown


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        (SNR_EDGES, "whose true SNR lies in"),
        ({"T_eff": (3750.0, 6000.0), "a_M": (-0.2, 0.6), "snr": (2.0, 28.0)}, "whose true T_eff, a_M and SNR lie in"),
    ],
)
def test_glossary__covered_names_the_columns_of_this_run(tmp_path: Path, edges: dict[str, Any], words: str) -> None:
    results = make_results(tmp_path, FakeRun(edges=edges))
    meaning = dict(describe_words(results))["covered"]
    assert words in meaning
    assert "[M/H]" not in meaning


def test_html__figures_fit_the_page_and_open_at_full_size(full: tuple[RunResults, str, _Page]) -> None:
    _, _, page = full
    figures = [str(found["id"]) for tag, found in page.tags if tag == "figure"]
    assert len(figures) == len(list_pictures())
    for (tag, found), (before, link) in zip(page.tags[1:], page.tags, strict=False):
        if tag == "img":
            assert before == "a", found
            assert str(link["href"]).removeprefix("#") in figures
    assert re.search(r"figure img {[^}]*max-width: 100%", page.source)
    assert re.search(r"figure:target img {[^}]*max-width: none", page.source)
    assert "46rem; max-width: none" not in page.source


def test_report__hypotheses_pass_or_fail(full: tuple[RunResults, str, _Page]) -> None:
    results, _, page = full
    for level in results.summary["levels"]:
        rows = page.tables[f"Hypotheses, noise level {level['noise_level']:g}"][1:]
        stated = [
            [h["name"], h["statement"], h["found"], {True: "PASS", False: "FAIL", None: "WITHHELD"}[h["passed"]]]
            for h in level["hypotheses"]
        ]
        assert rows == stated


def test_report__states_protocol_warnings_configuration_and_provenance(full: tuple[RunResults, str, _Page]) -> None:
    results, markdown, page = full
    metadata, learning = results.metadata, LearningCurve.read(results)
    assert learning is not None
    facts = [
        *metadata["warnings"],
        metadata["git_commit"],
        metadata["config_hash"],
        metadata["stores"]["test"]["fingerprint"],
        *metadata["stores"]["train"]["paths"],
        *(source["name"] for source in metadata["stores"]["train"]["sources"]),
        metadata["hashes"]["results.csv"],
        metadata["command"],
        "folds: 5",
        learning.sentence,
        "6,554 MiB",
        "7,680 MiB",
        "5,120 MiB",
        "2,048 MiB",
        "934.70",
        "pre-drawn",
        "anew for every seed",
    ]
    for fact in facts:
        assert fact in page.text, fact
        assert fact in markdown, fact


def test_report__penalties_are_those_of_the_search(full: tuple[RunResults, str, _Page]) -> None:
    results, markdown, page = full
    for text in (markdown, page.text):
        assert "chosen among 1e4, 1e5 and 2.5e6 by the R² of log g on folds of the training set" in text
        assert "every model chose its own. The test spectra played no part in the choice" in text
    for level in (0.2, 1.0):
        header, *rows = page.tables[f"Penalties chosen, noise level {level:g}, means over seeds"]
        assert header == ["Model", "α chosen", "place in the grid", "R² held-out folds", "R² test", "best α of its own"]
        assert len(rows) == 10
        for number, row in enumerate(rows):
            model = str(number - 1) if number else "global"
            found = results.alpha_search.query(f"noise_level == {level} and model == '{model}' and chosen")
            assert row[0].startswith("global" if number == 0 else f"{model} · ")
            texts = {1e4: "1e4", 1e5: "1e5", 2.5e6: "2.5e6"}
            counts = found["alpha"].value_counts().sort_index()
            expected = ", ".join(f"{texts[alpha]} ({n}×)" for alpha, n in counts.items())
            assert row[1] == row[5] == (expected if len(counts) > 1 else texts[counts.index[0]])
            edges = {1e4: "smallest", 2.5e6: "largest"}
            assert row[2] == (", ".join(sorted(edges[a] for a in counts.index if a in edges)) or "inside")
            assert row[3] == f"{found['r2_cv'].mean():.4f}"
            assert row[4] == ("–" if model == "4" else f"{found['r2_test'].mean():.4f}")


def test_report__says_nothing_of_a_search_that_there_was_not(tmp_path: Path) -> None:
    _, markdown, page = _report(tmp_path, FakeRun())
    assert "## Penalty" not in markdown
    assert "moe_alpha_search" not in markdown
    assert not any("Penalties chosen" in caption for caption in page.tables)


def test_html__is_self_contained(full: tuple[RunResults, str, _Page]) -> None:
    _, _, page = full
    assert not any(tag in ("iframe", "object", "embed", "base") for tag, _ in page.tags)
    references = [value for _, found in page.tags for key, value in found.items() if key in ("src", "href", "srcset")]
    assert len(references) > 15
    assert all(value is not None and value.startswith(("data:", "#")) for value in references)
    style = re.search(r"<style>(.*?)</style>", page.source, re.DOTALL)
    assert style is not None
    assert not re.search(r"url\(|@import|https?:", style.group(1))
    assert not any(key.startswith("on") for _, found in page.tags for key in found)


def _scripts(page: _Page) -> list[tuple[str, str]]:
    """Type and text of the page's scripts."""
    return re.findall(r"<script([^>]*)>(.*?)</script", page.source, re.DOTALL | re.IGNORECASE)


def test_html__runs_one_script_that_no_run_can_change(full: tuple[RunResults, str, _Page], tmp_path: Path) -> None:
    _, _, page = full
    (kind, content), (own_kind, own) = _scripts(page)
    assert (kind, own_kind) == (' type="application/json" id="explorer-content"', "")
    json.loads(content)
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    policy = next(str(found["content"]) for _, found in page.tags if "Content-Security-Policy" in found.values())
    # A browser then refuses every other script, wherever it may have come from.
    assert re.findall(r"script-src ([^;]*);", policy) == [f"'sha256-{digest}'"]
    assert "default-src 'none'" in policy
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|fetch\(|XMLHttp|import\(", own)
    other = _report(tmp_path, FakeRun(edges=SNR_EDGES, bin_names={"snr": (HOSTILE, "b", "c", "</script>")}))[2]
    assert len(_scripts(other)) == 2
    assert _scripts(other)[1] == ("", own)
    assert HOSTILE in json.dumps(json.loads(_scripts(other)[0][1]), ensure_ascii=False).replace('\\"', '"')


def test_render_report__same_results_give_the_same_bytes(tmp_path: Path) -> None:
    results = make_results(tmp_path, FakeRun(levels=(0.2, 1.0)))
    first = [path.read_bytes() for path in render_page(results)]
    assert first == [path.read_bytes() for path in render_page(read_results(tmp_path))]


def test_html__contents_lead_to_sections_and_images_have_words(full: tuple[RunResults, str, _Page]) -> None:
    _, _, page = full
    identifiers = [found["id"] for _, found in page.tags if "id" in found]
    assert len(identifiers) == len(set(identifiers))
    anchors = [found["href"] for tag, found in page.tags if tag == "a"]
    assert {str(anchor).removeprefix("#") for anchor in anchors} == set(identifiers) - {
        "explorer",
        "explorer-content",
        "explorer-lack",
    }
    images = [found for tag, found in page.tags if tag == "img"]
    assert len(images) == len(list_pictures())
    for image in images:
        assert image["alt"]
        assert base64.b64decode(str(image["src"]).partition(",")[2]) == PIXEL
    # What scrolls sideways must be reachable without a mouse.
    scrolling = [found for tag, found in page.tags if tag == "pre" or found.get("class") == "scroll"]
    assert all(found.get("tabindex") == "0" and found.get("aria-label") for found in scrolling)


def test_markdown__links_to_figures_that_exist(full: tuple[RunResults, str, _Page]) -> None:
    results, markdown, _ = full
    links = re.findall(r"^!\[[^\]]+\]\(([^)]+)\)$", markdown, re.MULTILINE)
    assert len(links) == len(list_pictures())
    assert all((results.folder / link).is_file() for link in links)


def test_report__hostile_names_stay_text(tmp_path: Path) -> None:
    store = {"paths": [HOSTILE], "fingerprint": "f", "n_spectra": 10, "sources": [HOSTILE]}
    metadata: dict[str, Any] = {
        "stores": {"train": store, "test": store},
        "config_source": HOSTILE,
        "command": f"headroom run {HOSTILE}",
        "versions": {HOSTILE: HOSTILE},
    }
    run = FakeRun(metadata=metadata, warnings=(HOSTILE,), bin_names={"T_eff": (HOSTILE, "b", "c")})
    _, markdown, page = _report(tmp_path, run)
    assert len(_scripts(page)) == 2
    assert page.text.count(HOSTILE) >= 8
    outside = re.sub(r"^(`{3,}).*?^\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside
    assert not re.search(r"(?<!\\)\]\(javascript", outside)
    assert "{{ 7*7 }}".replace("*", r"\*") in outside
    assert all(len({len(row) for row in table}) == 1 for table in _markdown_tables(markdown))


def test_report__a_configuration_cannot_leave_its_fence(tmp_path: Path) -> None:
    results = make_results(tmp_path)
    results.metadata["config"]["data"]["stores"] = "```\n# Not a heading\n````"
    markdown = render_page(results)[0].read_text(encoding="utf-8")
    block = re.search(r"^(`{3,})yaml\n(.*?)\n\1$", markdown, re.DOTALL | re.MULTILINE)
    assert block is not None
    assert "Not a heading" in block.group(2)
    assert block.group(1) not in block.group(2)


def test_report__pieces_that_a_run_may_lack(tmp_path: Path) -> None:
    metadata: dict[str, Any] = dict.fromkeys(("git_commit", "peak_memory_bytes", "command", "started"))
    metadata |= {"plan": {}, "steps": [], "hashes": {}, "versions": {}, "simulated": False}
    run = FakeRun(edges=SNR_EDGES, seeds=(42,), n_test=200, nan_bins=(0, 1, 2, 3), metadata=metadata)
    results = make_results(tmp_path, run)
    results = change_summary(results, lambda summary: summary["answers"].clear())
    page = _Page.parse(render_page(results)[1].read_text(encoding="utf-8"))
    assert "Simulated spectra" not in page.text
    assert "not recorded" in page.text
    assert {dict(record)["± seeds"] for record in _records(page.tables["Key numbers, noise level 1"])} == {"–"}
    assert {dict(record)["ΔR²"] for record in _records(page.tables["Bins, noise level 1"])} == {"–"}
    shown = re.sub(r"<(style|script)>.*?</\1>", "", page.source, flags=re.DOTALL).lower()
    assert "nan" not in re.split(r"[\s\",:]+", shown)


@pytest.mark.parametrize(
    ("commit", "lines"),
    [("9fce", ["git checkout 9fce"]), ("9fce+changes", ["git checkout 9fce  # it had been edited"]), (None, [])],
)
def test_report__commands_start_from_the_commit(tmp_path: Path, commit: str | None, lines: list[str]) -> None:
    results = make_results(tmp_path, FakeRun(metadata={"git_commit": commit}))
    markdown = render_page(results)[0].read_text(encoding="utf-8")
    expected = ["```sh", *lines, "make install", "source .venv/bin/activate"]
    assert "\n".join(expected) in markdown


def test_report__commands_work_as_written(tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    _, markdown, _ = _report(folder)
    block = re.search(r"^```sh\n(.*?)\n```$", markdown, re.DOTALL | re.MULTILINE)
    assert block is not None
    commands = [shlex.split(line, comments=True) for line in block.group(1).splitlines()]
    again = f"{folder.resolve()}-again"
    assert [command for command in commands if command][-3:] == [
        ["headroom", "run", str(folder.resolve() / "config.yaml"), "--out", again],
        ["cd", again],
        ["sha256sum", "results.csv", "per_bin_results.csv", "summary.json", "predictions.parquet"],
    ]


def test_report__commands_say_how_simulated_shards_were_made(tmp_path: Path) -> None:
    results = make_results(tmp_path)
    assert "where they are gone, make them again with the same options" in list_commands(results)
    for store in results.metadata["stores"].values():
        for source in store["sources"]:
            source["remarks"] = [SIMULATED_REMARK]
    results.metadata["config"]["data"]["train"] = ["/scratch/my spectra/train/shard_index.txt"]
    expected = "headroom sample '/scratch/my spectra' --train 1000000 --shards 5 --test 1000 --pixels 4096"
    assert expected in list_commands(results)
    results.metadata["simulated"] = False
    assert "headroom sample" not in list_commands(results)


def test_report__unknown_figures_come_last(tmp_path: Path) -> None:
    results = make_results(tmp_path)
    figure = tmp_path / "gate share.png"
    figure.write_bytes(PIXEL)
    picture = Picture(figure.name, "gate share", "Who asks whom.", draw_delta_heatmap)
    markdown, page = render_report(results, [(picture, figure)])
    assert "![gate share](gate%20share.png)" in markdown.read_text(encoding="utf-8")
    assert 'alt="gate share"' in page.read_text(encoding="utf-8")


def test_render_report__raise_on_missing_figure(tmp_path: Path) -> None:
    results = make_results(tmp_path)
    with pytest.raises(ResourceError, match=r"gone\.png: cannot be read .*; render the figures again"):
        render_page(results, {"moe_oracle_dashboard.png": tmp_path / "gone.png"})
    assert not (tmp_path / "report.md").exists()


def test_render_report__raise_on_unwritable_report(tmp_path: Path) -> None:
    results = make_results(tmp_path)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ResourceError, match=r"cannot write .*report\.html: "):
        render_page(results)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_factory__summary_agrees_with_its_own_files(tmp_path: Path) -> None:
    results = make_results(tmp_path, FakeRun(levels=(0.2, 1.0)))
    assert json.loads((tmp_path / "summary.json").read_text()) == results.summary.to_dict()
    for level in results.summary["levels"]:
        frame = results.overall.query("noise_level == @level['noise_level'] and scope == 'covered'")
        assert level["scopes"]["covered"]["delta_r2"]["mean"] == pytest.approx(frame["delta_r2"].mean())
        assert (frame["delta_r2"] - (frame["r2_oracle"] - frame["r2_global"])).abs().max() < 1e-9
    rows = results.predictions.query("noise_level == 1 and seed == 42 and bin >= 0")
    spread = ((rows["y_true"] - rows["y_true"].mean()) ** 2).sum()
    found = results.overall.query("noise_level == 1 and seed == 42 and scope == 'covered'").iloc[0]
    for model in ("oracle", "global"):
        r2 = 1 - ((rows["y_true"] - rows[f"y_{model}"]) ** 2).sum() / spread
        assert found[f"r2_{model}"] == pytest.approx(r2, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("R²_oracle +0.05", "R²_oracle +0.05"),
        ("_loud_", r"\_loud\_"),
        ("two\nlines", "two lines"),
        ("# heading", r"\# heading"),
        ("3. item", r"3\. item"),
        ("<b> & c", "&lt;b> &amp; c"),
        ("[a](b)", r"[a\](b)"),
    ],
)
def test_escape_markdown__shows_text_as_it_is(text: str, escaped: str) -> None:
    assert escape_markdown(text) == escaped


def test_the_first_screen_says_what_the_numbers_are_about(tmp_path: Path) -> None:
    results, _, _ = _report(tmp_path)
    page = (results.folder / "report.html").read_text(encoding="utf-8")
    header = page[page.index("<header>") : page.index("</header>")]
    assert f"Run <strong>{results.folder.name}</strong>" in header
    covered = results.summary.headline.covered
    assert f"{covered.n_test:,} test spectra are covered" in header
    names = re.findall(r"<div><dt>(.*?)</dt>", header)
    assert names[:3] == ["Global model, R²_global", "Oracle experts, R²_oracle", "Gain, ΔR²"]
    assert names[3:] == ["covered", "oracle", "R²"]
    assert header.count(results.summary.headline.decision.sentence) == 1
    assert re.search(r"<details><summary>Configuration as YAML</summary>\s*<pre", page), "it is folded"


def test_warnings_of_one_kind_are_one() -> None:
    same = [f"bin {k} ('Cool, {k}') has {10 * k} training spectra; widen it" for k in range(4)]
    told = collapse_warnings([*same, "no noise was drawn"])
    assert len(told) == 2
    assert told[0].startswith(f"{same[0]} (and 3 more of this kind: ")
    assert all(f"bin {k}" in told[0] for k in range(4)), "which ones is not lost"
    assert told[1] == "no noise was drawn"
    named = [
        f"α = {k} for bin {k} (Hot, {name}); widen the grid of penalties" for k, name in enumerate(("Poor", "Rich"))
    ]
    assert collapse_warnings(named) == [f"{named[0]} (and 1 more of this kind: α = 1 for bin 1 (Hot, Rich))"]
    assert collapse_warnings(["a 1", "b 1"]) == ["a 1", "b 1"]
