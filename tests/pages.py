"""Both pages of a run with what its questions have to say, without the time that figures take to draw."""

from __future__ import annotations

from pathlib import Path

from pipeline.questions import QUESTIONS
from pipeline.report import render_report
from pipeline.scoring import RunResults


def render_page(results: RunResults) -> tuple[Path, Path]:
    """Write the Markdown and the HTML page of a run, with no figure on them."""
    sections = [section for question in QUESTIONS if (section := question.section(results)) is not None]
    subjects = [subject for question in QUESTIONS for subject in question.subjects(results)]
    return render_report(results, (), sections, subjects)
