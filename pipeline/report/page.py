"""The report of a run: Markdown for a repository, one self-contained HTML file for everyone else.

Both are filled from the same tables of text, so they cannot say different things. Everything that comes
from a user's file (paths, names of bins, warnings, the configuration) is escaped where it is written.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import yaml

from pipeline.base import list_recordings, replacing
from pipeline.errors import ResourceError
from pipeline.noise import describe_test_noise, is_marginal
from pipeline.questions.bin_design import describe_design
from pipeline.questions.gate import describe_gate
from pipeline.questions.penalty import describe_search
from pipeline.report.interactive import answer_cards, describe_interactive, hash_script, read_asset
from pipeline.report.tables import (
    list_ablation,
    list_bins,
    list_files,
    list_hypotheses,
    list_key_numbers,
    list_labels,
    list_learning,
    list_levels,
    list_marginal,
    list_run,
    list_steps,
    list_stores,
)
from pipeline.report.views import conclusion, headline, symbol
from pipeline.report.words import (
    ABOUT_LABELS,
    REPORT_FIGURES,
    caption_figure,
    describe_words,
    explain_economy,
    explain_hypotheses,
    explain_levels,
    list_commands,
)
from pipeline.scoring import NO_SEED, RunResults

__all__ = ["REPORT_HTML", "REPORT_MARKDOWN", "escape_markdown", "render_report"]

REPORT_MARKDOWN, REPORT_HTML = "report.md", "report.html"
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class _Picture:
    """A figure as the two reports show it: embedded in the HTML, linked from the Markdown."""

    name: str
    title: str
    caption: str
    embedded: str
    link: str
    anchor: str


class _Verbatim(str):
    """Text that a Markdown template may write as it is."""


def render_report(results: RunResults, figures: Mapping[str, Path]) -> tuple[Path, Path]:
    """Write ``report.md`` and the self-contained ``report.html`` into the run folder.

    Parameters
    ----------
    results
        A scored run.
    figures
        PNG files by file name, as :func:`pipeline.report.figures.render_figures` returns them. A figure that is not
        given is left out; one that this module has no caption for is shown at the end.

    Returns
    -------
    tuple[Path, Path]
        The Markdown and the HTML file.

    Raises
    ------
    ResourceError
        If a figure cannot be read or a report cannot be written; the message names the path.
    """
    content = _collect(results, figures)
    written = []
    for name, environment in ((REPORT_MARKDOWN, _markdown()), (REPORT_HTML, _html())):
        text = environment.get_template(f"{name}.j2").render(**content)
        path = results.folder / name
        with replacing(path) as temporary:
            temporary.write_bytes(text.encode("utf-8"))
        written.append(path)
    return written[0], written[1]


def _collect(results: RunResults, figures: Mapping[str, Path]) -> dict[str, Any]:
    level, levels, metadata = headline(results), results.summary["levels"], results.metadata
    config = metadata.get("config") or {}
    script = read_asset("report.js")
    return {
        "style": read_asset("report.css"),
        "script": script,
        "script_hash": hash_script(script),
        "interactive": describe_interactive(results),
        "cards": answer_cards(results),
        "title": f"Headroom of a mixture of experts for {symbol(results.summary['target'])}",
        "verdict": level["decision"]["verdict"],
        "conclusion": conclusion(results),
        "about_levels": explain_levels(results),
        "about_hypotheses": explain_hypotheses(metadata),
        "simulated": bool(metadata.get("simulated")),
        "confidence": f"{results.summary['confidence']:.0%}",
        "seeds": [str(seed) for seed in results.overall["seed"].unique() if seed != NO_SEED]
        or ["none, since no noise was drawn from one"],
        "is_marginal": is_marginal((config.get("noise") or {}).get("mode", "")),
        "several_levels": len(levels) > 1,
        "levels": [
            {
                "name": f"{entry['noise_level']:g}",
                "test_noise": describe_test_noise(entry["test_noise"]),
                "hypotheses": list_hypotheses(entry),
                "key_numbers": list_key_numbers(results, entry),
                "labels": list_labels(results, entry),
                "bins": list_bins(results, entry),
                "ablation": list_ablation(results, entry),
                # The conclusion at the top is about this level, and one page states it once.
                "sentence": "The conclusion above is about this level."
                if entry is level
                else entry["decision"]["sentence"],
            }
            for entry in levels
        ],
        "noise_levels": list_levels(results),
        "design": describe_design(results),
        "gate": describe_gate(results),
        "penalty": describe_search(results),
        "learning": list_learning(results),
        "marginal": list_marginal(results),
        "marginal_sentence": (results.summary.get("marginal") or {}).get("sentence") or "",
        "learning_sentence": (results.summary.get("learning") or {}).get("sentence") or "",
        "pictures": _read_pictures(results, figures),
        "warnings": [str(warning) for warning in metadata.get("warnings") or ()],
        "config_yaml": yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100).rstrip(),
        "economy": explain_economy(metadata),
        "provenance": [list_run(results), list_stores(results), list_steps(results), list_files(results)],
        "recordings": [path.name for path in list_recordings(results.folder)],
        "commands": list_commands(results),
        "glossary": describe_words(results),
        "about_labels": ABOUT_LABELS,
    }


def _read_pictures(results: RunResults, figures: Mapping[str, Path]) -> dict[str, _Picture]:
    pictures: dict[str, _Picture] = {}
    known = [name for name in REPORT_FIGURES if name in figures]
    for name in [*known, *(name for name in figures if name not in REPORT_FIGURES)]:
        path = figures[name]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ResourceError(
                f"figure {path}: cannot be read ({error.strerror or error}); render the figures again"
            ) from None
        title, caption = caption_figure(name, results)
        relative = Path(os.path.relpath(path, results.folder)).as_posix()
        embedded = f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
        anchor = f"figure-{len(pictures) + 1}"
        pictures[name] = _Picture(name, title, caption, embedded, quote(relative), anchor)
    return pictures


def _html() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # `tojson` escapes what could end a script; the order of entries is the order in which the page shows them.
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    return environment


def _markdown() -> jinja2.Environment:
    # Jinja escapes HTML only; `finalize` sees every value a template writes, so nothing is forgotten.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=False,
        finalize=lambda value: value if isinstance(value, _Verbatim) else escape_markdown(value),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["fenced"] = _fence
    environment.filters["verbatim"] = _Verbatim
    return environment


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
