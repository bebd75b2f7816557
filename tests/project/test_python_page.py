"""The examples of ``docs/python.md`` run as they stand there, one after the other."""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.store import SpectraStore

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.mark.slow  # the runs and predictions of a whole page
def test_the_examples_run(
    train_store: SpectraStore, test_store: SpectraStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, store in (("train.zarr", train_store), ("test.zarr", test_store)):
        (tmp_path / name).symlink_to(store.path)
    (tmp_path / "my.yaml").write_text(
        "data: {train: train.zarr, test: test.zarr}\nridge: {alpha: {per_spectrum: 0.1}}\nseeds: 42\n"
    )
    rng = np.random.default_rng(0)
    known = {
        "__name__": "__main__",
        "flux": 1 + 0.1 * rng.standard_normal((300, 48)),
        "error": np.full((300, 48), 0.1),
        "teff": rng.uniform(3750, 6000, 300),
        "logg": rng.uniform(1, 5, 300),
        "feh": rng.uniform(-2.5, 0.75, 300),
        "nanometres": train_store.wavelength / 10,
    }
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    for number, block in enumerate(blocks):
        if "dask_ml" in block and importlib.util.find_spec("dask_ml") is None:
            continue
        # A store that is written must not replace the one that the others are read from.
        code = block.replace('write_store(dataset, "train.zarr")', 'write_store(dataset, "own.zarr")')
        with warnings.catch_warnings():
            if "dask_ml" in block:
                warnings.simplefilter("ignore")  # they are another project's
            exec(compile(code, f"python.md, block {number}", "exec", dont_inherit=True), known)
    assert (tmp_path / "paper.pdf").stat().st_size > 1000
    assert pipeline.open_spectra("own.zarr").sizes["spectrum"] == 300
