from .question import BinDesign as BinDesign
