"""The settings of a gate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline import schema
from pipeline.config_cuts import Section

__all__ = ["GateConfig"]


class GateConfig(Section):
    """A gate that routes spectra without knowing their labels, and what is asked of it.

    ``ridge`` takes the global model's predictions of the bin columns. ``unsure`` is the probability that some bin must
    exceed for the fall-back routing to trust the experts, ``keep`` the share of the headroom that routing must keep.
    """

    kind: Literal["ridge"] = "ridge"
    unsure: Annotated[float, Field(ge=0, lt=1)] = 0.2
    keep: Annotated[float, Field(gt=0)] = 0.7

    def require_bins(self, columns: tuple[str, ...], *, has_one_fold: bool) -> None:
        """Refuse bins and folds that this gate cannot work on; for pydantic's validators."""
        if len(columns) > 2 or not set(columns) <= set(schema.LABELS):
            raise ValueError(
                f"gate.kind: {self.kind} routes by one or two of the labels {', '.join(schema.LABELS)}, found bins "
                f"over {', '.join(columns)}; leave gate out, or choose such bins"
            )
        if has_one_fold:
            raise ValueError(
                "gate needs at least two folds to know its errors, found compute.folds: 1; use compute: {folds: 5}, "
                "or leave gate out"
            )
