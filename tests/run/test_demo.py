"""`make demo`, as a newcomer runs it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline import (
    BinGrid,
    ExperimentConfig,
    NoiseDraw,
    SpectraStore,
    open_stores,
    read_noisy_rows,
    read_results,
    run_experiment,
)
from pipeline.schema import STREAM_TRAIN
from pipeline.scoring import RunResults

ROOT = Path(__file__).parents[2]

#: The demonstration and its notebooks take some minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of `make demo`, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    done = subprocess.run(
        ["make", "demo", f"DEMO={folder}", f"PYTHON={sys.executable}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def test_make_demo_ends_with_a_meaningful_result(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = demo
    assert f"report: {folder / 'report.html'}" in done.stdout
    assert "simulated" in done.stdout
    results = read_results(folder)
    pixels = results.metadata["stores"]["train"]["n_pixels"]
    assert results.per_bin["n_train"].min() >= 3 * pixels, "several times more spectra in every bin than pixels"
    assert np.isfinite(results.per_bin[["r2_oracle", "r2_global"]]).all(axis=None)
    headline = results.summary["levels"][0]["scopes"]["covered"]["delta_r2"]
    assert headline["low"] > 0, "the simulated spectra show headroom beyond their test set's scatter"
    assert results.learning["n_train"].nunique() >= 4
    assert results.metadata["simulated"] is True
    plan = results.metadata["plan"]
    assert results.metadata["peak_memory_bytes"] <= plan["memory_per_worker_bytes"] + plan["driver_memory_bytes"]


def test_demo_equals_scikit_learn_for_every_seed_and_bin(
    demo: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder, _ = demo
    config = ExperimentConfig.model_validate(read_results(folder).metadata["config"])
    # Drawn noise, because scikit-learn needs rows.
    plain = {"binnings": {}, "ablation": False, "gate": None, "ceiling": None, "forecast": None}
    config = config.model_copy(update=plain | {"noise": config.noise.model_copy(update={"mode": "drawn"})})
    runs = {
        precision: run_experiment(config.model_copy(update={"precision": precision}), tmp_path / precision)
        for precision in ("float32", "float64")
    }
    exact = runs["float64"]
    stores = [open_stores(exact.metadata["stores"][role]["paths"]) for role in ("train", "test")]
    worst, worst_r2 = dict.fromkeys(runs, 0.0), dict.fromkeys(runs, 0.0)
    for seed in config.seeds:
        alphas = list_alphas(exact, seed)
        predicted, r2 = fit_with_scikit_learn(*stores, config, seed, alphas)
        for precision, results in runs.items():
            assert list_alphas(results, seed) == alphas
            saved = results.predictions.query(f"seed == {seed}")
            found = saved[["y_global", *(f"expert_{k}" for k in range(9))]].to_numpy()
            # Relative to each model's largest prediction: single predictions may be as near to 0 as they like.
            off = np.abs(found - predicted).max(axis=0) / np.abs(predicted).max(axis=0)
            row = results.overall.query(f"seed == {seed} and scope == 'covered'").iloc[0]
            off_r2 = max(abs(row["r2_global"] - r2[0]), abs(row["r2_oracle"] - r2[1]))
            worst[precision] = max(worst[precision], float(off.max()))
            worst_r2[precision] = max(worst_r2[precision], off_r2)
    print(f"largest relative differences {worst}, of R² {worst_r2}")
    for precision, tolerance, tolerance_r2 in (("float32", 1e-4, 1e-5), ("float64", 1e-8, 1e-8)):
        assert worst[precision] <= tolerance
        assert worst_r2[precision] <= tolerance_r2


def list_alphas(results: RunResults, seed: int) -> list[float]:
    """Return the penalties that a run chose, that of the global model first."""
    overall, per_bin = (table.query(f"seed == {seed}") for table in (results.overall, results.per_bin))
    return [overall["alpha_global"].iloc[0], *per_bin.sort_values("bin")["alpha"].tolist()]


#: Runs notebooks, each in a kernel of its own, keeps their errors, and prints as JSON what their cells put out. Under
#: load pyzmq 27 was seen to sleep over a message of the kernel until the end of the timeout. To ask for events has it
#: look again.
_EXECUTE = """
import asyncio, json, sys
import nbclient, nbformat, zmq

async def look_again(client):
    while True:
        await asyncio.sleep(1)
        for channel in (client.kc.shell_channel, client.kc.iopub_channel) if client.kc else ():
            channel.socket.get(zmq.EVENTS)

async def execute(path):
    print(path, file=sys.stderr)
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": "."}}
    )
    looking = asyncio.ensure_future(look_again(client))
    await client.async_execute()
    looking.cancel()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]

print(json.dumps([asyncio.run(execute(path)) for path in sys.argv[1:]]))
"""


def test_all_notebooks_run_on_the_demonstration_from_top_to_bottom(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    # `make notebooks` names a run that is there.
    finished = os.environ.get("HEADROOM_RUN") or request.getfixturevalue("demo")[0]
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    environment = os.environ | {"HEADROOM_RUN": str(finished)}
    figures = {}
    scripts = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
    copies = [shutil.copy(script.with_suffix(".ipynb"), notebooks) for script in scripts]
    command = [sys.executable, "-c", _EXECUTE, *copies]
    done = subprocess.run(command, cwd=notebooks, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for script, outputs in zip(scripts, json.loads(done.stdout), strict=True):
        said = "".join("".join(output["text"]) for output in outputs if output.get("name") == "stderr")
        assert "Warning" not in said, said
        figures[script.stem] = sum("image/png" in output.get("data", {}) for output in outputs)
        keep_figures(script.stem, outputs)
    assert figures.pop("04_on_your_cluster") == 0
    assert len(figures) == 5
    assert min(figures.values()) >= 1, figures
    assert all(path.suffix == ".ipynb" for path in notebooks.iterdir()), "nothing left beside"


def keep_figures(name: str, outputs: list[dict[str, dict[str, str]]]) -> None:
    """Write a notebook's figures where HEADROOM_ARTEFACTS says, to be looked at."""
    if target := os.environ.get("HEADROOM_ARTEFACTS"):
        Path(target).mkdir(parents=True, exist_ok=True)
        images = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
        for number, image in enumerate(images):
            (Path(target) / f"{name}-{number}.png").write_bytes(base64.b64decode(image))


def fit_with_scikit_learn(
    train: SpectraStore, test: SpectraStore, config: ExperimentConfig, seed: int, alphas: list[float]
) -> tuple[np.ndarray, tuple[float, float]]:
    """Fit StandardScaler and ten Ridge models on the noisy rows in memory; return predictions and covered R².

    ``alphas`` are those that the run chose, on folds: the global model's first.
    """
    grid = BinGrid(config.bins)
    bins, test_bins = grid.assign(train.columns), grid.assign(test.columns)
    y, y_test = train.columns["log_g"], test.columns["log_g"]
    x = read_noisy_rows(train, 0, train.n_spectra, NoiseDraw(1.0, seed, STREAM_TRAIN), "float64")
    x_test = read_noisy_rows(test, 0, test.n_spectra, None, "float64")
    whole = make_pipeline(StandardScaler(), Ridge(alpha=alphas[0])).fit(x, y)
    scaler = whole.named_steps["standardscaler"]
    x, x_scaled = scaler.transform(x), scaler.transform(x_test)
    columns = [whole.predict(x_test)]
    columns += [
        Ridge(alpha=alphas[1 + k]).fit(x[bins == k], y[bins == k]).predict(x_scaled) for k in range(grid.n_bins)
    ]
    predicted = np.column_stack(columns)
    covered = test_bins >= 0
    routed = predicted[np.flatnonzero(covered), 1 + test_bins[covered]]
    return predicted, (r2_score(y_test[covered], predicted[covered, 0]), r2_score(y_test[covered], routed))
