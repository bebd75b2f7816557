"""The cells and binnings of an experiment, resolved on its spectra: quantiles become edges, empty bins are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.binnings import Binning, CellGrid, plan_binnings, quantile_edges
from pipeline.bins import OUTSIDE, BinGrid
from pipeline.config import ExperimentConfig, Quantiles
from pipeline.errors import InputError
from pipeline.spectra_sets import SpectraSets

__all__ = ["fix_edges", "resolve_binnings"]


def resolve_binnings(config: ExperimentConfig, sets: SpectraSets) -> tuple[CellGrid, tuple[Binning, ...], list[str]]:
    """Return the cells and binnings of an experiment, quantiles as edges, and what a reader should know of them.

    A binning whose experts cannot be trained, or that covers no test spectra, is left out with a warning: it must not
    stop what the main one has to say.
    """
    grids = {name: BinGrid(_resolve_cuts(name, cuts, sets)) for name, cuts in config.further_grids.items()}
    fine = grids.pop("design.grid", None)
    others = dict(zip(config.binnings, grids.values(), strict=True))
    cells, binnings = plan_binnings(BinGrid(config.bins, config.bin_names), others, ablation=config.ablation, fine=fine)
    gated = config.gate.binnings if config.gate is not None else ()
    crossed = [Binning.cross(binnings[0], binning) for binning in binnings if binning.name in gated]
    kept, warnings = binnings[:1], []
    for binning in [*binnings[1:], *crossed]:
        problem = _find_problem(binning, config, sets)
        if problem:
            warnings.append(f"the binning {binning.name!r} is left out: {problem}")
        else:
            kept.append(binning)
    return cells, tuple(kept), warnings


def fix_edges(config: ExperimentConfig, sets: SpectraSets) -> ExperimentConfig:
    """Return a configuration that states the edges which quantiles have on these spectra, and so the same cells.

    What is added to the spectra, or taken from them, would move quantiles, and all moments would be of no use.
    """
    edges = {name: _resolve_cuts(name, cuts, sets) for name, cuts in config.further_grids.items()}
    plain = config.to_dict()
    plain["binnings"] = {name: edges[f"binnings.{name}"] for name in config.binnings}
    if config.design is not None:
        plain["design"]["grid"] = edges["design.grid"]
    return ExperimentConfig.model_validate(plain).model_copy(update={"cluster": config.cluster})


def _resolve_cuts(name: str, cuts: Mapping[str, Any], sets: SpectraSets) -> dict[str, tuple[float, ...]]:
    edges = {}
    for column, cut in cuts.items():
        if isinstance(cut, Quantiles):
            train, test = (
                (block[column] for _, block in part.iter_columns([column])) for part in (sets.train, sets.test)
            )
            cut = quantile_edges(train, test, cut.quantiles)
            if len(cut) < 2:
                raise InputError(f"{name}: all spectra have the same {column!r}, so it cannot be cut; leave it out")
        edges[column] = cut
    return edges


def _find_problem(binning: Binning, config: ExperimentConfig, sets: SpectraSets) -> str:
    """Say why a binning cannot be answered, nothing if it can."""
    counts = {}
    for role, part in (("train", sets.train), ("test", sets.test)):
        counts[role] = np.zeros(binning.n_bins, np.int64)
        for _, columns in part.iter_columns(binning.base.columns):
            bins = binning.assign(columns)
            counts[role] += np.bincount(bins[bins != OUTSIDE], minlength=binning.n_bins)
    starved = int(np.argmin(counts["train"]))
    if counts["train"][starved] < config.ridge.min_spectra:
        return (
            f"{binning.describe(starved)} has {counts['train'][starved]} training spectra, at least "
            f"{config.ridge.min_spectra} are required for an expert (ridge.min_spectra); move its edges"
        )
    if counts["test"].sum() < 2:
        return "fewer than two test spectra lie in its bins; move its edges"
    empty = np.flatnonzero(counts["test"] == 0)
    return f"no test spectrum lies in {binning.describe(int(empty[0]))}; move its edges" if empty.size else ""
