"""The command as a user runs it: output, exit codes, messages without tracebacks, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from commands import HEADROOM, hear_interrupts, invoke, require_one_line
from shard_factory import make_pixels, write_shard

from pipeline.cli.app import cli
from pipeline.config import load_config
from pipeline.run import run_experiment


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = invoke(capsys, name, "--help")
    assert code == 0
    assert re.search(rf"Example:\n\s+.*headroom {name} ", out)


@pytest.mark.usefixtures("known_rates", "no_figures")
def test_run_plan_and_report(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out_folder = tmp_path / "run"
    code, out, _ = invoke(capsys, "plan", str(config_file), "--out", str(out_folder))
    assert code == 0
    assert "memory per worker" in out
    assert not out_folder.exists(), "planning writes nothing"
    code, out, err = invoke(capsys, "run", str(config_file), "--out", str(out_folder))
    assert code == 0, err
    assert "dashboard: http://127.0.0.1:" in err
    assert "8: Hot, Rich" in out
    assert max(len(line) for line in out.splitlines() if "report:" not in line) <= 80
    assert f"report: {out_folder / 'report.html'}" in out
    page = (out_folder / "report.html").read_bytes()
    (out_folder / "report.html").unlink()
    assert invoke(capsys, "report", str(out_folder))[0] == 0
    assert (out_folder / "report.html").read_bytes() == page


def test_sample_inspect_and_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "spectra"
    size = ["--train", "120", "--shards", "2", "--test", "40", "--pixels", "32"]
    code, out, _ = invoke(capsys, "sample", str(folder), *size, "--workers", "1", "--quiet")
    assert code == 0
    assert "120 training and 40 test spectra × 32 pixels" in out
    assert "simulated" in out
    code, out, _ = invoke(capsys, "inspect", str(folder / "train"))
    assert code == 0
    assert out.count("60 spectra × 32 pixels") == 2
    assert "together: 2 files, 120 spectra" in out
    columns = tmp_path / "bins.yaml"
    columns.write_text("data: {train: a, test: b}\nbins: {snr: [0, 8, 40]}\n")
    code, out, _ = invoke(capsys, "inspect", str(folder / "train"), "--config", str(columns))
    assert code == 0
    assert "bin 1 (8–40)" in out
    index = str(folder / "train" / "shard_index.txt")
    code, out, _ = invoke(capsys, "convert", index, str(tmp_path / "train.zarr"), "--workers", "1", "--quiet")
    assert code == 0
    assert "120 spectra × 32 pixels" in out
    assert invoke(capsys, "inspect", str(tmp_path / "train.zarr"))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "no_such.yaml"], 2, "no such file"),
        (["run", "oracle_noise1"], 2, "HEADROOM_TRAIN is not set"),
        (["plan", "no_such.yaml"], 2, "no such file"),
        (["report", "no_such_run"], 2, "no such folder"),
        (["convert", "no_such_shard.h5", "out.zarr"], 2, "no_such_shard.h5"),
        (["sample", "spectra", "--train", "-5"], 2, "train"),
        (["sample", "spectra", "--grid", "no_grid.npz"], 2, "no_grid.npz"),
    ],
)
def test_mistakes_exit_with_2_and_one_line(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HEADROOM_TRAIN", "HEADROOM_TEST", "HEADROOM_STORES"):
        monkeypatch.delenv(name, raising=False)
    found, _, err = invoke(capsys, *arguments)
    assert found == code
    require_one_line(err)
    assert words in err
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert", "{sample}/train"], "STORE"),
        (["convert", "{sample}/train", "{tmp}/x.h5"], "x.zarr"),
        (["predict", "run", "{sample}/test", "--out", "p.csv", "--noise", "1.0", "--seed", "-3"], "--seed"),
        (["export", "run", "model", "--seed", "-3"], "--seed"),
        (["export", "run", ""], "empty word"),
        (["run", "{config}", "--out", ""], "empty word"),
        (["run", "{config}", "--out", "/"], "choose a folder of its own"),
        (["run", "{config}", "--out", "{foreign}"], "'notes.txt'.*folder of its own"),
        (["run", "{config}", "--out", "{foreign}/spectra/train/shard_0"], "among the data.*data.train"),
        (["run", "{config}", "--out", "{foreign}/spectra/train/shard_0/run"], "among the data.*data.train"),
        (["run", "{config}", "--out", "{foreign}/spectra/test/run"], "among the data.*data.test"),
        (["run", "{config}", "--out", "{foreign}/stores/run"], "among the data.*data.stores"),
        (["submit", "{config}", "--profile", "slurm", "--out", "{foreign}", "--dry-run"], "folder of its own"),
        (["sample", "{foreign}"], "'notes.txt'.*folder of its own"),
        (["sample", ""], "empty word"),
        (["run", "{config}", "--out", "{circle}"], "--out.*no path that can be written to"),
        (["export", "run", "{circle}"], "no path that can be written to"),
    ],
)
def test_nothing_is_written_where_it_was_not_meant(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(sample, foreign / "spectra")
    (foreign / "stores").mkdir()
    (foreign / "notes.txt").write_text("mine")
    config = tmp_path / "my.yaml"
    config.write_text(
        "data: {train: foreign/spectra/train/shard_index.txt, test: foreign/spectra/test, stores: foreign/stores}\n"
    )
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    before = sorted(tmp_path.rglob("*"))
    places = {"sample": sample, "config": config, "tmp": tmp_path, "foreign": foreign, "circle": circle}
    code, out, err = invoke(capsys, *(one.format(**places) for one in arguments))
    assert (code, out) == (2, "")
    assert re.search(words, err)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_terminal_would_obey_is_shown_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b]0;title\x07\udcff.h5"
    for command in (["convert", name, str(tmp_path / "x.zarr")], ["inspect", name]):
        code, out, err = invoke(capsys, *command)
        assert code == 2
        assert r"\x1b]0;title\x07\udcff.h5" in out + err
        assert "\x1b" not in out + err


def test_inspect_of_a_broken_file_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dataset.h5").write_bytes(b"")
    code, out, err = invoke(capsys, "inspect", str(tmp_path / "dataset.h5"))
    assert code == 2
    assert "Traceback" not in out + err


def test_inspect_exits_with_2_for_what_a_run_would_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flux, error = make_pixels(40, 16)
    mask = np.zeros(flux.shape, np.int64)
    error[7, 3], mask[7, 3] = 1e20, 1
    shard = write_shard(tmp_path / "dataset.h5", arrays={"flux": flux, "error": error, "mask": mask})
    code, out, _ = invoke(capsys, "inspect", str(shard))
    assert code == 2
    assert "row 7, pixel 3" in out
    config = tmp_path / "drop.yaml"
    config.write_text(f"data: {{train: [{shard}], test: [{shard}], nonfinite: drop}}")
    code, out, _ = invoke(capsys, "inspect", str(shard), "--config", str(config))
    assert code == 0
    assert "row 7, pixel 3" in out


def test_wrong_options_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(capsys, "run")[0] == 2
    assert invoke(capsys, "run", "demo", "--workers", "0")[0] == 2
    assert invoke(capsys, "rum")[0] == 2


@pytest.mark.usefixtures("known_rates")
def test_a_plan_that_cannot_fit_exits_with_3(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cluster.profiles.LocalProfile.resolved_memory", lambda self: 300 * 2**20)
    code, _, err = invoke(capsys, "plan", str(config_file))
    assert code == 3
    require_one_line(err)
    assert "workers have 300.0 MiB" in err


def test_a_read_only_output_exits_with_3(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Below a device there is no folder to make, whoever asks: root may write to read-only folders.
    code, _, err = invoke(capsys, "run", str(config_file), "--out", "/dev/null/run", "--quiet")
    assert code == 3
    require_one_line(err)
    assert "/dev/null/run" in err


@pytest.mark.usefixtures("small_run")  # has compiled what it computes with, so nothing but the run writes
def test_a_full_disk_exits_with_3(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Writes beyond 20 KB fail, as on a disk that fills up in the middle of a file.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        code, _, err = invoke(capsys, "run", config_file, "--out", tmp_path / "run", "--workers", "1", "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 3, err
    require_one_line(err)
    assert not list((tmp_path / "run").rglob("*.tmp")), "nothing half-written stays"
    assert not (tmp_path / "run" / "results.csv").exists()


@pytest.mark.faults
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_exits_with_130_stops_all_processes_and_resumes(config_file: Path, tmp_path: Path, workers: int) -> None:
    out = tmp_path / "run"
    command = [HEADROOM, "run", str(config_file), "--out", str(out), "--workers", str(workers)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=hear_interrupts
    )
    assert process.stderr is not None
    while "accumulate" not in (line := process.stderr.readline()):
        assert line, "the run ended before it was interrupted"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2 or workers == 1, "a single worker is a thread"
    os.killpg(process.pid, signal.SIGINT)  # what a terminal sends: to every process of the group
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted; run the same command again to resume" in err
    assert "Traceback" not in err
    deadline = time.monotonic() + 20
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline, "worker processes outlive the command"
        time.sleep(0.1)
    run_experiment(load_config(config_file), out)


@pytest.mark.parametrize(
    ("words", "noun", "help_of"),
    [
        (["run"], "CONFIG", "headroom run --help"),
        (["frobnicate"], "frobnicate", "headroom --help"),
        (["plot", "--width", "1"], "--width", "headroom plot --help"),
        (["run", "demo", "--out", "b\udcff"], "no UTF-8", "headroom run --help"),
        (["forecast", "--alpha", "1e300"], "--alpha", "headroom forecast --help"),
    ],
)
def test_a_wrong_word_is_told_in_one_line(
    words: list[str], noun: str, help_of: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = invoke(capsys, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    require_one_line(err)
    assert noun in err
    assert f"`{help_of}`" in err


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("data: {train: a, test: b}\n")
    words = [HEADROOM, "plan", str(tmp_path / "my.yaml")]
    script = f"mkdir gone; cd gone; rmdir ../gone; exec {shlex.join(words)}"
    told = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 3
    require_one_line(told.stderr)
    assert "the folder that you are in is gone; change to one that exists" in told.stderr


def test_no_word_at_all_is_answered_with_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = invoke(capsys)
    assert code in (0, 2)
    assert "Commands:" in out + err


def test_the_folder_that_one_is_in_is_looked_at(
    sample: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(sample / "train")
    code, out, _ = invoke(capsys, "inspect", ".", "--json")
    assert code == 0
    assert [one["path"] for one in json.loads(out)["files"]] == ["shard_0/dataset.h5", "shard_1/dataset.h5"]
