"""The bundle of a run: each file of tests has a fixture ``run`` of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.predict import MixtureModel, export_model, load_model


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "model"
    export_model(run, folder)
    return folder


@pytest.fixture(scope="module")
def model(bundle: Path) -> MixtureModel:
    return load_model(bundle)
