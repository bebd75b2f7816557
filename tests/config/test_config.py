from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import invoke

from pipeline.config import (
    REFERENCE_EDGES,
    AlphaSearch,
    ExperimentConfig,
    HypothesesConfig,
    PerSpectrum,
    Quantiles,
    content_hash,
    load_config,
)
from pipeline.config.files import packaged_configs, read_yaml, yaml_text
from pipeline.errors import ConfigError, DeprecatedName
from pipeline.run import plan_sweep

MINIMAL: dict[str, Any] = {"data": {"train": ["train"], "test": ["test"]}}


def load(tmp_path: Path, content: Any) -> ExperimentConfig:
    path = tmp_path / "experiment.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return load_config(path)


def test_the_packaged_reference_is_the_reference_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADROOM_TRAIN", "HEADROOM_TEST", "HEADROOM_STORES"):
        monkeypatch.setenv(name, f"/data/{name}")
    config = load_config("oracle_noise1")
    assert config.bins == {"T_eff": (3750, 4500, 5250, 6000), "M_H": (-2, -1, 0, 0.5)}
    assert config.noise.levels == (1.0,)
    assert config.noise.test == "stored"
    assert config.ridge.alpha == PerSpectrum(per_spectrum=0.1), "1e5 for a million spectra"
    assert (config.ridge.standardize, config.ridge.train_on) == ("global", "all")
    assert config.seeds == (42, 123, 456, 789, 2024)
    assert config.target == "log_g"
    assert (config.decision.continue_, config.decision.stop) == (0.05, 0.02)
    assert config.stated_hypotheses.lowest_r2_bins == (0, 3, 6)
    assert config.data.train == ("/data/HEADROOM_TRAIN",)


def test_every_packaged_configuration_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADROOM_TRAIN", "HEADROOM_TEST", "HEADROOM_STORES", "HEADROOM_DEMO"):
        monkeypatch.setenv(name, "/data")
    assert {"demo", "oracle_noise1"} <= set(packaged_configs())
    for name in packaged_configs():
        load_config(name)
    demo = load_config("demo")
    assert isinstance(demo.ridge.alpha, AlphaSearch)
    assert demo.noise.mode == "checked"


def test_paths_are_relative_to_the_file_and_variables_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTRA", "/big/disk")
    config = load(tmp_path, {"data": {"train": ["a", "${SPECTRA}/b", "$SPECTRA"], "test": "c", "stores": "d"}})
    assert config.data.train == (str(tmp_path / "a"), "/big/disk/b", "/big/disk")
    assert config.data.test == (str(tmp_path / "c"),)
    assert config.data.stores == str(tmp_path / "d")


def test_defaults_and_shorthands(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL | {"seeds": 7, "noise": {"levels": 0.5}, "ridge": {"alpha": "1e5"}})
    assert config.seeds == (7,)
    assert config.noise.levels == (0.5,)
    assert config.ridge.alpha == 1e5  # YAML 1.1 reads 1e5 as text
    assert config.bins == dict(REFERENCE_EDGES)


def test_penalties_of_a_search_are_sorted_and_read_as_written(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL | {"ridge": {"alpha": {"search": ["1e5", 10, 1e3]}}})  # YAML reads 1e5 as text
    assert config.ridge.alpha == AlphaSearch(search=(10.0, 1e3, 1e5), by="global")
    assert ExperimentConfig.model_validate(config.to_dict()) == config


def test_the_third_hypothesis_is_stated_for_the_reference_grid_only(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL).stated_hypotheses.lowest_r2_bins == (0, 3, 6)
    assert load(tmp_path, MINIMAL | {"bins": {"snr": [0, 5, 30]}}).stated_hypotheses.lowest_r2_bins is None
    turned = dict(reversed(REFERENCE_EDGES.items()))  # whose bins 0, 3 and 6 are the cool ones
    assert load(tmp_path, MINIMAL | {"bins": turned}).stated_hypotheses.lowest_r2_bins is None


def test_ablation_is_asked_for_as_the_other_questions_are(tmp_path: Path) -> None:
    """An empty mapping stands for the defaults of a question."""
    plain = {"data": {"train": ["x"], "test": ["y"]}}
    assert load_config(plain | {"ablation": {}}).ablation is True
    assert load_config(plain | {"ablation": {}}).to_dict() == load_config(plain).to_dict()
    assert load_config(plain | {"ablation": False}).ablation is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sead": [1]}, r"unknown setting 'sead' \(did you mean 'seeds'\?\)"),
        ({"ridge": {"alpa": 1}}, r"unknown setting 'ridge.alpa' \(did you mean 'alpha'\?\)"),
        ({"ridge": {"alpha": 0}}, r"ridge\.alpha: Input should be greater than 0, found 0"),
        ({"ridge": {"alpha": -1e5}}, r"ridge\.alpha: Input should be greater than 0"),
        ({"ridge": {"alpha": "much"}}, r"ridge\.alpha: .*number.*found 'much'"),
        ({"ridge": {"alpha": {"per_spectra": 0.1}}}, r"did you mean 'per_spectrum'"),
        ({"ridge": {"alpha": {"search": [1e5]}}}, r"ridge\.alpha\.search: a search needs at least two penalties"),
        ({"ridge": {"alpha": {"search": []}}}, r"ridge\.alpha\.search: a search needs at least two.*write alpha: 1e5"),
        ({"ridge": {"alpha": {"search": [1, 2, 1]}}}, r"ridge\.alpha\.search: penalties must be distinct"),
        ({"ridge": {"alpha": {"search": [1, 0]}}}, r"ridge\.alpha\.search\.1: Input should be greater than 0, found 0"),
        ({"ridge": {"alpha": {"search": [1, "x"]}}}, r"ridge\.alpha\.search\.1: .*number.*found 'x'"),
        ({"ridge": {"alpha": {"search": [1, 2], "by": "expert"}}}, r"ridge\.alpha\.by: .*'per_expert'.*found 'expert'"),
        ({"ridge": {"alpha": {"serch": [1, 2]}}}, r"unknown setting 'ridge\.alpha\.serch' \(did you mean 'search'\?\)"),
        (
            {"ridge": {"alpha": {"search": [1, 2]}}, "compute": {"folds": 1}},
            r"ridge\.alpha\.search needs at least two folds.* found 1 \(compute\.folds: 1\); use compute: \{folds: 5\}",
        ),
        ({"bins": {"T_eff": [3, 2]}}, r"bins: edges of 'T_eff' must be at least two increasing numbers"),
        ({"bins": {"T_eff": [3, 3]}}, "increasing"),
        ({"bins": {}}, "bins"),
        ({"bins": {"log_g": [1, 2]}}, "leaks"),
        ({"target": "logg"}, r"target: must be one of log_g, T_eff, M_H.*did you mean 'log_g'"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "distinct"),
        ({"noise": {"levels": [-1]}}, r"noise\.levels\.0: .*greater than or equal to 0"),
        ({"noise": {"levels": [float("nan")]}}, r"noise\.levels\.0"),
        ({"decision": {"continue": 0.01, "stop": 0.02}}, r"stop \(0.02\) must not exceed continue \(0.01\)"),
        ({"bin_names": {"T_eff": ["a"]}}, "1 names for 3 bins"),
        ({"bin_names": {"T_eff": ["a", "b", "a"]}}, "bin_names: the names of T_eff must be distinct"),
        ({"bin_names": {"T_eff": ["a", " ", "b"]}}, "every bin of T_eff needs a name"),
        ({"data": {"train": ["a\0b"], "test": ["c"]}}, "the character NUL in its name"),
        ({"data": {"train": ["a"], "test": ["c"], "stores": "d\0"}}, "the character NUL in its name"),
        ({"data": {"train": ["a"], "test": "c\udcff"}}, "bytes that are no UTF-8"),
        ({"precision": "float16"}, "precision"),
        ({"data": {"train": ["x"]}}, r"'data\.test' is required"),
        ({"data": {"train": [], "test": ["x"]}}, r"data\.train"),
        ({"compute": {"folds": 0}}, r"compute\.folds"),
        *(
            ({"compute": {"folds": wrong}}, r"compute\.folds: Input should be a whole number or 'shards', found ")
            for wrong in ("none", [1], {}, 2.5, None)
        ),
        *(
            ({"ceiling": {"library": wrong}}, r"ceiling\.library: .* a whole number, 'auto' or 'all', found ")
            for wrong in ("many", [1], {"a": 1}, 100.5, None)
        ),
        ({"ceiling": {"library": True}}, r"ceiling\.library: true or false .*a whole number, 'auto' or 'all'"),
        *(
            ({"ridge": {"alpha": wrong}}, r"ridge\.alpha: .* a number, \{per_spectrum: …\} or \{search: …\}, found ")
            for wrong in ("many", [1], {}, {"zz": 1}, None)
        ),
        ({"ridge": {"alpha": {"by": "global"}}}, r"'ridge\.alpha\.search' is required"),
        *(
            ({"binnings": {"A": {"snr": wrong}}}, r"binnings\.A\.snr: .* a list of numbers or \{quantiles: …\}, found ")
            for wrong in (4, {}, {"parts": 4})
        ),
        ({"binnings": {"A": {"snr": {"quantiles": "four"}}}}, r"binnings\.A\.snr\.quantiles: "),
        *(
            ({name: wrong}, rf"{name}: .* a mapping of settings .*or null, found ")
            for name in ("forecast", "gate", "ceiling", "hypotheses")
            for wrong in ([1], "yes", 3)
        ),
        ({"forecast": True}, r"forecast: true or false .* a mapping of settings .*or null"),
        ({"noise": None}, r"noise: Input should be a mapping of settings .*, found None"),
        ({"data": {"train": ["x"], "test": ["y"], "spectra": [1]}}, r"data\.spectra: .* a whole number or null"),
        ({"decision": {"at": "many"}}, r"decision\.at: .* a whole number or null, found 'many'"),
        ({"hypotheses": {"lowest_r2_bins": 3}}, r"lowest_r2_bins: .* a list of whole numbers or null, found 3"),
        ({"cluster": 3}, r"cluster: .* a text or null, found 3"),
        ({"ablation": {"zz": 1}}, r"ablation: .* true or false"),
        *(
            (change, rf"{name}: Input should be true or false, found '?{word}")
            for word in ("yes", "off", 1)
            for name, change in (
                ("ablation", {"ablation": word}),
                (r"data\.allow_overlap", {"data": {"train": ["a"], "test": ["b"], "allow_overlap": word}}),
                (r"gate\.blend", {"gate": {"blend": word}}),
            )
        ),
    ],
)
def test_load__raise_on_wrong_settings(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, MINIMAL | change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("target: [", r"not valid YAML: .* in line 1, column 10"),
        ("just text", "a mapping of settings is required"),
        ("", "a mapping of settings is required"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("data: {train: ['${NO_SUCH_VARIABLE}'], test: [a]}", "NO_SUCH_VARIABLE is not set"),
    ],
)
def test_load__raise_on_a_bad_file(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, content)


def test_load__raise_on_no_file() -> None:
    with pytest.raises(ConfigError, match=r"no such file.*did you mean 'oracle_noise1'"):
        load_config("oracle_noise")


def test_hash_ignores_the_order_of_keys_and_nothing_else() -> None:
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 1.5})


# --- binnings ----------------------------------------------------------------------------------------


def test_binnings_take_edges_and_quantiles() -> None:
    config = ExperimentConfig.model_validate(
        MINIMAL | {"binnings": {"SNR": {"snr": {"quantiles": 4}}, "both": {"M_H": [-2, 0, 0.5], "mag": [20, 21]}}}
    )
    assert config.binnings["SNR"]["snr"] == Quantiles(quantiles=4)
    assert config.binnings["both"] == {"M_H": (-2, 0, 0.5), "mag": (20, 21)}
    assert config.ablation
    assert ExperimentConfig.model_validate(config.to_dict()) == config


@pytest.mark.parametrize(
    ("binnings", "words"),
    [
        ({"SNR": {"snr": {"quantiles": 1}}}, r"binnings\.SNR\.snr\.quantiles: .*greater than or equal to 2"),
        ({"SNR": {"snr": {"quartiles": 4}}}, r"unknown setting 'binnings\.SNR\.snr\.quartiles'.*'quantiles'"),
        ({"SNR": {"snr": [7, 4, 2]}}, r"edges of 'snr' must be at least two increasing numbers, found \[7"),
        ({"SNR": {"snr": 4}}, r"binnings\.SNR\.snr: .*found 4"),
        ({"SNR": {}}, r"binnings\.SNR: .*at least 1 item"),
        ({"bins": {"snr": [2, 4]}}, "a binning needs a name of its own, found 'bins'"),
        ({" ": {"snr": [2, 4]}}, "a binning needs a name of its own"),
        ({"g": {"log_g": [1, 3, 5]}}, r"binnings\.g may not use the target 'log_g'.*leaks it"),
    ],
)
def test_binnings__raise_on_what_cannot_be(binnings: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, MINIMAL | {"binnings": binnings})


# --- YAML: words mean what version 1.2 says, every key stands once.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0042", 42),
        ("0o52", 42),
        ("0x2A", 42),
        ("1e5", 1e5),
        ("yes", "yes"),
        ("Off", "Off"),
        ("n", "n"),
        ("true", True),
        ("04:30:00", "04:30:00"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("", None),
        ("'0042'", "0042"),
    ],
)
def test_plain_words_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: Any) -> None:
    (tmp_path / "one.yaml").write_text(f"key: {text}")
    found = read_yaml(tmp_path / "one.yaml", "file")["key"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "word", ["0o17", "1e5", "yes", "0042", "1:30", "~", "<<", "=", "2024-01-01", "true", "nan", ""]
)
def test_words_are_written_such_that_old_and_new_yaml_read_words(tmp_path: Path, word: str) -> None:
    text = yaml_text({"key": word, "values": [1, 1e5, 0.1, None, True]})
    (tmp_path / "one.yaml").write_text(text)
    assert (
        read_yaml(tmp_path / "one.yaml", "file")
        == yaml.safe_load(text)
        == {
            "key": word,
            "values": [1, 1e5, 0.1, None, True],
        }
    )


#: Each list has the one before ten times, so list k is 61…1 values with k ones (6 for k = 0); nine names and the root.
ALIASES = "a0: &a0 [1, 2, 3, 4, 5]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 9)
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("seeds: [42]\ntarget: log_g\nseeds: [43]", "'seeds' stands twice, in lines 1 and 3"),
        ("data: {train: a, test: b}\nridge:\n  alpha: 1e5\n  alpha: 1e3", "'alpha' stands twice, in lines 3 and 4"),
        ("{data: {train: a, test: b}, seeds: yes}", "seeds"),
        ("{data: {train: a, test: b}, seeds: true}", "seeds: true or false is no value"),
        ("{data: {train: a, test: b}, noise: {levels: [true]}}", "noise: true or false is no value"),
        ("{data: {train: a, test: b}, bins: {M_H: [true, 2]}}", "bins: true or false is no value"),
        ("seeds: " + 5000 * "9", "not valid YAML"),
        ("seeds: !!int 1:30", "not valid YAML"),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}", "'<<' stands twice, in lines 2 and 2"),
        ("data: &all\n  train: a\n  test: *all", "line 1: an alias stands within what it names"),
        (ALIASES, "its aliases make 679,012,354 values of [0-9]+, and 100,000 more are the most"),
    ],
)
def test_load__raise_on_words_that_mean_something_else(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, content)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gate": {}, "bins": {"Teff": [3750, 6000]}}, r"bins: 'Teff'.*did you mean 'T_eff'"),
        ({"bin_names": {"T_eff": ["=1+1", "b", "c"]}}, "bin_names.T_eff.*may not begin with '='"),
        ({"bin_names": {"T_eff": ["a", "b", "-c"]}}, "bin_names.T_eff.*may not begin with '-'"),
        ({"binnings": {"@SUM(A1)": {"snr": {"quantiles": 2}}}}, "binnings.*may not begin with '@'"),
    ],
)
def test_load__raise_on_misleading_names(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, MINIMAL | change)


def test_deprecated_settings_warn_and_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "old.yaml"
    text = "data: {train: a, test: b}\ncompute: {run_rows: 512%s}\n"
    file.write_text(text % "")
    plain = load_config(file)
    file.write_text(text % ", block_rows: 1024")
    with pytest.warns(DeprecatedName, match=r"old.yaml: compute.block_rows is deprecated: .*leave it out") as told:
        assert load_config(file) == plain
    assert told[0].filename == __file__, "it points to the caller"
    settings = plain.to_dict()
    with pytest.warns(DeprecatedName, match=r"^configuration: compute.block_rows is deprecated: ") as told_too:
        assert load_config(settings | {"compute": {**settings["compute"], "block_rows": 1024}}) == plain
    assert told_too[0].filename == __file__
    _, _, err = invoke(capsys, "plan", file)
    assert [line for line in err.splitlines() if line.startswith("headroom: note")] == [
        f"headroom: note: configuration {file}: {str(told[0].message).split(': ', 1)[1]}"
    ]


@pytest.mark.parametrize("level", [1e20, 1e-320])
def test_noise_levels_beyond_arithmetic_are_refused(level: float) -> None:
    with pytest.raises(ConfigError, match=r"noise\.levels: .*multiples of each pixel's error"):
        load_config({"data": {"train": "a", "test": "b"}, "noise": {"levels": [1.0, level]}})


def test_aliases_and_merges_are_read_as_what_they_stand_for(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("a: &a {x: 1, y: [2, 3]}\nb: *a\nc: {<<: *a, x: 4}\n")
    assert read_yaml(tmp_path / "one.yaml", "file") == {
        "a": {"x": 1, "y": [2, 3]},
        "b": {"x": 1, "y": [2, 3]},
        "c": {"x": 4, "y": [2, 3]},
    }
    # A mapping that merges is merged, one level deeper than the one that takes it.
    (tmp_path / "two.yaml").write_text("a: &a {x: 1}\nbase: {deep: &b {<<: *a, x: 2}}\nc: {<<: *b}\n")
    assert read_yaml(tmp_path / "two.yaml", "file")["c"] == {"x": 2}
    many = "train: [" + ", ".join(f"shard_{k}" for k in range(100_001)) + "]"
    (tmp_path / "three.yaml").write_text(many)
    assert len(read_yaml(tmp_path / "three.yaml", "file")["train"]) == 100_001


def test_hypotheses_about_the_reference_bins_are_not_those_of_other_bins(tmp_path: Path) -> None:
    plain = {"data": {"train": "a", "test": "b"}, "hypotheses": {"r2_oracle": 0.6}}
    assert load_config(plain).stated_hypotheses.lowest_r2_bins == (0, 3, 6)
    other = load_config(plain | {"bins": {"T_eff": [3750, 4500, 6000]}})
    assert other.stated_hypotheses.lowest_r2_bins is None
    assert other.stated_hypotheses.r2_oracle == 0.6
    assert load_config(other.to_dict()).stated_hypotheses == other.stated_hypotheses
    own = HypothesesConfig(r2_oracle=0.6)
    of_objects = load_config({"data": {"train": "a", "test": "b"}}).model_copy(update={"hypotheses": own})
    assert of_objects.stated_hypotheses.lowest_r2_bins == (0, 3, 6)
    [_, shifted] = plan_sweep(load_config(plain), ["bins={T_eff: [3750, 4500]},{T_eff: [3750, 4500, 6000]}"])
    assert shifted.config.stated_hypotheses.lowest_r2_bins is None
    same = {name: list(edges) for name, edges in REFERENCE_EDGES.items()}
    assert load_config(plain | {"bins": same}).stated_hypotheses.lowest_r2_bins == (0, 3, 6)
    assert load_config(plain | {"bins": dict(reversed(same.items()))}).stated_hypotheses.lowest_r2_bins is None
    with pytest.raises(ConfigError, match="must name some of the bins 0 to 1"):
        load_config(plain | {"bins": {"T_eff": [3750, 4500, 6000]}, "hypotheses": {"lowest_r2_bins": [0, 3, 6]}})
