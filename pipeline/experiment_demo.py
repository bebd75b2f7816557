"""The demonstration as one call: simulated shards, and the packaged experiment on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config_files import load_config
from pipeline.experiment import run_experiment
from pipeline.progress import Progress
from pipeline.results import RunResults
from pipeline.simulate import SampleSpec, write_sample

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["run_demo"]

#: A quarter of a minute on two cores, and enough spectra that the result means something.
_SMALL = SampleSpec(train=12_000, shards=4, test=3_000, pixels=512)


def run_demo(
    folder: str | Path,
    spec: SampleSpec | None = None,
    *,
    client: Client | None = None,
    progress: Progress | None = None,
) -> RunResults:
    """Simulate a sample of shards and run the packaged experiment ``demo`` on it; what is there is not made again.

    ``make demo`` does the same, with more spectra.

    Parameters
    ----------
    folder
        The run folder; the shards and their stores go to ``spectra`` in it.
    spec
        What to simulate; 12,000 training and 3,000 test spectra of 512 pixels by default.
    client, progress
        See :func:`pipeline.run_experiment`.

    Raises
    ------
    InputError
        If the folder holds another sample.
    ResourceError
        If memory or disk do not suffice.
    """
    spectra = Path(folder).absolute() / "spectra"
    write_sample(spectra, spec or _SMALL, progress=progress)
    config = load_config("demo", variables={"HEADROOM_DEMO": str(spectra)})
    return run_experiment(config, folder, client=client, progress=progress, command="pipeline.run_demo(folder)")
