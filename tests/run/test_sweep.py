"""A grid of experiments: what its points are called, what they share, and that each is the run it would be alone."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from unittest import mock

import pytest
from commands import invoke, require_one_line

from pipeline.base import exclusive
from pipeline.base.progress import LogProgress
from pipeline.config import ExperimentConfig
from pipeline.errors import ConfigError, InputError, ResourceError
from pipeline.plan import format_seconds
from pipeline.run import experiment, list_open, plan_sweep, run_experiment, run_sweep


def test_a_grid_is_every_combination_in_the_order_of_its_settings(small_config: ExperimentConfig) -> None:
    points = plan_sweep(small_config, ["noise.levels=0.2,1e0", "seeds=[1],[1, 2]", "ridge.standardize=none"])
    assert [point.name for point in points] == [
        "noise.levels=0.2,seeds=1,ridge.standardize=none",
        "noise.levels=0.2,seeds=1+2,ridge.standardize=none",
        "noise.levels=1.0,seeds=1,ridge.standardize=none",
        "noise.levels=1.0,seeds=1+2,ridge.standardize=none",
    ]
    assert [point.config.noise.levels for point in points] == [(0.2,), (0.2,), (1.0,), (1.0,)]
    assert [point.config.seeds for point in points] == [(1,), (1, 2)] * 2
    assert {point.config.ridge.standardize for point in points} == {"none"}
    assert small_config.seeds == (42, 123), "the configuration itself is left alone"
    long = plan_sweep(small_config, [f"data.stores=/{'a' * 200},/{'a' * 200}b"])
    assert len({point.name for point in long}) == 2
    assert all(len(point.name) < 110 and "/" not in point.name for point in long)


@pytest.mark.parametrize(
    ("varied", "words"),
    [
        (["noise.levels"], "a setting and its values"),
        (["=1,2"], "a setting and its values"),
        (["seeds=[1"], "not valid YAML"),
        (["nois.levels=1,2"], "unknown setting 'nois'"),
        (["target.a=1,2"], "target holds a value"),
        (["seeds=1,1"], "stands twice"),
        (["noise.levels=1,1.0"], "noise.levels=1 and noise.levels=1.0 are the same run"),
        (["seeds=1,[1]"], "stands twice"),
        (["cluster=slurm,local"], "do not depend on the cluster"),
        (["cluster.name=slurm,local"], "do not depend on the cluster"),
        (["seeds=1,2", "seeds=3"], "once only"),
        (["noise.levels=1,-1"], "noise.levels"),
        (["bins={snr: [0, 8, 40]}", "target=log_g,M_H"], "one target"),
        ([f"seeds={','.join(map(str, range(300)))}"], "at most 200"),
    ],
)
def test_what_is_no_grid_is_refused(varied: list[str], words: str, small_config: ExperimentConfig) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_sweep(small_config, varied)


def test_points_share_one_pass_and_are_the_runs_that_they_would_be_alone(
    small_config: ExperimentConfig, tmp_path: Path, no_figures: None
) -> None:
    config = small_config.model_copy(update={"seeds": (42,)})
    points = plan_sweep(config, ["noise.levels=0.5,1", "ridge.standardize=global,none"])
    said = io.StringIO()
    with mock.patch.object(experiment, "accumulate_moments", wraps=experiment.accumulate_moments) as passes:
        folders = run_sweep(points, tmp_path / "sweep", progress=LogProgress(said))
    total = sum(experiment.project_seconds([point.config]) for point in points)
    assert f"time of all 4 runs: at most about {format_seconds(total)}; " in said.getvalue().splitlines()[0]
    computed = [call for call in passes.call_args_list if len(call.args[1]) > 1]
    assert len(computed) == 1, "both noise levels come from one read"
    assert [folder.name for folder in folders] == [point.name for point in points]
    for point, folder in zip(points[1::2], folders[1::2], strict=True):
        metadata = json.loads((folder / "metadata.json").read_text())
        assert metadata["folds"]["reused"] == list(range(metadata["folds"]["total"]))
        alone = run_experiment(point.config, tmp_path / "alone" / point.name)
        for name in ("results.csv", "per_bin_results.csv", "learning_curve.csv"):
            assert (folder / name).read_bytes() == (alone.folder / name).read_bytes()
    assert list_open(points, tmp_path / "sweep") == []
    (folders[2] / "results.csv").unlink()
    assert list_open(points, tmp_path / "sweep") == [points[2]]
    run_sweep(points, tmp_path / "sweep", progress=LogProgress(said := io.StringIO()))
    total = experiment.project_seconds([points[2].config])
    assert f"time of 1 run: at most about {format_seconds(total)}; " in said.getvalue(), "of what is to be made"
    (folders[2] / "config.yaml").unlink()
    with pytest.raises(InputError, match="found something else"):
        run_sweep(points, tmp_path / "sweep")


def test_the_order_of_bins_makes_another_run(small_config: ExperimentConfig) -> None:
    bins = "bins={T_eff: [3750, 4800, 6000], M_H: [-2, 0.5]},{M_H: [-2, 0.5], T_eff: [3750, 4800, 6000]}"
    assert [list(point.config.bins) for point in plan_sweep(small_config, [bins])] == [
        ["T_eff", "M_H"],
        ["M_H", "T_eff"],
    ]


def test_a_run_called_work_is_not_written_into_and_a_sweep_that_had_just_begun_goes_on(
    small_config: ExperimentConfig, tmp_path: Path, no_figures: None
) -> None:
    points, out = plan_sweep(small_config, ["seeds=1,2"]), tmp_path / "runs"
    run_experiment(points[0].config, out / "work", command="headroom run my.yaml")
    before = (out / "work/summary.json").read_bytes()
    with pytest.raises(InputError, match="work: the moments of this sweep are due there, found a run of its own"):
        run_sweep(points, out)
    assert (out / "work/summary.json").read_bytes() == before
    begun = tmp_path / "begun"
    (begun / "work").mkdir(parents=True)
    (begun / "work/.lock").touch()
    assert len(run_sweep(points[:1], begun)) == 1


def test_a_copy_that_fails_leaves_nothing_and_a_run_that_fails_is_named(
    small_config: ExperimentConfig, tmp_path: Path, no_figures: None
) -> None:
    points, out = plan_sweep(small_config, ["seeds=1,2", "noise.levels=1"]), tmp_path / "sweep"
    with (
        mock.patch("shutil.copy2", side_effect=OSError(errno.ENOSPC, "No space left on device")),
        pytest.raises(ResourceError, match=r"cannot write .*seeds=1,noise.levels=1: the disk is full"),
    ):
        run_sweep(points, out)
    assert [one.name for one in out.iterdir()] == ["work"]
    with (
        exclusive(out / "work", "the run folder"),
        pytest.raises(InputError, match=r"^run seeds=1,.* another process"),
    ):
        run_sweep(points, out)
    (out / f".{points[0].name}.{'0' * 32}.tmp").mkdir()
    (out / ".mine.tmp").mkdir()
    folders = run_sweep(points, out)
    assert sorted(one.name for one in out.iterdir()) == sorted([*(one.name for one in folders), "work", ".mine.tmp"])
    assert not (folders[0] / "moments").exists()


@pytest.mark.parametrize(
    ("within", "words"),
    [
        ("metadata.json", "found the folder of one"),
        ("status.json", "found the folder of one"),
        ("thesis.tex", "found 'thesis.tex'"),
        ("data/thesis.tex", "found 'data'"),
        (None, "found a file"),
    ],
)
def test_a_sweep_writes_into_a_folder_of_its_own(
    within: str | None, words: str, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    file = out if within is None else out / within
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}")
    code, _, err = invoke(capsys, "sweep", config_file, "--set", "seeds=1,2", "--out", out)
    assert code == 2
    require_one_line(err)
    assert words in err
    assert sorted(one for one in tmp_path.rglob("*") if one.is_file()) == sorted([file, config_file])


@pytest.mark.usefixtures("no_figures")
def test_the_command_ends_in_one_table_and_one_page(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", config_file, "--set", "ridge.standardize=global,none", "--out", tmp_path / "grid"]
    code, out, _ = invoke(capsys, *command, "--dry-run")
    assert (code, len(out.splitlines())) == (0, 2)
    assert not (tmp_path / "grid").exists()
    code, out, err = invoke(capsys, *command, "--quiet")
    assert code == 0, err
    page = (tmp_path / "grid/sweep.html").read_text()
    for shown in (out, page):
        assert "ridge.standardize=none" in shown
        assert "highest R²_oracle" in shown or "is best" in shown
    assert f"page: {tmp_path / 'grid/sweep.html'}" in out
    code, again, err = invoke(capsys, *command)
    assert (code, again) == (0, out)
    assert "nothing to do" in err
    code, _, err = invoke(capsys, "sweep", config_file, "--set", "seeds=1")
    assert code == 2
    require_one_line(err)
