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
# # 1 · Explore the spectra
#
# **You will learn** what is in a store (the Zarr copy of the spectra), how many spectra lie in each bin and how good
# they are, which lines depend on log g, and what noise level 1 does to one spectrum.
#
# **You need** a finished run. This is the run of `make demo`, or your own run, named by the environment variable
# `HEADROOM_RUN`. If there is none, a small run is made here in half a minute.
#
# The spectra of `make demo`, and those made here, are **simulated** by a compact physical model. They behave like
# spectra of stars, but they say nothing about real stars.

# %%
import os
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np

import pipeline

RUN = Path(os.environ.get("HEADROOM_RUN", "../runs/demo"))
if not (RUN / "summary.json").exists():
    RUN = Path("../runs/small")
    pipeline.run_demo(RUN, progress=pipeline.choose_progress())
results = pipeline.read_results(RUN)
print(RUN, "holds", "simulated spectra" if results.metadata["simulated"] else "the spectra of your shards")

# %% [markdown]
# ## One lazy dataset
#
# `open_spectra` takes one store or several. It reads pixels only when they are needed. Labels are in memory, so you can
# select spectra by their labels with plain indexing.

# %%
spectra = pipeline.open_spectra(results.store_paths("train"))
spectra

# %% [markdown]
# ## Bins
#
# A bin is a rectangle in T_eff and [M/H]. It includes its lower edges but not its upper edges, except the last one.
# Spectra in no bin have the number −1. No expert is trained on them, but the global model is.

# %%
config = pipeline.load_config(RUN / "config.yaml")
grid = pipeline.BinGrid(config.bins, config.bin_names)
spectra = pipeline.assign_bins(spectra, grid)
labels = spectra.drop_dims("wavelength").to_dataframe()
if "snr" not in labels:  # the column is optional; this reads all pixels
    labels["snr"] = (spectra["flux"] / spectra["error"]).mean("wavelength").values
per_bin = labels.groupby("bin").agg(spectra=("log_g", "size"), median_snr=("snr", "median"), log_g=("log_g", "mean"))
per_bin.index = ["outside" if k < 0 else grid.describe(k) for k in per_bin.index]
per_bin.round(2)

# %% [markdown]
# ## Labels and signal-to-noise
#
# The dashed lines are the edges of the bins.

# %%
figure, panels = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained", sharey=True)
titles = {"T_eff": "T_eff [K]", "log_g": "log g [dex]", "M_H": "[M/H] [dex]", "snr": "signal-to-noise ratio"}
for axes, (name, title) in zip(panels, titles.items(), strict=True):
    axes.hist(labels[name], bins=50, color="#0072B2")
    for edge in config.bins.get(name, ()):
        axes.axvline(edge, color="#222222", linestyle="--", linewidth=0.9)
    axes.set_xlabel(title)
panels[0].set_ylabel("training spectra")
low, middle, high = labels["snr"].quantile([0.05, 0.5, 0.95])
print(f"SNR: median {middle:.1f}; nine of ten spectra lie between {low:.1f} and {high:.1f}")

# %% [markdown]
# ## Mean spectra per bin
#
# The figure shows the mean noise-free flux of the first 20,000 spectra. Lines weaken as [M/H] falls. CN absorbs
# redwards of 7870 Å in cool, metal-rich stars. The Paschen lines absorb in hot stars.

# %%
some = spectra.isel(spectrum=slice(0, 20_000))
means = some["flux"].where(some["bin"] >= 0, drop=True).groupby("bin").mean().compute()
inside = grid.bin_names
COLORS = ["#E69F00", "#0072B2", "#222222", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]  # told apart by all eyes


def draw_means(start, stop):
    """Draw the mean spectra between two wavelengths (Å): a panel for each interval of the first column."""
    first = list(dict.fromkeys(names[0] for names in inside))
    _, panels = plt.subplots(
        len(first), 1, figsize=(12, 2.6 * len(first)), sharex=True, sharey=True, layout="constrained", squeeze=False
    )
    part = means.sel(wavelength=slice(start, stop))
    for row, (axes, name) in enumerate(zip(panels[:, 0], first, strict=True)):
        axes.set_xlim(float(part["wavelength"][0]), float(part["wavelength"][-1]))
        own = [k for k in part["bin"].values if inside[k][0] == name]
        for color, k in zip(COLORS, own, strict=False):
            axes.plot(
                part["wavelength"],
                part.sel(bin=k),
                color=color,
                linewidth=0.9,
                label=" ".join(inside[k][1:] or inside[k]),
            )
        axes.set_ylabel(f"{name}\nmean flux")
        pipeline.mark_lines(axes, named=row == 0)
        axes.legend(loc="lower left", ncols=3, fontsize=9)
    panels[-1, 0].set_xlabel("wavelength [Å]")


draw_means(7000, 9000)

# %% [markdown]
# The next figure shows the Ca II triplet in detail. Its wings widen with pressure, and so with log g. The models use
# this.

# %%
draw_means(8470, 8690)

# %% [markdown]
# ## What noise level 1 does to one spectrum
#
# The noisy flux is `noisy = max(flux + level · error · ε, 0)`. The random ε depends only on the seed and on the row of
# the spectrum. So anyone can repeat a draw, and the order in which rows are read does not matter.

# %%
store = pipeline.open_stores(results.store_paths("train"))
wavelength = store.wavelength
row = int((labels["snr"] - middle).abs().to_numpy().argmin())
draw = pipeline.NoiseDraw(level=1.0, seed=42, stream=pipeline.STREAM_TRAIN)
many, two = pipeline.read_noisy_rows(store, 0, 100, draw), pipeline.read_noisy_rows(store, 7, 9, draw)
print("the same bits in whatever order:", np.array_equal(many[7:9], two))


def draw_noise(row, level):
    """Draw one spectrum without noise and with one draw of it."""
    clean = store.read_rows("flux", row, row + 1)[0]
    noise = pipeline.NoiseDraw(level=level, seed=42, stream=pipeline.STREAM_TRAIN)
    noisy = pipeline.read_noisy_rows(store, row, row + 1, noise)[0]
    star = labels.iloc[row]
    _, axes = plt.subplots(figsize=(12, 3.4), layout="constrained")
    axes.plot(wavelength, noisy, color="#56B4E9", linewidth=0.6, label=f"noise level {level:g}, seed 42")
    axes.plot(wavelength, clean, color="#222222", linewidth=0.9, label="noise-free flux")
    axes.set(xlabel="wavelength [Å]", ylabel="flux", xlim=(wavelength[0], wavelength[-1]))
    pipeline.mark_lines(axes)
    words = f"T_eff {star['T_eff']:.0f} K, log g {star['log_g']:.2f}, [M/H] {star['M_H']:+.2f}, SNR {star['snr']:.1f}"
    axes.text(0.99, 0.96, words, transform=axes.transAxes, ha="right", va="top", backgroundcolor="white")
    axes.legend(loc="lower left", ncols=2, fontsize=9)
    plt.show()


draw_noise(row, 1.0)

# %% [markdown]
# ## Look through the spectra
#
# Move the sliders; they need a running kernel. The spectra are sorted by their signal-to-noise ratio.

# %%
by_snr = np.argsort(labels["snr"].to_numpy(), kind="stable")
_ = ipywidgets.interact(
    lambda percentile, level: draw_noise(int(by_snr[percentile * (len(by_snr) - 1) // 100]), level),
    percentile=ipywidgets.IntSlider(50, 0, 100, description="SNR, %", continuous_update=False),
    level=ipywidgets.SelectionSlider(options=[0.0, 0.2, 0.5, 1.0, 2.0], value=1.0, description="noise level"),
)

# %% [markdown]
# The next notebook, `02_headroom`, shows what experts gain on these spectra.
