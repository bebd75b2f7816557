"""The experiment's configuration: one YAML file, validated into typed, immutable objects.

An unknown key is an error that names the nearest known one. :mod:`pipeline.config_files` reads the file.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from pipeline import schema
from pipeline.errors import did_you_mean

__all__ = [
    "AlphaSearch",
    "BootstrapConfig",
    "ComputeConfig",
    "DataConfig",
    "DecisionConfig",
    "ExperimentConfig",
    "HypothesesConfig",
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


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class DataConfig(_Section):
    """Where the spectra are. Entries: shard files, folders, globs or a ``shard_index.txt``; or stores, likewise."""

    train: tuple[str, ...] = Field(min_length=1)
    test: tuple[str, ...] = Field(min_length=1)
    stores: str = "stores"
    nonfinite: Literal["refuse", "drop"] = "refuse"
    allow_overlap: bool = False

    @field_validator("train", "test", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class NoiseConfig(_Section):
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


class PerSpectrum(_Section):
    """A penalty that grows with the training set: α = ``per_spectrum`` × n_train."""

    per_spectrum: float = Field(gt=0)


class AlphaSearch(_Section):
    """A penalty chosen among several by cross-validation over the training folds, never on the test set.

    ``by: global`` takes the choice of the global model for all of them, ``per_expert`` lets every model choose.
    """

    search: tuple[Annotated[float, Field(gt=0)], ...]
    by: Literal["global", "per_expert"] = "global"

    @field_validator("search")
    @classmethod
    def _several(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) < 2:
            raise ValueError(
                f"a search needs at least two penalties, found {list(value)}; for a fixed one write alpha: 1e5"
            )
        return tuple(sorted(_require_distinct(value, "penalties")))


def _alpha_kind(value: Any) -> str:
    if isinstance(value, dict):
        return "rule" if any(str(key).startswith("per") for key in value) else "grid"
    if isinstance(value, AlphaSearch):
        return "grid"
    return "rule" if isinstance(value, PerSpectrum) else "number"


#: A fixed penalty, or a rule for it, or several to choose from.
Alpha = Annotated[
    Annotated[float, Field(gt=0), Tag("number")]
    | Annotated[PerSpectrum, Tag("rule")]
    | Annotated[AlphaSearch, Tag("grid")],
    Discriminator(_alpha_kind),
]


class Quantiles(_Section):
    """Edges that divide the training spectra into equal parts."""

    quantiles: Annotated[int, Field(ge=2, le=100)]


#: How a column is cut: by stated edges, or into equal parts.
Cut = Annotated[
    Annotated[tuple[float, ...], Tag("edges")] | Annotated[Quantiles, Tag("parts")],
    Discriminator(lambda value: "parts" if isinstance(value, dict | Quantiles) else "edges"),
]


class RidgeConfig(_Section):
    """The ridge models. ``alpha`` penalises a SUM of squares over spectra; the intercept is free."""

    alpha: Alpha = 1e5
    standardize: Literal["global", "per_expert", "none"] = "global"
    train_on: Literal["all", "covered"] = "all"
    min_spectra: Annotated[int, Field(ge=2)] = 50


class DecisionConfig(_Section):
    """Thresholds on ΔR²: at least ``continue`` → build the mixture; below ``stop`` → do not."""

    continue_: float = Field(default=0.05, alias="continue")
    stop: float = 0.02

    @model_validator(mode="after")
    def _ordered(self) -> DecisionConfig:
        if self.stop > self.continue_:
            raise ValueError(f"stop ({self.stop:g}) must not exceed continue ({self.continue_:g})")
        return self


class HypothesesConfig(_Section):
    """What the report marks PASS or FAIL. ``lowest_r2_bins: null`` leaves the third one out."""

    r2_oracle: float = 0.55
    delta_r2: float = 0.05
    lowest_r2_bins: tuple[int, ...] | None = (0, 3, 6)


class BootstrapConfig(_Section):
    """Paired bootstrap over test spectra, stratified by bin."""

    resamples: Annotated[int, Field(ge=100, le=100_000)] = 2000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: Annotated[int, Field(ge=0)] = 0


class ComputeConfig(_Section):
    """How the pass is cut. The first three are part of the plan: the same values give the same bits on any cluster."""

    folds: Annotated[int, Field(ge=1)] = 5
    partition_rows: Annotated[int, Field(ge=64)] = 262_144
    run_rows: Annotated[int, Field(ge=64)] = 1024
    #: Noise draws share a read of the spectra while a worker stays within this; it changes no bits.
    sharing_gib: Annotated[float, Field(gt=0)] = 3.0


class ExperimentConfig(_Section):
    """One experiment, as its YAML file states it; see ``pipeline/configs/oracle_noise1.yaml``."""

    data: DataConfig
    target: str = "log_g"
    bins: dict[str, tuple[float, ...]] = Field(default_factory=lambda: dict(REFERENCE_EDGES), min_length=1)
    bin_names: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    #: Other ways to divide the spectra among experts, by name, held against ``bins``; from the same pass.
    binnings: dict[str, Annotated[dict[str, Cut], Field(min_length=1)]] = Field(default_factory=dict)
    #: Hold against them each column of ``bins`` alone, too.
    ablation: bool = True
    noise: NoiseConfig = NoiseConfig()
    ridge: RidgeConfig = RidgeConfig()
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field(default=(42, 123, 456, 789, 2024), min_length=1)
    decision: DecisionConfig = DecisionConfig()
    hypotheses: HypothesesConfig | None = None
    bootstrap: BootstrapConfig = BootstrapConfig()
    compute: ComputeConfig = ComputeConfig()
    precision: Literal["float32", "float64"] = "float32"

    @field_validator("seeds", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, int) else value

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return _require_distinct(value, "seeds")

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
            _require_increasing(column, edges)
        return value

    @field_validator("binnings")
    @classmethod
    def _cut(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, cuts in value.items():
            if not name.strip() or name == MAIN_BINNING:
                raise ValueError(f"a binning needs a name of its own, found {name!r}; for example {{SNR: …}}")
            for column, cut in cuts.items():
                if not isinstance(cut, Quantiles):
                    _require_increasing(column, cut)
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
        for column, names in self.bin_names.items():
            expected = len(self.bins.get(column, ())) - 1
            if len(names) != expected:
                raise ValueError(
                    f"bin_names.{column} has {len(names)} names for {max(expected, 0)} bins; give one name per bin"
                )
        if isinstance(self.ridge.alpha, AlphaSearch) and self.compute.folds < 2:
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

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with the spellings of the YAML file."""
        return self.model_dump(mode="json", by_alias=True)


def _require_increasing(column: str, edges: tuple[float, ...]) -> None:
    if len(edges) < 2 or any(b <= a for a, b in itertools.pairwise(edges)):
        raise ValueError(
            f"edges of {column!r} must be at least two increasing numbers, found {list(edges)}; "
            f"for example {{T_eff: [3750, 4500, 5250, 6000]}}"
        )


def _require_distinct(values: tuple[Number, ...], what: str) -> tuple[Number, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"{what} must be distinct, found {list(values)}")
    return values


def content_hash(value: Any) -> str:
    """Return 16 hexadecimal digits that identify a JSON-able value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
