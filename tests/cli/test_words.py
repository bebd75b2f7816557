"""What every command has in common: ``--json``, ``--quiet``, examples that exist, a hint, completion by the shell."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from commands import HEADROOM, invoke

from pipeline.cli.app import cli, next_step
from pipeline.config import ExperimentConfig
from pipeline.scoring import RunResults


def walk(command: click.Command = cli, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with the words that call it."""
    if isinstance(command, click.Group):
        for name, own in command.commands.items():
            yield from walk(own, (*words, name))
    else:
        yield words, command


COMMANDS = dict(walk())
#: Those that tell what to do next among what they print.
SAY_IT_THEMSELVES = {("submit",), ("status",)}


def examples_of(command: click.Command) -> list[str]:
    text = (command.help or "").split("Example:\n", 1)[1]
    return [line.strip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_json_quiet_and_whole_sentences(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    options = {one for parameter in command.params for one in parameter.opts}
    assert {"--json", "--quiet"} <= options
    assert (next_step(" ".join(words), {p.name: "x.csv" for p in command.params if p.name}) is None) == (
        words in SAY_IT_THEMSELVES
    )
    text = (command.help or "").split("\b")[0].strip()
    assert text.endswith(".")
    assert text[0].isupper()
    for parameter in command.params:
        said = getattr(parameter, "help", None)
        if said is not None and not getattr(parameter, "hidden", False):
            assert said[0].isupper() or said[0] == "`", said
            assert said.endswith((".", "]")), said


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_examples_have_commands_and_options_that_exist(words: tuple[str, ...], tmp_path: Path) -> None:
    examples = examples_of(COMMANDS[words])
    assert any(f"headroom {' '.join(words)} " in f"{line} " for line in examples)
    for line in examples:
        first = re.split(r" && | > ", line)[0]
        given = shlex.split(first)
        name, *arguments = given[given.index("headroom") + 1 :]
        found = cli.commands[name]
        while isinstance(found, click.Group):
            found, arguments = found.commands[arguments[0]], arguments[1:]
        with found.make_context(name, arguments):
            pass  # raises where an option or an argument is not there


@pytest.fixture(scope="module")
def place(
    sample: Path, small_run: RunResults, small_config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a configuration, a run of it, a second run, and a SLURM profile."""
    folder = tmp_path_factory.mktemp("place")
    shards = small_config.to_dict() | {"compute": {"folds": "shards", "partition_rows": 250, "run_rows": 128}}
    (folder / "my.yaml").write_text(yaml.safe_dump(shards, sort_keys=False))
    for name in ("run", "other"):
        shutil.copytree(small_run.folder, folder / name)
    return folder


#: A call of each command that a small run allows; the order is that of the work.
CALLS = {
    ("doctor",): "doctor",
    ("sample",): "sample made --train 60 --shards 1 --test 20 --pixels 32 --workers 1",
    ("inspect",): "inspect {sample}/test",
    ("init",): "init {sample}/train --test {sample}/test",
    ("convert",): "convert {sample}/test test.zarr --workers 1",
    ("plan",): "plan my.yaml",
    ("run",): "run my.yaml --out mine --no-dask",
    ("sweep",): "sweep my.yaml --set seeds=42,123 --dry-run",
    ("submit",): "submit my.yaml --profile slurm --out batch --dry-run",
    ("accumulate",): "accumulate my.yaml --part 1 --of 1 --out mine",
    ("status",): "status mine",
    ("cluster", "list"): "cluster list",
    ("cluster", "show"): "cluster show slurm",
    ("cluster", "array"): "cluster array",
    ("remove",): "remove mine shard_1",
    ("add",): "add mine {sample}/train/shard_1",
    ("report",): "report run",
    ("plot",): "plot run",
    ("compare",): "compare run other",
    ("moments",): "moments run",
    ("export",): "export run model",
    ("predict",): "predict model {sample}/test --out p.csv --noise 1.0",
}


@pytest.mark.slow  # every command, twice
@pytest.mark.usefixtures("known_rates", "no_figures")
def test_json_is_all_that_commands_print_and_quiet_ones_give_no_hint(
    place: Path, sample: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are tried with every command, but for the forecast, whose run has a test of its own."""
    monkeypatch.chdir(place)
    assert {*CALLS, ("forecast",)} == COMMANDS.keys()
    for words, call in CALLS.items():
        arguments = shlex.split(call.format(sample=sample))
        code, out, err = invoke(capsys, *arguments, "--json", "--quiet")
        assert code == 0, (words, out, err)
        assert isinstance(json.loads(out), dict | list), words
        assert err == "", words
        if words in (("add",), ("remove",), ("run",)):
            continue  # once is enough
        again = ["--overwrite"] if words in (("predict",), ("export",), ("sample",)) else []
        code, out, err = invoke(capsys, *arguments, *again, "--quiet")
        assert (code, err) == (0, ""), words
        assert out, words


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        ("moments run", "next, to read every byte of them:  headroom moments run --verify"),
        ("cluster show local", "next, to see whether a run fits:  headroom plan CONFIG --cluster local"),
        (
            "inspect {sample}/test/dataset.h5",
            "next, to write a configuration for such spectra:  headroom init SPECTRA --test SPECTRA > my.yaml",
        ),
        (
            "inspect {sample}/test/dataset.h5 --config my.yaml",
            "next, to see what a run of these spectra costs:  headroom plan my.yaml",
        ),
        ("plan my.yaml", "next, to run it:  headroom run my.yaml --out runs/my"),
        (
            "plan my.yaml --cluster slurm --min 2 --max 4",
            "next, to run it:  headroom run my.yaml --out runs/my --cluster slurm --min 2 --max 4",
        ),
    ],
)
@pytest.mark.usefixtures("known_rates")
def test_a_command_ends_with_a_line_that_says_what_to_do(
    call: str, hint: str, place: Path, sample: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    code, out, err = invoke(capsys, *call.format(sample=sample).split())
    assert code == 0
    assert err.splitlines()[-1] == hint
    assert "next, " not in out, "results stand alone"


def test_hints_quote_what_was_given() -> None:
    assert next_step("run", {"config": "a b.yaml", "out": None}) == (
        "next, to use the models elsewhere:  headroom export 'runs/a b' MODEL"
    )
    assert str(next_step("plan", {"config": "my.yaml", "name": "{a b}.yaml"})).endswith(" --cluster '{a b}.yaml'")
    swept = next_step("sweep", {"config": "my.yaml", "out": None, "dry_run": True})
    assert swept == "next, to run them:  the same command without --dry-run"
    assert str(next_step("predict", {"out": Path("p.csv")})).endswith("pandas.read_csv('p.csv')")
    assert str(next_step("plan", {"config": None})).endswith("headroom run CONFIG")


def test_hints_name_the_variables_that_the_configuration_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be set for one command alone, and the next one is to work when it is pasted."""
    monkeypatch.setenv("HEADROOM_DEMO", "my spectra")
    monkeypatch.setenv("TESTS", "/big")
    monkeypatch.setenv("OTHER", "x")
    said = str(next_step("plan", {"config": "demo", "out": Path("runs/a")}))
    assert said.endswith(":  HEADROOM_DEMO='my spectra' headroom run demo --out runs/a")
    assert "HEADROOM_DEMO=" not in str(next_step("run", {"config": "demo", "out": None})), "export needs it not"
    own = tmp_path / "own.yaml"
    own.write_text(
        "data: {train: ['${HEADROOM_DEMO}/a', $TESTS/b], test: '${TESTS}/c', stores: $UNSET}\ntarget: $OTHER\n"
    )
    for name in ("plan", "accumulate", "inspect"):
        said = str(next_step(name, {"config": str(own), "out": None}))
        assert "HEADROOM_DEMO='my spectra' TESTS=/big headroom " in said
    assert "=" not in str(next_step("plan", {"config": str(tmp_path / "none.yaml"), "out": None}))


@pytest.mark.parametrize(
    ("typed", "kind", "offered"),
    [
        ("headroom acc", "plain", "accumulate"),
        ("headroom run or", "plain", "oracle_noise1"),
        ("headroom plan de", "plain", "demo"),
        ("headroom run --no", "plain", "--no-dask"),
        ("headroom run demo --cluster sl", "plain", "slurm"),
        ("headroom cluster show lo", "plain", "local"),
        ("headroom inspect trai", "file", "trai"),
        ("headroom init a.h5 --test te", "file", "te"),
        ("headroom convert trai", "file", "trai"),
        ("headroom predict model trai", "file", "trai"),
    ],
)
def test_the_shell_completes(typed: str, kind: str, offered: str) -> None:
    environment = os.environ | {
        "_HEADROOM_COMPLETE": "bash_complete",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    done = subprocess.run([HEADROOM], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert offered in re.findall(rf"^{kind},(.*)$", done.stdout, flags=re.MULTILINE)


def _list_options(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Parameter]]:
    if isinstance(command, click.Group):
        for part, inner in command.commands.items():
            yield from _list_options(inner, f"{name} {part}".strip())
    else:
        yield from ((name, option) for option in command.params)


def test_no_range_of_numbers_takes_nan_or_infinity() -> None:
    """A forecast may be asked for an endless number of spectra, and refuses what else is no number itself."""
    ranges = [(name, option) for name, option in _list_options(cli) if isinstance(option.type, click.FloatRange)]
    ranges = [(name, option) for name, option in ranges if name != "forecast"]
    assert {"plan", "plot", "status"} <= {name for name, _ in ranges}
    for name, option in ranges:
        for word in ("nan", "inf", "-inf"):
            with pytest.raises(click.BadParameter):
                option.type.convert(word, option, click.Context(cli.commands[name.split()[0]]))
