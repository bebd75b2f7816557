"""The figures of a run, as PNG files for slides and for the report.

Each module draws one figure from the saved results; this one draws all of them into a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from matplotlib.figure import Figure

from pipeline.questions.ablation import draw_ablation
from pipeline.questions.bin_design import draw_bin_design
from pipeline.questions.gate import draw_gate, draw_gate_probabilities
from pipeline.questions.learning_curve import draw_learning_curve, draw_noise_levels
from pipeline.questions.marginal_curve import draw_marginal_noise
from pipeline.questions.penalty import draw_alpha_search
from pipeline.report import binning_views, headline
from pipeline.report.figures.canvas import save_figure
from pipeline.report.figures.dashboard import draw_dashboard
from pipeline.report.figures.per_bin import draw_delta_heatmap, draw_grouped_r2
from pipeline.report.figures.predictions import draw_predicted_against_true, draw_routed_against_true
from pipeline.report.figures.sample import draw_sample_distribution
from pipeline.scoring import RunResults

__all__ = ["FIGURES", "FIGURES_FOLDER", "NOISE_LEVELS_FIGURE", "render_figures"]

FIGURES_FOLDER = "figures"
NOISE_LEVELS_FIGURE = "moe_noise_amplification.png"


def _has_gate(results: RunResults) -> bool:
    return bool(headline(results).get("routing"))


#: Every figure by its file name, in the order of the report.
FIGURES: Mapping[str, Callable[[RunResults], Figure]] = MappingProxyType(
    {
        "moe_oracle_dashboard.png": draw_dashboard,
        "moe_delta_r2_heatmap.png": draw_delta_heatmap,
        "moe_perbin_r2_grouped.png": draw_grouped_r2,
        "moe_pred_vs_true.png": draw_predicted_against_true,
        "moe_sample_distribution.png": draw_sample_distribution,
        "moe_learning_curve.png": draw_learning_curve,
        "moe_marginal_noise.png": draw_marginal_noise,
        "moe_ablation.png": draw_ablation,
        "moe_bin_design.png": draw_bin_design,
        "moe_gate.png": draw_gate,
        "moe_gate_probabilities.png": draw_gate_probabilities,
        "moe_routes.png": draw_routed_against_true,
        "moe_alpha_search.png": draw_alpha_search,
        NOISE_LEVELS_FIGURE: draw_noise_levels,
    }
)
#: Figures that not every run has, and whether one has.
_OPTIONAL: Mapping[str, Callable[[RunResults], bool]] = MappingProxyType(
    {
        "moe_ablation.png": lambda results: bool(binning_views(headline(results))),
        "moe_bin_design.png": lambda results: bool(results.summary.get("design")),
        **dict.fromkeys(("moe_gate.png", "moe_gate_probabilities.png", "moe_routes.png"), _has_gate),
        "moe_alpha_search.png": lambda results: not results.alpha_search.empty,
        "moe_marginal_noise.png": lambda results: bool(results.summary.get("marginal")),
        NOISE_LEVELS_FIGURE: lambda results: len(results.summary["levels"]) > 1,
    }
)


def render_figures(results: RunResults) -> dict[str, Path]:
    """Draw and write every figure of a run.

    Parameters
    ----------
    results
        A scored run.

    Returns
    -------
    dict[str, Path]
        Paths of the PNG files in ``RUN/figures``, by file name. A figure that the run has no content for is not
        there; one left by an earlier run in this folder is removed.

    Raises
    ------
    ResourceError
        If a file cannot be written.
    """
    folder = results.folder / FIGURES_FOLDER
    written = {}
    for name, draw in FIGURES.items():
        path = folder / name
        if name in _OPTIONAL and not _OPTIONAL[name](results):
            path.unlink(missing_ok=True)
            continue
        save_figure(draw(results), path)
        written[name] = path
    return written
