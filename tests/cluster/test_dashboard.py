"""What a user sees of a run on Dask's dashboard, live and kept, and how to get to it."""

from __future__ import annotations

import os
import shlex
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from browsing import keep_picture
from dask.utils import key_split
from distributed import Client
from distributed.diagnostics.progress_stream import progress_quads
from distributed.utils import key_split_group

import pipeline
from cluster import LocalProfile, connect_local, load_profile
from cluster.dashboard import DashboardAddress, announce, find_dashboard, has_screen, tunnel_command
from pipeline.base import list_recordings, name_group, recorded
from pipeline.cli.cluster import ClusterChoice
from pipeline.config import ExperimentConfig
from pipeline.errors import ConfigError, InputError, ResourceError
from pipeline.report import render_report
from pipeline.run.folder import save_config

#: The names that the progress page has drawn or may draw, from the numbers behind its picture.
NAMES_ON_PAGE = """() => Bokeh.documents
  .flatMap(document => Array.from(document._all_models.values()))
  .filter(model => model.type == "ColumnDataSource" && model.get_column("show-name"))
  .flatMap(model => Array.from(model.get_column("name")))"""


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with connect_local(LocalProfile(workers=2, threads=1, memory_limit=2**31)) as client:
        yield client


@pytest.mark.parametrize(
    "subject",
    ["fold 2", "folds 3 to 14", "bins", "SNR-4", "9 bins, or so", "<a b>", "[M/H]", "_x", "---", "f" * 32, "é-1"],
)
def test_a_group_has_the_name_of_its_tasks_whatever_a_user_calls_a_binning(subject: str) -> None:
    name = name_group(subject, "solve")
    key = (name, "runs/my/moments/seed-42_noise-1.0", 3)
    assert key_split(key) == key_split_group(key) == name
    assert name.endswith(": solve")


def test_the_names_drawn_on_the_progress_page_tell_folds_apart() -> None:
    names = [name_group(f"fold {k}", "accumulate") for k in range(24)]
    counts = dict.fromkeys(names, 1)
    states = ("memory", "erred", "released", "processing", "queued")
    drawn = progress_quads({"all": counts, **{state: {} for state in states}})["show-name"]
    assert len(set(drawn)) == len(names)
    assert "fold 2: accu..." in drawn


def test_a_run_leaves_its_groups_under_readable_names_and_a_page_that_the_report_links(
    client: Client, small_config: ExperimentConfig, tmp_path: Path
) -> None:
    design = {"grid": {"T_eff": [3750, 4500, 6000], "M_H": [-2, 0, 0.5]}, "experts": 4}
    config = ExperimentConfig.model_validate(
        small_config.to_dict() | {"design": design, "binnings": {"SNR-2": SNR}, "seeds": [42]}
    )
    results = pipeline.run_experiment(config, tmp_path / "run", client=client, command="headroom run <my>.yaml")
    seen = set(client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_prefixes)))
    expected = {"fold 0: accumulate", "fold 2: accumulate", "bins: solve", "SNR 2: solve", "T_eff only: solve"}
    expected |= {"global: design", "rows 0 to 2: design"}
    assert expected <= seen

    [page] = list_recordings(tmp_path / "run")
    text = page.read_text(encoding="utf-8")
    assert page.name == "dask_report-1.html"
    assert "fold 0: accumulate" in text
    assert "<my>.yaml" not in text
    assert "<script src" not in text
    assert "://" not in text.split("<script")[0]

    markdown, html = render_report(results, ())
    assert '<a href="dask_report-1.html">' in html.read_text(encoding="utf-8")
    assert "[dask_report-1.html](dask_report-1.html)" in markdown.read_text(encoding="utf-8")


SNR = {"snr": {"quantiles": 2}}


def test_a_resumed_run_adds_a_page_and_one_that_finds_all_done_adds_none(
    client: Client, small_config: ExperimentConfig, tmp_path: Path
) -> None:
    pipeline.run_experiment(small_config, tmp_path, client=client)
    first = (tmp_path / "dask_report-1.html").read_bytes()
    pipeline.run_experiment(small_config, tmp_path, client=client)
    assert [page.name for page in list_recordings(tmp_path)] == ["dask_report-1.html"]
    config = ExperimentConfig.model_validate(small_config.to_dict() | {"ridge": {"alpha": {"per_spectrum": 0.2}}})
    pipeline.run_experiment(config, tmp_path, client=client)
    assert [page.name for page in list_recordings(tmp_path)] == ["dask_report-1.html", "dask_report-2.html"]
    assert (tmp_path / "dask_report-1.html").read_bytes() == first


def test_pages_are_listed_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        (tmp_path / f"dask_report-{number}.html").touch()
    (tmp_path / "dask_report-x.html").touch()
    assert [page.stem for page in list_recordings(tmp_path)] == ["dask_report-1", "dask_report-9", "dask_report-10"]


def _sleepy(seconds: float) -> float:
    import time

    time.sleep(seconds)
    return seconds


def test_what_fails_is_recorded_too_and_raised_as_it_was(client: Client, tmp_path: Path) -> None:
    def fail() -> None:
        client.submit(_sleepy, 0.01, pure=False).result()
        raise InputError("the store is damaged")

    with pytest.raises(InputError, match="the store is damaged"), recorded(client, tmp_path):
        fail()
    assert len(list_recordings(tmp_path)) == 1


def test_a_page_that_cannot_be_written_is_told_and_fails_no_run(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    said: list[str] = []
    with recorded(client, tmp_path / "file", say=said.append):
        client.submit(_sleepy, 0.01, pure=False).result()
    [line] = said
    assert line.startswith("no Dask performance report of this run: cannot write ")


def test_a_cluster_that_is_gone_at_the_end_fails_no_run(tmp_path: Path) -> None:
    with connect_local(LocalProfile(workers=1, threads=1, memory_limit=2**30)) as short_lived:
        outer = recorded(short_lived, tmp_path)
        outer.__enter__()
        short_lived.submit(_sleepy, 0.01, pure=False).result()
    outer.__exit__(None, None, None)
    assert list_recordings(tmp_path) == []


@pytest.mark.parametrize(
    ("address", "environment", "expected"),
    [
        (DashboardAddress(8787), {}, None),
        (DashboardAddress(8787), {"SLURM_JOB_ID": "7"}, None),
        (
            DashboardAddress(8787),
            {"SSH_CONNECTION": "10.0.0.9 50022 10.0.0.2 22"},
            "ssh -N -L 8787:127.0.0.1:8787 ada@10.0.0.2",
        ),
        (
            DashboardAddress(8787),
            {"SSH_CONNECTION": "fe80::9 50022 fe80::2 2022"},
            "ssh -N -L 8787:127.0.0.1:8787 -p 2022 ada@fe80::2",
        ),
        # A batch job inherits the session that it was submitted in, which led to the login node.
        (
            DashboardAddress(40001),
            {
                "SSH_CONNECTION": "10.0.0.9 50022 10.0.0.2 22",
                "SLURM_JOB_ID": "7",
                "SLURMD_NODENAME": "node12",
                "SLURM_SUBMIT_HOST": "login1",
            },
            "ssh -N -L 40001:127.0.0.1:40001 -J ada@login1 ada@node12",
        ),
        (
            DashboardAddress(40001),
            {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "node12", "SLURM_SUBMIT_HOST": "node12"},
            "ssh -N -L 40001:127.0.0.1:40001 ada@node12",
        ),
        # The scheduler runs on another machine than this.
        (DashboardAddress(8787, "sched-3"), {}, "ssh -N -L 8787:127.0.0.1:8787 ada@sched-3"),
    ],
    ids=["here", "salloc", "ssh", "ssh, other port", "batch job", "job of its own node", "scheduler elsewhere"],
)
def test_the_tunnel_leads_to_the_machine_that_the_dashboard_listens_on(
    address: DashboardAddress, environment: dict[str, str], expected: str | None
) -> None:
    assert tunnel_command(address, environment, user="ada", machine="node12") == expected


def test_what_the_environment_says_is_quoted_in_the_tunnel() -> None:
    environment = {"SLURMD_NODENAME": "n", "SLURM_SUBMIT_HOST": "a; touch b"}
    command = tunnel_command(DashboardAddress(1), environment, user="ada", machine="n1")
    assert command is not None
    assert shlex.split(command)[4:] == ["-J", "ada@a; touch b", "ada@n1"]


def test_only_a_user_who_sits_at_the_machine_has_a_screen() -> None:
    if sys.platform != "linux":
        pytest.skip("elsewhere there is a screen without a variable that says so")
    assert has_screen({"DISPLAY": ":0"})
    assert has_screen({"WAYLAND_DISPLAY": "wayland-0"})
    assert not has_screen({})
    assert not has_screen({"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "1 2 3 22"})
    assert not has_screen({"DISPLAY": ":0", "SLURM_JOB_ID": "7"})


def test_the_dashboard_is_found_on_loopback_and_nowhere_else(client: Client) -> None:
    address = find_dashboard(client)
    assert address is not None
    assert address.host is None
    with socket.create_connection(("127.0.0.1", address.port), timeout=5):
        pass
    # Another address of loopback: a dashboard on all interfaces would answer there, and one on 127.0.0.1 does not.
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", address.port), timeout=5)


def test_the_announcement_gives_the_link_and_the_way_there(client: Client) -> None:
    address = find_dashboard(client)
    assert address is not None
    here: list[str] = []
    announce(client, here.append, environment={})
    assert here == [f"dashboard: http://127.0.0.1:{address.port}/status"]
    far: list[str] = []
    announce(client, far.append, browser=True, environment={"SSH_CONNECTION": "1 2 10.0.0.2 22", "DISPLAY": ":0"})
    assert far[0] == here[0]
    assert f"-L {address.port}:127.0.0.1:{address.port}" in far[1]
    assert far[1].endswith("@10.0.0.2")


@pytest.mark.slow  # a run in a program of its own
def test_the_dashboard_option_opens_the_link_in_the_users_browser(
    small_config: ExperimentConfig, tmp_path: Path
) -> None:
    if sys.platform != "linux":
        pytest.skip("how a browser is chosen differs")
    opened, program = tmp_path / "opened", tmp_path / "browser"
    program.write_text(f'#!/bin/sh\necho "$1" > {shlex.quote(str(opened))}\n')
    program.chmod(stat.S_IRWXU)
    save_config(small_config, tmp_path)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SSH_", "SLURM"))}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", "config.yaml", "--out", "run", "--quiet", "--dashboard"],
        cwd=tmp_path,
        env=environment | {"DISPLAY": ":99", "BROWSER": f"{program} %s"},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    link = opened.read_text().strip()
    assert link.startswith("http://127.0.0.1:")
    assert f"dashboard: {link}" in done.stdout


def _in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[BaseException]]:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, failures


@pytest.mark.slow  # a browser watches a run
def test_the_live_progress_page_shows_our_groups(
    client: Client, browser: Any, small_config: ExperimentConfig, tmp_path: Path
) -> None:
    # As many draws as keep two workers busy for some seconds.
    compute = {"folds": 3, "partition_rows": 250, "run_rows": 128, "sharing_gib": 1e-3}
    config = ExperimentConfig.model_validate(small_config.to_dict() | {"seeds": list(range(24)), "compute": compute})
    address = find_dashboard(client)
    assert address is not None
    page = browser.new_page(viewport={"width": 1200, "height": 500})
    page.goto(address.link.replace("/status", "/individual-progress"))
    page.wait_for_function("() => window.Bokeh && Bokeh.documents.length > 0")
    thread, failures = _in_thread(lambda: pipeline.run_experiment(config, tmp_path / "run", client=client))
    try:
        for wanted in (["fold 0: accumulate", "fold 1: accumulate", "fold 2: accumulate"], ["bins: solve"]):
            page.wait_for_function(
                f"wanted => {{ const names = ({NAMES_ON_PAGE})(); return wanted.every(name => names.includes(name)) }}",
                arg=wanted,
                timeout=30_000,
            )
            page.wait_for_timeout(300)  # the picture follows the numbers
            keep_picture(page, f"progress-{wanted[0].partition(':')[2].strip()}.png", tmp_path)
    finally:
        thread.join(timeout=120)
        page.close()
    assert not thread.is_alive()
    assert failures == []


@pytest.mark.slow  # a run, and a browser
def test_the_kept_page_opens_without_a_network(
    client: Client, browser: Any, small_config: ExperimentConfig, tmp_path: Path
) -> None:
    pipeline.run_experiment(small_config, tmp_path / "run", client=client, command="headroom run my.yaml")
    [kept] = list_recordings(tmp_path / "run")
    context = browser.new_context(offline=True, viewport={"width": 1200, "height": 700})
    page = context.new_page()
    asked: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(kept.as_uri())
    page.get_by_text("headroom run my.yaml").wait_for(timeout=20_000)
    page.get_by_text("Task Stream", exact=True).click()
    page.wait_for_timeout(500)
    keep_picture(page, "dask-report-tasks.png", tmp_path)
    context.close()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert problems == []


def test_the_port_can_be_fixed(tmp_path: Path) -> None:
    """By the profile, and by the option, which counts more; it is on loopback as ever."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    file = tmp_path / "site.yaml"
    file.write_text(f"kind: local\ndashboard_port: {port}\n")
    with connect_local(load_profile(file)) as client:
        assert find_dashboard(client) == DashboardAddress(port)
        own = [one.laddr for one in psutil.Process().net_connections() if one.status == psutil.CONN_LISTEN]
        assert ("127.0.0.1", port) in own
        assert {address.ip for address in own} == {"127.0.0.1"}
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(ResourceError, match=rf"port {port} .*--dashboard-port"),
        connect_local(load_profile(file)),
    ):
        pass
    assert ClusterChoice(str(file), port=8123).profile().dashboard_address == "127.0.0.1:8123"
    assert ClusterChoice("slurm", port=8123).profile().dashboard_address == "127.0.0.1:8123"
    assert ClusterChoice("slurm").profile().dashboard_address == "127.0.0.1:0"
    with pytest.raises(ConfigError, match="--dashboard-port"):
        ClusterChoice("address", port=8123).profile()
    file.write_text("kind: local\ndashboard_port: 70000\n")
    with pytest.raises(ConfigError, match="dashboard_port"):
        load_profile(file)
