"""The words of the report: captions, glossary, remarks and the commands that reproduce a run."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline import schema
from pipeline.config import DecisionConfig
from pipeline.errors import enumerate_words
from pipeline.report.views import amplification, headline, scope_views, symbol, thresholds
from pipeline.scoring import RunResults

__all__ = [
    "ABOUT_LABELS",
    "LEAK",
    "REPORT_FIGURES",
    "caption_figure",
    "describe_words",
    "explain_economy",
    "explain_hypotheses",
    "explain_levels",
    "list_commands",
]

#: Title and what to look for, by file name and in the order of the report.
REPORT_FIGURES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "moe_oracle_dashboard.png": (
            "The result on one page",
            "Look first at the middle left: the verdict needs the whole bar of “covered” in one coloured zone. "
            "The bars on the right tell whether all bins gain or a few carry the rest.",
        ),
        "moe_delta_r2_heatmap.png": (
            "ΔR² in every bin",
            "Blue bins gain from an expert of their own, red ones lose. Where the interval in a cell includes "
            "zero, the colour may be chance.",
        ),
        "moe_perbin_r2_grouped.png": (
            "R² in every bin, both models",
            "A long blue bar is a bin that is easy once it has its own expert; a short one is hard for any "
            "linear model. R² of a bin is relative to the spread of labels within it, so it can be low in "
            "every bin and still be high over all.",
        ),
        "moe_marginal_noise.png": (
            "Drawn and marginal training noise",
            "Where the dashed curve lies above the full one, the number of noisy spectra limits the model, not the "
            "physics: more draws of the same spectra would help as much as more spectra. Where they meet, it does not.",
        ),
        "moe_ablation.png": (
            "Gain of other divisions",
            "A share near 100 % with fewer experts says that the columns left out bring little. Each binning is scored "
            "on the spectra that it covers; where these differ from the topmost one's, so does the global model's R².",
        ),
        "moe_bin_design.png": (
            "How many experts, and where to cut",
            "The solid curve alone decided, on spectra of the training set that the models had not seen. It can only "
            "look a little too good, since the best of many divisions was taken: the dashed curve of the test spectra "
            "tells how much. Where it flattens, more experts bring nothing.",
        ),
        "moe_gate.png": (
            "Routing without labels",
            "Soft routing near the oracle's bar says that the headroom can be had in production. Confusion between "
            "neighbouring bins costs little, since their experts say much the same; points below the dashed line at "
            "the lower right say that the gate is surer than it is right.",
        ),
        "moe_gate_probabilities.png": (
            "What the gate says of each bin",
            "A row is a true bin. Probability beside the diagonal goes to neighbours, which costs little; probability "
            "that goes far away, or outside, is where an expert is lost. A feature of no importance may be left out "
            "without harm, unless another one tells the same.",
        ),
        "moe_routes.png": (
            "Predicted against true, by route",
            "What routing costs shows between the oracle and the other routes: points far from the dashed line that "
            "the oracle's panel does not have were sent to a wrong expert.",
        ),
        "moe_pred_vs_true.png": (
            "Predicted against true",
            "A good model lies along the dashed line. A cloud flatter than the line is shrunk towards the "
            "mean: low values are predicted too high, high ones too low.",
        ),
        "moe_sample_distribution.png": (
            "Where the spectra are",
            "Spectra beyond the lines are in no bin and have no expert. Train and test should look alike; "
            "where they do not, the overall numbers weigh the bins differently.",
        ),
        "moe_alpha_search.png": (
            "R² against the penalty",
            "The solid curve alone decided, on spectra of the training set that the model had not seen. A mark at the "
            "end of a curve says that a better penalty may lie beyond the grid. Where the dashed curve of the test "
            "spectra peaks elsewhere, that is no mistake: choosing by it would flatter the result.",
        ),
        "moe_learning_curve.png": (
            "Gain against the number of training spectra",
            "A curve that still rises at its right end says that more spectra would help that model. Where ΔR² "
            "falls, the global model is catching up; only its level at the right end counts for the decision.",
        ),
        "moe_noise_amplification.png": (
            "Gain against the noise level",
            "A decision holds for the noise levels on its side of the thresholds.",
        ),
    }
)


_KNOWS = "experts chosen by its true value would know it, so only the global model counts."
#: What a label that the bins are cut by shows instead of experts.
LEAK = f"The bins are cut by this label: {_KNOWS}"
#: What stands above the figures of merit of other labels.
ABOUT_LABELS = (
    "The models of the same pass predict these labels, too, with the penalties that the target has. "
    f"Where the bins are cut by a label, {_KNOWS}"
)


def caption_figure(name: str, results: RunResults) -> tuple[str, str]:
    """Return a figure's title and what to look for in it; no caption for a figure that is not ours."""
    title, caption = REPORT_FIGURES.get(name, (Path(name).stem.replace("_", " "), ""))
    if name != "moe_noise_amplification.png":
        return title, caption
    return title, " ".join([_describe_amplification(results), _describe_crossings(results), caption]).strip()


def _describe_amplification(results: RunResults) -> str:
    """Say how many times ΔR² at noise level 1 is that at 0.2, or at the highest level that at the lowest above 0."""
    found = amplification(results)
    if found is None:
        return ""
    return f"ΔR² at noise level {found.high:g} is {found.ratio:.1f} times that at {found.low:g}."


def _describe_crossings(results: RunResults) -> str:
    """Say between which noise levels the mean of ΔR² crosses a threshold, and nothing that the curve does not do."""
    limits = thresholds(results)
    means = {}
    for level in sorted(results.summary["levels"], key=lambda level: level["noise_level"]):
        mean = next(iter(scope_views(level).values())).delta_r2.mean
        if math.isfinite(mean):
            means[float(level["noise_level"])] = mean
    if not means:
        return "ΔR² is undefined at every noise level."
    crossings = []
    for low, high in pairwise(means):
        crossed = [
            f"{limit:g}" for limit in (limits.continue_, limits.stop) if (means[low] >= limit) != (means[high] >= limit)
        ]
        if crossed:
            crossings.append(f"{enumerate_words(crossed)} between noise levels {low:g} and {high:g}")
    if crossings:
        return f"ΔR² crosses {'; '.join(crossings)}."
    return f"ΔR² crosses no threshold: at all these noise levels it is {_place(max(means.values()), limits)}."


def _place(value: float, limits: DecisionConfig) -> str:
    if value >= limits.continue_:
        return f"at or above {limits.continue_:g}"
    return f"below {limits.stop:g}" if value < limits.stop else f"between {limits.stop:g} and {limits.continue_:g}"


def explain_levels(results: RunResults) -> str:
    """Say which noise level figures show, where there are several; otherwise nothing."""
    levels = [f"{level['noise_level']:g}" for level in results.summary["levels"]]
    if len(levels) < 2:
        return ""
    shown = f"{headline(results)['noise_level']:g}"
    return (
        f"Figures show noise level {shown}, and so does the learning curve; the other tables list every level "
        f"({enumerate_words(levels)}), and one figure compares them."
    )


def explain_hypotheses(metadata: Mapping[str, Any]) -> str:
    """Say whose hypotheses these are, where the configuration states none."""
    if (metadata.get("config") or {}).get("hypotheses") is not None:
        return ""
    return (
        "The configuration states no hypotheses of its own (hypotheses: null), so these are the default hypotheses "
        "of the reference run; the one about the lowest bins belongs to its grid and is left out on any other."
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
        f"{words} Reading the spectra of each of them anew would have taken {_duration(economy['refit_seconds'])}: the "
        "measured time of the pass for a spectrum, multiplied; solving is not counted."
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
            f"test spectra whose true {columns} {verb} in one of the bins: those an expert exists for. Both "
            "models are scored on these same spectra; the conclusion is about them.",
        ),
        (
            "all",
            "every test spectrum. Those in no bin get the global model's answer in both cases, which dilutes "
            "the difference.",
        ),
        (
            "interval",
            f"how far the number could move by the luck of which test spectra were picked: redrawing them{drawn} gave "
            f"values between low and high in {results.summary['confidence']:.0%} of the cases.",
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
