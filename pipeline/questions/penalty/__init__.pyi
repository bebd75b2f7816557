from .question import Penalty as Penalty
