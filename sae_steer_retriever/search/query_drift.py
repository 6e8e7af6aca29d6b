"""How far a steering moves a query, and what that costs: two figures to watch while strengths are turned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.steering.plan import plan, plan_code

if TYPE_CHECKING:
    from sae_steer_retriever.features.calibration import Calibration
    from sae_steer_retriever.search.hits import Hit
    from sae_steer_retriever.steering.policy import Steering


class Drift(NamedTuple):
    """How far a steering turns a query.

    Attributes:
        cosine: Between the query and the shifted query, 1.0 where nothing query shifts it; of power-normalised codes
            in the latent space.
        applied: Share of the query shift asked for that the drift cap lets through, in (0, 1].
    """

    cosine: float
    applied: float


def query_drift(
    steering: Steering,
    embedding: Array,
    code: Codes[NDArray[Any]],
    sae: TopKSAE,
    calibration: Calibration,
    *,
    space: str = "original",
) -> Drift:
    """The drift of one query, by the plan that its search is made of.

    Args:
        steering: What applies to this query.
        embedding: (d,) the query.
        code: (1, K) its code.
        sae: The dictionary.
        calibration: Its units.
        space: Where it is searched.
    """
    if not steering.edits:
        return Drift(1.0, 1.0)
    if space == "latent":
        planned = plan_code(steering, code, calibration)
        vector, made = planned.vector, planned.plan
    else:
        vector = sae.decode(code)[0] if space == "reconstructed" else embedding
        made = plan(steering, vector, code, sae, calibration)
    shifted = vector + made.total_shift(len(vector))
    lengths = float(np.linalg.norm(vector)) * float(np.linalg.norm(shifted))
    return Drift(min(float(vector @ shifted) / lengths, 1.0) if lengths else 1.0, float(made.capped))


def plain_loss(before: Sequence[Hit], after: Sequence[Hit]) -> float:
    """The share of the hits' mean plain score that is lost, as `Counterfactual.drift` counts it; 0.05 is 5 %.

    Args:
        before: The hits without steering.
        after: The hits with it.
    """
    if not before or not after:
        return 0.0
    plain, left = (float(np.mean([hit.base_score for hit in hits])) for hits in (before, after))
    return (plain - left) / abs(plain) if plain else 0.0


__all__ = ["Drift", "plain_loss", "query_drift"]
