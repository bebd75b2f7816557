"""The commands that say what a run costs, and run it: ``headroom plan``, ``headroom run``, ``headroom submit``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.base import NumberedProgress, RunJournal, choose_progress
from pipeline.cli.cluster import ClusterChoice, alone, cluster_options, connected, size_options
from pipeline.cli.words import (
    FiniteRange,
    config_argument,
    config_name,
    join_summary,
    json_option,
    output_path,
    print_json,
    print_table,
    profile_name,
    quiet_option,
    summarise_run,
)
from pipeline.config import load_config
from pipeline.errors import ConfigError, HeadroomError, ResourceError

if TYPE_CHECKING:
    from cluster import SlurmProfile
    from pipeline.config import ExperimentConfig
    from pipeline.plan import ExperimentPlan, Rates, RunTime, Scaling

__all__ = ["accumulate", "plan", "run", "run_folder", "submit"]


@click.command()
@config_argument
@click.option("--out", type=output_path, help="Run folder; runs/NAME by default.")
@click.option(
    "--dashboard", is_flag=True, help="Open Dask's dashboard in a browser; it stays open until you press a key."
)
@cluster_options
@click.option("--no-dask", is_flag=True, help="Compute in this process alone, where nothing may listen on a port.")
@quiet_option
@json_option
def run(
    config: str,
    out: Path | None,
    dashboard: bool,
    choice: ClusterChoice,
    no_dask: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run an experiment, from shards to a report.

    The steps are: convert shards to stores (if needed), sum the moments of the training spectra, solve the models,
    score the test spectra, and write the report. CONFIG is a YAML file or the name of a packaged one (demo,
    oracle_noise1). After an interruption, run the same command again; finished steps are skipped.

    \b
    Example:
      headroom run my.yaml --out runs/first
      headroom run my.yaml --out runs/first --cluster my_site.yaml --min 1 --max 40
    """
    experiment = load_config(config)
    folder = run_folder(config, out)
    if not dashboard and _tell_standing(experiment, folder, choice, quiet=quiet, as_json=as_json):
        return
    from cluster.dashboard import announce
    from pipeline.run import record_standing, render_run, require_own_folder, run_experiment

    require_own_folder(folder, experiment)
    shown = choose_progress(quiet=quiet)
    if no_dask and (dashboard or choice != ClusterChoice()):
        raise ConfigError(
            "--no-dask: this process computes alone then, without workers and a dashboard; leave the other options out"
        )
    profile = None if no_dask else choice.checked_profile(experiment, folder)
    command = f"headroom run {config} --out {folder}{choice.words()}{' --no-dask' if no_dask else ''}"
    with RunJournal(folder, command) as journal:
        progress = NumberedProgress(journal.progress(shown))
        with connected(journal, profile, folder, progress) if profile else alone(journal) as client:
            if client is not None and (dashboard or not quiet):
                say = partial(click.echo, err=as_json) if quiet else shown.note
                announce(client, say, browser=dashboard)
            results = run_experiment(experiment, folder, client=client, progress=progress, command=command)
            if dashboard and sys.stdin.isatty() and not as_json:
                click.pause("Press any key to close the dashboard …")
        progress.enter("report")
        with progress.step("draw figures and report", 1, "page") as advance:
            _, page = render_run(folder)
            advance(1)
        printed = StringIO()
        print_table(results, experiment, printed)
        with suppress(OSError, ValueError, HeadroomError):  # without the record, the next command takes longer
            record_standing(experiment, folder, printed.getvalue())
        if as_json:
            print_json(summarise_run(results, page))
            return
        print_table(results, experiment)
        click.echo(f"report: {page}")


@click.command()
@config_argument
@click.option("--part", type=click.IntRange(1, 10**6), required=True, metavar="K", help="Number of this part, from 1.")
@click.option("--of", "parts", type=click.IntRange(1, 10**6), required=True, metavar="N", help="Number of all parts.")
@click.option("--out", type=output_path, help="Run folder, the same for all parts; runs/NAME by default.")
@quiet_option
@json_option
def accumulate(config: str, part: int, parts: int, out: Path | None, quiet: bool, as_json: bool) -> None:
    """Compute one part of a run, as one job of a job array.

    This is for clusters whose nodes may not open ports: it needs neither Dask nor a network. Every part sums its
    share of the training spectra. Parts may run at the same time, in any order, and again after they were
    killed. Then `headroom run` with the same --out merges what is there, computes what is missing, and scores. The
    results are the same, bit for bit, as without parts.

    \b
    Example:
      headroom accumulate my.yaml --part 1 --of 2 --out runs/parts
      headroom accumulate my.yaml --part 2 --of 2 --out runs/parts
      headroom run my.yaml --out runs/parts --no-dask
    """
    from pipeline.run import accumulate_part

    experiment = load_config(config)
    folder = run_folder(config, out)
    done = accumulate_part(experiment, folder, part, parts, progress=choose_progress(quiet=quiet))
    if as_json:
        print_json({"run": folder, "part": part, "of": parts, **asdict(done)})
        return
    if done.computed:
        said = f"{done.computed} of its {done.partitions} pieces were missing, and are there now"
    else:
        said = f"its pieces ({done.partitions}) were there already"
    click.echo(f"part {part} of {parts}: {said}")


def _tell_standing(
    experiment: ExperimentConfig, folder: Path, choice: ClusterChoice, *, quiet: bool, as_json: bool
) -> bool:
    """Print the results of a run that stands as it was left, and tell whether it does. No cluster is started."""
    from pipeline.run import find_standing

    standing = find_standing(experiment, folder)
    if standing is None:
        return False
    if choice != ClusterChoice():
        choice.profile()  # a wrong profile is a mistake all the same
    printed, summary, metadata = standing
    page = folder / "report.html"
    if not quiet:
        click.echo("nothing to do: settings, spectra and results are those of the finished run", err=True)
    if as_json:
        print_json(join_summary(folder, page, summary, metadata))
    else:
        click.echo(printed, nl=False)
        click.echo(f"report: {page}")
    return True


def run_folder(config: str, out: Path | None) -> Path:
    """Return the folder that a configuration runs in: ``out``, or ``runs/`` and the configuration's name."""
    return out if out is not None else Path("runs") / Path(config).stem


@click.command()
@config_argument
@click.option(
    "--profile", metavar="PROFILE", type=profile_name, help="Cluster profile of kind slurm: a name or a file."
)
@click.option("--out", type=output_path, help="Run folder; runs/NAME by default.")
@size_options
@click.option("--dry-run", is_flag=True, help="Check the plan and print the batch script; submit nothing.")
@json_option
def submit(
    config: str,
    profile: str | None,
    out: Path | None,
    workers: int | None,
    minimum: int | None,
    maximum: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Submit a run as a SLURM batch job.

    The job runs the experiment and queues the jobs of its workers. Spectra, memory and disk are checked before anything
    is queued. A job that reaches its walltime is queued again and continues. The profile's setting
    `driver: {resubmissions: 10}` says how often. `headroom status RUN` tells where the run stands, and `scancel` ends
    it.

    \b
    Example:
      headroom submit my.yaml --profile my_site.yaml --out runs/first
      headroom status runs/first --watch
    """
    from cluster import SlurmProfile
    from cluster.submit import render_driver_script, require_idle, submit_driver
    from pipeline.run import require_own_folder

    experiment = load_config(config)
    folder = run_folder(config, out)
    require_own_folder(folder, experiment)
    source = profile or experiment.cluster or "slurm"
    choice = ClusterChoice(_as_path(source), workers, minimum, maximum)
    chosen = choice.profile()
    if not isinstance(chosen, SlurmProfile):
        raise ConfigError(
            f"--profile {source}: a profile of kind slurm is required, found kind {chosen.kind}; "
            "`headroom cluster list` shows an example, and `headroom run` needs no batch system"
        )
    if not dry_run:
        require_idle(folder)
    _require_fit(choice, chosen, experiment, folder)
    arguments = ["run", _as_path(config), "--out", str(folder.absolute())]
    for option, value in (("cluster", choice.name), ("workers", workers), ("min", minimum), ("max", maximum)):
        arguments += [f"--{option}", str(value)] if value is not None else []
    if dry_run:
        script = render_driver_script(chosen, arguments, folder)
        print_json({"run": folder, "script": script}) if as_json else click.echo(script, nl=False)
        return
    job = submit_driver(chosen, source, arguments, folder)
    if as_json:
        print_json({"run": folder, "job": job, "log": folder / "driver.log"})
        return
    click.echo(f"job {job} is queued; it runs the experiment, in {folder}")
    click.echo(f"where it stands:  headroom status {folder} --watch")
    click.echo(f"what it prints:   {folder / 'driver.log'}")
    click.echo(f"to end it:        scancel {job}")


def _as_path(name: str) -> str:
    """Return the absolute path of a file, because the job starts in another folder; keep a packaged name."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.is_file() else name


def _require_fit(choice: ClusterChoice, profile: SlurmProfile, config: ExperimentConfig, folder: Path) -> None:
    from pipeline.base import format_bytes
    from pipeline.run import plan_experiment

    plan = plan_experiment(config, profile.worker_limits())
    choice.require_fit(plan, profile)
    # The driver will have the memory of its job. The memory that is free on this login node does not matter.
    replace(plan, driver_memory=0).require_fit(folder, Path(config.data.stores))
    needed = plan.driver_memory
    if needed > profile.driver.memory:
        has = format_bytes(profile.driver.memory)
        raise ResourceError(
            f"converting, merging and scoring need {format_bytes(needed)} but the driver's job of cluster profile "
            f"{choice.source()} has {has}; set `driver: {{memory: {-(-needed // 2**30)}G}}`"
        )


#: Values of ``compute.partition_rows`` to suggest, the share of a run's time below which one is suggested, and seconds
#: that it must save. None exceeds the default, because sums within a partition are float32 and lose digits with length.
_PARTITION_ROWS = tuple(2**k for k in range(13, 19))
_WORTH_SAYING = 0.9
_WORTH_SECONDS = 1.0


#: Far beyond what anybody has; a projection goes through cells, draws, penalties and folds one by one.
_MOST = {
    "spectra": 10**10, "pixels": 10**6, "cells": 10**4, "draws": 10**3, "alphas": 10**3, "folds": 10**4,
    "partition_rows": 10**10, "cores": 10**5,
}  # fmt: skip


def _read_count(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Read a whole number that may be written like 1e8."""
    if value is None:
        return None
    most = _MOST[parameter.name or ""]
    try:
        count = float(value)
        if 1 <= count <= most and count == int(count):
            return int(count)
    except (ValueError, OverflowError):
        pass
    raise click.BadParameter(
        f"a whole number up to {most:,} is required, which may be written like 1e8, found {value!r}"
    )


def _read_size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    from cluster.profiles import parse_bytes

    try:
        return None if value is None else parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _paper_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that state spectra, settings, machines and rates instead of reading or measuring them."""
    count: dict[str, Any] = {"callback": _read_count, "metavar": "N"}
    size: dict[str, Any] = {"callback": _read_size, "metavar": "BYTES"}
    for option in reversed(
        (
            click.option(
                "--spectra", **count, help="Number of training spectra, such as 1e8, instead of reading headers."
            ),
            click.option("--pixels", **count, help="Pixels of each spectrum, with --spectra."),
            click.option("--cells", **count, help="Number of bins + 1, with --spectra and no CONFIG.  [default: 10]"),
            click.option("--draws", **count, help="Noise draws, with --spectra and no CONFIG.  [default: 1]"),
            click.option("--alphas", **count, help="Penalties to try, with --spectra and no CONFIG.  [default: 1]"),
            click.option("--folds", **count, help="Number of folds, instead of compute.folds."),
            click.option("--partition-rows", **count, help="Rows of a partition, instead of compute.partition_rows."),
            click.option("--cores", **count, help="Cores of a worker, instead of the profile's."),
            click.option("--memory", **size, help="Memory of a worker, such as 64GB, instead of the profile's."),
            click.option(
                "--bandwidth", **size, help="File system's bytes/s for all workers together.  [default: 5GB/s]"
            ),
            click.option(
                "--flops",
                type=FiniteRange(0, min_open=True),
                help="Flop/s of a worker in Gram products, instead of measuring.",
            ),
            click.option("--read-rate", **size, help="Bytes/s of pixels that a worker decodes, instead of measuring."),
        )
    ):
        command = option(command)
    return command


@click.command()
@click.argument("config", required=False, type=config_name)
@click.option("--out", type=output_path, help="Run folder whose disk is checked.")
@cluster_options
@_paper_options
@json_option
def plan(config: str | None, out: Path | None, choice: ClusterChoice, as_json: bool, **stated: Any) -> None:
    """Project what a run will cost, and refuse what cannot fit.

    The projection gives memory, disk, traffic and time, and it names the bottleneck. Only the headers of shards and
    stores are read. Nothing is converted or written.

    With --spectra and --pixels no file is read, and CONFIG may be left out. Workers are then as large as this machine,
    unless options say otherwise. docs/scaling.md explains the model and its limits.

    \b
    Example:
      HEADROOM_DEMO=spectra headroom plan demo
      headroom plan --spectra 1e8 --pixels 7200 --workers 200 --cores 16 --memory 64GB
    """
    from pipeline.plan import plan_run, project_run, project_scaling
    from pipeline.run import plan_experiment

    experiment = _stated_config(config, stated)
    profile = choice.profile(experiment.cluster)
    on_paper = stated["spectra"] is not None
    limits, cores = _stated_workers(profile, stated, choice.workers, on_paper=on_paper)
    if on_paper:
        projected = plan_run([stated["spectra"]], stated["pixels"], experiment, limits, worker_threads=cores)
    else:
        projected = plan_experiment(experiment, limits, cores)
    if not as_json:
        click.echo(projected.render())
    rates, source = _stated_rates(projected, experiment, cores, stated)
    scaling = project_scaling(projected, experiment, rates, cores)
    times = project_run(projected, experiment, scaling)
    if not as_json:
        click.echo(scaling.render(source))
        click.echo(f"the whole run        {times.describe()}")
    if config is not None and not on_paper:
        choice.require_fit(projected, profile, experiment.cluster)
        projected.require_fit(run_folder(config, out), Path(experiment.data.stores))
    else:
        projected.require_workers_fit()
    better = _better_partitions(projected, experiment, rates, limits, cores)
    if as_json:
        print_json(_summarise(projected, scaling, times, source) | {"shorter": better})
    elif better is not None:
        click.echo(f"shorter              {better}")


def _summarise(projected: ExperimentPlan, scaling: Scaling, times: RunTime, source: str) -> dict[str, Any]:
    """Return the printed numbers for scripts, in bytes, seconds and counts."""
    what, remedy = scaling.bottleneck
    seconds = {name: getattr(scaling, name) for name in ("accumulating", "solving", "traffic", "merging")}
    seconds["total"] = times.total
    return {
        **asdict(projected),
        "n_passes": projected.n_passes,
        "n_pieces": projected.n_pieces,
        "read_bytes": scaling.read,
        "seconds": seconds,
        "steps": {step.name: step.seconds for step in times.steps},
        "efficiency": scaling.efficiency,
        "bottleneck": what,
        "remedy": remedy,
        "rates": {**asdict(scaling.rates), "source": source},
    }


def _stated_config(config: str | None, stated: dict[str, Any]) -> ExperimentConfig:
    """Return the experiment of CONFIG, or one made up from ``--cells``, ``--draws`` and ``--alphas``."""
    from pipeline.config import ExperimentConfig

    if (stated["spectra"] is None) != (stated["pixels"] is None):
        raise ConfigError("--spectra and --pixels go together, and one of them is missing; for example --pixels 4096")
    made_up = {name: stated[name] for name in ("cells", "draws", "alphas") if stated[name] is not None}
    if made_up and (config is not None or stated["spectra"] is None):
        raise ConfigError(
            f"--{next(iter(made_up))} is for a run on paper; a configuration says that itself: leave CONFIG out and "
            "give --spectra and --pixels, or leave the option out"
        )
    if config is not None:
        experiment = load_config(config)
    elif stated["spectra"] is None:
        raise ConfigError("a configuration is required, or --spectra and --pixels for a run on paper")
    else:
        cells, alphas = made_up.get("cells", 10), made_up.get("alphas", 1)
        experiment = ExperimentConfig.model_validate(
            {
                "data": {"train": "on paper", "test": "on paper"},
                # Only the number of bins matters.
                "bins": {"T_eff": [float(edge) for edge in range(max(cells, 2))]},
                "ablation": False,
                "seeds": list(range(made_up.get("draws", 1))),
                "ridge": {"alpha": {"search": [float(k + 1) for k in range(alphas)]} if alphas > 1 else 1e5},
            }
        )
    cuts = {key: stated[key] for key in ("folds", "partition_rows") if stated[key] is not None}
    return experiment.model_copy(update={"compute": experiment.compute.model_copy(update=cuts)})


def _stated_workers(
    profile: Any, stated: dict[str, Any], workers: int | None, *, on_paper: bool
) -> tuple[Sequence[int], int]:
    """Return the memory of every worker in bytes, and the cores of one."""
    from cluster import LocalProfile, SlurmProfile
    from pipeline.base import available_cores, available_memory

    limits = profile.worker_limits() or [available_memory()] * (workers or 1)
    cores = available_cores()
    if isinstance(profile, SlurmProfile):
        cores = profile.cores
    elif isinstance(profile, LocalProfile) and on_paper:
        limits = [available_memory()] * profile.workers  # machines like this one
    elif isinstance(profile, LocalProfile):
        cores = profile.resolved_threads()
    if stated["memory"] is not None:
        limits = [stated["memory"]] * len(limits)
    return limits, stated["cores"] or cores


def _stated_rates(
    projected: ExperimentPlan, experiment: ExperimentConfig, cores: int, stated: dict[str, Any]
) -> tuple[Rates, str]:
    """Return the rates, given or else measured on this machine, and a text that says which are which."""
    from pipeline.plan import ASSUMED_BANDWIDTH, measure_rates

    rates = measure_rates(
        projected.n_pixels, experiment.precision, store=float(stated["bandwidth"] or ASSUMED_BANDWIDTH)
    )
    words = ["measured on this machine, just now"]
    if stated["flops"]:
        rates, words = replace(rates, gram=stated["flops"] / cores), [*words, "--flops as given"]
    if stated["read_rate"]:
        rates, words = replace(rates, decode=stated["read_rate"] / cores), [*words, "--read-rate as given"]
    words.append("--bandwidth as given" if stated["bandwidth"] else "the file system's assumed: give --bandwidth")
    return rates, "; ".join(words)


def _better_partitions(
    projected: ExperimentPlan, experiment: ExperimentConfig, rates: Rates, limits: Sequence[int], cores: int
) -> str | None:
    """Return a sentence about a ``compute.partition_rows`` that makes the run much shorter, or None."""
    from pipeline.plan import MEMORY_SHARE, format_seconds, plan_run, project_scaling

    def total(config: ExperimentConfig) -> float:
        plan = plan_run([projected.n_spectra], projected.n_pixels, config, limits, worker_threads=cores)
        fits = plan.worker_memory <= plan.worker_limit * MEMORY_SHARE
        return project_scaling(plan, config, rates, cores).total if fits else float("inf")

    def cut(rows: int) -> ExperimentConfig:
        return experiment.model_copy(update={"compute": experiment.compute.model_copy(update={"partition_rows": rows})})

    now = total(experiment)
    best, rows = min((total(cut(rows)), rows) for rows in _PARTITION_ROWS)
    if best >= min(_WORTH_SAYING * now, now - _WORTH_SECONDS):
        return None
    return f"compute.partition_rows: {rows} would take {format_seconds(best)} instead of {format_seconds(now)}"
