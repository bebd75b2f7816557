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
# # 2 · Headroom
#
# **You will learn** how to start a cluster, watch a run and read its result. You will also ask further questions
# (another penalty, coarser bins) without another pass over the spectra.
#
# **You need** a finished run, because its spectra are used. This is the run of `make demo`, or your own run, named by
# the environment variable `HEADROOM_RUN`. If there is none, a small run is made here in half a minute.
#
# The spectra of `make demo`, and those made here, are **simulated**. The numbers below say nothing about real stars.

# %%
import os
import shutil
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import cluster
import pipeline

RUN = Path(os.environ.get("HEADROOM_RUN", "../runs/demo"))
if not (RUN / "summary.json").exists():
    RUN = Path("../runs/small")
    pipeline.run_demo(RUN, progress=pipeline.choose_progress())
earlier = pipeline.read_results(RUN)
print(RUN, "holds", "simulated spectra" if earlier.metadata["simulated"] else "the spectra of your shards")

# %% [markdown]
# ## An experiment
#
# A configuration is the content of the YAML file. This one has a single draw of the noise (one seed), a penalty of 0.1
# for each training spectrum (α = 1e5 for a million spectra), and the default five folds. A fold is one of the parts
# into which the training set is cut.

# %%
known = pipeline.load_config(RUN / "config.yaml")
config = pipeline.ExperimentConfig.model_validate(
    {
        "data": {"train": earlier.store_paths("train"), "test": earlier.store_paths("test")},
        "target": known.target,
        "bins": known.bins,
        "ridge": {"alpha": {"per_spectrum": 0.1}},
        "seeds": [42],
    }
)
plan = pipeline.plan_experiment(config)
print(f"{plan.n_spectra:,} spectra of {plan.n_pixels:,} pixels in {plan.n_pieces} pieces of work, ", end="")
print(f"{plan.worker_memory / 2**30:.1f} GiB for a worker, {plan.moments_disk / 2**30:.1f} GiB of moments")

# %% [markdown]
# ## Run it on a cluster
#
# `connect` starts a worker on this machine and stops it when the block ends. Open the link while the cell runs. Dask's
# dashboard shows every task by name. With another profile the same code runs on SLURM (notebook 4).

# %%
out = Path(tempfile.mkdtemp(prefix="headroom_"))  # deleted at the end of this notebook
started = time.perf_counter()
with cluster.connect(cluster.load_profile("local")) as client:
    cluster.announce(client, print)
    results = pipeline.run_experiment(config, out, client=client, progress=pipeline.choose_progress())
seconds_of_run = time.perf_counter() - started
print(f"{seconds_of_run:.1f} s, with the start of the cluster")

# %% [markdown]
# ## The answer
#
# **R²** is the share of the scatter in the label that a model explains. The *global* model is trained on all spectra,
# and an *expert* on the spectra of one bin. The *oracle* gives each test star to the expert of its true bin.
# **ΔR² = R²_oracle − R²_global** is the headroom. A gate must guess the bin, so with these experts it cannot be
# expected to gain more. `covered` spectra lie in one of the bins. `all` spectra include those outside every bin, where
# the oracle takes the global model.

# %%
merits = ["n_train", "n_test", "r2_global", "r2_oracle", "delta_r2", "delta_r2_low", "delta_r2_high"]
print(results.summary.headline.decision.sentence)
results.overall.set_index("scope")[merits].round(3)

# %%
names = [f"{column}_bin" for column in config.bins]
results.per_bin.set_index(["bin", *names])[["alpha", *merits]].round(3)

# %%
pipeline.draw_delta_heatmap(results)

# %%
pipeline.draw_grouped_r2(results)

# %% [markdown]
# ## Another penalty, without another pass
#
# The pass has left the *moments* of every bin: sums over its training spectra. They are enough to solve the models for
# any penalty. Only the test spectra are read again.
#
# The *best* penalty must not be chosen on the test set, so this curve is only for looking. The setting
# `ridge: {alpha: {search: [...]}}` chooses a penalty on folds of the training set.

# %%
started = time.perf_counter()
alphas = float(results.overall["alpha_global"].iloc[0]) * np.array([0.01, 0.1, 0.3, 1, 3, 10, 100])
scores = [pipeline.revisit_run(out, alpha=alpha).score().covered for alpha in alphas]
print(
    f"{len(alphas)} penalties, {(len(results.per_bin) + 1) * len(alphas)} models: {time.perf_counter() - started:.1f} s"
)

figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
for merit, name, color, marker in (
    ("r2_oracle", "oracle experts", "#0072B2", "o"),
    ("r2_global", "global ridge", "#E69F00", "s"),
):
    axes.semilogx(alphas, [getattr(score, merit) for score in scores], color=color, marker=marker, label=name)
axes.axvline(alphas[3], color="#6B6B6B", linestyle="--", linewidth=0.9)
axes.set(xlabel="penalty α of every model; dashed: that of the run", ylabel="R² on covered test spectra")
axes.set_ylim(bottom=max(axes.get_ylim()[0], -0.2))
axes.legend()
plt.show()

# %% [markdown]
# The experts have fewer spectra than the global model, so one penalty cannot be the best for both.
#
# ## Coarser bins, without another pass
#
# A coarser bin is a union of bins, and its moments are the sum of their moments. Keep the outer edges and leave out
# inner ones. Finer bins cannot be computed from these moments. For them, use the setting `binnings` before the pass.

# %%
tables = {"run": pipeline.revisit_run(out).table()}
for kept in config.bins:
    edges = {column: cuts if column == kept else (cuts[0], cuts[-1]) for column, cuts in config.bins.items()}
    tables[f"{kept} only"] = pipeline.revisit_run(out, bins=edges).table()
headlines = pd.DataFrame({name: table.loc["covered"] for name, table in tables.items()}).T
headlines = headlines.astype({"n_test": int})
headlines.insert(0, "experts", [len(table) - 2 for table in tables.values()])
headlines[["experts", "n_test", "r2_global", "r2_oracle", "delta_r2", "delta_r2_low", "delta_r2_high"]].round(3)

# %%
tables[f"{next(iter(config.bins))} only"].round(3)

# %% [markdown]
# The row `run` repeats the run's own numbers: it has the same moments, the same test noise and the same resamples.

# %%
shutil.rmtree(out)

# %% [markdown]
# The next notebook, `03_inside_an_expert`, shows which pixels the models use.
