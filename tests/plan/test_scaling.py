"""What a run would cost on many workers: the model's laws, its figures against files, and many workers in earnest."""

from __future__ import annotations

import heapq
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import invoke
from threadpoolctl import threadpool_info

import pipeline
from cluster import LocalProfile, connect_local
from pipeline import NoiseDraw, SpectraStore, accumulate_moments, plan_accumulation
from pipeline.accumulate import accumulate
from pipeline.base import BLOCK, EXPECTED_WORKERS, available_cores, count_workers
from pipeline.bins import BinGrid, CellGrid
from pipeline.config import REFERENCE_EDGES, ComputeConfig, ExperimentConfig
from pipeline.plan import (
    ExperimentPlan,
    Rates,
    Scaling,
    format_seconds,
    measure_rates,
    name_steps,
    plan_run,
    project_run,
    project_scaling,
)
from pipeline.plan.cost import TYPICAL_RANK, choose_sharing, measure_flops, time_product
from pipeline.plan.scaling import count_factorisations
from pipeline.run.experiment import limits_of_workers
from pipeline.schema import STREAM_TRAIN

RATES = Rates(gram=50e9, solve=25e9, noise=400e6, decode=2e9, merge=1e9, store=5e9)
MEMORY = 2**36


def make_config(**changes: object) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {"data": {"train": "a", "test": "b"}, "seeds": [1], "ablation": False, **changes}
    )


def project(
    n: int, pixels: int, workers: int, *, cores: int = 1, rates: Rates = RATES, **changes: object
) -> tuple[ExperimentPlan, Scaling]:
    config = make_config(**changes)
    plan = plan_run([n], pixels, config, [MEMORY] * workers)
    return plan, project_scaling(plan, config, rates, cores)


#: As many pieces as any number of workers below divides.
EVEN = {"folds": 8, "partition_rows": 1000}


@pytest.mark.parametrize("workers", [1, 2, 4, 8, 16, 32])
def test_twice_the_workers_take_half_the_time_to_compute(workers: int) -> None:
    _, few = project(64_000, 512, workers, compute=EVEN)
    _, many = project(64_000, 512, 2 * workers, compute=EVEN)
    assert many.arithmetic == pytest.approx(few.arithmetic / 2)
    assert many.noise == pytest.approx(few.noise / 2)
    assert many.decoding == pytest.approx(few.decoding / 2)
    assert many.idle == few.idle == 0


def test_cores_count_as_workers_do_but_for_pieces() -> None:
    _, wide = project(64_000, 512, 4, cores=8, compute=EVEN)
    _, many = project(64_000, 512, 32, cores=1, compute=EVEN)
    assert wide.busy == pytest.approx(many.busy)


def test_one_worker_is_what_the_plan_says() -> None:
    plan, alone = project(64_000, 512, 1)
    assert alone.arithmetic == pytest.approx(plan.flops / RATES.gram)
    assert alone.idle == 0
    assert alone.merged == 0, "folds of one partition stay as they are"
    assert alone.accumulating == pytest.approx(alone.busy)
    assert alone.partials == plan.moments_disk


def test_factored_moments_cost_a_thin_product_and_little_memory() -> None:
    marginal = {"mode": "marginal"}
    million, cost = project(1_000_000, 4096, 1, noise=marginal)
    assert (million.n_factored, million.n_dense, million.n_passes) == (1, 0, 1)
    assert cost.arithmetic == pytest.approx(1e6 * 4096 * 2 * TYPICAL_RANK / RATES.gram)
    dense, dense_cost = project(1_000_000, 4096, 1, noise=marginal, compute={"moments": "dense"})
    assert cost.arithmetic == pytest.approx(dense_cost.arithmetic * 2 * TYPICAL_RANK / 4096)
    assert million.worker_memory < dense.worker_memory
    assert million.moments_disk < dense.moments_disk / 20
    assert cost.solving < dense_cost.solving / 20
    more, _ = project(10_000_000, 4096, 1, noise=marginal, compute={"partition_rows": 200_000})
    less, _ = project(1_000_000, 4096, 1, noise=marginal, compute={"partition_rows": 200_000})
    assert more.worker_memory == less.worker_memory


def test_drawn_and_marginal_noise_are_planned_as_one_read() -> None:
    both, _ = project(100_000, 1024, 1, noise={"mode": "both"})
    drawn, _ = project(100_000, 1024, 1, noise={"mode": "drawn"})
    assert (both.n_dense, both.n_factored, both.n_passes) == (1, 1, 1)
    assert drawn.worker_memory < both.worker_memory < drawn.worker_memory + 2**30
    assert "1 with dense moments (1 share a read) and 1 with factored moments in 1 pass" in both.render()


@pytest.mark.parametrize(("pixels", "is_told"), [(48, True), (1024, False)])
def test_a_forecast_that_will_not_be_made_is_told(pixels: int, is_told: bool) -> None:
    """Few pixels are not worth factored moments."""
    asked, _ = project(100_000, pixels, 1, noise={"mode": "marginal"}, forecast={})
    assert ("forecast             none" in asked.render()) == is_told
    other, _ = project(100_000, pixels, 1, noise={"mode": "marginal"})
    assert "forecast" not in other.render()


def test_twice_the_pixels_are_four_times_the_products_and_twice_the_rest() -> None:
    _, narrow = project(64_000, 1024, 1)
    _, wide = project(64_000, 2048, 1)
    assert wide.arithmetic == pytest.approx(4 * narrow.arithmetic)
    assert wide.noise == pytest.approx(2 * narrow.noise)
    assert wide.read == pytest.approx(2 * narrow.read)


def test_twice_the_draws_in_one_read_read_no_more() -> None:
    _, one = project(64_000, 512, 1)
    plan, two = project(64_000, 512, 1, seeds=[1, 2])
    assert plan.n_passes == 1
    assert two.read == one.read
    assert two.arithmetic == pytest.approx(2 * one.arithmetic)
    assert two.partials == 2 * one.partials


def test_workers_without_a_piece_do_not_help() -> None:
    _, even = project(100_000, 512, 5)
    _, idle = project(100_000, 512, 200)
    assert idle.accumulating == pytest.approx(even.accumulating)
    assert idle.efficiency == pytest.approx(even.efficiency * 5 / 200)
    what, remedy = idle.bottleneck
    assert what == "workers without work"
    assert "5 pieces for 200 workers" in remedy
    _, uneven = project(100_000, 512, 2)
    assert uneven.busy + uneven.idle == pytest.approx(uneven.busy * 6 / 5), (
        "five pieces on two workers take three rounds"
    )


@pytest.mark.parametrize(
    ("change", "settings", "expected"),
    [
        ({}, {}, "products"),
        ({"noise": 1e5}, {}, "noise"),
        ({"decode": 1e6}, {}, "decoding"),
        ({"store": 1e6}, {}, "the shared file system"),
        ({"solve": 1e7}, {}, "solving the models"),
        ({"merge": 1e6}, {"compute": {"partition_rows": 5000}}, "merging partial sums in the driver"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_what_is_slow_is_the_bottleneck(change: dict[str, float], settings: dict[str, object], expected: str) -> None:
    _, found = project(200_000, 2048, 1, rates=replace(RATES, **change), **settings)
    assert found.bottleneck[0] == expected
    assert expected in found.render()


def test_accumulating_takes_no_less_than_any_of_its_parts() -> None:
    for store in (1e6, 1e8, 1e12):
        _, found = project(200_000, 512, 7, rates=replace(RATES, store=store), compute={"partition_rows": 3000})
        assert found.accumulating >= max(found.busy + found.idle, found.traffic, found.merging)
        assert 0 < found.efficiency <= 1


def test_a_search_costs_a_path_of_penalties_on_every_fold() -> None:
    """A path, however long, costs what two factorisations do."""
    assert count_factorisations(make_config(), 5) == 10 * 5
    # Four prefixes once each; a path on all folds together and without each.
    searching = make_config(ridge={"alpha": {"search": [1.0, 10.0, 100.0]}})
    assert count_factorisations(searching, 5) == 10 * (4 + 2 + 5 * 2)
    # The same, but the global model alone is tried without each fold.
    searching = make_config(ridge={"alpha": {"search": [1.0, 10.0, 100.0], "by": "global", "expert_curves": False}})
    assert count_factorisations(searching, 5) == 10 * (4 + 2) + 5 * 2


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.04, "0.0 s"), (90, "90.0 s"), (600, "10.0 min"), (7200, "2.0 h"), (1e6, "11.6 days")]
)
def test_spans_of_time_have_a_unit_that_fits(seconds: float, expected: str) -> None:
    assert format_seconds(seconds) == expected


@pytest.mark.parametrize("partition_rows", [250, 10_000], ids=["merged", "one part a fold"])
def test_the_bytes_of_sums_are_those_of_the_files(
    train_store: SpectraStore, tmp_path: Path, partition_rows: int
) -> None:
    compute = {"folds": 3, "partition_rows": partition_rows, "run_rows": 128}
    # Cells that every fold has spectra in: an empty one has no file.
    config = make_config(seeds=[1, 2], bins={"T_eff": [3000, 4500, 5500]}, compute=compute)
    cells = CellGrid((BinGrid(config.bins),))
    draws = [NoiseDraw(1.0, seed, STREAM_TRAIN) for seed in config.seeds]
    found = accumulate_moments(plan_accumulation(train_store, cells, config.compute), draws, tmp_path)
    assert all(all(one.open(fold).counts) for one in found for fold in range(one.n_folds))
    written = sum(file.stat().st_size - BLOCK for file in tmp_path.rglob("gram-*.npy"))
    plan = plan_run(train_store.shard_lengths, train_store.n_pixels, config, [MEMORY])
    projected = project_scaling(plan, config, RATES, 1)
    assert written == (projected.merged or projected.partials)
    assert bool(projected.merged) == (partition_rows == 250)
    assert projected.partials == plan.n_draws * plan.n_partitions * plan.n_cells * partial_bytes(train_store.n_pixels)


def partial_bytes(n_pixels: int) -> int:
    """Float32 tiles of the lower triangle: two by two blocks, each a multiple of 16 pixels wide."""
    side = -(-n_pixels // 2)
    tile = -(-side // 16) * 16
    return 3 * tile * tile * 4


def test_rates_are_measured_in_a_few_seconds() -> None:
    started = time.monotonic()
    rates = measure_rates(256, "float32", store=7e9)
    assert time.monotonic() - started < 20  # 2 to 5 s; others may be at work
    assert min(vars(rates).values()) > 1e6
    assert rates.store == 7e9


@pytest.mark.skipif(available_cores() < 2, reason="one core is all cores")
def test_products_are_measured_where_other_programs_keep_the_cores_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product on all cores waits for the busiest one: here always, and only one core is had without waiting."""

    def with_neighbours(x: np.ndarray, seconds: float) -> float:
        blas = [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]
        return time_product(x, seconds) * (1 if max(blas) == 1 else 1000)

    idle = measure_flops(256, "float32", seconds=0.02)
    monkeypatch.setattr("pipeline.plan.cost.time_product", with_neighbours)
    assert measure_flops(256, "float32", seconds=0.02) > idle / 8 / available_cores()


# How work is divided ---------------------------------------------------------------------------------------------


def end_of_last(sizes: list[float], workers: int) -> float:
    """When the last of ``workers`` ends, each taking the next task as soon as it is free."""
    ends = [0.0] * workers
    for size in sizes:
        heapq.heapreplace(ends, ends[0] + size)
    return max(ends)


@pytest.mark.parametrize("merged", [False, True], ids=["one part a fold", "merged folds"])
@pytest.mark.parametrize(
    ("n_pieces", "workers"), [(5, 2), (10, 2), (25, 2), (20, 3), (48, 16), (100, 16), (200, 16), (385, 200), (1000, 16)]
)
def test_no_worker_waits_longer_than_a_piece_takes(
    train_store: SpectraStore, tmp_path: Path, n_pieces: int, workers: int, merged: bool
) -> None:
    plan = plan_accumulation(train_store, CellGrid((BinGrid(REFERENCE_EDGES),)), ComputeConfig(folds=1))
    part, n_folds = plan.partitions[0], 5 if merged else n_pieces
    parts = tuple(replace(part, index=k, fold=k * n_folds // n_pieces, start=k, stop=k + 1) for k in range(n_pieces))
    folds = tuple((k, k + 1) for k in range(n_folds))  # how many there are is all that counts
    draw = NoiseDraw(1.0, 1, STREAM_TRAIN)
    pieces = [accumulate.Piece(one, "store", (draw,), ("key",), (str(tmp_path),), ("",)) for one in parts]
    tasks = list(accumulate.plan_tasks(replace(plan, partitions=parts, folds=folds), pieces, workers))
    assert [piece for task in tasks for piece in task.pieces] == pieces
    best = -(-n_pieces // workers)
    assert end_of_last([len(task.pieces) for task in tasks], workers) <= best + (workers > 1)
    assert end_of_last([len(task.pieces) for task in tasks], workers) <= 1.1 * max(best, n_pieces / workers + 1)


def test_draws_share_a_read_only_while_workers_have_work() -> None:
    everything = [1, 2, 3, 4, 5]
    assert choose_sharing(everything, 5, n_partitions=5, n_workers=1) == 5
    # Five equal pieces on two workers would take three rounds where two and a half are enough.
    assert choose_sharing(everything, 5, n_partitions=5, n_workers=2) == 4
    assert choose_sharing(everything, 5, n_partitions=5, n_workers=25) == 1
    assert choose_sharing(everything, 5, n_partitions=500, n_workers=25) == 5
    assert choose_sharing([1], 5, n_partitions=5, n_workers=2) == 1, "memory has the last word"


def test_workers_that_will_come_have_a_share_of_the_work() -> None:
    with connect_local(LocalProfile(workers=1, threads=1, memory_limit=2**30)) as client:
        assert limits_of_workers(client) == [2**30]
        client.set_metadata(EXPECTED_WORKERS, 7)
        assert count_workers(client) == 7
        assert limits_of_workers(client) == [2**30] * 7


def test_models_are_solved_on_the_cores_of_the_workers_not_of_this_machine() -> None:
    config = make_config(ridge={"alpha": {"search": [1.0, 10.0]}})
    threads = [plan_run([64_000], 512, config, [MEMORY], worker_threads=cores).solve_threads for cores in (1, 4, 16)]
    assert threads == [1, 4, 16]


@pytest.mark.slow  # a cluster of four processes, and two runs
def test_four_workers_give_the_bits_of_one(small_config: ExperimentConfig, tmp_path: Path) -> None:
    compute = {"folds": 3, "partition_rows": 64, "run_rows": 64}
    config = ExperimentConfig.model_validate(small_config.to_dict() | {"compute": compute})
    alone, many = tmp_path / "alone", tmp_path / "many"
    pipeline.run_experiment(config, alone)
    with connect_local(LocalProfile(workers=4, threads=1, memory_limit=5 * 2**28)) as client:
        client.wait_for_workers(4, timeout=120)
        pipeline.run_experiment(config, many, client=client)
        at_work = {task["worker"] for task in client.get_task_stream(start=0)}
    assert len(at_work) == 4
    kept = ("*.csv", "*.parquet", "summary.json", "models/*.npz", "moments/**/gram-*.npy")
    files = [path.relative_to(alone) for pattern in kept for path in sorted(alone.glob(pattern))]
    assert len(files) > 60
    for name in files:
        assert (alone / name).read_bytes() == (many / name).read_bytes(), name


@pytest.mark.slow  # passes on one worker and on two
def test_the_benchmark_of_scaling_prints_its_table(tmp_path: Path) -> None:
    root, out = Path(__file__).parents[2], tmp_path / "table.md"
    size = ["--rows", "4000", "--pixels", "128", "--repeats", "1", "--folder", str(tmp_path / "bench")]
    command = [sys.executable, "benchmarks/scaling.py", *size, "--out", str(out)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    lines = [line for line in out.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert [line.split("|")[1].strip() for line in lines[1:]] == [
        "strong scaling, 1 to 2 single-thread workers, 4,000 × 128, 2 noise draws",
        "the same against the model of headroom plan, 1 worker",
        "the same against the model of headroom plan, 2 workers",
    ]
    assert str(tmp_path) not in out.read_text(encoding="utf-8"), "no paths in what may be published"


# The command -----------------------------------------------------------------------------------------------------

PAPER = ["--spectra", "1e8", "--pixels", "7200", "--workers", "200", "--cores", "16", "--memory", "64GB"]


def line_of(out: str, title: str) -> str:
    [line] = [line for line in out.splitlines() if line.startswith(title)]
    return line.removeprefix(title).strip()


@pytest.mark.slow  # measures what the machine reaches at 7200 pixels
def test_a_run_is_planned_on_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = invoke(capsys, "plan", *PAPER, "--flops", "1e12", "--bandwidth", "20GB", "--read-rate", "30GB")
    assert code == 0
    assert line_of(out, "spectra × pixels") == "100,000,000 × 7,200"
    assert line_of(out, "workers ") == "200 × 16 cores, 385 pieces in 2 rounds"
    # 1e8 × 7200² flop on 200 workers of 1e12 flop/s.
    assert line_of(out, "time, products") == "25.9 s"
    # 8 × 7200 bytes of each, of which two thirds are stored, and 385 × 10 sums of 10 tiles of 1808² × 4 bytes.
    assert line_of(out, "traffic, reading").startswith("3.5 TiB")
    assert line_of(out, "traffic, sums").startswith("468.8 GiB written by workers, read and merged")
    assert line_of(out, "bottleneck")
    assert "20.0 GB/s of file system" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("known_rates")
def test_what_is_stated_counts(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--cells", "4", "--draws", "3", "--alphas", "2", "--folds", "2", "--partition-rows", "4096"]
    code, out, _ = invoke(capsys, "plan", "--spectra", "16384", "--pixels", "64", *settings)
    assert code == 0
    assert line_of(out, "cells × folds") == "4 × 2"
    assert line_of(out, "noise draws").startswith("3 with dense moments")
    assert "(4 partitions)" in line_of(out, "pieces of work")


@pytest.mark.usefixtures("known_rates")
def test_a_profile_says_how_large_workers_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("kind: slurm\njobs: 3\ncores: 12\nmemory: 20GB\nwalltime: '01:00:00'\n")
    code, out, _ = invoke(capsys, "plan", "--spectra", "1e5", "--pixels", "256", "--cluster", str(site))
    assert code == 0
    assert line_of(out, "workers ").startswith("3 × 12 cores")
    assert line_of(out, "memory per worker").endswith("of 18.6 GiB")
    code, out, _ = invoke(
        capsys, "plan", "--spectra", "1e5", "--pixels", "256", "--cluster", str(site), "--workers", "1"
    )
    assert line_of(out, "workers ").startswith("1 × 12 cores")


@pytest.mark.usefixtures("known_rates")
def test_a_configuration_is_planned_at_another_size(
    small_config: ExperimentConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.run.folder import save_config

    save_config(small_config, tmp_path)
    code, out, _ = invoke(capsys, "plan", str(tmp_path / "config.yaml"), "--spectra", "1e6", "--pixels", "4096")
    assert code == 0
    assert line_of(out, "spectra × pixels") == "1,000,000 × 4,096"
    assert line_of(out, "cells × folds") == "10 × 3"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "a configuration is required, or --spectra and --pixels"),
        (["--spectra", "1e8"], 2, "--spectra and --pixels go together"),
        (["demo", "--cells", "4"], 2, "--cells is for a run on paper"),
        (["--cells", "4"], 2, "--cells is for a run on paper"),
        (["--spectra", "many", "--pixels", "10"], 2, "a whole number up to 10,000,000,000 is required"),
        (["--spectra", "1.5", "--pixels", "10"], 2, "is required, which may be written like 1e8, found '1.5'"),
        (["--spectra", "1e300", "--pixels", "10"], 2, "found '1e300'"),
        ([*PAPER, "--cells", "1e9"], 2, "a whole number up to 10,000 is required"),
        ([*PAPER, "--workers", "1" + 50 * "0"], 2, "is not in the range 1<=x<=1000000"),
        ([*PAPER, "--memory", "1GB"], 3, "the plan needs"),
        ([*PAPER, "--bandwidth", "fast"], 2, "a size is required"),
    ],
)
@pytest.mark.usefixtures("known_rates")
def test_mistakes_are_told(arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    found, _, err = invoke(capsys, "plan", *arguments)
    assert found == code
    assert words in err


@pytest.mark.usefixtures("known_rates")
def test_finer_cuts_are_advised_where_workers_would_wait(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = invoke(
        capsys, "plan", "--spectra", "1e6", "--pixels", "4096", "--workers", "40", "--bandwidth", "100GB"
    )
    assert code == 0
    assert "workers without work" in out
    assert line_of(out, "shorter").startswith("compute.partition_rows: ")


@pytest.mark.usefixtures("known_rates")
def test_no_cut_is_advised_that_saves_less_than_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = invoke(capsys, "plan", "--spectra", "3e5", "--pixels", "128", "--workers", "2")
    assert code == 0
    assert "shorter" not in out


def time_run(n: int = 64_000, pixels: int = 1024, workers: int = 1, **changes: object) -> dict[str, float]:
    config = make_config(**changes)
    plan = plan_run([n], pixels, config, [MEMORY] * workers, n_test=8000)
    times = project_run(plan, config, project_scaling(plan, config, RATES, 2))
    assert times.total == pytest.approx(sum(step.seconds for step in times.steps))
    assert [step.name for step in times.steps] == name_steps(config)
    return {step.name: step.seconds for step in times.steps}


def test_every_step_of_a_run_has_its_time() -> None:
    """Of two noises, marginal and drawn, with what a demonstration asks."""
    asked = {"noise": {"mode": "checked", "test": "stored"}, "gate": {"blend": True}, "ceiling": {}, "forecast": {}}
    times = time_run(ridge={"alpha": {"search": [1, 10, 100]}}, **asked)
    assert list(times) == ["convert", "accumulate", "solve", "ceiling", "gate", "score", "report"]
    assert all(0.4 < seconds < 60 for seconds in times.values())
    assert 20 < sum(times.values()) < 120
    assert list(time_run()) == ["convert", "accumulate", "solve", "score", "report"]


def test_more_work_takes_longer_in_its_own_step() -> None:
    asked: dict[str, object] = {"noise": {"mode": "marginal"}, "forecast": {}}
    few, many = time_run(pixels=1024, **asked), time_run(pixels=4096, **asked)
    assert all(many[name] > few[name] for name in ("accumulate", "solve", "score"))
    assert many["report"] == few["report"]
    assert time_run(n=640_000, **asked)["accumulate"] > 2 * few["accumulate"]
    without = time_run(pixels=1024, noise={"mode": "marginal"})
    assert few["score"] > 2 * without["score"], "a forecast solves models of many sizes while it scores"
    assert few["solve"] == without["solve"]


def test_a_forecast_that_dense_moments_cannot_give_takes_no_time() -> None:
    dense: dict[str, object] = {"noise": {"mode": "marginal"}, "pixels": 256}
    assert time_run(**dense, forecast={})["score"] == time_run(**dense)["score"]
    factored = {"compute": {"moments": "factored"}}
    assert time_run(**dense, **factored, forecast={})["score"] > time_run(**dense, **factored)["score"]


def test_shards_that_are_stores_already_take_no_time() -> None:
    config = make_config()
    shards, stores = (plan_run([64_000], 1024, config, [MEMORY], store_disk=size) for size in (64_000 * 8192, 0))
    first = [project_run(plan, config, project_scaling(plan, config, RATES, 2)).steps[0] for plan in (shards, stores)]
    assert first[0].seconds > first[1].seconds + 1
