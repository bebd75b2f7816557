"""What a bin design says in the summary of a run: what each number of experts gains, with which rectangles."""

from __future__ import annotations

from pipeline.scoring import Estimate, Number, Plain

__all__ = ["DesignAnswer", "Division", "HeldOut"]


class HeldOut(Plain):
    """What some experts gain on held-out folds of the training spectra."""

    experts: int
    r2_oracle: Number
    r2_global: Number
    delta_r2: Number


class Division(HeldOut):
    """The best division into a number of rectangles: held-out and test figures of merit, and the rectangles.

    ``test`` has the figures of merit by name, over seeds; ``rectangles`` the two ends of every column.
    """

    n_test: int
    test: dict[str, Estimate]
    rectangles: tuple[dict[str, tuple[float, float]], ...]
    names: tuple[str, ...]


class DesignAnswer(Plain):
    """All divisions by growing number of experts, and the bins of the configuration beside them.

    ``same_spectra`` says whether these cover the same spectra as the fine grid, whose ``edges`` are given by column.
    """

    noise_level: float
    edges: dict[str, tuple[float, ...]]
    n_train: int
    n_test: int
    divisions: tuple[Division, ...]
    main: HeldOut | None
    same_spectra: bool
    recommended: int | None
    sentence: str

    @property
    def chosen(self) -> Division | None:
        """The recommended division; None where none gains."""
        return next((one for one in self.divisions if one.experts == self.recommended), None)
