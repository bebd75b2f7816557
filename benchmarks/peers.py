"""Against what a user would do otherwise: NumPy and scikit-learn in memory, plain Dask, dask-ml."""

from __future__ import annotations

from experiment import Experiment, run_experiment
from measure import (
    INTERVAL,
    Measured,
    count_repeats,
    format_gib,
    measure,
    measure_peer,
    measure_script,
    median,
    warm_up,
)
from samples import HEADROOM, Sample
from table import Row

#: The same R² in a third of the time; with the conversion counted, never slower; memory that does not grow.
TIME_TARGET, CONVERTED_TARGET, R2_TARGET, GROWTH_TARGET = 1 / 3, 1.0, 1e-5, 0.05
PEER_REPEATS = 3
LONG_SECONDS = 30.0


def compare_sklearn(sample: Sample, repeats: int | None) -> list[Row]:
    """Return time, memory and R² of ``headroom run`` beside the in-memory script on the same rows."""
    whole, first = Experiment(sample), Experiment(sample, whole=False)
    n = repeats or PEER_REPEATS
    warm_up(sample.train_shards)
    peers, conversions = [], []
    for k in range(n):
        run_experiment(whole, k)
        conversions.append(_convert(sample))
        peers.append(run_sklearn(whole))
    ours = [run_experiment(whole, k) for k in range(n)]
    seconds = [one.measured.seconds for one in ours]
    with_conversion = [a + b for a, b in zip(seconds, conversions, strict=True)]
    theirs = [one.seconds for one in peers]
    facts = peers[0].facts
    differences = [abs(a - facts[name]) for a, name in zip(ours[0].r2, ("r2_global", "r2_oracle"), strict=True)]
    peer = f"scikit-learn {median(theirs):.1f} s"
    size = f"{sample.size}, 1 + 9 models"
    return [
        Row(
            f"headroom run, store to report, {size}",
            f"{median(seconds):.1f} s (median of {n})",
            peer,
            median([a / b for a, b in zip(seconds, theirs, strict=True)]),
            TIME_TARGET,
        ),
        Row(
            f"headroom convert and run, {size}",
            f"{median(with_conversion):.1f} s (convert {median(conversions):.1f} s)",
            peer,
            median([a / b for a, b in zip(with_conversion, theirs, strict=True)]),
            CONVERTED_TARGET,
        ),
        Row(
            "R² of the same models: largest difference",
            f"global {ours[0].r2[0]:.6f}, oracle {ours[0].r2[1]:.6f}",
            f"scikit-learn {facts['r2_global']:.6f}, {facts['r2_oracle']:.6f}",
            max(differences),
            R2_TARGET,
            form=".1e",
        ),
        *_compare_memory(whole, first, max(one.measured.peak for one in ours), max(one.peak for one in peers)),
    ]


def compare_dask(sample: Sample, repeats: int | None) -> list[Row]:
    """Return the time of ``accumulate_moments`` beside plain Dask's on the same rows, and the peak of both."""
    store = sample.train_store
    warm_up(store)
    ours: list[Measured] = []
    theirs: list[Measured] = []
    wanted = 1
    while len(theirs) < wanted:
        words = ["--rows", sample.rows, "--folder", sample.scratch("step")]
        ours.append(measure_script("accumulate.py", "step", store, *words, interval=0.1))
        theirs.append(measure_peer("peer_dask.py", store, interval=0.1))
        # What takes half a minute and more is far enough off to be measured once.
        wanted = count_repeats(repeats, theirs[0].seconds) if repeats or theirs[0].seconds < LONG_SECONDS else 1
    sample.scratch("step")
    seconds = [one.facts["seconds"] for one in ours], [one.facts["seconds"] for one in theirs]
    peaks = [max(one.peak for one in runs) for runs in (ours, theirs)]
    return [
        Row(
            f"accumulate step, {sample.size}",
            f"{median(seconds[0]):.1f} s (median of {len(ours)})",
            f"plain Dask {median(seconds[1]):.1f} s",
            median([a / b for a, b in zip(*seconds, strict=True)]),
        ),
        Row(
            f"its peak memory, all processes, {sample.size}",
            format_gib(peaks[0]),
            f"plain Dask {format_gib(peaks[1])}",
            peaks[0] / peaks[1],
        ),
    ]


def compare_dask_ml(sample: Sample, repeats: int | None) -> list[Row]:
    """Return the time of ten exact models, from the store, beside one approximate model of dask-ml; R² of that."""
    ours: list[float] = []
    theirs: list[dict[str, float]] = []
    wanted = 1
    while len(theirs) < wanted:
        folder = sample.scratch("step")
        step = measure_script("accumulate.py", "step", sample.train_store, "--rows", sample.rows, "--folder", folder)
        solve = measure_script("solve.py", folder / "seed-42_noise-1.0", "--penalties", 1)
        ours.append(step.facts["seconds"] + solve.facts["seconds"])
        theirs.append(measure_peer("peer_dask_ml.py", sample.train_store, sample.test_store).facts)
        wanted = count_repeats(repeats, theirs[0]["seconds"])
    sample.scratch("step")
    seconds = [one["seconds"] for one in theirs]
    return [
        Row(
            f"accumulate and solve 10 models, {sample.size}",
            f"{median(ours):.1f} s (median of {len(ours)})",
            f"dask-ml ADMM, 1 model {median(seconds):.1f} s",
            median([a / b for a, b in zip(ours, seconds, strict=True)]),
        ),
        Row(
            "dask-ml ADMM: R² off the exact ridge",
            f"exact {theirs[0]['r2_exact']:.6f}",
            f"dask-ml {theirs[0]['r2']:.6f}",
            abs(theirs[0]["r2"] - theirs[0]["r2_exact"]),
            form=".1e",
        ),
    ]


def run_sklearn(experiment: Experiment, interval: float = INTERVAL) -> Measured:
    return measure_peer("peer_sklearn.py", experiment.train_shards, experiment.sample.test_shards, interval=interval)


def _convert(sample: Sample) -> float:
    """Return the seconds of converting training and test shards into new stores."""
    seconds = 0.0
    for shards in (sample.train_shards, sample.test_shards):
        store = sample.scratch("converted") / "store.zarr"
        store.parent.mkdir()
        seconds += measure([*HEADROOM, "convert", shards, store, "--quiet"]).seconds
    sample.scratch("converted")
    return seconds


def _compare_memory(whole: Experiment, first: Experiment, ours: int, theirs: int) -> list[Row]:
    more = whole.rows - first.rows
    warm_up(first.train_shards)
    ours_first, theirs_first = run_experiment(first, 0).measured.peak, run_sklearn(first).peak
    growth, growth_there = (ours - ours_first) / more, (theirs - theirs_first) / more
    return [
        Row(
            f"peak memory, all processes, {whole.sample.size}",
            format_gib(ours),
            f"scikit-learn {format_gib(theirs)}",
            ours / theirs,
        ),
        Row(
            f"growth per spectrum, {first.rows:,} to {whole.rows:,}",
            f"{growth:,.0f} bytes",
            f"scikit-learn {growth_there:,.0f} bytes",
            # Where even the arrays of the peer are lost in its libraries, there is nothing to compare.
            growth / growth_there if growth_there > 0 else float("nan"),
            GROWTH_TARGET if growth_there > 0 else None,
        ),
    ]
