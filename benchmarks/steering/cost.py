"""nDCG lost on judged queries under a steering by a feature drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.errors import CorpusError
from sae_steer_retriever.evaluate.bootstrap import Estimate, difference
from sae_steer_retriever.evaluate.metrics import score_rankings
from sae_steer_retriever.evaluate.retrieval_set import RetrievalSet
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.name_resolver import Resolution
from sae_steer_retriever.sae.topk_sae import TopKSAE

from .curve import LOSSES, SteeringMethod, read_off
from .dictionaries import DEFAULT_NAME, Dictionary, DictionarySteering
from .methods import ADD_NAME, WORDS, Signal
from .setting import SteeringSetting, top_ten

_QUERIES = 200
# A feature of fewer passages hardly changes a ranking.
_LEAST_PASSAGES = 20
_STRIDE = 3
_METRIC = "ndcg@10"


class Cost(NamedTuple):
    """The cost of one method on judged queries.

    Attributes:
        name: Name of the method.
        queries: Number of queries.
        before: nDCG@10 of the unsteered ranking.
        at: nDCG@10 at 2, 5 and 10 % score loss.
        at_half: Change of nDCG@10 at a strength of 0.5, for methods in the product's units.
    """

    name: str
    queries: int
    before: float
    at: tuple[float, ...]
    at_half: Estimate | None


def steering_costs(
    sae: TopKSAE, catalog: FeatureCatalog, embedder: Embedder, judged: RetrievalSet, *, seed: int = 0
) -> list[Cost]:
    """Returns the nDCG of judged queries, each steered by a labelled feature drawn at random.

    Args:
        sae: The dictionary.
        catalog: Its features.
        embedder: Its encoder, a `CachedEmbedder`.
        judged: Documents, queries and judgments; at most 200 of the queries are drawn.
        seed: Seed of the draws of queries and features.

    Raises:
        CorpusError: No labelled feature has enough passages.
        MissingExtraError: ir-measures is not installed.
    """
    random = np.random.default_rng(seed)
    queries = np.sort(random.choice(len(judged.queries), min(_QUERIES, len(judged.queries)), replace=False))
    labelled = [feature.id for feature in catalog.labelled if catalog.calibration.count[feature.id] >= _LEAST_PASSAGES]
    if not labelled:
        raise CorpusError(f"no labelled feature has {_LEAST_PASSAGES} passages: label the SAE's features first")
    drawn = random.choice(labelled, len(queries)).tolist()
    words = tuple(catalog.features[feature].label or "" for feature in drawn)
    texts = tuple(judged.queries[row] for row in queries)
    vectors = embedder.embed_documents(judged.texts)
    setting = SteeringSetting(
        vectors=vectors,
        members=np.zeros((len(words), len(vectors)), dtype=bool),
        labels=words,
        words=words,
        concepts=embedder.embed_queries(words),
        questions=texts,
        queries=embedder.embed_queries(texts),
        positives=(),
        negatives=(),
        embedder=embedder,
    )
    dictionary = Dictionary(sae, setting, catalog.calibration)
    resolutions = tuple(Resolution((feature,), (1.0,), "id") for feature in drawn)
    methods: list[SteeringMethod] = [
        DictionarySteering(DEFAULT_NAME, dictionary, resolutions),
        Signal(ADD_NAME, WORDS, setting, np.ascontiguousarray(setting.concepts @ vectors.T)),
    ]
    ids = [judged.query_ids[row] for row in queries]
    return [_cost(method, setting, judged, ids) for method in methods]


def _cost(method: SteeringMethod, setting: SteeringSetting, judged: RetrievalSet, query_ids: Sequence[str]) -> Cost:
    names = judged.document_ids
    strengths = method.strengths[::_STRIDE]
    in_units = isinstance(method, DictionarySteering)
    losses, qualities = [], []
    for strength in [*strengths.tolist(), *([0.5] if in_units else [])]:
        lost, rankings = [], []
        for query, base in enumerate(setting.base):
            rows = top_ten(method.scores(query, query, strength), base)
            rankings.append([names[row] for row in rows])
            lost.append(1.0 - base[rows].mean() / base[setting.plain[query]].mean())
        losses.append(float(np.mean(lost)))
        qualities.append(score_rankings(rankings, query_ids, judged.judgments)[_METRIC])
    count = len(strengths)
    quality = np.array([values.mean() for values in qualities[:count]])
    at = read_off(np.array(losses[:count]), quality, LOSSES)
    half = Estimate(*difference(qualities[count], qualities[0])) if in_units else None
    return Cost(method.name, len(query_ids), float(quality[0]), tuple(at.tolist()), half)
