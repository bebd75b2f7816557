"""Choosing the penalty α, never on the test set."""

from __future__ import annotations

from pipeline.config import PerSpectrum

__all__ = ["resolve_alpha"]


def resolve_alpha(alpha: float | PerSpectrum, n_train: int) -> float:
    """Return the penalty for a training set of ``n_train`` spectra.

    A rule ``{per_spectrum: r}`` gives ``r · n_train``, the same α for the global model and every expert: the
    penalty weighs against a SUM of squares, so a fixed α that suits a million spectra over-shrinks experts
    trained on thousands.
    """
    return alpha.per_spectrum * n_train if isinstance(alpha, PerSpectrum) else float(alpha)
