"""One experiment, end to end: convert → accumulate → solve → score → report, each step resumable.

The run folder is the only state. Every product is written whole and recorded with the key of what it was made
from; a product whose key still holds is not made again, one whose key changed is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.accumulate import (
    MomentsFolder,
    accumulate_moments,
    accumulate_noises,
    available_threads,
    decide_factoring,
    delete_unwanted,
    plan_accumulation,
)
from pipeline.base import (
    NumberedProgress,
    Progress,
    SilentProgress,
    ask_workers,
    available_memory,
    count_workers,
    describe_environment,
    peak_memory,
    recorded,
    require_client,
    workers_limits,
    workers_peak,
)
from pipeline.config import ConfigSource, ExperimentConfig, content_hash, load_config
from pipeline.errors import ConfigError, require_kind
from pipeline.noise import Noise, training_noises
from pipeline.plan import (
    ExperimentPlan,
    RunTime,
    measure_quickly,
    name_steps,
    plan_run,
    project_run,
    project_scaling,
)
from pipeline.questions import QUESTIONS, Facts, Question, Trained, Truth, list_needs, list_pictures
from pipeline.run.folder import Run, open_run, require_own_folder, save_config, whole_run_folder, writable_folder
from pipeline.run.models import drop_unsearchable, others_file, read_test_spectra, read_truth, solve_models
from pipeline.run.spectra import (
    SetHeader,
    SpectraSets,
    check_headers,
    open_spectra_sets,
    read_headers,
    resolve_binnings,
)
from pipeline.run.standing import forget_standing
from pipeline.run.tables import results_hold, tell_remade, write_results
from pipeline.schema import RESULTS_ALGORITHM
from pipeline.scoring import RunResults, read_results
from pipeline.store import find_kept, find_left_out

if TYPE_CHECKING:
    from distributed import Client

    from pipeline.simulate import SampleSpec

__all__ = [
    "limits_of_workers",
    "list_noises",
    "list_remarks",
    "plan_dense",
    "plan_experiment",
    "plan_with_headers",
    "prepare_pass",
    "project_seconds",
    "render_run",
    "run_demo",
    "run_experiment",
    "share_pass",
]


def plan_experiment(
    config: ConfigSource, worker_limits: Sequence[int] | None = None, worker_threads: int | None = None
) -> ExperimentPlan:
    """Check an experiment's inputs and return what it will cost on workers of the given memory and cores.

    Reads headers and labels only: nothing is converted or written. The default is one worker on this machine.

    Raises
    ------
    InputError
        If spectra are missing or broken, or do not fit each other or the configuration.
    """
    settings = load_config(config)
    return plan_with_headers(settings, read_headers(settings), worker_limits, worker_threads)[0]


def plan_with_headers(
    config: ExperimentConfig,
    headers: Iterable[SetHeader],
    worker_limits: Sequence[int] | None,
    worker_threads: int | None,
) -> tuple[ExperimentPlan, list[str]]:
    """Do as :func:`plan_experiment`, with headers that were read already; return also what their check found."""
    train, test = headers
    warnings = check_headers(train, test, config)
    plan = plan_run(
        train.shard_lengths,
        train.wavelength.size,
        config,
        worker_limits or [available_memory()],
        chunk_rows=train.chunk_rows,
        store_disk=train.unconverted_bytes + test.unconverted_bytes,
        left_out=train.left_out,
        kept=train.kept,
        noise_classes=list_needs(config).noise_classes,
        n_test=test.n_spectra,
        worker_threads=worker_threads,
    )
    if lack := config.describe_lack_of_folds(plan.n_folds):
        raise ConfigError(lack)
    return plan, warnings


def run_experiment(
    config: ConfigSource,
    folder: str | Path,
    *,
    client: Client | None = None,
    convert_workers: int | None = None,
    progress: Progress | None = None,
    command: str | None = None,
) -> RunResults:
    """Run an experiment, or finish one that was interrupted.

    Parameters
    ----------
    config
        A YAML file, a packaged name, a dictionary of settings, or what :func:`pipeline.load_config` made of one.
    folder
        The run folder, created if needed. With a client it must be reachable by the workers under this path.
    client
        A Dask client whose workers accumulate; None computes in this process. The results are the same bits.
    convert_workers
        Processes for converting shards; one per core by default.
    progress
        Told of every long step.
    command
        How the user started the run, for the record.

    Returns
    -------
    RunResults
        What the run folder now holds.

    Raises
    ------
    InputError, ConfigError
        If spectra or settings are not what is required.
    ResourceError
        If memory, disk or workers do not suffice.
    """
    require_kind("folder", folder, (str, os.PathLike), "the path of a run folder")
    with (
        _opened(load_config(config), Path(folder), client, convert_workers, progress) as (run, sets, plan),
        recorded(client, run.folder, command or "", run.progress.note),
    ):
        return _run_steps(run, sets, plan, client, command)


def share_pass(
    config: ExperimentConfig,
    folder: str | Path,
    *,
    client: Client | None = None,
    convert_workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Convert and accumulate only: what experiments that differ in noise levels or seeds then find in this folder.

    Parameters, and errors, are those of :func:`run_experiment`.
    """
    with _opened(config, Path(folder), client, convert_workers, progress) as (run, sets, plan):
        run.progress.enter("accumulate")
        _accumulate(run, _gather_facts(run, sets, plan, client), plan)


@contextmanager
def _opened(
    config: ExperimentConfig,
    out: Path,
    client: Client | None,
    convert_workers: int | None,
    progress: Progress | None,
) -> Iterator[tuple[Run, SpectraSets, ExperimentPlan]]:
    """Check and plan an experiment, and open its folder and its stores, converted if needed."""
    require_client(client)
    require_own_folder(out, config)
    told = progress if isinstance(progress, NumberedProgress) else NumberedProgress(progress or SilentProgress())
    told.expect(name_steps(config))
    told.enter("convert")
    headers = list(read_headers(config))
    plan, warnings = _plan_for(client, config, headers)
    plan.require_fit(out, Path(config.data.stores))
    with writable_folder(out), whole_run_folder(out):
        forget_standing(out)
        if progress is not None:
            told.note(f"time: {_project_time(config, plan).describe()}; what is there already is not made again")
        run = open_run(out, config, told)
        sets = open_spectra_sets(config.data, headers, run.progress, convert_workers)
        has_shards = any(header.shards for header in headers)
        headers.clear()  # with all columns of the shards
        if has_shards:  # again, on what the stores hold: conversion may have left spectra out
            warnings = check_headers(*sets.headers, config)
        run.warnings += warnings
        run.finish_step("convert", skipped=plan.store_disk == 0)
        yield run, sets, plan


def _plan_for(
    client: Client | None, config: ExperimentConfig, headers: Iterable[SetHeader]
) -> tuple[ExperimentPlan, list[str]]:
    """Do as :func:`plan_with_headers`, for the workers of a client, or for this process without one."""
    threads = min(ask_workers(client, available_threads), default=None) if client is not None else None
    return plan_with_headers(config, headers, limits_of_workers(client), threads)


def _project_time(config: ExperimentConfig, plan: ExperimentPlan) -> RunTime:
    """Return how long the run takes, and each of its steps, if nothing of it is there."""
    scaling = project_scaling(plan, config, measure_quickly(plan, config), plan.worker_threads)
    return project_run(plan, config, scaling)


def project_seconds(configs: Iterable[ExperimentConfig], client: Client | None = None) -> float:
    """Return how long some experiments take one after the other, if nothing of them is there and they share nothing.

    Raises
    ------
    InputError, ConfigError, ResourceError
        If one of them cannot be run: before the first one is.
    """
    seconds, headers = 0.0, {}
    for config in configs:
        spectra = content_hash(config.data.model_dump(mode="json"))
        if spectra not in headers:
            headers = {spectra: read_headers(config)}  # they hold all labels: those of one set are enough
        plan, _ = _plan_for(client, config, headers[spectra])
        seconds += _project_time(config, plan).total
    return seconds


def _run_steps(
    run: Run, sets: SpectraSets, plan: ExperimentPlan, client: Client | None, command: str | None
) -> RunResults:
    """Accumulate, solve, ask the questions, score; whatever still holds is taken as it is."""
    config = run.config
    if remade := tell_remade(run.folder):
        run.progress.note(remade)
    facts, questions = prepare_pass(run, sets, plan, client)
    run.progress.enter("accumulate")
    moments, plan = _accumulate(run, facts, plan)
    run.progress.enter("solve")
    facts.trained = solve_models(facts, moments, plan)
    run.finish_step("solve")
    made_of = {name: key for one in facts.trained for name, key in _list_products(facts, one).items()}
    for question in questions:
        run.progress.enter(question.step)
        prepared = question.prepare()
        if prepared is not None:
            run.finish_step(question.step)
            made_of |= run.products.keys_of(prepared)
    run.worker_peak = workers_peak(client) if client is not None else 0
    asked = [question.name for question in questions]  # a finished run has no answer to a question that is new
    settings = [config.to_dict(), list(config.bins)]
    key = content_hash([RESULTS_ALGORITHM, asked, made_of, sets.test.fingerprint, *settings])
    run.progress.enter("score")
    if not results_hold(run.folder, key):
        draws = read_test_spectra(facts, questions)
        run.finish_step("score", skipped=False)
        save_config(config, run.folder)
        record = _record(run, plan, command) | {"key": key}
        write_results(facts, sets, questions, draws, record)
    for one in moments:
        delete_unwanted(one.folder)  # now that results without them stand
    return read_results(run.folder)


def prepare_pass(
    run: Run, sets: SpectraSets, plan: ExperimentPlan, client: Client | None
) -> tuple[Facts, list[Question[Any]]]:
    """Return what is known before the pass, and the questions, after they have refused what cannot be answered."""
    facts = _gather_facts(run, sets, plan, client)
    drop_unsearchable(facts)
    facts.truth = read_truth(facts)
    questions = [question(facts) for question in QUESTIONS]
    for question in questions:
        question.check()
    return facts, questions


def _gather_facts(run: Run, sets: SpectraSets, plan: ExperimentPlan, client: Client | None) -> Facts:
    """Return what is known before the pass: the spectra, how they are divided, and how the pass is cut."""
    config = run.config
    cells, binnings, left_out = resolve_binnings(config, sets)
    run.warnings += left_out
    return Facts(
        settings=config,
        folder=run.folder,
        products=run.products,
        progress=run.progress,
        client=client,
        train=sets.train,
        test=sets.test,
        plan=plan_accumulation(sets.train, cells, config.compute, config.precision),
        binnings=binnings,
        truth=Truth({}, ()),
        threads={"solve": plan.solve_threads, "design": plan.design_threads},
        warnings=run.warnings,
    )


def _accumulate(run: Run, facts: Facts, plan: ExperimentPlan) -> tuple[list[MomentsFolder], ExperimentPlan]:
    """Return the moments of every training noise; the pass computes those folds that are not there.

    Where no small basis will do, more moments are dense than the plan has counted. The plan is then another one.
    """
    noises, folder, compute = list_noises(run.config), run.folder / "moments", run.config.compute
    classes = list_needs(run.config).noise_classes
    factoring = decide_factoring(facts.plan, facts.train, noises, folder, compute, classes)
    saved = factoring.find_saved_folds(facts.plan, noises, folder)
    run.reused_folds, run.n_folds = tuple(sorted(saved)), len(facts.plan.folds)

    def make_pass(of: Sequence[Noise], bases: Mapping[Noise, str]) -> list[MomentsFolder]:
        nonlocal plan
        if sum(noise not in bases for noise in of) > plan.n_dense:
            plan = plan_dense(facts, plan)
        return accumulate_moments(
            facts.plan,
            of,
            folder,
            bases=bases,
            client=facts.client,
            draws_per_pass=plan.draws_per_pass,
            progress=run.progress,
        )

    moments, factoring = accumulate_noises(
        facts.plan, factoring, facts.train, noises, folder, compute, make_pass, run.progress.note, classes
    )
    run.moments_keys = {one.draw.name: one.key for one in moments}
    run.factoring = factoring.describe()
    run.finish_step("accumulate", skipped=len(saved) == run.n_folds)
    return moments, plan


def list_noises(config: ExperimentConfig) -> list[Noise]:
    """Return the noises that an experiment trains on."""
    return training_noises(config.noise.mode, config.noise.levels, config.seeds)


def plan_dense(facts: Facts, plan: ExperimentPlan) -> ExperimentPlan:
    """Return the plan of a run with dense moments alone.

    Raises
    ------
    ResourceError
        If they do not fit.
    """
    settings = facts.settings
    compute = settings.compute.model_copy(update={"moments": "dense"})
    dense = plan_run(
        facts.train.shard_lengths,
        facts.train.n_pixels,
        settings.model_copy(update={"compute": compute}),
        [plan.worker_limit] * plan.n_workers,
        chunk_rows=facts.train.chunk_rows,
        left_out=find_left_out(facts.train),
        kept=find_kept(facts.train),
        worker_threads=plan.worker_threads,
        n_test=facts.test.n_spectra,
    )
    dense.require_fit(facts.folder)
    facts.threads = {"solve": dense.solve_threads, "design": dense.design_threads}
    return dense


def _list_products(facts: Facts, trained: Trained) -> dict[str, str]:
    names = [trained.file, *([others_file(trained.noise)] if trained.others else [])]
    return facts.products.keys_of(names)


def render_run(folder: str | Path) -> tuple[Path, Path]:
    """Draw the figures and write ``report.md`` and ``report.html`` of a scored run; return the two pages."""
    from pipeline.report import render_report
    from pipeline.report.figures import render_figures

    results = read_results(folder)
    pictures = list_pictures()
    sections = [section for question in QUESTIONS if (section := question.section(results)) is not None]
    subjects = [subject for question in QUESTIONS for subject in question.subjects(results)]
    cards = [card for question in QUESTIONS for card in question.cards(results)]
    return render_report(results, render_figures(results, pictures), sections, subjects, cards)


def list_remarks(results: RunResults, noise_level: float) -> list[str]:
    """Return what the questions say in the terminal at one noise level."""
    return [remark for question in QUESTIONS for remark in question.remarks(results, noise_level)]


def limits_of_workers(client: Client | None) -> list[int]:
    """Return the memory that each worker of a client may use, bytes; that of this process without one.

    Workers that will come are as large as the smallest of those that are there.
    """
    if client is None:
        return [available_memory()]
    limits = [limit or available_memory() for limit in workers_limits(client)]
    return limits + [min(limits)] * (count_workers(client) - len(limits))


def _record(run: Run, plan: ExperimentPlan, command: str | None) -> dict[str, Any]:
    """Return what ``metadata.json`` says besides configuration and results."""
    return {
        "command": command or "pipeline.run_experiment(config, folder)",
        "started": run.begun.isoformat(timespec="seconds"),
        "steps": run.steps,
        "warnings": run.warnings,
        "peak_memory_bytes": peak_memory() + run.worker_peak,
        "worker_peak_memory_bytes": run.worker_peak or None,  # a thread of this process has no memory of its own
        "folds": {"total": run.n_folds, "reused": list(run.reused_folds)},
        "moments": run.moments_keys,
        "factoring": run.factoring,
        "plan": {
            "memory_per_worker_bytes": plan.worker_memory,
            "driver_memory_bytes": plan.driver_memory,
            "moments_disk_bytes": plan.moments_disk,
            "pieces": plan.n_pieces,
            "passes": plan.n_passes,
            "gram_flops": plan.flops,
        },
        **describe_environment(),
    }


# --- The demonstration as one call: simulated shards, and the packaged experiment on them.


def run_demo(
    folder: str | Path,
    spec: SampleSpec | None = None,
    *,
    client: Client | None = None,
    progress: Progress | None = None,
) -> RunResults:
    """Simulate a sample of shards and run the packaged experiment ``demo`` on it; what is there is not made again.

    ``make demo`` does the same, with more spectra.

    Parameters
    ----------
    folder
        The run folder; the shards and their stores go to ``spectra`` in it.
    spec
        What to simulate; 12,000 training and 3,000 test spectra of 512 pixels by default.
    client, progress
        See :func:`pipeline.run_experiment`.

    Raises
    ------
    InputError
        If the folder holds another sample.
    ResourceError
        If memory or disk do not suffice.
    """
    from pipeline.simulate import SampleSpec, write_sample  # which no other run needs

    spectra = Path(folder).absolute() / "spectra"
    # By default it takes less than half a minute, and the spectra are enough that the result means something.
    write_sample(spectra, spec or SampleSpec(train=12_000, shards=4, test=3_000, pixels=512), progress=progress)
    config = load_config("demo", variables={"HEADROOM_DEMO": str(spectra)})
    # The forecast needs factored moments, however few the pixels are.
    config = config.model_copy(update={"compute": config.compute.model_copy(update={"moments": "factored"})})
    return run_experiment(config, folder, client=client, progress=progress, command="pipeline.run_demo(folder)")
