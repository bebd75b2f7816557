"""Names and units: the shard layout that is read, the store layout that is written, the labels.

One place for every spelling that appears in a file, so that readers, writers and tests agree.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

# --- pfsspec shards (HDF5, in) -----------------------------------------------------------------
SHARD_FILE_NAME: Final = "dataset.h5"
SHARD_INDEX_NAME: Final = "shard_index.txt"
SHARD_FLUX: Final = "dataset/arrays/flux/value"
SHARD_ERROR: Final = "dataset/arrays/error/value"
SHARD_MASK: Final = "dataset/arrays/mask/value"
SHARD_NOISY: Final = "dataset/arrays/noisy/value"
SHARD_PARAMS: Final = "dataset/params"
SHARD_PARAMS_TABLE: Final = "dataset/params/table"
SHARD_WAVE: Final = "spectrumdataset/wave"
SHARD_WAVE_EDGES: Final = "spectrumdataset/wave_edges"
#: Root attribute of shards that ``headroom sample`` wrote; what it marks is never shown as real.
SHARD_SIMULATED: Final = "headroom_sample"
#: How a store and a report say so.
SIMULATED_REMARK: Final = "simulated by headroom sample: a stand-in, no real or synthesised spectra"

# --- labels and columns --------------------------------------------------------------------------
#: Every pass accumulates all of these labels; one more label costs one more column of a tall product.
LABELS: Final = ("log_g", "T_eff", "M_H")
#: Columns that a shard must have; the others are kept where they are numeric and not all NaN.
REQUIRED_COLUMNS: Final = ("id", "T_eff", "log_g", "M_H")

COLUMN_UNITS: Final = MappingProxyType(
    {
        "T_eff": "K",
        "log_g": "dex",
        "M_H": "dex",
        "a_M": "dex",
        "C_M": "dex",
        "mag": "mag",
        "snr": "1",
        "redshift": "1",
        "seeing": "arcsec",
    }
)
COLUMN_TITLES: Final = MappingProxyType(
    {
        "T_eff": "effective temperature",
        "log_g": "surface gravity, log10 of cm/s²",
        "M_H": "metallicity [M/H]",
        "a_M": "alpha-element abundance [α/M]",
        "C_M": "carbon abundance [C/M]",
        "mag": "i-band magnitude",
        "snr": "signal-to-noise ratio",
        "redshift": "redshift",
        "seeing": "seeing",
        "shard": "index of the HDF5 shard the spectrum came from",
        "row": "row of the spectrum within its shard",
    }
)
#: How names are written in figures and reports.
COLUMN_SYMBOLS: Final = MappingProxyType({"T_eff": "T_eff", "log_g": "log g", "M_H": "[M/H]", "snr": "SNR"})

# --- the store (Zarr v3) ---------------------------------------------------------------------------
STORE_FORMAT: Final = "headroom-store"
#: The metadata conventions (CF) that names of attributes follow.
CONVENTIONS: Final = "CF-1.11"
DIM_SPECTRUM: Final = "spectrum"
DIM_WAVELENGTH: Final = "wavelength"
#: Pixel arrays of a store, dims (spectrum, wavelength); ``mask`` and ``noisy`` only where shards have them.
PIXEL_VARIABLES: Final = ("flux", "error", "mask", "noisy")
#: A flux or error of more than so many times the typical flux is absurd: a fill value, or a mark for a bad pixel.
ABSURD: Final = 1e6
#: Mean of max(flux, 0) over the store, float32 numbers as float64 (wavelength,): the origin of moments.
STORE_ORIGIN: Final = "mean_flux"

# --- noise streams ---------------------------------------------------------------------------------
STREAM_TRAIN: Final = 0
"""The stream that the noise of training spectra is drawn from. Equal rows of two streams never share noise."""
STREAM_TEST: Final = 1
"""The stream that the noise of test spectra is drawn from."""

# --- versions of files ---------------------------------------------------------------------------
# Raised when a program of the version before could not read the file, or would read it wrongly.
#: A Zarr store. Stores of the first version know no checksums of single chunks: whole ranges are compared instead.
STORE_VERSION: Final = 2
READABLE_STORE_VERSIONS: Final = (1, STORE_VERSION)
#: A folder of moments, and the JSON listing of all moments of a run.
MOMENTS_VERSION: Final = 4
#: The basis of factored moments.
BASIS_VERSION: Final = 2
MOMENTS_LISTING_VERSION: Final = 1
#: ``products.json`` of a run.
PRODUCTS_VERSION: Final = 2
#: The models of one noise draw, and those that were trained without each fold.
MODELS_VERSION: Final = 1
FOLD_MODELS_VERSION: Final = 1
#: How a gate's features come from pixels.
FEATURE_RECIPE_VERSION: Final = 1
#: An exported model.
BUNDLE_VERSION: Final = 2
#: ``summary.json`` of a run.
SUMMARY_VERSION: Final = 2
#: ``status.json`` of a run.
STATUS_VERSION: Final = 1
#: ``finished.json`` of a run.
FINISHED_VERSION: Final = 1

# --- versions of algorithms ----------------------------------------------------------------------
# Raised when the same inputs and settings would give other numbers: what older programs saved is then made again. Noise
# says its algorithm in words, see pipeline.noise.
#: Moments, from a store.
ACCUMULATION_ALGORITHM: Final = 5
#: Factored moments, from a store and a basis.
PROJECTION_ALGORITHM: Final = 3
#: Models, from moments.
RIDGE_ALGORITHM: Final = 4
#: Tables of results, from models and test spectra.
RESULTS_ALGORITHM: Final = 7
#: Errors and divisions of a bin design, from moments.
BIN_DESIGN_ALGORITHM: Final = 1
#: A gate's recipe from moments, its rows from spectra, the gate from both, the gate over SNR, and the learned blend.
RECIPE_ALGORITHM: Final = 1
FEATURE_ROWS_ALGORITHM: Final = 1
GATE_ALGORITHM: Final = 1
SNR_GATE_ALGORITHM: Final = 1
BLEND_ALGORITHM: Final = 1
#: The likelihoods and sums that the ceiling comes from.
CEILING_ALGORITHM: Final = 4
#: What a run makes again where another version of this package would have made it otherwise, in words. Moments of
#: another version are refused instead.
REMADE: Final = MappingProxyType(
    {
        "models": RIDGE_ALGORITHM,
        "bin design": BIN_DESIGN_ALGORITHM,
        "gates": [
            RECIPE_ALGORITHM,
            FEATURE_ROWS_ALGORITHM,
            GATE_ALGORITHM,
            SNR_GATE_ALGORITHM,
            BLEND_ALGORITHM,
        ],
        "ceiling": CEILING_ALGORITHM,
        "results": RESULTS_ALGORITHM,
    }
)
#: Labels, from a model and spectra.
PREDICTION_ALGORITHM: Final = 2
#: Simulated shards: those of another version are refused, not mixed with new ones.
SAMPLE_ALGORITHM: Final = 1
