"""``headroom status``: say where a run stands. Only the run folder is read."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from pipeline.base import (
    LOG_FILE,
    Attempt,
    RunningStep,
    RunStatus,
    SubmittedRun,
    Terminated,
    find_death,
    is_run_folder,
    read_file,
    read_status,
    read_submission,
)
from pipeline.cli.words import FiniteRange, run_argument
from pipeline.errors import InputError, printable

__all__ = ["RunView", "status", "view_run"]

#: Seconds without news after which a step is called silent.
_SILENCE_SECONDS: Final = 60
_GOOD = frozenset({"starting", "waiting for workers", "running", "finished", "submitted", "resubmitted"})


@click.command()
@run_argument
@click.option("--watch", is_flag=True, help="Show it live until the run ends. After Ctrl-C the run goes on.")
@click.option(
    "--interval",
    default=2.0,
    show_default=True,
    type=FiniteRange(min=0.1),
    help="Seconds between two looks, with --watch.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch one line at every change.")
def status(folder: Path, watch: bool, interval: float, as_json: bool) -> None:
    """Say where a run stands.

    The command shows the step, partitions, rate, time left, workers, dashboard and last error. It reads only the run
    folder, so it works on every machine that can see this folder.

    The exit code is 0 if the run is finished, under way or queued. It is 1 if the run failed, was interrupted or died.
    It is 2 if RUN is no run folder or its status is damaged.

    \b
    Example:
      headroom status runs/first --watch
    """
    view = view_run(folder)
    if watch:
        view = _watch(view, lambda: view_run(folder), interval, as_json)
    else:
        click.echo(view.render_json() if as_json else view.render())
    if view.state not in _GOOD:
        sys.exit(1)


@dataclass(frozen=True)
class RunView:
    """What is known of a run from its folder.

    Attributes
    ----------
    folder
        The run folder.
    state
        A state of :class:`pipeline.base.status.RunStatus`; or ``died``; or ``submitted`` and ``resubmitted`` while
        the driver's job has not started; or ``unfinished``, if the run left no journal and no results.
    reason
        How one knows that it died.
    status, submitted
        What the driver and ``headroom submit`` wrote, if they did.
    has_results
        Whether results are there, be they of an earlier run.
    now
        When the folder was read.
    """

    folder: Path
    state: str
    reason: str | None
    status: RunStatus | None
    submitted: SubmittedRun | None
    has_results: bool
    now: datetime

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it by itself."""
        return self.state in ("finished", "failed", "interrupted", "died", "unfinished")

    def render_json(self, indent: int | None = 1) -> str:
        """Return it as JSON: what the driver wrote, with the state that holds now."""
        status = self.status.model_dump(mode="json") if self.status else {}
        submission = None
        if self.submitted:
            submission = self.submitted.submission.model_dump(mode="json") | {"jobs": list(self.submitted.jobs)}
        known: dict[str, Any] = {"folder": str(self.folder), "state": self.state, "reason": self.reason}
        return json.dumps(status | known | {"submission": submission, "has_results": self.has_results}, indent=indent)

    def render(self) -> str:
        """Return it as a page of a few lines."""
        lines = [self._headline()]
        for name, text in [*self._facts(), ("next", self._advice())]:
            for part in text.split("\n") if text else ():
                lines.append(f"  {name:<10} {part}")
                name = ""
        return "\n".join(lines)

    def line(self) -> str:
        """Return it as one line, for logs; without what changes with the clock alone."""
        step = self.status.step if self.status and not self.is_over else None
        words = [f"{self.folder}: {self.state}"]
        words += [_describe_units(step), *_describe_parts(step)] if step else []
        return ", ".join(words)

    def _headline(self) -> str:
        text = f"{self.folder}: {self.state}"
        if self.status is None:
            return text
        if self.status.is_active and not self.is_over:
            return f"{text} for {_duration((self.now - self.status.started).total_seconds())}"
        seconds = (self.status.updated - self.status.started).total_seconds()
        return f"{text} at {_clock(self.status.updated)} after {_duration(seconds)}"

    def _facts(self) -> list[tuple[str, str]]:
        facts: list[tuple[str, str]] = []
        if self.status is not None:
            facts += self._driver_facts(self.status)
        if self.submitted is not None:
            jobs, allowed = self.submitted.jobs, self.submitted.submission.resubmissions
            again = f", queued again {len(jobs) - 1} of {allowed} times" if len(jobs) > 1 else ""
            facts.append(
                ("submitted", f"{_clock(self.submitted.submission.submitted)} as job {', '.join(jobs)}{again}")
            )
        if parts := _list_parts(self.folder):
            facts.append(("parts", "\n".join(parts)))
        if self.has_results:
            which = "" if self.state == "finished" else " (of an earlier run: they stand until new ones are whole)"
            facts.append(("results", f"{self.folder / 'report.html'}{which}"))
        elif self.state == "finished":  # by `pipeline.run_experiment`, which draws nothing
            facts.append(("results", f"there is no page yet; `headroom report {self.folder}` writes it"))
        return facts

    def _driver_facts(self, status: RunStatus) -> list[tuple[str, str]]:
        driver = status.driver
        job = f", job {driver.job}" if driver.job else ""
        facts = [("command", status.command), ("where", f"{driver.host}, process {driver.pid}{job}")]
        if status.steps:
            facts.append(("done", "; ".join(f"{one.title} {_duration(one.seconds)}" for one in status.steps)))
        if status.step is not None:
            facts.append(("step", self._describe_step(status.step)))
        if not self.is_over:
            if status.workers is not None:
                facts.append(("workers", str(status.workers)))
            if status.dashboard:
                facts.append(("dashboard", f"{status.dashboard} on {driver.host}"))
                facts += [("", f"from your own machine: {status.tunnel}")] if status.tunnel else []
        if status.attempts:
            facts.append(("before", "\n".join(_describe_attempt(one) for one in status.attempts[-3:])))
        if status.notes:
            facts.append(("notes", "\n".join(status.notes[-4:])))
        if status.error:
            facts.append(("error", status.error))
        if self.reason:
            facts.append(("died", f"without a word: {self.reason}"))
        return facts

    def _describe_step(self, step: RunningStep) -> str:
        texts = [_describe_units(step), *_describe_parts(step)]
        if not self.is_over:
            texts += [f"{step.rate:,.0f}/s"] if step.rate >= 1 else []
            texts += [f"{_duration(step.left_seconds)} left"] if step.left_seconds is not None else []
            silence = (self.now - step.advanced).total_seconds()
            if silence > _SILENCE_SECONDS:
                texts.append(f"no news for {_duration(silence)}")
        return ", ".join(texts)

    def _advice(self) -> str:
        log = f"{self.folder / LOG_FILE}"
        jobs = self.submitted.jobs if self.submitted else ()
        if self.state in ("submitted", "resubmitted"):
            return f"`squeue --jobs {jobs[-1]}` says why its job has not started; once it ran, {log} says what it said"
        if not self.is_over or self.state == "finished":
            return ""
        again = "run the same command again: finished work is kept"
        if self.state == "failed" and self.status is not None and self.status.error:
            again = f"mend what the error names, then {again}"
        if self.submitted is not None:
            again = f"see {log}; then `headroom submit` again: finished work is kept"
            if self.state != "failed" and jobs:
                again = f"`squeue --jobs {jobs[-1]}` tells whether SLURM starts it again; if not, {again}"
        elif self.state == "unfinished":
            again = f"`headroom run CONFIG --out {self.folder}` goes on: finished work is kept"
        if self.state == "died":
            again = f"it was killed, or its machine stopped or ran out of memory; {again}"
        return again


def _list_parts(folder: Path) -> list[str]:
    """Return the last line of the log of every part that ``headroom accumulate`` has begun."""
    lines = []
    for log in sorted((folder / "parts").glob("part-*-of-*.log"), key=lambda log: (len(log.name), log.name)):
        try:
            said = read_file(log).decode("utf-8", "replace").splitlines()
        except OSError:
            continue
        lines.append(printable(f"{log.stem}: {said[-1] if said else 'begun'} (UTC)"))
    return lines


def view_run(folder: Path) -> RunView:
    """Read where a run stands.

    Raises
    ------
    InputError
        If it is no run folder, or its status is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"run folder {folder}: no such folder; give the --out folder of a `headroom run`")
    status, submitted = read_status(folder), read_submission(folder)
    has_results = (folder / "metadata.json").is_file() and (folder / "report.html").is_file()
    reason = find_death(status) if status is not None else None
    state: str
    if status is not None:
        state = "died" if reason else status.state
        if submitted is not None and _waits(status, submitted):
            state, reason = "resubmitted" if len(submitted.jobs) > 1 else "submitted", None
    elif submitted is not None:
        state = "submitted"
    elif all((folder / name).is_file() for name in ("metadata.json", "summary.json")):
        state = "finished"
    elif is_run_folder(folder):
        state = "unfinished"
    else:
        raise InputError(f"run folder {folder}: there is no run in it; give the --out folder of a `headroom run`")
    return RunView(folder, state, reason, status, submitted, has_results, datetime.now(UTC))


def _waits(status: RunStatus, submitted: SubmittedRun) -> bool:
    """Whether the last job was queued after the last driver ended, so that another one is to come."""
    if not submitted.jobs or status.driver.job == submitted.jobs[-1]:
        return False
    if status.driver.job in submitted.jobs:
        # Its successor waits; a driver that ended by itself has none any more.
        return status.state == "interrupted" or find_death(status) is not None
    has_ended = not status.is_active or find_death(status) is not None
    return has_ended and status.updated < submitted.submission.submitted


def _watch(view: RunView, look: Callable[[], RunView], interval: float, as_json: bool) -> RunView:
    """Show a run until it ends; return how."""
    try:
        if sys.stdout.isatty() and not as_json and not view.is_over:
            return _watch_live(view, look, interval)
        shown = ""
        while True:
            text = view.render_json(indent=None) if as_json else view.line()
            if text != shown:
                click.echo(text)
                shown = text
            if view.is_over:
                break
            time.sleep(interval)
            view = look()
        if not as_json:
            click.echo(view.render())
    except KeyboardInterrupt as interrupt:
        if isinstance(interrupt, Terminated):
            raise
        click.echo(err=True)  # the run goes on; only the watching ends
    return view


def _watch_live(view: RunView, look: Callable[[], RunView], interval: float) -> RunView:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(Text(view.render()), console=Console(), auto_refresh=False, vertical_overflow="visible") as live:
        while not view.is_over:
            time.sleep(interval)
            view = look()
            live.update(Text(view.render()), refresh=True)
    return view


def _describe_units(step: RunningStep) -> str:
    if not step.total:
        return step.title
    return f"{step.title}: {step.done:,} of {step.total:,} {step.unit} ({step.done / step.total:.0%})"


def _describe_parts(step: RunningStep) -> list[str]:
    return [f"{step.parts[0]:,} of {step.parts[1]:,} {step.parts[2]}"] if step.parts else []


def _describe_attempt(attempt: Attempt) -> str:
    job = f" (job {attempt.job})" if attempt.job else ""
    lasted = _duration((attempt.updated - attempt.started).total_seconds())
    return f"{_clock(attempt.started)}{job}: {attempt.state} after {lasted}" + (
        f": {attempt.error}" if attempt.error else ""
    )


def _clock(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _duration(seconds: float) -> str:
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min"
