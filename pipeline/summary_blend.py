"""What the summary says of blends: how they and soft routing err on held-out folds of the training spectra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.routing_blend import Blend

__all__ = ["summarise_blends"]


def summarise_blends(blends: Sequence[Blend]) -> dict[str, Any] | None:
    """Return how many of the blends of one noise level are kept, their mean errors, and a sentence; None without any.

    Errors are means of squares in units of the target, for every scope: of the blend, soft and fall-back routing, and
    the global model.
    """
    if not blends:
        return None
    scopes = {
        scope: {
            name: float(np.mean([getattr(one.errors[scope], name) for one in blends]))
            for name in ("blend", "soft", "fallback", "of_global", "margin")
        }
        | {"count": sum(one.errors[scope].count for one in blends)}
        for scope in blends[0].errors
    }
    kept = sum(one.is_kept for one in blends)
    return {"n": len(blends), "kept": kept, "held_out": scopes, "sentence": _say(kept, len(blends), scopes)}


def _say(kept: int, n: int, scopes: dict[str, dict[str, float]]) -> str:
    shown = scopes.get("covered") or scopes["all"]
    errors = (
        f"On held-out folds of the training spectra the blend's mean squared error is {shown['blend']:.4g}, soft "
        f"routing's {shown['soft']:.4g} and the global model's {shown['of_global']:.4g}"
    )
    if kept == n:
        return f"{errors}: the blend is kept."
    if kept == 0:
        return f"{errors}: the blend is not kept, and the route blend is soft routing."
    return f"{errors}: it is kept for {kept} of {n} noise draws, and the route blend is soft routing for the others."
