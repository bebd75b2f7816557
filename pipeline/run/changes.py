"""Spectra added to a finished run, or a shard taken out of it: only folds that the change concerns are computed.

Until the new results are written, the old ones stand, and so does the run's own ``config.yaml``: the run writes it with
its results. So an interrupted change is finished by the same command again, and a change that turns out to be
impossible has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipeline.base import PathLike, Progress, SilentProgress, list_paths
from pipeline.config import ExperimentConfig, load_config, with_absolute_paths
from pipeline.convert import find_sources
from pipeline.errors import InputError
from pipeline.run.experiment import limits_of_workers, plan_experiment, run_experiment
from pipeline.run.folder import CONFIG_FILE, whole_run_folder
from pipeline.run.spectra import SetHeader, SpectraSets, check_addition, fix_edges, open_or_convert
from pipeline.scoring import RunResults, read_results
from pipeline.store import find_left_out, find_stores, match_shards, open_stores, select_shards

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["add_spectra", "describe_reuse", "remove_shard"]


def add_spectra(
    folder: str | Path,
    sources: PathLike | Sequence[PathLike],
    *,
    client: Client | None = None,
    convert_workers: int | None = None,
    progress: Progress | None = None,
    command: str | None = None,
) -> RunResults:
    """Add spectra to the training set of a finished run, and bring all its results up to date.

    The results are those of a run from scratch with the configuration that the run folder then holds: bit for bit,
    since folds whose rows stay are the same bits, and all others are computed as they would be.

    Parameters
    ----------
    folder
        The run folder.
    sources
        Shards, which become a store of their own below ``data.stores``; or stores. Either may be folders or globs. A
        shard that was taken out comes back; where no file has its name, the name will do, as :func:`remove_shard`
        takes it.
    client, convert_workers, progress, command
        See :func:`pipeline.run_experiment`.

    Returns
    -------
    RunResults
        ``metadata["folds"]`` tells which were reused, see :func:`describe_reuse`.

    Raises
    ------
    InputError, ConfigError
        If the run is not finished, or the spectra do not fit it or are in it already.
    ResourceError
        If memory, disk or workers do not suffice.
    """
    report, named = progress or SilentProgress(), [str(source) for source in list_paths(sources)]

    def change(standing: _Standing) -> ExperimentConfig:
        return _plan_addition(standing, named, report, convert_workers)

    return _change_run(Path(folder), change, client, report, command)


def remove_shard(
    folder: str | Path,
    name: str,
    *,
    client: Client | None = None,
    progress: Progress | None = None,
    command: str | None = None,
) -> RunResults:
    """Take a shard out of the training set of a finished run, and bring all its results up to date.

    Its store stays where it is, and its rows are counted, so that all other spectra keep their noise. Its moments are
    deleted.

    Parameters
    ----------
    folder
        The run folder.
    name
        Of the shard, as ``train_2/dataset.h5`` or ``train_2``.
    client, progress, command
        See :func:`pipeline.run_experiment`.

    Raises
    ------
    InputError, ConfigError
        If the run is not finished, there is no such shard in it, or nothing would be left.
    ResourceError
        If memory, disk or workers do not suffice.
    """

    def change(standing: _Standing) -> ExperimentConfig:
        return _plan_removal(standing, name)

    return _change_run(Path(folder), change, client, progress or SilentProgress(), command)


def describe_reuse(results: RunResults) -> str:
    """Return which folds of a run were there already and which had to be computed, in a sentence for people."""
    folds = results.metadata["folds"]
    reused = set(folds["reused"])
    computed = [k for k in range(folds["total"]) if k not in reused]
    text = f"folds: {len(reused)} of {folds['total']} reused{_list_folds(sorted(reused))}"
    text += f", {len(computed)} computed{_list_folds(computed)}"
    cut = results.metadata["config"]["compute"]["folds"]
    if cut != "shards":
        text += f"; with compute.folds: {cut} shards are grouped anew, `compute.folds: shards` computes new ones only"
    return text


def _list_folds(numbers: Sequence[int]) -> str:
    return f" ({', '.join(map(str, numbers))})" if 0 < len(numbers) <= 12 else ""


@dataclass(frozen=True)
class _Standing:
    """A finished run: the configuration of its results, with its training set as stores, and its spectra."""

    config: ExperimentConfig
    sets: SpectraSets

    @property
    def names(self) -> list[str]:
        """Names of the shards that are not left out."""
        train = self.sets.train
        return [name for k, name in enumerate(train.shard_names) if k not in find_left_out(train)]


def _change_run(
    folder: Path,
    change: Callable[[_Standing], ExperimentConfig],
    client: Client | None,
    progress: Progress,
    command: str | None,
) -> RunResults:
    earlier = read_results(folder)  # before anything is written: it may be no run folder
    with whole_run_folder(folder):
        finished = _read_config(earlier)
        wanted = with_absolute_paths(load_config(folder / CONFIG_FILE))
        finished = finished.model_copy(update={"cluster": wanted.cluster})  # no results depend on it, so none name it
        standing = _open_standing(finished, earlier, progress)
        changed = change(standing)
        if wanted not in (finished, changed):
            raise InputError(
                f"{folder / CONFIG_FILE} is not what the results of this run were made with: an earlier change was "
                f"interrupted, or it was edited; finish with `headroom run {folder / CONFIG_FILE} --out {folder}` first"
            )
        plan = plan_experiment(changed, limits_of_workers(client))
        plan.require_fit(folder, Path(changed.data.stores))
    return run_experiment(changed, folder, client=client, progress=progress, command=command)


def _read_config(results: RunResults) -> ExperimentConfig:
    try:
        return with_absolute_paths(ExperimentConfig.model_validate(results.metadata["config"]))
    except (KeyError, ValidationError):
        raise InputError(
            f"run folder {results.folder}: its configuration is not understood, so another version wrote it; run it "
            "again from its configuration file"
        ) from None


def _open_standing(config: ExperimentConfig, results: RunResults, progress: Progress) -> _Standing:
    """Open a run's spectra from the stores it used: its shards may be gone."""
    paths = {role: tuple(results.metadata["stores"][role]["paths"]) for role in ("train", "test")}
    if config.data.spectra is not None:
        raise InputError(
            f"run folder {results.folder}: data.spectra takes a part of the training spectra "
            f"({config.data.spectra:,}), which would be another one with other shards; change data.train, and run again"
        )
    stated = with_absolute_paths(_with_data(config, **paths)).data
    sets = SpectraSets(select_shards(open_stores(stated.train), config.data.exclude), open_stores(stated.test))
    config = _with_data(config, train=stated.train)
    fixed = fix_edges(config, sets)
    if fixed != config:
        progress.note("quantiles are kept as the edges that they were, so that moments stay of use")
    return _Standing(fixed, sets)


def _with_data(config: ExperimentConfig, **values: Any) -> ExperimentConfig:
    return config.model_copy(update={"data": config.data.model_copy(update=values)})


def _plan_addition(
    standing: _Standing, sources: Sequence[str], progress: Progress, workers: int | None
) -> ExperimentConfig:
    """Return the configuration with the new spectra; converts them if they are shards."""
    config, train = standing.config, standing.sets.train
    known = {source.fingerprint: k for k, source in enumerate(train.sources)}
    left_out = find_left_out(train)
    if named := _find_by_name(sources, train.shard_names, left_out):
        return _with_data(config, exclude=tuple(train.shard_names[k] for k in left_out if k not in named))
    new, header = _describe_sources(sources, config)
    if all(known.get(fingerprint) in left_out for fingerprint in new):
        back = {known[fingerprint] for fingerprint in new}
        still = tuple(train.shard_names[k] for k in left_out if k not in back)
        return _with_data(config, exclude=still)
    for fingerprint, name in new.items():
        if fingerprint in known:
            state = "was taken out of" if known[fingerprint] in left_out else "is in"
            raise InputError(
                f"shard {name} {state} the training set already (as {train.shard_names[known[fingerprint]]}, "
                f"fingerprint {fingerprint[:12]}); every spectrum may count once only, so leave it out"
                + (" here and add it by itself" if known[fingerprint] in left_out else "")
            )
        if name in train.shard_names:
            raise InputError(
                f"the training set has a shard called {name} already, and shards are told apart by name; rename the "
                "folder of the new one" + ("" if find_stores(sources) else " and convert it again")
            )
    check_addition(*standing.sets.headers, header, config)
    added = open_or_convert(sources, header, config.data, progress, workers)
    return with_absolute_paths(_with_data(config, train=(*config.data.train, *map(str, added.paths))))


def _find_by_name(sources: Sequence[str], names: Sequence[str], left_out: Sequence[int]) -> set[int]:
    """Return the shards that were taken out and that the sources name; none if a source is a file or anything else.

    InputError if all of them name shards, and one of these is in the training set.
    """
    found = [[k for k, name in enumerate(names) if source in (name, name.rpartition("/")[0])] for source in sources]
    if any(Path(source).exists() for source in sources) or any(len(one) != 1 for one in found):
        return set()
    numbers = {number for (number,) in found}
    if present := sorted(numbers.difference(left_out)):
        raise InputError(f"shard {names[present[0]]} is in the training set already; leave it out of what is added")
    return numbers


def _describe_sources(sources: Sequence[str], config: ExperimentConfig) -> tuple[dict[str, str], SetHeader]:
    """Return the names of shards by their fingerprints, and what is known of their spectra."""
    plain = _with_data(config, exclude=())
    if stores := find_stores(sources):
        store = open_stores(stores)
        return {one.fingerprint: one.name for one in store.sources}, SetHeader.of_store("train", store)
    header = SetHeader.of_shards("train", find_sources(sources, Path.cwd()), plain)
    return {info.fingerprint: "/".join(info.path.parts[-2:]) for info in header.shards}, header


def _plan_removal(standing: _Standing, name: str) -> ExperimentConfig:
    config, train = standing.config, standing.sets.train
    listed = f"its shards are {', '.join(standing.names)}"
    found = [k for k, full in enumerate(train.shard_names) if name in (full, full.rpartition("/")[0])]
    if not found or set(found) <= set(find_left_out(train)):
        state = "was taken out already" if found else "is not in the training set"
        raise InputError(f"shard {name!r} {state}; {listed}")
    if standing.names == [train.shard_names[found[0]]]:
        raise InputError(f"{name!r} is the only shard that is left, and at least one is required; add others first")
    (number,) = match_shards([name], train.shard_names)  # several of a name are an error
    without = sorted((*find_left_out(train), number))
    return _with_data(config, exclude=tuple(train.shard_names[k] for k in without))
