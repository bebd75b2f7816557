"""What a cluster is, as a user states it: one YAML file, validated into a typed, immutable profile.

Three kinds: workers on this machine, batch jobs of SLURM, or a scheduler that somebody else started.
"""

from __future__ import annotations

import os
import re
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline.base import available_cores, available_memory
from pipeline.config import Section, describe_findings, read_yaml
from pipeline.errors import ConfigError, did_you_mean

__all__ = [
    "WORKER_SETTINGS",
    "AddressProfile",
    "DriverJob",
    "LocalProfile",
    "Profile",
    "SlurmProfile",
    "format_walltime",
    "load_profile",
    "packaged_profiles",
    "parse_bytes",
    "parse_seconds",
]

#: SLURM's letters are binary: 16G is 16 GiB, as ``--mem=16G`` is; the written-out units mean what they say.
_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_UNITS |= {f"{letter}B": 10 ** (3 * (k + 1)) for k, letter in enumerate("KMGT")}
_UNITS |= {f"{letter}IB": 2 ** (10 * (k + 1)) for k, letter in enumerate("KMGT")}
#: Dask's settings of every worker, wherever it runs.
WORKER_SETTINGS: dict[str, bool] = {
    # Results lie on disk, and what a task holds cannot be spilled.
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.target": False,
    # Whether a worker looks at the stacks of its threads again and again, for the profile on the dashboard. Before
    # Python 3.11.12 this can stop a process for ever: a garbage collection runs while the list of threads is locked
    # (CPython's issue 106883; seen in 2 of 1,800 short runs on a busy machine).
    "distributed.worker.profile.enabled": sys.version_info >= (3, 11, 12),
}
_LEAST_MEMORY = 64 * 2**20
_LEAST_WALLTIME = 60


def parse_bytes(value: Any) -> int:
    """Return a size in bytes from a number of bytes or a text such as ``16GB`` (10⁹), ``16GiB`` or ``16G`` (2³⁰)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", str(value).strip().upper())
    if isinstance(value, bool) or not match or match[2] not in _UNITS:
        raise ValueError(f"a size is required, such as 16GB or 500MiB, found {value!r}")
    size = int(float(match[1]) * _UNITS[match[2]])
    if size < _LEAST_MEMORY:
        raise ValueError(f"{value!r} is {size:,} bytes, less than a process needs; write a unit, such as 16GB")
    return size


def parse_seconds(value: Any) -> int:
    """Return seconds from SLURM's ``[D-]HH:MM:SS``, or from a number of seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return int(value)
    match = re.fullmatch(r"(?:(\d+)-)?(\d{1,3}):(\d\d):(\d\d)", str(value).strip())
    if not match or int(match[3]) > 59 or int(match[4]) > 59:
        raise ValueError(f'a time is required, such as "04:00:00" or "1-12:00:00" (days-hours), found {value!r}')
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def format_walltime(seconds: int) -> str:
    """Return a span of time as SLURM writes it: ``[D-]HH:MM:SS``."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hours:02}:{minutes:02}:{rest:02}"


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _refuse_number(value: Any) -> Any:
    """Refuse a bare number: SLURM itself would take it for minutes, and others for hours or seconds."""
    if isinstance(value, int | float) or re.fullmatch(r"\s*\d+\s*", str(value)):
        raise ValueError(f'{value!r} has no unit; write hours, minutes and seconds, such as "04:00:00"')
    return value


def _require_walltime(value: int) -> int:
    if value < _LEAST_WALLTIME:
        raise ValueError(f"{value} s is less than SLURM's minute; write hours, such as 04:00:00")
    return value


Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Seconds = Annotated[int, BeforeValidator(parse_seconds), Field(gt=0)]
Walltime = Annotated[
    int,
    BeforeValidator(parse_seconds),
    BeforeValidator(_refuse_number),
    AfterValidator(_require_walltime),
    # As JSON it is what may be written down, so a profile reads back what it gives.
    PlainSerializer(format_walltime, return_type=str, when_used="json"),
]
Port = Annotated[int, Field(ge=1, le=65535)]
#: A word that SLURM takes as it is: nothing that ends a line or an argument.
Word = Annotated[str, Field(pattern=r"^[\w.,:@%+=/-]+$")]
Lines = Annotated[tuple[str, ...], BeforeValidator(_one_or_many)]
Count = Annotated[int, Field(ge=1)]


class LocalProfile(Section):
    """Workers on this machine.

    Attributes
    ----------
    workers
        One with all cores is the default: its threads share one set of sums, where every further one has its own.
    processes
        Whether they are processes, as several always are; a single one is a thread of this process by default, which
        starts at once and speaks over no network.
    threads, memory_limit
        Of each, and its bytes; the cores, and the available memory, divided by the workers by default.
    dashboard_port
        The port of Dask's dashboard on 127.0.0.1; any free one by default.
    """

    kind: Literal["local"] = "local"
    workers: Count = 1
    processes: bool | None = None
    threads: Count | None = None
    memory_limit: Bytes | None = None
    dashboard_port: Port | None = None

    @model_validator(mode="after")
    def _require_processes_of_several(self) -> Self:
        if self.workers > 1 and self.processes is False:
            raise ValueError("processes: false is for a single worker; leave it out, or set workers: 1")
        return self

    @property
    def has_processes(self) -> bool:
        """Whether workers are processes of their own."""
        return self.workers > 1 or bool(self.processes)

    def resolved_threads(self) -> int:
        """Return the BLAS threads of one worker."""
        return self.threads or max(1, available_cores() // self.workers)

    def resolved_memory(self) -> int:
        """Return the memory limit of one worker in bytes."""
        return self.memory_limit or int(available_memory() * 0.9 / self.workers)

    def worker_limits(self) -> list[int]:
        """Return the memory limit of every worker in bytes, before any is started."""
        return [self.resolved_memory()] * self.workers

    @property
    def dashboard_address(self) -> str:
        """Where the dashboard listens: on loopback, always."""
        return f"127.0.0.1:{self.dashboard_port or 0}"

    def with_workers(self, workers: int) -> Self:
        """Return the profile with another number of workers."""
        return self.model_copy(update={"workers": workers})


class DriverJob(Section):
    """The job that ``headroom submit`` queues: the run itself, with Dask's scheduler. It needs little.

    ``resubmissions`` is how many times a driver that met its walltime is queued again; it goes on where it was.
    """

    cores: Count = 2
    memory: Bytes = 8 * 2**30
    walltime: Walltime = 24 * 3600
    partition: Word | None = None
    resubmissions: Annotated[int, Field(ge=0)] = 10


class SlurmProfile(Section):
    """Workers as batch jobs of SLURM: one job is one worker process with all of the job's cores.

    Attributes
    ----------
    jobs
        Workers; or ``minimum`` and ``maximum`` for as many as there is work.
    cores, memory, walltime
        Of one job. The plan of a run is checked against ``memory`` before anything is queued.
    partition, account, qos
        Where jobs are queued, and who pays; SLURM's defaults if left out.
    scratch
        Folder on the node for a worker's files; may hold variables of the job, such as ``$SLURM_TMPDIR``.
    interface
        Network interface that the driver and the workers speak over, such as ``ib0``.
    setup
        Shell lines that a job runs before the worker starts.
    directives
        Further options of sbatch, such as ``--exclusive``; each becomes a ``#SBATCH`` line.
    skip_directives
        Options left out of the job script, where a site forbids them: ``--mem`` where memory goes by core.
    python
        The interpreter on the nodes; by default the one that runs the command.
    insecure
        Plain TCP without certificates: whoever reaches the ports can run code as you.
    startup_timeout
        How long to wait for the first worker.
    driver
        The job that ``headroom submit`` queues.
    dashboard_port
        The port of Dask's dashboard on 127.0.0.1 of the driver's node; any free one by default.
    """

    kind: Literal["slurm"] = "slurm"
    jobs: Count | None = None
    minimum: Count | None = None
    maximum: Count | None = None
    cores: Count
    memory: Bytes
    walltime: Walltime
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    scratch: str = "${TMPDIR:-/tmp}"
    interface: Word | None = None
    setup: Lines = ()
    directives: Lines = ()
    skip_directives: Lines = ()
    python: str | None = None
    insecure: bool = False
    startup_timeout: Seconds = 3600
    driver: DriverJob = DriverJob()
    dashboard_port: Port | None = None

    @field_validator("scratch", "python")
    @classmethod
    def _one_line(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or "\n" in value):
            raise ValueError(f"a path is required, found {value!r}")
        return value if value is None else os.path.expanduser(value)

    @field_validator("directives", "skip_directives")
    @classmethod
    def _options(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for option in value:
            if not option.startswith("-") or "\n" in option:
                raise ValueError(f"an option of sbatch is required, such as --exclusive, found {option!r}")
        return value

    @field_validator("skip_directives")
    @classmethod
    def _known_options(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for option in value:
            if option not in SKIPPABLE:
                raise ValueError(
                    f"{option!r} is no option that job scripts have{did_you_mean(option, SKIPPABLE)}; "
                    f"they have {', '.join(SKIPPABLE)}"
                )
        return value

    @model_validator(mode="after")
    def _state_once(self) -> Self:
        for option in self.directives:
            name = re.split(r"[=\s]", option, maxsplit=1)[0]
            if name in ("--array", "-a"):
                raise ValueError(f"directives: {option!r} would start every job several times; use jobs: 4")
            stated, setting = _STATED_OPTIONS.get(name, ("", ""))
            if stated and stated not in self.skip_directives:
                raise ValueError(
                    f"directives: {option!r} stands beside the {stated} that `{setting}` gives; change `{setting}`, or "
                    f"leave {stated} out with skip_directives: [{stated}]"
                )
        return self

    @model_validator(mode="after")
    def _number_of_jobs(self) -> Self:
        adaptive = self.minimum is not None or self.maximum is not None
        if adaptive == (self.jobs is not None) or (adaptive and (self.minimum is None or self.maximum is None)):
            raise ValueError(
                "either `jobs: 4`, or both `minimum: 1` and `maximum: 8`, are required; found "
                f"jobs: {self.jobs}, minimum: {self.minimum}, maximum: {self.maximum}"
            )
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum ({self.minimum}) must not exceed maximum ({self.maximum})")
        return self

    @property
    def dashboard_address(self) -> str:
        """Where the dashboard listens: on loopback, always."""
        return f"127.0.0.1:{self.dashboard_port or 0}"

    @property
    def most_workers(self) -> int:
        """How many workers there may be at once."""
        return self.jobs or self.maximum or 1

    @property
    def fewest_workers(self) -> int:
        """How many workers are asked for at once, and kept."""
        return self.jobs or self.minimum or 1

    def worker_limits(self) -> list[int]:
        """Return the memory limit of every worker in bytes, before any is queued."""
        return [self.memory] * self.most_workers

    def with_workers(self, workers: int) -> Self:
        """Return the profile with a fixed number of jobs."""
        return self.model_copy(update={"jobs": workers, "minimum": None, "maximum": None})

    def with_bounds(self, minimum: int, maximum: int) -> Self:
        """Return the profile with as many jobs as there is work, between two bounds.

        Raises
        ------
        ConfigError
            If the bounds are no bounds.
        """
        if not 1 <= minimum <= maximum:
            raise ConfigError(f"--min {minimum} --max {maximum}: at least 1, and no more than the maximum, is required")
        return self.model_copy(update={"jobs": None, "minimum": minimum, "maximum": maximum})


class AddressProfile(Section):
    """A scheduler that runs already; its workers see the run folder and the stores under the same paths.

    Attributes
    ----------
    address
        ``tls://host:port``; ``tcp://host:port`` needs ``insecure: true``.
    scheduler_file
        The JSON file that ``dask scheduler --scheduler-file`` wrote, instead of an address.
    certificates
        Folder with ``ca.pem``, ``cert.pem`` and ``key.pem``, readable by you alone.
    insecure
        Plain TCP without certificates: whoever reaches the ports can run code as you.
    startup_timeout
        How long to wait for the scheduler and the first worker.
    """

    kind: Literal["address"] = "address"
    address: Annotated[str, Field(pattern=r"^(tls|tcp)://[^\s/]+:\d+$")] | None = None
    scheduler_file: str | None = None
    certificates: str | None = None
    insecure: bool = False
    startup_timeout: Seconds = 60

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if (self.address is None) == (self.scheduler_file is None):
            raise ValueError("either `address: tls://host:8786` or `scheduler_file: scheduler.json` is required")
        if self.insecure == (self.certificates is not None):
            raise ValueError(
                "`certificates: FOLDER` with ca.pem, cert.pem and key.pem is required; for plain TCP, which lets "
                "whoever reaches the scheduler run code as you, write `insecure: true` instead"
            )
        if self.address is not None and self.address.startswith("tcp://") != self.insecure:
            raise ValueError(
                f"{self.address} with insecure: {str(self.insecure).lower()}; tls:// goes with certificates, "
                "tcp:// with `insecure: true`"
            )
        return self

    def worker_limits(self) -> list[int]:
        """Return nothing: what the workers have is known once they are asked, and nothing is queued for them."""
        return []


Profile: TypeAlias = LocalProfile | SlurmProfile | AddressProfile
"""A cluster profile of any kind, as :func:`cluster.load_profile` returns it."""
_KINDS: dict[str, type[LocalProfile] | type[SlurmProfile] | type[AddressProfile]] = {
    "local": LocalProfile,
    "slurm": SlurmProfile,
    "address": AddressProfile,
}
#: Options that every job script has, and that a site may forbid.
SKIPPABLE = ("-n", "--cpus-per-task", "--mem", "-t")
#: Options of sbatch that say what one of those says, with that one and the setting that it comes from.
_STATED_OPTIONS = {
    **dict.fromkeys(("--mem", "--mem-per-cpu", "--mem-per-gpu"), ("--mem", "memory")),
    **dict.fromkeys(("-t", "--time"), ("-t", "walltime")),
    **dict.fromkeys(("-c", "--cpus-per-task"), ("--cpus-per-task", "cores")),
    **dict.fromkeys(("-n", "--ntasks"), ("-n", "jobs")),
}


def packaged_profiles() -> dict[str, Path]:
    """Return the profiles that come with the package, by name."""
    folder = Path(str(resources.files("cluster"))) / "profiles"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def array_script() -> str:
    """Return the script of a job array, each of whose jobs computes a part of a run without Dask."""
    return (resources.files("cluster") / "job_array.sh").read_text(encoding="utf-8")


def load_profile(source: str | Path) -> Profile:
    """Read and validate a cluster profile.

    Parameters
    ----------
    source
        A YAML file, or the name of a packaged profile (``local``, ``slurm``, ``address``). Paths in a file are
        relative to it.

    Raises
    ------
    ConfigError
        If the file is missing or not YAML, or a setting is unknown or wrong.
    """
    path = Path(source).expanduser()
    packaged = packaged_profiles()
    if not path.exists() or path.is_dir():
        if str(source) not in packaged:
            raise ConfigError(
                f"cluster profile {str(source)!r}: no such file, and no packaged profile of that name "
                f"({', '.join(packaged)}){did_you_mean(str(source), packaged)}"
            )
        path = packaged[str(source)]
    content = read_yaml(path, "cluster profile")
    if not isinstance(content, dict) or content.get("kind") not in _KINDS:
        found = content.get("kind") if isinstance(content, dict) else content
        raise ConfigError(
            f"cluster profile {path}: kind must be one of {', '.join(_KINDS)}, found {found!r}; "
            "`headroom cluster list` shows examples"
        )
    chosen = _KINDS[content["kind"]]
    for key in ("certificates", "scheduler_file"):
        if isinstance(content.get(key), str):
            content[key] = str(path.absolute().parent / os.path.expanduser(os.path.expandvars(content[key])))
    try:
        return chosen.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"cluster profile {path}: {describe_findings(error, chosen)}") from None
