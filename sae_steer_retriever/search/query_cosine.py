"""Two figures to watch while strengths change: the query cosine, and the score loss of the hits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.features.calibration import Calibration
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.steering.plan import plan, plan_code
from sae_steer_retriever.steering.policy import Steering


class QueryCosine(NamedTuple):
    """How far a steering turns a query.

    Attributes:
        cosine: Between the query and the shifted query, of their codes in the latent space; 1.0 without a
            shift.
        applied: Share of the requested shift that the drift cap lets through, in (0, 1].
    """

    cosine: float
    applied: float


def query_cosine(
    steering: Steering,
    embedding: Array,
    code: Codes[NDArray[Any]],
    sae: TopKSAE,
    calibration: Calibration,
    *,
    space: str = "original",
    latent_score: str = "match",
) -> QueryCosine:
    """Returns the query cosine of one query, from the plan that its search uses.

    Args:
        steering: The edits that apply to this query.
        embedding: (d,) the query.
        code: (1, K) its code.
        sae: The dictionary.
        calibration: Its units.
        space: The space that is searched.
        latent_score: The score of the latent space.
    """
    if not steering.edits:
        return QueryCosine(1.0, 1.0)
    if space == "latent" and latent_score != "match":
        planned = plan_code(steering, code, calibration, damped=latent_score == "damped")
        vector, made = planned.vector, planned.plan
    else:
        vector = sae.decode(code)[0] if space == "reconstructed" else embedding
        made = plan(steering, vector, code, sae, calibration)
    shifted = vector + made.total_shift(len(vector))
    lengths = float(np.linalg.norm(vector)) * float(np.linalg.norm(shifted))
    return QueryCosine(min(float(vector @ shifted) / lengths, 1.0) if lengths else 1.0, float(made.capped))


def score_loss(before: Sequence[float] | NDArray[Any], after: Sequence[float] | NDArray[Any]) -> float:
    """Returns the share of the hits' mean plain score that a steering costs; 0.05 is 5 %.

    Args:
        before: The hits' scores without steering.
        after: The plain scores (`base_score`) of the steered hits.
    """
    if not len(before) or not len(after):
        return 0.0
    plain, left = float(np.mean(before)), float(np.mean(after))
    return (plain - left) / abs(plain) if plain else 0.0
