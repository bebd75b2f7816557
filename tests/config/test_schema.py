"""The JSON schema of a configuration, and configurations that are given as dictionaries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import ComputeConfig, load_config, schema_file, settle
from pipeline.config.files import packaged_configs, read_yaml
from pipeline.errors import ConfigError

SMALL: dict[str, Any] = {"data": {"train": "spectra/train", "test": "spectra/test"}}


@pytest.fixture(scope="module")
def validate() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(schema_file().read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema).is_valid


@pytest.mark.parametrize("name", list(packaged_configs()))
def test_packaged_configurations_fit_the_schema(validate: Any, name: str) -> None:
    assert validate(read_yaml(packaged_configs()[name], "configuration"))


@pytest.mark.parametrize(
    ("settings", "is_right"),
    [
        ({}, True),
        ({"seeds": 42, "noise": {"levels": 0.5}, "gate": {"binnings": "SNR"}}, True),
        ({"seeds": [42, 43], "ridge": {"alpha": {"search": [1, 10], "by": "per_expert"}}}, True),
        ({"decision": {"continue": 0.1}, "compute": {"folds": "shards"}}, True),
        ({"target": "logg"}, False),
        ({"seed": 42}, False),
        ({"noise": {"mode": "none"}}, False),
        ({"ridge": {"alpha": {"per_spectrum": -1}}}, False),
        ({"bins": {"T_eff": ["cool"]}}, False),
    ],
)
def test_the_schema_says_what_the_settings_say(validate: Any, settings: dict[str, Any], is_right: bool) -> None:
    content = SMALL | settings
    assert validate(content) == is_right
    if is_right or "bins" not in settings:
        names = {"binnings": {"SNR": {"snr": {"quantiles": 4}}}} if "gate" in settings else {}
        try:
            load_config(content | names)
        except ConfigError:
            assert not is_right
        else:
            assert is_right


def test_every_setting_is_described() -> None:
    schema = json.loads(schema_file().read_text(encoding="utf-8"))
    for name, part in {"": schema, **schema["$defs"]}.items():
        for setting, described in part["properties"].items():
            assert described.get("description", "").endswith("."), f"{name}.{setting}"


def test_load_config__takes_a_dictionary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(
        {
            "data": {"train": ("a.zarr", Path("b.zarr")), "test": Path("/c.zarr"), "stores": "$WHERE/stores"},
            "bins": {"T_eff": np.linspace(4000, 6000, 3), "M_H": range(-2, 1)},
            "ridge": {"alpha": np.float64(3)},
            "seeds": np.int64(7),
        },
        variables={"WHERE": "/disk"},
    )
    assert config.data.train == (str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr"))
    assert config.data.test == ("/c.zarr",)
    assert config.data.stores == "/disk/stores"
    assert config.bins == {"T_eff": (4000.0, 5000.0, 6000.0), "M_H": (-2.0, -1.0, 0.0)}
    assert (config.ridge.alpha, config.seeds) == (3.0, (7,))
    assert load_config(config) is config


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (SMALL | {"sedes": [1]}, r"^configuration: unknown setting 'sedes' \(did you mean 'seeds'\?\)"),
        ({"data": {"train": "a"}}, r"the setting 'data\.test' is required"),
        (SMALL | {"target": 3}, "target: must be one of log_g, T_eff, M_H, found 3"),
        (SMALL | {"seeds": None}, "seeds: Input should be a list"),
        (17, "a YAML file, a packaged name or a dictionary of settings, found int"),
    ],
)
def test_load_config__raise_on(source: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(source)


def test_a_part_may_be_given_as_a_dictionary() -> None:
    assert settle(ComputeConfig, None, "compute") == ComputeConfig()
    assert settle(ComputeConfig, {"folds": np.int64(2)}, "compute") == ComputeConfig(folds=2)
    with pytest.raises(ConfigError, match=r"compute: unknown setting 'fold' \(did you mean 'folds'"):
        settle(ComputeConfig, {"fold": 2}, "compute")
    with pytest.raises(ConfigError, match="compute: a dictionary of settings is required, found int"):
        settle(ComputeConfig, 2, "compute")  # type: ignore[arg-type]
