"""``headroom doctor``: check whether this machine is fit for a run, and say what to do if it is not."""

from __future__ import annotations

import locale
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Final, Literal

import click
import numpy as np
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from threadpoolctl import threadpool_info

from pipeline.base import available_cores, available_memory, replacing
from pipeline.cli.words import json_option, print_json
from pipeline.errors import HeadroomError

__all__ = ["Check", "Verdict", "check_machine", "check_requirements", "doctor", "guarded"]

Verdict = Literal["ok", "note", "broken"]
_GIB: Final = 2**30
#: Bytes below which a run of a million spectra may not fit; a small run may.
_LITTLE_MEMORY, _LITTLE_DISK, _LITTLE_TEMPORARY = 4 * _GIB, 20 * _GIB, 1 * _GIB
#: Those that read settings of the machine's own while they are imported.
_LIBRARIES: Final = ("numpy", "pandas", "numba", "h5py", "zarr", "distributed", "matplotlib", "pyarrow", "xarray")
#: What the pace is told for.
_PACE_SPECTRA, _PACE_PIXELS = 1_000_000, 4096
#: Flop/s in float32 that a core reaches at least, if the BLAS is built for its processor.
_SLOW_BLAS = 10e9


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes
    ----------
    name
        What was checked.
    verdict
        ``ok``; ``note``: a run works, but slower or with fewer features; ``broken``: a run cannot work.
    found
        What was found.
    remedy
        What to do; empty if there is nothing to do.
    """

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def check_machine(folder: Path) -> Iterator[Check]:
    """Check Python, libraries, BLAS, pace, memory, disk, the temporary folder, sockets and the terminal.

    Parameters
    ----------
    folder
        The folder for runs. If it does not exist, its nearest existing parent is checked.
    """
    yield guarded(check_python, "Python")
    yield guarded(check_packages, "libraries")
    yield guarded(check_imports, "imports")
    yield guarded(check_compiler, "compiler")
    yield guarded(check_extras, "optional extras")
    yield guarded(check_blas, "BLAS")
    yield guarded(check_pace, "pace")
    yield guarded(check_memory, "memory")
    yield guarded(lambda: check_folder("run folder", folder, _LITTLE_DISK, "--folder"), "run folder")
    temporary = Path(tempfile.gettempdir())
    yield guarded(lambda: check_folder("temporary folder", temporary, _LITTLE_TEMPORARY, "TMPDIR"), "temporary folder")
    yield guarded(check_loopback, "loopback")
    yield guarded(check_terminal, "terminal")


def guarded(check: Callable[[], Check], name: str) -> Check:
    """Make a check. If the check itself fails, its result is ``broken``, and the other checks still run."""
    try:
        return check()
    except Exception as error:  # of whatever the machine does to a library
        found = " ".join(f"{type(error).__name__}: {error}".split())
        return Check(name, "broken", found, "see the message, and check again")


def check_python() -> Check:
    """Check whether this Python is new enough."""
    required = metadata.metadata("headroom")["Requires-Python"]
    found = f"{platform.python_version()} ({platform.python_implementation()}), {required} required"
    if SpecifierSet(required).contains(platform.python_version(), prereleases=True):
        return Check("Python", "ok", found)
    return Check("Python", "broken", found, f"install Python {required}, for example `make PYTHON=python3.12 demo`")


def check_packages() -> Check:
    """Check whether the libraries that a run needs are installed, in the required versions."""
    wrong, n = check_requirements(_requirements(""), _version_of), len(_requirements(""))
    if not wrong:
        return Check("libraries", "ok", f"all {n} are there, headroom {metadata.version('headroom')}")
    return Check("libraries", "broken", "; ".join(wrong), "`pip install -r requirements.lock`, or `make install`")


def check_imports() -> Check:
    """Check whether the libraries can be imported: settings of this machine can keep them from it."""
    for name in _LIBRARIES:
        try:
            import_module(name)
        except Exception as error:
            found = " ".join(f"{name} cannot be imported ({type(error).__name__}: {error})".split())
            return Check("imports", "broken", found, "mend its settings (variables, ~/.config), or install it again")
    return Check("imports", "ok", f"{', '.join(_LIBRARIES)}")


def check_compiler() -> Check:
    """Check whether the kernels are compiled, and whether the next process finds them compiled."""
    from pipeline.noise import fill_normals

    fill_normals(0, (np.uint32(0), np.uint32(0)), np.empty((1, 4), np.float32))
    if folder := fill_normals.stats.cache_path:
        return Check("compiler", "ok", f"machine code is kept in {folder}")
    found = "numba finds no folder for machine code, so every process compiles for some seconds"
    return Check("compiler", "note", found, "set TMPDIR or NUMBA_CACHE_DIR to a folder that you can write")


def check_extras() -> Check:
    """Check which optional libraries are installed; a run works without them."""
    uses = {"cluster": "SLURM jobs", "ml": "estimators and the logistic gate", "notebooks": "notebooks"}
    missing = [extra for extra in uses if check_requirements(_requirements(extra), _version_of)]
    if not missing:
        return Check("optional extras", "ok", f"all are there: {', '.join(uses)}")
    found = "; ".join(f"{extra} is incomplete, for {uses[extra]}" for extra in missing)
    return Check("optional extras", "note", found, f"pip install 'headroom[{','.join(missing)}]'")


def check_requirements(required: Mapping[str, str], version_of: Callable[[str], str | None]) -> list[str]:
    """Return what is wrong with libraries.

    Parameters
    ----------
    required
        Version ranges such as ``>=2.2`` by library; an empty range accepts any version.
    version_of
        Returns the installed version of a library, or None.
    """
    wrong = []
    for name, wanted in required.items():
        version = version_of(name)
        if version is None:
            wrong.append(f"{name} is missing, {wanted or 'any version'} required")
        elif not SpecifierSet(wanted).contains(version, prereleases=True):
            wrong.append(f"{name} {version} found, {wanted} required")
    return wrong


def check_blas() -> Check:
    """Check which BLAS is used, with how many threads, and how fast it is; this takes a second."""
    from pipeline.plan import measure_flops

    libraries = [one for one in threadpool_info() if one["user_api"] == "blas"]
    names = sorted({f"{one['internal_api']} {one['version']}" for one in libraries})
    threads = max((int(one["num_threads"]) for one in libraries), default=1)
    cores = available_cores()
    flops = measure_flops(1024, "float32", rows=4096)
    found = f"{', '.join(names) or 'unknown'}, {threads} threads on {cores} cores, {flops / 1e9:,.0f} Gflop/s (float32)"
    if flops < _SLOW_BLAS * cores:
        return Check(
            "BLAS", "note", found, "a run will be slow; stop other work, or install the wheels of NumPy and SciPy"
        )
    return Check("BLAS", "ok", found)


def check_pace() -> Check:
    """Project how long one pass over a million spectra takes here, by the model of ``headroom plan``: some seconds."""
    from pipeline.config import ExperimentConfig
    from pipeline.plan import format_seconds, measure_rates, plan_run, project_scaling

    rates, found = measure_rates(_PACE_PIXELS, "float32"), []
    for mode, words in (("marginal", "with marginal noise"), ("drawn", "for each seed of drawn noise")):
        config = ExperimentConfig.model_validate(
            {"data": {"train": "a", "test": "b"}, "noise": {"mode": mode}, "seeds": [0]}
        )
        plan = plan_run([_PACE_SPECTRA], _PACE_PIXELS, config, [available_memory()])
        pass_seconds = project_scaling(plan, config, rates, available_cores()).accumulating
        found.append(f"{format_seconds(pass_seconds)} {words}")
    return Check("pace", "ok", f"a pass over {_PACE_SPECTRA:,} × {_PACE_PIXELS:,}: at least {', '.join(found)}")


def check_memory() -> Check:
    """Check how much memory is free for this process; limits of a batch job or container count."""
    free = available_memory()
    found = f"{free / _GIB:.1f} GiB free for new processes"
    if free < _LITTLE_MEMORY:
        return Check(
            "memory", "note", found, "`headroom plan CONFIG` says what a run needs; ask for more if it is less"
        )
    return Check("memory", "ok", found)


def check_folder(name: str, folder: Path, little: int, setting: str) -> Check:
    """Check whether a folder can be written, and how much space it has."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    remedy = f"name another one with {setting}"
    if not there.is_dir():
        return Check(name, "broken", f"{there} is a file", remedy)
    try:
        with replacing(there / f".headroom-doctor-{os.getpid()}") as temporary:
            temporary.write_bytes(b"writable")
        (there / f".headroom-doctor-{os.getpid()}").unlink()
    except (HeadroomError, OSError) as error:
        return Check(name, "broken", str(error), remedy)
    free = shutil.disk_usage(there).free
    found = f"{there}, {free / _GIB:.1f} GiB free"
    if free < little:
        return Check(name, "note", found, f"stores and moments are large: free space, or {remedy}")
    return Check(name, "ok", found)


def check_loopback() -> Check:
    """Check whether processes of this machine can connect to each other."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)
        with socket.create_connection(listening.getsockname(), timeout=5):
            return Check("loopback", "ok", "127.0.0.1 takes connections")


def check_terminal() -> Check:
    """Check whether R² and ΔR² can be printed, and whether in colour."""
    encoding = (sys.stdout.encoding or locale.getpreferredencoding(False)).lower()
    seen = "a terminal" if sys.stdout.isatty() else "no terminal"
    colour = "no colour, NO_COLOR is set" if os.environ.get("NO_COLOR") else "colour"
    found = f"{seen}, {encoding}" + (f", {colour}" if sys.stdout.isatty() else "")
    try:
        "ΔR² → Å".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return Check("terminal", "note", found, "set PYTHONUTF8=1 or LC_ALL=C.UTF-8: ΔR² cannot be printed")
    return Check("terminal", "ok", found)


def _requirements(extra: str) -> dict[str, str]:
    """Return the version ranges that headroom requires, by library; for an extra, those that it adds."""
    stated = [Requirement(line) for line in metadata.requires("headroom") or ()]
    by_extra = {name: {one.name: str(one.specifier) for one in stated if _holds(one, name)} for name in {"", extra}}
    return {name: wanted for name, wanted in by_extra[extra].items() if not extra or name not in by_extra[""]}


def _holds(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


_COLOURS: Final = {"ok": "green", "note": "yellow", "broken": "red"}
_SECONDS: Final = 10.0


@click.command()
@click.option("--folder", default=".", show_default=True, type=click.Path(path_type=Path), help="The folder for runs.")
@json_option
def doctor(folder: Path, as_json: bool) -> None:
    """Check whether this machine is fit for a run.

    The checks cover versions, BLAS, memory, disk, sockets, TLS, SLURM and the terminal. Each problem comes with what to
    do about it. The exit code is 3 if something that every run needs is broken. A note is no failure: a run works
    without SLURM and without optional extras.

    \b
    Example:
      headroom doctor --folder runs/
    """
    checks = []
    for check in _checks(folder):
        checks.append(check)
        if not as_json:
            _print(check)
    broken = [check.name for check in checks if check.verdict == "broken"]
    notes = sum(check.verdict == "note" for check in checks)
    if as_json:
        print_json({"fit": not broken, "checks": checks})
    else:
        fit = f"not fit for a run: {', '.join(broken)}" if broken else "fit for a run"
        click.echo(f"{fit}; {len(checks)} checks, {notes} note{'' if notes == 1 else 's'}")
    if broken:
        sys.exit(3)


def _checks(folder: Path) -> Iterator[Check]:
    yield from check_machine(folder)
    yield guarded(check_tls, "TLS")
    yield guarded(check_slurm, "SLURM")


def check_tls() -> Check:
    """Check whether the certificates of a cluster can be made and used."""
    import ssl

    from cluster.certificates import make_certificates

    security = make_certificates().security()
    security.get_connection_args("scheduler")
    return Check("TLS", "ok", f"certificates are made and accepted ({ssl.OPENSSL_VERSION})")


def check_slurm() -> Check:
    """Check whether jobs can be queued from here; a run on this machine does not need this."""
    from cluster.slurm import run_slurm
    from pipeline.errors import ResourceError

    missing = [name for name in ("sbatch", "squeue", "scancel", "sinfo") if shutil.which(name) is None]
    if missing:
        found = f"no {', '.join(missing)} here"
        return Check("SLURM", "note", found, "log in to a node that submits jobs, if you want to use a cluster")
    try:
        partitions = run_slurm(["sinfo", "--noheader", "--format", "%P %a"], seconds=_SECONDS).splitlines()
        version = run_slurm(["sbatch", "--version"], seconds=_SECONDS).strip()
    except ResourceError as error:
        return Check("SLURM", "note", str(error), "ask your site, or use --cluster local meanwhile")
    up = sum(line.split()[-1:] == ["up"] for line in partitions)
    return Check("SLURM", "ok", f"{version}, {up} of {len(partitions)} partitions up")


def _print(check: Check) -> None:
    """Print one check. Colours are left out if there is no terminal or if NO_COLOR is set."""
    from pipeline.base import wants_colour

    word = f"{check.verdict:<6}"
    click.echo(
        f"{click.style(word, fg=_COLOURS[check.verdict]) if wants_colour() else word}  {check.name}: {check.found}"
    )
    if check.remedy:
        click.echo(f"        → {check.remedy}")
