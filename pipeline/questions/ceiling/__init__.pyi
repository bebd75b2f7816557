from .question import Ceiling as Ceiling
