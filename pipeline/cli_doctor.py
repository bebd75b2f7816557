"""``headroom doctor``: whether this machine is fit for a run, and what to do if it is not."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pipeline.cli_json import json_option, print_json

if TYPE_CHECKING:
    from pipeline.doctor import Check

__all__ = ["doctor"]

_COLOURS: Final = {"ok": "green", "note": "yellow", "broken": "red"}
_SECONDS: Final = 10.0


@click.command()
@click.option(
    "--folder", default=".", show_default=True, type=click.Path(path_type=Path), help="Where runs shall be written."
)
@json_option
def doctor(folder: Path, as_json: bool) -> None:
    """Check this machine: versions, BLAS, memory, disk, sockets, TLS, SLURM, terminal; say what to fix.

    Exit code 3 if something that every run needs is broken. A note is no failure: a run works without SLURM or extras.

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
    from pipeline.doctor import check_machine, guarded

    yield from check_machine(folder)
    yield guarded(check_tls, "TLS")
    yield guarded(check_slurm, "SLURM")


def check_tls() -> Check:
    """Whether the certificates of a cluster can be made and used."""
    import ssl

    from cluster.certificates import make_certificates
    from pipeline.doctor import Check

    security = make_certificates().security()
    security.get_connection_args("scheduler")
    return Check("TLS", "ok", f"certificates are made and accepted ({ssl.OPENSSL_VERSION})")


def check_slurm() -> Check:
    """Whether jobs can be queued from here; a run on this machine does not need it."""
    from cluster.slurm_commands import run_slurm
    from pipeline.doctor import Check
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
    """Print one check; click leaves colours out where there is no terminal, and we where NO_COLOR asks for it."""
    from pipeline.progress import wants_colour

    word = f"{check.verdict:<6}"
    click.echo(
        f"{click.style(word, fg=_COLOURS[check.verdict]) if wants_colour() else word}  {check.name}: {check.found}"
    )
    if check.remedy:
        click.echo(f"        → {check.remedy}")
