"""What the terminal shows: progress, silence, colours that may be refused, and JSON that stands alone."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from commands import HEADROOM, invoke

from pipeline.base import progress, wants_colour
from pipeline.base.progress import LogProgress, NumberedProgress, SubjectProgress, format_rate
from pipeline.cli.app import cli
from pipeline.config import ExperimentConfig
from pipeline.store import SpectraStore

#: Select Graphic Rendition codes that set a colour; bold and cursor movements are none.
COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-7]|38|9[0-7]|4[0-7])(?:;\d+)*m")


def run_in_terminal(*arguments: str, **environment: str) -> bytes:
    """Run headroom with all streams on a terminal of 120 columns; return what it wrote there."""
    leader, follower = pty.openpty()
    unset = {"NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "PYTHONWARNINGS"}
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    process = subprocess.Popen(
        [HEADROOM, *arguments],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=inherited | {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"} | environment,
        close_fds=True,
    )
    os.close(follower)
    written = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        written += part
    os.close(leader)
    assert process.wait(timeout=60) == 0, written.decode()
    return written


class Terminal(io.StringIO):
    """A terminal of this process, for what needs no process of its own."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def config_file(small_config: ExperimentConfig, tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_config.to_dict() | {"seeds": [42]}, sort_keys=False))
    return path


def test_colours_on_a_terminal_and_none_with_no_color(test_store: SpectraStore) -> None:
    arguments = ("inspect", str(test_store.path))
    coloured, plain = run_in_terminal(*arguments), run_in_terminal(*arguments, NO_COLOR="1")
    assert COLOUR.search(coloured), "a bar is drawn in colour"
    assert not COLOUR.search(plain)
    for shown in (coloured, plain):
        assert b"400/400" in shown, "the bar says how many are done"
        assert re.search(rb"[\d,]+/s", shown), "and how fast"
        assert b"left" in shown


@pytest.mark.usefixtures("known_rates")
def test_tables_follow_no_color(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("pipeline.plan.measure_flops", lambda *_args, **_options: 95e9)
    for no_color, is_coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", no_color)
        monkeypatch.setattr("sys.stdout", terminal := Terminal())
        assert invoke(capsys, "doctor", "--folder", tmp_path)[0] == 0
        assert "fit for a run" in terminal.getvalue()
        assert bool(COLOUR.search(terminal.getvalue().encode())) == is_coloured


def test_lines_instead_of_a_bar_where_there_is_no_terminal(
    test_store: SpectraStore, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = invoke(capsys, "inspect", str(test_store.path))
    assert code == 0
    assert "\x1b" not in out + err
    assert "inspect test.zarr: 400 spectra\n" in err
    assert re.search(r"inspect test\.zarr: done in [\d.]+ s, [\d,]+ spectra/s", err)
    assert invoke(capsys, "inspect", str(test_store.path), "--quiet")[2] == ""


def test_log_lines_tell_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    with LogProgress(stream).step("accumulate", 1000) as advance:
        for seconds in (10.0, 20.0, 21.0):  # the first is too early to be told, the last too soon after the second
            clock[0] = seconds
            advance(100)
        clock[0] = 100.0
        advance(700)
    assert stream.getvalue().splitlines() == [
        "accumulate: 1,000 spectra",
        "accumulate: 200 of 1,000 spectra, 10 spectra/s, 80 s left",
        "accumulate: done in 100.0 s, 10 spectra/s",
    ]


@pytest.mark.parametrize(
    ("done", "seconds", "unit", "told"),
    [
        (0, 3.0, "spectra", ""),
        (1, 4.3, "page", ""),
        (5, 0.0, "models", ""),
        (7, 28.0, "blends", "4.0 s each"),
        (5, 2.0, "models", "2.5 models/s"),
        (128_000, 64.0, "spectra", "2,000 spectra/s"),
    ],
)
def test_a_rate_says_something(done: int, seconds: float, unit: str, told: str) -> None:
    assert format_rate(done, seconds, unit) == told


def test_steps_are_numbered() -> None:
    stream = io.StringIO()
    progress = NumberedProgress(LogProgress(stream))
    progress.expect(["convert", "solve", "report"])
    for name, title in (("convert", "convert"), ("solve", "solve"), ("report", "draw"), ("unheard", "of")):
        progress.enter(name)
        with progress.step(title, 1) if name != "convert" else SubjectProgress(progress, "train").step(title, 1):
            pass
    assert [line for line in stream.getvalue().splitlines() if "done" not in line] == [
        "1 of 3, convert train",
        "2 of 3, solve",
        "3 of 3, report: draw",
        "of",
    ]


def test_who_wants_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert wants_colour(Terminal())
    assert not wants_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "")
    assert wants_colour(Terminal()), "an empty NO_COLOR says nothing (no-color.org)"
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_colour(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(Terminal())


@pytest.mark.usefixtures("known_rates", "no_figures")
def test_a_run_as_json_prints_one_object_and_its_steps_beside_it(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    code, out, err = invoke(capsys, "plan", str(config_file), "--out", str(folder), "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert (plan["n_spectra"], plan["n_pixels"]) == (1600, 48)
    assert plan["flops"] == 1600 * 48**2
    assert plan["seconds"]["total"] == pytest.approx(sum(plan["steps"].values()))
    assert list(plan["steps"]) == ["convert", "accumulate", "solve", "score", "report"]
    code, out, err = invoke(capsys, "run", str(config_file), "--out", str(folder), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["levels"] == json.loads((folder / "summary.json").read_text())["levels"]
    assert Path(found["report"]).is_file()
    assert "time: about " in err
    for step in ("2 of 5, accumulate", "4 of 5, score: predict", "5 of 5, report: draw figures and report"):
        assert f"{step}: done in" in err
    for command in (["status", str(folder)], ["moments", str(folder)], ["compare", str(folder), str(folder)]):
        code, out, _ = invoke(capsys, *command, "--json")
        assert code == 0
        assert isinstance(json.loads(out), dict)


def test_sample_inspect_and_convert_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, store = tmp_path / "spectra", tmp_path / "train.zarr"
    size = ["--train", "120", "--shards", "2", "--test", "40", "--pixels", "32", "--workers", "1", "--json"]
    made = json.loads(invoke(capsys, "sample", str(folder), *size)[1])
    assert (made["train"], made["test"], made["pixels"], len(made["train_files"])) == (120, 40, 32, 2)
    shard = str(folder / "train" / "shard_0" / "dataset.h5")
    (tmp_path / "dataset.h5").write_bytes(b"no shard")
    code, out, _ = invoke(capsys, "inspect", shard, str(tmp_path / "dataset.h5"), "--json")
    whole, broken = json.loads(out)["files"]
    assert code == 2, "one of them is broken"
    assert whole["problem"] is None
    assert whole["n_spectra"] == 60 == sum(whole["bin_counts"].values())
    assert broken["problem"]
    converted = json.loads(invoke(capsys, "convert", shard, str(store), "--workers", "1", "--json")[1])
    assert converted["n_spectra"] == 60
    assert converted["fingerprint"] == SpectraStore.open(store).fingerprint


@pytest.mark.parametrize("arguments", [["run", "nowhere.yaml"], ["plan", "nowhere.yaml"], ["compare", "a", "b"]])
def test_mistakes_leave_standard_output_empty(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = invoke(capsys, *arguments, "--json")
    assert (code, out) == (2, "")
    assert err.startswith("headroom: ")


def test_what_takes_long_can_be_silenced_and_what_answers_speaks_json() -> None:
    options = {name: {one for p in command.params for one in p.opts} for name, command in cli.commands.items()}
    for name in ("sample", "inspect", "convert", "run", "add", "remove", "moments"):
        assert "--quiet" in options[name], name
    machines = (
        "sample",
        "inspect",
        "convert",
        "plan",
        "run",
        "add",
        "remove",
        "status",
        "moments",
        "compare",
        "doctor",
    )
    for name in machines:
        assert "--json" in options[name], name
