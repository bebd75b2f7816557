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
    from pipeline.checkpoints import MomentsFolder
    from pipeline.checkpoints_plan import AccumulationPlan, plan_accumulation
    from pipeline.config import ExperimentConfig
    from pipeline.config_files import load_config
    from pipeline.convert import convert_shards
    from pipeline.errors import ConfigError, HeadroomError, InputError, ResourceError, SingularGramError
    from pipeline.estimators import BinnedRidge, GramRidge
    from pipeline.experiment import render_run, run_experiment
    from pipeline.experiment_changes import add_spectra, remove_shard
    from pipeline.marginal import marginal_moments
    from pipeline.models import ExpertModels, read_models, solve_experts
    from pipeline.moments import Moments
    from pipeline.moments_contents import MomentsContents, open_moments
    from pipeline.moments_contents_merge import MergedMoments, merge_runs
    from pipeline.noise import MarginalNoise, NoiseDraw
    from pipeline.predictions import predict_marginal, predict_store, read_marginal_rows, read_noisy_rows
    from pipeline.results import RunResults, read_results
    from pipeline.ridge import RidgePath, pixel_scale, solve_ridge_path
    from pipeline.schema import STREAM_TEST, STREAM_TRAIN
    from pipeline.scores import Bootstrap, HeadroomScore, score_headroom
    from pipeline.shards import find_shards
    from pipeline.store import SpectraStore
    from pipeline.store_dataset import open_spectra
    from pipeline.store_set import JoinedStores, open_stores

__all__ = [
    "STREAM_TEST",
    "STREAM_TRAIN",
    "AccumulationPlan",
    "BinGrid",
    "BinnedRidge",
    "Bootstrap",
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
    "Moments",
    "MomentsContents",
    "MomentsFolder",
    "NoiseDraw",
    "ResourceError",
    "RidgePath",
    "RunResults",
    "SingularGramError",
    "SpectraStore",
    "accumulate_moments",
    "add_spectra",
    "assign_bins",
    "convert_shards",
    "find_shards",
    "load_config",
    "marginal_moments",
    "merge_runs",
    "open_moments",
    "open_spectra",
    "open_stores",
    "pixel_scale",
    "plan_accumulation",
    "predict_marginal",
    "predict_store",
    "read_marginal_rows",
    "read_models",
    "read_noisy_rows",
    "read_results",
    "remove_shard",
    "render_run",
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
    "Moments": "pipeline.moments",
    "MomentsContents": "pipeline.moments_contents",
    "MomentsFolder": "pipeline.checkpoints",
    "NoiseDraw": "pipeline.noise",
    "ResourceError": "pipeline.errors",
    "RidgePath": "pipeline.ridge",
    "RunResults": "pipeline.results",
    "STREAM_TEST": "pipeline.schema",
    "STREAM_TRAIN": "pipeline.schema",
    "SingularGramError": "pipeline.errors",
    "SpectraStore": "pipeline.store",
    "accumulate_moments": "pipeline.accumulate",
    "add_spectra": "pipeline.experiment_changes",
    "assign_bins": "pipeline.bins",
    "convert_shards": "pipeline.convert",
    "find_shards": "pipeline.shards",
    "load_config": "pipeline.config_files",
    "marginal_moments": "pipeline.marginal",
    "merge_runs": "pipeline.moments_contents_merge",
    "open_moments": "pipeline.moments_contents",
    "open_spectra": "pipeline.store_dataset",
    "open_stores": "pipeline.store_set",
    "pixel_scale": "pipeline.ridge",
    "plan_accumulation": "pipeline.checkpoints_plan",
    "predict_marginal": "pipeline.predictions",
    "predict_store": "pipeline.predictions",
    "read_marginal_rows": "pipeline.predictions",
    "read_models": "pipeline.models",
    "read_noisy_rows": "pipeline.predictions",
    "read_results": "pipeline.results",
    "remove_shard": "pipeline.experiment_changes",
    "render_run": "pipeline.experiment",
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
