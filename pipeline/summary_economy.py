"""How many models one pass yielded, and what fitting each from the spectra again would have cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.binnings import MAIN
from pipeline.models import ExpertModels

if TYPE_CHECKING:
    from pipeline.summary import ScoredRun

__all__ = ["count_models"]


def count_models(run: ScoredRun, steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the number of distinct models of a run, and the time of reading their training spectra once for each.

    Parameters
    ----------
    run
        All that was scored; models of one noise are counted once however many test noises there are.
    steps
        The run's steps with their seconds: the time of the pass is measured, and multiplied by the spectra of every
        model over those of the pass. Solving, which costs the same either way, is not counted.

    Returns
    -------
    dict
        ``models`` (each for ``labels`` labels), ``passes`` (reads' worth of training spectra, one for each noise) and
        ``refit_seconds``, None where the pass was an earlier run's.
    """
    noises = {one.draw.name: one for one in (*run.draws, *run.compared)}
    counts = [count for one in noises.values() for count in _iter_counts(one.models)]
    binnings = {(one.draw.draw.name, one.binning.name): one for one in run.binnings if one.binning.name != MAIN}
    counts += [int(count) for one in binnings.values() for count in one.models.expert_counts]
    passed = sum(one.models[-1].global_count for one in noises.values())
    accumulated = next((step for step in steps if step["name"] == "accumulate"), None)
    measured = accumulated is not None and not accumulated["skipped"]
    return {
        "models": len(counts),
        "labels": len(run.draws[0].models[-1].labels),
        "passes": len(noises),
        "refit_seconds": accumulated["seconds"] * sum(counts) / passed if measured and accumulated else None,
    }


def _iter_counts(prefixes: Sequence[ExpertModels]) -> Iterator[int]:
    """Yield the training spectra of every model: along the learning curve, and of every trial of a search."""
    for models in prefixes:
        yield from _count_one(models)
    whole, search = prefixes[-1], prefixes[-1].search
    if search is not None:
        n_folds, n_alphas = search.sse.shape[1:3]
        for count in _count_one(whole):
            yield from [count] * (n_alphas - 1)  # the chosen one is counted above
            yield from [count * (n_folds - 1) // n_folds] * (n_folds * n_alphas)


def _count_one(models: ExpertModels) -> list[int]:
    return [models.global_count, *models.expert_counts.tolist()]
