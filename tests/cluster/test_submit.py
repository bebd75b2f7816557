"""The driver's batch script as text and under a real bash, and what ``headroom submit`` refuses; no SLURM is needed.

What SLURM itself makes of it: tests/slurm/test_submit.py.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from commands import invoke, wait_until

from cluster import SlurmProfile
from cluster.submit import driver_name, render_driver_script
from pipeline.base import RunStatus
from pipeline.base.status import STATUS_FILE, Driver
from pipeline.cli.app import cli
from pipeline.config import ExperimentConfig
from pipeline.errors import InputError

ODD_NAME = """it's 100% "my" $(run) #1"""
PROFILE: dict[str, Any] = {"kind": "slurm", "jobs": 1, "cores": 1, "memory": "2G", "walltime": "01:00:00"}


def make_profile(**changes: Any) -> SlurmProfile:
    return SlurmProfile.model_validate(PROFILE | changes)


def options_of(script: str) -> dict[str, str]:
    """The ``#SBATCH`` lines, by option; all are above the first command, where sbatch stops reading."""
    head = script.split("\n\n", 1)[0].splitlines()
    assert head[0] == "#!/usr/bin/env bash"
    lines = [line.removeprefix("#SBATCH ") for line in head[1:]]
    assert "#SBATCH" not in script.split("\n\n", 1)[1]
    found = {}
    for line in lines:
        option, _, value = line.partition("=" if line.startswith("--") else " ")
        found[option] = value
    return found


def test_the_script_asks_for_what_the_profile_says(tmp_path: Path) -> None:
    profile = make_profile(
        partition="compute",
        account="stars",
        qos="normal",
        setup=["module load python", "source ~/env/bin/activate"],
        python="/opt/my python/bin/python",
        driver={"cores": 3, "memory": "4G", "walltime": "1-02:00:00", "resubmissions": 7, "partition": "long"},
    )
    script = render_driver_script(profile, ["run", "demo", "--out", "/runs/first"], Path("/runs/first"))
    assert options_of(script) == {
        "--job-name": "headroom-driver-first",
        "--output": '"/runs/first/driver.log"',
        "--open-mode": "append",
        "-n": "1",
        "--cpus-per-task": "3",
        "--mem": "4096M",
        "-t": "1-02:00:00",
        "--partition": "long",
        "--account": "stars",
        "--qos": "normal",
        "--signal": "B:USR1@180",
        "--requeue": "",
    }
    assert "allowed=7\n" in script
    lines = script.splitlines()
    assert lines.index("module load python") < lines.index("source ~/env/bin/activate")
    assert "'/opt/my python/bin/python' -P -m pipeline run demo --out /runs/first &" in lines


def test_what_a_profile_leaves_open_or_a_site_refuses_is_not_in_the_script() -> None:
    script = render_driver_script(make_profile(skip_directives=["--mem", "-n"]), ["run", "demo"], Path("/runs/first"))
    assert options_of(script).keys() == {
        *("--job-name", "--output", "--open-mode", "--cpus-per-task", "-t", "--signal", "--requeue")
    }
    assert f"{sys.executable} -P -m pipeline run demo &" in script


@pytest.mark.parametrize(("walltime", "seconds"), [("00:01:00", 15), ("00:20:00", 120), ("24:00:00", 180)])
def test_the_signal_leaves_time_to_stop_however_short_the_job(walltime: str, seconds: int) -> None:
    script = render_driver_script(make_profile(driver={"walltime": walltime}), ["run", "demo"], Path("/runs/first"))
    assert options_of(script)["--signal"] == f"B:USR1@{seconds}"


def test_a_folder_that_slurm_cannot_name_is_refused() -> None:
    for name in ("back\\slash", "line\nbreak"):
        with pytest.raises(InputError, match="backslash"):
            render_driver_script(make_profile(), ["run", "demo"], Path("/runs") / name)


def test_the_name_of_the_job_is_a_word() -> None:
    assert driver_name(Path("/runs") / ODD_NAME) == "headroom-driver-it_s_100_my_run_1"


# --- under a real bash, with programs that stand for Python and SLURM -----------------------------


class Job:
    """The driver's script as SLURM would start it."""

    def __init__(self, folder: Path, run: str, sbatch: str = "echo '78;main'", argument: str = "0", **job: Any) -> None:
        self.run_folder = folder / ODD_NAME
        self.run_folder.mkdir()
        self.said = folder / "said"
        programs = folder / "programs"
        programs.mkdir()
        for name, lines in (
            ("python", run),
            ("sbatch", f'echo "sbatch $*" >> {shlex.quote(str(self.said))}\n{sbatch}'),
            ("scancel", f'echo "scancel $*" >> {shlex.quote(str(self.said))}'),
        ):
            (programs / name).write_text(f"#!/usr/bin/env bash\n{lines}\n")
            (programs / name).chmod(0o755)
        profile = make_profile(python=str(programs / "python"), driver=job)
        text = render_driver_script(profile, ["run", "my config.yaml", "--out", str(self.run_folder)], self.run_folder)
        self.script = self.run_folder / "driver.sh"
        self.script.write_text(text)
        self.process = subprocess.Popen(
            ["bash", str(self.script), argument],
            env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )

    def wait_for(self, file: str) -> None:
        wait_until((self.run_folder.parent / file).exists, "the run starts")

    def finish(self, code: int) -> str:
        out, err = self.process.communicate(timeout=30)
        assert self.process.returncode == code, err
        return out + err

    @property
    def asked(self) -> list[str]:
        return self.said.read_text().splitlines() if self.said.exists() else []


#: A run that ends in order when it is told to.
PATIENT = "trap 'exit 143' TERM; touch started; while :; do sleep 0.05; done"


def test_paths_and_arguments_arrive_as_they_are(tmp_path: Path) -> None:
    job = Job(tmp_path, 'printf "%s\\n" "$@"')
    printed = job.finish(0).splitlines()
    wanted = ["-P", "-m", "pipeline", "run", "my config.yaml", "--out", str(job.run_folder)]
    assert [line for line in printed if not line.startswith("headroom: ")] == wanted
    assert job.asked == []


def test_a_run_that_fails_ends_the_job_with_its_exit_code(tmp_path: Path) -> None:
    job = Job(tmp_path, "exit 3")
    assert "ends with exit code 3" in job.finish(3)
    assert job.asked == []


def test_before_the_walltime_a_successor_is_queued_and_the_run_stops_in_order(tmp_path: Path) -> None:
    job = Job(tmp_path, PATIENT, argument="2", resubmissions=3)
    job.wait_for("started")
    job.process.send_signal(signal.SIGUSR1)
    assert "goes on in job 78" in job.finish(143)
    assert job.asked == [f"sbatch --parsable --dependency=afterany:77 {job.script} 3"]
    assert (job.run_folder / "driver_jobs.txt").read_text() == "78\n"


def test_the_number_of_successors_is_bounded(tmp_path: Path) -> None:
    job = Job(tmp_path, PATIENT, argument="3", resubmissions=3)
    job.wait_for("started")
    job.process.send_signal(signal.SIGUSR1)
    assert "queued again 3 times already; `headroom submit` again to go on" in job.finish(143)
    assert job.asked == []


def test_a_successor_that_sbatch_refuses_is_told_and_the_run_stops_in_order_all_the_same(tmp_path: Path) -> None:
    job = Job(tmp_path, PATIENT, sbatch="echo 'sbatch: error: over quota' >&2; exit 1")
    job.wait_for("started")
    job.process.send_signal(signal.SIGUSR1)
    said = job.finish(143)
    assert "over quota" in said
    assert "`headroom submit` again to go on" in said
    assert not (job.run_folder / "driver_jobs.txt").exists()


def test_a_run_that_ends_by_itself_in_that_moment_needs_no_successor(tmp_path: Path) -> None:
    job = Job(tmp_path, PATIENT.replace("exit 143", "exit 0"))
    job.wait_for("started")
    job.process.send_signal(signal.SIGUSR1)
    assert "job 78 is not needed" in job.finish(0)
    assert job.asked[1:] == ["scancel 78"]


def test_a_cancelled_job_stops_the_run_in_order_and_queues_none(tmp_path: Path) -> None:
    job = Job(tmp_path, PATIENT)
    job.wait_for("started")
    job.process.send_signal(signal.SIGTERM)
    job.finish(143)
    assert job.asked == []


# --- the command -----------------------------


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command here; whatever is wrong, it says so in one line."""
    code, out, err = invoke(capsys, *arguments)
    assert len([line for line in err.splitlines() if line.startswith("headroom: ")]) == (code != 0)
    return code, out, err


@pytest.fixture
def config_file(small_config: ExperimentConfig, tmp_path: Path) -> Path:
    path = tmp_path / "my config.yaml"
    path.write_text(yaml.safe_dump(small_config.to_dict(), sort_keys=False))
    return path


@pytest.fixture
def profile_file(tmp_path: Path) -> Path:
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(PROFILE))
    return path


def test_a_dry_run_prints_the_script_and_writes_nothing(
    config_file: Path, profile_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    options = ("--profile", "site.yaml", "--out", "run", "--min", 1, "--max", 4, "--dry-run")
    code, out, err = ask(capsys, "submit", config_file.name, *options)
    assert (code, err) == (0, "")
    [line] = [line for line in out.splitlines() if "-m pipeline run" in line]
    wanted = ["run", str(config_file), "--out", str(tmp_path / "run"), "--cluster", str(profile_file)]
    assert shlex.split(line)[4:-1] == [*wanted, "--min", "1", "--max", "4"]
    assert subprocess.run(["bash", "-n"], input=out, text=True, capture_output=True).stderr == ""
    assert sorted(tmp_path.iterdir()) == before


def test_where_there_is_no_sbatch_nothing_is_left(
    config_file: Path, profile_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = ask(capsys, "submit", config_file, "--profile", profile_file, "--out", tmp_path / "run")
    assert code == 3
    assert "sbatch is not there" in err
    assert not (tmp_path / "run").exists()


def test_a_profile_without_batch_jobs_is_refused(config_file: Path, tmp_path: Path, capsys: Any) -> None:
    code, _, err = ask(capsys, "submit", config_file, "--profile", "local", "--out", tmp_path / "run")
    assert code == 2
    assert "a profile of kind slurm is required, found kind local" in err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory": "128M"}, "set `memory: "),
        ({"driver": {"memory": "65M"}}, "set `driver: {memory: "),
    ],
)
def test_a_run_that_does_not_fit_its_jobs_is_refused_before_anything_is_queued(
    config_file: Path, profile_file: Path, tmp_path: Path, changes: dict[str, Any], words: str, capsys: Any
) -> None:
    profile_file.write_text(yaml.safe_dump(PROFILE | changes))
    code, _, err = ask(capsys, "submit", config_file, "--profile", profile_file, "--out", tmp_path / "run")
    assert code == 3
    assert words in err
    assert not (tmp_path / "run").exists()


def test_a_folder_where_a_run_is_under_way_is_refused(
    config_file: Path, profile_file: Path, tmp_path: Path, capsys: Any
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    now = datetime.now(UTC)
    driver = Driver(host="node17", pid=1, started=0.0, job="4711")
    status = RunStatus(state="running", command="x", driver=driver, started=now, updated=now)
    (run / STATUS_FILE).write_text(status.model_dump_json())
    code, _, err = ask(capsys, "submit", config_file, "--profile", profile_file, "--out", run)
    assert code == 2
    assert "a run is under way" in err
    assert "node17 (job 4711)" in err
    assert [path.name for path in run.iterdir()] == [STATUS_FILE]


def test_what_was_submitted_is_remembered(
    config_file: Path, profile_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """With a program that stands for sbatch, which is asked once and for the script in the run folder."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sbatch").write_text(f'#!/usr/bin/env bash\necho "$*" > {tmp_path}/asked\necho "4711;main"\n')
    (programs / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    run = tmp_path / "run"
    code, out, _ = ask(capsys, "submit", config_file, "--profile", profile_file, "--out", run)
    assert code == 0
    assert "job 4711 is queued" in out
    assert f"headroom status {run} --watch" in out
    assert (tmp_path / "asked").read_text().split() == ["--parsable", str(run / "driver.sh"), "0"]
    assert (run / "driver_jobs.txt").read_text() == "4711\n"
    remembered = json.loads((run / "submission.json").read_text())
    assert remembered["resubmissions"] == 10
    assert shlex.split(remembered["command"])[:3] == ["headroom", "run", str(config_file)]
    code, out, _ = ask(capsys, "status", run)
    assert (code, "submitted" in out, "`squeue --jobs 4711`" in out) == (0, True, True)


def test_every_command_of_the_readme_exists_with_its_options() -> None:
    page = (Path(__file__).parents[2] / "cluster" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", page, flags=re.S)
    commands = [found for block in blocks for found in re.findall(r"^headroom ([^#>|\n]+)", block, flags=re.M)]
    assert len(commands) >= 7
    for command in commands:
        arguments = shlex.split(command)
        context = cli.make_context("headroom", list(arguments))
        while isinstance(context.command, click.Group):
            name, found, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
            assert found is not None, command
            context = found.make_context(name, rest, parent=context)
