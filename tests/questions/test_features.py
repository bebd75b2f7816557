"""Gate features against a loop over pixels, and the file that says how they are made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pipeline.config import LineWindow
from pipeline.config.settings import FeatureConfig
from pipeline.errors import ConfigError, InputError
from pipeline.moments import PrincipalComponents
from pipeline.questions.gate import FeatureRecipe, read_recipe
from pipeline.questions.gate.features import (
    QUALITY_NAMES,
    choose_windows,
    quality_features,
    require_no_leak,
    write_recipe,
)

WAVELENGTH = np.linspace(7100.0, 8850.0, 4096)


def recipe(n_components: int = 10, wavelength: np.ndarray = WAVELENGTH) -> FeatureRecipe:
    generator = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(generator.normal(size=(wavelength.size, max(n_components, 1))))
    components = PrincipalComponents(
        generator.uniform(0.5, 1, wavelength.size), vectors, np.arange(n_components, 0, -1.0)
    )
    windows, others = choose_windows(FeatureConfig().windows, wavelength)
    assert not others
    return FeatureRecipe(components if n_components else None, windows, wavelength)


def noisy_spectra(n: int = 7, wavelength: np.ndarray = WAVELENGTH) -> np.ndarray:
    return np.maximum(np.random.default_rng(1).normal(1, 0.3, (n, wavelength.size)), 0)


def features_by_hand(made: FeatureRecipe, x: np.ndarray) -> list[float]:
    """The features of one spectrum, pixel by pixel, as the module's docstring defines them."""
    wavelength = made.wavelength
    values: list[float] = []
    widths: dict[str, float] = {}
    if made.components is not None:
        for c in range(made.n_components):
            values.append(sum((x[p] - made.components.mean[p]) * made.components.vectors[p, c] for p in range(len(x))))
    steps = np.empty_like(wavelength)
    for p in range(len(wavelength)):
        low, high = max(p - 1, 0), min(p + 1, len(wavelength) - 1)
        steps[p] = (wavelength[high] - wavelength[low]) / (high - low)
    for window in made.windows:
        inside = [p for p, w in enumerate(wavelength) if abs(w - window.centre) <= window.half_width]
        bands = [p for p, w in enumerate(wavelength) if any(a <= w <= b for a, b in window.continuum)]
        level = sum(x[p] for p in bands) / len(bands)
        nearest = sorted(inside, key=lambda p: abs(wavelength[p] - window.centre))[:3]
        width = sum((1 - x[p] / level) * steps[p] for p in inside)
        values += [
            sum(x[p] for p in inside) / len(inside),
            1 - sum(x[p] for p in nearest) / len(nearest) / level,
            width,
        ]
        widths[str(window.total)] = widths.get(str(window.total), 0.0) + width
    return [*values, *widths.values()]


@pytest.mark.parametrize("n_components", [0, 10])
def test_features_are_those_of_a_plain_loop(n_components: int) -> None:
    made, x = recipe(n_components), noisy_spectra()
    found = made.compute(x)
    np.testing.assert_allclose(found, [features_by_hand(made, row) for row in x], rtol=1e-9, atol=1e-9)
    assert found.shape == (len(x), len(made.names)) == (len(x), 27 + n_components)


def test_the_default_features_are_the_37_in_use() -> None:
    names = recipe().names
    assert len(names) == len(set(names)) == 37
    assert names[:2] == ("pc_1", "pc_2")
    assert names[10:13] == ("Ca_II_8498_mean", "Ca_II_8498_depth", "Ca_II_8498_width")
    assert names[-3:] == ("Ca_II_width", "Na_I_width", "Mg_I_width")


def test_a_box_shaped_line_has_its_area() -> None:
    """A line of depth 0.4 over ±6 Å has an equivalent width of 0.4 × 12 Å, on an uneven grid and at any flux level."""
    wavelength = np.cumsum(np.random.default_rng(2).uniform(0.02, 0.08, 12_000)) + 8400
    window = LineWindow(name="box", centre=8662.0, half_width=10.0, continuum=((8620.0, 8640.0), (8700.0, 8720.0)))
    made = FeatureRecipe(None, (window,), wavelength)
    x = np.where(np.abs(wavelength - 8662.0) <= 6, 0.6, 1.0)
    mean, depth, width = made.compute([x, 17 * x]).T
    assert depth == pytest.approx([0.4, 0.4])
    assert width == pytest.approx([4.8, 4.8], abs=0.05)  # the line's edges fall between pixels
    assert mean[1] == pytest.approx(17 * mean[0])


def test_rows_do_not_touch_each_other_and_pieces_are_the_whole() -> None:
    made, x = recipe(), noisy_spectra(9)
    whole = made.compute(x)
    pieces = np.concatenate([made.compute(x[:4]), made.compute(x[4:])])
    np.testing.assert_allclose(pieces, whole, rtol=1e-12, atol=1e-12)


def test_no_continuum_gives_no_depth_and_no_width() -> None:
    found = recipe(0).compute(np.zeros((1, WAVELENGTH.size)))
    assert (found == 0).all()


def test_windows_without_pixels_are_named() -> None:
    short = WAVELENGTH[WAVELENGTH < 8700]  # one continuum band of Ca II 8662 is missing, and all of Mg I
    usable, others = choose_windows(FeatureConfig().windows, short)
    assert others == ["Ca_II_8662", "Mg_I_8806", "Mg_I_8807", "Mg_I_8808"]
    assert [window.name for window in usable] == ["Ca_II_8498", "Ca_II_8542", "Na_I_8183", "Na_I_8195"]
    coarse = np.linspace(7110, 8840, 12)  # 157 Å a pixel: lines fall between them
    assert len(choose_windows(FeatureConfig().windows, coarse)[1]) == 8
    with pytest.raises(InputError, match="wavelengths that increase"):
        choose_windows(FeatureConfig().windows, WAVELENGTH[::-1])


@pytest.mark.parametrize("n_components", [0, 10])
def test_a_recipe_comes_back_from_its_file_bit_for_bit(n_components: int, tmp_path: Path) -> None:
    made, x = recipe(n_components), noisy_spectra()
    write_recipe(tmp_path / "a.npz", made)
    write_recipe(tmp_path / "b.npz", made)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    back = read_recipe(tmp_path / "a.npz")
    assert back.names == made.names
    assert back.compute(x).tobytes() == made.compute(x).tobytes()


def test_read_recipe__raises_on_damage(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_recipe(tmp_path / "none.npz")
    write_recipe(tmp_path / "a.npz", recipe(0))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match="delete the file and run again"):
        read_recipe(tmp_path / "a.npz")


def test_quality_features_are_scipys() -> None:
    error = np.random.default_rng(3).gamma(2.0, 0.1, (6, 301))
    found = dict(zip(QUALITY_NAMES, quality_features(error).T, strict=True))
    expected = {
        "mean": error.mean(axis=1), "std": error.std(axis=1), "min": error.min(axis=1), "max": error.max(axis=1),
        "median": np.median(error, axis=1), "sum": error.sum(axis=1),
        "q25": np.percentile(error, 25, axis=1), "q75": np.percentile(error, 75, axis=1),
        "skew": stats.skew(error, axis=1), "kurtosis": stats.kurtosis(error, axis=1),
    }  # fmt: skip
    assert list(found) == [f"error_{name}" for name in expected]
    for name, values in expected.items():
        np.testing.assert_allclose(found[f"error_{name}"], values, rtol=1e-10, atol=1e-12)
    assert (quality_features(np.ones((1, 9)))[0, -2:] == 0).all()


def test_the_error_vector_routes_by_snr_alone() -> None:
    require_no_leak(QUALITY_NAMES, ["snr"])
    require_no_leak(recipe().names, ["T_eff", "M_H"])
    for columns in (["T_eff", "M_H"], ["snr", "M_H"]):
        with pytest.raises(ConfigError, match="errors give labels away"):
            require_no_leak([*recipe().names, "error_mean"], columns)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"components": 0, "windows": []}, "needs principal components or windows"),
        ({"windows": [{"name": "a", "centre": 8500, "half_width": 5, "continuum": [[8600, 8590]]}]}, "lower, upper"),
        ({"windows": [{"name": "a", "centre": 8500, "half_width": 0, "continuum": [[8600, 8610]]}]}, "half_width"),
        (
            {"windows": 2 * [{"name": "a", "centre": 8500, "half_width": 5, "continuum": [[8600, 8610]]}]},
            "of their own",
        ),
    ],
)
def test_settings__raise_on_features_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureConfig.model_validate(settings)
