"""Feature tables of arXiv 2411.00786: features by frequency (2, 6), of documents (3), of queries (7, 11)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sae_steer_retriever.evaluate.bootstrap import Estimate
from sae_steer_retriever.evaluate.table import Cell, Column, Table
from sae_steer_retriever.explain.text import one_line
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.feature import CLEAR_FROM, Feature
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE

from .feature_samples import (
    Region,
    StrongFeature,
    frequency_regions,
    sample_region,
    strongest_features,
)

TOP = 5
"""Number of features listed for a text, as in the paper."""

_SAMPLED = {"table-2": 3, "table-6": 6}
_FEATURE_COLUMNS = (Column("id"), Column("label"), Column("AUROC", ".2f"), Column("frequency", ".2%"))
_LABEL_NOTE = (
    "AUROC: how well a label tells its feature's passages from those of neighbouring features, on passages that the "
    "label was not made from (0.5 is chance); in brackets the 95 % interval. A label below 0.7 is marked unclear; a "
    "feature in too few passages has no label, or no score."
)


def region_tables(catalog: FeatureCatalog, seed: int = 0) -> list[Table]:
    """Returns Tables 2 and 6: three and six features of the head, the torso and the tail by frequency.

    Args:
        catalog: The features.
        seed: Seed of the samples.
    """
    regions = frequency_regions(catalog)
    columns = (Column("region"), Column("rank"), *_FEATURE_COLUMNS)
    notes = (_rule(regions), f"The sample is drawn from the features that have a label, with seed {seed}.", _LABEL_NOTE)
    found = []
    for name, count in _SAMPLED.items():
        rows = [
            (region.name, rank, *_cells(feature))
            for region in regions
            for rank, feature in sample_region(region, count, seed)
        ]
        title = f"Table {name.partition('-')[2]}: features by frequency, {count} of each region"
        found.append(Table(title, columns, tuple(rows), notes, name))
    return found


def document_table(
    sae: TopKSAE, catalog: FeatureCatalog, ids: Sequence[str], vectors: Array, limit: int = TOP
) -> Table:
    """Returns Table 3: the strongest features of documents.

    Args:
        sae: The dictionary.
        catalog: Its features.
        ids: Ids of the documents.
        vectors: (len(ids), d) their unit embeddings.
        limit: Number of features of each, `k_labels` at most.
    """
    titled = ("table-3", "Table 3: the strongest features of documents")
    return _text_table(titled, "document", ids, strongest_features(sae, catalog, vectors, limit))


def query_table(
    sae: TopKSAE, catalog: FeatureCatalog, queries: Sequence[str], vectors: Array, limit: int = TOP
) -> Table:
    """Returns Table 7 (and 11): the strongest features of queries.

    Args:
        sae: The dictionary.
        catalog: Its features.
        queries: The queries.
        vectors: (len(queries), d) their unit embeddings.
        limit: Number of features of each, `k_labels` at most.
    """
    titled = ("table-7", "Table 7: the strongest features of queries")
    return _text_table(titled, "query", queries, strongest_features(sae, catalog, vectors, limit))


def _text_table(
    titled: tuple[str, str], what: str, texts: Sequence[str], found: Sequence[Sequence[StrongFeature]]
) -> Table:
    name, title = titled
    columns = (Column(what), Column("rank"), *_FEATURE_COLUMNS, Column("strength", ".3f"))
    rows = [
        (one_line(text), rank, *_cells(feature), strength)
        for text, features in zip(texts, found, strict=True)
        for rank, (feature, strength) in enumerate(features, start=1)
    ]
    return Table(title, columns, tuple(rows), (*_shared(what, found), _LABEL_NOTE), name)


def _cells(feature: Feature) -> tuple[Cell, ...]:
    """The cells of `_FEATURE_COLUMNS`; an id is a text, not a quantity."""
    label, score = one_line(feature.label), feature.score
    weak = score is not None and score.hard < CLEAR_FROM
    shown = f"unclear: {label}" if weak else label or None
    auroc = None if score is None else Estimate(score.hard, *score.hard_interval)
    return (str(feature.id), shown, auroc, feature.frequency)


def _rule(regions: Sequence[Region]) -> str:
    """A note on the ends of the regions."""
    alive = sum(len(region.features) for region in regions)
    spans = [
        f"{region.name} {region.first:,} to {region.first + len(region.features) - 1:,} ({region.labelled:,} labelled)"
        for region in regions
        if region.features
    ]
    return (
        f"Regions by rank of frequency among the {alive:,} features that are active in the corpus: the first tenth, up "
        f"to the half, the rest. Ranks: {', '.join(spans) or 'none'}."
    )


def _shared(what: str, found: Sequence[Sequence[StrongFeature]]) -> list[str]:
    """Notes on features that most of the texts have: hubs, or the common topic of the texts."""
    counts = Counter(strong.feature.id for features in found for strong in features)
    common = [(latent, count) for latent, count in counts.most_common() if count > 2 and 2 * count > len(found)]
    plural = "queries" if what == "query" else f"{what}s"
    return [
        f"Feature {latent} is among the strongest of {count:,} of the {len(found):,} {plural}."
        for latent, count in common
    ]
