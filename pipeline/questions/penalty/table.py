"""The table of a search for the penalty: the curve that chose, the choice, and what the test spectra say of it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.bins import OUTSIDE, BinGrid
from pipeline.errors import enumerate_words
from pipeline.ridge import SolvedSearch, format_alpha, total_squares
from pipeline.scoring import GLOBAL_MODEL

__all__ = ["search_warnings", "summarise_edges", "tabulate_search"]

FloatArray = NDArray[np.float64]


def tabulate_search(
    search: SolvedSearch,
    label_index: int,
    y_true: FloatArray,
    bins: NDArray[np.int64],
    tried: FloatArray,
    variance: FloatArray | None = None,
) -> pd.DataFrame:
    """Return a row for each model and penalty of one noise draw.

    Parameters
    ----------
    search
        Curves and choices.
    label_index
        The target, among the labels of the curves.
    y_true, bins
        Test labels and bins, shapes (N,); :data:`pipeline.bins.grid.OUTSIDE` in none.
    tried
        Predictions of the models of every penalty, shape (A, N, 1 + K), the global model first. They are scored on
        the covered spectra, an expert on its bin's, and play no part in the choice.
    variance
        Of the predictions, of the same shape, where they are means over the noise: it adds to the squared errors.

    Returns
    -------
    pandas.DataFrame
        Columns ``target, model, alpha, r2_cv, chosen, r2_test``.
    """
    squares = (y_true[:, None] - tried) ** 2 + (0.0 if variance is None else variance)
    rows = []
    for model in range(len(search.chosen)):
        members = bins != OUTSIDE if model == 0 else bins == model - 1
        r2_cv = search.curve(model).r2[:, label_index]
        r2_test = _r2(y_true[members], squares[:, members, model])
        name = GLOBAL_MODEL if model == 0 else str(model - 1)
        for k, alpha in enumerate(search.alphas):
            rows.append((search.target, name, alpha, r2_cv[k], bool(k == search.chosen[model]), r2_test[k]))
    return pd.DataFrame(rows, columns=["target", "model", "alpha", "r2_cv", "chosen", "r2_test"])


def _r2(truth: FloatArray, squares: FloatArray) -> FloatArray:
    """Return R² from every row of squared errors (A, n); NaN for fewer than two spectra or labels that do not vary."""
    total = total_squares(len(truth), truth.sum(), (truth**2).sum()) if len(truth) > 1 else 0.0
    return np.asarray(1 - squares.sum(axis=1) / total if total > 0 else np.full(len(squares), np.nan))


def search_warnings(table: pd.DataFrame, by: str, grid: BinGrid) -> list[str]:
    """Name the choices at an edge of the grid, beyond which a better penalty may lie; each with its noise levels.

    Where the global model chose for all, its choice is the only one.
    """
    chosen = table[table["chosen"]]
    if by == "global":
        chosen = chosen[chosen["model"] == GLOBAL_MODEL]
    several_levels = table["noise_level"].nunique() > 1
    warnings = []
    for edge, place, beyond in (
        (float(table["alpha"].max()), "largest", "larger"),
        (float(table["alpha"].min()), "smallest", "smaller"),
    ):
        for model, rows in chosen[chosen["alpha"] == edge].groupby("model", sort=False):
            who = "the global model" if model == GLOBAL_MODEL else grid.describe(int(str(model)))
            levels = enumerate_words([f"{level:g}" for level in rows["noise_level"].unique()])
            where = f", at noise level {levels}," if several_levels else ""
            warnings.append(
                f"α = {format_alpha(edge)} for {who}{where} is the {place} of the grid, so a {beyond} one may be "
                "better: widen ridge.alpha.search"
            )
    return warnings


def summarise_edges(table: pd.DataFrame, what: str) -> list[str]:
    """Say in one line how many choices of a noise that is only compared sit at an edge of the grid."""
    chosen = table[table["chosen"]]
    at_edge = int(chosen["alpha"].isin([table["alpha"].min(), table["alpha"].max()]).sum())
    if not at_edge:
        return []
    return [
        f"{what}: {at_edge} of {len(chosen)} penalties chosen are the smallest or the largest of the grid, so others "
        "may be better: widen ridge.alpha.search"
    ]
