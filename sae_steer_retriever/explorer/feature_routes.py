"""The feature pages' requests: the catalog, one feature, its word attribution, and a user's own name for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from pydantic import Field

from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.explorer.feature_passages import feature_passages
from sae_steer_retriever.explorer.page_data import standard, text_data
from sae_steer_retriever.explorer.search_routes import Asked, PassageId, answer
from sae_steer_retriever.explorer.word_attribution import WordAttribution
from sae_steer_retriever.explorer.workbench import feature_data
from sae_steer_retriever.explorer.workbench_state import LONGEST_NAME
from sae_steer_retriever.features.annotations import checked_label
from sae_steer_retriever.features.feature_card import score_line
from sae_steer_retriever.features.names import feature_id, folded

if TYPE_CHECKING:
    from sae_steer_retriever.explorer.workbench import Workbench
    from sae_steer_retriever.features.evidence import Example
    from sae_steer_retriever.features.feature import Feature

_PAGE, _MOST_ROWS = 50, 200
_MOST_PASSAGES = 40
# Points of the Zipf plot, at equal distances on a logarithmic axis of ranks.
_ZIPF_POINTS = 120


class NameAsked(Asked):
    """A user's name for a feature; None removes it."""

    label: str | None = Field(max_length=LONGEST_NAME)
    note: str | None = Field(default=None, max_length=4000)


class WordsAsked(Asked):
    """Passages that need word attribution."""

    passages: list[PassageId] = Field(max_length=_MOST_PASSAGES)


def feature_routes(workbench: Workbench) -> APIRouter:
    """The feature pages' routes."""
    router = APIRouter(prefix="/api/features")
    words = WordAttribution(workbench.retriever)

    @router.get("")
    async def listing(
        search: Annotated[str, Query(max_length=LONGEST_NAME)] = "",
        family: int | None = None,
        offset: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=_MOST_ROWS)] = _PAGE,
    ) -> JSONResponse:
        """The features that match a text; without a text all live ones, the most frequent first."""
        found = await workbench.run(_found, workbench, search, family)
        shown = found[offset : offset + limit]
        return answer({"features": [feature_data(one) for one in shown], "count": len(found), "offset": offset})

    @router.get("/{feature}")
    async def page(feature: int) -> JSONResponse:
        """Everything that is known about a feature."""
        return answer(await workbench.run(_page, workbench, feature))

    @router.post("/{feature}/words")
    async def marked(feature: int, asked: WordsAsked) -> JSONResponse:
        """The share of each word of some passages in their match with the feature."""
        return answer({"passages": await workbench.run(words.marked, feature, asked.passages)})

    @router.post("/{feature}/trie")
    async def trie(feature: int, asked: Asked) -> JSONResponse:
        """The words that activate the feature in this collection, as a trie."""
        return answer(await workbench.run(words.trie, feature))

    @router.post("/{feature}/name")
    async def rename(feature: int, asked: NameAsked) -> JSONResponse:
        """Name a feature, or remove the name; it is saved with the SAE."""
        return answer(await workbench.run(_rename, workbench, feature, asked))

    return router


def _found(workbench: Workbench, text: str, family: int | None) -> list[Feature]:
    catalog = workbench.retriever.catalog
    if family is not None:
        return [catalog[feature] for feature in catalog.family(family).features]
    if not text.strip():
        live = [feature for feature in catalog.features if catalog.calibration.count[feature.id]]
        return sorted(live, key=lambda feature: (-feature.frequency, feature.id))
    latent = feature_id(text)
    if latent is not None:
        return [catalog[latent]]
    return catalog.search(text, concept=workbench.concept(text), limit=_MOST_ROWS, include_hubs=True)


def _page(workbench: Workbench, feature: int) -> dict[str, Any]:
    retriever = workbench.retriever
    catalog = retriever.catalog
    page, here = catalog.show(feature, directions=retriever.sae.decoder), feature_passages(retriever.store, feature)
    lists: dict[str, tuple[Example, ...]] = {"top": here.top, "middle": here.middle}
    if page.evidence is not None:
        lists["near_misses"] = page.evidence.near_misses
    wanted = list(dict.fromkeys(example.id for examples in lists.values() for example in examples))
    records = retriever.store.find(wanted, vectors=False)
    passages = {
        key: [
            {"id": example.id, "strength": example.strength, **text_data(records[example.id].text)}
            for example in examples
            if example.id in records
        ]
        for key, examples in lists.items()
    }
    family = page.family
    return {
        **{key: value for key, value in page.to_dict().items() if key not in ("examples", *lists)},
        "score_meaning": score_line(page.feature),
        "passages_here": len(retriever.store),
        "here": here.to_dict(),
        "lists": passages,
        "family_features": [] if family is None else [feature_data(catalog[one]) for one in family.features[:30]],
        "trie_text": page.trie,
        "zipf": _zipf(workbench, feature),
    }


def _zipf(workbench: Workbench, feature: int) -> dict[str, Any]:
    """How many passages each rank of feature has, and the rank of this feature."""
    count = workbench.retriever.catalog.calibration.count
    ordered = np.sort(count[count > 0])[::-1]
    if not len(ordered):
        return {"points": [], "rank": None, "count": 0, "live": 0}
    ranks = np.unique(np.geomspace(1, len(ordered), _ZIPF_POINTS).round().astype(int))
    own = int(count[feature])
    return {
        "points": [[int(rank), int(ordered[rank - 1])] for rank in ranks],
        "rank": int((ordered > own).sum()) + 1 if own else None,
        "count": own,
        "live": len(ordered),
    }


def _rename(workbench: Workbench, feature: int, asked: NameAsked) -> dict[str, Any]:
    catalog = workbench.retriever.catalog
    latent = catalog[feature].id
    before = catalog[latent].name
    with workbench.naming:  # two users may name features at once
        if asked.label is None:
            named = catalog.remove_annotation(latent)
        else:
            label = checked_label(asked.label)
            try:
                embedding = workbench.embedding(label)
            except ArtifactError:  # the feature is found by its words only
                embedding = None
            named = catalog.annotate(latent, label, asked.note, embedding=embedding)
    alike = [
        other.id for other in catalog.labelled if other.id != latent and folded(other.label) == folded(named.label)
    ]
    own: dict[str, Any] = standard({**feature_data(named), "before": before, "same_label": alike})
    return own
