"""How much would a mixture of experts gain over one global ridge model, on a million spectra?

One pass over the spectra yields moments; everything else is algebra on them::

    config = pipeline.load_config("oracle_noise1.yaml")
    results = pipeline.run_experiment(config, "runs/first")

See the README for the command line, which does the same.
"""

from pipeline.accumulate import accumulate_moments
from pipeline.bins import BinGrid, assign_bins
from pipeline.checkpoints import AccumulationPlan, MomentsFolder, plan_accumulation
from pipeline.config import ExperimentConfig, load_config
from pipeline.convert import convert_shards
from pipeline.errors import ConfigError, HeadroomError, InputError, ResourceError, SingularGramError
from pipeline.experiment import render_run, run_experiment
from pipeline.models import ExpertModels, read_models, solve_experts
from pipeline.moments import Moments
from pipeline.noise import NoiseDraw
from pipeline.predictions import predict_store, read_noisy_rows
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
    "Bootstrap",
    "ConfigError",
    "ExperimentConfig",
    "ExpertModels",
    "HeadroomError",
    "HeadroomScore",
    "InputError",
    "JoinedStores",
    "Moments",
    "MomentsFolder",
    "NoiseDraw",
    "ResourceError",
    "RidgePath",
    "RunResults",
    "SingularGramError",
    "SpectraStore",
    "accumulate_moments",
    "assign_bins",
    "convert_shards",
    "find_shards",
    "load_config",
    "open_spectra",
    "open_stores",
    "pixel_scale",
    "plan_accumulation",
    "predict_store",
    "read_models",
    "read_noisy_rows",
    "read_results",
    "render_run",
    "run_experiment",
    "score_headroom",
    "solve_experts",
    "solve_ridge_path",
]
