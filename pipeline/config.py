"""The experiment's configuration: one YAML file, validated into typed, immutable objects.

An unknown key is an error that names the nearest known one; paths are relative to the file and may
hold ``${VARIABLES}`` of the environment.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline import schema
from pipeline.errors import ConfigError, did_you_mean

__all__ = [
    "BootstrapConfig",
    "ComputeConfig",
    "DataConfig",
    "DecisionConfig",
    "ExperimentConfig",
    "HypothesesConfig",
    "NoiseConfig",
    "PerSpectrum",
    "RidgeConfig",
    "content_hash",
    "load_config",
    "packaged_configs",
]

REFERENCE_EDGES: Mapping[str, tuple[float, ...]] = {
    "T_eff": (3750.0, 4500.0, 5250.0, 6000.0),
    "M_H": (-2.0, -1.0, 0.0, 0.5),
}

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
    """Noise added to the clean flux, in units of its 1σ error; ``test: stored`` prefers a pre-drawn array."""

    levels: tuple[Annotated[float, Field(ge=0)], ...] = Field(default=(1.0,), min_length=1)
    test: Literal["stored", "drawn"] = "stored"

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


def _alpha_kind(value: Any) -> str:
    return "rule" if isinstance(value, dict | PerSpectrum) else "number"


#: A fixed penalty, or a rule for it.
Alpha = Annotated[
    Annotated[float, Field(gt=0), Tag("number")] | Annotated[PerSpectrum, Tag("rule")],
    Discriminator(_alpha_kind),
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
            if len(edges) < 2 or any(b <= a for a, b in itertools.pairwise(edges)):
                raise ValueError(
                    f"edges of {column!r} must be at least two increasing numbers, found {list(edges)}; "
                    f"for example {{T_eff: [3750, 4500, 5250, 6000]}}"
                )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentConfig:
        if self.target in self.bins:
            raise ValueError(
                f"bins may not use the target {self.target!r}: routing by the value to be predicted leaks it"
            )
        for column, names in self.bin_names.items():
            expected = len(self.bins.get(column, ())) - 1
            if len(names) != expected:
                raise ValueError(
                    f"bin_names.{column} has {len(names)} names for {max(expected, 0)} bins; give one name per bin"
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


def _require_distinct(values: tuple[Number, ...], what: str) -> tuple[Number, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"{what} must be distinct, found {list(values)}")
    return values


def content_hash(value: Any) -> str:
    """Return 16 hexadecimal digits that identify a JSON-able value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def packaged_configs() -> dict[str, Path]:
    """Return the configurations that come with the package, by name."""
    folder = Path(str(resources.files("pipeline"))) / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_config(source: str | Path) -> ExperimentConfig:
    """Read and validate a configuration.

    Parameters
    ----------
    source
        A YAML file, or the name of a packaged configuration (``demo``, ``oracle_noise1``).

    Returns
    -------
    ExperimentConfig
        With absolute data paths.

    Raises
    ------
    ConfigError
        If the file is missing or not YAML, a ``${VARIABLE}`` is not set, or a setting is unknown or wrong.
    """
    path = Path(source)
    if not path.exists():
        packaged = packaged_configs()
        if str(source) not in packaged:
            raise ConfigError(
                f"configuration {str(source)!r}: no such file, and no packaged configuration of that name "
                f"({', '.join(packaged)}){did_you_mean(str(source), packaged)}"
            )
        path = packaged[str(source)]
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path}: cannot be read ({error}); give a YAML text file") from None
    except RecursionError:
        raise ConfigError(f"configuration {path}: nested too deeply for a configuration") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"configuration {path}: a mapping of settings is required, such as 'target: log_g'")
    # A packaged file has no neighbours: its relative paths are the caller's.
    base = Path.cwd() if path in packaged_configs().values() else path.resolve().parent
    try:
        config = ExperimentConfig.model_validate(_expand_data_paths(content, base, path))
    except ValidationError as error:
        raise ConfigError(f"configuration {path}: {_describe(error)}") from None
    return config


def _expand_data_paths(content: dict[str, Any], base: Path, path: Path) -> dict[str, Any]:
    section = content.get("data")
    if not isinstance(section, dict):
        return content

    def expand(text: Any) -> Any:
        if not isinstance(text, str):
            return text
        expanded = os.path.expanduser(re.sub(r"\$\{(\w+)\}|\$(\w+)", substitute, text))
        return expanded if os.path.isabs(expanded) else str(base / expanded)

    def substitute(match: re.Match[str]) -> str:
        name = match.group(1) or match.group(2)
        if name not in os.environ:
            raise ConfigError(
                f"configuration {path}: the environment variable {name} is not set; "
                f"set it first, for example: export {name}=/path/to/spectra"
            )
        return os.environ[name]

    expanded = dict(section)
    expanded.setdefault("stores", "stores")
    for key in ("train", "test", "stores"):
        value = expanded.get(key)
        expanded[key] = [expand(entry) for entry in value] if isinstance(value, list) else expand(value)
        if value is None:
            del expanded[key]
    return {**content, "data": expanded}


def _describe(error: ValidationError) -> str:
    """Turn pydantic's findings into one line per setting, in the words of the YAML file."""
    lines = []
    reported: list[list[str]] = []
    for finding in error.errors():
        # The kinds of `alpha` are an implementation detail, no part of the setting's name.
        location = [str(part) for part in finding["loc"] if part not in ("number", "rule")]
        if any(earlier[: len(location)] == location for earlier in reported):
            continue  # a consequence of what is already said about a part of this setting
        reported.append(location)
        kind = finding["type"]
        if kind == "extra_forbidden":
            known = _known_keys(location[:-1])
            line = (
                f"unknown setting {'.'.join(location)!r}{did_you_mean(location[-1], known)}; "
                f"known here: {', '.join(known)}"
            )
        elif kind == "missing":
            line = f"the setting {'.'.join(location)!r} is required"
        else:
            message = finding["msg"].removeprefix("Value error, ")
            shown = finding.get("input")
            found = "" if kind == "value_error" else f", found {shown!r}"
            line = f"{'.'.join(location) or 'settings'}: {message}{found}"
        lines.append(line)
    return "; ".join(lines)


def _known_keys(location: list[str]) -> list[str]:
    model: type[BaseModel] = ExperimentConfig
    for part in location:
        fields = {info.alias or name: info.annotation for name, info in model.model_fields.items()}
        annotation = fields.get(part)
        sections = [item for item in _flatten(annotation) if isinstance(item, type) and issubclass(item, BaseModel)]
        if not sections:
            break
        model = sections[0]
    return [info.alias or name for name, info in model.model_fields.items()]


def _flatten(annotation: Any) -> Iterator[Any]:
    """Yield a type and, inside unions and annotations, the types it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _flatten(part)
