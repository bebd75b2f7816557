"""The run folder's results: which files a run leaves, and reading them back for figures and reports.

::

    RUN/results.csv             a row per seed × noise level × target × scope
    RUN/per_bin_results.csv     the same per bin
    RUN/other_labels.csv        both for the labels beside the target
    RUN/learning_curve.csv      the same for growing prefixes of the training folds
    RUN/ablation.csv            a row per seed × noise level × binning, where there are others than the main one
    RUN/design.csv              a row per number of experts, where better bins were searched for
    RUN/marginal_learning_curve.csv  as learning_curve.csv, for marginal noise that drawn noise is held against
    RUN/routing.csv             a row per seed × noise level × scope × route, where a gate was asked for
    RUN/routing_binnings.csv    the same for binnings by SNR with gates of their own, where they were asked for
    RUN/sample_distribution.csv spectra on a fine grid over the bin columns, train and test
    RUN/alpha_search.csv        R² of every model and penalty, where the penalty was searched for
    RUN/predictions.parquet     every test spectrum under the global model and every expert
    RUN/summary.json            means over seeds, intervals, hypotheses and the decision
    RUN/metadata.json           configuration, versions, fingerprints, times, peak memory, hashes
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import InputError
from pipeline.noise import NO_SEED

__all__ = [
    "ABLATION_FILE",
    "DESIGN_FILE",
    "GLOBAL_MODEL",
    "LABELS_COLUMNS",
    "LABELS_FILE",
    "LEARNING_FILE",
    "MARGINAL_FILE",
    "METADATA_FILE",
    "NO_SEED",
    "OVERALL_COLUMNS",
    "OVERALL_FILE",
    "PER_BIN_FILE",
    "PREDICTIONS_FILE",
    "ROUTING_BINNINGS_FILE",
    "ROUTING_FILE",
    "SAMPLE_FILE",
    "SEARCH_COLUMNS",
    "SEARCH_FILE",
    "SUMMARY_FILE",
    "RunResults",
    "read_results",
]

OVERALL_FILE = "results.csv"
PER_BIN_FILE = "per_bin_results.csv"
LEARNING_FILE = "learning_curve.csv"
LABELS_FILE = "other_labels.csv"
SAMPLE_FILE = "sample_distribution.csv"
SEARCH_FILE = "alpha_search.csv"
ABLATION_FILE = "ablation.csv"
DESIGN_FILE = "design.csv"
ROUTING_FILE = "routing.csv"
ROUTING_BINNINGS_FILE = "routing_binnings.csv"
MARGINAL_FILE = "marginal_learning_curve.csv"
PREDICTIONS_FILE = "predictions.parquet"
SUMMARY_FILE = "summary.json"
METADATA_FILE = "metadata.json"

_MERITS = ("r2_oracle", "r2_global", "delta_r2")
OVERALL_COLUMNS = (
    "seed",
    "noise_level",
    "target",
    "scope",
    "alpha_global",
    "n_train",
    "n_test",
    *(f"{merit}{suffix}" for merit in _MERITS for suffix in ("", "_low", "_high")),
)
LABELS_COLUMNS = (
    "seed",
    "noise_level",
    "target",
    "part",
    "alpha",
    *OVERALL_COLUMNS[4:],
    "mae_oracle",
    "mae_global",
)
SEARCH_COLUMNS = ("seed", "noise_level", "target", "model", "alpha", "r2_cv", "chosen", "r2_test")
#: The global model among the models of a search; experts have the number of their bin.
GLOBAL_MODEL = "global"


@dataclass(frozen=True)
class RunResults:
    """Everything a report needs, read from a run folder.

    Attributes
    ----------
    folder
        The run folder.
    overall
        ``results.csv``: columns :data:`OVERALL_COLUMNS`; ``scope`` is ``covered`` or ``all``.
    per_bin
        ``per_bin_results.csv``: columns ``seed, noise_level, target, bin``, the interval names
        ``<column>_bin``, ``alpha, n_train, n_test``, the three figures of merit with ``_low``/``_high``,
        ``mae_oracle, mae_global``; NaN where a bin has too few test spectra to have an R². Marginal test noise has
        no absolute errors.
    learning
        ``learning_curve.csv``: as ``overall``, one row more for every prefix of the folds.
    sample
        ``sample_distribution.csv``: ``<column>_low, <column>_high`` for each bin column, ``n_train, n_test``.
    predictions
        Columns ``seed, noise_level, row`` (of the test store), ``bin`` (−1 outside), ``y_true, y_global,
        y_oracle`` and ``expert_<bin>``, in units of the target; with marginal test noise these are means over the
        noise, and ``y_global_std, y_oracle_std, expert_<bin>_std`` their standard deviations; with a gate also
        ``y_hard, y_soft, y_fallback`` (and ``y_blend``), by :mod:`pipeline.questions.gate.routing`. ``seed`` is
        :data:`NO_SEED` where no noise was drawn from one.
    summary
        ``summary.json``, see :mod:`pipeline.scoring.decision`.
    metadata
        ``metadata.json``.
    alpha_search
        ``alpha_search.csv``: columns :data:`SEARCH_COLUMNS`; ``model`` is :data:`GLOBAL_MODEL` or the number of a bin,
        as text, ``r2_test`` that of covered test spectra or of those in the bin. Empty without a search.
    labels
        ``other_labels.csv``: columns :data:`LABELS_COLUMNS`; ``part`` is a scope or the number of a bin, as text. R² of
        the oracle is NaN for labels that the bins are cut by. Empty in a run of an earlier version.
    """

    folder: Path
    overall: pd.DataFrame
    per_bin: pd.DataFrame
    learning: pd.DataFrame
    sample: pd.DataFrame
    predictions: pd.DataFrame
    summary: dict[str, Any]
    metadata: dict[str, Any]
    alpha_search: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(SEARCH_COLUMNS)))
    labels: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(LABELS_COLUMNS)))

    def store_paths(self, role: str) -> list[str]:
        """Return the stores of the ``train`` or ``test`` spectra, for :func:`pipeline.open_spectra`."""
        try:
            return [str(path) for path in self.metadata["stores"][role]["paths"]]
        except KeyError:
            raise InputError(
                f"run folder {self.folder}: metadata.json names no {role!r} stores; ask for train or test, or, if an "
                "earlier version wrote it, run again with the same --out"
            ) from None


def read_results(folder: str | Path) -> RunResults:
    """Read the saved results of a finished run.

    Raises
    ------
    InputError
        If the folder is no run folder, or the run has not reached its scores yet.
    """
    run = Path(folder)
    if not run.is_dir():
        raise InputError(f"run folder {run}: no such folder; give the --out folder of a `headroom run`")
    files = (
        OVERALL_FILE,
        PER_BIN_FILE,
        LEARNING_FILE,
        SAMPLE_FILE,
        PREDICTIONS_FILE,
        SUMMARY_FILE,
        METADATA_FILE,
    )
    missing = [name for name in files if not (run / name).is_file()]
    if missing:
        raise InputError(
            f"run folder {run}: {', '.join(missing)} missing, so the run has not been scored; "
            f"finish it with `headroom run CONFIG --out {run}`"
        )
    try:
        return RunResults(
            folder=run,
            overall=pd.read_csv(run / OVERALL_FILE),
            per_bin=pd.read_csv(run / PER_BIN_FILE),
            learning=pd.read_csv(run / LEARNING_FILE),
            sample=pd.read_csv(run / SAMPLE_FILE),
            predictions=pd.read_parquet(run / PREDICTIONS_FILE),
            summary=json.loads((run / SUMMARY_FILE).read_text(encoding="utf-8")),
            metadata=json.loads((run / METADATA_FILE).read_text(encoding="utf-8")),
            **_read_where_there("alpha_search", run / SEARCH_FILE, "model"),
            **_read_where_there("labels", run / LABELS_FILE, "part"),
        )
    except (ValueError, OSError) as error:
        raise InputError(f"run folder {run}: a result file cannot be read ({error}); run again") from None


def _read_where_there(name: str, path: Path, text: str) -> dict[str, pd.DataFrame]:
    return {name: pd.read_csv(path, dtype={text: str})} if path.is_file() else {}
