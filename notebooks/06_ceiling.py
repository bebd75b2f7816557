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
# # 6 · The ceiling
#
# **You will learn** how far the best possible model could go, which share of that experts capture, and whether a
# nonlinear model has anything to gain.
#
# **You need** a finished run, because its spectra are used. This is the run of `make demo`, or your own run, named by
# the environment variable `HEADROOM_RUN`. If there is none, a small run is made here in half a minute.
#
# The spectra of `make demo`, and those made here, are **simulated**. The numbers below say nothing about real stars.

# %%
import os
import shutil
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

# %% [markdown]
# ## Three numbers
#
# The noise of the spectra is known. So the training spectra are a *library*: for each star in it, one can say how
# probable a noisy spectrum is. The mean label of the stars, each weighted by that probability, is the best estimate
# there can be. Two such means bracket the R² of the best model:
#
# - The mean over the library **without** the star of the test spectrum is a model that one can build. The best model is
#   at least as good.
# - The mean over the library **with** that star knows more than any model can know. The best model is at most as good.
#
# `ceiling` in the configuration asks for it.

# %%
known = earlier.metadata["config"]
config = pipeline.load_config(
    {key: known[key] for key in ("target", "bins")}
    | {
        "data": {role: earlier.store_paths(role) for role in ("train", "test")},
        "ceiling": {"library": 10_000, "test": 2000},
        "ridge": {"alpha": {"per_spectrum": 0.1}},
        "seeds": [42],
    }
)
out = Path(tempfile.mkdtemp(prefix="headroom_"))  # deleted at the end of this notebook
results = pipeline.run_experiment(config, out, progress=pipeline.choose_progress())
level = results.summary.answers["ceiling"]["levels"][0]
print(level["experts"])
print(level["nonlinear"]["sentence"])

# %% [markdown]
# ## In every bin
#
# `ceiling.csv` has a row for each label, scope, bin and size of the library. Where R² of the experts lies within the
# bracket, nothing is left for another model, as far as this library can tell.

# %%
table = results.table("ceiling.csv")
target = table[table["target"] == config.target]
in_bins = target[(target["scope"] == "covered") & target["bin"].notna()]
in_bins[["bin", "r2_global", "r2_oracle", "r2_lower", "r2_upper", "effective_size", "n_test"]].round(3)

# %% [markdown]
# ## Is the library large enough?
#
# The bracket closes as the library grows. The *effective size* says how many stars share the weight of a spectrum.
# Below 5 the lower end has not converged, and a larger library would raise it.

# %%
growth = target[(target["scope"] == "covered") & target["bin"].isna()]
figure, axes = plt.subplots(figsize=(7, 4))
axes.fill_between(growth["n_library"], growth["r2_lower"], growth["r2_upper"], alpha=0.3, label="ceiling")
axes.axhline(growth["r2_oracle"].iloc[-1], color="#0072B2", label="oracle experts")
axes.axhline(growth["r2_global"].iloc[-1], color="#E69F00", label="global ridge")
axes.set(xlabel="stars in the library", ylabel=f"R² of {config.target}", title="How the bracket closes")
axes.legend()
growth[["n_library", "r2_lower", "r2_upper", "effective_size"]].round(3)

# %% [markdown]
# ## The exact gate
#
# The same weights say how probable every bin is for a spectrum. No gate can know more. Soft routing by these
# probabilities shows what a perfect gate would keep of the headroom.

# %%
routing = results.table("ceiling_routing.csv")
routing[routing["scope"].isin(["covered", "all"])].round(3)

# %%
shutil.rmtree(out)
