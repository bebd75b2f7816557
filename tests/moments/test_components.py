"""Principal components of moments against a decomposition of the same rows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from pipeline.errors import InputError
from pipeline.moments import Moments, find_components


def spectra(n: int = 300, pixels: int = 20) -> np.ndarray:
    generator = np.random.default_rng(0)
    shapes = generator.normal(size=(4, pixels)) * [[3.0], [2.0], [1.0], [0.5]]
    return 5 + generator.normal(size=(n, 4)) @ shapes + 0.1 * generator.normal(size=(n, pixels))


@pytest.mark.parametrize("n", [1, 4, 20])
def test_they_are_scikit_learns(n: int) -> None:
    x = spectra()
    found = find_components(Moments.from_samples(x, x[:, :1], x_origin=np.full(20, 4.0)), n)
    peer = PCA(n_components=n, svd_solver="full").fit(x)
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.variances, peer.explained_variance_ * (len(x) - 1) / len(x), rtol=1e-8)
    signs = np.sign((found.vectors * peer.components_.T).sum(axis=0))
    np.testing.assert_allclose(found.vectors * signs, peer.components_.T, atol=1e-7)
    np.testing.assert_allclose(found.scores(x) * signs, peer.transform(x), atol=1e-6)


def test_the_largest_entry_is_positive_and_bytes_repeat() -> None:
    x = spectra()
    moments = Moments.from_samples(x, x[:, :1])
    once, again = find_components(moments, 5), find_components(moments, 5, np.full((20, 20), np.nan))
    assert (once.vectors[np.abs(once.vectors).argmax(axis=0), np.arange(5)] > 0).all()
    assert once.vectors.tobytes() == again.vectors.tobytes()
    assert once.variances.tobytes() == again.variances.tobytes()


def test_distances_are_mahalanobis_within_the_components() -> None:
    x = spectra()
    found = find_components(Moments.from_samples(x, x[:, :1]), 4)
    scores = found.scores(x)
    expected = np.sqrt(np.einsum("nc,cd,nd->n", scores, np.linalg.inv(np.cov(scores.T, bias=True)), scores))
    np.testing.assert_allclose(found.distances(scores), expected, rtol=1e-8)
    assert (found.distances(scores) ** 2).mean() == pytest.approx(4)  # C, whatever the spectra


def test_a_component_without_variance_moves_nothing_away() -> None:
    x = np.outer(np.arange(9.0), [1.0, 2.0, 0.0])
    found = find_components(Moments.from_samples(x, x[:, :1]), 3)
    flat = type(found)(found.mean, found.vectors, np.array([found.variances[0], 0.0, 0.0]))
    assert np.isfinite(flat.distances([[1.0, 5.0, 5.0]])).all()
    assert flat.distances([[0.0, 5.0, 5.0]]) == 0


@pytest.mark.parametrize("n", [0, 21])
def test_find__raises_on_impossible_numbers(n: int) -> None:
    x = spectra()
    with pytest.raises(InputError, match="1 and 20"):
        find_components(Moments.from_samples(x, x[:, :1]), n)
