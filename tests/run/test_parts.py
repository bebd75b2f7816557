"""A pass that several processes share without Dask: any order, a kill, other settings; the bytes of one machine."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import invoke
from disturbances import require_equal
from hypothesis import given
from hypothesis import strategies as st

from pipeline.accumulate import Share
from pipeline.base import exclusive, hold_file
from pipeline.bins import Partition
from pipeline.config import ExperimentConfig, load_config
from pipeline.errors import InputError
from pipeline.run import accumulate_part, run_experiment
from pipeline.run.folder import list_parts_at_work, part_lock, whole_run_folder
from pipeline.scoring import RunResults

PROGRAM = Path(__file__).parents[1] / "part_process.py"
MARGINAL = {"noise": {"mode": "both", "levels": [1.0], "test": "drawn"}, "seeds": [42]}


def start(die_after: int, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), str(die_after), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    said, _ = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert "Traceback" not in said
    return said


def write_config(path: Path, config: ExperimentConfig, changes: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(config.to_dict() | dict(changes), sort_keys=False))
    return path


@pytest.mark.slow  # four processes, whose start takes longer than all they compute
@pytest.mark.parametrize("kind", ["drawn", "both"])
def test_parts_in_any_order_one_killed_give_the_bytes_of_one_machine(
    kind: str, small_config: ExperimentConfig, small_run: RunResults, tmp_path: Path
) -> None:
    """Parts 3 and 1 run side by side, part 2 is killed in its second partition and repeated; no process may listen."""
    compute = {"folds": 3, "partition_rows": 200, "run_rows": 128}
    factored = {**MARGINAL, "compute": {**compute, "moments": "factored", "rank_tolerance": 1e-2}}
    config = write_config(tmp_path / "my.yaml", small_config, factored if kind == "both" else {})
    if kind == "drawn":
        alone = small_run.folder
    else:
        alone = run_experiment(
            ExperimentConfig.model_validate(small_config.to_dict() | factored), tmp_path / "a"
        ).folder
    out = tmp_path / "run"
    part = ("--of", 3, "--out", out, "--part")
    sides = [start(0, "accumulate", config, *part, k) for k in (3, 1)]
    for side in sides:
        assert "pieces were missing, and are there now" in finish(side)
    assert not list(out.glob("results.csv"))
    finish(start(3, "accumulate", config, *part, 2), -9)
    assert list(out.rglob("*.tmp")), "it died in the middle"
    stated = load_config(config)
    repeated, again = (accumulate_part(stated, out, k, 3) for k in (2, 1))
    assert 0 < repeated.computed < repeated.partitions, "what it had finished before is kept"
    assert again.computed == 0
    shown = finish(start(0, "run", config, "--out", out, "--no-dask"))
    assert "accumulate: " not in shown, "the run has nothing left to compute"
    require_equal(out, alone)
    log = (out / "parts" / "part-2-of-3.log").read_text()
    assert log.count("begun: part 2 of 3") == 2
    assert log.rstrip().endswith("finished")
    assert "begun by process" in (out / "run.log").read_text()


def test_a_run_computes_what_parts_have_left_out(
    small_config: ExperimentConfig, small_run: RunResults, tmp_path: Path
) -> None:
    accumulate_part(small_config, tmp_path / "run", 2, 3)
    run_experiment(small_config, tmp_path / "run")
    require_equal(tmp_path / "run", small_run.folder)


@pytest.mark.slow  # two processes that start the command
def test_parts_that_start_together_convert_shards_once(sample: Path, tmp_path: Path) -> None:
    config = ExperimentConfig.model_validate(
        {
            "data": {"train": [str(sample / "train")], "test": [str(sample / "test")], "stores": str(tmp_path / "s")},
            "ridge": {"alpha": {"per_spectrum": 0.1}},
            "compute": {"folds": 2, "partition_rows": 250},
            "bootstrap": {"resamples": 100},
        }
    )
    file = write_config(tmp_path / "my.yaml", config, {})
    sides = [start(0, "accumulate", file, "--part", k, "--of", 2, "--out", tmp_path / "run") for k in (1, 2)]
    said = [finish(side) for side in sides]
    assert sum("convert" in one for one in said) == 1, said
    run_experiment(config, tmp_path / "run")
    run_experiment(config, tmp_path / "alone")
    require_equal(tmp_path / "run", tmp_path / "alone")


@given(
    sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=40),
    parts=st.integers(1, 50),
)
def test_shares_hold_every_partition_once_and_are_even(sizes: list[int], parts: int) -> None:
    class Plan:
        partitions = tuple(Partition(k, 0, sum(sizes[:k]), sum(sizes[: k + 1])) for k in range(len(sizes)))

    shares = [Share(k, parts).partitions(Plan) for k in range(1, parts + 1)]  # type: ignore[arg-type]
    assert sorted(index for share in shares for index in share) == list(range(len(sizes)))
    for share in shares:
        assert sorted(share) == list(range(min(share, default=0), max(share, default=-1) + 1)), "neighbours"
        assert sum(sizes[index] for index in share) <= sum(sizes) / parts + max(sizes)


def test_who_is_at_work_is_known_by_locks(small_config: ExperimentConfig, tmp_path: Path) -> None:
    """A part refuses its double and parts with other settings; a run refuses parts; what nobody holds is no lock."""
    folder = tmp_path / "run"
    accumulate_part(small_config, folder, 1, 2)
    (folder / part_lock(7, 9)).touch()  # of a part that was killed
    with whole_run_folder(folder):
        pass
    assert not (folder / part_lock(7, 9)).exists()
    with hold_file(folder / part_lock(1, 2)):
        assert list_parts_at_work(folder) == ["part-1-of-2"]
        with pytest.raises(InputError, match="another process is writing part 1 of 2"):
            accumulate_part(small_config, folder, 1, 2)
        with pytest.raises(InputError, match=r"headroom accumulate.*part-1-of-2.*wait until all parts are done"):
            run_experiment(small_config, folder)
        for other in (
            small_config.model_copy(update={"seeds": (7,)}),
            small_config.model_copy(update={"compute": small_config.compute.model_copy(update={"folds": 4})}),
        ):
            with pytest.raises(InputError, match="part-1-of-2 is at work there with other"):
                accumulate_part(other, folder, 2, 2)
        with pytest.raises(InputError, match="another number of parts"):
            accumulate_part(small_config, folder, 3, 3)
        accumulate_part(small_config, folder, 2, 2)
    with pytest.raises(InputError, match="--part 3 --of 2"):
        accumulate_part(small_config, folder, 3, 2)


def test_leftovers_of_others_at_work_stay(small_config: ExperimentConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    accumulate_part(small_config, folder, 1, 2)
    [noise, *_] = sorted((folder / "moments").iterdir())
    half = noise / ".partition-000006.abc.tmp"
    half.mkdir()
    with hold_file(folder / part_lock(1, 2)):
        accumulate_part(small_config, folder, 2, 2)
        assert half.exists(), "part 1 may be writing it"
    accumulate_part(small_config, folder, 2, 2)
    assert not half.exists()


def test_status_tells_of_every_part(
    small_config: ExperimentConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in (1, 10):
        accumulate_part(small_config, tmp_path / "run", part, 10)
    code, out, _ = invoke(capsys, "status", tmp_path / "run")
    assert code == 1, "it waits for a run that merges"
    assert re.search(r"parts      part-1-of-10: [-\d]+ [:\d]+ finished \(UTC\)\n +part-10-of-10: ", out)
    assert "headroom run CONFIG --out" in out


def test_a_wait_for_the_folder_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    holder = exclusive(tmp_path, "the run folder")
    holder.__enter__()

    def sleep(_: float) -> None:
        if len(slept := [*told]) and not slept[0].endswith("!"):
            holder.__exit__(None, None, None)
            told.append("!")

    monkeypatch.setattr("pipeline.base.files.time.sleep", sleep)
    with exclusive(tmp_path, "the run folder", wait=told.append):
        assert told[0].endswith("this one waits for it")
        assert told[1:] == ["!"]


def test_the_command_names_what_is_wrong(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(capsys, "accumulate", config_file, "--part", 1)[0] == 2
    code, _, err = invoke(capsys, "accumulate", config_file, "--part", 3, "--of", 2, "--out", tmp_path / "run")
    assert (code, "a part from 1 to 2 is required" in err) == (2, True)
    code, _, err = invoke(capsys, "run", config_file, "--out", tmp_path / "run", "--no-dask", "--workers", 2)
    assert (code, "--no-dask" in err) == (2, True)
    assert not (tmp_path / "run").exists()


def test_a_part_says_what_it_found_and_did(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = ("accumulate", config_file, "--part", 1, "--of", 2, "--out", tmp_path / "run", "--quiet")
    first, again = (invoke(capsys, *part) for _ in range(2))
    assert re.fullmatch(r"part 1 of 2: (\d+) of its \1 pieces were missing, and are there now\n", first[1])
    assert re.fullmatch(r"part 1 of 2: its pieces \(\d+\) were there already\n", again[1])
