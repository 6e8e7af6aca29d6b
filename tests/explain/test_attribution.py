"""Explanations: the parts of a score are what they are called, and sum to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_world import World

from sae_steer_retriever.explain.attribution import Attribution, Contribution, Explainer, SteeringTerm
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.steering.operations import Add, Clamp, Scale, Suppress

QUERY = "wait until a thread has finished"


def steerings(retriever: SteeredRetriever) -> dict[str, dict[Any, Any] | None]:
    q = retriever.sae.encode(retriever.embedder.embed_queries([QUERY]))
    own, other = int(q.indices[0, 0]), int(np.argmax(retriever.catalog.calibration.count))
    return {
        "none": None,
        "query shift and document boost": {other: Add(1.4, side="both")},
        "negative": {own: Add(-0.7, side="both")},
        "operations": {own: Scale(2.0), other: Clamp(1.0)},
        "suppress": {own: Suppress()},
        "past the cap": {other: Add(10.0, side="both")},
    }


@pytest.mark.parametrize("space", ["original", "reconstructed", "latent"])
@pytest.mark.parametrize(
    "name", ["none", "query shift and document boost", "negative", "operations", "suppress", "past the cap"]
)
def test_the_parts_sum_to_the_score(retriever: SteeredRetriever, space: Any, name: str) -> None:
    hits = retriever.search(QUERY, k=30, space=space, steer=steerings(retriever)[name])
    assert len(hits) >= 20
    for hit in hits:
        assert hit.attribution is not None
        parts = [part.value for part in hit.attribution.features] + [term.value for term in hit.attribution.steering]
        assert sum(parts) + hit.attribution.bias + hit.attribution.residual == pytest.approx(hit.score, abs=1e-4)
        assert hit.attribution.total == pytest.approx(hit.score, abs=1e-4)
        assert 0 <= hit.attribution.unexplained <= 1
    if name not in ("none", "suppress"):
        assert any(term.value for hit in hits for term in hit.attribution.steering)  # type: ignore[union-attr]


def test_in_the_original_space_every_part_is_what_it_is_called(retriever: SteeredRetriever, world: World) -> None:
    q = world.embedder.embed_queries([QUERY])
    h_q = world.sae.encode(q)
    q_hat = world.sae.decode(h_q)
    boost = int(np.argmax(world.catalog.calibration.count))
    rows = {name: row for row, name in enumerate(world.ids)}
    for hit in retriever.search(QUERY, k=5, steer={boost: 0.5}, side="document"):
        x = world.vectors[rows[hit.id]]
        assert hit.attribution is not None
        assert hit.attribution.residual == pytest.approx(float((q - q_hat)[0] @ x), abs=1e-5)
        assert hit.attribution.bias == pytest.approx(float(world.sae.bias @ x), abs=1e-5)
        expected = {
            int(f): float(v * (world.sae.decoder[f] @ x)) for f, v in zip(h_q.indices[0], h_q.values[0], strict=True)
        }
        assert {part.feature: pytest.approx(part.value, abs=1e-5) for part in hit.attribution.features} == {
            f: v for f, v in expected.items() if h_q.values[0][list(h_q.indices[0]).index(f)] > 0
        }
        assert sum(term.value for term in hit.attribution.steering) == pytest.approx(
            hit.score - hit.base_score, abs=1e-5
        )
        values = [part.value for part in hit.attribution.features]
        assert values == sorted(values, reverse=True)


def test_in_the_reconstructed_space_nothing_is_left_unexplained(retriever: SteeredRetriever) -> None:
    for hit in retriever.search(QUERY, k=5, space="reconstructed"):
        assert hit.attribution is not None
        assert hit.attribution.residual == pytest.approx(0.0, abs=1e-6)


def test_a_random_vector_is_decomposed_exactly() -> None:
    from toy import random_sae, unit_rows

    sae = random_sae(2)
    q, x = unit_rows(1, 1), 3 * unit_rows(2, 1)[0]
    parts = Explainer(q[0], sae.encode(q), sae, str).explain(
        x, (SteeringTerm("a", "query", 0.25),), scale=0.5, offset=-1.0
    )
    assert parts.total == pytest.approx(0.5 * float(q[0] @ x) - 1.0 + 0.25, abs=1e-5)
    assert all(part.label == str(part.feature) for part in parts.features)


def test_top_is_by_size_and_unexplained_is_a_share() -> None:
    features = (Contribution(1, "a", 0.3), Contribution(2, "b", 0.1), Contribution(3, "c", -0.4))
    parts = Attribution(features, (SteeringTerm("a", "document", 0.1),), 0.05, -0.05)
    assert [part.feature for part in parts.top(2)] == [3, 1]
    assert parts.unexplained == pytest.approx(0.05)
    assert Attribution((), (), 0.0, 0.0).unexplained == 0.0
