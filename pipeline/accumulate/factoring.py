"""The moments of every training noise of a run: dense where noise is drawn, factored where it was integrated out.

A basis is chosen before the pass, from a sample that is spread over all stores and all noise levels. The pass judges it
on check rows that it did not see. Where it fails, it is extended by the rows that it says least about, and the pass is
made again; where no small basis will do, moments are dense.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.accumulate.checkpoints import MomentsFolder, find_saved_folds
from pipeline.accumulate.hotloop import available_threads
from pipeline.accumulate.plan import AccumulationPlan
from pipeline.config import ComputeConfig, content_hash
from pipeline.errors import InputError
from pipeline.moments import (
    BASIS_FILE,
    CHECK_EVERY,
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
from pipeline.noise import Noise, Scatter
from pipeline.store import AnyStore, first_store

__all__ = ["Factoring", "accumulate_noises", "count_sampled", "decide_factoring", "expect_factored"]

FloatArray = NDArray[np.float64]
_PIXELS = ("flux", "error")
#: Sampled spectra for the choice of a basis of one noise level; several have half as many more. They come from so many
#: windows of so many rows, because a chunk that is decoded for one row is decoded for all.
SAMPLE_SPECTRA, WINDOWS, WINDOW_ROWS = 8192, 32, 1024
#: One of so many sampled spectra tells of the classes of noise.
_ERRORS_EVERY = 4
#: With fewer pixels a dense matrix is small anyway.
_FEWEST_PIXELS = 640
#: Times that a basis is extended before moments are dense.
_MOST_ROUNDS = 3
#: What a basis that failed is enlarged by, besides the rows that it says least about; and the share of the tolerance
#: that may be left without these rows if they alone are to extend it.
_GROWTH, _SPARED = 1.25, 0.5


@dataclass(frozen=True, eq=False)
class Factoring:
    """How the moments of a run's noises are kept.

    Attributes
    ----------
    of_noise
        The basis of each noise whose moments are factored. All have the same, unless check rows of one have failed it.
    reasons
        Why others that could have been factored are not.
    checks
        What check rows say of each factored noise after the pass, by its name.
    """

    of_noise: Mapping[Noise, Basis] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    checks: Mapping[str, Check] = field(default_factory=dict)

    @property
    def bases(self) -> dict[Noise, str]:
        """The digest of the basis of every factored noise, as :func:`pipeline.accumulate_moments` takes it."""
        return {noise: basis.digest for noise, basis in self.of_noise.items()}

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
    spared
        About what would be lost if it told these rows.
    """

    cell: int
    lost: float
    single: float
    n_check: int
    rows: tuple[int, ...]
    spared: float


def expect_factored(noises: Sequence[Noise], n_pixels: int, compute: ComputeConfig) -> list[Noise]:
    """Return the noises whose moments will be factored, if a small basis will do."""
    if not _may_factor(n_pixels, compute):
        return []
    return [noise for noise in noises if not noise.is_single and noise.level > 0]


def count_sampled(n_noises: int) -> int:
    """Return the spectra that the choice of a basis reads at most."""
    return SAMPLE_SPECTRA if n_noises == 1 else SAMPLE_SPECTRA * 3 // 2


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
        found = ((noise, _find_saved_basis(folder / noise.name, made_for)) for noise in noisy)
        saved = {noise: basis for noise, basis in found if basis is not None}
        if len(saved) == len(noisy):
            return Factoring(saved, tuple(reasons))
        largest = store.n_pixels if compute.moments == "factored" else store.n_pixels // 4
        sample = _read_sample(plan, store, noisy, with_errors=noise_classes > 1)
        basis, lost = choose_basis(sample, first_store(store).mean_flux, compute.rank_tolerance, largest)
        if lost <= compute.rank_tolerance or compute.moments == "factored":
            if noise_classes > 1:
                basis = replace(basis, edges=find_class_edges(sample.errors, basis, noise_classes))
            for noise in noisy:
                _leave_basis(folder / noise.name, basis, made_for)
            return Factoring(dict.fromkeys(noisy, basis), tuple(reasons))
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


def _find_saved_basis(folder: Path, made_for: str) -> Basis | None:
    found = find_basis(folder)
    return found[0] if found is not None and found[1].get("made_for") == made_for else None


def _leave_basis(folder: Path, basis: Basis, made_for: str) -> None:
    """Write a basis beside the moments of a noise. Those of another basis go: nothing can be added to them."""
    found = find_basis(folder)
    if (folder / BASIS_FILE).exists() and (found is None or found[0].digest != basis.digest):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_basis(folder, basis, {"made_for": made_for})


def _read_sample(
    plan: AccumulationPlan, store: AnyStore, noises: Sequence[Noise], *, with_errors: bool = False
) -> Sample:
    """Read spectra that are spread over all shards, each under one noise; each noise and cell is a group.

    The lowest noise asks for the most directions, so half of the spectra have it. The highest one clips the most
    pixels, which asks for directions of its own, so a quarter have that.
    """
    origin, cells = first_store(store).mean_flux, plan.cells
    n_cells, n_pixels, ranked = cells.n_cells, store.n_pixels, sorted(noises, key=lambda noise: noise.level)
    kernels = [noise.kernel(np.dtype(np.float32)) for noise in ranked]
    windows = list(_list_windows(store.n_spectra, count_sampled(len(noises))))
    n_rows = sum(len(rows) for *_, rows in windows)
    numbers = np.arange(n_rows)
    last = len(ranked) - 1
    of_noise = np.choose(numbers % 4, [0, 0, last, 1 + numbers // 4 % (last - 1) if last > 1 else last])
    # In single precision: what rounding hides is far below the noise. The basis itself is computed in double.
    means, groups = np.empty((n_rows, n_pixels), np.float32), np.empty(n_rows, np.int64)
    errors = np.empty((-(-n_rows // _ERRORS_EVERY) if with_errors else 0, n_pixels), np.float32)
    buffers: SimpleQueue[NDArray[np.float32]] = SimpleQueue()

    def read(start: int, stop: int, rows: NDArray[np.int64], begin: int) -> tuple[NDArray[np.int64], FloatArray]:
        """Fill the places of one window; return its groups, and their sums of variances."""
        place = slice(begin, begin + len(rows))
        buffer = buffers.get()
        try:
            flux, error = (
                store.read_rows(name, start, stop, own)[rows] for name, own in zip(_PIXELS, buffer, strict=True)
            )
        finally:
            buffers.put(buffer)  # another window may wait for it, even after an error
        own_cells = cells.cells(store.read_columns(list(cells.columns), start, stop))[rows]
        groups[place] = own_cells + of_noise[place] * n_cells
        present, own_groups = np.unique(groups[place], return_inverse=True)
        sums = np.zeros((len(present), n_pixels))
        for k, kernel in enumerate(kernels):
            members = np.flatnonzero(of_noise[place] == k)
            found = np.empty((1, len(members), n_pixels), np.float32)
            scatter = Scatter(
                flux[members], error[members], start, origin.astype(np.float32), np.zeros(len(members), np.int64),
                np.arange(len(members)), found, sums, own_groups[members],
            )  # fmt: skip
            for part in kernel.split(scatter, 1):
                part()
            means[begin + members] = found[0]
        if with_errors:
            told = np.flatnonzero(numbers[place] % _ERRORS_EVERY == 0)
            errors[(begin + told) // _ERRORS_EVERY] = error[told]
        return present, sums

    noise = np.zeros((len(ranked) * n_cells, n_pixels))
    n_threads = available_threads()
    for _ in range(n_threads):
        buffers.put(np.empty((len(_PIXELS), WINDOW_ROWS, n_pixels), np.float32))
    begins = np.cumsum([0, *(len(rows) for *_, rows in windows)])
    # Most of the time goes into decoding chunks; threads do it side by side.
    with ThreadPoolExecutor(n_threads, "sample") as threads:
        jobs = [(*window, int(begin)) for window, begin in zip(windows, begins, strict=False)]
        for present, sums in threads.map(lambda job: read(*job), jobs):
            noise[present] += sums
    return Sample(means, groups, noise, errors)


def _list_windows(n_spectra: int, wanted: int) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Yield windows of rows that are evenly spread: first row, one past the last, and the sampled rows in each.

    Where not all rows are sampled, no check row is: check rows shall judge what they have no part in.
    """
    n_windows = -(-n_spectra // WINDOW_ROWS)
    n_chosen = n_windows if n_spectra <= wanted else min(n_windows, WINDOWS)
    share = -(-wanted // n_chosen)
    for k in range(n_chosen):
        start = k * n_windows // n_chosen * WINDOW_ROWS
        stop = min(start + WINDOW_ROWS, n_spectra)
        size = stop - start
        if share >= size:
            yield start, stop, np.arange(size)
            continue
        rows = np.arange(share) * size // share
        rows = np.unique(rows + ((start + rows) % CHECK_EVERY == 0))
        yield start, stop, rows[rows < size]


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
    checks: dict[str, Check] = {}
    for rounds in range(_MOST_ROUNDS + 1):
        if not factoring.of_noise:
            break
        # The first pass serves all noises. Later ones are for those whose basis has changed.
        missing = [noise for noise in noises if noise not in found]
        found |= dict(zip(missing, run(missing, factoring.bases), strict=True))
        own = {noise: basis for noise, basis in factoring.of_noise.items() if noise in missing}
        checks |= {noise.name: _check(found[noise], basis) for noise, basis in own.items()}
        failed = {noise: checks[noise.name].failures(compute.rank_tolerance) for noise in own}
        failed = {noise: cells for noise, cells in failed.items() if cells}
        if not failed:
            break
        noise, worst = max(
            ((noise, cell) for noise, cells in failed.items() for cell in cells),
            key=lambda failure: max(failure[1].lost, failure[1].single),
        )
        rank, lost = factoring.of_noise[noise].rank, max(worst.lost, worst.single)
        what = f"a basis of rank {rank} loses up to {lost:.1e} of R² (noise level {noise.level:g}, cell {worst.cell})"
        if rounds == _MOST_ROUNDS or (compute.moments == "auto" and rank > store.n_pixels // 4):
            note(f"{what}: dense")
            for noise in factoring.of_noise:
                shutil.rmtree(folder / noise.name)
                del found[noise]
            factoring, checks = Factoring(reasons=(*factoring.reasons, f"{what}: dense")), {}
            break
        note(f"{what}: it is extended, once more")
        made_for = _state_purpose(plan, tuple(factoring.of_noise), compute, noise_classes)
        extended = _extend(factoring, failed, plan, store, compute)
        for noise, basis in extended.items():
            _leave_basis(folder / noise.name, basis, made_for)
            del found[noise]
        factoring = replace(factoring, of_noise={**factoring.of_noise, **extended})
    factoring = replace(factoring, checks=checks)
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
            worst = rows[kept].astype(int)
            of_worst = float(energies[kept][worst % CHECK_EVERY == 0].sum())
            of_all = float((own.residual / basis.variance).sum())
            spared = lost * max(0.0, 1 - of_worst / of_all) if of_all > 0 else 0.0
            found.append(CellCheck(cell, lost, single, own.n_check, tuple(worst.tolist()), spared))
    return Check(made.draw, basis, tuple(found))


def _extend(
    factoring: Factoring,
    failed: Mapping[Noise, Sequence[CellCheck]],
    plan: AccumulationPlan,
    store: AnyStore,
    compute: ComputeConfig,
) -> dict[Noise, Basis]:
    """Return larger bases, which span the rows of the failures, and if these are not all, more of the sample."""
    origin, larger, extended = first_store(store).mean_flux, None, {}
    for noise, cells in failed.items():
        basis = factoring.of_noise[noise]
        if max(cell.spared for cell in cells) > _SPARED * compute.rank_tolerance:
            if larger is None:
                rank = math.ceil(_GROWTH * max(factoring.of_noise[one].rank for one in failed) / 16) * 16
                sample = _read_sample(plan, store, tuple(factoring.of_noise))
                larger, _ = choose_basis(sample, origin, compute.rank_tolerance, store.n_pixels, rank)
            basis = replace(larger, edges=basis.edges)
        wanted = sorted({row for cell in cells for row in cell.rows})
        rows = [noise.read(store, row, row + 1, "float64")[0][0] - origin for row in wanted]
        extended[noise] = extend_basis(basis, np.array(rows)) if rows else basis
    return extended
