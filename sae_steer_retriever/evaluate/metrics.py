"""Retrieval metrics at 10 per query by ir-measures, their intervals, and the share kept of the original's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.errors import MissingExtraError
from sae_steer_retriever.evaluate.bootstrap import interval

METRICS = ("mrr@10", "p@10", "r@10", "ndcg@10")
DEPTH = 10

PerQuery = dict[str, NDArray[np.float64]]


@dataclasses.dataclass(frozen=True)
class Quality:
    """Retrieval quality of one way to search.

    Attributes:
        name: The way to search.
        values: Metric -> mean over queries.
        intervals: Metric -> 95 % interval of the mean, by bootstrap over queries.
        retention: Metric -> mean divided by that of the original embeddings.
        retention_intervals: Metric -> 95 % interval of the retention, queries drawn in pairs.
        per_query: Metric -> (Q,) values, for comparisons.
    """

    name: str
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    retention: dict[str, float]
    retention_intervals: dict[str, tuple[float, float]]
    per_query: PerQuery = dataclasses.field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Returns the metrics under their own names, the rest nested."""
        nested = ("retention", "intervals", "retention_intervals")
        return {"name": self.name, **self.values, **{name: getattr(self, name) for name in nested}}


def score_rankings(
    rankings: Sequence[Sequence[str]], query_ids: Sequence[str], judgments: Mapping[str, Mapping[str, int]]
) -> PerQuery:
    """Returns MRR, precision, recall and nDCG (linear gain) at 10: metric -> (Q,) values, in the order of the queries.

    Args:
        rankings: Document ids of each query, best first; at most ten of them count.
        query_ids: The queries, in the same order.
        judgments: Query -> document -> grade; grades from 1 are relevant.

    Raises:
        MissingExtraError: ir-measures is not installed.
    """
    try:
        import ir_measures
    except ImportError as error:
        raise MissingExtraError("scoring rankings", "evaluate") from error
    kinds = (ir_measures.RR, ir_measures.P, ir_measures.R, ir_measures.nDCG)
    measures = {name: kind @ DEPTH for name, kind in zip(METRICS, kinds, strict=True)}
    # Positions stand in for scores: our order is judged, ties included.
    run = {
        query: {document: float(DEPTH - place) for place, document in enumerate(ranking[:DEPTH])}
        for query, ranking in zip(query_ids, rankings, strict=True)
    }
    place_of = {query: place for place, query in enumerate(query_ids)}
    name_of = {str(measure): name for name, measure in measures.items()}
    # A query without hits scores 0 and counts in the mean.
    values = {name: np.zeros(len(query_ids)) for name in measures}
    grades = {query: dict(judgments[query]) for query in query_ids}
    for found in ir_measures.iter_calc(list(measures.values()), grades, run):
        values[name_of[str(found.measure)]][place_of[found.query_id]] = found.value
    return values


def summarise(name: str, values: PerQuery, original: PerQuery) -> Quality:
    """Returns means, retentions and intervals of a search with a name.

    Both `values` and `original`, those of the original embeddings, are from `score_rankings` with the same queries.
    """
    means = {metric: float(found.mean()) for metric, found in values.items()}
    # The retention is undefined where the original finds nothing.
    kept = [metric for metric in values if original[metric].any()]
    nothing = {metric: float("nan") for metric in values}
    undefined = {metric: (float("nan"), float("nan")) for metric in values}
    return Quality(
        name=name,
        values=means,
        intervals={metric: interval(found) for metric, found in values.items()},
        retention=nothing | {metric: means[metric] / float(original[metric].mean()) for metric in kept},
        retention_intervals=undefined | {metric: interval(values[metric], original[metric]) for metric in kept},
        per_query=values,
    )
