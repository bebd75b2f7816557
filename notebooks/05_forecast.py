# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5 · Forecast
#
# **You will learn** what a run with one noise draw for each spectrum would give with a million training spectra, from a
# few thousand; which penalty is best at each size; and where more spectra bring nothing more.
#
# **You need** a finished run for its spectra, as in the other notebooks.
#
# The spectra of `make demo`, and those made here, are **simulated**.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import pipeline

RUN = Path(os.environ.get("HEADROOM_RUN", "../runs/demo"))
if not (RUN / "summary.json").exists():
    RUN = Path("../runs/small")
    pipeline.run_demo(RUN, progress=pipeline.choose_progress())
earlier = pipeline.read_results(RUN)
print(RUN, "holds", "simulated spectra" if earlier.metadata["simulated"] else "the spectra of your shards")

scratch = tempfile.TemporaryDirectory(prefix="headroom_")  # deleted at the end of this notebook
folder = Path(scratch.name)

# %% [markdown]
# ## A run that can answer
#
# Its noise is integrated out (*marginal*), and its moments are *factored*: a low rank for the stars, a diagonal for
# their noise. The section `forecast` has the pass keep them apart for six classes of like noise. With 640 pixels or
# more `moments: auto` does the same.

# %%
config = pipeline.ExperimentConfig.model_validate(
    {
        "data": {"train": earlier.store_paths("train"), "test": earlier.store_paths("test"), "spectra": 20_000},
        "noise": {"mode": "marginal", "levels": [1.0], "test": "marginal"},
        "ridge": {"alpha": {"per_spectrum": 0.1}},
        "compute": {"moments": "factored"},
        "forecast": {},
        "decision": {"at": 1e6},
    }
)
results = pipeline.run_experiment(config, folder / "run", progress=pipeline.choose_progress())
print(results.summary.answers["forecast"]["sentence"])

# %% [markdown]
# ## The curves
#
# `forecast.csv` holds every size, for the configured penalty and for the best one of every model. A forecast that lies
# outside the range that was checked says so in the column `trusted`.

# %%
table = results.table("forecast.csv")
covered = table[(table["scope"] == "covered") & (table["n"] < 1e9)]
print(covered[["penalty", "n", "alpha", "r2_global", "r2_oracle", "delta_r2", "trusted"]].to_string(index=False))

# %%
figure, axes = plt.subplots(figsize=(8, 4))
for penalty, own in covered.groupby("penalty"):
    axes.fill_between(own["n"], own["delta_r2_low"], own["delta_r2_high"], alpha=0.2)
    axes.plot(own["n"], own["delta_r2"], marker="o", label=f"{penalty} α")
axes.axhline(config.decision.continue_, linestyle=":", color="black", label="build experts")
axes.set(xscale="log", xlabel="training spectra, one noise draw each", ylabel="ΔR²")
axes.legend()
plt.show()

# %% [markdown]
# ## Any other question
#
# The finished run answers for any size and penalty, without another pass. `headroom forecast RUN` does the same.

# %%
asked = pipeline.forecast_run(folder / "run", [3e5, 3e6], alpha=1e5)
print(asked[asked["scope"] == "covered"].to_string(index=False))

# %%
scratch.cleanup()
