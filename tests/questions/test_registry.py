"""All questions behind one protocol: the schema of their answers, and one more question that the spine knows not of."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from results_factory import render_page

from pipeline.config import ExperimentConfig, content_hash
from pipeline.noise import MarginalNoise, Noise, NoiseDraw
from pipeline.questions import QUESTIONS, Needs, Question, Reading, Trained, describe_summary, list_needs
from pipeline.questions.gate import Gates
from pipeline.report import Picture, Section, Show, Subject, Table
from pipeline.report.figures import render_figures
from pipeline.report.figures.canvas import new_figure
from pipeline.run import list_remarks, render_run, run_experiment
from pipeline.schema import STREAM_TEST, SUMMARY_VERSION
from pipeline.scoring import SUMMARY_FILE, Columns, Plain, RunResults, Stacked, read_marginal_rows, read_noisy_rows
from pipeline.store import SpectraStore

#: Every question has something to answer.
EVERYTHING: dict[str, Any] = {
    "noise": {"mode": "both", "levels": [0.2, 1.0], "test": "drawn"},
    "seeds": [42],
    "ridge": {"alpha": {"search": [10.0, 300.0], "by": "per_expert"}, "min_spectra": 20},
    "binnings": {"SNR": {"snr": {"quantiles": 2}}},
    "gate": {"blend": True, "binnings": ["SNR"]},
    "ceiling": {"test": 150},
    "design": {"grid": {"T_eff": {"quantiles": 2}, "M_H": {"quantiles": 2}}, "experts": 3},
    "forecast": {},
    "bootstrap": {"resamples": 100},
    "compute": {"folds": 2, "partition_rows": 400, "run_rows": 128, "moments": "factored", "rank_tolerance": 1e-3},
}


def change(config: ExperimentConfig, **sections: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate(config.to_dict() | sections)


@pytest.fixture(scope="module")
def everything(small_config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    return run_experiment(change(small_config, **EVERYTHING), tmp_path_factory.mktemp("everything"))


# --- The schema.


def list_faults(value: Any, schema: Mapping[str, Any], known: Mapping[str, Any], place: str = "summary") -> list[str]:
    """Return where a value is not what a JSON schema says, for the words that such schemas are made of."""
    unknown = set(schema) - {
        *("$ref", "$defs", "title", "description", "default", "type", "properties", "required", "items", "prefixItems"),
        *("additionalProperties", "anyOf", "const", "enum", "minItems", "maxItems"),
    }
    assert not unknown, f"the check of {place} does not know {unknown}"
    if "$ref" in schema:
        return list_faults(value, known[schema["$ref"].removeprefix("#/$defs/")], known, place)
    if "anyOf" in schema:
        fits = any(not list_faults(value, one, known, place) for one in schema["anyOf"])
        return [] if fits else [f"{place}: {value!r} is none of {schema['anyOf']}"]
    faults = []
    if "const" in schema and value != schema["const"]:
        faults.append(f"{place}: {value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        faults.append(f"{place}: {value!r} is none of {schema['enum']}")
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int}
    stated = schema.get("type")
    if stated == "number":
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        fits = stated is None or (isinstance(value, kinds[stated]) and (stated == "boolean" or value is not True))
    if not fits:
        return [*faults, f"{place}: {value!r} is no {stated}"]
    if isinstance(value, dict):
        entries, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        faults += [f"{place}.{name} is required" for name in schema.get("required", ()) if name not in value]
        for name, own in value.items():
            if name in entries:
                faults += list_faults(own, entries[name], known, f"{place}.{name}")
            elif others is False:
                faults.append(f"{place}.{name} is not known")
            elif isinstance(others, dict):
                faults += list_faults(own, others, known, f"{place}.{name}")
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        for k, own in enumerate(value):
            faults += list_faults(own, first[k] if k < len(first) else schema.get("items", {}), known, f"{place}.{k}")
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            faults.append(f"{place}: {len(value)} entries")
    return faults


def list_references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from ([schema["$ref"]] if "$ref" in schema else [])
        schema = list(schema.values())
    if isinstance(schema, list):
        for one in schema:
            yield from list_references(one)


def test_the_schema_is_whole() -> None:
    schema = describe_summary()
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema
    assert schema["properties"]["version"]["const"] == SUMMARY_VERSION
    for reference in list_references(schema):
        assert reference.removeprefix("#/$defs/") in schema["$defs"], reference
    answers = schema["properties"]["answers"]["properties"]
    assert list(answers) == [question.name for question in QUESTIONS]
    for question in QUESTIONS:
        own = schema["$defs"][answers[question.name]["$ref"].removeprefix("#/$defs/")]
        assert set(own["properties"]) == set(question.Answer.model_fields)
    for name, one in schema["$defs"].items():
        assert one["type"] == "object"
        assert one["additionalProperties"] is False, name


def test_summaries_of_runs_are_what_the_schema_says(everything: RunResults, small_run: RunResults) -> None:
    schema = describe_summary()
    for results in (everything, small_run):
        plain = json.loads((results.folder / SUMMARY_FILE).read_text(encoding="utf-8"))
        assert list_faults(plain, schema, schema["$defs"]) == []
    # The check itself can tell.
    plain["levels"][0]["scopes"]["all"]["rmse"] = 1.0
    plain["answers"]["labels"]["levels"][0].pop("noise_level")
    plain["levels"][0]["draws"][0]["seed"] = 0.5
    plain["target"] = None
    assert {fault.split(":")[0] for fault in list_faults(plain, schema, schema["$defs"])} == {
        "summary.levels.0.scopes.all.rmse is not known",
        "summary.answers.labels.levels.0.noise_level is required",
        "summary.levels.0.draws.0.seed",
        "summary.target",
    }


def test_every_question_answers_and_reads_its_answer_back(everything: RunResults) -> None:
    assert list(everything.summary.answers) == [question.name for question in QUESTIONS]
    for question in QUESTIONS:
        answer = question.read(everything)
        assert isinstance(answer, question.Answer)
        assert answer.to_dict() == everything.summary.answers[question.name]
        assert question.Answer.model_validate_json(answer.model_dump_json()).to_dict() == answer.to_dict()


def test_tables_are_views_of_the_answers(everything: RunResults) -> None:
    """Each file of a question is there, and is what its answer makes of it."""
    settings = ExperimentConfig.model_validate(everything.metadata["config"])
    for question in QUESTIONS:
        tables = question.tables(question.read(everything), settings)
        assert set(tables) <= set(question.files)
        for name, expected in tables.items():
            words = {column: str for column in expected if expected[column].dtype.kind not in "biuf"}
            found = pd.read_csv(everything.folder / name, dtype=words)
            assert list(found.columns) == list(expected.columns)
            for column in expected:
                if expected[column].dtype.kind == "f":
                    np.testing.assert_allclose(found[column], expected[column], rtol=1e-9, err_msg=column)
                else:
                    assert found[column].fillna("").tolist() == expected[column].fillna("").tolist(), column
    there = {path.name for path in everything.folder.glob("*.csv")}
    # A run trains with one kind of noise for the verdict, so it writes one of the two curves that are compared.
    assert {name for question in QUESTIONS for name in question.files} <= there | {"drawn_learning_curve.csv"}


def test_no_two_questions_share_a_name_a_file_or_a_place_on_the_page(everything: RunResults) -> None:
    sections = [section for question in QUESTIONS if (section := question.section(everything)) is not None]
    assert len(sections) == len(QUESTIONS)
    shown = [block.file for section in sections for block in section.blocks if isinstance(block, Show)]
    for names in (
        [question.name for question in QUESTIONS],
        [name for question in QUESTIONS for name in question.files],
        [section.anchor for section in sections],
        shown,
    ):
        assert len(set(names)) == len(names)
    pictures = [picture for question in QUESTIONS for picture in question.pictures]
    assert sorted(picture.file for picture in pictures) == sorted(shown)
    assert all(picture.is_there(everything) for picture in pictures)
    assert all(picture.describe(everything) for picture in pictures)


def test_a_run_without_a_question_has_nothing_of_it(small_run: RunResults) -> None:
    assert list(small_run.summary.answers) == ["labels", "ablation", "learning_curve"]
    for question in QUESTIONS:
        if question.name in small_run.summary.answers:
            continue
        assert question.read(small_run) is None
        assert question.section(small_run) is None
        assert list(question.subjects(small_run)) == []
        assert list(question.remarks(small_run, 1.0)) == []
        assert not any(picture.is_there(small_run) for picture in question.pictures)
        assert not any((small_run.folder / name).exists() for name in question.files)


def test_needs_are_those_of_all_questions(small_config: ExperimentConfig) -> None:
    found = list_needs(change(small_config, **EVERYTHING))
    assert set(found.binnings) == {"SNR"}
    assert found.columns_alone
    assert found.crossed == ("SNR",)
    assert set(found.fine) == {"design.grid"}
    assert list_needs(change(small_config, **EVERYTHING), [Gates]) == Needs(crossed=("SNR",))
    assert list_needs(change(small_config, ablation=False)) == Needs()
    assert list_needs(small_config, []) == Needs()


# --- One more question.


class ToyAnswer(Plain):
    """The mean flux of the test spectra under every pair of noises, and what was prepared."""

    means: tuple[float, ...]
    spread: tuple[float | None, ...]
    prepared: str


class Toy(Question[ToyAnswer]):
    """What is the mean flux? Asked where the target is log g; the spine of a run has never heard of it."""

    name = "toy_question"
    Answer = ToyAnswer
    step = "toy_question"
    files = ("toy.csv",)
    pictures = (
        Picture(
            "moe_toy.png",
            "A toy",
            lambda results: f"Seen {len(results.summary.answers['toy_question']['means'])} times.",
            lambda results: new_figure(),
            lambda results: Toy.read(results) is not None,
        ),
    )

    def __init__(self, facts: Any) -> None:
        super().__init__(facts)
        self.means: list[float] = []
        self.spread: list[float | None] = []

    @property
    def is_asked(self) -> bool:
        """Whether the settings ask it."""
        return self.facts.settings.target == "log_g"

    def prepare(self) -> Sequence[str] | None:
        """Leave a product of the models."""
        if not self.is_asked:
            return None
        key = content_hash([self.facts.products[one.file] for one in self.facts.trained])
        if not self.facts.products.is_made("toy.txt", key):
            (self.facts.folder / "toy.txt").write_text(key)
            self.facts.products.record("toy.txt", key)
        return ["toy.txt"]

    def columns(self, trained: Trained, test_noise: Noise) -> Sequence[Columns]:
        """Ask for the mean flux, and for the sum beside a constant."""
        del trained, test_noise
        if not self.is_asked:
            return ()
        ones = np.ones((self.facts.test.n_pixels, 2))
        return Columns(ones[:, :1] / len(ones), np.zeros(1)), Columns(ones, np.array([0.0, 7.0]))

    def hear(self, reading: Reading, found: Sequence[Stacked]) -> None:
        """Keep the means; add one to the predictions."""
        if not self.is_asked:
            assert not found
            return
        mean, sums = found
        np.testing.assert_allclose(sums.values[:, 1] - sums.values[:, 0], 7.0)
        np.testing.assert_allclose(sums.values[:, :1] / self.facts.test.n_pixels, mean.values)
        reading.routed["toy"] = mean.values[:, 0]
        self.means.append(float(mean.values.mean()))
        self.spread.append(None if mean.variances is None else float(mean.variances.mean()))

    def answer(self) -> ToyAnswer | None:
        """Return what was heard."""
        if not self.is_asked:
            return None
        self.warnings.append("this is a toy_question")
        prepared = (self.facts.folder / "toy.txt").read_text()
        return ToyAnswer(means=tuple(self.means), spread=tuple(self.spread), prepared=prepared)

    @classmethod
    def tables(cls, answer: ToyAnswer, settings: ExperimentConfig) -> dict[str, pd.DataFrame]:
        """Return a row for each mean."""
        return {"toy.csv": pd.DataFrame({"target": settings.target, "mean": answer.means})}

    @classmethod
    def section(cls, results: RunResults) -> Section | None:
        """Return every mean, and the picture."""
        answer = cls.read(results)
        if answer is None:
            return None
        table = Table("Means", ("mean",), tuple((f"{mean:.5f}",) for mean in answer.means), 0)
        return Section("toy", "How bright, like toys?", "Toys", ("Toys are bright.", table, Show("moe_toy.png")))

    @classmethod
    def remarks(cls, results: RunResults, noise_level: float) -> Sequence[str]:
        """Say one thing."""
        return (f"toys at {noise_level:g}",) if cls.read(results) else ()

    @classmethod
    def subjects(cls, results: RunResults) -> Sequence[Subject]:
        """Show nothing else."""
        del results
        return ()


@pytest.fixture
def with_toy() -> Iterator[None]:
    QUESTIONS.append(Toy)
    try:
        yield
    finally:
        QUESTIONS.remove(Toy)


def list_traces(folder: Path) -> list[str]:
    """Return the files of a run folder that have to do with the toy."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    named = {str(path.relative_to(folder)) for path in files if "toy" in path.name}
    read, words = {".json", ".csv", ".md", ".html"}, re.compile(r"toy_|toy\.|Toys are|like toys")
    texts = {path: path.read_text(encoding="utf-8") for path in files if path.suffix in read}
    # Figures in a page are letters and digits, which may be a toy by chance.
    return sorted(named | {str(path.relative_to(folder)) for path, text in texts.items() if words.search(text)})


def render_toy(results: RunResults) -> None:
    """Write the pages with no other figures than the toy's."""
    drawn = render_figures(results, Toy.pictures)
    render_page(results, {picture.file: path for picture, path in drawn})


@pytest.mark.usefixtures("with_toy")
def test_a_question_in_the_list_is_asked_and_answered_everywhere(
    small_config: ExperimentConfig, test_store: SpectraStore, tmp_path: Path, one_figure: Callable[[str], None]
) -> None:
    one_figure("moe_toy.png")
    noise = {"mode": "both", "levels": [1.0], "test": "drawn"}
    config = change(small_config, noise=noise, seeds=[42], ablation=False, precision="float64")
    results = run_experiment(config, tmp_path)
    # Of drawn and of marginal noise, both under the same draw of the test spectra.
    rows = read_noisy_rows(test_store, 0, test_store.n_spectra, NoiseDraw(1.0, 42, STREAM_TEST), "float64")
    answer = Toy.read(results)
    assert answer is not None
    assert json.loads((tmp_path / SUMMARY_FILE).read_text())["answers"]["toy_question"] == answer.to_dict()
    assert answer.means == (pytest.approx(rows.mean(), rel=1e-9),) * 2
    assert answer.spread == (None, None)
    drawn = results.predictions.query("seed == 42")["y_toy"]
    assert len(drawn) == test_store.n_spectra
    np.testing.assert_allclose(drawn, rows.mean(axis=1), rtol=1e-9)
    assert pd.read_csv(tmp_path / "toy.csv")["mean"].tolist() == pytest.approx(list(answer.means), rel=1e-9)
    assert "toy.csv" in results.metadata["hashes"]
    assert [step["name"] for step in results.metadata["steps"]] == [
        "convert",
        "accumulate",
        "solve",
        "toy_question",
        "score",
    ]
    assert results.metadata["warnings"].count("this is a toy_question") == 1
    assert list_remarks(results, 1.0) == ["toys at 1"]
    pages = [path.read_text(encoding="utf-8") for path in render_run(tmp_path)]
    assert (tmp_path / "figures" / "moe_toy.png").is_file()
    for text in pages:
        assert "How bright, like toys?" in text
        assert "Toys are bright." in text
        assert f"{answer.means[0]:.5f}" in text
        assert "Seen 2 times." in text
    assert "moe_toy.png" in pages[0]
    schema = describe_summary()
    assert list_faults(results.summary.to_dict(), schema, schema["$defs"]) == []
    # The same again is left alone; other thresholds score again, and find the product.
    before = (tmp_path / SUMMARY_FILE).stat().st_mtime_ns
    run_experiment(config, tmp_path)
    assert (tmp_path / SUMMARY_FILE).stat().st_mtime_ns == before
    again = run_experiment(change(config, decision={"continue": 0.04}), tmp_path)
    assert {step["name"]: step["skipped"] for step in again.metadata["steps"]} == {
        **dict.fromkeys(("convert", "accumulate", "solve", "toy_question"), True),
        "score": False,
    }
    assert Toy.read(again) == answer
    # Where the settings no longer ask it, what it had left on the pages and in tables goes.
    other = change(config, target="T_eff", bins={"M_H": [-2, -1, 0, 0.5]})
    folder = tmp_path / "now"
    bins = {"bins": {"M_H": [-2, -1, 0, 0.5]}}
    render_toy(run_experiment(change(config, **bins), folder))
    assert {"toy.csv", "figures/moe_toy.png"} <= set(list_traces(folder))
    results = run_experiment(other, folder)
    render_toy(results)
    assert Toy.read(results) is None
    # Products are kept for the next run that asks. The metadata name all questions: another list makes results anew.
    assert list_traces(folder) == ["metadata.json", "products.json", "toy.txt"]
    assert "y_toy" not in results.predictions
    assert list_remarks(results, 1.0) == []


@pytest.mark.usefixtures("with_toy")
@pytest.mark.parametrize("kind", ["marginal", "stored"])
def test_what_it_asks_is_told_under_the_noise_of_the_test_spectra(
    small_config: ExperimentConfig, test_store: SpectraStore, tmp_path: Path, kind: str
) -> None:
    noise = {"mode": "marginal", "levels": [1.0], "test": kind}
    config = change(small_config, noise=noise, ablation=False, precision="float64", bootstrap={"resamples": 100})
    answer = Toy.read(run_experiment(config, tmp_path))
    assert answer is not None
    if kind == "marginal":
        rows, variances = read_marginal_rows(test_store, 0, test_store.n_spectra, MarginalNoise(1.0))
        expected = variances.sum(axis=1).mean() / test_store.n_pixels**2
        assert answer.spread == (pytest.approx(expected, rel=1e-9),)
    else:
        rows = read_noisy_rows(test_store, 0, test_store.n_spectra, None, "float64")
        assert answer.spread == (None,)
    assert answer.means == (pytest.approx(rows.mean(), rel=1e-9),)


def test_without_it_nothing_of_it_is_there(
    small_run: RunResults, small_config: ExperimentConfig, tmp_path: Path
) -> None:
    """A run while it was in the list and one after it have nothing in common but everything else."""
    folder = shutil.copytree(small_run.folder, tmp_path / "run")
    QUESTIONS.append(Toy)
    try:
        found = run_experiment(small_config, folder)
        assert Toy.read(found) is not None, "a finished run is asked what is new"
    finally:
        QUESTIONS.remove(Toy)
    assert list(found.summary.answers) == [*small_run.summary.answers, "toy_question"]
    for name in ("results.csv", "per_bin_results.csv", "learning_curve.csv", "ablation.csv", "other_labels.csv"):
        assert (folder / name).read_bytes() == (small_run.folder / name).read_bytes(), name
    assert found.summary.levels == small_run.summary.levels
    assert found.predictions.drop(columns="y_toy").equals(small_run.predictions)
    after = run_experiment(small_config, folder)
    assert after.summary.to_dict() == small_run.summary.to_dict()
    render_page(after)
    for name in ("summary.json", "predictions.parquet"):
        assert (folder / name).read_bytes() == (small_run.folder / name).read_bytes(), name
    pages = [path.read_text(encoding="utf-8") for path in (folder / "report.md", folder / "report.html")]
    assert not any("toy" in text.lower() for text in pages)
    fresh = run_experiment(change(small_config, seeds=[42]), tmp_path / "fresh")
    assert list_traces(fresh.folder) == []
