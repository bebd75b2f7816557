"""An artificial run folder, small and plausible, for the tests of figures and reports.

Labels are beta-distributed over the ranges of the real spectra, and predictions are labels plus noise. Everything
that follows from these is the project's own work: scores, answers of the questions, summary and tables.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import numpy as np
import pandas as pd

from pipeline.base import Products, SilentProgress, hash_file, seal
from pipeline.bins import OUTSIDE, BinGrid, CellGrid, plan_binnings
from pipeline.config import REFERENCE_EDGES, ExperimentConfig
from pipeline.noise import Noise, compares, test_noises, training_noises
from pipeline.questions import QUESTIONS, Facts, Reading, Trained, Truth, list_needs
from pipeline.questions.bin_design import BinDesign
from pipeline.questions.bin_design.divisions import DrawErrors, FineGrid, Rectangle, SpreadOfCells, choose_divisions
from pipeline.questions.bin_design.question import summarise_design
from pipeline.questions.gate import Gates
from pipeline.questions.gate.fit import RunGate
from pipeline.questions.labels import Labels
from pipeline.questions.penalty import Penalty
from pipeline.questions.rank import Rank
from pipeline.report import render_report
from pipeline.report.figures import PICTURES
from pipeline.report.section import Picture
from pipeline.ridge import ExpertModels, SolvedSearch
from pipeline.run.tables import summarise, write_tables
from pipeline.scoring import (
    METADATA_FILE,
    OVERALL_FILE,
    PER_BIN_FILE,
    PREDICTIONS_FILE,
    SAMPLE_FILE,
    SUMMARY_FILE,
    RunResults,
    ScoredBinning,
    ScoredDraw,
    Stacked,
    Summary,
    read_results,
    score_binning,
    score_experts,
    tabulate_predictions,
)

SNR_EDGES = {"snr": (2.0, 5.0, 8.0, 12.0, 28.0)}
RANGES = {"T_eff": (3750.0, 6000.0), "M_H": (-2.5, 0.75), "snr": (1.5, 30.0), "a_M": (-0.2, 0.6)}
TARGET = "log_g"
FOLDS = 5
#: Of the search for better bins: intervals of each column.
FINE = {"T_eff": 6, "M_H": 7}


@dataclass(frozen=True)
class FakeRun:
    """What the artificial run is like; the defaults are the reference grid with three seeds.

    The bins of ``nan_bins`` have a single test spectrum, and so no R². ``marginal`` adds models of marginal noise to
    those of drawn noise; with ``no_draws`` there are no others, and the test spectra's noise is integrated out, too,
    if ``noise_test`` does not say otherwise.
    """

    edges: Mapping[str, Sequence[float]] = field(default_factory=lambda: dict(REFERENCE_EDGES))
    seeds: tuple[int, ...] = (42, 123, 456)
    levels: tuple[float, ...] = (1.0,)
    n_train: int = 1_000_000
    n_test: int = 1000
    nan_bins: tuple[int, ...] = ()
    simulated: bool = True
    stored_noise: bool = True
    bin_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    marginal: bool = False
    no_draws: bool = False
    noise_test: str = ""
    design: bool = False
    gate: bool = False
    labels: bool = False
    features: int = 0
    alphas: tuple[float, ...] = ()

    @property
    def settings(self) -> ExperimentConfig:
        """The configuration that such a run would have."""
        edges = {column: np.linspace(*RANGES[column], n + 1).tolist() for column, n in FINE.items()}
        mode = "marginal" if self.no_draws else "both" if self.marginal else "drawn"
        test = self.noise_test or ("marginal" if self.no_draws else "stored")
        # The ridge gate knows labels alone.
        is_logistic = bool(self.features) or not set(self.edges) <= {"T_eff", "M_H"}
        return ExperimentConfig.model_validate(
            {
                "data": {"train": ["/spectra/train/shard_index.txt"], "test": ["/spectra/test_1k"]},
                "bins": {column: list(own) for column, own in self.edges.items()},
                "bin_names": {column: list(names) for column, names in self.bin_names.items()},
                "seeds": list(self.seeds),
                "noise": {"levels": list(self.levels), "mode": mode, "test": test},
                "ridge": {"alpha": {"search": self.alphas, "by": "per_expert"} if self.alphas else 1e5},
                "design": {"grid": edges} if self.design else None,
                "gate": {"kind": "logistic" if is_logistic else "ridge"} if self.gate else None,
                "compute": {"folds": FOLDS},
                "bootstrap": {"resamples": 200},
            }
        )


def make_results(folder: Path, run: FakeRun | None = None) -> RunResults:
    """Write an artificial run folder and read it back."""
    return _Maker(folder, run or FakeRun()).write()


def restate_hashes(folder: Path) -> None:
    """Let ``metadata.json`` state what the files of a run folder are now, as if the run had written them so."""
    path = folder / METADATA_FILE
    metadata = json.loads(path.read_text(encoding="utf-8"))
    metadata["hashes"] = {name: hash_file(folder / name) for name in metadata["hashes"] if (folder / name).is_file()}
    path.write_text(json.dumps(seal(metadata), indent=1), encoding="utf-8")


def change_summary(results: RunResults, change: Callable[[dict[str, Any]], object]) -> RunResults:
    """Return the results with another summary, which ``change`` makes of its plain values."""
    plain = results.summary.to_dict()
    change(plain)
    return replace(results, summary=Summary.model_validate(plain))


#: Figures of questions that answer from moments or a library, which a made-up run does not have.
NOT_MADE_UP = ("moe_ceiling.png", "moe_forecast.png")


def list_pictures(results: RunResults | None = None) -> dict[str, Picture]:
    """Return all pictures by their files, in the order of the page; with results those that it has."""
    every = [*PICTURES, *(picture for question in QUESTIONS for picture in question.pictures)]
    made = [picture for picture in every if picture.file not in NOT_MADE_UP]
    return {picture.file: picture for picture in made if results is None or picture.is_there(results)}


def render_page(results: RunResults, figures: Mapping[str, Path] | None = None) -> tuple[Path, Path]:
    """Write both reports with what all questions have to say, and with figures that lie somewhere already."""
    known = list_pictures()
    sections = [section for question in QUESTIONS if (section := question.section(results)) is not None]
    subjects = [subject for question in QUESTIONS for subject in question.subjects(results)]
    return render_report(results, [(known[name], path) for name, path in (figures or {}).items()], sections, subjects)


class _Maker:
    """Labels and predictions, and what the questions of a run make of them."""

    def __init__(self, folder: Path, run: FakeRun) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.run, self.settings = folder, run, run.settings
        self.grid = BinGrid(self.settings.bins, self.settings.bin_names)
        rng = np.random.default_rng(7)
        self.columns = {
            name: low + (high - low) * rng.beta(1.3, 1.3, run.n_test) for name, (low, high) in RANGES.items()
        }
        drawn = self.grid.assign(self.columns)
        self.shares = np.bincount(drawn[drawn != OUTSIDE], minlength=self.grid.n_bins) / run.n_test
        self._thin(drawn)
        self.bins = self.grid.assign(self.columns)
        self.y_true = 1 + 4 * rng.beta(1.2, 1.2, run.n_test)
        self.cells, self.facts = self._know()

    def _thin(self, bins: np.ndarray) -> None:
        """Leave one test spectrum in each bin that is to have no R², and put its others below the first column."""
        column = self.grid.columns[0]
        low, *_, high = self.grid.edges[column]
        for number in self.run.nan_bins:
            self.columns[column][np.flatnonzero(bins == number)[1:]] = low - 0.1 * (high - low)

    def _know(self) -> tuple[CellGrid, Facts]:
        """Return the cells of the pass, and what questions may know of the run."""
        needs = list_needs(self.settings)
        fine = {name: BinGrid(grid) for name, grid in needs.fine.items()}
        cells, binnings = plan_binnings(
            self.grid, {}, ablation=needs.columns_alone, fine=next(iter(fine.values()), None)
        )
        others = ("T_eff", "a_M") if self.run.labels else ()
        labels = {TARGET: self.y_true} | {label: self.columns[label] for label in others}
        nothing = cast(Any, None)
        facts = Facts(
            settings=self.settings,
            folder=self.folder,
            products=Products(self.folder, print),
            progress=SilentProgress(),
            client=None,
            train=nothing,
            test=cast(Any, SimpleNamespace(columns=self.columns)),
            plan=nothing,
            binnings=tuple(binnings),
            truth=Truth(labels, [binning.assign(self.columns) for binning in binnings]),
            threads={},
            warnings=[],
        )
        noise = self.settings.noise
        facts.trained = [
            self._train(one, is_compared=compares(noise.mode, one))
            for one in training_noises(noise.mode, noise.levels, self.settings.seeds)
        ]
        return cells, facts

    # --- Models, which are their penalties and counts alone.

    def _train(self, noise: Noise, *, is_compared: bool) -> Trained:
        models = [self._models(self.shares, fold) for fold in range(1, FOLDS + 1)]
        if self.run.alphas:
            models[-1] = replace(models[-1], search=self._search(noise))
        others = [] if is_compared else [self._models(np.full(one.n_bins, 1 / one.n_bins)) for one in self._others()]
        moments: Any = SimpleNamespace(totals=list)  # artificial runs have none, so none that are factored
        return Trained(noise, moments, f"models/{noise.name}.npz", models, others, is_compared)

    def _others(self) -> Sequence[Any]:
        needs = list_needs(self.settings)
        return plan_binnings(self.grid, {}, ablation=needs.columns_alone)[1][1:]

    def _models(self, shares: np.ndarray, fold: int = FOLDS) -> ExpertModels:
        n = self.run.n_train * fold // FOLDS
        return ExpertModels(
            labels=(TARGET, "T_eff", "a_M"),
            global_weights=np.zeros((1, 3)),
            global_intercepts=np.zeros(3),
            expert_weights=np.zeros((len(shares), 1, 3)),
            expert_intercepts=np.zeros((len(shares), 3)),
            global_alpha=1e5,
            expert_alphas=np.full(len(shares), 1e5),
            global_count=n,
            expert_counts=np.round(shares * n).astype(np.int64),
        )

    def _search(self, noise: Noise) -> SolvedSearch:
        """Parabolas in log α, whose tops lie elsewhere for every model and seed."""
        places, n_models = np.log(self.run.alphas), 1 + self.grid.n_bins
        inner = places[1:-1] if len(places) > 2 else places  # a choice at an edge of the grid withholds the verdict
        tops = [inner[(number + noise.seed) % len(inner)] for number in range(n_models)]
        lost = np.array([0.4 + 0.02 * k + 0.3 * ((places - top) / np.ptp(places)) ** 2 for k, top in enumerate(tops)])
        sse = np.repeat(lost[:, None, :, None] / FOLDS, FOLDS, axis=1)
        return SolvedSearch(
            by="per_expert",
            target=TARGET,
            alphas=np.array(self.run.alphas),
            sse=np.repeat(sse, 3, axis=3),
            tss=np.ones((n_models, 3)),
            chosen=lost.argmin(axis=1),
            weights=np.zeros((len(places), n_models, 1, 3)),
            intercepts=np.zeros((len(places), n_models, 3)),
        )

    # --- Predictions.

    def _position(self, column: str) -> np.ndarray:
        low, high = RANGES[column]
        return np.clip((self.columns[column] - low) / (high - low), 0, 1)

    def _shrink(self, amount: float) -> np.ndarray:
        return self.y_true + amount * (self.y_true.mean() - self.y_true)

    def _predict(self, seed: int, level: float) -> np.ndarray:
        """Return what the global model and every expert say of the test spectra, (N, 1 + K)."""
        n, rng = self.run.n_test, np.random.default_rng([max(seed, 0), int(100 * level)])
        scatter = 0.45 + 0.35 * level * (1.5 - self._position("M_H"))
        oracle = self._shrink(0.15 + 0.2 * level) + scatter * rng.normal(size=n) * 0.8
        lost = 0.35 * level * (self._position("T_eff") - 0.5) * 2
        of_global = self._shrink(0.2 + 0.2 * level) + scatter * rng.normal(size=n) + lost
        experts = [oracle + 0.3 * (self.bins != number) for number in range(self.grid.n_bins)]
        return np.column_stack([of_global, *experts])

    def _predict_prefixes(self, predicted: np.ndarray, trained: Trained) -> np.ndarray:
        """Return the same of growing training sets; marginal noise loses less with few spectra."""
        rng = np.random.default_rng(11)
        wrong = rng.normal(size=self.run.n_test) * self.y_true.std()
        found = []
        for fold in range(1, FOLDS + 1):
            lost = 0.12 * (np.sqrt(FOLDS / fold) - 1) * (0.2 if trained.is_compared else 1)
            share = np.sqrt(lost * np.array([0.25, *[1.0] * self.grid.n_bins]))
            found.append(predicted + wrong[:, None] * share)
        return np.stack(found)

    def _readings(self) -> Iterator[Reading]:
        """Yield the test spectra under every pair of training and test noise, scored."""
        for trained in self.facts.trained:
            kind, has_noisy = self.settings.noise.test, self.run.stored_noise
            for test_noise in test_noises(kind, trained.noise, self.settings.seeds, has_noisy):
                seed = trained.noise.seed if trained.noise.is_single else test_noise.seed
                predicted = self._predict(seed, trained.noise.level)
                prefixes = self._predict_prefixes(predicted, trained)
                spread = None if test_noise.is_single else np.full_like(prefixes, 0.01)
                scores = score_experts(self.y_true, prefixes, self.bins, self.facts.bootstrap, spread)
                draw = ScoredDraw(trained.noise, test_noise, trained.models, scores)
                reading = Reading(trained, test_noise, draw, predicted, None if spread is None else spread[-1])
                reading.binnings = self._score_binnings(reading)
                yield reading

    def _score_binnings(self, reading: Reading) -> list[ScoredBinning]:
        """Let experts of other binnings lie between those of the main one and the global model."""
        if not reading.trained.others:
            return []
        draw, predicted = reading.draw, reading.predicted
        main, coverage = self.facts.binnings[0], float(np.mean(self.bins != OUTSIDE))
        whole = reading.trained.whole
        scored = [ScoredBinning(main, draw, whole, predicted, draw.scores[-1], coverage, is_paired=True)]
        rest = zip(self.facts.binnings[1:], reading.trained.others, self.facts.truth.bins[1:], strict=True)
        for place, (binning, models, bins) in enumerate(rest):
            own = self._mix(predicted, 0.05 + 0.15 * place)
            of_all = np.column_stack([predicted[:, 0], *[own] * binning.n_bins])
            known = (self.y_true, (bins, self.bins), of_all, self.facts.bootstrap)
            spread = None if reading.variance is None else np.full_like(of_all, reading.variance[0, 0])
            scored.append(score_binning(binning, draw, models, *known, spread))
        return scored

    def _mix(self, predicted: np.ndarray, share: float) -> np.ndarray:
        """Return what the experts of the true bins say, and a share of what the global model says."""
        routed = predicted[np.arange(len(self.bins)), 1 + self.bins]
        return (1 - share) * routed + share * predicted[:, 0]

    # --- What the questions ask for beside the scores.

    def _tell(self, question: type, reading: Reading) -> list[Stacked]:
        """Return what a question hears; the order is that of its columns."""
        if question is Labels and not reading.trained.is_compared:
            return [Stacked(values, None) for values in self._predict_labels(reading.predicted)]
        if question is Penalty and self.run.alphas:
            return [Stacked(values, None) for values in self._predict_search(reading)]
        if question is Gates and self.run.gate and not reading.trained.is_compared:
            return [Stacked(reading.predicted[:, :1], None)]
        return []

    def _predict_labels(self, predicted: np.ndarray) -> Iterator[np.ndarray]:
        """Other labels are predicted a little better than the target."""
        for label, truth in self.facts.truth.labels.items():
            if label != TARGET:
                wrong = (predicted - self.y_true[:, None]) / self.y_true.std()
                yield truth[:, None] + 0.9 * truth.std() * wrong

    def _predict_search(self, reading: Reading) -> Iterator[np.ndarray]:
        """The best penalty of the test spectra lies beside that of the folds."""
        places = np.log(self.run.alphas)
        search = reading.trained.whole.search
        assert search is not None
        for place in places:
            far = np.abs(place - places[search.chosen] + 0.2) / np.ptp(places)
            yield self.y_true[:, None] + (reading.predicted - self.y_true[:, None]) * (1 + 0.3 * far)

    def _fit_gates(self) -> RunGate:
        """Gates that are right half of the time, and surer than that."""
        noises = [one.noise for one in self.facts.verdict_noises]
        fits: dict[Noise, dict[str, Any]] = {}
        gates: dict[Noise, Any] = {}
        for noise in noises:
            rng = np.random.default_rng(max(noise.seed, 0))
            n, n_cells = len(self.bins), self.grid.n_cells
            guesses = np.where(rng.random(n) < 0.5, self.bins, rng.integers(-1, self.grid.n_bins, n))
            told = (rng.dirichlet(np.full(n_cells, 0.3), n) + 1.5 * np.eye(n_cells)[guesses]) / 2.5
            gates[noise] = SimpleNamespace(probabilities=lambda of_labels, features, told=told: told)
            importance = {f"pc_{k + 1}": float(rng.exponential(0.1)) for k in range(self.run.features)}
            fits[noise] = {"importance": importance}
        return RunGate(gates, {}, fits, (), unsure=0.2)

    def _design(self, readings: Sequence[Reading]) -> dict[str, Any]:
        """Choose divisions by errors that fall with the size of a rectangle, but for a price of every expert."""
        fine = FineGrid.of_cells(self.cells)
        cells = self.cells.cells(self.columns)
        n_cells = self.cells.n_cells
        own = [one for one in readings if one.draw.level == self.settings.headline_level]
        own = [one for one in own if not one.trained.is_compared]

        def predict(reading: Reading, rectangle: Rectangle) -> np.ndarray:
            return self._mix(reading.predicted, (len(fine.bins_of(rectangle)) / np.prod(fine.shape)) ** 0.5)

        def sum_errors(reading: Reading) -> DrawErrors:
            squares = (self.y_true[:, None] - reading.predicted) ** 2
            of_rectangles = {
                one: float(np.sum((self.y_true - predict(reading, one))[np.isin(cells, fine.cells_of(one))] ** 2)) + 2
                for one in fine.rectangles
            }
            of_bins = [float(squares[self.bins == k, 1 + k].sum()) for k in range(self.grid.n_bins)]
            return DrawErrors(np.bincount(cells, squares[:, 0], n_cells), of_bins, of_rectangles)

        sums = [np.bincount(cells, weights, n_cells) for weights in (None, self.y_true, self.y_true**2)]
        scale = self.run.n_train // self.run.n_test
        search = choose_divisions(
            fine, self.facts.binnings[0].members, [sum_errors(one) for one in own], SpreadOfCells(*sums), 12
        )
        tests = []
        for division in search.divisions:
            binning = fine.divide(f"{len(division.rectangles)} experts", division.rectangles)
            bins = binning.assign(self.columns)
            scored = []
            for reading in own:
                experts = [predict(reading, one) for one in division.rectangles]
                of_all = np.column_stack([reading.predicted[:, 0], *experts])
                known = (self.y_true, (bins, self.bins), of_all, self.facts.bootstrap)
                scored.append(score_binning(binning, reading.draw, reading.trained.whole, *known))
            tests.append(scored)
        return summarise_design(replace(search, n_train=search.n_train * scale), tests, self.facts).to_dict()

    # --- The run folder.

    def write(self) -> RunResults:
        """Let all questions hear all readings; write what a run leaves, and read it."""
        questions = [question(self.facts) for question in QUESTIONS]
        with mock.patch("pipeline.questions.gate.question.fit_gates", return_value=self._fit_gates()):
            for question in questions:
                if question.name != BinDesign.name:
                    question.prepare()
        readings, frames = list(self._readings()), []
        for reading in readings:
            for question in questions:
                question.hear(reading, self._tell(type(question), reading))
            if not reading.trained.is_compared:
                origin = (reading.draw.seed, reading.draw.level)
                frame = tabulate_predictions(origin, self.y_true, self.bins, reading.predicted, reading.variance)
                frames.append(frame.assign(**{f"y_{name}": values for name, values in reading.routed.items()}))
        heard = [one for one in questions if one.name != Rank.name]  # which answers from moments: there are none here
        answers = {one.name: answer.to_dict() for one in heard if (answer := one.answer()) is not None}
        if self.run.design:
            answers[BinDesign.name] = self._design(readings)
        draws = [reading.draw for reading in readings if not reading.trained.is_compared]
        summary = summarise(self.facts, draws, answers)
        write_tables(self.folder, summary, self.settings, {SAMPLE_FILE: self._sample()})
        pd.concat(frames, ignore_index=True).to_parquet(self.folder / PREDICTIONS_FILE)
        (self.folder / METADATA_FILE).write_text(json.dumps({**self._metadata(), **self.run.metadata}))
        restate_hashes(self.folder)
        return read_results(self.folder)

    def _sample(self) -> pd.DataFrame:
        rng = np.random.default_rng(3)
        columns = self.grid.columns
        cuts = {column: np.linspace(*RANGES[column], 15 if len(columns) > 2 else 27) for column in columns}
        train = np.column_stack(
            [low + (high - low) * rng.beta(1.3, 1.3, 20_000) for low, high in (RANGES[c] for c in columns)]
        )
        test = np.column_stack([self.columns[column] for column in columns])
        counts = [np.histogramdd(sample, bins=list(cuts.values()))[0] for sample in (train, test)]
        table: dict[str, Any] = {}
        for axis, column in enumerate(columns):
            index = np.indices(counts[0].shape)[axis].ravel()
            table[f"{column}_low"], table[f"{column}_high"] = cuts[column][index], cuts[column][index + 1]
        table["n_train"] = counts[0].ravel().astype(int) * (self.run.n_train // 20_000)
        table["n_test"] = counts[1].ravel().astype(int)
        return pd.DataFrame(table)

    def _metadata(self) -> dict[str, Any]:
        store = {"n_pixels": 4096, "wavelength_range": [7100.0, 8850.0]}
        covered = float((self.bins != OUTSIDE).mean())
        return {
            "config": self.settings.to_dict(),
            "config_hash": "0123456789abcdef",
            "config_source": "oracle_noise1.yaml",
            "simulated": self.run.simulated,
            "bin_columns": list(self.grid.columns),
            "interval_names": {name: list(names) for name, names in self.grid.interval_names.items()},
            "stores": {
                "train": {
                    "paths": ["/scratch/stores/train_0.zarr", "/scratch/stores/train_1.zarr"],
                    "fingerprint": "a1b2c3d4e5f60718",
                    "n_spectra": self.run.n_train,
                    **store,
                    "sources": [_source(f"/spectra/train_{i}/dataset.h5") for i in range(1, 6)],
                    "coverage": 0.79,
                },
                "test": {
                    "paths": ["/scratch/stores/test.zarr"],
                    "fingerprint": "18f7e6d5c4b3a291",
                    "n_spectra": self.run.n_test,
                    **store,
                    "sources": [_source("/spectra/test_1k/dataset.h5")],
                    "coverage": covered,
                    "has_noisy": self.run.stored_noise,
                },
            },
            "versions": {"python": "3.11.7", "headroom": "0.1.0", "numpy": "2.4.6", "dask": "2026.8.0"},
            "git_commit": "9fceb02d0ae598e95dc970b74767f19372d61af8",
            "started": "2026-03-01T09:30:00+00:00",
            "steps": [
                {"name": "convert", "seconds": 612.4, "skipped": False},
                {"name": "accumulate", "seconds": 934.7, "skipped": False},
                {"name": "solve and score", "seconds": 71.25, "skipped": True},
            ],
            "peak_memory_bytes": 6_871_947_674,
            "worker_peak_memory_bytes": 5_368_709_120,
            "plan": {"memory_per_worker_bytes": 8_053_063_680, "driver_memory_bytes": 2_147_483_648, "partitions": 16},
            "hashes": dict.fromkeys([OVERALL_FILE, PER_BIN_FILE, SUMMARY_FILE, PREDICTIONS_FILE], ""),
            "warnings": list(self.run.warnings),
            "command": "headroom run oracle_noise1.yaml --out runs/reference",
        }


def _source(name: str) -> dict[str, Any]:
    return {"name": name, "size": 1, "n_spectra": 200_000, "fingerprint": "b7c8", "dropped": {}, "remarks": []}
