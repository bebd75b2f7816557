from .question import Rank as Rank
