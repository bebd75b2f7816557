"""The report page as its readers meet it: in a browser, on a phone, in the dark, by keyboard and on paper."""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import keep_picture
from results_factory import SNR_EDGES, FakeRun, change_summary, list_pictures, make_results, render_page

from pipeline.questions.labels import Labels
from pipeline.report.interactive import describe_interactive
from pipeline.scoring import RunResults, flatten

pytestmark = pytest.mark.slow  # they start a browser, which few machines of users have

MERITS = {"ΔR²": "delta_r2", "R²_oracle": "r2_oracle", "R²_global": "r2_global"}
PHONE, DESK = 400, 1600
HOSTILE = '<img src=x onerror="document.title=1">'

#: Text that lies outside the page, or outside a box that cuts it off; what scrolls by itself may be wider.
CLIPPED = """() => {
  const wrong = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || parent.closest("script, style, noscript, option, .skip")) continue;
    if (!parent.checkVisibility() || parent.closest(".scroll, pre")) continue;
    const range = document.createRange();
    range.selectNodeContents(walker.currentNode);
    for (const box of range.getClientRects()) {
      let [left, right] = [0, document.documentElement.clientWidth];
      for (let around = parent; around; around = around.parentElement) {
        if (getComputedStyle(around).overflowX === "visible") continue;
        const edge = around.getBoundingClientRect();
        [left, right] = [Math.max(left, edge.left), Math.min(right, edge.right)];
      }
      if (box.left < left - 1 || box.right > right + 1) wrong.push(walker.currentNode.textContent.trim());
    }
  }
  return wrong;
}"""

#: Contrast by WCAG 2 of all text, and of the marks of the chart, with the colours that are behind them.
CONTRASTS = """() => {
  const parse = (color) => (color.match(/[\\d.]+/g) ?? []).map(Number);
  const luminance = (color) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = parse(color).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let around = node; around; around = around.parentElement) {
      const color = getComputedStyle(around).backgroundColor;
      if ((parse(color)[3] ?? 1) > 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const found = [];
  for (const node of document.body.querySelectorAll("*")) {
    const style = getComputedStyle(node);
    const isMark = node.matches(".mark, .range, .limit");
    const hasText = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!node.checkVisibility() || node.closest("script, style, noscript, .skip") || !(isMark || hasText)) continue;
    const color = isMark ? style.stroke : node.matches("text") ? style.fill : style.color;
    const contrast = ratio(luminance(color), luminance(behind(node)));
    found.push([isMark ? "mark" : "text", contrast, node.outerHTML.slice(0, 90)]);
  }
  return found;
}"""


#: What the row of every mark says, and where the mark is.
PLACES = """(marks, attribute) =>
  marks.map(mark => [mark.closest(".explorer-row").getAttribute("aria-label"), mark.getAttribute(attribute)])"""


def _picture(width: int, height: int) -> bytes:
    """A white PNG as large as a figure."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = (b"\0" + b"\xff" * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _report(folder: Path, run: FakeRun) -> RunResults:
    results = make_results(folder, run)
    figures = {name: folder / name for name in list_pictures(results)}
    for path in figures.values():
        path.write_bytes(_picture(1500, 400))
    render_page(results, figures)
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    run = FakeRun(
        levels=(0.2, 1.0),
        nan_bins=(4,),
        warnings=("bin 4 has one test spectrum",),
        alphas=(1e4, 1e5, 2.5e6),
        marginal=True,
        design=True,
        gate=True,
        labels=True,
    )
    return _report(tmp_path_factory.mktemp("page"), run)


Opener = Callable[..., Any]


@pytest.fixture
def opened(browser: Any) -> Iterator[Opener]:
    """Open a report without a network; whatever it asks for or complains about fails the test."""
    contexts, asked, problems = [], [], []

    def open_page(results: RunResults, width: int = DESK, scheme: str = "light", **options: Any) -> Any:
        viewport = {"width": width, "height": 900}
        context = browser.new_context(offline=True, viewport=viewport, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.goto((results.folder / "report.html").as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []
    assert [url for url in asked if not url.startswith("data:") and not url.endswith("/report.html")] == []


def _control(page: Any, name: str) -> Any:
    return page.get_by_role("combobox", name=name, exact=True)


def _details(page: Any) -> dict[str, str]:
    lines = page.locator(".explorer-details dl > div")
    return dict(lines.evaluate_all("lines => lines.map(line => [...line.children].map(part => part.innerText))"))


def _numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"[+-]?\d+\.\d+", text)]


def _agrees(shown: dict[str, str], row: Any, ends: tuple[str, str, str] = ("", "_low", "_high")) -> None:
    for title, merit in MERITS.items():
        if math.isnan(row[merit]):
            assert title not in shown
        else:
            assert _numbers(shown[title]) == pytest.approx([row[f"{merit}{end}"] for end in ends], abs=0.5001e-4)
    assert [shown["n train"], shown["n test"]] == [f"{int(row['n_train']):,}", f"{int(row['n_test']):,}"]


def _shown_parts(page: Any) -> list[str]:
    return list(page.locator(".explorer-row").evaluate_all("rows => rows.map(row => row.dataset.part)"))


def test_hover_and_focus_show_the_numbers_of_every_bin(results: RunResults, opened: Opener) -> None:
    page = opened(results)
    level = results.summary.headline
    assert _shown_parts(page) == ["covered", *map(str, range(9))]
    _agrees(_details(page), flatten(level["scopes"]["covered"]))
    for entry in level["bins"]:
        page.locator(f'[data-part="{entry["bin"]}"]').hover()
        shown = _details(page)
        _agrees(shown, flatten(entry))
        frame = results.per_bin.query("noise_level == 1 and bin == @entry['bin']")
        assert shown["MAE oracle"].endswith(" dex")
        assert _numbers(shown["MAE oracle"]) == pytest.approx([frame["mae_oracle"].mean()], abs=0.5001e-4)
        assert shown["α expert"] == "1e5"
        assert ("Too few test spectra" in page.locator(".explorer-details").inner_text()) == (entry["bin"] == 4)
    assert "T_eff 5250 to 6000 K; [M/H] 0 to 0.5 dex" in page.locator(".explorer-details").inner_text()
    # Away from the list, what was chosen is shown again.
    page.locator("h1").hover()
    assert page.locator(".explorer-details h3").inner_text() == "covered spectra"
    page.locator('[data-part="7"]').click()
    page.locator("h1").hover()
    assert page.locator(".explorer-details h3").inner_text() == "7 · Hot, Solar"


def test_controls_change_what_is_shown(results: RunResults, opened: Opener) -> None:
    page = opened(results)
    _control(page, "Noise level").select_option("0.2")
    _agrees(_details(page), flatten(results.summary["levels"][0]["scopes"]["covered"]))
    _control(page, "Seed").select_option("123")
    rows = results.overall.query("noise_level == 0.2 and seed == 123").set_index("scope")
    _agrees(_details(page), rows.loc["covered"])
    bins = results.per_bin.query("noise_level == 0.2 and seed == 123").set_index("bin")
    for number, row in bins.iterrows():
        page.locator(f'[data-part="{number}"]').hover()
        _agrees(_details(page), row)
    state = page.locator(".explorer-state")
    assert state.inner_text() == "Shown: log g (dex); noise level 0.2; seed: 123; test spectra: covered (in a bin)."
    _control(page, "Test spectra").select_option("all")
    assert _shown_parts(page) == ["all", *map(str, range(9)), "outside"]
    page.locator('[data-part="all"]').hover()
    _agrees(_details(page), rows.loc["all"])
    page.locator('[data-part="outside"]').hover()
    outside = int((results.predictions.query("noise_level == 0.2 and seed == 123")["bin"] < 0).sum())
    assert _details(page)["n test"] == str(outside)
    assert "the global model answers in both cases" in page.locator(".explorer-details").inner_text()
    assert "ΔR²" not in _details(page)


def test_marks_stand_where_their_numbers_are(results: RunResults, opened: Opener) -> None:
    page = opened(results)
    for level, seed in (("1", "mean"), ("0.2", "456")):
        _control(page, "Noise level").select_option(level)
        _control(page, "Seed").select_option(seed)
        for kind, axis in (("r2_oracle", 0), ("r2_global", 0), ("delta_r2", 1)):
            ticks = page.locator(".explorer-head svg").nth(axis).locator("text").all()
            known = [
                (float(tick.text_content().replace("−", "-")), float(str(tick.get_attribute("x"))[:-1]))
                for tick in ticks
            ]
            slope, start = np.polyfit(*np.array(known).T, 1)
            rows = page.locator(".explorer-row:not([data-part='4'])")
            marks = rows.locator(f".mark.{kind}").evaluate_all(PLACES, "x" if kind == "r2_global" else "cx")
            title = next(title for title, merit in MERITS.items() if merit == kind)
            assert len(marks) == 9
            for text, place in marks:
                value = _numbers(text.split(f"{title} ")[-1].split(",")[0])[0]
                assert float(place[:-1]) == pytest.approx(start + slope * value, abs=0.02), text
            assert page.locator("[data-part='4'] .mark").count() == 0


def test_other_labels_can_be_chosen(results: RunResults, opened: Opener) -> None:
    page = opened(results)
    of_target = _details(page)
    of_level = results.labels.query("noise_level == 1 and part == 'covered'")
    _control(page, "Label").select_option("a_M")
    assert page.locator(".explorer-state").inner_text().startswith("Shown: a_M (dex); noise level 1;")
    shown = of_level.query("target == 'a_M'")[list(MERITS.values())].mean()
    for title, merit in MERITS.items():
        assert _numbers(_details(page)[title])[0] == pytest.approx(shown[merit], abs=1e-4)
    assert page.locator(".mark.delta_r2").count() > 0
    _control(page, "Label").select_option("T_eff")
    shown = of_level.query("target == 'T_eff'")["r2_global"].mean()
    assert _numbers(_details(page)["R²_global"])[0] == pytest.approx(shown, abs=1e-4)
    assert "gives its value away" in page.locator(".explorer-details").inner_text()
    assert "ΔR²" not in _details(page)
    assert page.locator(".explorer-row .mark.r2_oracle, .explorer-row .mark.delta_r2").count() == 0
    _control(page, "Label").select_option("log_g")
    assert _details(page) == of_target


def test_marks_beyond_the_axis_are_arrows(opened: Opener, tmp_path: Path) -> None:
    found = make_results(tmp_path, FakeRun(seeds=(42,)))

    def lower(summary: dict[str, Any]) -> None:
        summary["levels"][0]["bins"][2]["r2_global"] |= {"mean": -7.5, "low": -30.0, "high": 0.1}

    found = change_summary(found, lower)
    render_page(found)
    page = opened(found)
    row = page.locator('[data-part="2"]')
    assert [text.text_content() for text in row.locator("svg text").all()] == ["◂"]
    assert page.locator(".explorer-row svg text").count() == 1
    row.hover()
    assert _numbers(_details(page)["R²_global"]) == [-7.5, -30.0, 0.1]
    texts = page.locator(".explorer-head svg").first.locator("text").all_text_contents()
    ticks = [text.replace("−", "-") for text in texts]
    assert min(map(float, ticks)) == -0.5


def test_a_tap_chooses_a_bin_on_a_phone(results: RunResults, opened: Opener) -> None:
    page = opened(results, PHONE, has_touch=True, is_mobile=True)
    page.locator('[data-part="5"]').tap()
    assert page.locator("[aria-selected='true']").get_attribute("data-part") == "5"
    assert page.locator(".explorer-details h3").inner_text() == "5 · Mid, Rich"


def test_bins_can_be_ordered(results: RunResults, opened: Opener) -> None:
    page = opened(results)
    _control(page, "Seed").select_option("42")
    bins = results.per_bin.query("noise_level == 1 and seed == 42")
    for choice, column in (("delta_r2", "delta_r2"), ("r2_oracle", "r2_oracle"), ("n", "n_test")):
        _control(page, "Order of bins").select_option(choice)
        expected = bins.sort_values(column, ascending=False, kind="stable", na_position="last")["bin"]
        assert _shown_parts(page) == ["covered", *map(str, expected)]


def test_keyboard_alone_is_enough(results: RunResults, opened: Opener) -> None:
    page = opened(results)
    _control(page, "Order of bins").focus()
    focused = "() => document.activeElement.dataset.part"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "covered"
    for key, part in (("ArrowDown", "0"), ("ArrowDown", "1"), ("ArrowUp", "0"), ("End", "8"), ("ArrowDown", "8")):
        page.keyboard.press(key)
        assert page.evaluate(focused) == part
        assert page.locator("[aria-selected='true']").get_attribute("data-part") == part
        assert page.locator(".explorer-details h3").inner_text().startswith(f"{part} · ")
    outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    # One stop for the whole list, which comes back to where it was left.
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Tab")
    assert page.evaluate(focused) is None
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(focused) == "7"
    page.keyboard.press("Home")
    assert page.evaluate(focused) == "covered"


def test_the_focused_bin_is_not_under_its_numbers_on_a_phone(results: RunResults, opened: Opener) -> None:
    page = opened(results, PHONE)
    page.locator('[data-part="covered"]').focus()
    for _ in range(9):
        page.keyboard.press("ArrowDown")
        row, details = (
            page.evaluate(f"() => {chosen}.getBoundingClientRect().toJSON()")
            for chosen in ("document.activeElement", "document.querySelector('.explorer-details')")
        )
        assert row["bottom"] <= details["top"] + 1
        assert row["top"] >= 0
        assert details["bottom"] <= 901


def _column(table: Any, heading: str) -> list[str]:
    rows = table.locator("tr").evaluate_all("rows => rows.map(row => [...row.cells].map(cell => cell.innerText))")
    return [row[rows[0].index(heading)] for row in rows[1:]]


def test_tables_sort_by_click_and_by_keyboard(results: RunResults, opened: Opener) -> None:
    page = opened(results)
    table = page.get_by_role("table", name="Bins, noise level 1", exact=True)
    for heading, column in {"ΔR²": "delta_r2", "n train": "n_train"}.items():
        original = _column(table, "Bin")
        means = results.per_bin.query("noise_level == 1").groupby("bin")[column].mean()
        button = table.get_by_role("button", name=heading, exact=True)
        cell = button.locator("xpath=..")
        assert cell.get_attribute("aria-sort") == "none"
        button.click()
        assert cell.get_attribute("aria-sort") == "ascending"
        assert _column(table, "Bin") == [str(b) for b in means.sort_values(kind="stable", na_position="last").index]
        button.focus()
        page.keyboard.press("Enter")
        assert cell.get_attribute("aria-sort") == "descending"
        falling = means.sort_values(ascending=False, kind="stable", na_position="last")
        assert _column(table, heading)[0].lstrip("+") in (f"{falling.iloc[0]:.4f}", f"{falling.iloc[0]:,.0f}")
        assert _column(table, "Bin") == [str(b) for b in falling.index]
        page.keyboard.press("Space")
        assert cell.get_attribute("aria-sort") == "none"
        assert _column(table, "Bin") == original
    words = table.get_by_role("button", name="[M/H]", exact=True)
    words.click()
    assert _column(table, "[M/H]") == sorted(_column(table, "[M/H]"))
    table.get_by_role("button", name="Bin", exact=True).click()
    assert [table.locator("th[aria-sort=ascending]").count(), words.count()] == [1, 1]
    # Names and values are no table to sort.
    assert page.get_by_role("table", name="Run", exact=True).get_by_role("button").count() == 0


@pytest.mark.parametrize("width", [320, PHONE, 704, 1024, 1280, DESK])
def test_nothing_is_clipped_or_scrolls_sideways(results: RunResults, opened: Opener, width: int) -> None:
    page = opened(results, width)
    _control(page, "Test spectra").select_option("all")
    for part in ("all", "3", "outside"):
        page.locator(f'[data-part="{part}"]').focus()
        assert page.evaluate(CLIPPED) == []
        assert page.evaluate("() => document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    overlaps = page.evaluate("""() => {
      const boxes = [...document.querySelectorAll(".explorer-head text")].filter((text) => text.checkVisibility())
        .map((text) => text.getBoundingClientRect());
      return boxes.filter((box, k) => k && box.left < boxes[k - 1].right + 2).length;
    }""")
    assert overlaps == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_light_and_dark_are_readable(
    results: RunResults, opened: Opener, width: int, scheme: str, tmp_path: Path
) -> None:
    page = opened(results, width, scheme)
    keep_picture(page, f"report-top-{width}-{scheme}.png", tmp_path)
    page.locator('[data-part="3"]').hover()
    keep_picture(page, f"report-bins-{width}-{scheme}.png", tmp_path)
    paper = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", paper)[0]) < 60) == (scheme == "dark")
    found = page.evaluate(CONTRASTS)
    assert sum(kind == "mark" for kind, _, _ in found) > 30
    assert [entry for entry in found if entry[1] < (3 if entry[0] == "mark" else 4.5)] == []


def test_print_shows_the_numbers_and_no_controls(results: RunResults, opened: Opener, tmp_path: Path) -> None:
    page = opened(results, 718, "dark")  # A4 with usual margins, sent from a dark screen
    page.emulate_media(media="print")
    for hidden in (".explorer-controls", ".explorer-details", "nav"):
        assert not page.locator(hidden).is_visible()
    assert page.locator(".explorer-state").is_visible()
    assert page.locator(".explorer-row").count() == 10
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert [entry for entry in page.evaluate(CONTRASTS) if entry[0] == "text" and entry[1] < 4.5] == []
    keep_picture(page, "report-print.png", tmp_path)
    assert page.evaluate("() => document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert len(page.pdf(format="A4")) > 20_000


def test_without_scripts_the_rest_is_there(results: RunResults, opened: Opener) -> None:
    page = opened(results, java_script_enabled=False)
    assert page.get_by_text("they do not run here").is_visible()
    assert not page.locator("#explorer").is_visible()
    table = page.get_by_role("table", name="Bins, noise level 1", exact=True)
    assert table.locator("tbody tr").count() == 9
    assert page.locator("button").count() == 0


def test_no_other_script_runs(results: RunResults, browser: Any) -> None:
    # Bytes that somebody adds to the page later: the policy names one script by its checksum.
    source = (results.folder / "report.html").read_text(encoding="utf-8")
    changed = results.folder / "changed.html"
    changed.write_text(source.replace("</main>", "<script>document.title = 'run'</script></main>"), encoding="utf-8")
    page = browser.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(changed.as_uri())
    assert page.title() != "run"
    assert any("Content Security Policy" in text for text in refused)
    page.close()


def test_names_from_files_stay_text(opened: Opener, tmp_path: Path) -> None:
    run = FakeRun(bin_names={"T_eff": (HOSTILE, "</script><b>", "c" * 60)}, seeds=(42,))
    results = _report(tmp_path, run)
    page = opened(results, PHONE)
    page.locator('[data-part="0"]').focus()
    assert page.locator(".explorer-details h3").inner_text() == f"0 · {HOSTILE}, Poor"
    page.locator('[data-part="8"]').focus()
    assert page.locator("img[src=x], .explorer b").count() == 0
    assert page.title().startswith("Headroom")
    assert page.evaluate(CLIPPED) == []


def test_a_run_with_one_of_each_offers_no_choice(opened: Opener, tmp_path: Path) -> None:
    results = _report(tmp_path, FakeRun(edges=SNR_EDGES, seeds=(42,), levels=(0.5,)))
    page = opened(results)
    labels = [label.inner_text().split("\n")[0] for label in page.locator(".explorer-controls label").all()]
    assert labels == ["Test spectra", "Order of bins"]
    assert "noise level 0.5; seed: 42;" in page.locator(".explorer-state").inner_text()
    page.locator('[data-part="1"]').hover()
    row = results.per_bin.set_index("bin").loc[1]
    _agrees(_details(page), row)
    assert "ΔR² ± seeds" not in _details(page)


def test_answer_stands_above_everything_else(results: RunResults, opened: Opener) -> None:
    page = opened(results, PHONE)
    level = results.summary.headline
    cards = [card.inner_text().split("\n") for card in page.locator(".cards > div").all()]
    titles = ["R²_global", "R²_oracle", "ΔR²"]
    shown = {title: card for title in titles for card in cards if card[0].endswith(title)}
    for title, merit in zip(titles, ("r2_global", "r2_oracle", "delta_r2"), strict=True):
        expected = level["scopes"]["covered"][merit]
        assert _numbers(shown[title][1]) == pytest.approx([expected["mean"]], abs=0.5001e-4)
        # The first number is the confidence of the interval, in percent.
        assert _numbers(shown[title][2])[-2:] == pytest.approx([expected["low"], expected["high"]], abs=0.5001e-4)
    box = page.locator(".cards").bounding_box()
    assert box["y"] + box["height"] < 900


def test_interactive__has_every_combination_once(results: RunResults) -> None:
    content = describe_interactive(results, Labels.subjects(results))
    parts = ["covered", "all", *map(str, range(9)), "outside"]
    assert [part["id"] for part in content["parts"]] == parts
    seeds = ["mean", "42", "123", "456"]
    assert [value for value, _ in content["choices"]["seed"]] == seeds
    labels = ["log_g", "T_eff", "a_M"]
    assert [value for value, _ in content["choices"]["label"]] == labels
    assert content["leaks"].keys() == {"T_eff"}
    expected = {
        f"{label}|{level}|{seed}|{part}"
        for label in labels
        for level in ("0.2", "1")
        for seed in seeds
        for part in parts
    }
    assert content["rows"].keys() == expected
    assert {len(row["facts"]) for row in content["rows"].values()} == {len(content["facts"])}


def test_interactive__marginal_noise_has_no_seed(tmp_path: Path) -> None:
    content = describe_interactive(make_results(tmp_path, FakeRun(no_draws=True)))
    assert content["choices"]["seed"] == [["mean", "none (marginal noise)"]]
    assert {key.split("|")[2] for key in content["rows"]} == {"mean"}
    row = dict(zip(content["facts"], content["rows"]["log_g|1|mean|0"]["facts"], strict=True))
    assert row["MAE oracle"] == row["ΔR² ± seeds"] == "–"


def test_interactive__penalties_that_seeds_disagree_on_are_counted(tmp_path: Path) -> None:
    def disagree(summary: dict[str, Any]) -> None:
        [draw] = [one for one in summary["levels"][0]["draws"] if one["seed"] == 42]
        draw["bins"][2]["alpha"] = 12345.0
        draw["alpha_global"] = 10.0

    content = describe_interactive(change_summary(make_results(tmp_path, FakeRun()), disagree))
    [expert, whole] = [content["facts"].index(name) for name in ("α expert", "α global")]
    assert content["rows"]["log_g|1|mean|2"]["facts"][expert] == "12345 (1×), 1e5 (2×)"
    assert content["rows"]["log_g|1|mean|covered"]["facts"][whole] == "10 (1×), 1e5 (2×)"
    assert content["rows"]["log_g|1|42|2"]["facts"][expert] == "12345"
    assert content["rows"]["log_g|1|42|2"]["facts"][whole] == "10"
