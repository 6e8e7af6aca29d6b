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
    steering: Steering,
    unsteered_rank: int | None,
    unsteered_score: float,
    why: Attribution | None,
    **search: Any,
) -> dict[str, Any]:
    """Returns the value of `metadata["sae"]`: edits, rank (from 1) and score without steering, parts of the score.

    An edit with a `condition` has a contribution only if the query meets the condition. The rank is None if the passage
    is not among the plain search's candidates; `why` is None if the parts were not asked for. `search` are further
    entries about the search.
    """
    edits = [
        {
            **edit.to_dict(),
            "features": [int(feature) for feature in edit.features],
            "weights": [float(weight) for weight in edit.weights],
            "strength": float(edit.strength),
            **({} if edit.condition is None else {"condition": str(edit.condition)}),
        }
        for edit in steering.edits
    ]
    body = {"steer": edits, "unsteered_rank": unsteered_rank, "unsteered_score": float(unsteered_score), **search}
    return body if why is None else body | why.to_dict(SHOWN_FEATURES)
