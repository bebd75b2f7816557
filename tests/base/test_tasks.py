from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator
from pathlib import Path
from threading import Thread

import dask
import pytest
from distributed import Client

from cluster import LocalProfile, connect_local
from pipeline.base import Task, process_workspace, release_workspace, run_tasks
from pipeline.errors import ResourceError


def count_to(argument: int, report: Callable[[int], None]) -> int:
    for done in range(1, argument + 1):
        time.sleep(0.1)
        report(done)
    return argument


def die_once(marker: str, report: Callable[[int], None]) -> int:
    for done in range(1, 6):
        time.sleep(0.1)
        report(done)
    if not Path(marker).exists():
        Path(marker).touch()
        time.sleep(0.3)  # the report must be on its way
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


def always_die(_: int, report: Callable[[int], None]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_progress_comes_while_a_task_runs_and_adds_up(one_worker: Client) -> None:
    tasks = [Task(("count", k), 12, 12) for k in range(2)]
    heard: list[tuple[int, int]] = []
    finished: list[int] = []
    for _, result in run_tasks(one_worker, count_to, tasks, "counting", lambda n: heard.append((n, len(finished)))):
        finished.append(result)
    assert finished == [12, 12]
    assert sum(n for n, _ in heard) == 24
    assert sum(1 for _, at in heard if at == 0) >= 3, "several reports came before the first task was done"


@pytest.mark.faults
def test_a_task_that_runs_again_is_counted_once(tmp_path: Path) -> None:
    heard: list[int] = []
    tasks = [Task(("die", 0), str(tmp_path / "died"), 5)]
    with connect_local(LocalProfile(workers=1, processes=True, memory_limit=2**30)) as client:
        assert [r for _, r in run_tasks(client, die_once, tasks, "dying", heard.append)] == [1]
    assert (tmp_path / "died").exists()
    assert sum(heard) == 5
    assert min(heard) > 0


def test_another_driver_on_the_same_scheduler_never_answers(one_worker: Client) -> None:
    first = one_worker
    with Client(first.scheduler.address, security=first.security, set_as_default=False) as second:
        held = run_tasks(first, count_to, [Task(("count", 0), 1, 1), Task(("count", 1), 1, 1)], "counting", print)
        assert next(held)[1] == 1
        # The same keys, as after a change of settings; the first driver has not let go of its results yet.
        tasks = [Task(("count", k), 2, 2) for k in range(2)]
        assert [result for _, result in run_tasks(second, count_to, tasks, "counting", print)] == [2, 2]
        assert isinstance(held, Generator)
        held.close()


@pytest.mark.faults
def test_what_a_lost_worker_had_finished_is_computed_again_or_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver is busy with the first result while the only worker, which holds the second one, is killed."""
    monkeypatch.setattr("pipeline.base.tasks.SECONDS_BETWEEN_CHECKS", 0.05)
    with connect_local(LocalProfile(workers=1, processes=True, memory_limit=2**30)) as client:
        tasks, results = [Task(("count", k), 3, 3) for k in range(4)], []
        for task, result in run_tasks(client, count_to, tasks, "counting", lambda _: None):
            results.append(result)
            if task.key[1] == 0:
                time.sleep(1.5)
                for pid in client.run(os.getpid).values():
                    os.kill(pid, signal.SIGKILL)
                time.sleep(1)
    assert results == [3, 3, 3, 3]


@pytest.mark.faults
def test_run__raise_when_workers_die_again_and_again() -> None:
    with (
        connect_local(LocalProfile(workers=1, processes=True, memory_limit=2**30)) as client,
        pytest.raises(ResourceError, match="died again and again while testing"),
    ):
        list(run_tasks(client, always_die, [Task(("die", 0), 0, 1)], "testing", lambda _: None))


def hang(_: int, report: Callable[[int], None]) -> None:
    report(0)
    time.sleep(60)


@pytest.mark.faults
def test_run__raise_when_workers_are_there_but_nothing_advances() -> None:
    """As on a file system that does not answer: the worker's own heart beats on."""
    started = time.monotonic()
    with (
        dask.config.set({"headroom.no-progress-timeout": "3s"}),
        connect_local(LocalProfile(workers=1, processes=True, memory_limit=2**30)) as client,
        pytest.raises(ResourceError, match=r"for 3 s while testing, .*1 workers"),
    ):
        list(run_tasks(client, hang, [Task(("hang", 0), 0, 1)], "testing", lambda _: None))
    assert time.monotonic() - started < 40


@pytest.mark.faults
def test_a_task_that_advances_slowly_is_waited_for() -> None:
    with (
        dask.config.set({"headroom.no-progress-timeout": "2s"}),
        connect_local(LocalProfile(workers=1, processes=True, memory_limit=2**30)) as client,
    ):
        [(_, result)] = run_tasks(client, count_to, [Task(("count", 0), 40, 40)], "counting", lambda _: None)
    assert result == 40


@pytest.mark.timeout(30)
def test_results_are_found_where_no_thread_tells_of_them(one_worker: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under ``ulimit``, where Dask cannot start the thread that calls back."""
    monkeypatch.setattr("pipeline.base.tasks.SECONDS_BETWEEN_CHECKS", 0.05)
    monkeypatch.setattr("distributed.Future.add_done_callback", lambda *_: None)
    tasks = [Task(("count", k), k, k) for k in (1, 2)]
    assert sorted(result for _, result in run_tasks(one_worker, count_to, tasks, "counting", lambda _: None)) == [1, 2]


def count_in_a_file(file: str, report: Callable[[int], None]) -> None:
    for done in range(200):
        Path(file).write_text(str(done))
        time.sleep(0.05)
        report(done)


def test_a_task_in_this_process_ends_when_its_driver_stops_waiting(tmp_path: Path) -> None:
    file = tmp_path / "count"

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with connect_local(LocalProfile(memory_limit=2**30)) as client, pytest.raises(KeyboardInterrupt):
        list(run_tasks(client, count_in_a_file, [Task(("count", 0), str(file), 200)], "counting", interrupt))
    time.sleep(0.2)
    reached = file.read_text()
    time.sleep(0.3)
    assert file.read_text() == reached
    assert int(reached) < 100


def test_memory_in_use_is_not_waited_for() -> None:
    """A cluster in this process closes while a task that nobody wants any more still computes."""
    with process_workspace() as workspace:
        [numbers] = workspace.lease(((4,), float))
        numbers[:] = 7
        release = Thread(target=release_workspace)
        release.start()
        release.join(5)
        assert not release.is_alive()
        assert numbers.tolist() == [7] * 4
    release_workspace()


def test_tasks_run_here_without_a_client() -> None:
    heard: list[int] = []
    tasks = [Task(("count", k), k, k) for k in (1, 3)]
    assert [r for _, r in run_tasks(None, count_to, tasks, "counting", heard.append)] == [1, 3]
    assert sum(heard) == 4
