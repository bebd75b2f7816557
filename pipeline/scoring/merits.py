"""The figures of merit: one list, with the name in files, the symbol for people, and how numbers are written."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["DELTA_R2", "MERITS", "MISSING", "R2_GLOBAL", "R2_ORACLE", "SHOWN_MERITS", "Merit"]

#: What a table shows where there is no number.
MISSING = "–"


@dataclass(frozen=True)
class Merit:
    """One figure of merit.

    Attributes
    ----------
    name
        As files spell it: the column, and the field of the summary.
    symbol
        As people read it.
    sign
        ``+`` where a number always shows its sign, because the sign is the message.
    """

    name: str
    symbol: str
    sign: str = ""

    def format(self, value: float, digits: int = 4) -> str:
        """Return a number as text, and a dash for NaN."""
        return MISSING if math.isnan(value) else format(value, f"{self.sign}.{digits}f")


R2_ORACLE = Merit("r2_oracle", "R²_oracle")
R2_GLOBAL = Merit("r2_global", "R²_global")
DELTA_R2 = Merit("delta_r2", "ΔR²", sign="+")
#: In the order of every array of figures of merit.
MERITS = (R2_ORACLE, R2_GLOBAL, DELTA_R2)
#: In the order in which tables show them: the two models, then their difference.
SHOWN_MERITS = (R2_GLOBAL, R2_ORACLE, DELTA_R2)
