"""The report of a run: Markdown for a repository, one self-contained HTML file for everyone else.

Both are filled from the same tables of text, so they cannot say different things. Everything that comes
from a user's file (paths, names of bins, warnings, the configuration) is escaped where it is written.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from pipeline.base import list_recordings, replacing
from pipeline.config import yaml_text
from pipeline.errors import ResourceError
from pipeline.noise import NO_SEED, describe_test_noise, is_marginal
from pipeline.report.interactive import Card, answer_cards, describe_interactive, hash_script, read_asset
from pipeline.report.section import (
    Block,
    Code,
    Heading,
    Links,
    Picture,
    Section,
    Show,
    Subject,
    Terms,
    list_bins,
    list_files,
    list_hypotheses,
    list_key_numbers,
    list_run,
    list_steps,
    list_stores,
)
from pipeline.report.words import (
    collapse_warnings,
    conclusion,
    count_spectra,
    describe_words,
    explain_economy,
    explain_hypotheses,
    explain_levels,
    explain_numbers,
    list_commands,
    symbol,
)
from pipeline.scoring import RunResults, find_verdict

__all__ = ["REPORT_HTML", "REPORT_MARKDOWN", "escape_markdown", "open_templates", "render_report"]

REPORT_MARKDOWN, REPORT_HTML = "report.md", "report.html"
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class _Shown:
    """A figure as the two reports show it: embedded in the HTML, linked from the Markdown."""

    name: str
    title: str
    caption: str
    embedded: str
    link: str
    anchor: str


class _Verbatim(str):
    """Text that a Markdown template may write as it is."""


def render_report(
    results: RunResults,
    pictures: Sequence[tuple[Picture, Path]],
    sections: Sequence[Section] = (),
    subjects: Sequence[Subject] = (),
    cards: Sequence[Card] = (),
) -> tuple[Path, Path]:
    """Write ``report.md`` and the self-contained ``report.html`` into the run folder.

    Parameters
    ----------
    results
        A scored run.
    pictures
        What was drawn, with the PNG files, as :func:`pipeline.report.figures.render_figures` returns them. A picture
        that no section shows stands at the end.
    sections
        What the questions of the run have to say, between the bins and the predictions.
    subjects
        Labels beside the target that the interactive view can show.
    cards
        Numbers that the questions put beside those of the models, on the first screen.

    Returns
    -------
    tuple[Path, Path]
        The Markdown and the HTML file.

    Raises
    ------
    ResourceError
        If a figure cannot be read or a report cannot be written; the message names the path.
    """
    content = _collect(results, pictures, sections, subjects, cards)
    written = []
    for name, environment in ((REPORT_MARKDOWN, _markdown()), (REPORT_HTML, _html())):
        text = environment.get_template(f"{name}.j2").render(**content)
        path = results.folder / name
        with replacing(path) as temporary:
            temporary.write_bytes(text.encode("utf-8"))
        written.append(path)
    return written[0], written[1]


def _collect(
    results: RunResults,
    pictures: Sequence[tuple[Picture, Path]],
    sections: Sequence[Section],
    subjects: Sequence[Subject],
    cards: Sequence[Card],
) -> dict[str, Any]:
    level = results.summary.headline
    script, shown = read_asset("report.js"), _read_pictures(results, pictures)
    all_sections = [*_open_sections(results), *sections, *_close_sections(results, sections, shown)]
    return {
        "style": read_asset("report.css"),
        "script": script,
        "script_hash": hash_script(script),
        "interactive": describe_interactive(results, subjects),
        "cards": answer_cards(results, cards),
        "run": results.folder.resolve().name,
        "counts": count_spectra(results),
        "meanings": explain_numbers(results),
        "title": f"Headroom of a mixture of experts for {symbol(results.summary.target)}",
        "verdict": find_verdict(level.decision.verdict).style,
        "conclusion": conclusion(results),
        "about_levels": explain_levels(results),
        "simulated": bool(results.metadata.get("simulated")),
        "warnings": collapse_warnings([str(warning) for warning in results.metadata.get("warnings") or ()]),
        "sections": all_sections,
        "pictures": shown,
        "dashboard": _DASHBOARD,
    }


_DASHBOARD = "moe_oracle_dashboard.png"


def _open_sections(results: RunResults) -> list[Section]:
    """Return what stands before the questions: hypotheses, key numbers, bins."""
    levels = results.summary.levels
    about = explain_hypotheses(results.metadata)
    seeds = [str(seed) for seed in results.overall["seed"].unique() if seed != NO_SEED]
    named = ", ".join(seeds) or "none, since no noise was drawn"
    key_numbers: list[Block] = [
        f"Seeds: {named}. The columns low and high are the ends of the {results.summary.confidence:.0%} interval. "
        "ΔR² = R²_oracle − R²_global on the same spectra."
    ]
    for level in levels:
        if len(levels) > 1:
            # The conclusion at the top is about the headline level, and one page states it once.
            is_first = level is results.summary.headline
            key_numbers.append(Heading(f"Noise level {level.noise_level:g}"))
            key_numbers.append("The conclusion above is about this level." if is_first else level.decision.sentence)
        key_numbers.append(list_key_numbers(level))
    bins = [Show("moe_delta_r2_heatmap.png"), Show("moe_perbin_r2_grouped.png")]
    return [
        Section("hypotheses", "Hypotheses", "Hypotheses", (*([about] if about else []), *map(list_hypotheses, levels))),
        Section("key-numbers", "Key numbers", "Key numbers", tuple(key_numbers)),
        Section("bins", "Bins", "Bins", (*(list_bins(results, level) for level in levels), *bins)),
    ]


def _close_sections(results: RunResults, questions: Sequence[Section], shown: Mapping[str, _Shown]) -> list[Section]:
    """Return what stands after the questions: predictions, words, warnings, and where all of it comes from."""
    metadata = results.metadata
    config = metadata.get("config") or {}
    placed = {block.file for section in questions for block in section.blocks if isinstance(block, Show)}
    placed |= {_DASHBOARD, "moe_delta_r2_heatmap.png", "moe_perbin_r2_grouped.png"}
    noise = [
        (f"Noise level {level.noise_level:g}", describe_test_noise(level.test_noise))
        for level in results.summary.levels
    ]
    about_noise: tuple[Block, ...] = (Terms(tuple(noise)),)
    if is_marginal((config.get("noise") or {}).get("mode") or ""):
        trained = (
            "Models were trained on marginal noise: the expectation over all draws of noise on the training spectra, "
            "in closed form. So the models are not limited by a number of draws."
        )
        about_noise = (trained, *about_noise)
    warnings = tuple(
        ("", warning) for warning in collapse_warnings([str(one) for one in metadata.get("warnings") or ()])
    )
    written = yaml_text(config).rstrip()
    again = (
        "Run these commands in a checkout of this repository. They use the run's own configuration, whose paths are "
        "absolute, and they need spectra with the same fingerprints."
    )
    rest = tuple(Show(name) for name in shown if name not in placed)
    return [
        Section("predictions", "Predictions and sample", "Predictions and sample", rest),
        Section("words", "What the words mean", "What the words mean", (Terms(tuple(describe_words(results))),)),
        Section("test-noise", "Noise of the test spectra", "Noise of the test spectra", about_noise),
        Section("warnings", "Warnings", "Warnings", (Terms(warnings) if warnings else "None.",)),
        Section("configuration", "Configuration", "Configuration", (Code(written, "yaml", "Configuration as YAML"),)),
        Section("provenance", "Provenance", "Provenance", _trace(results)),
        Section(
            "reproduce", "How to reproduce", "How to reproduce", (again, Code(list_commands(results), "sh", "Commands"))
        ),
    ]


def _trace(results: RunResults) -> tuple[Block, ...]:
    """Return who computed what, from which spectra, and in what time."""
    economy = explain_economy(results.metadata)
    blocks: list[Block] = [economy] if economy else []
    blocks += [list_run(results), list_stores(results), list_steps(results), list_files(results)]
    if recordings := [path.name for path in list_recordings(results.folder)]:
        blocks.append(
            "Dask's performance reports (task stream, profiles, memory), one for each run in this folder, oldest first:"
        )
        blocks.append(Links(tuple(recordings)))
    return tuple(blocks)


def _read_pictures(results: RunResults, pictures: Sequence[tuple[Picture, Path]]) -> dict[str, _Shown]:
    shown: dict[str, _Shown] = {}
    for picture, path in pictures:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ResourceError(
                f"figure {path}: cannot be read ({error.strerror or error}); render the figures again"
            ) from None
        relative = Path(os.path.relpath(path, results.folder)).as_posix()
        embedded = f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
        anchor = f"figure-{len(shown) + 1}"
        shown[picture.file] = _Shown(
            picture.file, picture.title, picture.describe(results), embedded, quote(relative), anchor
        )
    return shown


def open_templates(**options: Any) -> jinja2.Environment:
    """Return the templates of the reports, with jinja2's own options; HTML is escaped unless they say otherwise."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **{"autoescape": True, **options},
    )
    environment.filters["minus"] = _set_minus
    return environment


def _html() -> jinja2.Environment:
    environment = open_templates()
    # `tojson` escapes what could end a script; the order of entries is the order in which the page shows them.
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    environment.filters["pieces"] = _cut_at_back_quotes
    return environment


def _markdown() -> jinja2.Environment:
    # Jinja escapes HTML only; `finalize` sees every value a template writes, so nothing is forgotten.
    environment = open_templates(
        autoescape=False,
        finalize=lambda value: value if isinstance(value, _Verbatim) else escape_markdown(value),
    )
    environment.filters["fenced"] = _fence
    environment.filters["verbatim"] = _Verbatim
    return environment


def _set_minus(cell: str) -> str:
    """Return a number's text with a minus sign, which is as wide as a plus; hyphens within words and dates stay."""
    return re.sub(r"(?<!\w)-(?=\.?\d)", "−", cell)


def _cut_at_back_quotes(text: str) -> list[str]:
    """Return the pieces of a text: every second one stands between two back quotes, and is code."""
    pieces = text.split("`")
    return pieces if len(pieces) % 2 else [text]


def escape_markdown(value: object) -> str:
    r"""Return text that Markdown shows as it is, in a paragraph or in a cell of a table.

    Backslashes, pipes, asterisks, back quotes, tags and links are defused and line breaks become spaces;
    underscores only where they could start or end emphasis, so that ``R²_oracle`` stays readable in the source.

    Examples
    --------
    >>> escape_markdown("a|b <script>")
    'a\\|b &lt;script&gt;'
    """
    text = " ".join(str(value).split())
    text = re.sub(r"([\\|*`~]|\](?=[(\[:]))", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
    # At the start of a line these would open a heading, a quotation or a list.
    text = re.sub(r"^([#>]|[-+](?= ))", r"\\\1", text)
    text = re.sub(r"^(\d+)([.)] )", r"\1\\\2", text)
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _fence(text: str, language: str = "") -> _Verbatim:
    """Return a fenced block whose fence is longer than any run of back quotes within."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return _Verbatim(f"{fence}{language}\n{text}\n{fence}")
