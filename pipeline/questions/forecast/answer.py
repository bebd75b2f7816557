"""What a forecast says in the summary of a run."""

from __future__ import annotations

import math

from pipeline.questions.forecast.outlook import OutlookPoint
from pipeline.questions.forecast.training import CONFIGURED, DRAWN
from pipeline.scoring import Decision, Number, Plain, Scope

__all__ = ["ForecastAnswer", "ForecastLevel"]


class ForecastLevel(Plain):
    """The forecast at one noise level.

    ``n_known`` are the training spectra that it is made from. ``needed`` says, for each choice of the penalty, how many
    training spectra ΔR² needs until the lower end of its interval reaches ``decision.continue``; null if it never
    does. ``drawn`` is what the run's own drawn noise gave, where it trained on both: with the sizes of its learning
    curve, if the penalty is no search (a search is made once, with all spectra), the last one with all spectra.
    ``decision`` is that for ``decision.at`` training spectra, with the configured penalty.
    """

    noise_level: float
    n_known: int
    points: tuple[OutlookPoint, ...]
    limits: tuple[OutlookPoint, ...]
    needed: dict[str, Number]
    drawn: tuple[Scope, ...]
    decision: Decision | None

    def along(self, penalty: str) -> list[OutlookPoint]:
        """Return the points of one choice of the penalty, in the order of their sizes."""
        return [point for point in self.points if point.penalty == penalty]

    def limit(self, penalty: str) -> OutlookPoint:
        """Return what infinitely many training spectra would give."""
        return next(point for point in self.limits if point.penalty == penalty)

    @property
    def beside_drawn(self) -> OutlookPoint:
        """Return the point that a drawn run is held against: with its penalties, wherever a search found them."""
        return next((point for point in self.points if point.penalty == DRAWN), self.at(self.n_known))

    def at(self, n: float, penalty: str = CONFIGURED) -> OutlookPoint:
        """Return the point of the nearest number of training spectra."""
        return min(self.along(penalty), key=lambda point: abs(math.log(point.n / n)))


class ForecastAnswer(Plain):
    """The forecast at every noise level that was integrated out."""

    sentence: str
    levels: tuple[ForecastLevel, ...]
