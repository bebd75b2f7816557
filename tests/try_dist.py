"""Install the wheel and the sdist of ``dist/`` into empty environments, and see that the command works: ``make dist``.

Versions are those of ``requirements.lock``, without the hashes, which pip would want of our own files, too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMALL = ("--train", "2400", "--test", "300", "--pixels", "64", "--shards", "2")


def run(*command: object, folder: Path, **variables: str) -> str:
    """Run a command away from the sources, and show what it says if it fails."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=inherited | variables, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def try_file(file: Path, version: str, folder: Path) -> None:
    """Install one file into an environment of its own, and go from nothing to a report."""
    constraints = folder / "constraints.txt"
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pins = re.findall(r"^([\w.-]+)(?:\[[^]]*\])?(==[^ \\]+(?: ; [^\\\n]+)?)", lock, flags=re.MULTILINE)
    constraints.write_text("".join(f"{name}{pin.rstrip()}\n" for name, pin in pins), encoding="utf-8")
    run(sys.executable, "-m", "venv", "empty", folder=folder)
    python, headroom = folder / "empty/bin/python", folder / "empty/bin/headroom"
    install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", constraints)
    if file.suffix == ".gz":  # is built here, by the builder of the lock
        run(*install, "hatchling", folder=folder)
    run(*install, "--no-build-isolation", file, folder=folder)
    said = run(headroom, "--version", folder=folder)
    if said.strip() != f"headroom, version {version}":
        sys.exit(f"{file.name}: version {version} is required, found {said!r}")
    run(headroom, "doctor", folder=folder)
    run(headroom, "sample", "spectra", *SMALL, folder=folder)
    run(headroom, "run", "demo", "--out", "run", "--quiet", folder=folder, HEADROOM_DEMO="spectra")
    run(headroom, "cluster", "array", folder=folder)
    if not (folder / "run/report.html").is_file():
        sys.exit(f"{file.name}: the run has left no report")
    print(f"{file.name}: installed, fit, and ran")


def main() -> None:
    """Try every file of the folder that is named, ``dist`` by default."""
    dist = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").absolute()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    for name in (f"headroom-{version}-py3-none-any.whl", f"headroom-{version}.tar.gz"):
        with tempfile.TemporaryDirectory() as folder:
            try_file(dist / name, version, Path(folder))


if __name__ == "__main__":
    main()
