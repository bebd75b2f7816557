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
# # 3 · Inside an expert
#
# **You will learn** which wavelengths the models use, where experts disagree with the global model, and how their
# errors depend on the star and on the signal-to-noise ratio. The *global* model is trained on all spectra, an *expert*
# on the spectra of one bin.
#
# **You need** a finished run. This is the run of `make demo`, or your own run, named by the environment variable
# `HEADROOM_RUN`. If there is none, a small run is made here in half a minute.
#
# The spectra of `make demo`, and those made here, are **simulated**. These models know only the lines that the
# simulation contains.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import pipeline

RUN = Path(os.environ.get("HEADROOM_RUN", "../runs/demo"))
if not (RUN / "summary.json").exists():
    RUN = Path("../runs/small")
    pipeline.run_demo(RUN, progress=pipeline.choose_progress())
results = pipeline.read_results(RUN)
print(RUN, "holds", "simulated spectra" if results.metadata["simulated"] else "the spectra of your shards")

# %% [markdown]
# ## Weights with their wavelengths
#
# A model is a sum: prediction = intercept + Σ weight · flux. A weight alone says little, because some pixels vary more
# than others. `effect` is the weight × the standard deviation of the noisy pixel. It tells how the prediction changes
# if the pixel is brighter by one standard deviation.
#
# *Marginal* noise is the expectation over all draws of the noise. If the run has models that were trained on marginal
# noise, we look at these, because the weights from a single draw are themselves noisy.

# %%
config = pipeline.load_config(RUN / "config.yaml")
found = pipeline.revisit_run(RUN, marginal=config.noise.mode != "drawn")
weights = found.weights()
weights

# %%
first, last = 1, weights.sizes["model"] - 1  # the first bin's expert and the last one's
GLOBAL, FIRST, LAST = "#E69F00", "#0072B2", "#222222"
LINES = ("Ca II", "Paschen", "Na I", "Mg I", "K I", "CN")
unit = weights["effect"].attrs["units"]


def draw_effects(start, stop):
    """Draw the effects of three models between two wavelengths (Å)."""
    part = weights["effect"].sel(wavelength=slice(start, stop))
    figure, panels = plt.subplots(3, 1, figsize=(12, 6.4), sharex=True, sharey=True, layout="constrained")
    for axes, (model, color) in zip(panels, ((0, GLOBAL), (first, FIRST), (last, LAST)), strict=True):
        axes.axhline(0, color="#B8B8B8", linewidth=0.8)
        axes.plot(part["wavelength"], part[model], color=color, linewidth=0.9)
        axes.set_xlim(float(part["wavelength"][0]), float(part["wavelength"][-1]))
        pipeline.mark_lines(axes, LINES, named=model == 0)
        axes.set_title(str(part["model"][model].item()), loc="left", fontsize=10, color=color)
    figure.supylabel(f"effect [{unit}]", fontsize=10)
    panels[-1].set_xlabel("wavelength [Å]")
    plt.show()


draw_effects(7000, 9000)

# %% [markdown]
# A negative effect means that more absorption at this pixel gives a higher log g. One expects this in the Ca II lines,
# whose wings widen with pressure. One expects the opposite in the Paschen lines, which grow as gravity falls. The next
# figure shows the Ca II triplet in detail.

# %%
draw_effects(8440, 8720)

# %% [markdown]
# Which lines matter most? The table gives, for each species, the mean of effect² within 8 Å of its lines, divided by
# the mean over all pixels. Where this number exceeds 1, the model uses these pixels more than the average pixel.

# %%
wavelength = weights["wavelength"].to_numpy()
power = weights["effect"] ** 2
rows = {}
for species in dict.fromkeys(line.name for line in pipeline.find_lines(wavelength[0], wavelength[-1])):
    places = np.array([line.wavelength for line in pipeline.find_lines(wavelength[0], wavelength[-1], [species])])
    near = (np.abs(wavelength[:, None] - places) < 8).any(axis=1)
    rows[species] = (power[:, near].mean("wavelength") / power.mean("wavelength")).to_numpy()
pd.DataFrame.from_dict(rows, orient="index", columns=weights["model"].to_numpy()).round(1).sort_values(
    "global", ascending=False
)

# %% [markdown]
# ## Where experts disagree with the global model
#
# The figure shows, for each pixel, the root mean square of effect(expert) − effect(global) over all experts.

# %%
difference = weights["effect"][1:] - weights["effect"][0].drop_vars("model")
disagreement = np.sqrt((difference**2).mean("model"))
figure, axes = plt.subplots(figsize=(12, 3.2), layout="constrained")
axes.plot(wavelength, disagreement, color="#009E73", linewidth=0.9)
axes.set(xlim=(wavelength[0], wavelength[-1]), ylim=(0, None), xlabel="wavelength [Å]")
axes.set_ylabel(f"disagreement\n[{unit.replace(' per ', '/').replace('standard deviation of the pixel', 'std')}]")
pipeline.mark_lines(axes, LINES)
plt.show()

# %% [markdown]
# ## Predictions, lazily
#
# The weights are a labelled array. One product predicts any spectra on the same wavelengths, and nothing is read before
# `compute`. Here we predict the test spectra, with their own stored noise if they have it.

# %%
test = pipeline.open_spectra(results.store_paths("test"))
flux = test["noisy" if "noisy" in test else "flux"].clip(min=0)
lazy = flux.astype("float64") @ weights["weight"] + weights["intercept"]
few = lazy.isel(spectrum=slice(0, 1000)).compute()
few.isel(spectrum=slice(0, 3), model=slice(0, 4)).to_pandas().round(2)

# %% [markdown]
# ## Errors of test spectra
#
# `predictions()` lists every test spectrum with its columns, its bin, and the prediction of each model. In the figure
# the spectra are divided into twelve equal parts. Lines are the medians of the parts, and bands hold the middle 68 %.

# %%
stars = found.predictions()
covered = stars[stars["bin"] >= 0]
target = config.target
titles = {"log_g": "log g [dex]", "T_eff": "T_eff [K]", "M_H": "[M/H] [dex]", "snr": "signal-to-noise ratio"}
titles = {name: title for name, title in titles.items() if name in stars}  # not every file has snr


def draw_errors(axes, name):
    """Draw prediction − truth against a column: the median and the middle 68 % of both models."""
    part = pd.qcut(covered[name], 12, duplicates="drop")
    at = covered.groupby(part, observed=True)[name].median()
    for column, label, color in (("y_global", "global ridge", GLOBAL), ("y_oracle", "oracle experts", FIRST)):
        errors = (covered[column] - covered["y_true"]).groupby(part, observed=True)
        axes.fill_between(at, errors.quantile(0.16), errors.quantile(0.84), color=color, alpha=0.2, linewidth=0)
        axes.plot(at, errors.median(), color=color, marker="o", markersize=3, label=label)
    axes.axhline(0, color="#6B6B6B", linewidth=0.8)
    axes.set_xlabel(titles[name])


figure, panels = plt.subplots(1, len(titles), figsize=(13, 3.6), sharey=True, layout="constrained")
for axes, name in zip(panels, titles, strict=True):
    draw_errors(axes, name)
panels[0].set_ylabel(f"predicted − true {titles[target]}")
panels[0].legend(fontsize=9)
plt.show()

# %% [markdown]
# The error falls as the label itself grows. The reason is that a model that is unsure answers near the mean, and noise
# makes it unsure. Experts know more, so their answers lie less close to the mean. Bands narrow as the signal-to-noise
# ratio grows.
#
# The next cell takes the stars for which the expert changes the prediction most. It tells whether the change was right.

# %%
covered = covered.assign(
    change=covered["y_oracle"] - covered["y_global"],
    gain=(covered["y_global"] - covered["y_true"]).abs() - (covered["y_oracle"] - covered["y_true"]).abs(),
)
most = covered.reindex(covered["change"].abs().sort_values(ascending=False).index).head(len(covered) // 10)
print(f"of the tenth with the largest change, the expert is nearer to the truth for {(most['gain'] > 0).mean():.0%}")
covered.groupby("bin")[["change", "gain"]].agg(["mean", "std"]).round(3)

# %% [markdown]
# The next notebook, `04_on_your_cluster`, runs the same experiment as batch jobs.
