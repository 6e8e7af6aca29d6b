"""Hits, explanations and edits as JSON data for the page, with texts of limited length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_steer_retriever.explain.explanation import Explanation
    from sae_steer_retriever.explain.hits import Hit
    from sae_steer_retriever.features.catalog import FeatureCatalog
    from sae_steer_retriever.steering.edit import Edit

# Characters of a passage in a list, and of a whole passage.
SHOWN, WHOLE = 700, 200_000
_METADATA_KEYS, _METADATA_CHARACTERS = 12, 200


def hit_data(rank: int, hit: Hit) -> dict[str, Any]:
    """A hit without its explanation; ranks count from 1."""
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
    """The beginning of a passage's text, with the length of the whole text."""
    return {"text": text[:limit], "characters": len(text), "cut": len(text) > limit}


def metadata_data(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The first entries of a passage's metadata, as short texts."""
    shown = list(metadata.items())[:_METADATA_KEYS]
    return {str(key)[:_METADATA_CHARACTERS]: str(value)[:_METADATA_CHARACTERS] for key, value in shown}


def explanation_data(why: Explanation) -> dict[str, Any]:
    """The explanation of a hit's score."""
    return {
        "sentence": why.sentence,
        "meaning": why.meaning,
        "parts": [part._asdict() for part in why.parts],
        "unexplained": why.attribution.unexplained,
        "unnamed": why.unnamed,
    }


def edit_data(edit: Edit, catalog: FeatureCatalog, applied: Sequence[Edit]) -> dict[str, Any]:
    """A resolved edit with the features of its name, and whether it is among those that apply to the query."""
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
    """The same data as valid JSON: NaN and infinity become None, lone surrogates become "?"."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode()
    if isinstance(value, Mapping):
        return {str(key): standard(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [standard(part) for part in value]
    return value
