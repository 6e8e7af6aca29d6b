"""The explanation that both adapters attach to a hit: the steering and the parts of the score, as plain JSON values."""

from __future__ import annotations

from typing import Any

from sae_steer_retriever.explain.attribution import Attribution
from sae_steer_retriever.steering.policy import Steering

EXPLANATION_KEY = "sae"
# LlamaIndex keeps a whole node as JSON under this key of a passage's metadata.
NODE_KEY = "_node_content"
SHOWN_FEATURES = 5


def explanation(
    steering: Steering, unsteered_rank: int | None, unsteered_score: float, why: Attribution | None
) -> dict[str, Any]:
    """Returns the value of `metadata["sae"]`.

    Args:
        steering: The steering of the search; its edits are listed under `steer`. An edit with a `condition` has a
            contribution only if the query meets the condition.
        unsteered_rank: From 1; None if the passage is not among the plain search's candidates.
        unsteered_score: The score without steering.
        why: The parts of the score; None if they were not asked for.
    """
    edits = [
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
    ]
    body = {"steer": edits, "unsteered_rank": unsteered_rank, "unsteered_score": float(unsteered_score)}
    return body if why is None else body | why.to_dict(SHOWN_FEATURES)
