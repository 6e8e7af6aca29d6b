"""Policies: steerings that are kept, and what one call asks for laid over them."""

from __future__ import annotations

from sae_steer_retriever.features.names import folded
from sae_steer_retriever.steering.edit import Edit
from sae_steer_retriever.steering.policy import Steering


def compose(default: Steering, call: Steering) -> Steering:
    """A default, a user's or a tenant's, with the edits of one call laid over it.

    An edit of the call replaces those of the default with the same name or the same features, whatever the operation,
    side and condition of either; of no strength, it only removes them. All other edits of both are made. The stricter
    drift cap holds.

    Args:
        default: What holds as long as the call says nothing else.
        call: What was asked for now; `parse(..., removals=True)` keeps its zero strengths.

    Raises:
        MismatchError: They were made for two SAEs.
    """
    call.require(default.fingerprint)
    names, features = {_name(edit) for edit in call.edits}, {frozenset(edit.features) for edit in call.edits}
    kept = [edit for edit in default.edits if _name(edit) not in names and frozenset(edit.features) not in features]
    edits = tuple(edit for edit in (*kept, *call.edits) if not edit.asks_nothing)
    return Steering(edits, default.fingerprint, max(default.drift_cap, call.drift_cap))


def _name(edit: Edit) -> str:
    return folded(edit.name).removeprefix("#")


__all__ = ["compose"]
