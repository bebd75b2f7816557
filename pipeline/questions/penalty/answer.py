"""What a search for the penalty says in the summary of a run."""

from __future__ import annotations

from pipeline.scoring import Number, Plain

__all__ = ["GLOBAL_MODEL", "PenaltyAnswer", "PenaltyDraw", "PenaltyPath"]

#: The global model among the models of a search; experts have the number of their bin.
GLOBAL_MODEL = "global"


class PenaltyPath(Plain):
    """R² of one model for every penalty: on held-out folds, which chose, and on test spectra, which did not.

    ``model`` is :data:`GLOBAL_MODEL` or the number of a bin; ``chosen`` is a place in ``alphas``.
    """

    model: str
    alphas: tuple[float, ...]
    r2_cv: tuple[Number, ...]
    r2_test: tuple[Number, ...]
    chosen: int


class PenaltyDraw(Plain):
    """The search under one noise draw."""

    seed: int
    noise_level: float
    models: tuple[PenaltyPath, ...]


class PenaltyAnswer(Plain):
    """The search of every noise draw; ``by`` says whose choice counts."""

    by: str
    draws: tuple[PenaltyDraw, ...]
