"""One part of an experiment's pass, for clusters whose nodes may not open ports: a plain job array.

Every part finds the same plan and the same basis, or makes them. Parts that start together wait for each other while
one of them does this. Then each computes its share of the partitions alone. ``headroom run`` merges what they leave.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.accumulate import Share, SharedPass, decide_factoring
from pipeline.base import (
    LogFile,
    LoggedProgress,
    NumberedProgress,
    Products,
    Progress,
    SilentProgress,
    available_memory,
    disk_errors_told,
    exclusive,
    find_json,
    write_json,
)
from pipeline.config import ExperimentConfig, content_hash
from pipeline.errors import InputError
from pipeline.questions import list_needs
from pipeline.run.experiment import list_noises, plan_dense, plan_with_headers, prepare_pass
from pipeline.run.folder import Run, list_parts_at_work, part_lock, require_own_folder
from pipeline.run.spectra import open_spectra_sets, read_headers

__all__ = ["PARTS_FOLDER", "FinishedPart", "accumulate_part"]

#: Where parts leave their logs and what they agree on, below the run folder.
PARTS_FOLDER = "parts"


@dataclass(frozen=True)
class FinishedPart:
    """What a part has done.

    Attributes
    ----------
    partitions
        Pieces of work that belong to it.
    computed
        How many of them were missing, and are on disk now.
    log
        The part's log file.
    """

    partitions: int
    computed: int
    log: Path


def accumulate_part(
    config: ExperimentConfig,
    folder: str | Path,
    part: int,
    parts: int,
    *,
    convert_workers: int | None = None,
    progress: Progress | None = None,
) -> FinishedPart:
    """Compute one part of the moments of an experiment, without Dask and without a network.

    Parts may run at the same time on different machines, in any order, and again after they were killed. When all are
    done, :func:`pipeline.run_experiment` with the same folder merges them. Its results are the same bits as without
    parts. The file system must have locks (``flock``) that hold between the machines.

    Parameters
    ----------
    config
        From :func:`pipeline.load_config`.
    folder
        The run folder, created if needed. All parts see it under the same path.
    part, parts
        Which part this is, from 1, and how many there are.
    convert_workers
        Processes for converting shards; one per core by default. The first part converts while the others wait.
    progress
        Told of every long step.

    Raises
    ------
    InputError, ConfigError
        If spectra or settings are not what is required, or another part that is at work has other ones.
    ResourceError
        If memory or disk do not suffice.
    """
    if not 1 <= part <= parts:
        raise InputError(f"--part {part} --of {parts}: a part from 1 to {parts} is required")
    out, name, lock = Path(folder), f"part-{part}-of-{parts}", part_lock(part, parts)
    require_own_folder(out, config)
    log = LogFile(out / PARTS_FOLDER / f"{name}.log")
    shown = LoggedProgress(progress or SilentProgress(), log)
    hold = partial(exclusive, out, "the run folder", wait=shown.note)
    with disk_errors_told(out):
        out.mkdir(parents=True, exist_ok=True)
    with exclusive(out, f"part {part} of {parts} to", lock), _ending_logged(log):
        # What an earlier attempt has agreed on no longer counts: this one may have other settings, and has to wait.
        (out / PARTS_FOLDER / f"{name}.json").unlink(missing_ok=True)
        with hold():
            require_own_folder(out, config)
            with disk_errors_told(out):
                for made in ("moments", PARTS_FOLDER):
                    (out / made).mkdir(exist_ok=True)
            log.say(f"begun: part {part} of {parts}")
            shared, found = _set_up(
                Run(out, config, NumberedProgress(shown), Products(out, shown.note)),
                Share(part, parts),
                convert_workers,
            )
        shared.accumulate(hold, shown)
        return FinishedPart(*found, log.path)


@contextmanager
def _ending_logged(log: LogFile) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        log.say(f"failed: {type(error).__name__}: {error}")
        raise
    log.say("finished")


def _set_up(run: Run, share: Share, convert_workers: int | None) -> tuple[SharedPass, tuple[int, int]]:
    """Find or make the plan and the basis, see that other parts have the same, and claim the share."""
    config = run.config
    headers = list(read_headers(config))
    plan, _ = plan_with_headers(config, headers, [available_memory()], None)
    # Merging and scoring are the run's: the memory that they need does not matter here.
    replace(plan, driver_memory=0).require_fit(run.folder, Path(config.data.stores))
    sets = open_spectra_sets(config.data, headers, run.progress, convert_workers)
    headers.clear()  # with all columns of the shards
    facts, _ = prepare_pass(run, sets, plan, None)
    noises, compute, classes = list_noises(config), config.compute, list_needs(config).noise_classes
    names = [noise.name for noise in noises]
    settings = [compute.moments, compute.rank_tolerance, classes, share.parts]
    agreed = content_hash([facts.plan.key, facts.plan.settings_key, names, *settings])
    others = _require_same(run.folder, share, "key", agreed)
    factoring = decide_factoring(facts.plan, facts.train, noises, run.folder / "moments", compute, classes)
    bases = factoring.bases
    _require_same(run.folder, share, "basis", basis := sorted(set(bases.values())))
    if len(noises) - len(bases) > plan.n_dense:
        plan = plan_dense(facts, plan)
    shared = SharedPass(
        facts.plan,
        noises,
        run.folder / "moments",
        share,
        bases=bases,
        draws_per_pass=plan.draws_per_pass,
    )
    found = shared.claim(alone=not others)
    write_json(_record(run.folder, f"part-{share.part}-of-{share.parts}"), {"key": agreed, "basis": basis})
    return shared, found


def _require_same(folder: Path, share: Share, name: str, wanted: Any) -> list[str]:
    """Return the other parts at work; refuse if they have agreed on something else. The caller holds the folder."""
    others = list_parts_at_work(folder, but=part_lock(share.part, share.parts))
    for other in others:
        record = find_json(_record(folder, other))
        if record is not None and record.get(name) != wanted:
            raise InputError(
                f"{folder}: {other} is at work there with other spectra, other settings or another number of parts; "
                "wait for it, or choose another --out"
            )
    return others


def _record(folder: Path, name: str) -> Path:
    return folder / PARTS_FOLDER / f"{name}.json"
