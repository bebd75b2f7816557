from .question import Ablation as Ablation
