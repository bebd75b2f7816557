from .question import LearningCurve as LearningCurve
from .question import delta_resamples as delta_resamples
