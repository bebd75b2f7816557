"""Install the wheel of ``dist/`` into an empty environment, and see that the command works: ``make dist``.

The sdist must build that very wheel, byte for byte, so it needs no environment of its own.
Versions are those of ``requirements.lock``, without the hashes, which pip would want of our own file, too.
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
#: Variables that would let other sources in, or keep no compiled modules.
OTHERS = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
SMALL = ("--train", "2400", "--test", "300", "--pixels", "64", "--shards", "2")


def run(*command: object, folder: Path, **variables: str) -> str:
    """Run a command away from the sources, and show what it says if it fails."""
    inherited = {name: value for name, value in os.environ.items() if name not in OTHERS}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=inherited | variables, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def require_same_wheel(sdist: Path, wheel: Path, folder: Path) -> None:
    """Build a wheel from the sdist, away from the sources and by the builder of the lock, and compare all its bytes."""
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "rebuilt", sdist, folder=folder)
    if (folder / "rebuilt" / wheel.name).read_bytes() != wheel.read_bytes():
        sys.exit(f"{sdist.name} builds another wheel than {wheel.name}; `unzip -v` of both tells which files differ")
    print(f"{sdist.name}: builds the wheel")


def try_wheel(wheel: Path, version: str, folder: Path) -> None:
    """Install a wheel into an environment of its own, and go from nothing to a report."""
    constraints = folder / "constraints.txt"
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pins = re.findall(r"^([\w.-]+)(?:\[[^]]*\])?(==[^ \\]+(?: ; [^\\\n]+)?)", lock, flags=re.MULTILINE)
    constraints.write_text("".join(f"{name}{pin.rstrip()}\n" for name, pin in pins), encoding="utf-8")
    run(sys.executable, "-m", "venv", "--without-pip", "empty", folder=folder)
    # Few of all the modules are imported below, and those are compiled then.
    install = (*PIP, "--python", folder / "empty/bin/python", "install", "--no-compile", "--constraint", constraints)
    run(*install, wheel, folder=folder)
    headroom = folder / "empty/bin/headroom"
    said = run(headroom, "--version", folder=folder)
    if said.strip() != f"headroom, version {version}":
        sys.exit(f"{wheel.name}: version {version} is required, found {said!r}")
    run(headroom, "doctor", folder=folder)
    run(headroom, "sample", "spectra", *SMALL, folder=folder)
    run(headroom, "run", "demo", "--out", "run", "--quiet", folder=folder, HEADROOM_DEMO="spectra")
    run(headroom, "cluster", "array", folder=folder)
    if not (folder / "run/report.html").is_file():
        sys.exit(f"{wheel.name}: the run has left no report")
    print(f"{wheel.name}: installed, fit, and ran")


def main() -> None:
    """Try the wheel and the sdist of the folder that is named, ``dist`` by default."""
    dist = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").absolute()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    wheel, sdist = dist / f"headroom-{version}-py3-none-any.whl", dist / f"headroom-{version}.tar.gz"
    with tempfile.TemporaryDirectory() as folder:
        require_same_wheel(sdist, wheel, Path(folder))
        try_wheel(wheel, version, Path(folder))


if __name__ == "__main__":
    main()
