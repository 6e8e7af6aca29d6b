"""What an adapter writes beside a hit: the steering and the reasons, in plain types that JSON can hold."""

from __future__ import annotations

from typing import Any

from sae_steer_retriever.explain.attribution import Attribution
from sae_steer_retriever.steering.policy import Steering

EXPLANATION_KEY = "sae"
SHOWN_FEATURES = 5


def explanation(
    steering: Steering, unsteered_rank: int | None, unsteered_score: float, why: Attribution | None
) -> dict[str, Any]:
    """The value of `metadata["sae"]`.

    `features` (the largest), `other_features`, `steering`, `bias` and `residual` hold contributions that sum to the
    score; `unexplained` is the residual's share of all parts by size.

    Args:
        steering: What was asked for; an empty list under `steer` shows that no steering arrived. An edit with a
            `condition` was made only for queries that meet it: only then `steering` has its contribution.
        unsteered_rank: From 1; None if the plain search did not find the passage.
        unsteered_score: Its score without steering.
        why: The parts of its score, where they were asked for.
    """
    body: dict[str, Any] = {
        "steer": [
            {
                "name": edit.name,
                "features": [int(feature) for feature in edit.features],
                "weights": [float(weight) for weight in edit.weights],
                "op": edit.op,
                "strength": float(edit.strength),
                "side": edit.side,
                **({} if edit.condition is None else {"condition": str(edit.condition)}),
            }
            for edit in steering.edits
        ],
        "unsteered_rank": unsteered_rank,
        "unsteered_score": float(unsteered_score),
    }
    if why is None:
        return body
    shown = why.top(SHOWN_FEATURES)
    return body | {
        "features": [
            {"id": int(part.feature), "label": part.label, "contribution": float(part.value)} for part in shown
        ],
        "other_features": float(sum(part.value for part in why.features) - sum(part.value for part in shown)),
        "steering": [
            {"name": term.name, "side": term.side, "contribution": float(term.value)} for term in why.steering
        ],
        "bias": float(why.bias),
        "residual": float(why.residual),
        "unexplained": float(why.unexplained),
    }


__all__ = ["EXPLANATION_KEY", "SHOWN_FEATURES", "explanation"]
