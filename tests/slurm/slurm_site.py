"""A real SLURM of three nodes on this machine, made of the distribution's packages, for as long as a block lasts.

Everything lives in one folder of its own, listens on loopback, and takes ports that were free: a SLURM that the
machine has already is not touched, and several sites may run side by side. Its daemons are children of this process:
they are stopped in order, waited for, and stop by themselves if this process is killed.

As a command it runs another one with a site up: ``python tests/slurm/slurm_site.py sinfo``.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue")
NODES = ("n1", "n2", "n3")
CPUS, MEMORY_MB = 2, 4000
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_COMMAND_SECONDS = 30.0
_STARTS = 3

_CONF = """\
ClusterName=headroom
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/log/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/log/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
KillWait=2
OverTimeLimit=0
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=ALL MaxTime=1 State=UP
PartitionName=closed Nodes=ALL MaxTime=INFINITE State=DOWN
"""


class SiteError(Exception):
    """SLURM cannot be started here, or does not answer; the message says why and quotes its logs."""


@dataclass(frozen=True)
class Job:
    """A line of ``squeue``."""

    id: int
    name: str
    state: str
    reason: str


def what_is_missing() -> str | None:
    """Return why no site can be started on this machine, or None if one can."""
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install munge slurmctld slurmd slurm-client"
    return None


class SlurmSite:
    """A running SLURM; a context manager.

    Attributes
    ----------
    folder
        Configuration, state, logs; deleted at the end.
    environment
        What a command needs to talk to this site, and to no other: give it to subprocesses, or to
        ``monkeypatch.setenv`` where the code under test starts them.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="headroom-slurm-"))  # readable by its owner only
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self.daemons: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Self:
        if reason := what_is_missing():
            shutil.rmtree(self.folder, ignore_errors=True)
            raise SiteError(reason)
        try:
            for attempt in range(1, _STARTS + 1):
                try:
                    self._start()
                    break
                except SiteError:
                    # A port may have been taken since it was found free.
                    self._stop_daemons()
                    if attempt == _STARTS:
                        raise
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- what tests ask of it ------------------------------------------------------------------------

    def run(self, *command: str, check: bool = True, timeout: float = _COMMAND_SECONDS) -> str:
        """Run a command of SLURM's against this site and return what it printed, errors included."""
        done = subprocess.run(
            command,
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise SiteError(f"{' '.join(command)}: exit {done.returncode}: {done.stdout.strip()}")
        return done.stdout

    def jobs(self, *states: str) -> list[Job]:
        """Return jobs that are in the queue, in order of submission; all of them, or those in the states given."""
        lines = self.run("squeue", "--noheader", "--array", "--format=%A|%j|%T|%r").splitlines()
        found = [Job(int(i), name, state, reason) for i, name, state, reason in (line.split("|", 3) for line in lines)]
        return sorted((job for job in found if not states or job.state in states), key=lambda job: job.id)

    def cancel(self, *jobs: Job | int) -> None:
        """Cancel jobs; whoever waits for their end calls :meth:`wait_until`."""
        if jobs:
            self.run("scancel", *(str(job.id if isinstance(job, Job) else job) for job in jobs), check=False)

    def clear(self) -> None:
        """Cancel every job, open the partitions and nodes again, and wait until all is idle."""
        self.run("scancel", "--user=root", check=False)
        self.set_partition("main", "UP")
        deadline = time.monotonic() + 20
        while self.jobs() or self._idle_nodes() < len(NODES):
            if time.monotonic() > deadline:
                raise SiteError(f"jobs do not end:\n{self.run('squeue')}\n{self.run('sinfo')}")
            time.sleep(0.2)

    def set_partition(self, name: str, state: str) -> None:
        """Set a partition UP, DOWN, DRAIN or INACTIVE."""
        self.run("scontrol", "update", f"PartitionName={name}", f"State={state}")

    def set_time_limit(self, job: Job | int, limit: str) -> None:
        """Change the wall-clock limit of a job: minutes, or a time."""
        self.run("scontrol", "update", f"JobId={job.id if isinstance(job, Job) else job}", f"TimeLimit={limit}")

    def processes_of(self, job: Job | int) -> list[int]:
        """Return the ids of a job's processes on this machine: its descendants, by the environment that SLURM set."""
        wanted = f"SLURM_JOB_ID={job.id if isinstance(job, Job) else job}".encode()
        conf = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with suppress(OSError):
                    variables = (folder / "environ").read_bytes().split(b"\0")
                    if wanted in variables and conf in variables:
                        found.append(int(folder.name))
        return sorted(found)

    # --- start and stop --------------------------------------------------------------------------------

    def stop(self) -> None:
        """End jobs, then the daemons, nodes first; delete the folder."""
        with suppress(SiteError, OSError, subprocess.TimeoutExpired):
            if self.daemons:
                self.run("scancel", "--user=root", check=False, timeout=5)
                deadline = time.monotonic() + _STOP_SECONDS
                while self.jobs() and time.monotonic() < deadline:
                    time.sleep(0.1)
        self._stop_daemons()
        shutil.rmtree(self.folder, ignore_errors=True)

    def logs(self, lines: int = 15) -> str:
        """Return the ends of all logs."""
        parts = []
        for log in sorted((self.folder / "log").glob("*.log")):
            parts += [f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-lines:]]
        return "\n".join(parts)

    def _start(self) -> None:
        for name in ("munge", "state", "log", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(exist_ok=True)
        key = self.folder / "munge" / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        controller, *node_ports = _free_ports(1 + len(NODES))
        host = socket.gethostname().split(".")[0]
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} RealMemory={MEMORY_MB}"
            " State=UNKNOWN"
            for node, port in zip(NODES, node_ports, strict=True)
        )
        conf = _CONF.format(host=host, folder=self.folder, controller_port=controller, nodes=nodes)
        (self.folder / "slurm.conf").write_text(conf)
        munge = self.folder / "munge"
        self._launch(
            "munged",
            "--foreground",
            "--force",  # the folder is the owner's alone: stricter than munged expects
            f"--key-file={key}",
            f"--socket={munge / 'munge.socket'}",
            f"--pid-file={munge / 'munged.pid'}",
            f"--log-file={self.folder / 'log' / 'munged.log'}",
            f"--seed-file={munge / 'munge.seed'}",
        )
        self._wait(lambda: (munge / "munge.socket").exists(), "munged made no socket")
        self._launch("slurmctld", "-D", "-i")
        for node in NODES:
            self._launch("slurmd", "-D", "-N", node)
        self._wait(lambda: self._idle_nodes() == len(NODES), "the nodes did not become idle")

    def _idle_nodes(self) -> int:
        try:
            shown = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T", timeout=5)
        except (SiteError, subprocess.TimeoutExpired):
            return 0
        return shown.split().count("idle")

    def _launch(self, *command: str) -> None:
        log = open(self.folder / "log" / f"start-{command[0]}-{command[-1].strip('-/')[-2:]}.log", "wb")  # noqa: SIM115
        with log:
            daemon = subprocess.Popen(
                command,
                env=os.environ | self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the tests: they stop the site in order
                preexec_fn=_stop_with_parent,
            )
        self.daemons.append((command[0], daemon))

    def _wait(self, is_ready: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not is_ready():
            dead = [name for name, daemon in self.daemons if daemon.poll() is not None]
            if dead or time.monotonic() > deadline:
                why = f"{', '.join(dead)} ended" if dead else f"{_START_SECONDS:.0f} s passed"
                raise SiteError(f"{complaint} ({why})\n{self.logs()}")
            time.sleep(0.05)

    def _stop_daemons(self) -> None:
        """Stop nodes, then the controller, then munged: each signs off at the next."""
        for wanted in ("slurmd", "slurmctld", "munged"):
            daemons = [daemon for name, daemon in self.daemons if name == wanted]
            for daemon in daemons:
                with suppress(ProcessLookupError):
                    daemon.terminate()
            for daemon in daemons:
                try:
                    daemon.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait(_STOP_SECONDS)
        self.daemons.clear()


def _stop_with_parent() -> None:
    """Ask the kernel to stop this daemon when the tests are killed; runs in the child, before exec."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _free_ports(count: int) -> list[int]:
    """Return ports that nothing on loopback uses now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextmanager
def slurm_site() -> Iterator[SlurmSite]:
    """Start a site, give it, and stop it."""
    with SlurmSite() as site:
        yield site


def main(command: Sequence[str]) -> int:
    """Run a command with a site up and return its exit code."""
    if not command:
        print(f"usage: {sys.argv[0]} COMMAND …", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the blocks that tidy up
    try:
        with slurm_site() as site:
            return subprocess.run(command, env=os.environ | site.environment).returncode
    except SiteError as error:
        print(error, file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
