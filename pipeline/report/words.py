"""The words of the report: captions, glossary, remarks and the commands that reproduce a run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.config import DecisionConfig
from pipeline.errors import enumerate_words
from pipeline.noise import NO_SEED
from pipeline.scoring import RunResults, Scope, cut_name

__all__ = [
    "bin_edges",
    "collapse_warnings",
    "conclusion",
    "count_spectra",
    "coverage",
    "describe_words",
    "explain_economy",
    "explain_hypotheses",
    "explain_levels",
    "explain_numbers",
    "interval_labels",
    "learning_points",
    "list_commands",
    "over_seeds",
    "quantity",
    "symbol",
    "target_quantity",
    "thresholds",
]

# --- How the page and the figures call things: symbols with units, edges and names of bins, thresholds.


def conclusion(results: RunResults) -> str:
    """Return the sentence that a report opens with.

    With several noise levels it says which one it is about and adds the verdicts of the others, in the order
    of the configuration, for example ``At noise level 1: … (At noise level 0.2: undecided.)``.
    """
    level = results.summary.headline
    others = [one for one in results.summary.levels if one is not level]
    if not others:
        return level.decision.sentence
    verdicts = "; at ".join(f"{one.noise_level:g}: {one.decision.verdict}" for one in others)
    return f"At noise level {level.noise_level:g}: {level.decision.sentence} (At noise level {verdicts}.)"


def over_seeds(results: RunResults) -> str:
    """Return of how many noise draws a number is the mean, to follow the noise level in a note.

    For example ``, mean over 3 seeds``; nothing where the run drew no noise at the headline level.
    """
    own = results.overall["noise_level"] == results.summary.headline.noise_level
    seeds = sorted({int(seed) for seed in results.overall.loc[own, "seed"]} - {NO_SEED})
    if len(seeds) == 1:
        return f", seed {seeds[0]}"
    return f", mean over {len(seeds)} seeds" if seeds else ""


def learning_points(results: RunResults) -> Sequence[Scope]:
    """Return the scores of covered spectra of growing training sets, at the headline noise level."""
    return results.summary.headline.curve


def thresholds(results: RunResults) -> DecisionConfig:
    """Return the thresholds that the run's configuration states."""
    return DecisionConfig.model_validate(results.metadata["config"].get("decision") or {})


def bin_edges(results: RunResults) -> dict[str, list[float]]:
    """Return the edges of the bins by column, in the order that numbers them."""
    bins = results.metadata["config"]["bins"]
    return {column: [float(edge) for edge in bins[column]] for column in results.metadata["bin_columns"]}


def interval_labels(results: RunResults, column: str) -> list[str]:
    """Return a column's intervals as name and edges, for example ``Cool\\n3750–4500``."""
    names = results.metadata["interval_names"][column]
    edges = bin_edges(results)[column]
    # A dash beside a minus reads badly, and one axis has one way of writing an interval.
    between = " to " if min(edges) < 0 else "–"
    labels = []
    for name, (low, high) in zip(names, pairwise(edges), strict=True):
        span = f"{low:g}{between}{high:g}".replace("-", "−")
        # Intervals without names of their own are already called by their edges.
        nameless = str(name) in (span, f"{low:g}–{high:g}")
        labels.append(span if nameless else f"{cut_name(str(name), 18)}\n{span}")
    return labels


def coverage(results: RunResults, part: str) -> float | None:
    """Return the share of train or test spectra that lie in a bin, where the run recorded it."""
    value = results.metadata.get("stores", {}).get(part, {}).get("coverage")
    return None if value is None else float(value)


def symbol(column: str) -> str:
    """Return a column's name as figures write it."""
    return schema.COLUMN_SYMBOLS.get(column, column)


def quantity(column: str) -> str:
    """Return a column's symbol with its unit, for example ``T_eff (K)``."""
    unit = schema.COLUMN_UNITS.get(column, "1")
    return symbol(column) if unit == "1" else f"{symbol(column)} ({unit})"


def target_quantity(results: RunResults) -> str:
    """Return the target's symbol with its unit."""
    return quantity(results.summary.target)


def explain_levels(results: RunResults) -> str:
    """Say which noise level figures show, where there are several; otherwise nothing."""
    levels = [f"{level.noise_level:g}" for level in results.summary.levels]
    if len(levels) < 2:
        return ""
    shown = f"{results.summary.headline.noise_level:g}"
    return (
        f"Figures show noise level {shown}, and so does the learning curve; the other tables list every level "
        f"({enumerate_words(levels)}), and one figure compares them."
    )


def explain_hypotheses(metadata: Mapping[str, Any]) -> str:
    """Say whose hypotheses these are, where the configuration states none."""
    if (metadata.get("config") or {}).get("hypotheses") is not None:
        return ""
    return (
        "The configuration states no hypotheses (hypotheses: null), so those of the reference run are tested. The one "
        "about the lowest bins is tested only if a run has the bins of the reference run."
    )


def explain_economy(metadata: Mapping[str, Any]) -> str:
    """Say how many models the pass yielded, and what reading the spectra again for each would have cost."""
    economy = metadata.get("economy")
    if not economy:
        return ""
    once = "one pass" if economy["passes"] == 1 else f"{economy['passes']} passes (one for each noise)"
    words = (
        f"The moments of {once} over the training spectra gave {economy['models']:,} distinct models, each for "
        f"{economy['labels']} labels."
    )
    if economy["refit_seconds"] is None:
        return words
    return (
        f"{words} Reading the spectra of each of them anew would have taken {_duration(economy['refit_seconds'])}. "
        "This is the measured time of the pass per spectrum, times the spectra of all models; solving is not counted."
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def describe_words(results: RunResults) -> list[tuple[str, str]]:
    """Explain covered, all, interval, ± and α to a reader who is no astronomer."""
    columns = enumerate_words([symbol(column) for column in results.metadata["bin_columns"]])
    verb = "lies" if len(results.metadata["bin_columns"]) == 1 else "lie"
    config = results.metadata.get("config") or {}
    resamples = (config.get("bootstrap") or {}).get("resamples")
    drawn = f" ({resamples} times, with replacement)" if resamples else " with replacement"
    return [
        (
            "covered",
            f"test spectra whose true {columns} {verb} in one of the bins, so that an expert exists for them. Both "
            "models are scored on these same spectra, and the conclusion is about them.",
        ),
        (
            "all",
            "every test spectrum. Those in no bin get the global model's answer in both cases, which dilutes "
            "the difference.",
        ),
        (
            "interval",
            f"how far the number could move with other test spectra: redrawing the test spectra{drawn} gave "
            f"values between low and high in {results.summary.confidence:.0%} of the cases.",
        ),
        (
            "±",
            "standard deviation between seeds, that is, between repetitions with other random noise; a dash where "
            "there was one seed only.",
        ),
        (
            "α",
            "the ridge penalty: how strongly a model is held back from following the noise. Larger means "
            "simpler; it is never chosen on the test spectra.",
        ),
    ]


def count_spectra(results: RunResults) -> str:
    """Return in a line how many spectra a run is made of, and of which size."""
    stores, covered = results.metadata.get("stores") or {}, results.summary.headline.covered
    train, test = ((stores.get(part) or {}).get("n_spectra") for part in ("train", "test"))
    whole = results.summary.headline.scopes.get("all", covered)
    pixels = (stores.get("train") or {}).get("n_pixels")
    size = f" of {pixels:,} pixels" if pixels else ""
    return (
        f"{train or whole.n_train:,} training and {test or whole.n_test:,} test spectra{size}; "
        f"{covered.n_test:,} test spectra are covered."
    )


def explain_numbers(results: RunResults) -> list[tuple[str, str]]:
    """Return what covered, oracle and ΔR² mean, in a line each."""
    columns = " and ".join(symbol(column) for column in results.metadata["bin_columns"])
    return [
        ("covered", f"test spectra whose true {columns} lie in a bin; the numbers above are theirs."),
        ("oracle", "the expert of a spectrum's true bin answers. In production nobody knows that bin."),
        ("R²", "share of the label's variance that is explained: 1 is perfect, 0 is a guess of the mean."),
    ]


def collapse_warnings(warnings: Sequence[str]) -> list[str]:
    """Return warnings, those that differ in their numbers or names alone as one, with what differs in the others.

    Examples
    --------
    >>> collapse_warnings(["bin 3 has 12 spectra", "bin 4 has 7 spectra", "no noise"])
    ['bin 3 has 12 spectra (and 1 more of this kind: bin 4 has 7 spectra)', 'no noise']
    """
    kinds: dict[str, list[str]] = {}
    for warning in warnings:
        kinds.setdefault(re.sub(r"'[^']*'|\([^()]*\)|[-+−]?\d[\d,.e%+-]*", "#", warning), []).append(warning)
    told = []
    for same in kinds.values():
        if len(same) == 1:
            told.append(same[0])
            continue
        others = "; ".join(_tell_difference(same[0], other) for other in same[1:])
        told.append(f"{same[0]} (and {len(same) - 1} more of this kind: {others})")
    return told


def _tell_difference(first: str, other: str) -> str:
    """Return the beginning of a text up to its last difference from another one."""
    end = len(other)
    while end and other[-(len(other) - end + 1) :] == first[-(len(other) - end + 1) :]:
        end -= 1
    while end < len(other) and not other[end].isspace():
        end += 1
    if other.count("(", 0, end) > other.count(")", 0, end):  # what stands in brackets stays together
        end = other.find(")", end) + 1 or len(other)
    return other[: max(end, 1)].rstrip(" ,;:") if end < len(other) - 20 else other


def list_commands(results: RunResults) -> str:
    """Return shell commands that repeat a run beside itself, from the configuration that it saved."""
    metadata, folder = results.metadata, results.folder.resolve()
    # "+changes" marks a checkout that had been edited; what was edited is not recorded.
    commit, edited, _ = (metadata.get("git_commit") or "").partition("+")
    again = shlex.quote(f"{folder}-again")
    files = " ".join(metadata.get("hashes") or {})
    lines = [
        *([f"git checkout {commit}" + ("  # it had been edited" if edited else "")] if commit else []),
        "make install",
        "source .venv/bin/activate  # or the environment that headroom is installed in",
        *_list_sample(metadata),
        f"headroom run {shlex.quote(str(folder / 'config.yaml'))} --out {again}",
        # The sums in the provenance tell whether the same numbers came out.
        *([f"cd {again}", f"sha256sum {files}  # compare with the sums under Provenance"] if files else []),
    ]
    return "\n".join(lines)


def _list_sample(metadata: Mapping[str, Any]) -> list[str]:
    """Return the command that makes simulated shards again, as far as the run knows it."""
    stores = metadata.get("stores") or {}
    sources = {part: (stores.get(part) or {}).get("sources") or () for part in ("train", "test")}
    made = {part: bool(found) and all(map(_is_simulated, found)) for part, found in sources.items()}
    if not metadata.get("simulated"):
        return []
    remark = "# The shards were made by `headroom sample`"
    if not all(made.values()):
        return [f"{remark}; where they are gone, make them again with the same options."]
    train, test = stores["train"], stores["test"]
    return [
        f"{remark}; where they are gone, make them again (and with the --seed and --grid of then, if any):",
        f"#   headroom sample {shlex.quote(_find_sample(metadata))} --train {train['n_spectra']} "
        f"--shards {len(sources['train'])} --test {test['n_spectra']} --pixels {train['n_pixels']}",
    ]


def _is_simulated(source: str | Mapping[str, Any]) -> bool:
    return not isinstance(source, str) and schema.SIMULATED_REMARK in (source.get("remarks") or ())


def _find_sample(metadata: Mapping[str, Any]) -> str:
    """Return the folder that ``headroom sample`` wrote, if the configuration names its usual files."""
    paths = ((metadata.get("config") or {}).get("data") or {}).get("train") or []
    folders = {Path(path).parent.parent for path in paths if path.endswith("train/shard_index.txt")}
    return str(folders.pop()) if len(folders) == 1 else "SPECTRA"
