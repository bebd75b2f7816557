"""The jobs of a run: how many there are, and what becomes of those that end before their time.

Dask's own ways do not suffice for batch jobs: a job that ends is replaced only when somebody asks for workers again, a
job that ends before its worker has joined is never missed, and what sbatch refuses is only logged. Here a watch looks
after all of them. It asks SLURM only while workers are missing.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.deploy.adaptive import Adaptive
from distributed.deploy.spec import SpecCluster

from cluster.checks import unfit_workers
from cluster.profiles import SlurmProfile
from cluster.slurm.commands import QueuedJob, list_jobs
from cluster.slurm.script import BatchWorker, SLURMCluster
from pipeline.errors import ResourceError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["JobCluster", "JobWatch"]

_SECONDS_BETWEEN_LOOKS = 3.0
#: A worker whose job runs is missed for so long before the job is given up: starting Python on a busy node takes time.
_SECONDS_TO_JOIN = 180.0
#: After a job that ended before its worker joined, the next one waits: a minute, then two, and so on.
_SECONDS_AFTER_FAILURE = 60.0
_LONGEST_PAUSE = 960.0
#: Seconds that an adaptive cluster keeps a worker without work: steps follow each other, and queues are long.
_SECONDS_IDLE = 120
#: How long the first worker waits for others whose jobs run already, so that the work is cut for all of them.
_SECONDS_FOR_OTHERS = 20.0
_LINES_OF_LOG = 3
#: What a worker's log says when all is well.
_CHATTER = r" - INFO - |resource_tracker"


class JobCluster(SLURMCluster):
    """Jobs of SLURM behind a scheduler in this process."""

    job_cls: type[Any] = BatchWorker

    def _get_worker_security(self, security: Any) -> None:
        """Say nothing: the job script names the files of the run's certificates."""

    def _update_worker_status(self, op: Any, msg: Any) -> None:
        # Without SpecCluster's own: it cancels a job some time after its worker left, by the name alone, and that is
        # the name of the job that took its place.
        super(SpecCluster, self)._update_worker_status(op, msg)  # type: ignore[no-untyped-call]

    def ask_for(self, profile: SlurmProfile) -> None:
        """Queue as many jobs as the profile says."""
        if profile.jobs is not None:
            self.scale(jobs=profile.jobs)  # type: ignore[no-untyped-call]
        else:
            self.adapt(
                Adaptive=_AsManyAsTasks,
                minimum=profile.minimum,
                maximum=profile.maximum,
                interval="2s",
                wait_count=_SECONDS_IDLE // 2,
            )

    @property
    def joined(self) -> set[str]:
        """Names of the workers that the scheduler knows."""
        return set(self.addresses.values())

    @property
    def addresses(self) -> dict[str, str]:
        """Names of the workers that the scheduler knows, by address."""
        scheduler: Any = self.scheduler  # which is in this process
        return {str(worker.address): str(worker.name) for worker in list(scheduler.workers.values())}

    @property
    def absent(self) -> dict[str, BatchWorker]:
        """Jobs whose workers the scheduler does not know, by the workers' names."""
        joined = self.joined
        return {name: job for name, job in list(self.workers.items()) if name not in joined}

    async def replace(self, names: list[str]) -> None:
        """Give jobs up and submit others in their place."""
        for name in names:
            if name in self.workers:
                await self.workers.pop(name).close()
        await self._correct_state()  # type: ignore[no-untyped-call]


class _AsManyAsTasks(Adaptive):
    """One worker for each task that is not done: a task is minutes of work, whatever Dask may think of its length."""

    async def target(self) -> int:
        open_tasks = sum(task.state in ("processing", "queued", "no-worker") for task in self._tasks())
        return min(max(open_tasks, int(self.minimum)), int(self.maximum))

    def _tasks(self) -> list[Any]:
        cluster: Any = self.cluster  # which has the scheduler in this process
        return list(cluster.scheduler.tasks.values())


class JobWatch:
    """Looks after the jobs of a cluster, in a thread of its own once the first worker is there.

    Parameters
    ----------
    cluster
        The jobs.
    client
        To ask new workers what they are.
    nonce
        A file that workers must see, see :mod:`cluster.checks`.
    logs
        Folder of what jobs print.
    say
        Told what happens to jobs.
    """

    def __init__(
        self, cluster: JobCluster, client: Client, nonce: Path, logs: Path, say: Callable[[str], None]
    ) -> None:
        self._cluster, self._client, self._nonce, self._logs, self._say = cluster, client, nonce, logs, say
        self._checked: set[str] = set()
        # Of jobs, by id: whose worker was there; since when they run without one; those not found in the queue.
        self._served: set[str] = set()
        self._running_since: dict[str, float] = {}
        self._not_found: set[str] = set()
        self._pause = _SECONDS_AFTER_FAILURE
        self._retry_at = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="jobs", daemon=True)

    def wait_for_workers(self, seconds: float) -> None:
        """Wait for the first worker, and a moment for others whose jobs run already.

        Raises
        ------
        ResourceError
            In SLURM's own words, if all jobs are refused or end, or none starts in time.
        """
        begun, looked, told = time.monotonic(), 0.0, ""
        while not self._cluster.joined:
            now = time.monotonic()
            if now - looked >= _SECONDS_BETWEEN_LOOKS and self._cluster.workers:
                looked = now
                words = self._require_hope()
                if words != told:
                    told = words
                    self._say(f"waiting for SLURM: {words}")
            if now - begun >= seconds:
                raise ResourceError(
                    f"no worker came within {seconds:.0f} s (startup_timeout of the cluster profile): "
                    f"{told or 'no job was queued'}. The jobs are cancelled; `squeue --me --start` says when such jobs "
                    "may start: ask for less, for another partition, or for more patience, and run again"
                )
            time.sleep(0.1)
        self._wait_for_others()
        joined = self._cluster.addresses
        self._checked |= joined.keys()  # by who connects, who can raise what is wrong with one
        self._note_served(joined.values())

    def start(self) -> None:
        """Go on watching, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _require_hope(self) -> str:
        """Return what SLURM says of the jobs; raise if none can be expected to start."""
        queued, ended, _ = self._look()
        jobs = list(self._cluster.workers.values())
        refusals = [job.refusal for job in jobs if job.refusal]
        if len(ended) + len(refusals) < len(jobs) or not jobs:
            return _describe_queue(queued, refusals)
        if refusals:
            raise ResourceError(
                f"{refusals[0]}. Nothing is left in the queue; see the cluster profile, of which "
                "`headroom cluster show` prints the job script"
            )
        numbers = ", ".join(str(self._cluster.workers[name].job_id) for name in ended)
        raise ResourceError(
            f"jobs ended before their worker joined ({numbers}){self._quote_log(ended[0])}; see {self._logs}, and the "
            "settings `python`, `setup` and `interface` of the cluster profile"
        )

    def _wait_for_others(self) -> None:
        deadline = time.monotonic() + _SECONDS_FOR_OTHERS
        while self._cluster.absent and time.monotonic() < deadline:
            queued = list_jobs(self._cluster.job_name)
            ids = [job.job_id for job in self._cluster.absent.values()]
            if not any(id in queued and queued[id].state in ("RUNNING", "CONFIGURING") for id in ids):
                return
            time.sleep(0.5)

    def _look_after(self) -> None:
        while not self._stopped.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                self._check_new_workers()
                if self._cluster.absent or len(self._cluster.workers) < len(self._cluster.worker_spec):
                    self._replace(*self._look()[1:])
            except Exception as error:
                # A queue that does not answer for a while must not end a run whose workers are at work.
                if not self._stopped.is_set():
                    self._say(f"looking after the jobs: {error}")

    def _check_new_workers(self) -> None:
        """Send workers away that are not what the run needs, whenever they join."""
        new = self._cluster.addresses
        for address in self._checked & new.keys():
            del new[address]
        if not new:
            return
        unfit = unfit_workers(self._client, self._nonce, list(new))
        self._checked |= new.keys()
        for address, name in new.items():
            job = self._cluster.workers.get(name)
            if job is not None and job.job_id and address in unfit:
                self._say(f"worker {address} {unfit[address]}; its job {job.job_id} is cancelled")
                self._cluster.sync(job.close)  # type: ignore[no-untyped-call]
        self._note_served(name for address, name in new.items() if address not in unfit)

    def _note_served(self, names: Iterable[str]) -> None:
        jobs = [self._cluster.workers.get(name) for name in names]
        self._served |= {job.job_id for job in jobs if job is not None and job.job_id}
        if jobs:
            self._pause = _SECONDS_AFTER_FAILURE

    def _look(self) -> tuple[dict[str, QueuedJob], list[str], list[str]]:
        """Ask SLURM about jobs whose workers are not there.

        Returns
        -------
        dict of str to QueuedJob
            What is queued.
        list of str
            Names of workers whose jobs have ended.
        list of str
            Names of workers that do not join though their jobs run.
        """
        queued, now = list_jobs(self._cluster.job_name), time.monotonic()
        ended, silent, not_found, running = [], [], set(), {}
        for name, job in self._cluster.absent.items():
            if job.job_id is None:
                continue  # refused, or on its way to sbatch
            if job.job_id not in queued:
                not_found.add(job.job_id)
                # Looked for twice: between sbatch and squeue a job may seem to be nowhere.
                if job.job_id in self._not_found:
                    ended.append(name)
            elif queued[job.job_id].state == "RUNNING":
                running[job.job_id] = self._running_since.get(job.job_id, now)
                if now - running[job.job_id] > _SECONDS_TO_JOIN:
                    silent.append(name)
        self._not_found, self._running_since = not_found, running
        return queued, ended, silent

    def _replace(self, ended: list[str], silent: list[str]) -> None:
        """Submit jobs in the place of those that have ended; where they fail again and again, less and less often."""
        workers, now = self._cluster.workers, time.monotonic()
        refused = [name for name, job in list(workers.items()) if job.refusal]
        failed = [name for name in ended if workers[name].job_id not in self._served] + refused
        names = [name for name in ended if name not in failed] + silent
        for name in names:
            what = "runs, but its worker does not answer" if name in silent else "has ended"
            self._say(f"job {workers[name].job_id} {what}; another takes its place")
        if failed and now >= self._retry_at:
            first = workers[failed[0]]
            words = (
                first.refusal or f"job {first.job_id} ended before its worker was of use{self._quote_log(failed[0])}"
            )
            self._say(f"{words}; submitted again, and if that fails in {self._pause:.0f} s")
            self._retry_at, self._pause = now + self._pause, min(2 * self._pause, _LONGEST_PAUSE)
            names += failed
        if names or len(workers) < len(self._cluster.worker_spec):
            self._cluster.sync(self._cluster.replace, names)  # type: ignore[no-untyped-call]

    def _quote_log(self, name: str) -> str:
        """Return the last words of a worker's job, to be appended to a sentence."""
        log = self._logs / f"worker-{self._cluster.workers[name].job_id}.log"
        try:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return f" and left no log in {self._logs}, which may not be seen by its node"
        told = [line.strip() for line in lines if line.strip() and not re.search(_CHATTER, line)]
        words = " / ".join(told[-_LINES_OF_LOG:])
        return f", saying: {words}" if words else " without a word"


def _describe_queue(jobs: dict[str, QueuedJob], refusals: list[str]) -> str:
    """Return the states of jobs in one line: ``3 jobs pending (Priority), 1 running``."""
    counts = Counter(
        job.state.lower() + (f" ({job.reason})" if job.reason not in ("None", "") else "") for job in jobs.values()
    )
    words = ", ".join(f"{number} job{'s' if number > 1 else ''} {what}" for what, number in counts.most_common())
    return (words or "no job in the queue") + (f"; {len(refusals)} refused ({refusals[0]})" if refusals else "")
