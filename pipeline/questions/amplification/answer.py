"""What a comparison of noise levels says in the summary of a run."""

from __future__ import annotations

from pipeline.scoring import Number, Plain

__all__ = ["AmplificationAnswer"]


class AmplificationAnswer(Plain):
    """How many times ΔR² at a high noise level is that at a low one; undefined where experts gain nothing at one."""

    low: float
    high: float
    ratio: Number
