"""Hits, explanations and edits as the page gets them: plain data, with texts of bounded length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_steer_retriever.explain.explanation import Explanation
    from sae_steer_retriever.explain.hits import Hit
    from sae_steer_retriever.features.catalog import FeatureCatalog
    from sae_steer_retriever.steering.edit import Edit

# Characters of a passage in a list, of one that was asked for, and of an id.
SHOWN, WHOLE = 700, 200_000
_METADATA_KEYS, _METADATA_CHARACTERS = 12, 200


def hit_data(rank: int, hit: Hit) -> dict[str, Any]:
    """A hit without its reasons.

    Args:
        rank: From 1.
        hit: The hit.
    """
    return {
        "rank": rank,
        "id": hit.id,
        **text_data(hit.text),
        "metadata": metadata_data(hit.metadata),
        "score": hit.score,
        "base_score": hit.base_score,
        "base_rank": hit.base_rank,
    }


def text_data(text: str, limit: int = SHOWN) -> dict[str, Any]:
    """A passage's text, cut, with how much of it there is."""
    return {"text": text[:limit], "characters": len(text), "cut": len(text) > limit}


def metadata_data(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The first of a passage's metadata, as short texts."""
    shown = list(metadata.items())[:_METADATA_KEYS]
    return {str(key)[:_METADATA_CHARACTERS]: str(value)[:_METADATA_CHARACTERS] for key, value in shown}


def explanation_data(why: Explanation) -> dict[str, Any]:
    """Why a hit has its score."""
    return {
        "sentence": why.sentence,
        "meaning": why.meaning,
        "parts": [part._asdict() for part in why.parts],
        "unexplained": why.attribution.unexplained,
        "unnamed": why.unnamed,
    }


def edit_data(edit: Edit, catalog: FeatureCatalog, applied: Sequence[Edit]) -> dict[str, Any]:
    """A resolved edit: which features its name means, and whether it applies to the query.

    Args:
        edit: The edit.
        catalog: Names of the features.
        applied: The edits that the query fulfils the conditions of.
    """
    return {
        "name": edit.name,
        "asked": edit.asked,
        "side": edit.side,
        "applies": edit in applied,
        "features": [
            {"id": feature, "name": catalog.name(feature), "weight": weight}
            for feature, weight in zip(edit.features, edit.weights, strict=True)
        ],
    }


def standard(value: Any) -> Any:  # noqa: ANN401 - anything JSON can hold
    """The same without NaN and infinity, which are no JSON, and with text that can be written."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode()
    if isinstance(value, Mapping):
        return {str(key): standard(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [standard(part) for part in value]
    return value


__all__ = ["SHOWN", "WHOLE", "edit_data", "explanation_data", "hit_data", "metadata_data", "standard", "text_data"]
