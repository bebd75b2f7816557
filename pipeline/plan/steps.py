"""How long every step of a run takes, and the whole of it: what the first lines of a run and of a plan say.

:mod:`pipeline.plan.scaling` models the pass and the solving of the main models from rates. The other steps are smaller,
and most of their time goes into fixed work: compiling, starting threads, drawing figures. They are projected from a few
constants that were measured on two cores, and scaled by the rate of the machine's products.

The projection is for a run from nothing on an idle machine. What is there already is not made again, so
a run may be shorter. ``docs/scaling.md`` holds it against measurements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from pipeline.base import available_cores
from pipeline.config import AlphaSearch, ExperimentConfig, Quantiles
from pipeline.plan.cost import TYPICAL_RANK, ExperimentPlan, measure_flops
from pipeline.plan.scaling import Rates, Scaling, format_seconds

__all__ = ["RunTime", "StepTime", "measure_quickly", "name_steps", "project_run"]

#: Bytes of shards that one core converts in a second.
_CONVERTED = 150e6
#: Bytes of partial sums that the workers of one machine write in a second.
_WRITTEN = 1.3e9
#: Of choosing the basis of factored moments: fixed seconds, and flop for each pixel.
_BASIS, _BASIS_FLOPS = 1.0, 6e7
#: A model from factored moments, in operations for each pixel and squared direction: a path of penalties included.
_FACTORED_MODEL = 32.0
#: What the ceiling's reader reaches of the rate of decoding.
_OF_DECODING = 0.6
#: Starting threads and a cluster, and what every step does besides: seconds.
_START, _EACH = 2.0, 0.3
#: Fitting a gate and its features, and the learned blend: seconds.
_GATE, _BLEND = 2.5, 3.0
#: One figure, and the page: seconds.
_FIGURE, _PAGE = 0.35, 0.5
#: Figures that every run has, and those of its questions.
_FIGURES, _OF_GATE = 8, 3
#: Sizes of a forecast, with the limit, times the two choices of the penalty, times the steps of a fixed point.
_FORECASTS = 18 * 4


@dataclass(frozen=True)
class StepTime:
    """The projected time of a step, seconds."""

    name: str
    seconds: float


@dataclass(frozen=True)
class RunTime:
    """The projected time of every step of a run, in their order."""

    steps: tuple[StepTime, ...]

    @property
    def total(self) -> float:
        """Seconds of the whole run, if nothing is there yet."""
        return sum(step.seconds for step in self.steps)

    def describe(self) -> str:
        """Return total and steps in words."""
        steps = ", ".join(f"{step.name} {format_seconds(step.seconds)}" for step in self.steps)
        return f"about {format_seconds(self.total)} in {len(self.steps)} steps: {steps}"


def name_steps(config: ExperimentConfig) -> list[str]:
    """Return the steps of a run in their order. A question whose setting is not there has no step."""
    asked = [name for name in ("design", "ceiling", "gate") if getattr(config, name) is not None]
    return ["convert", "accumulate", "solve", *asked, "score", "report"]


@cache
def _measure_gram(n_pixels: int, precision: str) -> float:
    """Measure products on one core, flop/s; once, since a process stays on its machine."""
    return measure_flops(min(n_pixels, 1024), precision, rows=256, seconds=0.01) / available_cores()


def measure_quickly(plan: ExperimentPlan, config: ExperimentConfig) -> Rates:
    """Measure the products of this machine for a moment, and assume the rest: the rest hardly matters."""
    gram = _measure_gram(min(plan.n_pixels, 1024), config.precision)
    solve = gram if config.precision == "float64" else gram / 2
    return Rates(gram=gram, solve=solve, noise=6e8, decode=2e9, merge=2e9)


def project_run(plan: ExperimentPlan, config: ExperimentConfig, scaling: Scaling) -> RunTime:
    """Project the time of every step of a run.

    Parameters
    ----------
    plan
        What is computed.
    config
        Questions and bins.
    scaling
        The pass and the solving, from :func:`pipeline.plan.scaling.project_scaling`.
    """
    seconds = {
        "convert": _convert(plan),
        "accumulate": _accumulate(plan, scaling),
        "solve": scaling.solving + _solve_others(plan, config, scaling),
        "design": _design(plan, scaling),
        "ceiling": _ceiling(plan, config, scaling),
        "gate": _gate(plan, config, scaling),
        "score": _score(plan, config, scaling),
        "report": _report(config),
    }
    return RunTime(tuple(StepTime(name, _EACH + seconds[name]) for name in name_steps(config)))


def _machine(scaling: Scaling) -> float:
    """Return the flop/s of one machine's products."""
    return scaling.rates.gram * scaling.cores


def _of_model(plan: ExperimentPlan, scaling: Scaling) -> float:
    """Return the seconds of a model from factored moments."""
    return _FACTORED_MODEL * plan.n_pixels * min(TYPICAL_RANK, plan.n_pixels) ** 2 / _machine(scaling)


def _convert(plan: ExperimentPlan) -> float:
    return _START + (0.3 + plan.store_disk / (_CONVERTED * available_cores()) if plan.store_disk else 0.0)


def _accumulate(plan: ExperimentPlan, scaling: Scaling) -> float:
    basis = 0.0
    if plan.n_factored:
        basis = _BASIS + _BASIS_FLOPS * plan.n_pixels / _machine(scaling)
    return basis + scaling.accumulating + scaling.partials / plan.n_workers / _WRITTEN


def _count_other_bins(config: ExperimentConfig) -> int:
    """Return the bins of all binnings but the main one."""
    main = [len(edges) - 1 for edges in config.bins.values()]
    alone = main if config.ablation and len(main) > 1 else []
    others = [
        math.prod(cut.quantiles if isinstance(cut, Quantiles) else len(cut) - 1 for cut in cuts.values())
        for cuts in config.binnings.values()
    ]
    return sum(alone) + sum(others)


def _solve_others(plan: ExperimentPlan, config: ExperimentConfig, scaling: Scaling) -> float:
    """Return the seconds of the models of other binnings, for the noises that the verdict is about."""
    times = plan.n_folds + 1 if isinstance(config.ridge.alpha, AlphaSearch) else 1
    n_models = _count_other_bins(config) * times
    if plan.n_factored:
        return n_models * plan.n_factored * _of_model(plan, scaling)
    n_main = (1 + math.prod(len(edges) - 1 for edges in config.bins.values())) * times
    return scaling.solving * n_models / n_main


def _design(plan: ExperimentPlan, scaling: Scaling) -> float:
    if plan.n_factored:
        return plan.design_models * _of_model(plan, scaling)
    return plan.design_models * plan.n_pixels**3 / 3 / scaling.rates.solve / scaling.cores


def _ceiling(plan: ExperimentPlan, config: ExperimentConfig, scaling: Scaling) -> float:
    if plan.library is None:
        return 0.0
    products = len(config.noise.levels) * plan.library.flops / _machine(scaling)
    # One thread reads, and copies the stars that are wanted, while the others multiply.
    reading = 8.0 * plan.n_pixels * plan.library.read / (_OF_DECODING * scaling.rates.decode)
    return 2.0 + max(products, reading) / plan.n_workers


def _gate(plan: ExperimentPlan, config: ExperimentConfig, scaling: Scaling) -> float:
    if config.gate is None:
        return 0.0
    n_models = (1 + math.prod(len(edges) - 1 for edges in config.bins.values())) * plan.n_folds
    own = _of_model(plan, scaling) if plan.n_factored else plan.n_pixels**3 / 3 / scaling.rates.solve / scaling.cores
    return _GATE + n_models * own + (_BLEND if config.gate.blend else 0.0)


def _score(plan: ExperimentPlan, config: ExperimentConfig, scaling: Scaling) -> float:
    n_models = 1 + math.prod(len(edges) - 1 for edges in config.bins.values())
    columns = n_models * (plan.n_folds + 1) + _count_other_bins(config)
    reading = 2.0 * plan.n_draws * plan.n_test * plan.n_pixels * columns / _machine(scaling)
    if not plan.makes_forecast:
        return 1.0 + reading
    return 1.0 + reading + _FORECASTS * n_models * len(config.noise.levels) * _of_model(plan, scaling)


def _report(config: ExperimentConfig) -> float:
    figures = _FIGURES + (_OF_GATE if config.gate is not None else 0)
    figures += sum(one is not None for one in (config.ceiling, config.forecast, config.design))
    return _PAGE + _FIGURE * figures
