"""A grid of experiments: one configuration with some settings varied, in folders side by side.

All of them share the stores. They are computed one after the other in one work folder, where each finds the moments and
models of those before it, as far as these hold for it. Experiments that differ in noise levels or seeds share the pass
over the spectra, too: the moments of all of them come from one read.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipeline.base import Progress, SilentProgress, is_run_folder, read_status, remove_leftovers, replacing_folder
from pipeline.config import ExperimentConfig, content_hash, describe_findings, parse_yaml
from pipeline.errors import ConfigError, HeadroomError, InputError, ResourceError
from pipeline.plan import format_seconds
from pipeline.run.experiment import project_seconds, render_run, run_experiment, share_pass
from pipeline.run.folder import CONFIG_FILE, require_own_folder
from pipeline.run.standing import find_standing, record_standing
from pipeline.scoring import read_metadata

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["WORK_FOLDER", "SweepPoint", "list_open", "plan_sweep", "require_sweep_folder", "run_sweep"]

#: Points of a grid, at most.
MOST_POINTS = 200
#: The folder in which all points are computed.
WORK_FOLDER = "work"
#: How the record of a run begins that a sweep has made.
_COMMAND = "headroom sweep"
#: Settings that moments do not depend on, besides noise levels and seeds.
_AFTER_THE_PASS = ("ridge", "decision", "hypotheses", "bootstrap", "target")
_LONGEST_NAME = 80
#: What a copy of a run does without: its moments, what is about the computation that is over, and hidden files.
_LEFT_BEHIND = re.compile(r"moments|status\.json|dask_report.*|\..*")


@dataclass(frozen=True)
class SweepPoint:
    """One experiment of a grid.

    Attributes
    ----------
    name
        Its folder within that of the sweep, such as ``noise.levels=0.2``.
    settings
        What it varies, by dotted names.
    config
        The experiment.
    """

    name: str
    settings: Mapping[str, Any]
    config: ExperimentConfig


def plan_sweep(config: ExperimentConfig, varied: Sequence[str]) -> list[SweepPoint]:
    """Return the experiments of a grid, in the order in which its settings are stated.

    Parameters
    ----------
    config
        What does not vary.
    varied
        ``SETTING=VALUE,VALUE,...`` each: a setting by its dotted name, and its values as YAML. Lists stand in brackets:
        ``seeds=[1],[1,2]``. A single value of a setting that takes a list is a list of one.

    Raises
    ------
    ConfigError
        If a text is not of this form, a point of the grid is no experiment, or two points are the same one; the
        message names them.

    Examples
    --------
    >>> [point.name for point in plan_sweep(config, ["noise.levels=0.2,1", "seeds=42"])]  # doctest: +SKIP
    ['noise.levels=0.2,seeds=42', 'noise.levels=1,seeds=42']
    """
    axes = dict(_parse(text) for text in varied)
    if len(axes) < len(varied):
        raise ConfigError("--set: every setting may vary once only; give all its values together, such as a=1,2,3")
    for name in axes:
        if name.partition(".")[0] == "cluster":
            raise ConfigError(f"--set {name}: results do not depend on the cluster; choose one with --cluster")
    points: dict[str, SweepPoint] = {}
    combinations = list(product(*axes.values()))
    if len(combinations) > MOST_POINTS:
        raise ConfigError(f"--set: a grid of at most {MOST_POINTS} runs is allowed, found {len(combinations):,}")
    for values in combinations:
        settings = dict(zip(axes, values, strict=True))
        name = _name(settings)
        if name in points:
            raise ConfigError(f"--set: {name} stands twice; give every value once")
        points[name] = SweepPoint(name, settings, _vary(config, settings))
    known: dict[str, str] = {}
    for point in points.values():
        other = known.setdefault(repr(point.config.to_dict()), point.name)  # in which the order of bins counts
        if other != point.name:
            raise ConfigError(f"--set: {other} and {point.name} are the same run; give every value once")
    if len({point.config.target for point in points.values()}) > 1:
        raise ConfigError(
            "--set target: a sweep compares runs of one target, found several; a run scores its other labels, too"
        )
    return list(points.values())


def list_open(points: Sequence[SweepPoint], folder: Path) -> list[SweepPoint]:
    """Return the experiments of a grid that are not finished yet."""
    return [point for point in points if find_standing(point.config, folder / point.name) is None]


def require_sweep_folder(points: Sequence[SweepPoint], folder: Path) -> None:
    """Refuse a folder that a sweep may not write to: that of a run, one of other files, or one within the data.

    A new or empty folder may be used, and so may one that has folders of runs in it.

    Raises
    ------
    InputError
        If it may not be used, or if something else lies where a run is due; nothing is written.
    """
    if is_run_folder(folder):
        raise InputError(
            f"--out {folder}: a folder that can hold several runs is required, found the folder of one; choose "
            "another, such as --out sweeps/first"
        )
    work = folder / WORK_FOLDER
    if is_run_folder(work) and not _is_of_a_sweep(work):
        raise InputError(f"{work}: the moments of this sweep are due there, found a run of its own; move it away")
    found = [one for one in folder.iterdir() if not one.name.startswith(".")] if folder.is_dir() else []
    # Killed before its first run wrote anything, it has left a lock at most.
    is_begun = found == [work] and work.is_dir() and all(one.name.startswith(".") for one in work.iterdir())
    if not (is_begun or any(map(is_run_folder, found))):
        require_own_folder(folder, points[0].config)
    for point in points:
        due = folder / point.name
        if os.path.lexists(due) and not (due / CONFIG_FILE).is_file():
            raise InputError(f"{due}: a run of this sweep is due there, found something else; move it away")


def _is_of_a_sweep(work: Path) -> bool:
    """Whether a run was made by a sweep, as far as its files tell."""
    try:
        command = str(read_metadata(work)["command"])
    except (InputError, KeyError):  # it is not finished
        status = read_status(work)
        command = _COMMAND if status is None else status.command
    return command.startswith(_COMMAND)


def run_sweep(
    points: Sequence[SweepPoint],
    folder: str | Path,
    *,
    client: Client | None = None,
    convert_workers: int | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Run every experiment of a grid that is not finished yet.

    Parameters
    ----------
    points
        From :func:`plan_sweep`.
    folder
        The folder of the sweep, created if needed. Every point gets a run folder in it. The moments, which are large,
        stay in ``work``, which may be deleted afterwards.
    client, convert_workers, progress
        See :func:`pipeline.run_experiment`.

    Returns
    -------
    list of Path
        The run folders, in the order of the points.

    Raises
    ------
    InputError, ConfigError, ResourceError
        As a run does; the message names the point. What was finished before stays, and the same call goes on from
        there.
    """
    told, out = progress or SilentProgress(), Path(folder)
    work = out / WORK_FOLDER
    open_points = list_open(points, out)
    require_sweep_folder(points, out)
    if open_points and progress is not None:
        total = format_seconds(project_seconds([point.config for point in open_points], client))
        which = "1 run" if len(open_points) == 1 else f"all {len(open_points)} runs"
        told.note(
            f"time of {which}: at most about {total}; runs share stores, and passes and models where these are the same"
        )
    options: dict[str, Any] = {"client": client, "convert_workers": convert_workers, "progress": progress}
    shared: list[dict[str, Any]] = []
    for number, point in enumerate(open_points, 1):
        told.note(f"run {number} of {len(open_points)}: {point.name}")
        kind = _describe_pass(point.config)
        try:
            if kind not in shared:
                shared.append(kind)
                _share(point, [one.config for one in open_points if _describe_pass(one.config) == kind], work, options)
            run_experiment(point.config, work, **options, command=f"{_COMMAND}: {point.name}")
        except HeadroomError as error:
            raise type(error)(f"run {point.name}: {error}") from error
        _copy_results(work, out / point.name)
        render_run(out / point.name)
        record_standing(point.config, out / point.name, "")
    return [out / point.name for point in points]


def _parse(text: str) -> tuple[str, list[Any]]:
    """Return the name of a setting and its values."""
    name, equals, listed = text.partition("=")
    example = "such as --set noise.levels=0.2,0.5,1 or --set seeds=[1],[1,2]"
    if not (equals and name.strip() and listed.strip()):
        raise ConfigError(f"--set {text}: a setting and its values are required, {example}")
    try:
        values = parse_yaml(f"[{listed}]")
    except ValueError:
        raise ConfigError(f"--set {text}: the values are not valid YAML; write them with commas, {example}") from None
    return name.strip(), values


def _vary(config: ExperimentConfig, settings: Mapping[str, Any]) -> ExperimentConfig:
    """Return an experiment with other values of some settings."""
    content = config.to_dict()
    for name, value in settings.items():
        *sections, last = name.split(".")
        inner = content
        for section in sections:
            if inner.get(section) is None:
                inner[section] = {}
            inner = inner[section]
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {name}: {section} holds a value and no settings; set it as a whole")
        is_listed = isinstance(inner.get(last), list) and not isinstance(value, list | dict)
        inner[last] = [value] if is_listed else value
    try:
        return ExperimentConfig.model_validate(content | ({"cluster": config.cluster} if config.cluster else {}))
    except ValidationError as error:
        raise ConfigError(f"--set {_name(settings)}: {describe_findings(error, ExperimentConfig)}") from None


def _name(settings: Mapping[str, Any]) -> str:
    """Return a name for a folder that tells what varies."""
    text = ",".join(f"{name}={value}" for name, value in settings.items())
    plain = re.sub(r"[^\w.,=+-]+", "_", re.sub(r"[\[\]]", "", text.replace(", ", "+"))).strip("_")
    return plain if len(plain) <= _LONGEST_NAME else f"{plain[:_LONGEST_NAME]}-{content_hash(text)}"


def _describe_pass(config: ExperimentConfig) -> dict[str, Any]:
    """Return the settings that must agree for a shared pass."""
    plain = {name: value for name, value in config.to_dict().items() if name not in (*_AFTER_THE_PASS, "seeds")}
    return plain | {"noise": {name: value for name, value in plain["noise"].items() if name != "levels"}}


def _share(point: SweepPoint, configs: Sequence[ExperimentConfig], work: Path, options: Mapping[str, Any]) -> None:
    """Read the spectra once for the noises of all these experiments, where they have more than the first one has."""
    levels = sorted({level for config in configs for level in config.noise.levels})
    seeds = tuple(dict.fromkeys(seed for config in configs for seed in config.seeds))
    if set(levels) == set(point.config.noise.levels) and set(seeds) == set(point.config.seeds):
        return
    try:
        union = _vary(point.config, {"noise.levels": levels, "seeds": list(seeds)})
        share_pass(union, work, **options)
    except (ConfigError, ResourceError) as error:
        told = options["progress"] or SilentProgress()
        told.note(f"the runs do not share a pass ({error}); each makes its own")


def _copy_results(work: Path, folder: Path) -> None:
    """Copy a finished run without its moments: whole, or not at all."""
    remove_leftovers(folder.parent, folder.name)
    with replacing_folder(folder, lambda _: False) as temporary:
        for file in sorted(work.rglob("*")):
            name = file.relative_to(work)
            if file.is_file() and not any(_LEFT_BEHIND.fullmatch(part) for part in name.parts):
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, temporary / name)
