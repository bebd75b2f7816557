"""Names of tasks that Dask's dashboard shows whole, and as groups of their own.

Dask takes a group's name from the first part of a key, and cuts that at the first hyphen before a digit, so that
``accumulate fold-2`` would be ``accumulate fold``, the same for all folds. The progress page draws 15 letters of a
name, or the first 12 of a longer one, so that ``accumulate fold 2`` would be ``accumulate f...``, again the same for
all. Hence no hyphens, and what tells groups apart comes first: ``fold 2: accumulate``.
"""

from __future__ import annotations

import re

__all__ = ["name_group"]


def name_group(subject: str, step: str) -> str:
    """Return the name of the tasks of a step that are about one thing.

    Parameters
    ----------
    subject
        What they are about; may be a user's own words, such as the name of a binning.
    step
        What they do.

    Examples
    --------
    >>> name_group("fold 2", "accumulate")
    'fold 2: accumulate'
    >>> name_group("SNR-4 (quantiles)", "solve")
    'SNR 4 quantiles: solve'
    """
    # Nothing that Dask would take for a number, an index, a class or a hash, whatever it is.
    words = re.sub(r"[^\w.+=]+|^_+", " ", subject).split()
    return f"{' '.join(words) or 'unnamed'}: {step}"
