"""The noise models, in one list, and which of them an experiment trains and tests with.

A new noise model is a module beside this one, an entry in :data:`NOISE_KINDS` and its word in the settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pipeline.noise.draws import NoiseDraw, StoredNoise
from pipeline.noise.marginal import MarginalNoise
from pipeline.noise.model import Noise

__all__ = [
    "NOISE_KINDS",
    "compares",
    "describe_test_noise",
    "describe_training_noise",
    "is_marginal",
    "test_noises",
    "training_noises",
    "verdict_noises",
]

#: The noise models by their kind.
NOISE_KINDS: Mapping[str, type[Noise]] = MappingProxyType(
    {model.kind: model for model in (NoiseDraw, MarginalNoise, StoredNoise)}
)
#: What the setting ``noise.mode`` means: the kinds of training noise. The verdict is about the first one, and the
#: others are held against it.
_TRAINED_ON: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "drawn": (NoiseDraw.kind,),
        "marginal": (MarginalNoise.kind,),
        "both": (NoiseDraw.kind, MarginalNoise.kind),
        "checked": (MarginalNoise.kind, NoiseDraw.kind),
    }
)


def _trained_on(mode: str) -> tuple[type[Noise], ...]:
    return tuple(NOISE_KINDS[kind] for kind in _TRAINED_ON.get(mode, (mode,)))


def training_noises(mode: str, levels: Sequence[float], seeds: Sequence[int]) -> list[Noise]:
    """Return the training noises of an experiment: every kind of the mode, at every level, for every seed if drawn."""
    return [noise for kind in _trained_on(mode) for level in levels for noise in kind.for_training(level, seeds)]


def verdict_noises(mode: str, levels: Sequence[float], seeds: Sequence[int]) -> list[Noise]:
    """Return the training noises that the verdict is about, in the order of :func:`training_noises`."""
    return [noise for noise in training_noises(mode, levels, seeds) if not compares(mode, noise)]


def compares(mode: str, noise: Noise) -> bool:
    """Return whether a training noise is only held against the one that the verdict is about."""
    return noise.kind != _trained_on(mode)[0].kind


def is_marginal(mode: str) -> bool:
    """Return whether the verdict is about models that were trained on means over all draws."""
    kinds = _TRAINED_ON.get(mode, (mode,))
    return kinds[0] in NOISE_KINDS and not NOISE_KINDS[kinds[0]].is_single


def test_noises(kind: str, training: Noise, seeds: Sequence[int], has_noisy: bool) -> list[Noise]:
    """Return the test noises that models of a training noise are scored under.

    Models trained on drawn noise are tested on a draw of the same seed; marginal ones on one draw for every seed.

    Parameters
    ----------
    kind
        The setting ``noise.test``.
    training
        What the models were trained on; the test noise has its level.
    seeds
        Of the experiment.
    has_noisy
        Whether the test spectra came with noise of their own.
    """
    return NOISE_KINDS[kind].for_tests(training, seeds, has_noisy)


def describe_test_noise(kind: str) -> str:
    """Return what a report says of a kind of test noise; of one that is not known here, its name."""
    return NOISE_KINDS[kind].words if kind in NOISE_KINDS else kind


def describe_training_noise(recorded: Mapping[str, Any]) -> str:
    """Return what a model card says of a training noise, from its :meth:`Noise.record`."""
    return NOISE_KINDS[recorded["mode"]].training_words.format(seed=recorded["seed"])
