"""What the ceiling says in the summary of a run, and in words: global model, oracle, ceiling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipeline.questions.gate import RouteScore
from pipeline.scoring import Estimate, Number, Plain

__all__ = [
    "ENOUGH",
    "NONLINEAR_VERDICTS",
    "NOTHING_LEFT",
    "UNDECIDED",
    "WORTH_TRYING",
    "CeilingAnswer",
    "CeilingLabel",
    "CeilingLevel",
    "CeilingPart",
    "Nonlinear",
    "describe_experts",
    "judge_nonlinear",
]

#: Below this effective size the lower end has not converged.
ENOUGH = 5.0
WORTH_TRYING, NOTHING_LEFT, UNDECIDED = "worth trying", "nothing left", "undecided"
#: What may be said of a nonlinear model.
NONLINEAR_VERDICTS = (WORTH_TRYING, UNDECIDED, NOTHING_LEFT)
#: A library beyond this is out of reach, and so is a bracket that closes more slowly than this power of its size.
_LARGEST, _SLOWEST = 1e9, 0.02


class CeilingPart(Plain):
    """The bracket on one set of test spectra, with one library.

    ``lower`` and ``upper`` are R² of the posterior mean without and with the spectrum's own star in the library; the
    first with a temperature, the second without. ``effective_size`` is the median over spectra. The other two are R² of
    the run's models on the same spectra.
    """

    n_library: int
    n_test: int
    temperature: float
    lower: Estimate
    upper: Estimate
    effective_size: Number
    r2_global: Number
    r2_oracle: Number

    @property
    def is_converged(self) -> bool:
        """Whether the effective size suffices."""
        return self.effective_size >= ENOUGH

    def tell(self, digits: int = 3) -> str:
        """Return the bracket in words."""
        if not math.isfinite(self.lower.mean) or not math.isfinite(self.upper.mean):
            return "unknown"
        return f"{self.lower.mean:.{digits}f} to {self.upper.mean:.{digits}f}"

    def share(self) -> tuple[float, float]:
        """Return what part of all that can be had above the global model experts capture, at both ends; NaN if none."""
        ends = [end.mean - self.r2_global for end in (self.upper, self.lower)]
        gain = self.r2_oracle - self.r2_global
        low, high = (gain / end if end > 0 else math.nan for end in ends)
        return low, high


class CeilingLabel(Plain):
    """The ceiling of one label.

    ``scopes`` are ``covered``, with the covered library, and ``all``; ``own_bin`` is the ceiling for who is told the
    true bin. Bins are parts of the same. ``growth`` holds a quarter, a half and all of the library for both scopes.
    """

    scopes: dict[str, CeilingPart]
    bins: tuple[CeilingPart, ...]
    own_bin: CeilingPart
    own_bins: tuple[CeilingPart, ...]
    growth: dict[str, tuple[CeilingPart, ...]]


class Nonlinear(Plain):
    """What a nonlinear model could gain over the experts: at least and at most, with the verdict in words."""

    at_least: Estimate
    at_most: Estimate
    verdict: str
    sentence: str


class CeilingLevel(Plain):
    """The ceiling at one noise level.

    ``rank`` is the number of directions in which likelihoods were formed, 0 where all pixels were, and
    ``likelihood_error`` the largest error of ln p for a spectrum and its own star. ``recomputed`` counts the pairs of a
    spectrum and a library star whose ln p was in doubt and was formed anew from all pixels. ``is_redrawn`` says that
    test noise was drawn for this question, since the run's was integrated out. ``posterior`` is soft routing by the
    exact probabilities of the cells, by scope or bin.
    """

    noise_level: float
    n_left_out: int
    rank: int
    likelihood_error: float
    recomputed: int
    is_redrawn: bool
    labels: dict[str, CeilingLabel]
    experts: str
    nonlinear: Nonlinear
    posterior: dict[str, RouteScore]


class CeilingAnswer(Plain):
    """The ceiling at every noise level with noise."""

    levels: tuple[CeilingLevel, ...]

    def at(self, noise_level: float) -> CeilingLevel | None:
        """Return the ceiling at one noise level."""
        return next((level for level in self.levels if level.noise_level == noise_level), None)


# --- Words.


def describe_experts(
    label: CeilingLabel, posterior: Mapping[str, RouteScore], threshold: float, names: Sequence[str], n_draws: int = 1
) -> str:
    """Say what experts capture of all that can be had, what a perfect gate keeps, and which bins are at their limit.

    Of several noise draws (``n_draws``) the first one is meant.
    """
    part = label.scopes["covered"]
    models = ", by the models of the first seed," if n_draws > 1 else ""
    sentences = [
        f"On {part.n_test:,} covered test spectra{models} the global model reaches R² {part.r2_global:.3f}, experts "
        f"that know the bin {part.r2_oracle:.3f}, and the best possible model {part.tell()}."
    ]
    low, high = part.share()
    if part.r2_oracle <= part.r2_global:
        sentences.append("Experts gain nothing over the global model on these spectra.")
    elif math.isfinite(high) and high <= 1:
        sentences.append(f"So experts capture {low:.0%} to {high:.0%} of the possible gain over the global model.")
    elif math.isfinite(low):
        sentences.append(f"So experts capture at least {low:.0%} of the possible gain over the global model.")
    if "covered" in posterior and math.isfinite(posterior["covered"].kept.mean):
        kept = posterior["covered"].kept
        state = "" if part.is_converged else "; with a larger library it may keep more"
        sentences.append(
            f"A perfect gate would keep {kept.mean:.0%} of their gain ({kept.low:.0%} to {kept.high:.0%}{state})."
        )
    limits = [
        name
        for name, one in zip(names, label.bins, strict=True)
        if one.upper.mean - one.r2_oracle < threshold  # NaN is not
    ]
    if limits:
        sentences.append(f"In {', '.join(limits)} less than {threshold:g} is left to gain over the experts.")
    return " ".join(sentences)


def _needed_library(growth: Sequence[CeilingPart], threshold: float, margin: float) -> float:
    """Return the library size at which the bracket would lie on one side of a threshold; infinity if none can be told.

    The width of the bracket is taken to fall on as a power of the size as it did from half the library to all, and its
    middle to stay. The nearer end must clear the threshold by the margin, which is that of its interval.
    """
    half, whole = growth[-2:]
    widths = [one.upper.mean - one.lower.mean for one in (half, whole)]
    distance = abs((whole.upper.mean + whole.lower.mean) / 2 - threshold) - margin
    if not (min(widths) > 0 and whole.n_library > half.n_library and distance > 0):
        return math.inf
    power = math.log(widths[0] / widths[1]) / math.log(whole.n_library / half.n_library)
    if power < _SLOWEST:
        return math.inf
    exponent = math.log(max(widths[1] / (2 * distance), 1.0)) / power
    return whole.n_library * math.exp(exponent) if exponent < math.log(_LARGEST) else math.inf


def judge_nonlinear(
    growth: Sequence[CeilingPart], at_least: Estimate, at_most: Estimate, threshold: float, confidence: float
) -> Nonlinear:
    """Decide whether a nonlinear model is worth trying beside the experts.

    The verdict is *worth trying* where the lower end of the ceiling lies at least ``threshold`` above R²_oracle, and
    *nothing left* where its upper end does not; each with the whole interval. Both hold however far the bracket has
    closed, since each end is a bound of its own. Anything else is *undecided*.

    Parameters
    ----------
    growth
        The bracket for a quarter, a half and all of the library.
    at_least, at_most
        The lower and the upper end over R²_oracle.
    threshold
        ``decision.nonlinear``.
    confidence
        Of the intervals.
    """
    least = f"{at_least.mean:+.3f} ({confidence:.0%} interval from {at_least.low:+.3f})".replace("-", "−")
    most = f"{at_most.mean:+.3f} ({confidence:.0%} interval up to {at_most.high:+.3f})".replace("-", "−")

    def judge(verdict: str, sentence: str) -> Nonlinear:
        return Nonlinear(at_least=at_least, at_most=at_most, verdict=verdict, sentence=sentence)

    if growth[-1].r2_oracle < 0:
        return judge(
            UNDECIDED,
            "Whether a nonlinear model is worth trying is not judged: R² of the experts is below 0, so a gain over "
            "them says nothing.",
        )
    if at_least.low >= threshold:
        return judge(
            WORTH_TRYING,
            f"A nonlinear model is worth trying: it can gain at least {least} of R² over the experts, which clears "
            f"{threshold:g}.",
        )
    if at_most.high < threshold:
        return judge(
            NOTHING_LEFT,
            f"Nothing is left for a nonlinear model: it can gain at most {most} of R² over the experts, which stays "
            f"below {threshold:g}.",
        )
    if not all(math.isfinite(value) for value in (at_least.mean, at_most.mean)):
        return judge(
            UNDECIDED, "Whether a nonlinear model is worth trying is undecided: the ceiling has no value here."
        )
    return judge(
        UNDECIDED,
        "Whether a nonlinear model is worth trying is undecided: it can gain between "
        f"{least} and {most} of R² over the experts, and the threshold is {threshold:g}. "
        + _tell_remedy(growth, at_least, at_most, threshold),
    )


def _tell_remedy(growth: Sequence[CeilingPart], at_least: Estimate, at_most: Estimate, threshold: float) -> str:
    """Say what would tell: more test spectra where the interval alone straddles, else a larger library."""
    whole = growth[-1]
    size = f"effective size {whole.effective_size:.1f}, at least {ENOUGH:g} is required"
    state = "" if whole.is_converged else f"The bracket has not converged ({size}). "
    if at_least.mean >= threshold or at_most.mean < threshold:
        return f"{state}More test spectra would decide it (ceiling.test)."
    is_above = at_least.mean + at_most.mean > 2 * threshold
    margin = at_least.mean - at_least.low if is_above else at_most.high - at_most.mean
    line = whole.r2_oracle + threshold
    needed = _needed_library(growth, line, margin)
    if math.isfinite(needed):
        stars = f"{round(needed, 1 - math.floor(math.log10(needed))):,.0f}"
        return f"{state}A library of about {stars} stars would decide it; this one has {whole.n_library:,}."
    if math.isfinite(_needed_library(growth, line, 0.0)):
        return f"{state}A larger library and more test spectra would decide it (ceiling.library, ceiling.test)."
    return f"{state}The bracket closes so slowly that no library of a realistic size would decide it."
