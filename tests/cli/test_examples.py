"""Every example of ``--help`` runs as it is written, on small spectra under the names that the examples use."""

from __future__ import annotations

import glob
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import h5py
import numpy as np
import pytest
import xarray as xr
import yaml
from bosz_files import write_bosz
from commands import invoke

from pipeline.cli.app import cli
from pipeline.config import load_config
from pipeline.convert import convert_shards
from pipeline.predict import export_model
from pipeline.run import run_experiment
from pipeline.shards import find_shards
from pipeline.simulate import SampleSpec, write_sample
from pipeline.store import open_spectra

ROOT = Path(__file__).parents[2]
# All examples together take a minute.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("known_rates", "no_figures")]
#: Sizes that make an example take seconds, and what keeps one from queueing a job.
SMALLER = (
    (re.compile(r"--train \d+"), "--train 60"),
    (re.compile(r"--shards \d+"), "--shards 2"),
    (re.compile(r"--pixels (512|4096)"), "--pixels 40"),
    (re.compile(r"^headroom sample .*"), r"\g<0> --test 20 --workers 1"),
    (re.compile(r"^headroom submit .*"), r"\g<0> --dry-run"),
)
#: Needs a SLURM, where ``tests/slurm`` starts runs in this way.
ELSEWHERE = {"headroom run my.yaml --out runs/first --cluster my_site.yaml --min 1 --max 40"}

#: What an example makes, by its command. Of another example it would be in the way.
MADE = {"sample": ("spectra",), "convert": ("train.zarr",), "run": ("runs/first",), "export": ("model",)}


def examples(command: click.Command = cli) -> Iterator[tuple[str, list[str]]]:
    """The lines of every command's example, by the command."""
    if isinstance(command, click.Group) and command is not cli:
        pass
    elif command is not cli:
        text = (command.help or "").split("Example:\n", 1)[1]
        yield str(command.name), [line.strip() for line in text.splitlines() if line.strip()]
    for own in command.commands.values() if isinstance(command, click.Group) else ():
        yield from examples(own)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, configurations, runs, a model and files of other layouts, by the names that examples use."""
    folder = tmp_path_factory.mktemp("place")
    write_sample(folder / "spectra", SampleSpec(train=2000, shards=5, test=300, pixels=40), workers=1)
    plain = {
        "data": {"train": [f"spectra/train/shard_{k}" for k in range(4)], "test": "spectra/test", "stores": "stores"},
        "noise": {"levels": [0.2, 1.0]},
        "ridge": {"alpha": {"per_spectrum": 0.1}, "min_spectra": 20},
        "seeds": [42, 123],
        "compute": {"folds": "shards"},
        "bootstrap": {"resamples": 100},
    }
    (folder / "my.yaml").write_text(yaml.safe_dump(plain))
    marginal = plain | {"noise": {"mode": "marginal"}, "compute": {"moments": "factored"}, "forecast": {}}
    (folder / "demo.yaml").write_text(yaml.safe_dump(marginal))
    for config, run in (("my", "my"), ("demo", "demo")):
        run_experiment(load_config(folder / f"{config}.yaml"), folder / "runs" / run, convert_workers=1)
    for name in ("first", "second"):
        shutil.copytree(folder / "runs/my", folder / "runs" / name)
    export_model(folder / "runs/demo", folder / "model")
    shutil.copy(folder / "spectra/test/dataset.h5", folder / "observed.h5")
    observed = open_spectra(convert_shards(find_shards([folder / "spectra/test"], folder), folder / "night.zarr").path)
    spectra = {name: (("star", "pixel"), observed[name].values) for name in ("flux", "error")}
    wavelength = ("pixel", observed["wavelength"].values)
    xr.Dataset(spectra, {"wavelength": wavelength}).to_netcdf(folder / "night_1.nc", engine="scipy")
    write_own(folder / "mine.nc")
    write_bosz(folder / "bosz2024/r2000")
    shutil.copy(ROOT / "cluster/profiles/slurm.yaml", folder / "my_site.yaml")
    return folder


def write_own(path: Path) -> None:
    """Write a file of arrays, one of whose names nobody could guess."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["flux"] = rng.uniform(0.8, 1.2, (30, 12))
        file["error"] = np.full((30, 12), 0.1) + 0.01 * rng.random((30, 12))
        file["wavelength"] = np.linspace(7100.0, 8850.0, 12)
        for name, low, high in (("temperature", 3750, 6000), ("logg", 1, 5), ("feh", -2, 0.5)):
            file[name] = rng.uniform(low, high, 30)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "lines"), list(examples()), ids=[name for name, _ in examples()])
def test_the_examples_of_a_command_run(
    name: str,
    lines: list[str],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(place, tmp_path / "place"))
    monkeypatch.chdir(folder)
    for variable, value in (("TRAIN", "spectra/train"), ("TEST", "spectra/test"), ("STORES", "stores")):
        monkeypatch.setenv(f"HEADROOM_{variable}", str(folder / value))
    for line in lines:
        if line in ELSEWHERE:
            continue
        for made in MADE.get(name, ()):
            shutil.rmtree(folder / made, ignore_errors=True)
        run_line(line, monkeypatch, capsys)


def run_line(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Run one line as a shell does; what removes files after ``&&`` is left out."""
    command, _, _ = line.partition(" && ")
    command, _, into = command.partition(" > ")
    for long, short in SMALLER:
        command = long.sub(short, command)
    words = shlex.split(command)
    while "=" in words[0]:
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    found = [sorted(glob.glob(word)) or [word] if "*" in word else [word] for word in words[1:]]
    code, out, err = invoke(capsys, *(word for some in found for word in some))
    assert code == 0, f"{line}\n{out[-1500:]}\n{err[-1500:]}"
    if into:
        Path(into).write_text(out)
