"""Which software made a result."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["describe_environment", "hash_file"]

_PACKAGES = ("dask", "distributed", "h5py", "headroom", "numba", "numpy", "pandas", "scipy", "xarray", "zarr")


def describe_environment() -> dict[str, Any]:
    """Return versions, platform and, in a checkout, the git commit (None elsewhere)."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "platform": platform.platform(), "git_commit": _git_commit()}


def _git_commit() -> str | None:
    """Return the commit of this package's checkout, ``+changes`` appended if it was edited since."""
    source = Path(__file__).resolve().parent
    if not (source.parent / ".git").exists():
        return None
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    try:
        commit, changes = (
            subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changes else commit


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
