"""How much would a mixture of experts gain over one global ridge model, on a million spectra?

One pass over the spectra yields moments; everything else is algebra on them::

    config = pipeline.load_config("oracle_noise1.yaml")
    results = pipeline.run_experiment(config, "runs/first")

See the README for the command line, which does the same.

Names are imported when they are first used: worker processes and short commands need a few of them, and all of them
take a second.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.accumulate import accumulate_moments
    from pipeline.bins import BinGrid, assign_bins
    from pipeline.bundle import load_model
    from pipeline.bundle_export import export_model
    from pipeline.bundle_model import MixtureModel
    from pipeline.bundle_prediction import Prediction
    from pipeline.checkpoints import MomentsFolder
    from pipeline.checkpoints_plan import AccumulationPlan, plan_accumulation
    from pipeline.compare import Comparison, compare_runs
    from pipeline.config import ExperimentConfig
    from pipeline.config_files import load_config
    from pipeline.convert import convert_shards
    from pipeline.errors import ConfigError, HeadroomError, InputError, ResourceError, SingularGramError
    from pipeline.estimators import BinnedRidge, GramRidge
    from pipeline.experiment import plan_experiment, render_run, run_experiment
    from pipeline.experiment_changes import add_spectra, remove_shard
    from pipeline.experiment_demo import run_demo
    from pipeline.figures.lines import mark_lines
    from pipeline.figures.per_bin import draw_delta_heatmap, draw_grouped_r2
    from pipeline.lines import SPECTRAL_LINES, SpectralLine, find_lines
    from pipeline.marginal import marginal_moments
    from pipeline.models import ExpertModels, read_models, solve_experts
    from pipeline.moments import Moments
    from pipeline.moments_contents import MomentsContents, open_moments
    from pipeline.moments_contents_merge import MergedMoments, merge_runs
    from pipeline.noise import MarginalNoise, NoiseDraw
    from pipeline.predict import PredictOptions, predict_spectra
    from pipeline.predictions import predict_marginal, predict_store, read_marginal_rows, read_noisy_rows
    from pipeline.progress import choose_progress
    from pipeline.results import RunResults, read_results
    from pipeline.revisit import Revisit, revisit_run
    from pipeline.ridge import RidgePath, pixel_scale, solve_ridge_path
    from pipeline.schema import STREAM_TEST, STREAM_TRAIN
    from pipeline.scores import Bootstrap, HeadroomScore, score_headroom
    from pipeline.shards import find_shards
    from pipeline.store import SpectraStore
    from pipeline.store_dataset import open_spectra
    from pipeline.store_set import JoinedStores, open_stores

__all__ = [
    "SPECTRAL_LINES",
    "STREAM_TEST",
    "STREAM_TRAIN",
    "AccumulationPlan",
    "BinGrid",
    "BinnedRidge",
    "Bootstrap",
    "Comparison",
    "ConfigError",
    "ExperimentConfig",
    "ExpertModels",
    "GramRidge",
    "HeadroomError",
    "HeadroomScore",
    "InputError",
    "JoinedStores",
    "MarginalNoise",
    "MergedMoments",
    "MixtureModel",
    "Moments",
    "MomentsContents",
    "MomentsFolder",
    "NoiseDraw",
    "PredictOptions",
    "Prediction",
    "ResourceError",
    "Revisit",
    "RidgePath",
    "RunResults",
    "SingularGramError",
    "SpectraStore",
    "SpectralLine",
    "accumulate_moments",
    "add_spectra",
    "assign_bins",
    "choose_progress",
    "compare_runs",
    "convert_shards",
    "draw_delta_heatmap",
    "draw_grouped_r2",
    "export_model",
    "find_lines",
    "find_shards",
    "load_config",
    "load_model",
    "marginal_moments",
    "mark_lines",
    "merge_runs",
    "open_moments",
    "open_spectra",
    "open_stores",
    "pixel_scale",
    "plan_accumulation",
    "plan_experiment",
    "predict_marginal",
    "predict_spectra",
    "predict_store",
    "read_marginal_rows",
    "read_models",
    "read_noisy_rows",
    "read_results",
    "remove_shard",
    "render_run",
    "revisit_run",
    "run_demo",
    "run_experiment",
    "score_headroom",
    "solve_experts",
    "solve_ridge_path",
]

#: Where each name lives; a test holds it against the imports above.
_HOMES = {
    "AccumulationPlan": "pipeline.checkpoints_plan",
    "BinGrid": "pipeline.bins",
    "BinnedRidge": "pipeline.estimators",
    "Bootstrap": "pipeline.scores",
    "Comparison": "pipeline.compare",
    "ConfigError": "pipeline.errors",
    "ExperimentConfig": "pipeline.config",
    "ExpertModels": "pipeline.models",
    "GramRidge": "pipeline.estimators",
    "HeadroomError": "pipeline.errors",
    "HeadroomScore": "pipeline.scores",
    "InputError": "pipeline.errors",
    "JoinedStores": "pipeline.store_set",
    "MarginalNoise": "pipeline.noise",
    "MergedMoments": "pipeline.moments_contents_merge",
    "MixtureModel": "pipeline.bundle_model",
    "Moments": "pipeline.moments",
    "MomentsContents": "pipeline.moments_contents",
    "MomentsFolder": "pipeline.checkpoints",
    "NoiseDraw": "pipeline.noise",
    "PredictOptions": "pipeline.predict",
    "Prediction": "pipeline.bundle_prediction",
    "ResourceError": "pipeline.errors",
    "Revisit": "pipeline.revisit",
    "RidgePath": "pipeline.ridge",
    "RunResults": "pipeline.results",
    "SPECTRAL_LINES": "pipeline.lines",
    "STREAM_TEST": "pipeline.schema",
    "STREAM_TRAIN": "pipeline.schema",
    "SingularGramError": "pipeline.errors",
    "SpectraStore": "pipeline.store",
    "SpectralLine": "pipeline.lines",
    "accumulate_moments": "pipeline.accumulate",
    "add_spectra": "pipeline.experiment_changes",
    "assign_bins": "pipeline.bins",
    "choose_progress": "pipeline.progress",
    "compare_runs": "pipeline.compare",
    "convert_shards": "pipeline.convert",
    "draw_delta_heatmap": "pipeline.figures.per_bin",
    "draw_grouped_r2": "pipeline.figures.per_bin",
    "export_model": "pipeline.bundle_export",
    "find_lines": "pipeline.lines",
    "find_shards": "pipeline.shards",
    "load_config": "pipeline.config_files",
    "load_model": "pipeline.bundle",
    "marginal_moments": "pipeline.marginal",
    "mark_lines": "pipeline.figures.lines",
    "merge_runs": "pipeline.moments_contents_merge",
    "open_moments": "pipeline.moments_contents",
    "open_spectra": "pipeline.store_dataset",
    "open_stores": "pipeline.store_set",
    "pixel_scale": "pipeline.ridge",
    "plan_accumulation": "pipeline.checkpoints_plan",
    "plan_experiment": "pipeline.experiment",
    "predict_marginal": "pipeline.predictions",
    "predict_spectra": "pipeline.predict",
    "predict_store": "pipeline.predictions",
    "read_marginal_rows": "pipeline.predictions",
    "read_models": "pipeline.models",
    "read_noisy_rows": "pipeline.predictions",
    "read_results": "pipeline.results",
    "remove_shard": "pipeline.experiment_changes",
    "render_run": "pipeline.experiment",
    "revisit_run": "pipeline.revisit",
    "run_demo": "pipeline.experiment_demo",
    "run_experiment": "pipeline.experiment",
    "score_headroom": "pipeline.scores",
    "solve_experts": "pipeline.models",
    "solve_ridge_path": "pipeline.ridge",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
