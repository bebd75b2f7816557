"""Choosing the penalty α by folds of the training set that are held out in turn; the test set plays no part.

The moments of the folds are all that is needed. Those of the other folds train a model, and those of the held-out
fold give its error. :class:`CrossValidation` is the curve of one model over penalties. :class:`SolvedSearch` is what a
search leaves: the curves of all models, what each one chose, and the models of every penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.config import AlphaSearch, PerSpectrum
from pipeline.errors import InputError
from pipeline.moments import Moments, sum_predictions
from pipeline.ridge.ridge import RidgePath, pixel_scale, solve_ridge_path

__all__ = [
    "CrossValidation",
    "SolvedSearch",
    "choose_penalties",
    "cross_validate",
    "format_alpha",
    "held_out_errors",
    "resolve_alpha",
    "total_squares",
]

FloatArray = NDArray[np.float64]


def resolve_alpha(alpha: float | PerSpectrum | AlphaSearch, n_train: int) -> float:
    """Return the penalty for a training set of ``n_train`` spectra.

    A rule ``{per_spectrum: r}`` gives ``r · n_train``, the same α for the global model and every expert: the
    penalty weighs against a SUM of squares, so a fixed α that suits a million spectra over-shrinks experts
    trained on thousands.

    Raises
    ------
    InputError
        If α is a search, which a number of spectra cannot answer.
    """
    if isinstance(alpha, AlphaSearch):
        raise InputError(
            f"a fixed penalty is required here, found a search over {list(alpha.search)}: choosing needs the moments "
            "of every fold; see pipeline.ridge.penalties.cross_validate, and give the penalty that it finds"
        )
    return alpha.per_spectrum * n_train if isinstance(alpha, PerSpectrum) else float(alpha)


def format_alpha(alpha: float) -> str:
    """Return a penalty as people write it, with an exponent where that is shorter: ``0.004``, ``250``, ``1e5``."""
    if 1e-3 <= alpha < 1:  # as in a configuration, and in every other table
        return f"{alpha:g}"
    mantissa, _, exponent = f"{alpha:.5e}".partition("e")
    return min(f"{alpha:g}", f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}", key=len)


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """Errors of one model on every fold, trained on the others, for A penalties, F folds and Q labels.

    Attributes
    ----------
    alphas
        Penalties, shape (A,), increasing.
    sse
        Σ(y − ŷ)² over the held-out fold, shape (F, A, Q), squared label units.
    tss
        Σ(y − ȳ)² over all folds about their common mean, shape (Q,), squared label units.
    """

    alphas: FloatArray
    sse: FloatArray
    tss: FloatArray

    @property
    def r2(self) -> FloatArray:
        """``1 − Σ_f SSE_f / TSS``, shape (A, Q); NaN for a label that does not vary."""
        varies = self.tss > 0
        return np.where(varies, 1 - self.sse.sum(axis=0) / np.where(varies, self.tss, 1), np.nan)

    def best(self, label_index: int) -> int:
        """Return which penalty has the largest R²; of equal ones the largest, which is the simplest model.

        It looks at the errors themselves, so the answer is defined for a label that does not vary, too.
        """
        errors = self.sse.sum(axis=0)[:, label_index]
        return int(np.flatnonzero(errors == errors.min())[-1])

    def at_edge(self, label_index: int) -> bool:
        """Whether the best penalty is the smallest or largest tried: a better one may lie beyond."""
        return self.best(label_index) in (0, len(self.alphas) - 1)

    def gain_at_edge(self, label_index: int) -> float:
        """Return what R² gained by the last step of the grid to the best penalty; 0 if the best is not at an edge.

        A curve that is flat there would gain little beyond the grid. A grid of one penalty is no search: 0.
        """
        if len(self.alphas) == 1 or not self.at_edge(label_index) or not self.tss[label_index] > 0:
            return 0.0
        best, r2 = self.best(label_index), self.r2[:, label_index]
        return float(r2[best] - r2[1 if best == 0 else best - 1])


def held_out_errors(moments: Moments, path: RidgePath) -> FloatArray:
    """Return Σ(y − ŷ)² of the models along a path, on spectra of which only the moments are known.

    The sums are clipped at 0. One pass over the Gram matrix serves all penalties and labels; see
    :func:`pipeline.moments.algebra.sum_predictions`.

    Parameters
    ----------
    moments
        Spectra that did not train the models, of P pixels and Q labels. No spectra have an error of 0.
    path
        Models for A penalties.

    Returns
    -------
    FloatArray
        Shape (A, Q), squared label units.

    Raises
    ------
    InputError
        If the pixels or labels are not those of the models.
    """
    n_pixels = path.weights.shape[1]
    if moments.n_pixels != n_pixels or moments.labels != path.labels:
        raise InputError(
            f"models of {n_pixels} pixels and labels {path.labels} need moments of the same, found "
            f"{moments.n_pixels} pixels and labels {moments.labels}"
        )
    return sum_predictions(moments, path.weights, path.intercepts).squared_errors


def total_squares(count: int, y_sum: FloatArray, y_squares: FloatArray) -> FloatArray:
    """Return Σ(y − ȳ)², shape (Q,), from the number of spectra, Σy and Σy² about any origin; 0 if it is rounding."""
    total = y_squares - y_sum**2 / count
    return np.asarray(np.where(total > 64 * np.finfo(np.float64).eps * y_squares, total, 0.0))


def cross_validate(folds: Sequence[Moments], alphas: ArrayLike, *, standardize: bool = True) -> CrossValidation:
    """Try penalties on every fold in turn, trained on the others; from moments alone.

    The training moments are the sum of the other folds, not the total less one fold. So a pixel that varies in the
    held-out fold alone stays exactly constant. Scale and intercept come from the training folds, too: a held-out fold
    plays no part in the model that it judges.

    Parameters
    ----------
    folds
        Moments of F >= 2 disjoint sets, about the same origins.
    alphas
        A penalties, positive and distinct, in any order. Each is used as it is written, for all training folds
        together.
    standardize
        Whether pixels are divided by their standard deviation (see :func:`pipeline.ridge.ridge.pixel_scale`).

    Returns
    -------
    CrossValidation
        With penalties in increasing order.

    Raises
    ------
    InputError
        If there are fewer than two folds, fewer than two training spectra, or penalties are not positive and distinct.
    """
    path = np.sort(np.atleast_1d(np.asarray(alphas, dtype=np.float64)))
    valid = path.ndim == 1 and path.size > 0 and bool(np.isfinite(path).all() and path[0] > 0)
    if not (valid and (np.diff(path) > 0).all()):
        raise InputError(f"penalties must be positive, finite and distinct, found {np.asarray(alphas).tolist()}")
    if len(folds) < 2:
        raise InputError(f"cross-validation needs at least 2 folds, found {len(folds)}; split the training set")
    errors = []
    for held_out, fold in enumerate(folds):
        training = Moments.merge([part for k, part in enumerate(folds) if k != held_out])
        if training.count < 2:
            raise InputError(
                f"without fold {held_out} there are {training.count} training spectra, at least 2 are required; "
                "use fewer folds"
            )
        scale = pixel_scale(training) if standardize else None
        errors.append(held_out_errors(fold, solve_ridge_path(training, path, scale)))
    tss = total_squares(
        sum(fold.count for fold in folds),
        np.stack([fold.y_sum for fold in folds]).sum(axis=0),
        np.stack([np.diagonal(fold.y_gram) for fold in folds]).sum(axis=0),
    )
    return CrossValidation(path, np.stack(errors), tss)


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
        The curves (:class:`pipeline.ridge.penalties.CrossValidation`) of the global model and then of every expert,
        shapes (1 + K, F, A, Q) and (1 + K, Q); NaN for an expert whose curve was not asked for.
    chosen
        Which penalty each model took, shape (1 + K,).
    weights, intercepts
        The models of every penalty, trained on all folds, shapes (A, 1 + K, P, Q) and (A, 1 + K, Q). The choice was
        not made with them: it needs models that have not seen the held-out fold.
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

        Experts may have no curves. NaN then stands for theirs.
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

    ``by: global`` gives all models the best penalty of the global model. It is not scaled with the number of spectra
    that train an expert.
    """
    if search.by == "global":
        return [curves[0].best(label_index)] * n_models
    return [curve.best(label_index) for curve in curves]
