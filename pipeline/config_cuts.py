"""How the configuration cuts columns into bins, and the search for a better way to cut them."""

from __future__ import annotations

import itertools
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator

__all__ = ["Cut", "DesignConfig", "Quantiles", "Section", "require_increasing"]


class Section(BaseModel):
    """A part of the configuration: immutable, finite, and without settings that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Quantiles(Section):
    """Edges that divide the training spectra into equal parts."""

    quantiles: Annotated[int, Field(ge=2, le=100)]


#: How a column is cut: by stated edges, or into equal parts.
Cut = Annotated[
    Annotated[tuple[float, ...], Tag("edges")] | Annotated[Quantiles, Tag("parts")],
    Discriminator(lambda value: "parts" if isinstance(value, dict | Quantiles) else "edges"),
]


class DesignConfig(Section):
    """A search for the rectangles of a fine grid that give the most headroom, for every number of experts.

    ``grid`` cuts two columns; ``experts`` is the largest number tried; recommended is the smallest number whose
    cross-validated ΔR² is at least ``reach`` times the largest one.
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
    """Refuse edges that are fewer than two or do not increase; for pydantic's validators."""
    if len(edges) < 2 or any(b <= a for a, b in itertools.pairwise(edges)):
        raise ValueError(
            f"edges of {column!r} must be at least two increasing numbers, found {list(edges)}; "
            f"for example {{T_eff: [3750, 4500, 5250, 6000]}}"
        )
