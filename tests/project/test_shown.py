"""What a notebook shows of public objects: some words, not pages."""

from __future__ import annotations

from pathlib import Path

import pytest

import pipeline
from pipeline.store import SpectraStore

EDGES = {"T_eff": [3750, 4875, 6000], "M_H": [-2.5, 0.75]}
SETTINGS = {
    "data": {"train": [f"train_{k}" for k in range(50)], "test": "test"},
    "gate": {"kind": "logistic"},
    "noise": {"mode": "checked", "levels": [0.5, 1]},
}


def test_public_objects_show_themselves_in_a_few_words(
    train_store: SpectraStore, small_config: pipeline.ExperimentConfig, tmp_path: Path
) -> None:
    config = pipeline.load_config(SETTINGS)
    plan = pipeline.plan_accumulation(str(train_store.path), EDGES, {"folds": 60, "partition_rows": 64})
    [merged] = pipeline.accumulate_moments(plan, pipeline.MarginalNoise(1.0), tmp_path / "moments")
    contents = pipeline.open_moments(tmp_path)
    draw = contents.draws[0]
    spectra = f"{train_store.n_spectra:,} spectra"
    for shown, words in (
        (config, ("log_g", "9 bins", "checked", "0.5, 1", "gate")),
        (plan, (spectra, "60 folds", "3 cells", "log_g")),
        (merged, ("marginal", "3 cells", "60 folds")),
        (contents, (str(tmp_path), "marginal_noise-1.0")),
        (draw, ("marginal_noise-1.0", spectra, "60 of 60 folds")),
        (draw.folds[0], ("fold 0", "spectra", "3 cells")),
        (pipeline.plan_experiment(small_config), (spectra, f"{train_store.n_pixels:,} pixels", "MiB")),
    ):
        assert str(shown) == repr(shown)
        assert repr(shown).startswith(f"{type(shown).__name__}(")
        assert len(repr(shown)) < 400
        for word in words:
            assert word in repr(shown)


def test_settings_show_all_of_themselves_when_asked() -> None:
    config = pipeline.load_config(SETTINGS)
    assert "to_dict()" in repr(config)
    assert pipeline.load_config(config.to_dict()) == config


@pytest.mark.parametrize("name", ["models", "."])
def test_read_models__raise_on_a_folder(tmp_path: Path, name: str) -> None:
    """Nobody is told to delete a run."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "marginal_noise-1.0.npz").touch()
    with pytest.raises(pipeline.InputError, match=r"models/marginal_noise-1\.0\.npz") as refusal:
        pipeline.read_models(tmp_path / name)
    assert "delete" not in str(refusal.value)
