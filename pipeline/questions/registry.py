"""All questions, in the order of the page. A new question is a folder of its own and one line here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

from pipeline.config import ExperimentConfig
from pipeline.questions.ablation import Ablation
from pipeline.questions.amplification import Amplification
from pipeline.questions.bin_design import BinDesign
from pipeline.questions.ceiling import Ceiling
from pipeline.questions.forecast import Forecast
from pipeline.questions.gate import Gates
from pipeline.questions.labels import Labels
from pipeline.questions.learning_curve import LearningCurve
from pipeline.questions.marginal_curve import MarginalCurve
from pipeline.questions.penalty import Penalty
from pipeline.questions.question import Needs, Question
from pipeline.questions.rank import Rank
from pipeline.scoring import Summary

__all__ = ["QUESTIONS", "describe_summary", "list_needs"]

QUESTIONS: list[type[Question[Any]]] = [
    Amplification,
    Labels,
    Ablation,
    BinDesign,
    Ceiling,  # before the gates, which are held against its exact one
    Gates,
    Penalty,
    LearningCurve,
    MarginalCurve,
    Forecast,
    Rank,
]


def list_needs(settings: ExperimentConfig, questions: Sequence[type[Question[Any]]] = QUESTIONS) -> Needs:
    """Return what all questions need together."""
    return reduce(or_, (question.needs(settings) for question in questions), Needs())


def describe_summary() -> dict[str, Any]:
    """Return the JSON schema of ``summary.json``, with the answers of all questions."""
    schema = Summary.model_json_schema(mode="serialization")
    answers: dict[str, Any] = {}
    for question in QUESTIONS:
        own = question.Answer.model_json_schema(mode="serialization", ref_template="#/$defs/{model}")
        schema["$defs"] |= own.pop("$defs", {})
        schema["$defs"][question.Answer.__name__] = own
        answers[question.name] = {"$ref": f"#/$defs/{question.Answer.__name__}"}
    schema["properties"]["answers"] = {"type": "object", "properties": answers}
    return schema
