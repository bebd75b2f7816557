"""The experiment's configuration: one YAML file, validated into typed, immutable objects.

An unknown key is an error that names the nearest known one. :mod:`pipeline.config_files` reads the file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from pipeline import schema
from pipeline.config_cuts import Cut, DesignConfig, Quantiles, Section, require_increasing
from pipeline.config_gate import FeatureConfig, GateConfig, LineWindow
from pipeline.errors import did_you_mean

__all__ = [
    "AlphaSearch",
    "BootstrapConfig",
    "ComputeConfig",
    "DataConfig",
    "DecisionConfig",
    "DesignConfig",
    "ExperimentConfig",
    "FeatureConfig",
    "GateConfig",
    "HypothesesConfig",
    "LineWindow",
    "NoiseConfig",
    "PerSpectrum",
    "Quantiles",
    "RidgeConfig",
    "content_hash",
]

REFERENCE_EDGES: Mapping[str, tuple[float, ...]] = {
    "T_eff": (3750.0, 4500.0, 5250.0, 6000.0),
    "M_H": (-2.0, -1.0, 0.0, 0.5),
}

#: The name of ``bins`` among all binnings: the one that the verdict is about.
MAIN_BINNING = "bins"

Number = TypeVar("Number", int, float)


class DataConfig(Section):
    """Where the spectra are. Entries: shard files, folders, globs or a ``shard_index.txt``; or stores, likewise.

    ``exclude`` names shards of ``train`` that are left out. Their rows are counted all the same, since noise is drawn
    by row: leaving a shard out changes no noise of the others.
    """

    train: tuple[str, ...] = Field(min_length=1)
    test: tuple[str, ...] = Field(min_length=1)
    exclude: tuple[str, ...] = ()
    stores: str = "stores"
    nonfinite: Literal["refuse", "drop"] = "refuse"
    allow_overlap: bool = False

    @field_validator("train", "test", "exclude", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class NoiseConfig(Section):
    """Noise added to the clean flux, in units of its 1σ error; ``test: stored`` prefers a pre-drawn array.

    ``marginal`` noise is the expectation over all draws, in closed form. Training on it has no seeds: one set of
    models for each level. ``both`` trains on either; the verdict is about drawn noise, and marginal noise is held
    against it.
    """

    mode: Literal["drawn", "marginal", "both"] = "drawn"
    levels: tuple[Annotated[float, Field(ge=0)], ...] = Field(default=(1.0,), min_length=1)
    test: Literal["stored", "drawn", "marginal"] = "stored"

    @field_validator("levels", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, int | float) else value

    @field_validator("levels")
    @classmethod
    def _distinct(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return _require_distinct(value, "noise levels")


class PerSpectrum(Section):
    """A penalty that grows with the training set: α = ``per_spectrum`` × n_train."""

    per_spectrum: float = Field(gt=0)


class AlphaSearch(Section):
    """A penalty chosen among several by cross-validation over the training folds, never on the test set.

    ``by: global`` takes the choice of the global model for all of them, ``per_expert`` lets every model choose. Where
    the global model chooses, the experts' own curves are shown beside its curve and cost nine tenths of the search:
    ``expert_curves: false`` leaves them out.
    """

    search: tuple[Annotated[float, Field(gt=0)], ...]
    by: Literal["global", "per_expert"] = "global"
    expert_curves: bool = True

    @field_validator("search")
    @classmethod
    def _several(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) < 2:
            raise ValueError(
                f"a search needs at least two penalties, found {list(value)}; for a fixed one write alpha: 1e5"
            )
        return tuple(sorted(_require_distinct(value, "penalties")))

    @model_validator(mode="after")
    def _choosers_have_curves(self) -> AlphaSearch:
        if self.by == "per_expert" and not self.expert_curves:
            raise ValueError(
                "expert_curves: false leaves out what by: per_expert chooses on; use by: global, or leave it out"
            )
        return self


def _alpha_kind(value: Any) -> str:
    if isinstance(value, dict):
        return "rule" if any(str(key).startswith("per") for key in value) else "choice"
    if isinstance(value, AlphaSearch):
        return "choice"
    return "rule" if isinstance(value, PerSpectrum) else "number"


#: A fixed penalty, or a rule for it, or several to choose from.
Alpha = Annotated[
    Annotated[float, Field(gt=0), Tag("number")]
    | Annotated[PerSpectrum, Tag("rule")]
    | Annotated[AlphaSearch, Tag("choice")],
    Discriminator(_alpha_kind),
]


class RidgeConfig(Section):
    """The ridge models. ``alpha`` penalises a SUM of squares over spectra; the intercept is free."""

    alpha: Alpha = 1e5
    standardize: Literal["global", "per_expert", "none"] = "global"
    train_on: Literal["all", "covered"] = "all"
    min_spectra: Annotated[int, Field(ge=2)] = 50


class DecisionConfig(Section):
    """Thresholds on ΔR²: at least ``continue`` → build the mixture; below ``stop`` → do not."""

    continue_: float = Field(default=0.05, alias="continue")
    stop: float = 0.02

    @model_validator(mode="after")
    def _ordered(self) -> DecisionConfig:
        if self.stop > self.continue_:
            raise ValueError(f"stop ({self.stop:g}) must not exceed continue ({self.continue_:g})")
        return self


class HypothesesConfig(Section):
    """What the report marks PASS or FAIL. ``lowest_r2_bins: null`` leaves the third one out."""

    r2_oracle: float = 0.55
    delta_r2: float = 0.05
    lowest_r2_bins: tuple[int, ...] | None = (0, 3, 6)


class BootstrapConfig(Section):
    """Paired bootstrap over test spectra, stratified by bin."""

    resamples: Annotated[int, Field(ge=100, le=100_000)] = 2000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: Annotated[int, Field(ge=0)] = 0


#: How many folds, or one for each shard.
Folds = Annotated[
    Annotated[int, Field(ge=1), Tag("number")] | Annotated[Literal["shards"], Tag("shards")],
    Discriminator(lambda value: "shards" if isinstance(value, str) else "number"),
]


class ComputeConfig(Section):
    """How the pass is cut. The first three are part of the plan: the same values give the same bits on any cluster.

    With ``folds: shards`` every shard is a fold, so that adding or removing one leaves all other folds as they are.
    """

    folds: Folds = 5
    partition_rows: Annotated[int, Field(ge=64)] = 262_144
    run_rows: Annotated[int, Field(ge=64)] = 1024
    #: Noise draws share a read of the spectra while a worker stays within this; it changes no bits.
    sharing_gib: Annotated[float, Field(gt=0)] = 3.0


class ExperimentConfig(Section):
    """One experiment, as its YAML file states it; see ``pipeline/configs/oracle_noise1.yaml``."""

    data: DataConfig
    target: str = "log_g"
    bins: dict[str, tuple[float, ...]] = Field(default_factory=lambda: dict(REFERENCE_EDGES), min_length=1)
    bin_names: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    #: Other ways to divide the spectra among experts, by name, held against ``bins``; from the same pass.
    binnings: dict[str, Annotated[dict[str, Cut], Field(min_length=1)]] = Field(default_factory=dict)
    #: Hold against them each column of ``bins`` alone, too.
    ablation: bool = True
    #: Search for the best rectangles of a finer grid; from the same pass.
    design: DesignConfig | None = None
    #: Route the test spectra without their labels, too, and say how much of the headroom is kept; no further pass.
    gate: GateConfig | None = None
    noise: NoiseConfig = NoiseConfig()
    ridge: RidgeConfig = RidgeConfig()
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field(default=(42, 123, 456, 789, 2024), min_length=1)
    #: Training sizes of the learning curve, each the nearest number of whole folds; after every fold by default.
    learning_curve: tuple[Annotated[int, Field(ge=2)], ...] | None = None
    decision: DecisionConfig = DecisionConfig()
    hypotheses: HypothesesConfig | None = None
    bootstrap: BootstrapConfig = BootstrapConfig()
    compute: ComputeConfig = ComputeConfig()
    precision: Literal["float32", "float64"] = "float32"
    #: Where ``headroom run`` computes: a packaged cluster profile or a file. It changes no result, so no key knows it.
    cluster: str | None = None

    @field_validator("seeds", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, int) else value

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return _require_distinct(value, "seeds")

    @field_validator("learning_curve")
    @classmethod
    def _growing(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if value is None else tuple(sorted(_require_distinct(value, "training sizes")))

    @field_validator("target")
    @classmethod
    def _known_label(cls, value: str) -> str:
        if value not in schema.LABELS:
            raise ValueError(
                f"must be one of {', '.join(schema.LABELS)}, found {value!r}{did_you_mean(value, schema.LABELS)}"
            )
        return value

    @field_validator("bins")
    @classmethod
    def _increasing(cls, value: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for column, edges in value.items():
            require_increasing(column, edges)
        return value

    @field_validator("binnings")
    @classmethod
    def _cut(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, cuts in value.items():
            if not name.strip() or name == MAIN_BINNING:
                raise ValueError(f"a binning needs a name of its own, found {name!r}; for example {{SNR: …}}")
            for column, cut in cuts.items():
                if not isinstance(cut, Quantiles):
                    require_increasing(column, cut)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentConfig:
        if self.target in self.bins:
            raise ValueError(
                f"bins may not use the target {self.target!r}: routing by the value to be predicted leaks it"
            )
        for name, cuts in self.binnings.items():
            if self.target in cuts:
                raise ValueError(
                    f"binnings.{name} may not use the target {self.target!r}: routing by the value to be predicted "
                    "leaks it"
                )
        if self.design is not None:
            if self.target in self.design.grid:
                raise ValueError(
                    f"design.grid may not use the target {self.target!r}: routing by the value to be predicted leaks it"
                )
            if self.compute.folds == 1:
                raise ValueError(
                    f"design needs at least two folds to choose on, found compute.folds: {self.compute.folds}; "
                    "use compute: {folds: 5}, or leave design out"
                )
        if self.gate is not None:
            self.gate.require_bins(tuple(self.bins), has_one_fold=self.compute.folds == 1)
            self.gate.require_binnings({name: tuple(cuts) for name, cuts in self.binnings.items()})
        for column, names in self.bin_names.items():
            expected = len(self.bins.get(column, ())) - 1
            if len(names) != expected:
                raise ValueError(
                    f"bin_names.{column} has {len(names)} names for {max(expected, 0)} bins; give one name per bin"
                )
        if isinstance(self.ridge.alpha, AlphaSearch) and self.compute.folds == 1:
            raise ValueError(
                f"ridge.alpha.search needs at least two folds to choose on, found compute.folds: {self.compute.folds}; "
                "use compute: {folds: 5}, or a fixed ridge.alpha"
            )
        n_bins = math.prod(len(edges) - 1 for edges in self.bins.values())
        stated = self.hypotheses.lowest_r2_bins if self.hypotheses else None
        if stated is not None and not (stated and set(stated) <= set(range(n_bins))):
            raise ValueError(
                f"hypotheses.lowest_r2_bins must name some of the bins 0 to {n_bins - 1}, found {list(stated)}; "
                "null leaves the hypothesis out"
            )
        return self

    @property
    def stated_hypotheses(self) -> HypothesesConfig:
        """The hypotheses; by default the third one is stated only for the reference grid it is about."""
        if self.hypotheses is not None:
            return self.hypotheses
        if {column: tuple(edges) for column, edges in self.bins.items()} == dict(REFERENCE_EDGES):
            return HypothesesConfig()
        return HypothesesConfig(lowest_r2_bins=None)

    @property
    def headline_level(self) -> float:
        """The noise level that conclusions are about: 1 where it is there, else the highest."""
        return 1.0 if 1.0 in self.noise.levels else max(self.noise.levels)

    @property
    def further_grids(self) -> dict[str, dict[str, Cut]]:
        """How columns are cut by every grid besides ``bins``, under the names of their settings."""
        grids = {f"binnings.{name}": cuts for name, cuts in self.binnings.items()}
        return grids | ({"design.grid": self.design.grid} if self.design else {})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with the spellings of the YAML file: all that results depend on, so not ``cluster``."""
        return self.model_dump(mode="json", by_alias=True, exclude={"cluster"})


def _require_distinct(values: tuple[Number, ...], what: str) -> tuple[Number, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"{what} must be distinct, found {list(values)}")
    return values


def content_hash(value: Any) -> str:
    """Return 16 hexadecimal digits that identify a JSON-able value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
