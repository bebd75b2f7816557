"""The README says what is so: its commands run, its messages exist, its tables are complete, its links lead on."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from commands import put_on_path

from pipeline.cli.app import cli
from pipeline.config import ExperimentConfig, Section
from pipeline.simulate import SampleSpec, write_sample

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Lines that install things, or do at length what other tests do.
LEFT_OUT = re.compile(r"^(make|conda|pip) ")
#: How commands are changed so that they take seconds: what is simulated is small, and nothing is really submitted.
SMALLER = (
    (re.compile(r"^headroom sample spectra$"), " --train 1800 --shards 2 --test 300 --pixels 40 --workers 1"),
    (re.compile(r"^headroom submit "), " --dry-run"),
)
#: The batch job of the dry run is not there to be watched: the run before it is.
INSTEAD = {"headroom status runs/batch --watch": "headroom status runs/mine --watch"}


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> Iterator[str]:
    """Every command of the README in order, without what explains it."""
    for block in blocks("sh"):
        for line in block.splitlines():
            command = re.sub(r"\s+#.*", "", line).strip()
            if command and not LEFT_OUT.match(command):
                yield command


def words_of(command: str) -> list[str]:
    """The arguments of a headroom command; variables before it are left out."""
    words = shlex.split(command)
    return words[words.index("headroom") + 1 :]


def table_rows(heading: str, text: str = README) -> list[list[str]]:
    """Cells of the first table after a heading, without its head."""
    lines = text.split(f"{heading}\n", 1)[1].splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return table


@pytest.mark.parametrize("command", [one for one in commands() if "headroom" in shlex.split(one)])
def test_commands_and_options_exist(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, *arguments = words_of(command)
    found: click.Command = cli.commands[name]
    while isinstance(found, click.Group):
        found, arguments = found.commands[arguments[0]], arguments[1:]
    with found.make_context(name, arguments):
        pass  # raises where an option or an argument is not there


def test_the_table_of_commands_is_complete() -> None:
    rows = [row[0] for row in table_rows("## Commands")]
    assert sorted(re.match(r"`headroom (\w+)", row).group(1) for row in rows) == sorted(cli.commands)  # type: ignore[union-attr]
    for row in rows:
        for option in re.findall(r"--[\w-]+", row):
            name = row.split()[1].strip("`")
            assert option in {one for p in cli.commands[name].params for one in p.opts}, row


def test_options_that_the_table_names_exist() -> None:
    for left, right in (row[:2] for row in table_rows("## Commands")):
        command = cli.commands[left.split()[1].strip("`")]
        for option in re.findall(r"--[\w-]+", right):
            assert option in {one for parameter in command.params for one in parameter.opts}, (left, option)


def test_commands_are_listed_in_the_order_of_the_table_by_whole_sentences() -> None:
    with cli.make_context("headroom", ["--help"], resilient_parsing=True, terminal_width=80) as context:
        listed = cli.get_help(context).split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in listed] == [row[0].split()[1].strip("`") for row in table_rows("## Commands")]
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)


def test_messages_of_the_troubleshooting_are_real() -> None:
    sources = {
        path: re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))
        for folder in ("pipeline", "cluster")
        for path in (ROOT / folder).rglob("*.py")
    }
    quoted = [re.fullmatch(r"`(.+)`", row[0]) for row in table_rows("## Troubleshooting")]
    assert len(quoted) >= 5
    for message in quoted:
        assert message is not None, "a message is quoted word for word"
        assert any(message.group(1) in text for text in sources.values()), message.group(1)


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name} links {target}"


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_sources_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for named in re.findall(r"`((?:pipeline|cluster|tests|benchmarks|notebooks|docs)/[\w./-]*)`", text):
        assert (ROOT / named).exists(), f"{path.name} names {named}"


def test_the_readme_stays_short() -> None:
    assert README.count("\n") <= 200
    numbers = README.split("## What the numbers mean")[1].split("\n## ")[0].strip().splitlines()
    assert len(numbers) == 5, "what the numbers mean, in five lines"


def settings_of(model: type[Section], prefix: str = "") -> Iterator[str]:
    """Every setting of the schema: sections are opened, what people name themselves is not."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        key = f"{prefix}{field.alias or name}"
        if sections and not key.count("."):
            yield from settings_of(sections[0], f"{key}.")
        else:
            yield key


def test_every_setting_is_documented_and_no_other() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = table_rows("# The configuration, setting by setting", text)
    documented = [name for row in rows for name in re.findall(r"`([\w.]+)`", row[0])]
    assert len(documented) == len(set(documented))
    assert set(documented) == set(settings_of(ExperimentConfig))


def test_stated_defaults_are_the_defaults() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    plain = ExperimentConfig.model_validate(
        {"data": {"train": "a", "test": "b"}, "gate": {}, "ceiling": {}, "hypotheses": {}}
    )
    checked = 0
    for names, values, *_ in table_rows("# The configuration, setting by setting", text):
        stated = re.search(r"\((`.+?`(?:, `.+?`)*)\)", values)
        if stated is None or "design" in names:
            continue
        defaults = [json.loads(_as_json(one)) for one in re.findall(r"`([^`]+)`", stated.group(1))]
        keys = re.findall(r"`([\w.]+)`", names)
        assert len(keys) == len(defaults), names
        for key, default in zip(keys, defaults, strict=True):
            value: Any = plain.to_dict()
            for part in key.split("."):
                value = value[part]
            assert (list(value) if isinstance(value, list | tuple) else value) == default, key
            checked += 1
    assert checked >= 20


def _as_json(text: str) -> str:
    return text if re.match(r"^[\[\d-]|^(true|false|null)$", text) else f'"{text}"'


@pytest.mark.slow  # every command of the README, one after the other
@pytest.mark.timeout(600)
def test_the_commands_work_in_order(tmp_path: Path) -> None:
    """Follow the README from the top, on spectra that are small and with nothing but what it says."""
    shards = write_sample(tmp_path / "mine", SampleSpec(train=2400, shards=3, test=300, pixels=40, seed=1), workers=1)
    for k, path in enumerate(shards.train_files, 1):
        (tmp_path / f"train_{k}").mkdir()
        path.rename(tmp_path / f"train_{k}" / "dataset.h5")
    assert shards.test_file is not None
    (tmp_path / "test").mkdir()
    shards.test_file.rename(tmp_path / "test" / "dataset.h5")
    shutil.copytree(ROOT / "cluster" / "profiles", tmp_path / "cluster" / "profiles")
    [stated] = [block for block in blocks("yaml") if block.startswith("# my.yaml")]
    (tmp_path / "my.yaml").write_text(stated, encoding="utf-8")
    unset = {"HEADROOM_TRAIN", "HEADROOM_TEST", "HEADROOM_STORES", "HEADROOM_DEMO"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment["PATH"] = put_on_path(tmp_path / "bin")
    script = ["set -e"]
    for command in commands():
        command = INSTEAD.get(command, command)
        command += next((more for pattern, more in SMALLER if pattern.match(command)), "")
        script += [f"echo {shlex.quote('=== ' + command)}", command]
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, f"{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    for made in ("runs/first/report.html", "runs/mine/report.html", "predictions.parquet", "comparison.html", "model"):
        assert (tmp_path / made).exists(), made
    assert "paired, on the same" in done.stdout
    assert not (tmp_path / "train_1" / "dataset.h5").exists(), "verified, then deleted"
    assert (tmp_path / "stores" / "train_1.zarr").is_dir()
