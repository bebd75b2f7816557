"""The ceiling's likelihoods: in directions, with pairs skipped, against products of all pixels, side by side.

    python benchmarks/ceiling.py TRAIN.zarr TEST.zarr [--stars 4096 --spectra 5000]      # one line of JSON

One process does what a worker of ``headroom run`` does, and forms the same sums in both ways by turns: *directions* and
*pixels* are the package's own two ways, and *dense* is the bare float32 product of the same factors, which any other
way of forming all pairs would need. Figures are seconds of CPU, of all threads, since other work may share the machine.
The search for the directions is timed by itself, because it costs the same for any library. What a million stars take
is its time, and that of reading and holding one block after the other, shared by two cores.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import cycle, islice
from typing import Any

import numpy as np
from measure import measure_script, median, warm_up
from samples import Sample
from table import Row

from pipeline.base import one_blas_thread, peak_memory
from pipeline.noise import NoiseDraw
from pipeline.questions.ceiling.library import Block, Measure, Spectra, StarReader
from pipeline.questions.ceiling.likelihood import Observed, Origins, Projection, describe_stars, observe
from pipeline.questions.ceiling.posterior import Sums, group_of
from pipeline.schema import LABELS, STREAM_TEST
from pipeline.store import AnyStore, find_stores, open_stores

SEED, BLOCK, ROWS, SAMPLE = 42, 1024, 1024, 8192
#: Bins of an experiment; cells are drawn at random, since sums do not care.
BINS = 9
#: Stars of the library that is held against the spectra; with them the likeliest stars are known, and most are skipped.
WARM_STARS, STARS, SPECTRA = 4096, 4096, 5000
MILLION, CORES = 1_000_000, 2
#: Minutes for a million stars, 4000 test spectra and 1000 training stars that are left out, at 4096 pixels.
MINUTES, RATIO = 3.0, 0.35
TARGET_PIXELS = 4096


def measure_ceiling(sample: Sample, repeats: int | None) -> list[Row]:
    """Return the rows of pairs per second against dense products, and of a library of a million stars."""
    stores = sample.train_store, sample.test_store
    for store in stores:
        warm_up(store)
    found = [measure_script("ceiling.py", *stores).facts for _ in range(repeats or 1)]
    n = f"median of {len(found)}"
    facts = {name: median([one[name] for one in found]) for name in found[0]}
    stars, spectra = facts["stars"], facts["spectra"]
    size = f"{stars:,.0f} stars × {spectra:,.0f} spectra × {sample.pixels:,}"
    pairs = stars * spectra
    is_judged = sample.pixels == TARGET_PIXELS and spectra == SPECTRA
    minutes = (facts["search"] + MILLION / stars * (facts["reading"] + facts["directions"])) / CORES / 60
    of_pixels = MILLION / stars * (facts["reading"] + facts["pixels"]) / CORES / 60
    return [
        Row(
            f"ceiling in {facts['rank']:.0f} directions, {size}",
            f"{pairs / facts['directions'] / 1e6:.1f} M pairs/s of CPU ({n})",
            f"bare float32 products {pairs / facts['dense'] / 1e6:.1f} M pairs/s",
            facts["directions"] / facts["dense"],
            RATIO if is_judged else None,
        ),
        Row(
            f"ceiling from all pixels, {size}",
            f"{pairs / facts['pixels'] / 1e6:.1f} M pairs/s of CPU ({n})",
            "the same products",
            facts["pixels"] / facts["dense"],
        ),
        Row(
            f"ceiling of 1M × {spectra:,.0f} × {sample.pixels:,} on {CORES} cores, extrapolated, minutes",
            f"{minutes:.1f}, {facts['search'] / CORES / 60:.1f} of them for the directions",
            f"from all pixels {of_pixels:.1f}",
            minutes,
            MINUTES if is_judged else None,
        ),
    ]


def hold(train: AnyStore, test: AnyStore, n_stars: int, n_spectra: int) -> dict[str, float]:
    """Form the sums of one part of a library in both ways; return seconds of CPU and what was found."""
    n_pixels = train.n_pixels
    # A small sample has fewer spectra than a run: they serve again, as products do not care.
    rows = np.sort(np.fromiter(islice(cycle(range(test.n_spectra)), n_spectra), np.int64))
    reader = StarReader(test)
    flux, error = reader.take_clean(rows)
    spectra = NoiseDraw(1.0, SEED, STREAM_TEST).apply(flux, error, 0)
    reader = StarReader(train)
    first = np.arange(min(SAMPLE, train.n_spectra // 2))
    sample = reader.take_clean(first)
    origins = Origins.find(1.0, spectra, *sample)
    observed = observe(spectra, origins)
    with ThreadPoolExecutor(CORES) as pool, one_blas_thread():
        search, projection = _time(lambda: Projection.find(observed, describe_stars(*sample, origins), 1e-3))
        cells = np.arange(n_spectra) % (BINS + 1)
        coefficients = projection.project_spectra(observed)
        ways = {
            "directions": Measure(
                Spectra(spectra, cells, origins, projection, coefficients, "float32"), BINS, len(LABELS)
            ),
            "pixels": Measure(Spectra(spectra, cells, origins, None, None, "float32"), BINS, len(LABELS)),
        }
        found = dict.fromkeys(("reading", "dense", *ways), 0.0)
        counted = 0
        last = np.arange(train.n_spectra - min(n_stars + WARM_STARS, train.n_spectra // 2), train.n_spectra)
        for start in range(0, len(last), BLOCK):
            own = last[start : start + BLOCK]
            rng, groups = np.random.default_rng(start), group_of(np.arange(start, start + len(own)))
            known = rng.integers(0, BINS + 1, len(own)), groups, rng.normal(size=(len(own), len(LABELS)))
            seconds, block = _time(lambda own=own, known=known: Block.read(reader, own, *known))
            spent = {"reading": seconds}
            for name, way in ways.items():
                spent[name], _ = _time(lambda way=way, block=block: way.add(block, pool))
            if start < WARM_STARS and len(last) > WARM_STARS:
                continue
            counted += len(own)
            spent["dense"] = _time_dense(observed, block, origins, pool)
            found = {name: own + spent[name] for name, own in found.items()}
    _compare(ways["directions"].sums, ways["pixels"].sums)
    return found | {
        "search": search, "stars": counted, "spectra": n_spectra, "pixels_of": n_pixels, "rank": projection.rank,
        "recomputed": int(ways["directions"].sums.recomputed.sum()), "peak": peak_memory(),
    }  # fmt: skip


def _time(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    found = function()
    return time.process_time() - started, found


def _time_dense(observed: Observed, block: Block, origins: Origins, pool: Executor) -> float:
    stars = describe_stars(block.flux, block.error, origins)
    buffers = threading.local()

    def multiply(start: int) -> None:
        if not hasattr(buffers, "own"):
            buffers.own = np.empty((ROWS, BLOCK), np.float32)
        for ours, theirs in zip(observed.rows(slice(start, start + ROWS)).factors, stars.factors, strict=True):
            np.matmul(ours, theirs.T, out=buffers.own[: len(ours), : len(theirs)])

    return _time(lambda: list(pool.map(multiply, range(0, len(observed.square), ROWS))))[0]


def _compare(found: Sums, expected: Sums) -> None:
    """Refuse a figure of something else: both ways must say the same."""
    means = [one.labels[:, 0, 0, 0] / one.weight[:, 0, 0, 0, None] for one in (found, expected)]
    assert np.abs(means[0] - means[1]).max() < 0.02, "both ways must give the same posterior means"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", help="a store, or a glob of several in quotes")
    parser.add_argument("test", help="likewise")
    parser.add_argument("--stars", type=int, default=STARS)
    parser.add_argument("--spectra", type=int, default=SPECTRA)
    options = parser.parse_args()
    stores = [open_stores(find_stores([one])) for one in (options.train, options.test)]
    print(json.dumps(hold(*stores, options.stars, options.spectra)))


if __name__ == "__main__":
    main()
