"""Tables of pandas, which is imported with the first one: that takes a fifth of a second, and no run begins with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["join_tables", "tabulate"]


def tabulate(
    content: Mapping[str, Any] | Sequence[Mapping[str, Any] | tuple[Any, ...]], columns: Iterable[str] | None = None
) -> pd.DataFrame:
    """Return a table of some columns, or of some rows.

    Parameters
    ----------
    content
        Columns by their names, or for each row its values by the names of the columns.
    columns
        The names in order, where no row might tell them.
    """
    import pandas as pd

    return pd.DataFrame(content, columns=None if columns is None else list(columns))


def join_tables(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of all tables as one, numbered anew."""
    import pandas as pd

    return pd.concat(list(tables), ignore_index=True)
