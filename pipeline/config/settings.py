"""The experiment's configuration. One YAML file is validated into typed, immutable objects.

An unknown key is an error that names the nearest known key. :mod:`pipeline.config.files` reads the file.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    StrictBool,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipeline import schema
from pipeline.errors import did_you_mean

__all__ = [
    "DEFAULT_WINDOWS",
    "LARGEST_LEVEL",
    "LEAST_LEVEL",
    "QUALITY_COLUMN",
    "AlphaSearch",
    "BootstrapConfig",
    "CeilingConfig",
    "ComputeConfig",
    "Cut",
    "DataConfig",
    "DecisionConfig",
    "DesignConfig",
    "ExperimentConfig",
    "FeatureConfig",
    "ForecastConfig",
    "GateConfig",
    "HypothesesConfig",
    "LineWindow",
    "NoSwitch",
    "NoiseConfig",
    "PerSpectrum",
    "Quantiles",
    "RidgeConfig",
    "Section",
    "content_hash",
    "require_increasing",
]

# --- How columns are cut into bins, and the search for better bins.


class OneOrMore(BeforeValidator):
    """Marks a list that may be written as its only entry: ``test: spectra/test`` means ``test: [spectra/test]``."""

    def __init__(self) -> None:
        super().__init__(lambda value: [value] if isinstance(value, str | int | float) else value)

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        listed = handler(core)
        return {"anyOf": [listed, listed["items"]]}


class Asked(BeforeValidator):
    """Marks a switch of a question that has no settings: an empty mapping asks it, as it asks every other question."""

    def __init__(self) -> None:
        super().__init__(lambda value: True if value == {} else value)

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(core), {"type": "object", "maxProperties": 0}]}


class NoSwitch(ValueError):
    """Pydantic hears of true or false where a setting takes neither. The message then says what it takes."""


class Section(BaseModel):
    """A part of the configuration. It is immutable, its numbers are finite, and unknown settings are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        is_switch = bool in (annotation := cls.model_fields[str(info.field_name)].annotation, *get_args(annotation))
        if (isinstance(value, bool) and not is_switch) or _lists_booleans(value):
            raise NoSwitch(f"true or false is no value of this setting, found {str(value).lower()}")
        return value


def _lists_booleans(value: Any) -> bool:
    """Tell whether true or false stands in a list, where no setting takes them."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(_lists_booleans(one) or (isinstance(one, bool) and not isinstance(value, dict)) for one in values)


class Quantiles(Section):
    """Edges that divide the training spectra into equal parts."""

    quantiles: Annotated[int, Field(ge=2, le=100, description="The number of parts, with as many spectra each.")]


#: How a column is cut: at stated edges, or into equal parts.
Cut = Annotated[
    Annotated[tuple[float, ...], Tag("edges")] | Annotated[Quantiles, Tag("parts")],
    Discriminator(lambda value: "parts" if isinstance(value, dict | Quantiles) else "edges"),
]


class DesignConfig(Section):
    """A search for the rectangles of a fine grid that give the most headroom, for every number of experts.

    ``grid`` cuts two columns. ``experts`` is the largest number of experts to try. The search recommends the smallest
    number whose cross-validated ΔR² is at least ``reach`` times the largest one.
    """

    grid: dict[str, Cut]
    experts: Annotated[int, Field(ge=2, le=100)] = 12
    reach: Annotated[float, Field(gt=0, le=1)] = 0.95

    @field_validator("grid")
    @classmethod
    def _two_columns(cls, value: dict[str, Any]) -> dict[str, Any]:
        if len(value) != 2:
            raise ValueError(
                f"two columns are required, found {len(value)} ({', '.join(value) or 'none'}); for example "
                "{T_eff: {quantiles: 6}, M_H: [-2.5, -2, -1.5, -1, -0.5, 0, 0.5]}"
            )
        for column, cut in value.items():
            if not isinstance(cut, Quantiles):
                require_increasing(column, cut)
        return value


def require_increasing(column: str, edges: tuple[float, ...]) -> None:
    """Refuse fewer than two edges, and edges that do not increase. Pydantic's validators call this."""
    if len(edges) < 2 or any(b <= a for a, b in itertools.pairwise(edges)):
        raise ValueError(
            f"edges of {column!r} must be at least two increasing numbers, found {list(edges)}; "
            f"for example {{T_eff: [3750, 4500, 5250, 6000]}}"
        )


# --- The settings of a gate.


class LineWindow(Section):
    """A window around a spectral line, a feature of a gate.

    The flux at ``centre`` ± ``half_width`` is compared with the continuum bands (all in Å). The equivalent widths of
    windows with the same ``total`` are also summed, into a feature of that name.
    """

    name: Annotated[str, Field(min_length=1, description="The name of the feature; no other window has it.")]
    centre: Annotated[float, Field(gt=0, description="The wavelength of the line, in Å.")]
    half_width: Annotated[float, Field(gt=0, description="How far the window reaches to each side, in Å.")]
    continuum: tuple[tuple[float, float], ...] = Field(
        min_length=1, description="Bands without lines, as pairs of the lower and the upper wavelength in Å."
    )
    total: str | None = Field(
        default=None, description="The feature that sums the equivalent widths of all windows with this total."
    )

    @field_validator("continuum")
    @classmethod
    def _increasing(cls, value: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        for low, high in value:
            if not low < high:
                raise ValueError(f"a continuum band must be [lower, upper] in Å, found [{low:g}, {high:g}]")
        return value


def _windows(
    total: str, centres: dict[str, float], half_width: float, *continuum: tuple[float, float]
) -> tuple[LineWindow, ...]:
    return tuple(
        LineWindow(name=name, centre=centre, half_width=half_width, continuum=continuum, total=total)
        for name, centre in centres.items()
    )


#: The only column that a gate may infer from the errors of a spectrum.
QUALITY_COLUMN = "snr"
#: The eight windows of the users' gate; the lines are Ca II 8498, 8542, 8662, Na I 8183, 8195 and Mg I 8807. The
#: continuum bands of Ca II are those of Cenarro et al. (2001, MNRAS 326, 959); the others avoid the strong lines.
DEFAULT_WINDOWS: tuple[LineWindow, ...] = (
    *_windows("Ca_II", {"Ca_II_8498": 8498.02, "Ca_II_8542": 8542.09}, 12.0, (8474.0, 8484.0), (8563.0, 8577.0)),
    *_windows("Ca_II", {"Ca_II_8662": 8662.14}, 12.0, (8619.0, 8642.0), (8700.0, 8725.0)),
    *_windows("Na_I", {"Na_I_8183": 8183.26, "Na_I_8195": 8194.82}, 5.0, (8140.0, 8160.0), (8215.0, 8235.0)),
    *_windows(
        "Mg_I",
        {"Mg_I_8806": 8806.0, "Mg_I_8807": 8807.0, "Mg_I_8808": 8808.0},
        3.0,
        (8776.0, 8792.0),
        (8828.0, 8845.0),
    ),
)


class FeatureConfig(Section):
    """The features of a logistic gate: principal components, and windows around spectral lines.

    The squares and products of the first ``products`` components are further terms of the regression.
    """

    components: Annotated[int, Field(ge=0, le=1000, description="The number of principal components.")] = 10
    products: Annotated[
        int, Field(ge=0, le=30, description="Squares and products of so many first components are terms, too.")
    ] = 3
    windows: tuple[LineWindow, ...] = Field(
        default=DEFAULT_WINDOWS, description="Windows around spectral lines. By default there are eight."
    )

    @model_validator(mode="after")
    def _something(self) -> FeatureConfig:
        names = [window.name for window in self.windows]
        if len(set(names)) != len(names):
            raise ValueError(f"windows need names of their own, found {', '.join(names)}")
        if not self.components and not names:
            raise ValueError("a logistic gate needs principal components or windows; use components: 10")
        return self


class GateConfig(Section):
    """A gate that routes spectra without knowing their labels.

    The kind ``ridge`` uses the global model's predictions of the bin columns. The kind ``logistic`` is a multinomial
    logistic regression on ``features`` of the spectra. It reads ``spectra`` of the training spectra once more, spread
    evenly over all, and needs ``pip install 'headroom[ml]'``.

    The fall-back routing takes the global model where no bin is more probable than ``unsure``. ``keep`` is the share of
    the headroom that routing must keep for a PASS. ``blend`` learns weights of the experts from held-out predictions of
    ``spectra`` training spectra.

    ``binnings`` names binnings by ``snr`` alone. Each gets a gate of its own, a logistic regression on summary
    statistics of the errors. For each of them, the experts of ``bins`` × that binning are trained and routed, too.
    """

    kind: Literal["ridge", "logistic"] = "ridge"
    unsure: Annotated[float, Field(ge=0, lt=1)] = 0.2
    keep: Annotated[float, Field(gt=0)] = 0.7
    features: FeatureConfig = FeatureConfig()
    #: Training spectra that are read once more for the gate. More are slower and hardly better.
    spectra: Annotated[int, Field(ge=100)] = 50_000
    blend: StrictBool = False
    binnings: Annotated[tuple[str, ...], OneOrMore()] = ()

    def require_binnings(self, columns: dict[str, tuple[str, ...]]) -> None:
        """Refuse binnings that do not exist or are not by ``snr`` alone. Pydantic's validators call this."""
        for name in self.binnings:
            if columns.get(name) != (QUALITY_COLUMN,):
                found = f"one by {', '.join(columns[name])}" if name in columns else "no such binning"
                raise ValueError(
                    f"gate.binnings: {name!r} must name a binning by {QUALITY_COLUMN} alone, found {found}; the errors "
                    f"of a spectrum may tell its {QUALITY_COLUMN}, nothing else; for example "
                    f"binnings: {{SNR: {{{QUALITY_COLUMN}: {{quantiles: 4}}}}}}"
                )

    def require_bins(self, columns: tuple[str, ...]) -> None:
        """Refuse bins that this gate cannot use. Pydantic's validators call this."""
        for column in columns:
            if self.kind == "ridge" and column not in schema.LABELS and (meant := did_you_mean(column, schema.LABELS)):
                raise ValueError(f"bins: {column!r} is none of the labels {', '.join(schema.LABELS)}{meant}")
        if self.kind == "ridge" and (len(columns) > 2 or not set(columns) <= set(schema.LABELS)):
            raise ValueError(
                f"gate.kind: {self.kind} routes by one or two of the labels {', '.join(schema.LABELS)}, found bins "
                f"over {', '.join(columns)}; leave gate out, use kind: logistic, or choose such bins"
            )


class CeilingConfig(Section):
    """The best R² that any model could reach, from the known noise and the training spectra as a library.

    ``library`` is how many training stars the test spectra are held against: a number, ``all``, or ``auto``. The last
    takes as many as cost no more than the pass, at least 20,000. ``test`` is how many test spectra are, evenly spread.
    """

    library: Annotated[
        Annotated[int, Field(ge=100), Tag("number")] | Annotated[Literal["auto", "all"], Tag("word")],
        Discriminator(lambda value: "word" if isinstance(value, str) else "number"),
    ] = "auto"
    test: Annotated[int, Field(ge=100)] = 4000


REFERENCE_EDGES: Mapping[str, tuple[float, ...]] = {
    "T_eff": (3750.0, 4500.0, 5250.0, 6000.0),
    "M_H": (-2.0, -1.0, 0.0, 0.5),
}

#: The name of ``bins`` among all binnings. The verdict is about this one.
MAIN_BINNING = "bins"

Value = TypeVar("Value", int, float, str)


class DataConfig(Section):
    """Where the spectra are.

    The entries of ``train`` and ``test`` are shard files, folders, globs or a ``shard_index.txt``; or they are stores,
    their folders and globs. ``exclude`` names shards of ``train`` that are left out. Their rows still count. Noise is
    drawn by row, so leaving a shard out does not change the noise of the others. ``spectra`` takes at most so many
    training spectra, spread evenly over all shards, and always the same ones.
    """

    train: Annotated[tuple[str, ...], Field(min_length=1), OneOrMore()]
    test: Annotated[tuple[str, ...], Field(min_length=1), OneOrMore()]
    exclude: Annotated[tuple[str, ...], OneOrMore()] = ()
    spectra: Annotated[int, Field(ge=1)] | None = None
    stores: str = "stores"
    nonfinite: Literal["refuse", "drop"] = "refuse"
    allow_overlap: StrictBool = False

    @field_validator("spectra", mode="before")
    @classmethod
    def _counted(cls, value: Any) -> Any:
        return _whole(value)

    @field_validator("train", "test", "stores")
    @classmethod
    def _nameable(cls, value: Any) -> Any:
        for path in (value,) if isinstance(value, str) else value:
            if "\0" in path:
                raise ValueError(f"no file can have the character NUL in its name, found {path!r}; name the file anew")
            if any("\ud800" <= letter <= "\udfff" for letter in path):  # as Python stands for bytes that are no UTF-8
                raise ValueError(f"the name holds bytes that are no UTF-8, found {path!r}; rename the file")
        return value

    @property
    def sources(self) -> dict[str, tuple[str, ...]]:
        """Where spectra lie, or will, by the setting that says so."""
        return {"data.stores": (self.stores,), "data.train": self.train, "data.test": self.test}


#: Noise levels, in units of the errors, beyond which arithmetic would overflow or vanish.
LEAST_LEVEL, LARGEST_LEVEL = 1e-6, 1e6


class NoiseConfig(Section):
    """The noise that is added to the clean flux, in units of its 1σ error.

    ``drawn`` noise is random. ``marginal`` noise is the exact expectation over all draws. It needs no seeds, so there
    is one set of models for each level. ``both`` and ``checked`` train on each of them. With ``both`` the verdict is
    about drawn noise, and marginal noise is compared with it; with ``checked`` it is the other way round. ``test:
    stored`` uses the noise of the test file if the file has it.
    """

    mode: Literal["drawn", "marginal", "both", "checked"] = "drawn"
    levels: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1), OneOrMore()] = (1.0,)
    test: Literal["stored", "drawn", "marginal"] = "stored"

    @field_validator("levels")
    @classmethod
    def _distinct(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if beyond := [level for level in value if level and not LEAST_LEVEL <= level <= LARGEST_LEVEL]:
            raise ValueError(
                f"noise levels are multiples of each pixel's error: 0, or from {LEAST_LEVEL:g} to {LARGEST_LEVEL:g}, "
                f"found {beyond[0]:g}"
            )
        return _require_distinct(value, "noise levels")


class PerSpectrum(Section):
    """A penalty that grows with the training set: α = ``per_spectrum`` × n_train."""

    per_spectrum: float = Field(gt=0, description="The penalty for each training spectrum, such as 0.1.")


class AlphaSearch(Section):
    """A penalty chosen among several by cross-validation over the training folds, never on the test set.

    With ``by: global`` all models take the global model's choice. With ``by: per_expert`` every model chooses its own.
    If the global model chooses, the experts' own curves are only shown beside its curve. They cost nine tenths of the
    search, and ``expert_curves: false`` leaves them out.
    """

    search: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        description="The penalties to choose from, at least two. They belong to a sum of squares over spectra."
    )
    by: Literal["global", "per_expert"] = Field(
        default="global", description="Whether the global model chooses for all models, or every model for itself."
    )
    expert_curves: StrictBool = Field(
        default=True, description="Whether the curves of the experts are computed where the global model chooses."
    )

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


#: A fixed penalty, a rule that computes it, or several penalties to choose from.
Alpha = Annotated[
    Annotated[float, Field(gt=0), Tag("number")]
    | Annotated[PerSpectrum, Tag("rule")]
    | Annotated[AlphaSearch, Tag("choice")],
    Discriminator(_alpha_kind),
]


class RidgeConfig(Section):
    """The ridge models. ``alpha`` belongs to a SUM of squares over spectra, and the intercept is not penalised."""

    alpha: Alpha = 1e5
    standardize: Literal["global", "per_expert", "none"] = "global"
    train_on: Literal["all", "covered"] = "all"
    min_spectra: Annotated[int, Field(ge=2)] = 50


def _whole(value: Any) -> Any:
    """Return a whole number that was written as ``1e6``, which YAML takes for a float or for a word."""
    try:
        return int(float(value)) if isinstance(value, str | float) and float(value).is_integer() else value
    except ValueError:
        return value


class DecisionConfig(Section):
    """Thresholds on ΔR².

    The verdict is *build experts* if the lower end of ΔR²'s interval is at least ``continue``. It is *not worth it* if
    the upper end is below ``stop``. Otherwise it is *undecided*. Where the ceiling is measured, a nonlinear model is
    *worth trying* if it can gain at least ``nonlinear`` of R² over the experts. ``at`` is a number of training spectra
    that is planned: a forecast then says what the verdict would be there.
    """

    continue_: float = Field(default=0.05, alias="continue")
    stop: float = 0.02
    nonlinear: Annotated[float, Field(gt=0)] = 0.05
    at: Annotated[int, Field(ge=100, le=10**12)] | None = None

    @field_validator("at", mode="before")
    @classmethod
    def _counted(cls, value: Any) -> Any:
        return _whole(value)

    @model_validator(mode="after")
    def _ordered(self) -> DecisionConfig:
        if self.stop > self.continue_:
            raise ValueError(f"stop ({self.stop:g}) must not exceed continue ({self.continue_:g})")
        return self


class ForecastConfig(Section):
    """A forecast of what runs on drawn noise would say, with other numbers of training spectra.

    It is made for a fixed range of numbers and for ``sizes``. It needs factored moments of marginal noise.
    """

    sizes: Annotated[tuple[Annotated[int, Field(ge=100, le=10**12)], ...], OneOrMore()] = ()

    @field_validator("sizes", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [_whole(one) for one in (value if isinstance(value, list | tuple) else [value])]

    @field_validator("sizes")
    @classmethod
    def _growing(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(_require_distinct(value, "forecast sizes")))


class HypothesesConfig(Section):
    """The hypotheses that the report marks PASS or FAIL. ``lowest_r2_bins: null`` leaves the third one out."""

    r2_oracle: float = 0.55
    delta_r2: float = 0.05
    lowest_r2_bins: tuple[int, ...] | None = (0, 3, 6)


class BootstrapConfig(Section):
    """The confidence intervals: a paired bootstrap over test spectra, stratified by bin."""

    resamples: Annotated[int, Field(ge=100, le=100_000)] = 2000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: Annotated[int, Field(ge=0)] = 0


#: A number of folds, or one fold for each shard.
Folds = Annotated[
    Annotated[int, Field(ge=1), Tag("number")] | Annotated[Literal["shards"], Tag("word")],
    Discriminator(lambda value: "word" if isinstance(value, str) else "number"),
]


class ComputeConfig(Section):
    """How the pass over the spectra is divided into pieces of work.

    ``folds``, ``partition_rows`` and ``run_rows`` decide the bits of the results, which are the same on any cluster.
    With ``folds: shards`` every shard is a fold, so adding or removing a shard does not change other folds.
    """

    folds: Folds = 5
    partition_rows: Annotated[int, Field(ge=64)] = 262_144
    run_rows: Annotated[int, Field(ge=64)] = 1024
    #: Noise draws share one reading of the spectra while a worker needs at most this memory. It changes no bits.
    sharing_gib: Annotated[float, Field(gt=0)] = 3.0
    #: How moments are kept: ``factored`` ones, for marginal noise, are small and quick; ``auto`` takes them where they
    #: lose at most ``rank_tolerance`` of R².
    moments: Literal["auto", "dense", "factored"] = "auto"
    rank_tolerance: Annotated[float, Field(gt=0, lt=0.1)] = 1e-4


class ExperimentConfig(Section):
    """One experiment, as its YAML file states it. ``pipeline/configs/oracle_noise1.yaml`` is an example."""

    data: DataConfig
    target: Literal["log_g", "T_eff", "M_H"] = "log_g"
    bins: dict[str, tuple[float, ...]] = Field(default_factory=lambda: dict(REFERENCE_EDGES), min_length=1)
    bin_names: dict[str, Annotated[tuple[str, ...], OneOrMore()]] = Field(default_factory=dict)
    #: Other ways to divide the spectra among experts, by name. The pass is the same; ``bins`` is compared with them.
    binnings: dict[str, Annotated[dict[str, Cut], Field(min_length=1)]] = Field(default_factory=dict)
    #: Whether each column of ``bins`` by itself is compared with ``bins``, too.
    ablation: Annotated[StrictBool, Asked()] = True
    #: The search for the best rectangles of a finer grid, from the same pass.
    design: DesignConfig | None = None
    #: The gate, which routes the test spectra without their labels; the report says what it keeps of the headroom.
    gate: GateConfig | None = None
    #: The ceiling: what no model can beat, from the same spectra.
    ceiling: CeilingConfig | None = None
    #: What runs on drawn noise of other sizes would say, from factored moments of marginal noise.
    forecast: ForecastConfig | None = None
    noise: NoiseConfig = NoiseConfig()
    ridge: RidgeConfig = RidgeConfig()
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1), OneOrMore()] = (
        42,
        123,
        456,
        789,
        2024,
    )
    #: Training sizes of the learning curve, rounded to whole folds. By default there is one size after every fold.
    learning_curve: Annotated[tuple[Annotated[int, Field(ge=2)], ...], OneOrMore()] | None = None
    decision: DecisionConfig = DecisionConfig()
    hypotheses: HypothesesConfig | None = None
    bootstrap: BootstrapConfig = BootstrapConfig()
    compute: ComputeConfig = ComputeConfig()
    precision: Literal["float32", "float64"] = "float32"
    #: Where ``headroom run`` computes: a packaged cluster profile or a file. It changes no result and no key.
    cluster: str | None = None

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return _require_distinct(value, "seeds")

    @field_validator("learning_curve")
    @classmethod
    def _growing(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if value is None else tuple(sorted(_require_distinct(value, "training sizes")))

    @field_validator("target", mode="before")
    @classmethod
    def _known_label(cls, value: Any) -> Any:
        if value not in schema.LABELS:
            raise ValueError(
                f"must be one of {', '.join(schema.LABELS)}, found {value!r}{did_you_mean(str(value), schema.LABELS)}"
            )
        return value

    @field_validator("bins")
    @classmethod
    def _increasing(cls, value: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for column, edges in value.items():
            require_increasing(column, edges)
        return value

    @field_validator("bin_names")
    @classmethod
    def _plain_names(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for column, names in value.items():
            for name in names:
                _require_no_formula(f"bin_names.{column}", name)
                if not name.strip():
                    raise ValueError(f"every bin of {column} needs a name, found {list(names)}")
            _require_distinct(names, f"the names of {column}")
        return value

    @field_validator("binnings")
    @classmethod
    def _cut(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, cuts in value.items():
            if not name.strip() or name == MAIN_BINNING:
                raise ValueError(f"a binning needs a name of its own, found {name!r}; for example {{SNR: …}}")
            _require_no_formula("binnings", name)
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
        if self.design is not None and self.target in self.design.grid:
            raise ValueError(
                f"design.grid may not use the target {self.target!r}: routing by the value to be predicted leaks it"
            )
        if self.gate is not None:
            self.gate.require_bins(tuple(self.bins))
            self.gate.require_binnings({name: tuple(cuts) for name, cuts in self.binnings.items()})
        for column, names in self.bin_names.items():
            expected = len(self.bins.get(column, ())) - 1
            if len(names) != expected:
                raise ValueError(
                    f"bin_names.{column} has {len(names)} names for {max(expected, 0)} bins; give one name per bin"
                )
        if self.forecast is not None and (self.noise.mode == "drawn" or self.compute.moments == "dense"):
            raise ValueError(
                "forecast needs factored moments of noise that is integrated out, found "
                f"noise.mode: {self.noise.mode} with compute.moments: {self.compute.moments}; use noise.mode: "
                "marginal, both or checked with compute.moments: auto, or leave forecast out"
            )
        if self.decision.at is not None and self.forecast is None:
            raise ValueError("decision.at needs a forecast; add the section `forecast: {}`, or leave decision.at out")
        if self.compute.folds == 1 and (lack := self.describe_lack_of_folds(1)):
            raise ValueError(lack)
        n_bins = math.prod(len(edges) - 1 for edges in self.bins.values())
        stated = self.stated_hypotheses.lowest_r2_bins
        if stated is not None and not (stated and set(stated) <= set(range(n_bins))):
            raise ValueError(
                f"hypotheses.lowest_r2_bins must name some of the bins 0 to {n_bins - 1}, found {list(stated)}; "
                "null leaves the hypothesis out"
            )
        return self

    def describe_lack_of_folds(self, found: int) -> str:
        """Return what needs more folds than were found and what to do; nothing if they suffice.

        With ``compute.folds: shards`` the spectra decide their number, so that settings alone cannot be checked for it.
        """
        needs = {
            "gate": (self.gate is not None, "leave gate out"),
            "design": (self.design is not None, "leave design out"),
            "ridge.alpha.search": (isinstance(self.ridge.alpha, AlphaSearch), "give a fixed ridge.alpha"),
        }
        shards = "keep at least two shards, " if self.compute.folds == "shards" else ""
        for name, (is_asked, otherwise) in needs.items():
            if is_asked and found < 2:
                return (
                    f"{name} needs at least two folds, because it learns from folds that were held out, found {found} "
                    f"(compute.folds: {self.compute.folds}); {shards}use compute: {{folds: 5}}, or {otherwise}"
                )
        return ""

    @property
    def stated_hypotheses(self) -> HypothesesConfig:
        """The hypotheses. By default the third one is stated only for the reference bins, which it is about."""
        stated = self.hypotheses or HypothesesConfig()
        # The order of the columns numbers the bins.
        is_reference = [(name, tuple(edges)) for name, edges in self.bins.items()] == list(REFERENCE_EDGES.items())
        if is_reference or "lowest_r2_bins" in stated.model_fields_set:
            return stated
        return stated.model_copy(update={"lowest_r2_bins": None})

    @property
    def headline_level(self) -> float:
        """The noise level that conclusions are about: 1 if it is among the levels, else the highest."""
        return 1.0 if 1.0 in self.noise.levels else max(self.noise.levels)

    @property
    def further_grids(self) -> dict[str, dict[str, Cut]]:
        """How every grid besides ``bins`` cuts its columns, under the names of their settings."""
        grids = {f"binnings.{name}": cuts for name, cuts in self.binnings.items()}
        return grids | ({"design.grid": self.design.grid} if self.design else {})

    def __repr__(self) -> str:  # a notebook shows it; all settings would fill pages
        asked = [name for name in ("design", "gate", "ceiling", "forecast") if getattr(self, name) is not None]
        n_bins = math.prod(len(edges) - 1 for edges in self.bins.values())
        levels = ", ".join(f"{level:g}" for level in self.noise.levels)
        return (
            f"ExperimentConfig({self.target}, {n_bins} bins by {' and '.join(self.bins)}, {self.noise.mode} noise of "
            f"level {levels}{'; asks ' if asked else ''}{', '.join(asked)}; to_dict() is all of it)"
        )

    __str__ = __repr__

    def to_dict(self) -> dict[str, Any]:
        """Return all that results depend on (so not ``cluster``) as plain values, spelled as in the YAML file."""
        content = self.model_dump(mode="json", by_alias=True, exclude={"cluster"})
        if self.hypotheses is not None and "lowest_r2_bins" not in self.hypotheses.model_fields_set:
            del content["hypotheses"]["lowest_r2_bins"]  # stated, it would be about other bins, too
        return content


def _require_no_formula(setting: str, name: str) -> None:
    """Refuse a name that a spreadsheet, which opens our tables, would run as a formula."""
    if name.startswith(("=", "+", "-", "@", "\t", "\r")):
        raise ValueError(
            f"{setting}: a name may not begin with {name[0]!r}, because spreadsheets take it for a formula, found "
            f"{name!r}; begin it with a letter or a digit"
        )


def _require_distinct(values: tuple[Value, ...], what: str) -> tuple[Value, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"{what} must be distinct, found {list(values)}")
    return values


def content_hash(value: Any) -> str:
    """Return 16 hexadecimal digits that identify a JSON-able value. The order of its keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
