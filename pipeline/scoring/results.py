"""The run folder's results: which files a run leaves, and reading them back for figures and reports.

::

    RUN/results.csv             a row per seed × noise level × target × scope
    RUN/per_bin_results.csv     the same per bin
    RUN/other_labels.csv        both for the labels beside the target
    RUN/learning_curve.csv      the same for growing prefixes of the training folds
    RUN/ablation.csv            a row per seed × noise level × binning, where there are others than the main one
    RUN/design.csv              a row per number of experts, where better bins were searched for
    RUN/marginal_learning_curve.csv  as learning_curve.csv, for marginal noise that drawn noise is held against
    RUN/drawn_learning_curve.csv     the same where the verdict is about marginal noise
    RUN/routing.csv             a row per seed × noise level × scope × route, where a gate was asked for
    RUN/routing_binnings.csv    the same for binnings by SNR with gates of their own, where they were asked for
    RUN/ceiling.csv             a row per noise level × label × scope × bin × library, where the ceiling was asked for
    RUN/ceiling_routing.csv     a row per noise level × scope: what the exact gate keeps
    RUN/sample_distribution.csv spectra on a fine grid over the bin columns, train and test
    RUN/alpha_search.csv        R² of every model and penalty, where the penalty was searched for
    RUN/predictions.parquet     every test spectrum under the global model and every expert
    RUN/summary.json            means over seeds, intervals, hypotheses and the decision
    RUN/metadata.json           configuration, versions, fingerprints, times, peak memory, hashes
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.base import (
    hash_file,
    is_run_folder,
    is_sealed,
    parse_object,
    read_file,
    refuse_environment,
    render_html,
    tabulate,
)
from pipeline.errors import InputError, did_you_mean, require_kind
from pipeline.scoring.summary import DELTA_R2, SHOWN_MERITS, Summary

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "LEARNING_FILE",
    "METADATA_FILE",
    "OVERALL_FILE",
    "PER_BIN_FILE",
    "PREDICTIONS_FILE",
    "SAMPLE_FILE",
    "SUMMARY_FILE",
    "RunResults",
    "read_metadata",
    "read_results",
]

OVERALL_FILE = "results.csv"
PER_BIN_FILE = "per_bin_results.csv"
LEARNING_FILE = "learning_curve.csv"
SAMPLE_FILE = "sample_distribution.csv"
PREDICTIONS_FILE = "predictions.parquet"
SUMMARY_FILE = "summary.json"
METADATA_FILE = "metadata.json"
#: Columns of names that may look like numbers.
_TEXT_COLUMNS = ("model", "part", "scope", "binning")


@dataclass(frozen=True, repr=False)
class RunResults:
    """Everything a report needs, read from a run folder.

    Every other table of the run folder is an attribute of its name, too: ``results.routing`` is ``routing.csv``,
    ``results.forecast`` is ``forecast.csv``. A question that writes a table needs to do nothing for it.
    :attr:`table_names` lists them.

    Attributes
    ----------
    folder
        The run folder.
    overall
        ``results.csv``: columns ``seed, noise_level, target, scope, alpha_global, n_train, n_test`` and the three
        figures of merit with ``_low``/``_high``; ``scope`` is ``covered`` or ``all``.
    per_bin
        ``per_bin_results.csv``: columns ``seed, noise_level, target, bin``, the interval names
        ``<column>_bin``, ``alpha, n_train, n_test``, the three figures of merit with ``_low``/``_high``,
        ``mae_oracle, mae_global``; NaN where a bin has too few test spectra to have an R². Marginal test noise has
        no absolute errors.
    learning
        ``learning_curve.csv``: as ``overall``, one row more for every training set that is a part of the folds.
    sample
        ``sample_distribution.csv``: ``<column>_low, <column>_high`` for each bin column, ``n_train, n_test``.
    predictions
        Columns ``seed, noise_level, row`` (of the test store), ``bin`` (−1 outside), ``y_true, y_global,
        y_oracle`` and ``expert_<bin>``, in units of the target. With marginal test noise these are means over the
        noise, and ``y_global_std, y_oracle_std, expert_<bin>_std`` are their standard deviations. A gate adds
        ``y_<route>`` for every way of routing. ``seed`` is −1 where no noise was drawn from one.
    summary
        ``summary.json``: every score of the run, see :class:`pipeline.scoring.summary.Summary`.
    metadata
        ``metadata.json``.
    alpha_search
        ``alpha_search.csv``: the R² of every model and penalty; empty without a search.
    labels
        ``other_labels.csv``: the figures of merit of the labels beside the target.
    """

    folder: Path
    overall: pd.DataFrame
    per_bin: pd.DataFrame
    learning: pd.DataFrame
    sample: pd.DataFrame
    predictions: pd.DataFrame
    summary: Summary
    metadata: dict[str, Any]
    alpha_search: pd.DataFrame = field(default_factory=partial(tabulate, ()))
    labels: pd.DataFrame = field(default_factory=partial(tabulate, ()))

    def table(self, name: str) -> pd.DataFrame:
        """Return a table of the run folder as it is now, for example ``routing``; empty where there is none."""
        return _read_table(self.folder / f"{name.removesuffix('.csv')}.csv")

    @property
    def table_names(self) -> tuple[str, ...]:
        """Names of all tables that the run has left, without ``.csv``."""
        return tuple(sorted(path.stem for path in self.folder.glob("*.csv")))

    if not TYPE_CHECKING:  # a wrong name is to be found by whoever checks types

        def __getattr__(self, name: str) -> pd.DataFrame:
            """Return the table of this name."""
            if name.startswith("_") or name == "folder":
                raise AttributeError(name)
            if name not in self.table_names:
                why = self.metadata.get("absent", {}).get(name)  # by the run: it knows its questions
                why = f": {why}" if why else did_you_mean(name, self.table_names)
                raise AttributeError(f"the run has no table {name!r}{why}; it has {', '.join(self.table_names)}")
            return self.table(name)

    def __dir__(self) -> list[str]:
        """Return what can be asked for, tables included."""
        return sorted({*super().__dir__(), *self.table_names})

    def __repr__(self) -> str:
        headline = self.summary.headline
        delta = headline.scopes["covered"].delta_r2
        return f"RunResults({str(self.folder)!r}, ΔR² {DELTA_R2.format(delta.mean)}, {headline.decision.verdict})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the verdict, the scores, and which tables there are."""
        level, confidence = self.summary.headline, self.summary.confidence
        headings = ("spectra", "train", "test", *(merit.symbol for merit in SHOWN_MERITS), f"{confidence:.0%} interval")
        rows = []
        for name, scope in level.scopes.items():
            low, high = (DELTA_R2.format(end) for end in (scope.delta_r2.low, scope.delta_r2.high))
            merits = [merit.format(scope.merit(merit).mean) for merit in SHOWN_MERITS]
            rows.append((name, f"{scope.n_train:,}", f"{scope.n_test:,}", *merits, f"{low} to {high}"))
        simulated = ["Simulated spectra."] if self.metadata.get("simulated") else []
        title = f"{self.folder.name}: {self.summary.target} at noise level {level.noise_level:g}"
        tables = f"Tables: {', '.join(self.table_names)}."
        return render_html(title, [level.decision.sentence, *simulated, tables], headings, rows)

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
        If the folder is no run folder, the run has not reached its scores yet, or a file is not the one that the run
        has written; the message names it.
    """
    require_kind("folder", folder, (str, os.PathLike), "the path of a run folder")
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
        within = sorted(one.parent.name for one in run.glob(f"*/{SUMMARY_FILE}"))
        if within:  # the folder of a sweep, or one in which somebody keeps runs
            raise InputError(f"folder {run}: it is no run but holds some; name one of {', '.join(within)} within it")
        if len(missing) == len(files) and not is_run_folder(run):
            raise InputError(f"run folder {run}: nothing in it is a run's; give the --out folder of a `headroom run`")
        raise InputError(
            f"run folder {run}: {', '.join(missing)} missing, so the run has not been scored; "
            f"finish it with `headroom run CONFIG --out {run}`"
        )
    import pandas as pd  # with the first results, as pipeline.base.tables says

    metadata = read_metadata(run)
    for name, digest in metadata.get("hashes", {}).items():
        if changed := _find_change(run / name, digest):
            raise InputError(f"run folder {run}: {name} {changed}; run again with the same --out, which writes it anew")
    try:
        return RunResults(
            folder=run,
            overall=pd.read_csv(run / OVERALL_FILE),
            per_bin=pd.read_csv(run / PER_BIN_FILE),
            learning=pd.read_csv(run / LEARNING_FILE),
            sample=pd.read_csv(run / SAMPLE_FILE),
            predictions=pd.read_parquet(run / PREDICTIONS_FILE),
            summary=_read_summary(run / SUMMARY_FILE),
            metadata=metadata,
            alpha_search=_read_table(run / "alpha_search.csv"),
            labels=_read_table(run / "other_labels.csv"),
        )
    except (ValueError, OSError) as error:
        raise InputError(f"run folder {run}: a result file cannot be read ({error}); run again") from None


class _Spectra(BaseModel):
    """What ``metadata.json`` says of one set of spectra."""

    model_config = ConfigDict(strict=True)

    paths: list[str]
    fingerprint: str


class _Metadata(BaseModel):
    """Kinds of what ``metadata.json`` holds; versions differ in what is there."""

    model_config = ConfigDict(strict=True)

    key: str = ""
    config: dict[str, Any] = {}
    bin_columns: list[str] = []
    interval_names: dict[str, list[str]] = {}
    stores: dict[str, _Spectra] = {}
    hashes: dict[str, str] = {}
    warnings: list[str] = []
    steps: list[dict[str, Any]] = []
    folds: dict[str, Any] = {}
    plan: dict[str, Any] = {}
    absent: dict[str, str] = {}
    algorithms: dict[str, Any] = {}
    versions: dict[str, str] = {}


def read_metadata(run: Path) -> dict[str, Any]:
    """Read ``metadata.json`` of a run, and check it against its checksum; earlier versions wrote none.

    Raises
    ------
    InputError
        If it is missing or damaged, or something in it is not of the kind that it should be.
    """
    path = run / METADATA_FILE
    try:
        facts = parse_object(read_file(path))
        is_sealed(facts)
        _Metadata.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
    except (OSError, ValueError) as error:
        refuse_environment(path, error)
        reason = str(error)
    else:
        return facts
    raise InputError(f"{path} is damaged ({reason}); run again with the same --out, which writes it anew")


def _find_change(path: Path, digest: str) -> str:
    """Say how a result differs from what the run has written; nothing if it does not."""
    if not path.is_file():
        return "is missing"
    return "" if hash_file(path) == digest else f"is not what the run has written ({METADATA_FILE} has its SHA-256)"


def _read_table(path: Path) -> pd.DataFrame:
    """Read a table that not every run has; an empty one where it is not there."""
    if not path.is_file():
        return tabulate(())
    import pandas as pd

    return pd.read_csv(path, dtype=dict.fromkeys(_TEXT_COLUMNS, str))


def _read_summary(path: Path) -> Summary:
    """Read the summary of a run.

    Raises
    ------
    InputError
        If it is damaged, or another version wrote it.
    """
    try:
        return Summary.model_validate_json(read_file(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(
            f"{path}: {place} is not what this version writes ({first['msg'].lower()}); run again with the same --out, "
            "which computes the results from the moments that are there"
        ) from None
