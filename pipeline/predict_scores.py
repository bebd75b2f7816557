"""What a file of predictions holds, in a few numbers: spectra out of domain, and R² where labels are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.bins import OUTSIDE
from pipeline.bundle_model import MixtureModel

__all__ = ["LabelScore", "PredictSummary", "summarise_predictions"]


@dataclass(frozen=True)
class LabelScore:
    """R² of a label on ``covered`` or ``all`` spectra, under the file's route and by the global model; NaN if none."""

    label: str
    scope: str
    n_spectra: int
    r2: float
    r2_global: float


@dataclass(frozen=True)
class PredictSummary:
    """What a file of predictions holds.

    Attributes
    ----------
    path
        The file.
    n_spectra, n_out_of_domain
        Spectra, and those that the model should not be believed about.
    reasons
        How many for each reason; a spectrum may have several.
    scores
        For every label that is known: of covered spectra (where all columns of the bins are known) and of all.
    """

    path: Path
    n_spectra: int
    n_out_of_domain: int
    reasons: Mapping[str, int]
    scores: tuple[LabelScore, ...]


@dataclass
class _Sums:
    """Running sums of one label in one scope; labels less a fixed number, so that squares lose no digits."""

    n: int = 0
    shift: float = 0.0
    y: float = 0.0
    yy: float = 0.0
    errors: float = 0.0
    errors_global: float = 0.0

    def add(self, truth: np.ndarray, routed: np.ndarray, of_global: np.ndarray) -> None:
        if not truth.size:
            return
        if not self.n:
            self.shift = float(truth.mean())
        own = truth - self.shift
        self.n += own.size
        self.y += float(own.sum())
        self.yy += float(own @ own)
        self.errors += float(((truth - routed) ** 2).sum())
        self.errors_global += float(((truth - of_global) ** 2).sum())

    def r2(self, errors: float) -> float:
        scatter = self.yy - self.y**2 / self.n if self.n > 1 else 0.0
        return 1 - errors / scatter if scatter > 0 else float("nan")


def summarise_predictions(path: Path, model: MixtureModel) -> PredictSummary:
    """Read a file of predictions, a row group at a time, and say what is in it.

    ``R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)²`` over spectra whose label is finite.
    """
    sums: dict[tuple[str, str], _Sums] = {}
    reasons: Counter[str] = Counter()
    n_out = 0
    with pq.ParquetFile(path) as file:
        present = set(file.schema_arrow.names)
        known = [label for label in model.labels if f"{label}_true" in present]
        truths = {column: f"{column}_true" for column in model.grid.columns}
        is_binned = set(truths.values()) <= present
        wanted = ["out_of_domain", "reason", *(f"{label}{end}" for label in known for end in ("", "_global", "_true"))]
        wanted += [name for name in truths.values() if is_binned and name not in wanted]
        for number in range(file.num_row_groups):
            table = file.read_row_group(number, columns=wanted)
            read = {name: table.column(name).to_numpy() for name in wanted if name != "reason"}
            n_out += int(read["out_of_domain"].sum())
            for counted in table.column("reason").value_counts().to_pylist():
                for reason in filter(None, counted["values"].split("; ")):
                    reasons[reason] += counted["counts"]
            scopes = {"all": np.ones(table.num_rows, bool)}
            if is_binned:
                scopes["covered"] = model.grid.assign({c: read[name] for c, name in truths.items()}) != OUTSIDE
            for label in known:
                finite = np.isfinite(read[f"{label}_true"])
                for scope, members in scopes.items():
                    chosen = [read[f"{label}{end}"][members & finite] for end in ("_true", "", "_global")]
                    sums.setdefault((label, scope), _Sums()).add(*chosen)
        total = file.metadata.num_rows
    scores = [
        LabelScore(label, scope, one.n, one.r2(one.errors), one.r2(one.errors_global))
        for (label, scope), one in sorted(sums.items(), key=lambda item: (known.index(item[0][0]), item[0][1] == "all"))
    ]
    return PredictSummary(path, total, n_out, dict(sorted(reasons.items())), tuple(scores))
