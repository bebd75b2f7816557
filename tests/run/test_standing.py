"""A finished run that nothing has changed is told, without a cluster; whatever changed starts the run again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import invoke

import cluster.client
from pipeline.config import ExperimentConfig, load_config
from pipeline.run import find_standing, record_standing
from pipeline.scoring import RunResults


@pytest.fixture
def standing(small_run: RunResults, small_config: ExperimentConfig, tmp_path: Path) -> tuple[ExperimentConfig, Path]:
    """A copy of the small run that is recorded as finished, and stores of its own."""
    data = {}
    for role, source in (("train", small_config.data.train[0]), ("test", small_config.data.test[0])):
        shutil.copytree(source, tmp_path / f"{role}.zarr")
        data[role] = (str(tmp_path / f"{role}.zarr"),)
    config = small_config.model_copy(update={"data": small_config.data.model_copy(update=data)})
    folder = tmp_path / "run"
    shutil.copytree(small_run.folder, folder)
    record_standing(config, folder, "what was printed\n")
    return config, folder


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def touch(path: Path) -> None:
    os.utime(path, ns=(0, 0))


def test_what_stands_is_told(standing: tuple[ExperimentConfig, Path], small_run: RunResults) -> None:
    config, folder = standing
    found = find_standing(config, folder)
    assert found is not None
    printed, summary, metadata = found
    assert printed == "what was printed\n"
    assert summary == json.loads((small_run.folder / "summary.json").read_text())
    assert metadata["key"] == small_run.metadata["key"]
    (folder / "notes.txt").write_text("mine")
    (folder / "status.json").write_text("{}")
    assert find_standing(config, folder), "files that are not the run's do not matter"


def test_a_glob_that_matches_texts_beside_shards_stands(
    standing: tuple[ExperimentConfig, Path], sample: Path, tmp_path: Path
) -> None:
    config, folder = standing
    shutil.copytree(sample / "train", tmp_path / "spectra")  # with its shard_index.txt
    (tmp_path / "spectra/README.txt").write_text("my spectra\n")
    data = config.data.model_copy(update={"train": (str(tmp_path / "spectra/*"),)})
    config = config.model_copy(update={"data": data})
    record_standing(config, folder, "")
    assert find_standing(config, folder)
    made_of = json.loads((folder / "finished.json").read_text())["made_of"]
    assert {str(path) for path in (tmp_path / "spectra").rglob("dataset.h5")} <= set(made_of)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "finished.json").unlink(),
        lambda folder: change_a_byte(folder / "finished.json"),
        lambda folder: change_a_byte(folder / "summary.json"),
        lambda folder: touch(folder / "results.csv"),
        lambda folder: next((folder / "models").iterdir()).unlink(),
        lambda folder: touch(next((folder / "moments").rglob("sums.npz"))),
        lambda folder: touch(folder.parent / "test.zarr" / "zarr.json"),
        lambda folder: shutil.rmtree(folder.parent / "train.zarr"),
    ],
)
def test_whatever_changes_ends_it(standing: tuple[ExperimentConfig, Path], change: Callable[[Path], None]) -> None:
    config, folder = standing
    change(folder)
    assert find_standing(config, folder) is None


def test_another_setting_ends_it(
    standing: tuple[ExperimentConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = standing
    assert find_standing(config.model_copy(update={"seeds": (42,)}), folder) is None
    turned = config.model_copy(update={"bins": dict(reversed(config.bins.items()))})
    assert find_standing(turned, folder) is None, "the order of the columns numbers the bins"
    package = tmp_path / "package"
    (package / "run").mkdir(parents=True)
    monkeypatch.setattr("pipeline.run.standing.__file__", str(package / "run/standing.py"))
    assert find_standing(config, folder) is None, "other code may give other numbers"


@pytest.mark.usefixtures("no_figures")
def test_the_command_starts_no_cluster_for_it(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("run", config_file, "--out", tmp_path / "run")
    code, first, _ = invoke(capsys, *command, "--quiet")
    assert code == 0
    status = (tmp_path / "run/status.json").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(cluster.client, "connect", lambda *_, **__: pytest.fail("a cluster was started"))
        patched.setattr("cluster.connect", lambda *_, **__: pytest.fail("a cluster was started"))
        code, second, err = invoke(capsys, *command)
        assert (code, second) == (0, first)
        assert "nothing to do" in err
        code, out, _ = invoke(capsys, *command, "--json", "--quiet")
        assert code == 0
        found = json.loads(out)
    assert found["report"] == str(tmp_path / "run/report.html")
    assert found["levels"] == json.loads((tmp_path / "run/summary.json").read_text())["levels"]
    assert (tmp_path / "run/status.json").read_bytes() == status
    assert invoke(capsys, *command, "--cluster", "no_such")[0] == 2, "a mistake is told all the same"
    (tmp_path / "run/report.html").unlink()
    assert invoke(capsys, *command, "--quiet")[:2] == (0, first)
    assert (tmp_path / "run/report.html").is_file(), "what is missing is made again"
    assert find_standing(load_config(config_file), tmp_path / "run")
