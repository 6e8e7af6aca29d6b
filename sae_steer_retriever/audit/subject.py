"""The subject of an audit: a store, its catalog, the queries and their unsteered hits, shared by all sections."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from sae_steer_retriever.audit.audited_queries import AuditedQueries
from sae_steer_retriever.audit.read_only_store import ReadOnlyStore
from sae_steer_retriever.audit.top_hits import TopHits
from sae_steer_retriever.errors import excerpt
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.feature import CLEAR_FROM
from sae_steer_retriever.sae.codes import Codes

# Characters of a passage or a query that the report shows.
_EXCERPT = 160


@dataclasses.dataclass(frozen=True)
class NamedFeature:
    """A feature in the report."""

    id: int  # latent id
    name: str  # its display name
    label_score: float | None  # AUROC of its label against near misses; None if it was not measured

    @property
    def reference(self) -> str:
        """The id as users write it: "#12"."""
        return f"#{self.id}"


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """A passage in the report."""

    id: str
    text: str  # the beginning of its text


@dataclasses.dataclass(frozen=True)
class Subject:
    """The store and the queries of an audit, with the feature counts that several sections need.

    "Has a feature" means: the feature is one of the text's label latents (its `k_labels` strongest ones).
    """

    store: ReadOnlyStore  # N passages, M of them with known codes
    catalog: FeatureCatalog  # names of the n features, and F families
    queries: AuditedQueries  # Q queries
    hits: TopHits  # their k best unsteered hits
    seed: int = 0  # seed of all samples

    @cached_property
    def clear(self) -> NDArray[np.bool_]:
        """(n,) features with a clear label: one that a person gave, scored at least .7, or was not scored."""
        return np.array(
            [
                bool(feature.label) and (feature.label_score is None or feature.label_score >= CLEAR_FROM)
                for feature in self.catalog.features
            ],
            dtype=bool,
        )

    @cached_property
    def passage_names(self) -> csr_array:
        """(M, n) ones where a coded passage has a feature."""
        return feature_match(self.store.label_latents, self.n)

    @cached_property
    def query_names(self) -> csr_array:
        """(Q, n) ones where a query has a feature."""
        return feature_match(self.queries.codes.truncate(self.store.sae.config.k_labels), self.n)

    @cached_property
    def hit_names(self) -> csr_array:
        """(Q k, n) ones where a hit has a feature, query after query."""
        rows, places = np.unique(self.hits.rows, return_inverse=True)
        codes = self.store.codes_at(rows).truncate(self.store.sae.config.k_labels)
        return feature_match(codes, self.n)[places.reshape(-1)]

    @cached_property
    def members(self) -> csr_array:
        """(n, F) ones where a feature belongs to a family, in the catalog's order."""
        families = self.catalog.families
        pairs = [(feature, place) for place, family in enumerate(families) for feature in family.features]
        rows, places = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return csr_array((np.ones(len(pairs), dtype=np.int64), (rows, places)), shape=(self.n, len(families)))

    def family_names(self, names: csr_array) -> csr_array:
        """(batch, F) ones where a row of `names` (batch, n) has any feature of a family."""
        found = csr_array(names @ self.members)
        found.data[:] = 1
        return found

    @cached_property
    def family_frequency(self) -> NDArray[np.float64]:
        """(F,) share of the coded passages that have any feature of each family."""
        found = np.asarray(self.family_names(self.passage_names).sum(axis=0), dtype=np.float64).reshape(-1)
        return np.asarray(found / max(self.passage_names.shape[0], 1), dtype=np.float64)

    @cached_property
    def count(self) -> NDArray[np.int64]:
        """(n,) how many coded passages have each feature."""
        return np.asarray(self.passage_names.sum(axis=0), dtype=np.int64).reshape(-1)

    @cached_property
    def frequency(self) -> NDArray[np.float64]:
        """(n,) share of the coded passages that have each feature."""
        return np.asarray(self.count / max(self.passage_names.shape[0], 1), dtype=np.float64)

    @property
    def n(self) -> int:
        """Number of latents."""
        return self.store.sae.config.n

    @property
    def k(self) -> int:
        """Hits of each query."""
        return int(self.hits.rows.shape[1])

    def named(self, feature: int) -> NamedFeature:
        """A feature for the report."""
        found = self.catalog[feature]
        return NamedFeature(found.id, found.name, found.label_score)

    def query_code(self, query: int) -> Codes[NDArray[Any]]:
        """(1, K) the code of one query."""
        return Codes(*(part[query : query + 1] for part in self.queries.codes))

    def excerpts(self, rows: Sequence[int]) -> list[Excerpt]:
        """Some passages for the report."""
        ids = [self.store.ids[row] for row in rows]
        texts = self.store.texts(ids)
        return [Excerpt(name, shortened(texts.get(name, ""))) for name in ids]


def feature_match(names: Codes[NDArray[Any]], n: int) -> csr_array:
    """(batch, n) ones where a row has a feature among its label latents."""
    rows, places = np.nonzero(names.values > 0)
    ones = np.ones(len(rows), dtype=np.int64)
    return csr_array((ones, (rows, names.indices[rows, places])), shape=(len(names.indices), n))


def shortened(text: str) -> str:
    """The beginning of a passage or a query for the report."""
    return excerpt(text[: 8 * _EXCERPT], _EXCERPT)
