"""The list of noise models, and which of them an experiment trains and tests with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline import noise
from pipeline.errors import ConfigError
from pipeline.noise import NO_SEED, NOISE_KINDS, MarginalNoise, Noise, NoiseDraw, StoredNoise
from pipeline.schema import STREAM_TEST, STREAM_TRAIN
from pipeline.scoring import read_noisy_rows
from pipeline.store import SpectraStore

LEVELS, SEEDS = [0.5, 1.0], [42, 7]
DRAWN = [NoiseDraw(level, seed, STREAM_TRAIN) for level in LEVELS for seed in SEEDS]
MARGINAL = [MarginalNoise(level) for level in LEVELS]
ONE_OF_EACH = [DRAWN[2], MARGINAL[1], StoredNoise()]


@pytest.mark.parametrize(
    ("mode", "trained", "of_the_verdict"),
    [
        ("drawn", DRAWN, DRAWN),
        ("marginal", MARGINAL, MARGINAL),
        ("both", [*DRAWN, *MARGINAL], DRAWN),
        ("checked", [*MARGINAL, *DRAWN], MARGINAL),
    ],
)
def test_training_noises_come_in_order_and_the_verdict_is_about_the_first_kind(
    mode: str, trained: list[Noise], of_the_verdict: list[Noise]
) -> None:
    assert noise.training_noises(mode, LEVELS, SEEDS) == trained
    assert noise.verdict_noises(mode, LEVELS, SEEDS) == of_the_verdict
    assert [one for one in trained if noise.compares(mode, one)] == [
        one for one in trained if one not in of_the_verdict
    ]
    assert noise.is_marginal(mode) is (of_the_verdict == MARGINAL)


@pytest.mark.parametrize("has_noisy", [False, True])
@pytest.mark.parametrize("training", [*DRAWN, *MARGINAL])
def test_test_noises_share_level_and_seed_with_training(training: Noise, has_noisy: bool) -> None:
    seeds = [training.seed] if isinstance(training, NoiseDraw) else SEEDS
    drawn = [NoiseDraw(training.level, seed, STREAM_TEST) for seed in seeds]
    is_stored = has_noisy and training.level == 1.0
    assert noise.test_noises("drawn", training, SEEDS, has_noisy) == drawn
    assert noise.test_noises("stored", training, SEEDS, has_noisy) == ([StoredNoise()] if is_stored else drawn)
    assert noise.test_noises("marginal", training, SEEDS, has_noisy) == [MarginalNoise(training.level)]


def test_fields_that_enter_keys_stay_what_they_are() -> None:
    # Moments of earlier runs are found by hashes of these.
    assert vars(NoiseDraw(1.0, 42, 0)) == {"level": 1.0, "seed": 42, "stream": 0}
    assert vars(MarginalNoise(0.5)) == {"level": 0.5, "algorithm": "closed-form/chebyshev-16-44"}
    assert [one.name for one in ONE_OF_EACH[:2]] == ["seed-42_noise-1.0", "marginal_noise-1.0"]


def test_every_model_says_what_it_is() -> None:
    assert [one.kind for one in ONE_OF_EACH] == list(NOISE_KINDS)
    assert [one.seed for one in ONE_OF_EACH] == [42, NO_SEED, NO_SEED]
    assert [one.record()["seed"] for one in ONE_OF_EACH] == [42, None, None]
    assert [one.drawn(3) for one in ONE_OF_EACH] == [DRAWN[2], *[NoiseDraw(1.0, 3, STREAM_TRAIN)] * 2]
    assert "seed 42" in noise.describe_training_noise(DRAWN[2].record())
    assert len({noise.describe_test_noise(kind) for kind in NOISE_KINDS}) == len(NOISE_KINDS)


def test_single_spectra_have_no_variances(test_store: SpectraStore) -> None:
    for one in ONE_OF_EACH:
        rows, variances = one.read(test_store, 3, 9)
        assert rows.shape == (6, test_store.n_pixels)
        assert (variances is None) is one.is_single
    np.testing.assert_array_equal(StoredNoise().read(test_store, 3, 9)[0], read_noisy_rows(test_store, 3, 9, None))


@pytest.mark.parametrize("level", [-1.0, float("nan"), float("inf"), "1", True, None])
def test_a_level_is_a_number_of_0_or_more(level: Any) -> None:
    for make in (MarginalNoise, lambda value: NoiseDraw(value, 42, STREAM_TRAIN)):
        with pytest.raises(ConfigError, match="level: a number of 0 or more"):
            make(level)


@pytest.mark.parametrize(("seed", "stream"), [("42", 0), (-1, 0), (1.5, 0), (True, 0), (1, "train"), (1, -1)])
def test_seed_and_stream_are_whole_numbers(seed: Any, stream: Any) -> None:
    with pytest.raises(ConfigError, match=r"(seed|stream): a whole number of 0 or more is required"):
        NoiseDraw(1.0, seed, stream)


def test_stored_noise_is_for_tests_alone() -> None:
    with pytest.raises(NotImplementedError):
        StoredNoise().kernel(np.dtype("float32"))
    with pytest.raises(NotImplementedError):
        StoredNoise.for_training(1.0, SEEDS)
