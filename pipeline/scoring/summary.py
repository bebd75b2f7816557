"""The typed summary of a run: every score in one place, and all tables, pages and figures are views of it.

``summary.json`` is this model as JSON, with ``null`` for NaN; :func:`pipeline.read_results` reads it back. Entries can
be read like attributes or like a dictionary's, ``summary["levels"][0]["scopes"]["covered"]["delta_r2"]["mean"]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema, field_validator

from pipeline.base import tabulate
from pipeline.bins import BinGrid
from pipeline.ridge import ExpertModels
from pipeline.schema import SUMMARY_VERSION
from pipeline.scoring.scores import SCOPES, HeadroomScore, Score, mean_over_seeds

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "DELTA_R2",
    "MERITS",
    "MISSING",
    "OVERALL_COLUMNS",
    "R2_GLOBAL",
    "R2_ORACLE",
    "SHOWN_MERITS",
    "Bin",
    "CurvePoint",
    "Decision",
    "Draw",
    "Estimate",
    "Hypothesis",
    "Level",
    "Merit",
    "Number",
    "Part",
    "Plain",
    "Scope",
    "Summary",
    "cut_name",
    "estimate_merits",
    "flatten",
    "mean_of",
    "merit_names",
    "summarise_bin",
    "summarise_curve",
    "summarise_draw",
    "summarise_parts",
    "summarise_scope",
    "tabulate_bins",
    "tabulate_overall",
]

#: What a table shows where there is no number.
MISSING = "–"


@dataclass(frozen=True)
class Merit:
    """One figure of merit.

    Attributes
    ----------
    name
        As files spell it: the column, and the field of the summary.
    symbol
        As people read it.
    sign
        ``+`` where a number always shows its sign, because the sign is the message.
    """

    name: str
    symbol: str
    sign: str = ""

    def format(self, value: float, digits: int = 4) -> str:
        """Return a number as text, and a dash for NaN."""
        return MISSING if math.isnan(value) else format(value, f"{self.sign}.{digits}f")


R2_ORACLE = Merit("r2_oracle", "R²_oracle")
R2_GLOBAL = Merit("r2_global", "R²_global")
DELTA_R2 = Merit("delta_r2", "ΔR²", sign="+")
#: In the order of every array of figures of merit.
MERITS = (R2_ORACLE, R2_GLOBAL, DELTA_R2)
#: In the order in which tables show them: the two models, then their difference.
SHOWN_MERITS = (R2_GLOBAL, R2_ORACLE, DELTA_R2)


def _read_number(value: object) -> object:
    return math.nan if value is None else value


def _write_number(value: float) -> float | None:
    return value if math.isfinite(value) else None


#: A number that may be undefined: NaN in Python, ``null`` in JSON.
Number = Annotated[
    float,
    BeforeValidator(_read_number),
    PlainSerializer(_write_number),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]}),
]


class Plain(BaseModel):
    """An entry of the summary: unchangeable, checked when it is read, and readable like a dictionary too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except AttributeError:
            raise KeyError(name) from None

    def get(self, name: str, default: Any = None) -> Any:
        """Return an entry by its name, as a dictionary does."""
        return getattr(self, name, default)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return self.model_dump(mode="json", by_alias=True)


class Estimate(Plain):
    """A figure of merit over seeds: mean, standard deviation (0 for one seed), confidence interval."""

    mean: Number
    std: Number
    low: Number
    high: Number

    @classmethod
    def of(cls, mean: float, std: float, low: float, high: float) -> Estimate:
        """Return the estimate of these numbers."""
        return cls(mean=float(mean), std=float(std), low=float(low), high=float(high))

    @classmethod
    def unknown(cls) -> Estimate:
        """Return the estimate of what has no value."""
        return cls.of(math.nan, math.nan, math.nan, math.nan)

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


class Scope(Plain):
    """What both models are worth on one set of test spectra.

    Mean absolute errors are in units of the label, and undefined where squared errors are expectations over the noise.
    """

    n_train: int
    n_test: int
    r2_oracle: Estimate
    r2_global: Estimate
    delta_r2: Estimate
    mae_oracle: Number
    mae_global: Number

    def merit(self, merit: Merit) -> Estimate:
        """Return one figure of merit."""
        found: Estimate = getattr(self, merit.name)
        return found


class Bin(Scope):
    """The same in one bin; ``alpha`` is the penalty of its expert, undefined where seeds chose different ones."""

    bin: int
    names: tuple[str, ...]
    alpha: Number

    @property
    def label(self) -> str:
        """For example ``3 · Mid, Poor``; long names are cut, because a figure has no room for them."""
        room = 20 // len(self.names) + 3
        return f"{self.bin} · {', '.join(cut_name(name, room) for name in self.names)}"


class Part(Plain):
    """The scopes ``covered`` and ``all``, and every bin."""

    scopes: dict[str, Scope]
    bins: tuple[Bin, ...]

    @property
    def covered(self) -> Scope:
        """The scope that conclusions are about."""
        return self.scopes["covered"]


class CurvePoint(Plain):
    """The scores of one noise draw with some of the training folds; ``alpha_global`` is the global model's penalty."""

    alpha_global: Number
    scopes: dict[str, Scope]


class Draw(Part):
    """The scores under one noise draw: of all training spectra, and of growing training sets.

    ``seed`` is −1 where no noise was drawn. The last point of the ``curve`` is that of all training spectra.
    """

    seed: int
    noise_level: float
    alpha_global: Number
    curve: tuple[CurvePoint, ...]


class Decision(Plain):
    """``verdict`` is one of :data:`pipeline.scoring.decision.VERDICTS`; ``sentence`` is what the report opens with."""

    verdict: str
    sentence: str


class Hypothesis(Plain):
    """One line of the hypotheses table; ``passed`` is None where the verdict is withheld."""

    name: str
    statement: str
    found: str
    passed: bool | None


class Level(Part):
    """The result at one noise level, over all seeds; ``curve`` holds covered spectra of growing training sets."""

    noise_level: float
    test_noise: str
    decision: Decision
    hypotheses: tuple[Hypothesis, ...]
    curve: tuple[Scope, ...]
    draws: tuple[Draw, ...]

    def __repr__(self) -> str:
        entries = ", ".join(name for name in type(self).model_fields if name != "noise_level")
        return f"Level(noise level {self.noise_level:g}, {self.decision.verdict}; it has {entries})"

    __str__ = __repr__


class Summary(Plain):
    """All scores of a run.

    ``answers`` holds what every question that was asked has found, by its name; a question reads its own.
    """

    version: int = Field(default=SUMMARY_VERSION, json_schema_extra={"const": SUMMARY_VERSION})
    target: str
    confidence: float
    headline_level: float
    levels: tuple[Level, ...]
    answers: dict[str, Any] = {}

    def __repr__(self) -> str:  # a notebook shows it; all entries would fill pages
        entries = ", ".join(name for name in type(self).model_fields if name != "version")
        levels = ", ".join(f"{level.noise_level:g}" for level in self.levels)
        return f"Summary({self.target}, noise level {levels}; it has headline, {entries}; to_dict() is all of it)"

    __str__ = __repr__

    @field_validator("version")
    @classmethod
    def _require_version(cls, value: int) -> int:
        if value != SUMMARY_VERSION:
            raise ValueError(f"version {SUMMARY_VERSION} is required, found {value}")
        return value

    @property
    def headline(self) -> Level:
        """The level that the conclusion is about."""
        return next((level for level in self.levels if level.noise_level == self.headline_level), self.levels[0])


def cut_name(text: str, length: int) -> str:
    """Return a user's name with at most ``length`` letters, safe for matplotlib."""
    short = text if len(text) <= length else f"{text[: length - 1]}…"
    # A pair of dollar signs would make matplotlib read a user's name as a formula.
    return short.replace("$", r"\$")


def flatten(entry: Plain, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return the numbers of an entry as columns of a table: an estimate as its value and the ends of its interval."""
    columns: dict[str, Any] = {}
    for name in type(entry).model_fields:
        value = getattr(entry, name)
        if name in without or isinstance(value, tuple | dict):
            continue
        if isinstance(value, Estimate):
            columns |= {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            columns[name] = value
    return columns


# --- From scores with their resamples to entries of the summary.


def estimate_merits(scores: Sequence[Score], confidence: float) -> dict[str, Estimate]:
    """Return the figures of merit over seeds by name."""
    mean, std, interval = mean_over_seeds(scores, confidence)
    return {merit.name: Estimate.of(mean[k], std[k], *interval[k]) for k, merit in enumerate(MERITS)}


def summarise_scope(scores: Sequence[Score], n_train: int, confidence: float) -> Scope:
    """Return the scores of one set of test spectra, over seeds."""
    return Scope(
        n_train=n_train,
        n_test=scores[0].n_test,
        **estimate_merits(scores, confidence),
        mae_oracle=mean_of([score.mae_oracle for score in scores]),
        mae_global=mean_of([score.mae_global for score in scores]),
    )


def summarise_bin(
    scores: Sequence[Score], number: int, models: Sequence[ExpertModels], grid: BinGrid, confidence: float
) -> Bin:
    """Return the scores in one bin, over seeds."""
    alphas = [float(one.expert_alphas[number]) for one in models]
    scope = summarise_scope(scores, int(models[0].expert_counts[number]), confidence)
    return Bin(
        **dict(scope),
        bin=number,
        names=grid.bin_names[number],
        # Seeds that have chosen different penalties have none in common.
        alpha=alphas[0] if len(set(alphas)) == 1 else math.nan,
    )


def summarise_parts(
    scores: Sequence[HeadroomScore], models: Sequence[ExpertModels], grid: BinGrid, confidence: float
) -> Part:
    """Return scopes and bins over seeds; scores and models are those of every seed."""
    return Part(
        scopes=_summarise_scopes(scores, models[0].global_count, confidence),
        bins=tuple(
            summarise_bin([score.bins[k] for score in scores], k, models, grid, confidence) for k in range(grid.n_bins)
        ),
    )


def _summarise_scopes(scores: Sequence[HeadroomScore], n_train: int, confidence: float) -> dict[str, Scope]:
    return {name: summarise_scope([score.scope(name) for score in scores], n_train, confidence) for name in SCOPES}


def summarise_draw(
    origin: tuple[int, float],
    scores: Sequence[HeadroomScore],
    models: Sequence[ExpertModels],
    grid: BinGrid,
    confidence: float,
) -> Draw:
    """Return the scores of one noise draw, given for growing training sets; ``origin`` is its seed and noise level."""
    whole = summarise_parts(scores[-1:], models[-1:], grid, confidence)
    curve = [
        CurvePoint(alpha_global=one.global_alpha, scopes=_summarise_scopes([score], one.global_count, confidence))
        for score, one in zip(scores, models, strict=True)
    ]
    return Draw(
        **dict(whole),
        seed=origin[0],
        noise_level=origin[1],
        alpha_global=models[-1].global_alpha,
        curve=tuple(curve),
    )


def summarise_curve(
    scores: Sequence[Sequence[HeadroomScore]], models: Sequence[ExpertModels], confidence: float
) -> tuple[Scope, ...]:
    """Return the scores of covered spectra of growing training sets, over seeds; ``scores`` are those of every seed."""
    return tuple(
        summarise_scope([score.covered for score in of_size], one.global_count, confidence)
        for of_size, one in zip(zip(*scores, strict=True), models, strict=True)
    )


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of numbers; NaN if any of them is."""
    return math.fsum(values) / len(values)


# --- Tables of a run as views of its summary: nothing is computed here.


def merit_names(*suffixes: str) -> tuple[str, ...]:
    """Return the columns of the figures of merit, each with every suffix."""
    return tuple(f"{merit.name}{suffix}" for merit in MERITS for suffix in suffixes)


OVERALL_COLUMNS = (
    *("seed", "noise_level", "target", "scope", "alpha_global", "n_train", "n_test"),
    *merit_names("", "_low", "_high"),
)
_ERRORS = ("mae_oracle", "mae_global")


def tabulate_overall(draws: Iterable[Draw], target: str, *, curve: bool = False) -> pd.DataFrame:
    """Return a row for each noise draw and scope; with ``curve`` also for every smaller training set."""
    rows: list[dict[str, Any]] = []
    for draw in draws:
        for point in draw.curve if curve else draw.curve[-1:]:
            for scope, score in point.scopes.items():
                origin = {"seed": draw.seed, "noise_level": draw.noise_level, "target": target, "scope": scope}
                rows.append({**origin, "alpha_global": point.alpha_global, **flatten(score, without=_ERRORS)})
    return tabulate(rows, columns=list(OVERALL_COLUMNS))


def tabulate_bins(draws: Iterable[Draw], target: str, columns: Sequence[str]) -> pd.DataFrame:
    """Return a row for each noise draw and bin; ``columns`` are those that define the bins."""
    rows: list[dict[str, Any]] = []
    for draw in draws:
        for one in draw.bins:
            names = {f"{column}_bin": name for column, name in zip(columns, one.names, strict=True)}
            origin = {"seed": draw.seed, "noise_level": draw.noise_level, "target": target, "bin": one.bin}
            own = flatten(one, without=("bin", "alpha"))
            rows.append({**origin, **names, "alpha": one.alpha, **own})
    return tabulate(rows)
