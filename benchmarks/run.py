"""All benchmarks, one table: `make bench`.

    python benchmarks/run.py [--rows 100000] [--pixels 4096] [--repeats N] [--only NAME ...] [--out TABLE.md]

Every measurement is a process of its own. What a ratio compares was measured by turns in this same run, so that a busy
machine slows both; figures are medians, and say of how many. Spectra are simulated on first use (10 GB of shards and
stores at the default size) and kept in the folder.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from accumulate import measure_noises, measure_step
from ceiling import measure_ceiling
from conversion import measure_conversion
from factored import measure_factored
from measure import MeasurementError, describe_machine
from memory import measure_memory
from peers import compare_dask, compare_dask_ml, compare_sklearn
from predict import measure_predict
from samples import Sample, Sizes
from solve import measure_solve
from table import Row, render_table

Part = Callable[[Sample, int | None], list[Row]]

#: Name, what measures it, and the largest size it takes; rows and pixels of None are the user's.
PARTS: dict[str, tuple[Part, int | None, int | None]] = {
    "accumulate": (measure_step, None, None),
    "noises": (measure_noises, None, None),
    "factored": (measure_factored, None, None),
    "solve": (measure_solve, None, None),
    "sklearn": (compare_sklearn, None, None),
    "memory": (measure_memory, None, None),
    "dask": (compare_dask, 20_000, 2048),
    "dask-ml": (compare_dask_ml, 20_000, 256),
    "convert": (measure_conversion, None, None),
    "predict": (measure_predict, None, None),
    "ceiling": (measure_ceiling, None, None),
}
#: The widest spectra, on request: their sample has fewer rows, and 7200 pixels whatever `--pixels` says.
WIDE_PARTS: dict[str, Part] = {
    "accumulate-7200": measure_step,
    "solve-7200": measure_solve,
    "memory-7200": measure_memory,
}
WIDE_ROWS, WIDE_PIXELS = 40_000, 7200
BUSY_LOAD = 0.5


def choose_sample(name: str, sizes: Sizes, folder: Path) -> Sample:
    """Return the sample that a part measures on."""
    if name in WIDE_PARTS:
        return Sample(folder, min(sizes.rows, WIDE_ROWS), WIDE_PIXELS)
    _, rows, pixels = PARTS[name]
    return Sample(folder, *sizes.limited(rows or sizes.rows, pixels or sizes.pixels))


def run_parts(names: Sequence[str], sizes: Sizes, folder: Path) -> tuple[list[Row], list[str]]:
    """Measure the parts one after the other; return the rows, and what failed."""
    rows: list[Row] = []
    failures: list[str] = []
    for name in names:
        measure_part = WIDE_PARTS[name] if name in WIDE_PARTS else PARTS[name][0]
        started = time.perf_counter()
        tell(f"{name} …")
        try:
            rows += measure_part(choose_sample(name, sizes, folder), sizes.repeats)
        except MeasurementError as error:
            failures.append(f"{name}: {error}")
            tell(failures[-1])
        tell(f"{name}: {time.perf_counter() - started:.0f} s")
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    return rows, failures


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=Sizes.rows, help="training spectra (%(default)s)")
    parser.add_argument("--pixels", type=int, default=Sizes.pixels, help="pixels per spectrum (%(default)s)")
    parser.add_argument(
        "--repeats", type=int, help="of every measurement; 5 of short ones and 3 of long ones by default"
    )
    parser.add_argument(
        "--only", action="append", choices=[*PARTS, *WIDE_PARTS], metavar="NAME", help=", ".join([*PARTS, *WIDE_PARTS])
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"), help="where spectra are kept (%(default)s)")
    parser.add_argument("--out", type=Path, help="a file to write facts and table to as well")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is being measured ends too
    facts = describe_machine()
    print("\n".join(f"- {fact}" for fact in facts), flush=True)
    load = os.getloadavg()[0]
    if load > BUSY_LOAD:
        tell(f"warning: the one-minute load is {load:.1f}; other work shares the machine, so figures will scatter")
    started = time.perf_counter()
    sizes = Sizes(options.rows, options.pixels, options.repeats)
    rows, failures = run_parts(options.only or list(PARTS), sizes, options.folder.resolve())
    facts.append(
        f"one-minute load {load:.1f} before and {os.getloadavg()[0]:.1f} after {time.perf_counter() - started:.0f} s"
    )
    print(f"- {facts[-1]}\n")
    table = render_table(rows)
    print(table)
    if options.out:
        text = "\n".join(f"- {fact}" for fact in facts)
        options.out.write_text(f"{text}\n\n{table}\n", encoding="utf-8")
    for failure in failures:
        tell(f"failed: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
