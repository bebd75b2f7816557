from .question import Labels as Labels
from .question import without_oracle as without_oracle
