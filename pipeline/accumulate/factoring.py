"""The moments of every training noise of a run: dense where noise is drawn, factored where it was integrated out.

A basis is chosen before the pass, from a sample that is spread over all stores and all noise levels. The pass judges it
on check rows that it did not see. Where it fails, it is extended by the rows that it says least about, and the pass is
made again; where no small basis will do, moments are dense.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.accumulate.checkpoints import MomentsFolder, find_saved_folds
from pipeline.accumulate.hotloop import available_threads
from pipeline.accumulate.plan import AccumulationPlan
from pipeline.bins import shard_ranges, spread_rows
from pipeline.config import ComputeConfig, content_hash
from pipeline.errors import InputError
from pipeline.moments import (
    BASIS_FILE,
    Basis,
    FactoredMoments,
    Moments,
    Sample,
    choose_basis,
    extend_basis,
    find_basis,
    find_class_edges,
    write_basis,
)
from pipeline.noise import Noise
from pipeline.store import AnyStore, first_store

__all__ = ["SAMPLE_SPECTRA", "Factoring", "accumulate_noises", "decide_factoring", "expect_factored"]

#: Sampled spectra for the choice of a basis, over all noise levels; and how many of them follow each other.
SAMPLE_SPECTRA, _RUN_ROWS = 3072, 64
#: With fewer pixels a dense matrix is small anyway.
_FEWEST_PIXELS = 640
#: Times that a basis is extended before moments are dense.
_MOST_ROUNDS = 3
#: What a basis that failed is enlarged by, besides the rows that it says least about.
_GROWTH = 1.25


@dataclass(frozen=True, eq=False)
class Factoring:
    """How the moments of a run's noises are kept.

    Attributes
    ----------
    basis
        Of the factored ones; None if there are none.
    noises
        The noises whose moments are factored.
    reasons
        Why others that could have been factored are not.
    checks
        What check rows say of each factored noise after the pass, by its name.
    """

    basis: Basis | None = None
    noises: tuple[Noise, ...] = ()
    reasons: tuple[str, ...] = ()
    checks: Mapping[str, Check] = field(default_factory=dict)

    @property
    def bases(self) -> dict[Noise, str]:
        """The digest of the basis of every factored noise, as :func:`pipeline.accumulate_moments` takes it."""
        return {} if self.basis is None else dict.fromkeys(self.noises, self.basis.digest)

    def plan_for(self, plan: AccumulationPlan, noise: Noise) -> AccumulationPlan:
        """Return the plan of one noise's pass."""
        return replace(plan, basis=self.bases.get(noise, ""))

    def find_saved_folds(self, plan: AccumulationPlan, noises: Sequence[Noise], folder: Path) -> set[int]:
        """Return the folds whose moments are on disk for all noises."""
        saved = (find_saved_folds(self.plan_for(plan, noise), folder / noise.name) for noise in noises)
        return set(range(len(plan.folds))).intersection(*saved)

    def describe(self) -> dict[str, Any]:
        """Return what a run records: rank, bound and check rows of every factored noise, and why others are dense."""
        noises = {
            name: {
                "rank": check.basis.rank,
                "basis": check.basis.digest,
                "lost_r2_at_most": max((cell.lost for cell in check.cells), default=0.0),
                "check_rows": sum(cell.n_check for cell in check.cells),
            }
            for name, check in self.checks.items()
        }
        return {"noises": noises, "dense_because": list(self.reasons)}


@dataclass(frozen=True, eq=False)
class Check:
    """What check rows say of a basis under one noise: an entry for every cell that has spectra."""

    noise: Noise
    basis: Basis
    cells: tuple[CellCheck, ...]

    def failures(self, tolerance: float) -> list[CellCheck]:
        """Return the cells in which check rows, or a single row, lose more than the tolerance."""
        return [cell for cell in self.cells if not max(cell.lost, cell.single) <= tolerance]


@dataclass(frozen=True)
class CellCheck:
    """What a basis loses in one cell.

    Attributes
    ----------
    cell
        Which.
    lost
        The bound on the R² that is lost. A cell without check rows takes that of all cells together.
    single
        The same for the worst single row alone: its residual, held against the noise of all rows of its cell.
    n_check
        Check rows.
    rows
        The rows that the basis says least about.
    """

    cell: int
    lost: float
    single: float
    n_check: int
    rows: tuple[int, ...]


def expect_factored(noises: Sequence[Noise], n_pixels: int, compute: ComputeConfig) -> list[Noise]:
    """Return the noises whose moments will be factored, if a small basis will do."""
    if not _may_factor(n_pixels, compute):
        return []
    return [noise for noise in noises if not noise.is_single and noise.level > 0]


def _may_factor(n_pixels: int, compute: ComputeConfig) -> bool:
    return compute.moments == "factored" or (compute.moments == "auto" and n_pixels >= _FEWEST_PIXELS)


def decide_factoring(
    plan: AccumulationPlan,
    store: AnyStore,
    noises: Sequence[Noise],
    folder: Path,
    compute: ComputeConfig,
    noise_classes: int = 1,
) -> Factoring:
    """Decide which moments are factored, and choose their basis, or take the one that an earlier pass has left.

    Parameters
    ----------
    plan
        Of the pass.
    store
        The training spectra. Shards that are left out are sampled, too: runs that share the work then share the basis.
    noises
        Of the training.
    folder
        Of all moments.
    compute
        ``moments`` and ``rank_tolerance``.
    noise_classes
        Into how many classes of like noise the spectra of a cell are divided.

    Raises
    ------
    InputError
        If factored moments are asked for and there is no noise that was integrated out.
    """
    marginal = [noise for noise in noises if not noise.is_single]
    if compute.moments == "factored" and not marginal:
        raise InputError(
            "compute.moments: factored needs noise.mode: marginal or both, found drawn noise alone, whose Gram matrix "
            "has full rank; use compute.moments: auto"
        )
    noisy = tuple(expect_factored(noises, store.n_pixels, compute))
    if noisy and compute.moments == "auto" and any(find_saved_folds(plan, folder / noise.name) for noise in noisy):
        return Factoring(reasons=("dense moments are there already: dense",))
    has_silent = _may_factor(store.n_pixels, compute) and len(noisy) < len(marginal)
    reasons = ["without noise there is nothing that a basis may leave out: dense"] if has_silent else []
    while noisy:
        made_for = _state_purpose(plan, noisy, compute, noise_classes)
        for noise in noisy:
            found = find_basis(folder / noise.name)
            if found is not None and found[1].get("made_for") == made_for:
                return Factoring(found[0], noisy, tuple(reasons))
        largest = store.n_pixels if compute.moments == "factored" else store.n_pixels // 4
        sample = _read_sample(plan, store, noisy)
        basis, lost = choose_basis(sample, first_store(store).mean_flux, compute.rank_tolerance, largest)
        if lost <= compute.rank_tolerance or compute.moments == "factored":
            basis = _divide(basis, store, noisy, noise_classes)
            for noise in noisy:
                _leave_basis(folder / noise.name, basis, made_for)
            return Factoring(basis, noisy, tuple(reasons))
        least = min(noisy, key=lambda noise: noise.level)
        reasons.append(
            f"at noise level {least.level:g} a basis of rank {basis.rank} would lose up to {lost:.1e} of R², more than "
            f"compute.rank_tolerance ({compute.rank_tolerance:g}): dense"
        )
        noisy = tuple(noise for noise in noisy if noise is not least)
    return Factoring(reasons=tuple(reasons))


def _state_purpose(plan: AccumulationPlan, noises: Sequence[Noise], compute: ComputeConfig, noise_classes: int) -> str:
    """Return what a basis is made for: a later pass with the same settings takes it as it is."""
    return content_hash([plan.settings, [noise.name for noise in noises], compute.rank_tolerance, noise_classes])


def _leave_basis(folder: Path, basis: Basis, made_for: str) -> None:
    """Write a basis beside the moments of a noise. Those of another basis go: nothing can be added to them."""
    found = find_basis(folder)
    if (folder / BASIS_FILE).exists() and (found is None or found[0].digest != basis.digest):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_basis(folder, basis, {"made_for": made_for})


def _read_sample(plan: AccumulationPlan, store: AnyStore, noises: Sequence[Noise]) -> Sample:
    """Read spectra that are spread over all shards, under every noise; each noise and cell is a group."""
    origin, cells = first_store(store).mean_flux, plan.cells
    runs = _sampled_rows(store, noises)
    lengths = [len(noises) * (stop - start) for start, stop in runs]
    shape = (sum(lengths), store.n_pixels)
    # In single precision: what rounding hides is far below the noise. The basis itself is computed in double.
    sample = Sample(np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape[0], np.int64))

    def read(run: tuple[int, int], begin: int) -> None:
        own = cells.cells(store.read_columns(list(cells.columns), *run))
        for k, noise in enumerate(noises):
            place = slice(begin + k * len(own), begin + (k + 1) * len(own))
            rows, spread = noise.read(store, *run, "float64")
            sample.means[place], sample.variances[place] = rows - origin, spread
            sample.groups[place] = own + k * cells.n_cells

    # Most of the time goes into chunks of which a few rows are wanted; threads decode them side by side.
    with ThreadPoolExecutor(available_threads(), "sample") as threads:
        list(threads.map(read, runs, np.cumsum([0, *lengths[:-1]]).tolist()))
    return sample


def _sampled_rows(store: AnyStore, noises: Sequence[Noise]) -> list[tuple[int, int]]:
    spans = [(a, b) for a, b in shard_ranges(store.shard_lengths) if a < b]
    return spread_rows(spans, max(_RUN_ROWS, SAMPLE_SPECTRA // len(noises)), _RUN_ROWS)


def _divide(basis: Basis, store: AnyStore, noises: Sequence[Noise], n_classes: int) -> Basis:
    """Return a basis with the edges of noise classes, which the errors of the sampled spectra give."""
    if n_classes == 1:
        return basis
    errors = [store.read_rows("error", start, stop) for start, stop in _sampled_rows(store, noises)]
    return replace(basis, edges=find_class_edges(np.concatenate(errors), basis, n_classes))


def accumulate_noises(
    plan: AccumulationPlan,
    factoring: Factoring,
    store: AnyStore,
    noises: Sequence[Noise],
    folder: Path,
    compute: ComputeConfig,
    run: Callable[[Sequence[Noise], Mapping[Noise, str]], list[MomentsFolder]],
    note: Callable[[str], None],
    noise_classes: int = 1,
) -> tuple[list[MomentsFolder], Factoring]:
    """Make the passes of all noises, and extend the basis until check rows agree with it.

    Parameters
    ----------
    plan, store, noises, folder, compute
        See :func:`decide_factoring`.
    factoring
        What it decided.
    run
        Makes the pass of some noises; it is told the digest of the basis of those whose moments are factored.
    note
        Told when a basis is extended or given up.
    noise_classes
        See :func:`decide_factoring`.

    Returns
    -------
    list of MomentsFolder
        One for each noise, in order.
    Factoring
        What was decided in the end.
    """
    found: dict[Noise, MomentsFolder] = {}
    for rounds in range(_MOST_ROUNDS + 1):
        basis = factoring.basis
        if basis is None or not factoring.noises:
            break
        # The first pass serves all noises. Later ones are for those whose basis has changed.
        missing = [noise for noise in noises if noise not in found or noise in factoring.noises]
        found |= dict(zip(missing, run(missing, factoring.bases), strict=True))
        checks = {noise.name: _check(found[noise], basis) for noise in factoring.noises}
        failed = [(check.noise, cell) for check in checks.values() for cell in check.failures(compute.rank_tolerance)]
        if not failed:
            factoring = replace(factoring, checks=checks)
            break
        noise, worst = max(failed, key=lambda failure: max(failure[1].lost, failure[1].single))
        lost = max(worst.lost, worst.single)
        where = f"noise level {noise.level:g}, cell {worst.cell}"
        if rounds == _MOST_ROUNDS or (compute.moments == "auto" and basis.rank > store.n_pixels // 4):
            reason = f"a basis of rank {basis.rank} loses up to {lost:.1e} of R² ({where}): dense"
            note(reason)
            for noise in factoring.noises:
                shutil.rmtree(folder / noise.name)
                del found[noise]
            factoring = Factoring(reasons=(*factoring.reasons, reason))
            break
        note(f"a basis of rank {basis.rank} loses up to {lost:.1e} of R² ({where}): it is extended, once more")
        extended = _extend(basis, plan, store, factoring.noises, failed, compute)
        made_for = _state_purpose(plan, factoring.noises, compute, noise_classes)
        for noise in factoring.noises:
            _leave_basis(folder / noise.name, extended, made_for)
        factoring = replace(factoring, basis=extended)
    rest = [noise for noise in noises if noise not in found]
    if rest:
        found |= dict(zip(rest, run(rest, {}), strict=True))
    return [found[noise] for noise in noises], factoring


def _check(made: MomentsFolder, basis: Basis) -> Check:
    cells = [own for own in made.totals() if isinstance(own, FactoredMoments)]
    whole = Moments.merge(cells)
    assert isinstance(whole, FactoredMoments)
    found = []
    for cell, own in enumerate(cells):
        if own.count:
            rows, energies = own.worst.T
            kept = (energies > max(0.0, 0.01 * float(energies[0]))) & (rows >= 0)
            lost = own.lost if own.n_check else whole.lost
            single = float(energies[0]) / own.count
            found.append(CellCheck(cell, lost, single, own.n_check, tuple(rows[kept].astype(int).tolist())))
    return Check(made.draw, basis, tuple(found))


def _extend(
    basis: Basis,
    plan: AccumulationPlan,
    store: AnyStore,
    noises: Sequence[Noise],
    failed: Sequence[tuple[Noise, CellCheck]],
    compute: ComputeConfig,
) -> Basis:
    """Return a larger basis of the sample that also spans the rows of the failures."""
    origin = first_store(store).mean_flux
    rank = math.ceil(_GROWTH * basis.rank / 16) * 16
    sample = _read_sample(plan, store, noises)
    larger, _ = choose_basis(sample, origin, compute.rank_tolerance, store.n_pixels, rank)
    wanted = sorted({(noise.level, row) for noise, cell in failed for row in cell.rows})
    by_level = {noise.level: noise for noise in noises}
    rows = [by_level[level].read(store, row, row + 1, "float64")[0][0] - origin for level, row in wanted]
    extended = extend_basis(larger, np.array(rows)) if rows else larger
    return _divide(extended, store, noises, basis.n_classes)
