from .figure import draw_ablation as draw_ablation
from .table import ScoredBinning as ScoredBinning
from .table import summarise_ablation as summarise_ablation
from .table import tabulate_ablation as tabulate_ablation
