"""The settings of a gate."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline import schema
from pipeline.config_cuts import Section

__all__ = ["DEFAULT_WINDOWS", "QUALITY_COLUMN", "FeatureConfig", "GateConfig", "LineWindow"]


class LineWindow(Section):
    """A spectral line that a gate looks at: ``centre`` ± ``half_width``, held against its continuum bands (all Å).

    Windows of one ``total`` also give the sum of their equivalent widths, under that name.
    """

    name: Annotated[str, Field(min_length=1)]
    centre: Annotated[float, Field(gt=0)]
    half_width: Annotated[float, Field(gt=0)]
    continuum: tuple[tuple[float, float], ...] = Field(min_length=1)
    total: str | None = None

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


#: The only column that a gate may tell from the errors of a spectrum.
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
    """What a logistic gate is told of a spectrum: principal components, and windows around spectral lines.

    Squares and products of the first ``products`` components are terms of the regression, too.
    """

    components: Annotated[int, Field(ge=0, le=1000)] = 10
    products: Annotated[int, Field(ge=0, le=30)] = 3
    windows: tuple[LineWindow, ...] = DEFAULT_WINDOWS

    @model_validator(mode="after")
    def _something(self) -> FeatureConfig:
        names = [window.name for window in self.windows]
        if len(set(names)) != len(names):
            raise ValueError(f"windows need names of their own, found {', '.join(names)}")
        if not self.components and not names:
            raise ValueError("a logistic gate needs principal components or windows; use components: 10")
        return self


class GateConfig(Section):
    """A gate that routes spectra without knowing their labels, and what is asked of it.

    ``ridge`` takes the global model's predictions of the bin columns. ``logistic`` is a multinomial logistic regression
    on ``features`` of the spectra: it reads ``spectra`` of the training spectra once more, spread evenly over all, and
    needs ``pip install 'headroom[ml]'``. ``unsure`` is the probability that some bin must exceed for the fall-back
    routing to trust the experts, ``keep`` the share of the headroom that routing must keep. ``blend`` learns how to
    weigh the experts from held-out predictions of as many training spectra. ``binnings`` names binnings by ``snr``
    alone that get a gate of their own, a logistic regression on aggregates of the errors; with each of them the
    experts of ``bins`` × that binning are trained and routed, too.
    """

    kind: Literal["ridge", "logistic"] = "ridge"
    unsure: Annotated[float, Field(ge=0, lt=1)] = 0.2
    keep: Annotated[float, Field(gt=0)] = 0.7
    features: FeatureConfig = FeatureConfig()
    #: Training spectra that a pass for the gate reads; more are slower and hardly better.
    spectra: Annotated[int, Field(ge=100)] = 50_000
    blend: bool = False
    binnings: tuple[str, ...] = ()

    @field_validator("binnings", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def require_binnings(self, columns: dict[str, tuple[str, ...]]) -> None:
        """Refuse binnings that there are not, or that are not by ``snr`` alone; for pydantic's validators."""
        for name in self.binnings:
            if columns.get(name) != (QUALITY_COLUMN,):
                found = f"one by {', '.join(columns[name])}" if name in columns else "no such binning"
                raise ValueError(
                    f"gate.binnings: {name!r} must name a binning by {QUALITY_COLUMN} alone, found {found}; the errors "
                    f"of a spectrum may tell its {QUALITY_COLUMN}, nothing else; for example "
                    f"binnings: {{SNR: {{{QUALITY_COLUMN}: {{quantiles: 4}}}}}}"
                )

    def require_bins(self, columns: tuple[str, ...], *, has_one_fold: bool) -> None:
        """Refuse bins and folds that this gate cannot work on; for pydantic's validators."""
        if self.kind == "ridge" and (len(columns) > 2 or not set(columns) <= set(schema.LABELS)):
            raise ValueError(
                f"gate.kind: {self.kind} routes by one or two of the labels {', '.join(schema.LABELS)}, found bins "
                f"over {', '.join(columns)}; leave gate out, use kind: logistic, or choose such bins"
            )
        if has_one_fold:
            raise ValueError(
                "gate needs at least two folds to know its errors, found compute.folds: 1; use compute: {folds: 5}, "
                "or leave gate out"
            )
