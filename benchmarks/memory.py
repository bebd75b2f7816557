"""Peak memory of ``headroom run``, all processes together, at two numbers of spectra and against its own plan."""

from __future__ import annotations

from experiment import Experiment, run_experiment
from measure import format_gib
from samples import Sample
from table import Row

#: Bounds on the peak by pixels; other sizes have none.
LIMITS_GIB = {4096: 4.0, 7200: 9.0}
SPREAD_TARGET = 0.05


def measure_memory(sample: Sample, repeats: int | None) -> list[Row]:
    """Return the peak against its bound and the plan, and how far it differs between row counts."""
    whole, first = Experiment(sample), Experiment(sample, whole=False)
    n = repeats or 1
    peaks = [max(run_experiment(one, k).measured.peak for k in range(n)) for one in (first, whole)]
    projected = whole.project_memory()
    limit = LIMITS_GIB.get(sample.pixels)
    largest = max(peaks)
    measured = f"{format_gib(largest)} (largest of {2 * n})"
    return [
        Row(
            f"peak memory of headroom run, {sample.size}, in GiB",
            measured,
            "bound" if limit else "no bound at this size",
            largest / 2**30,
            limit,
        ),
        Row(
            f"peak memory against headroom plan, {sample.size}",
            measured,
            f"projected {format_gib(projected)}",
            largest / projected,
            1.0,
        ),
        Row(
            f"peak memory at {first.rows:,} and {whole.rows:,} spectra: relative difference",
            format_gib(peaks[0]),
            format_gib(peaks[1]),
            abs(peaks[1] - peaks[0]) / largest,
            SPREAD_TARGET,
            form=".3f",
        ),
    ]
