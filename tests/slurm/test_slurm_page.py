"""``cluster/README.md`` on a real SLURM: its commands in their order, from the profile to the merged job array."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import put_on_path, wait_until
from disturbances import require_equal
from slurm_site import SlurmSite
from test_slurm_runs import write_profile

pytestmark = pytest.mark.timeout(240)
PAGE = Path(__file__).parents[2] / "cluster" / "README.md"
#: Lines that install things.
LEFT_OUT = re.compile(r"^conda ")
#: What the page leaves to its reader, and what fits the nodes of the site.
CHANGED = {
    "CONFIG": "small.yaml",
    "tail -f": "tail",
    "--cpus-per-task=4 --mem=16G": "--cpus-per-task=1 --mem=1200M",
    "sbatch --parsable": "sbatch --parsable --cpus-per-task=1 --mem=1200M",
    "=1-8": "=1-2",
    "runs/first 8": "runs/first 2",
}
DRIVER = {"cores": 1, "memory": "1500MiB", "walltime": "00:10:00"}


def blocks_by_section() -> list[str]:
    """The block of commands of every section that has one."""
    return re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def follow(block: str, folder: Path) -> str:
    """Run a block as one script, and return what it printed."""
    for stated, own in CHANGED.items():
        block = block.replace(stated, own)
    lines = [line for line in block.splitlines() if not LEFT_OUT.match(line)]
    done = subprocess.run(
        ["bash", "-c", "\n".join(["set -e -o pipefail", *lines])],
        cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}"
    return done.stdout


def test_the_page_leads_from_a_login_node_to_a_finished_run_and_to_a_merged_array(
    slurm: SlurmSite, config_file: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", put_on_path(tmp_path / "bin"))
    install, profile, submit, look, array = blocks_by_section()
    assert "slurm" in follow(install, tmp_path)
    assert "#SBATCH" in follow(profile, tmp_path)
    write_profile(tmp_path / "my_site.yaml", driver=DRIVER)  # the reader fits the copy to the site
    assert "driver" in follow(submit, tmp_path)
    said = follow(look, tmp_path)  # it watches until the run ends
    assert '"state": "finished"' in said
    wait_until(lambda: not slurm.jobs(), "the driver's job ends", 60)
    require_equal(tmp_path / "runs" / "first", undisturbed)

    shutil.rmtree(tmp_path / "runs")
    follow(array, tmp_path)
    wait_until(lambda: not slurm.jobs(), "the array and its merge end", 120)
    require_equal(tmp_path / "runs" / "first", undisturbed)
