from .question import MarginalCurve as MarginalCurve
