from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.bins import BinGrid
from pipeline.config import PerSpectrum, RidgeConfig
from pipeline.errors import InputError
from pipeline.moments import Moments
from pipeline.ridge import TooFewSpectraError, read_models, solve_experts, write_models

GRID = BinGrid({"T_eff": [0, 1, 2]})
LABELS = ("log_g", "T_eff")


def cells_and_rows() -> tuple[list[Moments], list[tuple[np.ndarray, np.ndarray]]]:
    generator = np.random.default_rng(0)
    rows = []
    for offset, n in ((0.0, 120), (0.3, 90), (1.0, 60)):
        x = generator.normal(1 + offset, 0.2, (n, 30))
        rows.append((x, x[:, :2] * [1, 300] + generator.normal(0, 0.1, (n, 2)) + offset))
    origins = {"x_origin": np.full(30, 1.1), "y_origin": [1.0, 300.0]}
    return [Moments.from_samples(x, y, LABELS, **origins) for x, y in rows], rows


@pytest.mark.parametrize("standardize", ["global", "per_expert", "none"])
@pytest.mark.parametrize("train_on", ["all", "covered"])
def test_models_equal_scikit_learn_on_their_rows(standardize: str, train_on: str) -> None:
    cells, rows = cells_and_rows()
    ridge = RidgeConfig(alpha=2.0, standardize=standardize, train_on=train_on)
    models = solve_experts(cells, ridge, GRID)
    members = rows if train_on == "all" else rows[:-1]
    x, y = (np.concatenate(parts) for parts in zip(*members, strict=True))
    scaler = StandardScaler(with_std=standardize != "none").fit(x)
    fresh = np.random.default_rng(1).normal(1.2, 0.3, (50, 30))
    peer = Ridge(alpha=2.0).fit(scaler.transform(x), y)
    for q, label in enumerate(LABELS):
        found = models.predict(fresh, label)
        np.testing.assert_allclose(found[:, 0], peer.predict(scaler.transform(fresh))[:, q], rtol=1e-9)
        for k, (own_x, own_y) in enumerate(rows[:-1]):
            if standardize == "per_expert":
                expert = make_pipeline(StandardScaler(), Ridge(alpha=2.0)).fit(own_x, own_y)
                expected = expert.predict(fresh)
            else:
                expected = Ridge(alpha=2.0).fit(scaler.transform(own_x), own_y).predict(scaler.transform(fresh))
            np.testing.assert_allclose(found[:, 1 + k], expected[:, q], rtol=1e-9)


def test_threads_change_no_bit() -> None:
    cells, _ = cells_and_rows()
    one, three = (solve_experts(cells, RidgeConfig(alpha=2.0), GRID, threads) for threads in (1, 3))
    np.testing.assert_array_equal(one.expert_weights, three.expert_weights)
    np.testing.assert_array_equal(one.global_weights, three.global_weights)


def test_penalty_per_spectrum_counts_the_training_set_of_the_global_model() -> None:
    cells, _ = cells_and_rows()
    for train_on, n in (("all", 270), ("covered", 210)):
        ridge = RidgeConfig(alpha=PerSpectrum(per_spectrum=0.1), train_on=train_on)
        models = solve_experts(cells, ridge, GRID)
        assert models.global_count == n
        assert models.global_alpha == pytest.approx(0.1 * n)
        np.testing.assert_allclose(models.expert_alphas, 0.1 * n)
    assert models.expert_counts.tolist() == [120, 90]
    assert (
        repr(models)
        == f"ExpertModels({', '.join(models.labels)}; 2 experts, {len(models.global_weights)} pixels, 210 spectra)"
    )
    assert repr(models.global_path).startswith("RidgePath(")


def test_solve__raise_on_a_starved_bin() -> None:
    cells, _ = cells_and_rows()
    with pytest.raises(TooFewSpectraError, match=r"bin 1 \(1–2\) has 90"):
        solve_experts(cells, RidgeConfig(min_spectra=100), GRID)


def test_few_spectra_for_the_pixels_are_a_warning() -> None:
    cells, _ = cells_and_rows()
    assert solve_experts(cells, RidgeConfig(), GRID).warnings == ()
    small = [Moments.from_samples(np.eye(60, 30), np.eye(60, 2), LABELS)] * 3
    assert solve_experts(small, RidgeConfig(), GRID).warnings == ()  # exactly twice the pixels is enough
    tiny = [Moments.from_samples(np.eye(59, 30), np.eye(59, 2), LABELS)] * 3
    [warning] = solve_experts(tiny, RidgeConfig(), GRID).warnings
    assert "2 of 2 bins" in warning
    assert "bin 0 (0–1): 59" in warning


def test_models_round_trip(tmp_path: Path) -> None:
    cells, _ = cells_and_rows()
    written = [solve_experts(cells, RidgeConfig(alpha=a), GRID) for a in (1.0, 5.0)]
    write_models(tmp_path / "m.npz", written, {"key": "k"})
    for a, b in zip(written, read_models(tmp_path / "m.npz"), strict=True):
        fresh = np.ones((3, 30))
        np.testing.assert_array_equal(a.predict(fresh, "T_eff"), b.predict(fresh, "T_eff"))
        assert (a.global_alpha, a.global_count, a.labels, a.warnings) == (
            b.global_alpha,
            b.global_count,
            b.labels,
            b.warnings,
        )


def test_read__raise_on_damage(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    with pytest.raises(InputError, match="cannot be read"):
        read_models(path)
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(InputError, match="cannot be read"):
        read_models(path)
