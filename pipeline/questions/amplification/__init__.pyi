from .question import Amplification as Amplification
