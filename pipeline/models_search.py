"""What a search for the penalty leaves: the curve of every model, the choice, and the models of every penalty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import AlphaSearch
from pipeline.ridge import RidgePath
from pipeline.selection import CrossValidation

__all__ = ["SolvedSearch", "choose_penalties"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SolvedSearch:
    """The search for the penalties of a global model and K experts, for A penalties, F folds, P pixels and Q labels.

    Attributes
    ----------
    by
        Whose curve decided: ``global`` or ``per_expert``.
    target
        The label whose R² decided.
    alphas
        Penalties, shape (A,), increasing.
    sse, tss
        The curves (:class:`pipeline.selection.CrossValidation`) of the global model and then of every expert, shapes
        (1 + K, F, A, Q) and (1 + K, Q); NaN for an expert whose curve was not asked for.
    chosen
        Which penalty each model took, shape (1 + K,).
    weights, intercepts
        The models of every penalty on all folds, shapes (A, 1 + K, P, Q) and (A, 1 + K, Q). They had no part in the
        choice, which needs models that have not seen the held-out fold.
    """

    by: str
    target: str
    alphas: FloatArray
    sse: FloatArray
    tss: FloatArray
    chosen: NDArray[np.int64]
    weights: FloatArray
    intercepts: FloatArray

    @classmethod
    def join(
        cls,
        search: AlphaSearch,
        target: str,
        curves: Sequence[CrossValidation],
        chosen: Sequence[int],
        paths: Sequence[RidgePath],
    ) -> SolvedSearch:
        """Put the curves, choices and paths of all models together, the global one first.

        Without the curves of the experts there is that of the global model alone.
        """
        unknown = CrossValidation(
            curves[0].alphas, np.full_like(curves[0].sse, np.nan), np.full_like(curves[0].tss, np.nan)
        )
        curves = [*curves, *[unknown] * (len(paths) - len(curves))]
        return cls(
            by=search.by,
            target=target,
            alphas=curves[0].alphas,
            sse=np.stack([curve.sse for curve in curves]),
            tss=np.stack([curve.tss for curve in curves]),
            chosen=np.asarray(chosen, dtype=np.int64),
            weights=np.stack([path.weights for path in paths], axis=1),
            intercepts=np.stack([path.intercepts for path in paths], axis=1),
        )

    def curve(self, model: int) -> CrossValidation:
        """Return the curve of the global model (0) or of expert ``model − 1``."""
        return CrossValidation(self.alphas, self.sse[model], self.tss[model])


def choose_penalties(
    search: AlphaSearch, curves: Sequence[CrossValidation], label_index: int, n_models: int
) -> list[int]:
    """Return which penalty each model takes, given the curves of the global model and then of every expert.

    ``by: global`` gives all of them the best one of the global model, as written: α is not scaled with the number of
    spectra that train an expert.
    """
    if search.by == "global":
        return [curves[0].best(label_index)] * n_models
    return [curve.best(label_index) for curve in curves]
