from .question import Labels as Labels
