"""Runs that grow and shrink: whatever was added or taken out, the results are those of a run from scratch."""

from __future__ import annotations

import errno
import filecmp
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import invoke

from pipeline.accumulate import AccumulationPlan, accumulate, plan_accumulation
from pipeline.accumulate.hotloop import CellRows
from pipeline.base import read_status
from pipeline.bins import BinGrid, CellGrid
from pipeline.cli.app import next_step
from pipeline.config import ComputeConfig, ExperimentConfig, load_config
from pipeline.convert import convert_shards
from pipeline.errors import ConfigError, InputError
from pipeline.moments import open_moments
from pipeline.noise import NoiseDraw
from pipeline.run import add_spectra, describe_reuse, plan_experiment, remove_shard, run_experiment
from pipeline.scoring import RunResults, read_results
from pipeline.shards import find_shards
from pipeline.simulate import SampleSpec, write_sample
from pipeline.store import AnyStore, SpectraStore, select_shards

FILES = (
    "predictions.parquet",
    *(f"models/{NoiseDraw(1.0, seed, 0).name}{end}.npz" for seed in (42, 123) for end in ("", "_binnings")),
)
TABLES = ("results.csv", "per_bin_results.csv", "learning_curve.csv", "sample_distribution.csv", "summary.json")
DRAWS = [NoiseDraw(1.0, seed, 0).name for seed in (42, 123)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four shards of 600 training spectra, 32 pixels."""
    folder = tmp_path_factory.mktemp("shards")
    write_sample(folder, SampleSpec(train=2400, shards=4, test=300, pixels=32), workers=1)
    return list(find_shards([folder / "train"], folder))


@pytest.fixture(scope="module")
def base(shards: list[Path], tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    """Two shards; a fold for each, of two partitions."""
    folder = tmp_path_factory.mktemp("stores")
    return ExperimentConfig.model_validate(
        {
            "data": {
                "train": list(map(str, shards[:2])),
                "test": [str(shards[0].parents[2] / "test")],
                "stores": str(folder),
            },
            "bins": {"T_eff": [3750, 4500, 6000], "M_H": [-2.5, -0.8, 0.75]},
            "ridge": {"alpha": {"per_spectrum": 0.1}, "min_spectra": 20},
            "seeds": [42, 123],
            "compute": {"folds": "shards", "partition_rows": 350, "run_rows": 128},
            "bootstrap": {"resamples": 100},
        }
    )


@pytest.fixture(scope="module")
def finished(base: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_experiment(base, tmp_path_factory.mktemp("run") / "run").folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Row ranges whose pixels are read to be accumulated."""
    ranges: list[tuple[int, int]] = []
    original = accumulate.accumulate_parts

    def note(parts: Iterable[CellRows]) -> Iterator[CellRows]:
        for part in parts:
            ranges.append((part.start, part.start + len(part.cells)))
            yield part

    def spy(store: AnyStore, parts: Iterable[CellRows], *others: Any) -> None:
        original(store, note(parts), *others)

    monkeypatch.setattr(accumulate, "accumulate_parts", spy)
    return ranges


def from_scratch(run: Path, folder: Path) -> RunResults:
    """Run the configuration that a run holds in an empty folder."""
    return run_experiment(load_config(run / "config.yaml"), folder)


def require_equal(run: Path, other: Path) -> None:
    """Every file of the moments, every model and every table, byte for byte."""
    for name in (*TABLES, *FILES):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    require_equal_moments(run, other)
    assert open_moments(run).verify().problems == []


def require_equal_moments(run: Path, other: Path) -> None:
    files = sorted(path.relative_to(run) for path in (run / "moments").rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in (other / "moments").rglob("*") if path.is_file())
    _, mismatch, errors = filecmp.cmpfiles(run, other, files, shallow=False)
    assert mismatch == errors == []


def stamps(run: Path, fold: int) -> dict[str, tuple[int, int]]:
    files = (run / "moments" / DRAWS[0] / f"fold-{fold:03d}").iterdir()
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def test_added_shards_alone_are_read_and_the_results_are_those_of_a_run_from_scratch(
    run: Path, shards: list[Path], tmp_path: Path, read: list[tuple[int, int]]
) -> None:
    before = stamps(run, 0), stamps(run, 1)
    results = add_spectra(run, [shards[2]])
    assert sorted(set(read)) == [(1200, 1500), (1500, 1800)]
    assert (stamps(run, 0), stamps(run, 1)) == before, "moments of other folds are not touched"
    assert results.metadata["folds"] == {"total": 3, "reused": [0, 1]}
    assert describe_reuse(results) == "folds: 2 of 3 reused (0, 1), 1 computed (2)"
    assert results.overall["n_train"].max() == 1800
    require_equal(run, from_scratch(run, tmp_path / "scratch").folder)


@pytest.mark.slow  # three whole runs; adding once has the same test
def test_adding_twice_equals_adding_both_in_turn(run: Path, shards: list[Path], tmp_path: Path) -> None:
    add_spectra(run, [shards[2]])
    results = add_spectra(run, [shards[3]])
    assert results.metadata["folds"]["reused"] == [0, 1, 2]
    assert len(results.metadata["config"]["data"]["train"]) == 3
    require_equal(run, from_scratch(run, tmp_path / "scratch").folder)


@pytest.mark.parametrize("number", [0, 1])
def test_a_removed_shard_leaves_the_others_as_they_are(
    run: Path, tmp_path: Path, read: list[tuple[int, int]], number: int
) -> None:
    kept = stamps(run, 1 - number)
    results = remove_shard(run, f"shard_{number}")
    assert read == []
    assert stamps(run, 0) == kept, "the fold that stays is the first one now"
    assert [one.name for one in sorted((run / "moments" / DRAWS[0]).iterdir())] == ["fold-000", "key.json"]
    assert results.metadata["folds"] == {"total": 1, "reused": [0]}
    assert results.metadata["stores"]["train"]["n_spectra"] == 600
    assert results.metadata["stores"]["train"]["left_out"] == [f"shard_{number}/dataset.h5"]
    assert results.sample["n_train"].sum() == 600
    require_equal(run, from_scratch(run, tmp_path / "scratch").folder)


def test_adding_and_removing_gives_the_results_before(
    run: Path, finished: Path, shards: list[Path], read: list[tuple[int, int]]
) -> None:
    add_spectra(run, [shards[2]])
    read.clear()
    remove_shard(run, "shard_2/dataset.h5")
    assert read == []
    for name in (*TABLES, *FILES):
        assert (run / name).read_bytes() == (finished / name).read_bytes(), name
    for draw in DRAWS:
        for fold in ("fold-000", "fold-001"):
            ours, theirs = (one / "moments" / draw / fold for one in (run, finished))
            names = sorted(file.name for file in theirs.iterdir())
            assert filecmp.cmpfiles(ours, theirs, names, shallow=False) == (names, [], [])


@pytest.mark.parametrize("by_name", [False, True], ids=["its file", "its name"])
def test_a_shard_that_was_removed_can_be_added_again(
    run: Path, finished: Path, shards: list[Path], read: list[tuple[int, int]], by_name: bool
) -> None:
    remove_shard(run, "shard_0")
    results = add_spectra(run, "shard_0" if by_name else [shards[0]])
    assert sorted(set(read)) == [(0, 300), (300, 600)]
    assert results.metadata["config"]["data"]["exclude"] == []
    for name in (*TABLES, *FILES):
        assert (run / name).read_bytes() == (finished / name).read_bytes(), name
    require_equal_moments(run, finished)


def test_a_store_is_added_as_it_is(run: Path, shards: list[Path], tmp_path: Path) -> None:
    convert_shards([shards[3]], tmp_path / "later.zarr", workers=1)
    results = add_spectra(run, [tmp_path / "later.zarr"])
    assert results.metadata["config"]["data"]["train"][-1] == str(tmp_path / "later.zarr")
    require_equal(run, from_scratch(run, tmp_path / "scratch").folder)


def test_a_shard_between_others_of_its_fold_can_be_removed(
    base: ExperimentConfig, shards: list[Path], tmp_path: Path
) -> None:
    plain = base.to_dict()
    plain["data"]["train"], plain["compute"] = list(map(str, shards)), {"folds": 1, "run_rows": 128}
    run = run_experiment(ExperimentConfig.model_validate(plain), tmp_path / "run").folder
    results = remove_shard(run, "shard_2")
    (fold,) = open_moments(run).draws[0].folds
    assert (fold.rows, fold.left_out, sum(fold.counts)) == ((0, 2400), ((1200, 1800),), 1800)
    assert results.overall["n_train"].max() == 1800
    assert "compute.folds: 1 shards are grouped anew" in describe_reuse(results)
    require_equal(run, from_scratch(run, tmp_path / "scratch").folder)


def test_a_number_of_folds_computes_again_what_is_cut_anew(
    base: ExperimentConfig, shards: list[Path], tmp_path: Path
) -> None:
    plain = base.to_dict()
    plain["data"]["train"], plain["compute"]["folds"] = list(map(str, shards[:3])), 2
    run = run_experiment(ExperimentConfig.model_validate(plain), tmp_path / "run").folder
    results = add_spectra(run, [shards[3]])
    assert results.metadata["folds"]["total"] == 2
    assert len(results.metadata["folds"]["reused"]) < 2
    require_equal(run, from_scratch(run, tmp_path / "scratch").folder)


def test_quantiles_stay_the_edges_that_they_were(base: ExperimentConfig, shards: list[Path], tmp_path: Path) -> None:
    plain = base.to_dict() | {"binnings": {"SNR": {"snr": {"quantiles": 2}}}}
    run = run_experiment(ExperimentConfig.model_validate(plain), tmp_path / "run").folder
    results = add_spectra(run, [shards[2]])
    assert results.metadata["folds"]["reused"] == [0, 1]
    assert len(results.metadata["config"]["binnings"]["SNR"]["snr"]) == 3
    require_equal(run, from_scratch(run, tmp_path / "scratch").folder)


def test_an_excluded_shard_counts_nowhere_and_moves_no_noise(
    base: ExperimentConfig, shards: list[Path], tmp_path: Path, finished: Path
) -> None:
    """Shards among others that are to be converted, from a configuration alone."""
    plain = base.to_dict()
    plain["data"] |= {"train": list(map(str, shards[:2])), "exclude": ["shard_0"]}
    run_experiment(ExperimentConfig.model_validate(plain), tmp_path / "run")
    ours = open_moments(tmp_path / "run").draws[0]
    theirs = open_moments(finished).draws[0]
    assert ours.folds[0].rows == theirs.folds[1].rows == (600, 1200)
    assert ours.folds[0].read(0).identical(theirs.folds[1].read(0))


def test_partitions_of_a_fold_that_was_not_merged_keep_their_rows(
    train_store: SpectraStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[tuple[int, int]]
) -> None:
    """Partitions get other numbers as a shard before them goes: none may pass for another."""
    cells, draws = CellGrid((BinGrid({"T_eff": [3750, 4500, 6000]}),)), [NoiseDraw(1.0, 42, 0)]
    compute = ComputeConfig(folds="shards", partition_rows=300, run_rows=128)

    def plan(*excluded: str) -> AccumulationPlan:
        return plan_accumulation(select_shards(train_store, excluded), cells, compute)

    with monkeypatch.context() as patch:
        patch.setattr(accumulate, "merge_fold", lambda *_: None)
        patch.setattr(accumulate, "merge_finished_folds", None)  # as if killed before anything is merged
        with pytest.raises(TypeError, match="not callable"):
            accumulate.accumulate_moments(plan(), draws, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / draws[0].name / "partition-000004")
    read.clear()
    [found] = accumulate.accumulate_moments(plan("shard_0"), draws, tmp_path / "run")
    assert read == [(1066, 1333)]
    [expected] = accumulate.accumulate_moments(plan("shard_0"), draws, tmp_path / "scratch")
    assert all(found.read(0, cell).identical(expected.read(0, cell)) for cell in range(cells.n_cells))
    [merged] = accumulate.accumulate_moments(plan(), draws, tmp_path / "run")
    assert merged.read(1, 0).identical(expected.read(0, 0))


KILLED = """
import sys, time
from pipeline.accumulate import accumulate
from pipeline.run import experiment
from pipeline.run.changes import add_spectra, remove_shard
module, name = {"accumulate": (accumulate, "merge_fold"), "solve": (experiment, "solve_models"),
                "score": (experiment, "write_results")}[sys.argv[1]]
original = getattr(module, name)
def wrapped(*a, **k):
    result = original(*a, **k)
    print("now", flush=True)
    time.sleep(60)
    return result
setattr(module, name, wrapped)
if sys.argv[2] == "add":
    add_spectra(sys.argv[3], sys.argv[4:])
else:
    remove_shard(sys.argv[3], sys.argv[4])
"""


def interrupt(phase: str, *arguments: str) -> None:
    """Start a change and kill it in a phase."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, phase, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="module")
def grown(finished: Path, shards: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run with a third shard."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("grown") / "run")
    add_spectra(folder, [shards[2]])
    return folder


@pytest.mark.slow  # programs that are killed in every phase, and whole runs
@pytest.mark.parametrize("phase", ["accumulate", "solve", "score"])
def test_a_killed_addition_is_finished_by_the_same_command(
    run: Path, finished: Path, grown: Path, shards: list[Path], phase: str
) -> None:
    interrupt(phase, "add", str(run), str(shards[2]))
    if phase != "score":
        assert (run / "config.yaml").read_bytes() == (finished / "config.yaml").read_bytes(), "the old results stand"
        add_spectra(run, [shards[2]])
    else:
        run_experiment(load_config(run / "config.yaml"), run)
    require_equal(run, grown)


@pytest.mark.slow  # a program that is killed, and two whole runs
def test_after_a_killed_addition_another_change_is_free(run: Path, shards: list[Path], tmp_path: Path) -> None:
    interrupt("solve", "add", str(run), str(shards[2]))
    remove_shard(run, "shard_0")
    require_equal(run, from_scratch(run, tmp_path / "scratch").folder)


@pytest.mark.slow  # programs that are killed in every phase, and whole runs
@pytest.mark.parametrize("phase", ["solve", "score"])
def test_a_killed_removal_is_finished_by_the_same_command(
    grown: Path, tmp_path: Path, phase: str, read: list[tuple[int, int]]
) -> None:
    run = shutil.copytree(grown, tmp_path / "run")
    interrupt(phase, "remove", str(run), "shard_1")
    assert list((run / "moments" / DRAWS[0]).glob("kept-*")), "nothing is deleted before the new results stand"
    if phase == "solve":
        before = json.loads((run / "metadata.json").read_text())
        assert before["config"]["data"]["exclude"] == [], "the old results stand"
        assert open_moments(run).problems == []
        remove_shard(run, "shard_1")
    else:
        run_experiment(load_config(run / "config.yaml"), run)
    assert read == []
    assert not list((run / "moments").rglob("kept-*"))
    remade = tmp_path / "scratch"
    require_equal(run, from_scratch(run, remade).folder)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("shard of the run", r"shard shard_1/dataset\.h5 is in the training set already"),
        ("name of the run", r"shard shard_1/dataset\.h5 is in the training set already"),
        ("store of the run", r"shard shard_0/dataset\.h5 is in the training set already"),
        ("same name", r"has a shard called shard_1/dataset\.h5 already"),
        ("test spectra", r"300 of 300 test spectra also occur in train"),
        ("same spectra", r"600 of 600 spectra to be added occur in train already"),
        ("nothing there", r"no-such-shard"),
        ("other pixels", "must have equal pixels, found 16 and 32"),
    ],
)
def test_add__raise_on(
    run: Path, base: ExperimentConfig, shards: list[Path], tmp_path: Path, what: str, words: str
) -> None:
    if what == "same spectra":
        (tmp_path / "copy").mkdir()
        source = shutil.copy(shards[1], tmp_path / "copy" / "dataset.h5")
        import h5py

        with h5py.File(source, "r+") as file:
            file["dataset/arrays/flux/value"][:] *= 2  # another fingerprint, the same stars
    elif what == "same name":
        write_sample(tmp_path / "other", SampleSpec(train=600, shards=2, test=10, pixels=32, seed=9), workers=1)
        source = str(tmp_path / "other" / "train" / "shard_1" / "dataset.h5")
    elif what == "other pixels":
        write_sample(tmp_path / "o", SampleSpec(train=600, shards=7, test=10, pixels=16, seed=9), workers=1)
        source = str(tmp_path / "o" / "train" / "shard_6" / "dataset.h5")
    else:
        source = {
            "shard of the run": str(shards[1]),
            "name of the run": "shard_1",
            "store of the run": str(read_results(run).store_paths("train")[0]),
            "test spectra": str(shards[0].parents[2] / "test"),
            "nothing there": str(tmp_path / "no-such-shard"),
        }[what]
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(InputError, match=words):
        add_spectra(run, [source])
    assert (run / "config.yaml").read_bytes() == before


def test_remove__raise_on_wrong_names(run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"'shard_7' is not in the training set; its shards are shard_0/dataset\.h5, sh"
    ):
        remove_shard(run, "shard_7")
    remove_shard(run, "shard_0")
    with pytest.raises(InputError, match="'shard_0' was taken out already; its shards are shard_1/"):
        remove_shard(run, "shard_0")
    with pytest.raises(InputError, match=r"'shard_1'.*only"):
        remove_shard(run, "shard_1")
    with pytest.raises(InputError, match="no such folder"):
        remove_shard(tmp_path / "nothing", "shard_1")


def test_what_is_left_out_of_train_may_be_the_test_set(base: ExperimentConfig, shards: list[Path]) -> None:
    plain = base.to_dict()
    plain["data"] |= {"test": [str(shards[0])], "exclude": ["shard_0"]}
    plan = plan_experiment(ExperimentConfig.model_validate(plain), [2**33])
    assert (plan.n_spectra, plan.n_folds, plan.n_partitions) == (600, 1, 2)
    plain["data"]["exclude"] = ["shard_1"]
    with pytest.raises(InputError, match="600 of 600"):
        plan_experiment(ExperimentConfig.model_validate(plain), [2**33])


@pytest.mark.parametrize(
    ("exclude", "words"),
    [
        (["shard_9"], r"data\.exclude: .*'shard_9', but there are shard_0/dataset\.h5, shard_1/dataset\.h5"),
        (["shard_0", "shard_1"], r"data\.exclude leaves out all 2 training shards"),
    ],
)
def test_run__raise_on_wrong_exclusions(base: ExperimentConfig, tmp_path: Path, exclude: list[str], words: str) -> None:
    plain = base.to_dict()
    plain["data"]["exclude"] = exclude
    with pytest.raises(InputError, match=words):
        run_experiment(ExperimentConfig.model_validate(plain), tmp_path / "run")


NEED_TWO_FOLDS = {
    "gate": {"gate": {}},
    "design": {"design": {"grid": {"T_eff": [3750, 4500, 6000], "M_H": [-2.5, -0.8, 0.75]}, "experts": 2}},
    "ridge.alpha.search": {"ridge": {"alpha": {"search": [10, 1000]}, "min_spectra": 20}},
}


@pytest.mark.parametrize("name", NEED_TWO_FOLDS)
def test_the_plan_knows_what_needs_two_folds(base: ExperimentConfig, name: str) -> None:
    plain = base.to_dict() | NEED_TWO_FOLDS[name]
    plan_experiment(ExperimentConfig.model_validate(plain))
    plain["data"]["exclude"] = ["shard_0"]
    with pytest.raises(ConfigError, match=f"^{name} needs at least two folds.*found 1"):
        plan_experiment(ExperimentConfig.model_validate(plain))


def test_an_impossible_change_changes_nothing(base: ExperimentConfig, shards: list[Path], tmp_path: Path) -> None:
    """One fold would be left, and a gate needs two; then the commands that the README names work."""
    plain = base.to_dict() | NEED_TWO_FOLDS["gate"]
    run = run_experiment(ExperimentConfig.model_validate(plain), tmp_path / "run").folder
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(InputError, match="gate needs at least two folds"):
        remove_shard(run, "shard_0")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    results = add_spectra(run, [shards[2]])
    assert results.metadata["folds"]["reused"] == [0, 1]
    remove_shard(run, "shard_0")
    require_equal(run, from_scratch(run, tmp_path / "scratch").folder)


@pytest.mark.usefixtures("no_figures")
def test_a_command_that_was_killed_after_its_results_is_finished_by_itself(
    run: Path, shards: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    arguments = ("add", str(run), str(shards[2]), "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.run.render_run", interrupt)
        assert invoke(capsys, *arguments)[0] == 130
    assert not (run / "report.html").exists()
    code, out, err = invoke(capsys, *arguments)
    assert (code, err) == (0, "")
    assert "1,800" in out
    assert (run / "report.html").exists()
    assert invoke(capsys, *arguments)[0] == 2, "it is finished now, so it would add the spectra twice"


def test_changed__raise_on_an_edited_configuration(run: Path, shards: list[Path]) -> None:
    plain = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(plain | {"seeds": [7]}))
    with pytest.raises(InputError, match="results of this run"):
        add_spectra(run, [shards[2]])


@pytest.mark.slow  # each command starts Python and a run
@pytest.mark.usefixtures("no_figures")
def test_the_commands_add_and_remove(
    run: Path, grown: Path, shards: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = invoke(capsys, "add", str(run), str(shards[2]), "--quiet")
    assert (code, err) == (0, "")
    assert "folds: 2 of 3 reused (0, 1), 1 computed (2)" in out
    assert "1,800" in out
    require_equal(run, grown)
    assert "headroom add" in json.loads((run / "metadata.json").read_text())["command"]
    assert (run / "report.html").exists()
    code, out, err = invoke(capsys, "remove", str(run), "shard_2", "--quiet")
    assert (code, err) == (0, "")
    assert "folds: 2 of 2 reused (0, 1), 0 computed" in out
    how = next_step("remove", {"folder": run, "shard": "shard_2"})
    assert how is not None
    assert how.endswith(f"headroom add {run} shard_2")
    assert invoke(capsys, "add", str(run), "shard_2", "--quiet")[0] == 0, "what is advised works in any folder"
    require_equal(run, grown)


@pytest.mark.usefixtures("no_figures")
def test_remove_is_finished_after_its_figures_could_not_be_drawn(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise OSError(errno.EFBIG, "File too large", "figure.png")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.run.render_run", fail)
        assert invoke(capsys, "remove", run, "shard_1", "--quiet")[0] == 3
    code, _, err = invoke(capsys, "remove", run, "shard_1", "--quiet")
    assert code == 0, err
    status = read_status(run)
    assert status is not None
    assert status.state == "finished"
    assert "shard_1" in (run / "report.md").read_text(encoding="utf-8")
    assert invoke(capsys, "remove", run, "shard_1", "--quiet")[0] == 2, "now it is done"


@pytest.mark.parametrize("arguments", [("add", "RUN", "nothing"), ("remove", "RUN", "shard_7"), ("remove", "no", "x")])
def test_mistakes_are_one_line_and_exit_code_2(
    finished: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    code, out, err = invoke(capsys, *(str(finished) if one == "RUN" else one for one in arguments))
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("headroom: ")
    assert "Traceback" not in err
