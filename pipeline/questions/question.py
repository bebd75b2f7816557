"""What every question has in common, and what it may know of a run.

A question is a class with a name. The spine of a run makes one object of it for the run at hand and calls, in this
order:

1. :meth:`Question.needs`: what it needs of the pass, such as further grids that cells must tell apart;
2. :meth:`Question.check`: before the pass, refuse what could not be answered;
3. :meth:`Question.prepare`: after the pass, whatever is solved or fitted from moments;
4. :meth:`Question.columns` and :meth:`Question.hear`: for every noise of the test spectra, the linear columns that it
   wants predicted, and their values; one read of the spectra serves all questions;
5. :meth:`Question.answer`: its part of the summary.

Tables, figures and the section of the page are views of that answer: :meth:`Question.tables`, ``pictures`` and
:meth:`Question.section` need no run, only its results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.accumulate import AccumulationPlan, MomentsFolder
from pipeline.base import Products, Progress
from pipeline.bins import BinGrid, Binning
from pipeline.config import Cut, ExperimentConfig
from pipeline.noise import Noise
from pipeline.report import Card, Picture, Section, Subject
from pipeline.ridge import ExpertModels
from pipeline.scoring import Bootstrap, Columns, Plain, RunResults, ScoredBinning, ScoredDraw, Stacked
from pipeline.store import AnyStore

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client

__all__ = ["Facts", "Needs", "Question", "Reading", "Trained", "Truth"]

FloatArray = NDArray[np.float64]
AnswerT = TypeVar("AnswerT", bound=Plain)


@dataclass(frozen=True)
class Needs:
    """What a question needs of the pass and of the solving.

    Attributes
    ----------
    binnings
        Further ways to divide the spectra, by name: their experts are solved and predict the test spectra.
    columns_alone
        Whether each column of the main bins is wanted as a binning of its own.
    crossed
        Names of binnings that are wanted crossed with the main one, too.
    fine
        A grid that cells must tell apart though it is no binning, under the name of its setting.
    noise_classes
        Into how many classes of like noise the moments of a cell are divided, where they are factored.
    """

    binnings: Mapping[str, Mapping[str, Cut]] = field(default_factory=dict)
    columns_alone: bool = False
    crossed: tuple[str, ...] = ()
    fine: Mapping[str, Mapping[str, Cut]] = field(default_factory=dict)
    noise_classes: int = 1

    def __or__(self, other: Needs) -> Needs:
        """Return what two questions need together."""
        return Needs(
            {**self.binnings, **other.binnings},
            self.columns_alone or other.columns_alone,
            tuple(dict.fromkeys((*self.crossed, *other.crossed))),
            {**self.fine, **other.fine},
            max(self.noise_classes, other.noise_classes),
        )


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known of the test spectra: every label, and the bin in every binning, the main one first; shapes (N,)."""

    labels: Mapping[str, FloatArray]
    bins: Sequence[NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Trained:
    """What the pass and the solving have left of one training noise.

    Attributes
    ----------
    noise
        Which.
    moments
        Its moments, fold by fold.
    file
        The product that holds its models; tasks on workers read it.
    models
        The models of the main binning, for growing training sets; the last ones know all spectra.
    others
        The models of all other binnings, in their order; none where the noise is only compared.
    is_compared
        Whether it is only held against the noise that the verdict is about.
    """

    noise: Noise
    moments: MomentsFolder
    file: str
    models: Sequence[ExpertModels]
    others: Sequence[ExpertModels]
    is_compared: bool

    @property
    def whole(self) -> ExpertModels:
        """The models of all training spectra."""
        return self.models[-1]


@dataclass(eq=False)
class Facts:
    """What a question may know of a run; the later entries are there once the run has come so far.

    Attributes
    ----------
    settings
        The experiment.
    folder
        The run folder.
    products
        What has been made already, and of what.
    progress
        Told of every long step.
    client
        A Dask client; None computes in this process.
    train, test
        The stores.
    plan
        How the pass is cut.
    binnings
        The ways to divide the spectra among experts, the main one first.
    truth
        Of the test spectra.
    threads
        How many models may be solved side by side, by the name of the work.
    warnings
        What a reader of the results should know.
    trained
        Every training noise with its moments and models, after solving.
    """

    settings: ExperimentConfig
    folder: Path
    products: Products
    progress: Progress
    client: Client | None
    train: AnyStore
    test: AnyStore
    plan: AccumulationPlan
    binnings: tuple[Binning, ...]
    truth: Truth
    threads: Mapping[str, int]
    warnings: list[str]
    trained: Sequence[Trained] = ()

    @property
    def grid(self) -> BinGrid:
        """The bins that the verdict is about."""
        return BinGrid(self.settings.bins, self.settings.bin_names)

    @property
    def bootstrap(self) -> Bootstrap:
        """How the test spectra are resampled."""
        stated = self.settings.bootstrap
        return Bootstrap(stated.resamples, stated.confidence, stated.seed)

    @property
    def verdict_noises(self) -> list[Trained]:
        """The training noises that the verdict is about."""
        return [one for one in self.trained if not one.is_compared]


@dataclass(eq=False)
class Reading:
    """The test spectra under one noise, and what the models of one training noise say of them.

    Attributes
    ----------
    trained, test_noise
        Whose models, and the noise of the test spectra.
    draw
        The models' scores.
    predicted, variance
        What the models of all training spectra say, shape (N, 1 + K), label units, the global model first; with their
        variances where these are means over the noise.
    binnings
        The experts of every binning, scored, the main one first; none where there is no other binning.
    routed
        Predictions that questions have added, by name, shape (N,): further columns of the predictions.
    exact
        What soft routing by the exact probabilities of the cells keeps, by scope or bin, if a question has found it:
        what later questions may hold their gates against.
    """

    trained: Trained
    test_noise: Noise
    draw: ScoredDraw
    predicted: FloatArray
    variance: FloatArray | None
    binnings: Sequence[ScoredBinning] = ()
    routed: dict[str, FloatArray] = field(default_factory=dict)
    exact: Mapping[str, Plain] = field(default_factory=dict)


class Question(Generic[AnswerT]):
    """One question to a run; see the module's docstring for when each method is called.

    Attributes
    ----------
    name
        Its key in the summary's ``answers``.
    Answer
        The type of its part of the summary.
    step
        The step of the run that :meth:`prepare` is; empty if it prepares nothing.
    files
        The tables that it may write.
    asked_by
        What to add to a configuration that does not ask it, for whoever looks for its tables; empty if every run asks
        it.
    pictures
        Its figures, in the order of the page.
    """

    name: ClassVar[str]
    Answer: type[AnswerT]
    step: ClassVar[str] = ""
    files: ClassVar[tuple[str, ...]] = ()
    asked_by: ClassVar[str] = ""
    pictures: ClassVar[tuple[Picture, ...]] = ()

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        #: What a reader should know of the answer; it stands before the warnings of the run.
        self.warnings: list[str] = []

    @classmethod
    def needs(cls, settings: ExperimentConfig) -> Needs:
        """Return what it needs of the pass; nothing where the settings do not ask it."""
        del settings
        return Needs()

    def check(self) -> None:
        """Refuse, before the pass, what could not be answered; or warn."""

    def prepare(self) -> Sequence[str] | None:
        """Solve or fit what test spectra will be asked; return the products that were made or reused.

        None where it has nothing to prepare. The test spectra play no part in it.
        """
        return None

    def columns(self, trained: Trained, test_noise: Noise) -> Sequence[Columns]:
        """Return what is to be predicted of the test spectra under one noise."""
        del trained, test_noise
        return ()

    def hear(self, reading: Reading, found: Sequence[Stacked]) -> None:
        """Take the scores under one noise, and the values of :meth:`columns`."""

    def answer(self) -> AnswerT | None:
        """Return its part of the summary, from all that was heard; None where it was not asked."""
        return None

    # --- Views of an answer.

    @classmethod
    def read(cls, results: RunResults) -> AnswerT | None:
        """Return the answer that a run has left."""
        found = results.summary.answers.get(cls.name)
        return None if found is None else cls.Answer.model_validate(found)

    @classmethod
    def tables(cls, answer: AnswerT, settings: ExperimentConfig) -> dict[str, pd.DataFrame]:
        """Return its tables by file name."""
        del answer, settings
        return {}

    @classmethod
    def section(cls, results: RunResults) -> Section | None:
        """Return its section of the page; None where it has nothing to say."""
        del results
        return None

    @classmethod
    def cards(cls, results: RunResults) -> Sequence[Card]:
        """Return numbers for the first screen of the page: name, number, remark."""
        del results
        return ()

    @classmethod
    def remarks(cls, results: RunResults, noise_level: float) -> Sequence[str]:
        """Return sentences for the terminal, at one noise level."""
        del results, noise_level
        return ()

    @classmethod
    def subjects(cls, results: RunResults) -> Sequence[Subject]:
        """Return what the interactive view of the page may show besides the target."""
        del results
        return ()
