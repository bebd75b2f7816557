"""Spectra that occur twice: in train and in test, or in train and among those that are to join it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import schema
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.spectra_sets import SetHeader

__all__ = ["require_disjoint", "require_new"]


def require_disjoint(train: SetHeader, test: SetHeader) -> list[str]:
    """Refuse test spectra that the models are trained on; return what a reader should know.

    Raises
    ------
    InputError
        If the same id occurs with the same labels in both.
    """
    for header in (train, test):
        if not _has_ids(header):
            return [f"{header.name} has no usable ids, so whether test spectra also occur in train was not checked"]
    shared = _find_shared(train, test)
    if len(shared):
        first = shared.iloc[0]
        raise InputError(
            f"{len(shared):,} of {test.n_spectra:,} test spectra also occur in train (same id and labels; for example "
            f"id {first['id']:g}: row {int(first['test_row'])} of {test.name}, row {int(first['train_row'])} of "
            f"{train.name}), so scores would be too good; leave them out, or set data.allow_overlap: true"
        )
    return []


def require_new(train: SetHeader, new: SetHeader) -> None:
    """Refuse spectra that are in train already.

    Raises
    ------
    InputError
        If the same id occurs with the same labels in both.
    """
    if not (_has_ids(train) and _has_ids(new)):
        return
    shared = _find_shared(train, new)
    if len(shared):
        first = shared.iloc[0]
        raise InputError(
            f"{len(shared):,} of {new.n_spectra:,} spectra to be added occur in train already (same id and labels; for "
            f"example id {first['id']:g}: row {int(first['test_row'])} of {new.name}, row {int(first['train_row'])} of "
            f"{train.name}); every spectrum may count once only, so leave them out, or set data.allow_overlap: true"
        )


def _find_shared(train: SetHeader, test: SetHeader) -> pd.DataFrame:
    """Return each spectrum of ``test`` that occurs in ``train``, once, with the rows of both."""
    identity = ["id", *schema.LABELS]
    of_test = pd.concat([_frame(start, columns, "test_row") for start, columns in test.iter_columns(identity)])
    ids = np.unique(of_test["id"])
    found = []
    for start, columns in train.iter_columns(identity):
        of_train = _frame(start, columns, "train_row")
        of_train = of_train[np.isin(of_train["id"], ids)]
        found.append(of_test.merge(of_train, on=identity).drop_duplicates("test_row"))
    return pd.concat(found).sort_values(["test_row", "train_row"]).drop_duplicates("test_row")


def _has_ids(header: SetHeader) -> bool:
    return "id" in header.column_names and any(
        np.issubdtype(columns["id"].dtype, np.number) and np.isfinite(columns["id"]).any()
        for _, columns in header.iter_columns(["id"])
    )


def _frame(start: int, columns: Mapping[str, NDArray[Any]], row: str) -> pd.DataFrame:
    rows = np.arange(start, start + len(columns["id"]))
    return pd.DataFrame({**columns, row: rows})
