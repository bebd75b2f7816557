"""Every block of Python and of shell commands in the documentation runs, page by page, in the order of the page.

Pages with tests of their own: the README (``test_readme.py``), ``extending.md`` (``test_docs_of_the_code.py``),
``python.md`` (``test_python_page.py``), and the way through a cluster, which runs on a real SLURM
(``tests/slurm/test_slurm_page.py``).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
from bosz_files import write_bosz
from commands import put_on_path

from pipeline.config import ExperimentConfig, load_config
from pipeline.run import run_experiment
from pipeline.simulate import SampleSpec, write_sample

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
ELSEWHERE = {"extending.md", "python.md"}
KINDS = {"python", "sh", "yaml", "text", "latex", "mermaid"}
#: Lines that install things, and sizes that make commands take seconds.
LEFT_OUT = re.compile(r"^(pip|make|source) ")
SMALLER = {
    "--train 12000 --test 2000 --pixels 256": "--train 1800 --test 300 --pixels 40 --shards 2 --workers 1",
    "--train 100000 --test 10000 --pixels 4096": "--train 60 --test 20 --pixels 40 --shards 2 --workers 1",
}


def blocks(page: Path) -> list[tuple[str, str]]:
    """The language and the text of every fenced block."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def to_run(page: Path) -> list[tuple[str, str]]:
    return [(kind, text) for kind, text in blocks(page) if kind in ("python", "sh")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page: Path) -> None:
    assert {kind for kind, _ in blocks(page)} <= KINDS
    assert page.read_text(encoding="utf-8").count("\n```") == 2 * len(blocks(page))
    for kind, text in blocks(page):
        if kind == "python":
            compile(text, page.name, "exec")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "cluster" / "README.md"], ids=lambda page: page.name)
def test_no_comment_is_cut_off_on_the_site(page: Path) -> None:
    """A window of 1400 pixels shows so many letters of a line, then the reader must scroll."""
    long = [line for kind, text in blocks(page) if kind in ("python", "sh", "yaml") for line in text.splitlines()]
    assert [line for line in long if len(line) > 92 and " #" in line] == []


def write_config(folder: Path, **changes: object) -> None:
    plain = {
        "data": {"train": ["train_1", "train_2"], "test": "test", "stores": "stores"},
        "ridge": {"alpha": {"per_spectrum": 0.1}, "min_spectra": 20},
        "seeds": [42],
        "compute": {"folds": "shards"},
        "bootstrap": {"resamples": 100},
    }
    (folder / "my.yaml").write_text(yaml.safe_dump(plain | changes, sort_keys=False))


def run(folder: Path, out: str, config: str = "my.yaml") -> None:
    run_experiment(load_config(folder / config), folder / out, convert_workers=1)


def prepare_howto(folder: Path) -> None:
    """Two finished runs, a netCDF file whose temperatures have a name of their own, and BOSZ files."""
    for name in ("mine", "other"):
        run(folder, f"runs/{name}")
    write_own(folder / "mine.nc")
    write_bosz(folder / "bosz2024" / "r2000")


def write_own(path: Path) -> None:
    """Write spectra as somebody else keeps them: in nm, with names of their own."""
    rng = np.random.default_rng(0)
    flux = rng.uniform(0.8, 1.2, (30, 12))
    columns = {"temperature": (3750, 6000), "logg": (1, 5), "feh": (-2, 0.5)}
    dataset = xr.Dataset(
        {"flux": (("star", "pixel"), flux), "error": (("star", "pixel"), 0.1 + 0.01 * flux)}
        | {name: ("star", rng.uniform(*ends, 30)) for name, ends in columns.items()},
        coords={"wave": ("pixel", np.linspace(710.0, 885.0, 12), {"units": "nm"})},
    )
    dataset.to_netcdf(path, engine="scipy")


def prepare_configuration(folder: Path) -> None:
    run(folder, "runs/my")


def prepare_forecast(folder: Path) -> None:
    """The settings of the page, with spectra that are small, so that moments have to be told to be factored."""
    [(_, stated)] = [block for block in blocks(ROOT / "docs" / "forecast.md") if block[0] == "yaml"]
    settings = yaml.safe_load(stated)
    write_config(folder)
    plain = yaml.safe_load((folder / "my.yaml").read_text())
    settings["data"] = plain["data"]
    settings["compute"] = {"folds": "shards", "moments": "factored"}
    (folder / "my.yaml").write_text(yaml.safe_dump({**plain, **settings, "forecast": {"sizes": [3e5]}}))


def prepare_moments(folder: Path) -> None:
    """A run of five folds, and two runs, each of one of two shards."""
    run(folder, "runs/ab")
    config = load_config(folder / "my.yaml")
    for name, other in (("a", "train_2"), ("b", "train_1")):
        data = config.data.model_copy(update={"exclude": (other,)})
        run_experiment(config.model_copy(update={"data": data}), folder / "runs" / name)
    compute = config.compute.model_copy(update={"folds": 5})
    run_experiment(
        ExperimentConfig.model_validate(config.model_copy(update={"compute": compute}).to_dict()), folder / "runs/demo"
    )


def prepare_scaling(folder: Path) -> None:
    shutil.copy(ROOT / "cluster" / "profiles" / "slurm.yaml", folder / "my_site.yaml")


def prepare_nothing(folder: Path) -> None:
    """The page begins with an empty folder."""
    for one in folder.iterdir():
        shutil.rmtree(one) if one.is_dir() else one.unlink()


PREPARED: dict[str, Callable[[Path], None]] = {
    "howto.md": prepare_howto,
    "configuration.md": prepare_configuration,
    "forecast.md": prepare_forecast,
    "moments.md": prepare_moments,
    "scaling.md": prepare_scaling,
    "tutorial.md": prepare_nothing,
}
#: A figure wider than its column makes an overfull box; one that is too high, or a PDF too new, makes a warning.
COMPILED = "pdflatex -interaction=nonstopmode -halt-on-error"
#: What ``moments.md`` says that its last block has before it.
OF_A_FOLD = (
    "import json, pathlib\nimport numpy as np\n"
    "folder, cell = pathlib.Path('runs/demo/moments/seed-42_noise-1.0/fold-000'), 0\n"
)


def test_every_page_with_blocks_is_run() -> None:
    assert {page.name for page in PAGES if to_run(page)} - ELSEWHERE == PREPARED.keys()


@pytest.fixture(scope="module")
def spectra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: three training shards, test spectra, and a configuration."""
    folder = tmp_path_factory.mktemp("pages")
    made = write_sample(folder / "made", SampleSpec(train=2400, shards=3, test=300, pixels=40, seed=1), workers=1)
    assert made.test_file is not None
    for name, path in [*((f"train_{k}", path) for k, path in enumerate(made.train_files, 1)), ("test", made.test_file)]:
        (folder / name).mkdir()
        path.rename(folder / name / "dataset.h5")
    shutil.rmtree(folder / "made")
    write_config(folder)
    return folder


@pytest.mark.slow  # each page starts Python once for every command on it
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PREPARED)
def test_the_blocks_of_a_page_run(name: str, spectra: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(spectra, place)
    PREPARED[name](place)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HEADROOM_")}
    environment["PATH"] = put_on_path(tmp_path / "bin")
    stated = iter([text for kind, text in blocks(ROOT / "docs" / name) if kind == "yaml"])
    python: list[str] = []
    for kind, text in blocks(ROOT / "docs" / name):
        if kind == "yaml" and name == "tutorial.md":
            (place / "my.yaml").write_text(next(stated) + "bootstrap: {resamples: 100}\n", encoding="utf-8")
        if kind == "python":
            # Later blocks of a page know the names of earlier ones.
            python.append(OF_A_FOLD + text if '(folder / "moments.json")' in text else text)
            command = [sys.executable, "-c", "\n".join(python)]
        elif kind == "sh":
            lines = [line for line in text.splitlines() if not LEFT_OUT.match(line)]
            for long, short in SMALLER.items():
                lines = [line.replace(long, short) for line in lines]
            command = ["bash", "-c", "\n".join(["set -e -o pipefail", *lines])]
        elif kind == "latex" and shutil.which("pdflatex"):
            (place / "page.tex").write_text(text, encoding="utf-8")
            command = ["bash", "-c", f"{COMPILED} page.tex && ! grep -i -E 'overfull|warning' page.log"]
        else:
            continue
        done = subprocess.run(
            command, cwd=place, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-1500:]}\n{done.stderr[-2500:]}"
    if name == "tutorial.md":
        assert (place / "predictions.csv").is_file()
        assert (place / "runs" / "mine" / "report.html").is_file()


def test_the_settings_of_pages_are_settings() -> None:
    """Blocks of YAML are parts of a configuration that a run would take."""
    checked = 0
    for page in PAGES:
        for kind, text in blocks(page):
            if kind == "yaml":
                content = yaml.safe_load(text)
                data = {"train": "train", "test": "test"} | content.pop("data", {})
                ExperimentConfig.model_validate({"data": data} | content)
                checked += 1
    assert checked >= 4
