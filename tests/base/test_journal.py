"""The journal of a run and what ``headroom status`` makes of it, in processes that are killed for real."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import HEADROOM, hear_interrupts, invoke, wait_until

from pipeline.base import (
    JOBS_FILE,
    NumberedProgress,
    RunJournal,
    RunStatus,
    SilentProgress,
    Submission,
    Terminated,
    find_death,
    read_status,
    terminations_deferred,
    terminations_raised,
)
from pipeline.base import journal as journal_module
from pipeline.base.logfile import RUN_LOG, LogFile
from pipeline.base.status import STALE_SECONDS, STATUS_FILE, SUBMISSION_FILE, Driver
from pipeline.cli.status import view_run
from pipeline.config import ExperimentConfig
from pipeline.errors import InputError, ResourceError
from pipeline.report import render_report
from pipeline.run import run_experiment
from pipeline.scoring import RunResults, read_results

COMMAND = "headroom run small.yaml"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats and counts as fast as a test can wait for."""
    monkeypatch.setattr(journal_module, "SECONDS_BETWEEN_WRITES", 0.05)
    monkeypatch.setattr(journal_module, "SECONDS_BETWEEN_BEATS", 0.1)
    monkeypatch.setattr(journal_module, "SECONDS_BETWEEN_COUNTS", 0.1)


def read(folder: Path) -> RunStatus:
    status = read_status(folder)
    assert status is not None
    return status


def write_status(folder: Path, **changes: Any) -> RunStatus:
    """A status as a driver of this process would leave it, with changes."""
    folder.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "state": "running",
        "command": COMMAND,
        "driver": Driver.of_this_process(None),
        "started": now - timedelta(seconds=90),
        "updated": now,
    }
    status = RunStatus(**(values | changes))
    (folder / STATUS_FILE).write_text(status.model_dump_json())
    return status


ELSEWHERE = Driver(host="node17", pid=1, started=0.0, job="4711")


# --- what is written -------------------------------------------------------------------------------------------------


def test_steps_parts_and_notes_of_a_progress_are_in_the_file(tmp_path: Path, quick: None) -> None:
    with RunJournal(tmp_path / "run", COMMAND) as journal:
        assert read(tmp_path / "run").state == "starting"
        journal.enter("running")
        assert read(tmp_path / "run").state == "running", "a change of state is written at once"
        progress = journal.progress(SilentProgress())
        with progress.step("convert", 7):
            pass
        for number in range(30):
            progress.note(f"note {number}")
        with progress.step("accumulate", 1000) as advance:
            advance(200)
            progress.count_parts(3, 12)
            time.sleep(0.3)
            advance(50)
            step = wait_until(lambda: (s := read(tmp_path / "run").step) and s.done == 250 and s, "the step")
            assert (step.title, step.total, step.unit, step.parts) == (
                "accumulate",
                1000,
                "spectra",
                (3, 12, "partitions"),
            )
            assert 0 < step.rate < 250 / 0.3
            assert step.left_seconds == pytest.approx(750 / step.rate, abs=0.051), "kept to a tenth of a second"
            assert step.advanced > step.started
    status = read(tmp_path / "run")
    assert (status.state, status.step, status.error) == ("finished", None, None)
    assert [one.title for one in status.steps] == ["convert", "accumulate"]
    # Titles have commas ("2 of 5, accumulate"), so steps are told apart by another sign.
    assert re.search(r"done +convert \S+ s; accumulate \S+ s$", view_run(tmp_path / "run").render(), re.MULTILINE)
    assert status.notes[-1] == "note 29"
    assert len(status.notes) == 10
    assert status.driver == Driver.of_this_process(None)


def test_at_most_one_write_a_second_however_fast_spectra_come(tmp_path: Path) -> None:
    with (
        RunJournal(tmp_path, COMMAND) as journal,
        journal.progress(SilentProgress()).step("accumulate", 10**9) as advance,
    ):
        time.sleep(0.2)
        before, started = read(tmp_path).beat, time.monotonic()
        while time.monotonic() - started < 1.3:
            advance(1)
        assert 1 <= read(tmp_path).beat - before <= 2


def test_a_silent_step_still_gives_signs_of_life(tmp_path: Path, quick: None) -> None:
    with RunJournal(tmp_path, COMMAND) as journal, journal.progress(SilentProgress()).step("solve", 10) as advance:
        advance(1)
        first = wait_until(lambda: (s := read(tmp_path)).step and s.step.done == 1 and s, "the step")
        later = wait_until(lambda: (s := read(tmp_path)).beat > first.beat + 3 and s, "beats without news")
        assert later.step.advanced == first.step.advanced
        assert later.updated > first.updated


def test_workers_are_counted_and_a_scheduler_that_does_not_answer_silences_nothing(tmp_path: Path, quick: None) -> None:
    answers: Iterator[Any] = iter([{"workers": {"a": 1, "b": 2}}, OSError("lost")])

    class Client:
        def scheduler_info(self, n_workers: int = -1) -> dict[str, Any]:
            answer = next(answers, None)
            if isinstance(answer, dict):
                return answer
            if answer is not None:
                raise answer
            time.sleep(1)
            raise TimeoutError

    with RunJournal(tmp_path, COMMAND) as journal, journal.attend(Client(), "http://127.0.0.1:1/status", "ssh -L"):
        shown = wait_until(lambda: (s := read(tmp_path)).workers == 2 and s, "two workers")
        assert (shown.state, shown.dashboard, shown.tunnel) == ("running", "http://127.0.0.1:1/status", "ssh -L")
        wait_until(lambda: read(tmp_path).workers is None, "the loss")
        beat = read(tmp_path).beat
        wait_until(lambda: read(tmp_path).beat > beat + 2, "beats while the scheduler is silent")
    assert read(tmp_path).dashboard is None


@pytest.mark.parametrize(
    ("error", "state", "words"),
    [
        (ResourceError("the disk is full; free space"), "failed", "the disk is full; free space"),
        (ZeroDivisionError("division by zero"), "failed", "ZeroDivisionError: division by zero"),
        (KeyboardInterrupt(), "interrupted", "Ctrl-C"),
        (Terminated(signal.SIGTERM), "interrupted", "SIGTERM"),
    ],
)
def test_how_a_run_ends_is_told_with_the_step_that_it_ended_in(
    tmp_path: Path, error: BaseException, state: str, words: str
) -> None:
    def fail() -> None:
        with (
            RunJournal(tmp_path, COMMAND) as journal,
            journal.progress(SilentProgress()).step("accumulate", 10) as advance,
        ):
            advance(4)
            raise error

    with pytest.raises(type(error)):
        fail()
    status = read(tmp_path)
    assert (status.state, status.error) == (state, words)
    assert status.step is not None
    assert (status.step.title, status.step.done) == ("accumulate", 4)


def test_earlier_attempts_are_remembered_and_damage_is_replaced(tmp_path: Path) -> None:
    with pytest.raises(ResourceError), RunJournal(tmp_path, COMMAND):
        raise ResourceError("no worker came")
    with RunJournal(tmp_path, COMMAND):
        [first] = read(tmp_path).attempts
        assert (first.state, first.error) == ("failed", "no worker came")
    assert [one.state for one in read(tmp_path).attempts] == ["failed"]
    (tmp_path / STATUS_FILE).write_text("{")
    with RunJournal(tmp_path, COMMAND):
        assert read(tmp_path).attempts == ()


def test_a_mistake_before_anything_was_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError), RunJournal(tmp_path / "new", COMMAND):
        raise InputError("no such shard")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    with pytest.raises(InputError), RunJournal(tmp_path / "old", COMMAND):
        raise InputError("no such shard")
    assert read(tmp_path / "old").state == "failed"


def test_a_run_that_did_not_begin_leaves_nothing_and_one_that_began_its_log(tmp_path: Path) -> None:
    def fail(folder: Path, *, begun: bool) -> None:
        with RunJournal(folder, COMMAND) as journal:
            if begun:
                with journal.progress(SilentProgress()).step("convert", 1):
                    pass
            else:
                journal.enter("waiting for workers")
            raise ResourceError("no worker came")

    for begun in (False, True):
        with pytest.raises(ResourceError):
            fail(tmp_path / "run", begun=begun)
        assert (tmp_path / "run").exists() == begun
    with pytest.raises(ResourceError):  # what another run has made stays
        fail(tmp_path / "run", begun=False)
    assert len(read(tmp_path / "run").attempts) == 1


def test_a_change_that_is_refused_leaves_a_finished_run_finished(tmp_path: Path) -> None:
    with RunJournal(tmp_path, "headroom run c.yaml"):
        (tmp_path / "results.csv").touch()
    before = read_status(tmp_path)
    with pytest.raises(InputError), RunJournal(tmp_path, "headroom add . shard"):
        raise InputError("this shard is there already")
    assert read_status(tmp_path) == before
    assert "shard is there already" in (tmp_path / RUN_LOG).read_text()
    with pytest.raises(KeyboardInterrupt), RunJournal(tmp_path, "headroom add . shard"):
        raise KeyboardInterrupt
    assert read_status(tmp_path) == before
    with (
        pytest.raises(InputError),
        RunJournal(tmp_path, "headroom add . shard") as journal,
        journal.progress(SilentProgress()).step("convert", 1),
    ):
        raise InputError("a chunk is damaged")
    assert read_status(tmp_path).state == "failed", "something may have changed"


def test_the_step_of_a_run_is_known_between_its_parts_too(tmp_path: Path, quick: None) -> None:
    def is_shown(title: str) -> bool:
        step = read(tmp_path).step
        return step is not None and step.title == title

    with RunJournal(tmp_path, COMMAND) as journal:
        progress = NumberedProgress(journal.progress(SilentProgress()))
        progress.expect(["solve", "score"])
        for name, number in (("solve", "1 of 2, solve"), ("score", "2 of 2, score")):
            progress.enter(name)
            for title in (number, f"{number}: predict", number):  # before, within and after a part
                with progress.step("predict", 7) if "predict" in title else nullcontext():
                    wait_until(partial(is_shown, title), title)
        assert re.search(r"step +2 of 2, score$", view_run(tmp_path).render(), re.MULTILINE)  # nothing is counted
    status = read(tmp_path)
    assert (status.step, [one.title for one in status.steps]) == (
        None,
        ["1 of 2, solve: predict", "2 of 2, score: predict"],
    )


def test_the_journal_never_fails_a_run(tmp_path: Path) -> None:
    """A folder that cannot be made, and one whose disk takes nothing more from the second write on."""
    with RunJournal("/dev/null/run", COMMAND) as journal, journal.progress(SilentProgress()).step("a", 1) as advance:
        advance(1)
    script = (
        "import resource, signal, sys, time; from pipeline.base import SilentProgress, journal as j\n"
        "j.SECONDS_BETWEEN_WRITES = j.SECONDS_BETWEEN_BEATS = 0.05\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "with j.RunJournal(sys.argv[1], 'x') as journal, journal.progress(SilentProgress()).step('a', 2) as advance:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); advance(1); time.sleep(0.5)\n"
        "print('went on')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("went on\n", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [RUN_LOG, STATUS_FILE], "no half-written files"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system of its own, which needs root")
def test_on_a_full_disk_the_end_is_still_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        with pytest.raises(OSError, match="No space left"), RunJournal(disk / "run", COMMAND):
            fill(disk / "filler")
        status = read(disk / "run")
        assert status.state == "failed"
        assert "No space left" in str(status.error)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def fill(path: Path) -> None:
    """Take all the room that there is."""
    with open(path, "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(512))


# --- one driver at a time --------------------------------------------------------------------------------------------


def test_a_second_driver_on_this_host_is_refused_and_the_journal_stays_the_firsts(tmp_path: Path) -> None:
    with RunJournal(tmp_path, "the first"):
        with (
            pytest.raises(InputError, match="another process"),
            RunJournal(tmp_path, "second"),
        ):
            pass
        assert read(tmp_path).command == "the first"


def test_a_driver_that_beats_on_another_host_is_not_disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a file system locks within one host only."""
    monkeypatch.setattr(journal_module, "SECONDS_OF_DOUBT", 3.0)
    write_status(tmp_path, driver=ELSEWHERE, beat=5)
    script = (
        "import sys, time; from pathlib import Path\n"
        "file = Path(sys.argv[1]); time.sleep(0.7)\n"
        "file.write_text(file.read_text().replace('\"beat\":5', '\"beat\":6'))"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / STATUS_FILE)])
    with pytest.raises(InputError, match=r"under way in .* on node17"), RunJournal(tmp_path, COMMAND):
        pass
    assert writer.wait(10) == 0
    assert read(tmp_path).driver == ELSEWHERE


def test_a_driver_that_is_silent_on_another_host_is_taken_over_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "SECONDS_OF_DOUBT", 0.6)
    write_status(tmp_path, driver=ELSEWHERE)
    with RunJournal(tmp_path, COMMAND):
        [before] = read(tmp_path).attempts
    assert (before.state, before.job) == ("died", "4711")


# --- who has died ----------------------------------------------------------------------------------------------------


def test_a_killed_driver_is_known_to_be_dead_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = (
        "import sys, time; from pipeline.base import RunJournal, SilentProgress\n"
        "with RunJournal(sys.argv[1], 'x') as j, j.progress(SilentProgress()).step('accumulate', 9) as advance:\n"
        "    j.enter('running'); advance(3); print('at work', flush=True); time.sleep(60)"
    )
    driver = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "at work\n"
    code, out, _ = invoke(capsys, "status", str(tmp_path))
    assert code == 0
    assert "running" in out
    driver.kill()
    # Not waited for: a zombie is as dead as its like that is.
    wait_until(lambda: psutil.Process(driver.pid).status() == psutil.STATUS_ZOMBIE, "the end")
    assert view_run(tmp_path).state == "died"
    driver.communicate()
    code, out, _ = invoke(capsys, "status", str(tmp_path))
    assert code == 1
    assert f"process {driver.pid} on this host is gone" in out
    assert "run the same command again" in out
    with RunJournal(tmp_path, COMMAND):
        assert [one.state for one in read(tmp_path).attempts] == ["died"]


def test_a_number_that_another_process_has_now_is_no_sign_of_life(tmp_path: Path) -> None:
    mine = Driver.of_this_process(None)
    assert find_death(write_status(tmp_path, driver=mine)) is None
    assert "is gone" in str(find_death(write_status(tmp_path, driver=mine.model_copy(update={"started": 1.0}))))


def test_silence_of_another_host_is_death_only_when_it_is_long(tmp_path: Path) -> None:
    status = write_status(tmp_path, driver=ELSEWHERE)
    assert find_death(status) is None
    assert find_death(status, status.updated + timedelta(seconds=STALE_SECONDS - 1)) is None
    assert "node17 gave no sign of life" in str(
        find_death(status, status.updated + timedelta(seconds=STALE_SECONDS + 1))
    )
    ended = write_status(tmp_path, driver=ELSEWHERE, state="finished")
    assert find_death(ended, ended.updated + timedelta(days=9)) is None, "who has ended owes no sign of life"


# --- headroom status -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({}, 0, "running for 1 min 30 s"),
        ({"state": "finished"}, 0, "finished at 20"),
        ({"state": "failed", "error": "no worker came"}, 1, "no worker came"),
        (
            {"state": "failed", "error": "no such shard"},
            1,
            "mend what the error names, then run the same command again",
        ),
        ({"state": "interrupted", "error": "SIGTERM"}, 1, "run the same command again"),
        ({"state": "waiting for workers"}, 0, "waiting for workers"),
    ],
)
def test_the_exit_code_tells_whether_something_is_to_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], code: int, words: str
) -> None:
    write_status(tmp_path, **changes)
    found, out, _ = invoke(capsys, "status", str(tmp_path))
    assert found == code
    assert words in out
    found, out, _ = invoke(capsys, "status", str(tmp_path), "--json")
    assert found == code
    assert json.loads(out)["state"] == changes.get("state", "running")


def test_a_step_without_news_is_said_to_be_silent(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    step = {"title": "solve", "unit": "models", "total": 10, "done": 3, "rate": 0.01, "left_seconds": 700.0}
    write_status(tmp_path, step=step | {"started": now - timedelta(minutes=9), "advanced": now - timedelta(minutes=4)})
    page = view_run(tmp_path).render()
    assert "solve: 3 of 10 models (30%), 11 min 40 s left, no news for 4 min 00 s" in page


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 99}', '{"version": 1, "state": 3}'])
def test_a_damaged_status_is_told_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / STATUS_FILE).write_text(text)
    code, _, err = invoke(capsys, "status", str(tmp_path))
    assert code == 2
    assert f"{tmp_path / STATUS_FILE} is not the status" in err
    assert "delete" not in err  # it may be the status.json of another program


def test_what_is_no_run_folder_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = invoke(capsys, "status", str(tmp_path / "none"))
    assert (code, "no such folder" in err) == (2, True)
    code, _, err = invoke(capsys, "status", str(tmp_path))
    assert (code, "there is no run in it" in err) == (2, True)


def test_a_run_without_a_journal_is_told_from_its_products(
    small_run: RunResults, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(small_run.folder, tmp_path, dirs_exist_ok=True)
    render_report(read_results(tmp_path), ())
    assert not (tmp_path / STATUS_FILE).exists()
    code, out, _ = invoke(capsys, "status", str(tmp_path))
    assert (code, "finished" in out, str(tmp_path / "report.html") in out) == (0, True, True)
    (tmp_path / "report.html").unlink()  # as `pipeline.run_experiment` leaves it
    code, out, _ = invoke(capsys, "status", str(tmp_path))
    assert (code, "finished" in out, f"`headroom report {tmp_path}` writes it" in out) == (0, True, True)
    (tmp_path / "metadata.json").unlink()
    code, out, _ = invoke(capsys, "status", str(tmp_path))
    assert (code, "unfinished" in out, "goes on" in out) == (1, True, True)


def test_a_submitted_run_waits_until_its_job_starts_and_again_between_two_jobs(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    Submission(command="x", profile="slurm", name="n", submitted=now, resubmissions=10).write(tmp_path)
    (tmp_path / JOBS_FILE).write_text("11\n")
    assert view_run(tmp_path).state == "submitted"
    assert "`squeue --jobs 11`" in view_run(tmp_path).render()
    earlier = {"started": now - timedelta(hours=2), "updated": now - timedelta(hours=1)}
    write_status(tmp_path, state="failed", driver=ELSEWHERE.model_copy(update={"job": "3"}), **earlier)
    assert view_run(tmp_path).state == "submitted", "an earlier submission's end is not this one's"
    write_status(tmp_path, driver=Driver.of_this_process(None).model_copy(update={"started": 1.0}), **earlier)
    assert view_run(tmp_path).state == "submitted", "nor is an earlier run's death"
    first = ELSEWHERE.model_copy(update={"job": "11"})
    write_status(tmp_path, driver=first)
    assert view_run(tmp_path).state == "running"
    write_status(tmp_path, driver=first, state="interrupted", error="SIGTERM")
    assert view_run(tmp_path).state == "interrupted"
    (tmp_path / JOBS_FILE).write_text("11\n12\n")
    view = view_run(tmp_path)
    assert (view.state, view.is_over) == ("resubmitted", False)
    assert "queued again 1 of 10 times" in view.render()
    write_status(tmp_path, driver=first, state="finished")
    assert view_run(tmp_path).state == "finished"
    (tmp_path / SUBMISSION_FILE).write_text("{")
    with pytest.raises(InputError, match=r"submission\.json cannot be read"):
        view_run(tmp_path)


# --- the command as a user runs it -----------------------------------------------------------------------------------


def test_partitions_are_counted_one_by_one_up_to_all_of_them(small_config: ExperimentConfig, tmp_path: Path) -> None:
    counted: list[tuple[int, int]] = []

    class Counting(SilentProgress):
        def count_parts(self, done: int, total: int, unit: str = "partitions") -> None:
            counted.append((done, total))

    run_experiment(small_config, tmp_path, progress=Counting())
    done, [total] = [one for one, _ in counted], {all_of_them for _, all_of_them in counted}
    assert done == list(range(total + 1))
    assert total > 3
    assert not list(tmp_path.glob("moments/*/partition-*"))


@pytest.mark.faults
def test_a_run_is_watched_to_its_end_and_a_watch_is_left_with_ctrl_c(config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = subprocess.Popen([HEADROOM, "run", str(config_file), "--out", str(out), "--quiet"], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: (out / STATUS_FILE).exists(), "the journal", 60)
        watch = [HEADROOM, "status", str(out), "--watch", "--interval", "0.1"]
        left = subprocess.Popen(
            watch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts
        )
        assert left.stdout is not None
        assert str(out) in left.stdout.readline()
        left.send_signal(signal.SIGINT)
        _, err = left.communicate(timeout=20)
        assert (left.returncode, err) == (0, "\n"), "leaving is no failure, and the run goes on"
        assert run.poll() is None
        done = subprocess.run([*watch, "--json"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert lines[-1]["state"] == "finished"
        assert {"running", "finished"} <= {line["state"] for line in lines}
        assert any(line["workers"] == 1 for line in lines)
        assert run.wait(60) == 0
    finally:
        run.kill()
        run.wait(10)
    assert [step["title"] for step in lines[-1]["steps"]][:1] == ["2 of 5, accumulate"]
    assert shown_on_a_terminal([HEADROOM, "status", str(out), "--watch"]).count("finished at") == 1


def shown_on_a_terminal(command: list[str]) -> str:
    main_end, other_end = pty.openpty()
    process = subprocess.Popen(command, stdout=other_end, stderr=other_end, env=os.environ | {"TERM": "xterm"})
    os.close(other_end)
    parts = []
    while select.select([main_end], [], [], 30)[0]:
        try:
            parts.append(os.read(main_end, 65536))
        except OSError:  # the other end is closed
            break
    os.close(main_end)
    assert process.wait(30) == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(parts).decode())


@pytest.mark.faults
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_ends_a_run_as_ctrl_c_does(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    out = tmp_path / "run"
    command = [HEADROOM, "run", str(config_file), "--out", str(out), "--workers", str(workers)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = []
    while "accumulate" not in (line := process.stderr.readline()):
        assert line, "the run ended before it was interrupted"
        said.append(line)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2 or workers == 1, "a single worker is a thread"
    process.terminate()
    process.terminate()  # a second one must not disturb the cleaning up
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "headroom: interrupted by SIGTERM; run the same command again to resume" in err
    assert "Traceback" not in err
    psutil.wait_procs(children, timeout=20)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert (read(out).state, read(out).error) == ("interrupted", "SIGTERM")
    assert invoke(capsys, "run", config_file, "--out", out, "--workers", "1", "--quiet")[0] == 0
    assert [one.state for one in read(out).attempts] == ["interrupted"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_deferred_signal_waits_for_the_end_of_the_block(
    number: signal.Signals, request: pytest.FixtureRequest
) -> None:
    done: list[str] = []
    request.addfinalizer(partial(signal.signal, number, signal.signal(number, signal.SIG_DFL)))
    before = signal.getsignal(number)

    def end_twice() -> None:
        with terminations_deferred():
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            done.append("whole")
        done.append("never")

    with pytest.raises(Terminated) as raised, terminations_raised():
        end_twice()
    assert done == ["whole"]
    assert raised.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_a_second_signal_does_not_disturb_the_cleaning_up() -> None:
    done: list[str] = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("cleaned up")

    with pytest.raises(Terminated), terminations_raised():
        work()
    assert done == ["cleaned up"]


SWALLOWING = """
import signal, sys, time, weakref
from pipeline.base import Terminated, terminations_raised

class Thing:
    pass

number = int(sys.argv[1])

try:
    with terminations_raised():
        try:
            thing = Thing()
            reference = weakref.ref(thing, lambda _: signal.raise_signal(number))
            del thing
            print("dropped")
            time.sleep(20)
        finally:
            time.sleep(0.1)
            print("cleaned up")
except KeyboardInterrupt as error:
    sys.exit(error.exit_code if isinstance(error, Terminated) else 130)
"""


#: As on a busy machine: the signal comes again while Python still tells that it dropped the first one.
SLOW = """
import threading, time
start = threading.Thread.start
threading.Thread.start = lambda thread: (start(thread), time.sleep(0.1))
"""


@pytest.mark.parametrize("slowly", ["", SLOW], ids=["at once", "slowly"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_that_python_drops_is_raised_again(number: signal.Signals, slowly: str) -> None:
    command = [sys.executable, "-c", slowly + SWALLOWING, str(int(number))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=15, preexec_fn=hear_interrupts)
    assert (ended.returncode, ended.stderr) == (128 + number, "")
    assert ended.stdout.split("\n")[:2] == ["dropped", "cleaned up"]


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminations_raised():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_folder_can_be_deleted_under_a_journal(tmp_path: Path, quick: None) -> None:
    with RunJournal(tmp_path / "run", COMMAND) as journal:
        shutil.rmtree(tmp_path / "run")
        journal.enter("running")
        time.sleep(0.3)


def test_the_log_keeps_all_attempts_line_by_line(tmp_path: Path) -> None:
    """Steps with their seconds, notes, and how each attempt ended; a line break in a message begins no line."""
    for error in (None, InputError("bad\nspectra")):
        with suppress(InputError), RunJournal(tmp_path, COMMAND) as journal:
            progress = journal.progress(SilentProgress())
            progress.note("a note")
            with progress.step("accumulate", 7) as advance:
                advance(7)
            if error:
                raise error
    lines = (tmp_path / RUN_LOG).read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S", line) for line in lines)
    said = [line[20:] for line in lines]
    assert said[0] == f"begun by process {os.getpid()} on {socket.gethostname()}: {COMMAND}"
    assert said[1:3] == ["a note", "accumulate: 7 spectra"]
    assert re.fullmatch(r"accumulate: done in [\d.]+ s", said[3])
    assert (said[4], said[9], len(said)) == ("finished", "failed: bad spectra", 10)


def test_a_log_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / RUN_LOG).symlink_to(tmp_path / "precious")
    with RunJournal(tmp_path, COMMAND):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_log_is_text_for_its_owner_and_no_program(tmp_path: Path) -> None:
    LogFile(tmp_path / "run.log").say("a line")
    (tmp_path / "plain").touch()
    assert (tmp_path / "run.log").stat().st_mode == (tmp_path / "plain").stat().st_mode
