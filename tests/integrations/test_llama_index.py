"""The LlamaIndex adapter: every channel a steering can take, and the traps on the way."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_index.core")
pytest.importorskip("llama_index.vector_stores.chroma")

from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr, ValidationError
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.retrievers.fusion_retriever import FUSION_MODES
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.storage import StorageContext
from llama_index.core.tools import RetrieverTool
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.vector_stores.chroma import ChromaVectorStore
from small_world import World

from sae_steer_retriever.encoders.embedders import SentenceTransformerEmbedder
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.errors import (
    ArtifactError,
    MismatchError,
    SteeringError,
    StoreError,
    UnknownFeatureError,
)
from sae_steer_retriever.integrations.llama_index import SAESteeredRetriever
from sae_steer_retriever.integrations.llama_index_postprocessor import SAESteerPostprocessor
from sae_steer_retriever.integrations.llama_index_types import SteeredQuery
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.search.reranker import Reranker
from sae_steer_retriever.steering.operations import Clamp, Suppress
from sae_steer_retriever.store.connection import connect

QUERY = "parse a string into an object"
STEER = {"json": 1.0}


class MiniLM(BaseEmbedding):
    """The packaged encoder, as LlamaIndex users bring one; counts what it embeds."""

    model_name: str = "sentence-transformers/all-MiniLM-L6-v2"
    texts: int = 0
    _encoder: SentenceTransformerEmbedder = PrivateAttr()

    def __init__(self, encoder: SentenceTransformerEmbedder, **fields: Any) -> None:
        super().__init__(**fields)
        self._encoder = encoder

    def _get_query_embedding(self, query: str) -> list[float]:
        return list(self._encoder.embed_queries([query])[0].tolist())

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        self.texts += len(texts)
        return list(self._encoder.embed_documents(texts).tolist())


class Listener(BaseEventHandler):
    """Keeps the events of the instrumentation."""

    events: list[BaseEvent] = []

    @classmethod
    def class_name(cls) -> str:
        return "Listener"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.events.append(event)

    def of(self, name: str) -> list[Any]:
        return [event for event in self.events if event.class_name() == name]


@pytest.fixture
def listener() -> Iterator[Listener]:
    handler = Listener(events=[])
    root = get_dispatcher()
    root.add_event_handler(handler)
    yield handler
    root.event_handlers.remove(handler)


@pytest.fixture(scope="module")
def embed_model(embedder: SentenceTransformerEmbedder) -> MiniLM:
    return MiniLM(embedder)


@pytest.fixture(scope="module")
def nodes(world: World) -> list[TextNode]:
    rows = zip(world.ids, world.texts, world.metadatas, world.vectors, strict=True)
    return [TextNode(id_=name, text=text, metadata=data, embedding=x.tolist()) for name, text, data, x in rows]


@pytest.fixture(scope="module")
def index(nodes: list[TextNode], embed_model: MiniLM, tmp_path_factory: pytest.TempPathFactory) -> VectorStoreIndex:
    """An index as users have one: over a collection in Chroma's default space, squared distance."""
    collection = connect(path=tmp_path_factory.mktemp("theirs")).create_collection("quickstart")
    context = StorageContext.from_defaults(vector_store=ChromaVectorStore(chroma_collection=collection))
    return VectorStoreIndex(nodes, storage_context=context, embed_model=embed_model)


@pytest.fixture
def over_index(index: VectorStoreIndex, world: World) -> SAESteeredRetriever:
    return SAESteeredRetriever.from_vector_store_index(index, sae=(world.sae, world.catalog))


@pytest.fixture
def plain(retriever: SteeredRetriever) -> SAESteeredRetriever:
    return SAESteeredRetriever(retriever)


@pytest.fixture
def steered(retriever: SteeredRetriever) -> SAESteeredRetriever:
    return SAESteeredRetriever(retriever, steer=STEER)


@pytest.fixture(scope="module")
def cached(embedder: SentenceTransformerEmbedder, tmp_path_factory: pytest.TempPathFactory) -> CachedEmbedder:
    """The same encoder, for tests that do not count: it embeds a text once."""
    return CachedEmbedder(embedder, tmp_path_factory.mktemp("embedded"))


@pytest.fixture
def postprocessor(world: World, cached: CachedEmbedder) -> SAESteerPostprocessor:
    return SAESteerPostprocessor(reranker=Reranker(world.sae, cached, world.catalog), steer=STEER)


@pytest.fixture
def expected(retriever: SteeredRetriever) -> list[str]:
    """The ids of the steered search, which differ from those of the plain one."""
    ids = [hit.id for hit in retriever.search(QUERY, steer=STEER)]
    assert ids != [hit.id for hit in retriever.search(QUERY)]
    return ids


def ids_of(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node_id for node in nodes]


# -- classes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "base"),
    [
        (SAESteeredRetriever, "BaseRetriever"),
        (SAESteerPostprocessor, "BaseNodePostprocessor"),
        (SteeredQuery, "QueryBundle"),
    ],
)
def test_class(cls: type, base: str) -> None:
    assert base in [parent.__name__ for parent in cls.__mro__]


# -- the channels of a steering ----------------------------------------------------------------------------------------


def test_constructor_steer_in_retrieve(steered: SAESteeredRetriever, expected: list[str]) -> None:
    assert ids_of(steered.retrieve(QUERY)) == expected


async def test_constructor_steer_in_aretrieve(steered: SAESteeredRetriever, expected: list[str]) -> None:
    assert ids_of(await steered.aretrieve(QUERY)) == expected


def test_constructor_steer_in_query_engine(steered: SAESteeredRetriever, expected: list[str]) -> None:
    engine = RetrieverQueryEngine.from_args(steered, llm=MockLLM())
    assert ids_of(engine.query(QUERY).source_nodes) == expected


async def test_constructor_steer_in_async_query_engine(steered: SAESteeredRetriever, expected: list[str]) -> None:
    engine = RetrieverQueryEngine.from_args(steered, llm=MockLLM())
    assert ids_of((await engine.aquery(QUERY)).source_nodes) == expected


def test_constructor_steer_in_chat_engine(steered: SAESteeredRetriever, expected: list[str]) -> None:
    engine = ContextChatEngine.from_defaults(steered, llm=MockLLM())
    assert ids_of(engine.chat(QUERY).source_nodes) == expected


async def test_constructor_steer_in_async_chat_engine(steered: SAESteeredRetriever, expected: list[str]) -> None:
    engine = ContextChatEngine.from_defaults(steered, llm=MockLLM())
    assert ids_of((await engine.achat(QUERY)).source_nodes) == expected


def test_constructor_steer_in_retriever_tool(steered: SAESteeredRetriever, plain: SAESteeredRetriever) -> None:
    output = RetrieverTool.from_defaults(steered).call(QUERY)
    assert output.raw_output[0].node_id == "json.JSONDecoder"
    assert RetrieverTool.from_defaults(plain).call(QUERY).raw_output[0].node_id == "re.split"
    assert "unsteered" not in output.content


async def test_constructor_steer_in_async_retriever_tool(steered: SAESteeredRetriever) -> None:
    output = await RetrieverTool.from_defaults(steered).acall(QUERY)
    assert output.raw_output[0].node_id == "json.JSONDecoder"


def test_constructor_steer_in_fusion(steered: SAESteeredRetriever, expected: list[str]) -> None:
    fusion = QueryFusionRetriever([steered], MockLLM(), similarity_top_k=4, num_queries=1, use_async=False)
    assert ids_of(fusion.retrieve(QUERY)) == expected


async def test_constructor_steer_in_async_fusion(steered: SAESteeredRetriever, expected: list[str]) -> None:
    fusion = QueryFusionRetriever([steered], MockLLM(), similarity_top_k=4, num_queries=1)
    assert ids_of(await fusion.aretrieve(QUERY)) == expected


def test_call_steer_in_retrieve(plain: SAESteeredRetriever, expected: list[str]) -> None:
    assert ids_of(plain.retrieve(QUERY, steer=STEER)) == expected
    assert ids_of(plain.retrieve(QueryBundle(QUERY), steer=STEER)) == expected


async def test_call_steer_in_aretrieve(plain: SAESteeredRetriever, expected: list[str]) -> None:
    assert ids_of(await plain.aretrieve(QUERY, steer=STEER)) == expected


def test_call_steer_in_query_engine_is_loud(plain: SAESteeredRetriever) -> None:
    engine = RetrieverQueryEngine.from_args(plain, llm=MockLLM())
    with pytest.raises(TypeError, match="steer"):
        engine.query(QUERY, steer=STEER)  # type: ignore[call-arg]


def test_steered_query_in_query_engine(plain: SAESteeredRetriever, expected: list[str]) -> None:
    engine = RetrieverQueryEngine.from_args(plain, llm=MockLLM())
    assert ids_of(engine.query(SteeredQuery(QUERY, steer=STEER)).source_nodes) == expected


async def test_steered_query_in_async_query_engine(plain: SAESteeredRetriever, expected: list[str]) -> None:
    engine = RetrieverQueryEngine.from_args(plain, llm=MockLLM())
    assert ids_of((await engine.aquery(SteeredQuery(QUERY, steer=STEER))).source_nodes) == expected


def test_steered_query_in_fusion_steers_the_original_query_only(plain: SAESteeredRetriever) -> None:
    fusion = QueryFusionRetriever([plain], llm=MockLLM(), num_queries=2, use_async=False, similarity_top_k=8)
    applied = [node.metadata["sae"]["steer"] for node in fusion.retrieve(SteeredQuery(QUERY, steer=STEER))]
    assert any(steer and steer[0]["name"] == "json" for steer in applied)
    assert [] in applied


def test_steer_shows_in_events_and_survives_json(plain: SAESteeredRetriever, listener: Listener) -> None:
    plain.retrieve(QUERY, steer=STEER)
    (start,) = listener.of("RetrievalStartEvent")
    assert start.str_or_query_bundle.steer == STEER
    query = SteeredQuery(QUERY, embedding=[1.0, 2.0], steer=STEER)
    assert SteeredQuery.from_json(query.to_json()) == query
    assert SteeredQuery.from_json(SteeredQuery(QUERY).to_json()).steer is None
    assert SteeredQuery.from_json(SteeredQuery(QUERY, steer={}).to_json()).steer == {}
    assert json.loads(SteeredQuery(QUERY, steer={"json": Clamp(2.0)}).to_json())["steer"]["json"] == {"value": 2.0}


def test_an_operation_read_back_from_json_is_refused_not_guessed(plain: SAESteeredRetriever) -> None:
    query = SteeredQuery.from_json(SteeredQuery(QUERY, steer={"json": Suppress()}).to_json())
    with pytest.raises(SteeringError, match="strength of 'json'"):
        plain.retrieve(query)


# -- precedence, and what none means -----------------------------------------------------------------------------------


def test_call_beats_query_beats_constructor(retriever: SteeredRetriever) -> None:
    made = SAESteeredRetriever(retriever, steer={"calendar": 1.0})
    query = SteeredQuery(QUERY, steer={"whitespace": 1.0})

    def applied(nodes: list[NodeWithScore]) -> list[str]:
        return [edit["name"] for edit in nodes[0].metadata["sae"]["steer"]]

    assert applied(made.retrieve(QUERY)) == ["calendar"]
    assert applied(made.retrieve(SteeredQuery(QUERY))) == ["calendar"]
    assert applied(made.retrieve(query)) == ["whitespace"]
    assert applied(made.retrieve(query, steer=STEER)) == ["json"]
    assert applied(made.retrieve(query, steer={})) == []
    assert applied(made.retrieve(SteeredQuery(QUERY, steer={}))) == []


@pytest.mark.parametrize("steer", [{}, {"json": 0.0}])
def test_no_steering_now_is_the_plain_search(
    steered: SAESteeredRetriever, plain: SAESteeredRetriever, steer: dict[str, float]
) -> None:
    expected = [(node.node_id, node.score) for node in plain.retrieve(QUERY)]
    assert [(node.node_id, node.score) for node in steered.retrieve(QUERY, steer=steer)] == expected


def test_a_misspelt_feature_is_loud_everywhere(plain: SAESteeredRetriever, retriever: SteeredRetriever) -> None:
    with pytest.raises(UnknownFeatureError, match="calendar"):
        plain.retrieve(QUERY, steer={"clendar": 1.0})
    with pytest.raises(UnknownFeatureError, match="calendar"):
        plain.retrieve(SteeredQuery(QUERY, steer={"clendar": 1.0}))
    with pytest.raises(UnknownFeatureError, match="calendar"):
        SAESteeredRetriever(retriever, steer={"clendar": 1.0})
    with pytest.raises(SteeringError, match="number"):
        plain.retrieve(QUERY, steer={"json": "much"})


def test_unknown_constructor_arguments_raise_before_anything_is_embedded(
    retriever: SteeredRetriever, nodes: list[TextNode], world: World, embed_model: MiniLM
) -> None:
    with pytest.raises(TypeError, match="steeer"):
        SAESteeredRetriever(retriever, steeer=STEER)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="steeer"):
        SAESteeredRetriever.from_nodes(nodes, sae=(world.sae, world.catalog), embed_model=embed_model, steeer=STEER)
    assert embed_model.texts == 0


def test_something_that_is_no_query_is_refused(plain: SAESteeredRetriever) -> None:
    with pytest.raises(TypeError, match="got dict"):
        plain.retrieve({"query": QUERY})  # type: ignore[arg-type]


# -- what the caller owns ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embedding", [False, True])
async def test_the_callers_bundle_and_steer_are_unchanged(plain: SAESteeredRetriever, embedding: bool) -> None:
    vector = plain.retriever.embedder.embed_queries([QUERY])[0].tolist() if embedding else None
    for bundle in (QueryBundle(QUERY, embedding=vector), SteeredQuery(QUERY, embedding=vector, steer={"json": 1.0})):
        before = copy.deepcopy(bundle)
        steer = {"whitespace": 0.5}
        plain.retrieve(bundle)
        plain.retrieve(bundle, steer=steer)
        await plain.aretrieve(bundle, steer=steer)
        assert bundle == before
        assert type(bundle) is type(before)
        assert steer == {"whitespace": 0.5}


def test_changing_the_dict_afterwards_changes_nothing(retriever: SteeredRetriever) -> None:
    steer = {"json": 1.0}
    made = SAESteeredRetriever(retriever, steer=steer)
    steer["whitespace"] = 5.0
    assert made.steer == {"json": 1.0}


def test_an_embedding_the_bundle_brings_is_used(plain: SAESteeredRetriever) -> None:
    vector = plain.retriever.embedder.embed_queries(["calendar of a month"])[0]
    expected = plain.retrieve("calendar of a month", steer=STEER)
    brought = plain.retrieve(QueryBundle(QUERY, embedding=vector.tolist()), steer=STEER)
    assert ids_of(brought) == ids_of(expected)
    assert [node.score for node in brought] == pytest.approx([node.score for node in expected], abs=1e-6)


def test_hypothetical_documents_are_what_is_searched_for(plain: SAESteeredRetriever, index: VectorStoreIndex) -> None:
    bundle = QueryBundle(QUERY, custom_embedding_strs=["calendar of a month", "the week of a date"])
    ours, theirs = plain.retrieve(bundle), index.as_retriever(similarity_top_k=4).retrieve(copy.deepcopy(bundle))
    assert ids_of(ours) == ids_of(theirs)
    assert ids_of(ours) != ids_of(plain.retrieve(QUERY))


async def test_async_search_leaves_the_event_loop_free(
    plain: SAESteeredRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    search = plain.retriever.search

    def spy(*args: Any, **kwargs: Any) -> Any:
        threads.append(threading.get_ident())
        return search(*args, **kwargs)

    monkeypatch.setattr(plain.retriever, "search", spy)
    await plain.aretrieve(QUERY)
    assert threads != [threading.get_ident()]
    assert len(threads) == 1


# -- what a node says --------------------------------------------------------------------------------------------------


def test_the_explanation_is_json_and_its_parts_sum_to_the_score(plain: SAESteeredRetriever) -> None:
    for node in plain.retrieve(QUERY, steer=STEER):
        said = json.loads(json.dumps(node.metadata["sae"]))
        parts = [*said["features"], *said["steering"]]
        total = sum(part["contribution"] for part in parts) + said["other_features"] + said["bias"] + said["residual"]
        assert total == pytest.approx(node.score, abs=1e-5)
        (edit,) = said["steer"]
        assert (edit["name"], edit["op"], edit["strength"], edit["side"]) == ("json", "add", 1.0, "both")
        gained = sum(part["contribution"] for part in said["steering"])
        assert node.score == pytest.approx(said["unsteered_score"] + gained, abs=1e-6)
        assert type(node.score) is float


def test_latents_are_a_space_to_search(retriever: SteeredRetriever) -> None:
    found = SAESteeredRetriever(retriever, 6, space="latent").retrieve(QUERY, steer=STEER)
    expected = retriever.search(QUERY, k=6, space="latent", steer=STEER)
    assert [(node.node_id, node.score) for node in found] == [(hit.id, hit.score) for hit in expected]
    said = [node.metadata["sae"] for node in found]
    assert {edit["side"] for explained in said for edit in explained["steer"]} == {"query"}
    assert all(explained["residual"] == pytest.approx(0.0, abs=1e-6) for explained in said)
    assert {explained["read_on"] for explained in said} == {"reconstruction"}
    for options in ({"space": "latent", "latent_score": "damped"}, {"read_on": "vector"}):
        found = SAESteeredRetriever(retriever, 6, **options).retrieve(QUERY, steer=STEER)
        hits = retriever.search(QUERY, k=6, steer=STEER, **options)
        assert [(node.node_id, node.score) for node in found] == [(hit.id, hit.score) for hit in hits]
        assert [node.metadata["sae"]["read_on"] for node in found] == [hit.read_on for hit in hits]
        assert {node.metadata["sae"]["certified"] for node in found} == {hits.certified}


def test_neither_llm_nor_encoder_reads_the_explanation(steered: SAESteeredRetriever) -> None:
    node = steered.retrieve(QUERY)[0].node
    assert "unsteered_rank" in node.get_content(MetadataMode.ALL)
    assert "unsteered_rank" not in node.get_content(MetadataMode.LLM)
    assert "unsteered_rank" not in node.get_content(MetadataMode.EMBED)
    # MockLLM answers with its prompt.
    answer = str(RetrieverQueryEngine.from_args(steered, llm=MockLLM()).query(QUERY))
    assert "JSONDecoder" in answer
    assert "module: json" in answer
    assert "unsteered_rank" not in answer


def test_explanation_and_attribution_can_be_turned_off(retriever: SteeredRetriever) -> None:
    bare = SAESteeredRetriever(retriever, steer=STEER, attach_explanation=False).retrieve(QUERY)
    assert all(set(node.metadata) == {"module"} for node in bare)
    short = SAESteeredRetriever(retriever, steer=STEER, explain=False).retrieve(QUERY)
    keys = {"steer", "unsteered_rank", "unsteered_score", "read_on", "certified"}
    assert all(set(node.metadata["sae"]) == keys for node in short)
    assert [(n.node_id, n.score) for n in bare] == [(n.node_id, n.score) for n in short]


def test_fusion_counts_a_node_of_both_sides_once_only_without_explanations(retriever: SteeredRetriever) -> None:
    def best(attach: bool) -> float:
        both = [SAESteeredRetriever(retriever, 20, steer=s, attach_explanation=attach) for s in (None, {"json": 0.1})]
        fusion = QueryFusionRetriever(
            both, MockLLM(), num_queries=1, use_async=False, mode=FUSION_MODES.RECIPROCAL_RANK, similarity_top_k=40
        )
        return max(node.score or 0.0 for node in fusion.retrieve(QUERY))

    # Reciprocal rank fusion gives a node at most 1/60 for each list that it is found in.
    assert best(attach=False) > 1.5 / 60
    assert best(attach=True) <= 1 / 60


def test_a_retrieved_node_is_the_one_that_was_stored(over_index: SAESteeredRetriever, nodes: list[TextNode]) -> None:
    stored = {node.node_id: node for node in nodes}
    for found in over_index.retrieve(QUERY, steer=STEER):
        original = stored[found.node_id]
        assert found.node.get_content() == original.text
        assert {**found.metadata, "sae": None} == {**original.metadata, "sae": None}
        assert "sae" not in original.metadata
        assert isinstance(found.node, TextNode)


# -- filters -----------------------------------------------------------------------------------------------------------


def module(operator: FilterOperator, value: Any) -> MetadataFilter:
    return MetadataFilter(key="module", operator=operator, value=value)


FILTERS = {
    "eq": MetadataFilters(filters=[module(FilterOperator.EQ, "csv")]),
    "ne": MetadataFilters(filters=[module(FilterOperator.NE, "re")]),
    "in": MetadataFilters(filters=[module(FilterOperator.IN, ["csv", "json"])]),
    "and": MetadataFilters(filters=[module(FilterOperator.NE, "re"), module(FilterOperator.NE, "json")]),
    "nested": MetadataFilters(
        filters=[
            MetadataFilters(filters=[module(FilterOperator.EQ, "csv")]),
            MetadataFilters(filters=[module(FilterOperator.NIN, ["re"]), module(FilterOperator.EQ, "calendar")]),
        ],
        condition=FilterCondition.OR,
    ),
    "empty": MetadataFilters(filters=[]),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_mean_what_they_mean_in_llama_index(
    over_index: SAESteeredRetriever, index: VectorStoreIndex, name: str
) -> None:
    made = SAESteeredRetriever(over_index.retriever, 6, filters=FILTERS[name])
    theirs = index.as_retriever(similarity_top_k=6, filters=FILTERS[name])
    assert ids_of(made.retrieve(QUERY)) == ids_of(theirs.retrieve(QUERY))


def test_filters_hold_for_steered_searches_and_where_is_the_same(retriever: SteeredRetriever) -> None:
    filtered = SAESteeredRetriever(retriever, filters=FILTERS["eq"], steer=STEER).retrieve(QUERY)
    assert {node.metadata["module"] for node in filtered} == {"csv"}
    by_where = SAESteeredRetriever(retriever, where={"module": "csv"}, steer=STEER).retrieve(QUERY)
    assert ids_of(by_where) == ids_of(filtered)


def test_what_chroma_cannot_filter_is_refused(retriever: SteeredRetriever) -> None:
    for part in (module(FilterOperator.TEXT_MATCH, "cs"), module(FilterOperator.EQ, None)):
        with pytest.raises(ValueError, match="Chroma cannot filter 'module'"):
            SAESteeredRetriever(retriever, filters=MetadataFilters(filters=[part]))
    negated = MetadataFilters(filters=[module(FilterOperator.EQ, "csv")], condition=FilterCondition.NOT)
    with pytest.raises(ValueError, match="'not'"):
        SAESteeredRetriever(retriever, filters=negated)
    with pytest.raises(ValueError, match="filters and where"):
        SAESteeredRetriever(retriever, filters=FILTERS["eq"], where={"module": "csv"})


# -- over an index that exists -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", [QUERY, "wait until it is done", "days of a month"])
def test_unsteered_it_is_the_vector_index_retriever(
    over_index: SAESteeredRetriever, index: VectorStoreIndex, query: str
) -> None:
    theirs = index.as_retriever(similarity_top_k=4).retrieve(query)
    ours = over_index.retrieve(query)
    assert ids_of(ours) == ids_of(theirs)
    # ChromaVectorStore gives exp(-distance) of a squared distance; ours is the cosine.
    cosines = [1 + math.log(node.score or 0.0) / 2 for node in theirs]
    assert [node.score for node in ours] == pytest.approx(cosines, abs=1e-5)


def test_an_index_is_attached_without_embedding_or_changing_it(
    index: VectorStoreIndex, embed_model: MiniLM, world: World, expected: list[str]
) -> None:
    collection = index.vector_store.client

    def contents() -> tuple[Any, ...]:
        found = collection.get(include=["documents", "metadatas", "embeddings"])
        return found["ids"], found["documents"], found["metadatas"], np.asarray(found["embeddings"]).tobytes()

    before, metadata, configuration = contents(), collection.metadata, collection.configuration["hnsw"]
    embed_model.texts = 0
    made = SAESteeredRetriever.from_vector_store_index(index, sae=(world.sae, world.catalog))
    assert embed_model.texts == 0
    assert made.retriever.store.sidecar.count() == len(world.ids)
    assert ids_of(made.retrieve(QUERY, steer=STEER)) == expected
    assert contents() == before
    assert (collection.metadata, collection.configuration["hnsw"]) == (metadata, configuration)


def test_attribution_sums_to_the_score_of_a_squared_distance_collection_for_embeddings_of_any_length(
    over_index: SAESteeredRetriever,
) -> None:
    vector = 3.0 * over_index.retriever.embedder.embed_queries([QUERY])[0]
    (node, *_) = over_index.retrieve(QueryBundle(QUERY, embedding=vector.tolist()), steer=STEER)
    said = node.metadata["sae"]
    parts = [*said["features"], *said["steering"]]
    total = sum(part["contribution"] for part in parts) + said["other_features"] + said["bias"] + said["residual"]
    assert total == pytest.approx(node.score, abs=1e-5)
    assert node.score == pytest.approx(over_index.retrieve(QUERY, steer=STEER)[0].score, abs=1e-5)


def test_an_index_of_another_store_or_encoder_is_refused(
    index: VectorStoreIndex, nodes: list[TextNode], embed_model: MiniLM, world: World
) -> None:
    sae = (world.sae, world.catalog)
    simple = VectorStoreIndex(nodes[:3], embed_model=embed_model)
    with pytest.raises(TypeError, match="ChromaVectorStore"):
        SAESteeredRetriever.from_vector_store_index(simple, sae=sae)
    other = MiniLM(world.embedder, model_name="some-other-encoder")
    with pytest.raises(MismatchError, match="some-other-encoder"):
        SAESteeredRetriever.from_vector_store_index(index, sae=sae, embed_model=other)


# -- from nodes and from a folder --------------------------------------------------------------------------------------


def some_nodes(world: World, count: int = 40) -> list[TextNode]:
    rows = list(zip(world.ids, world.texts, world.metadatas, strict=True))[::6][:count]
    return [TextNode(id_=name, text=text, metadata=dict(metadata)) for name, text, metadata in rows]


def test_nodes_are_embedded_and_stored_as_llama_index_does(world: World, embed_model: MiniLM, tmp_path: Path) -> None:
    nodes = some_nodes(world)
    before = [node.to_json() for node in nodes]
    made = SAESteeredRetriever.from_nodes(
        nodes, sae=(world.sae, world.catalog), embed_model=embed_model, persist_directory=tmp_path
    )
    assert [node.to_json() for node in nodes] == before
    theirs = VectorStoreIndex.from_vector_store(
        ChromaVectorStore(chroma_collection=made.retriever.store.documents), embed_model=embed_model
    )
    found = theirs.as_retriever(similarity_top_k=4).retrieve(QUERY)
    assert ids_of(made.retrieve(QUERY)) == ids_of(found)
    assert found[0].node.get_content() == made.retrieve(QUERY)[0].node.get_content()
    (record,) = made.retriever.store.records([nodes[0].node_id])
    with_metadata = world.embedder.embed_documents([nodes[0].get_content(MetadataMode.EMBED)])[0]
    assert record.vector == pytest.approx(with_metadata, abs=1e-5)
    assert record.vector != pytest.approx(world.embedder.embed_documents([nodes[0].text])[0], abs=1e-3)


def test_indexing_again_embeds_only_what_changed(world: World, embed_model: MiniLM, tmp_path: Path) -> None:
    nodes = some_nodes(world, 10)

    def embedded() -> int:
        embed_model.texts = 0
        SAESteeredRetriever.from_nodes(
            nodes, sae=(world.sae, world.catalog), embed_model=embed_model, persist_directory=tmp_path
        )
        return embed_model.texts

    assert embedded() == 10
    assert embedded() == 0
    nodes[3].text += " More."
    nodes[5].metadata["module"] = "moved"  # it is part of what is embedded
    assert embedded() == 2


def test_metadata_of_every_kind_come_back(world: World) -> None:
    metadata = {"a": None, "nested": {"b": [1, "c"]}, "tags": ["x", "y"], "mixed": [1, "z"], "flag": True, "none": []}
    nodes = [*some_nodes(world, 3), TextNode(id_="n", text=QUERY, metadata=metadata), TextNode(id_="blank", text=" ")]
    tagged = MetadataFilters(filters=[MetadataFilter(key="tags", operator=FilterOperator.CONTAINS, value="y")])
    made = SAESteeredRetriever.from_nodes(
        nodes, sae=(world.sae, world.catalog), embed_model=world.embedder, filters=tagged, attach_explanation=False
    )
    (found,) = made.retrieve(QUERY)
    assert found.metadata == metadata
    assert len(made.retriever.store) == 4


def test_retrievers_without_a_folder_share_nothing(world: World) -> None:
    sae, nodes = (world.sae, world.catalog), some_nodes(world, 4)
    first = SAESteeredRetriever.from_nodes(nodes[:2], sae=sae, embed_model=world.embedder)
    second = SAESteeredRetriever.from_nodes(nodes[2:], sae=sae, embed_model=world.embedder)
    assert set(ids_of(first.retrieve(QUERY))) == {node.node_id for node in nodes[:2]}
    assert set(ids_of(second.retrieve(QUERY))) == {node.node_id for node in nodes[2:]}


def test_a_store_is_opened_with_the_sae_it_was_indexed_with(filled_folder: Path, expected: list[str]) -> None:
    made = SAESteeredRetriever.open(filled_folder / "chroma", steer=STEER)
    assert ids_of(made.retrieve(QUERY)) == expected
    # The core wrote these passages: there is no LlamaIndex node to restore.
    assert made.retrieve(QUERY)[0].metadata["module"] == "json"


def test_opening_what_is_not_there_makes_nothing(tmp_path: Path, world: World) -> None:
    with pytest.raises(StoreError, match="no folder"):
        SAESteeredRetriever.open(tmp_path / "absent", sae=(world.sae, world.catalog))
    assert not (tmp_path / "absent").exists()


def test_where_none_ships_the_error_says_how_to_get_one(
    index: VectorStoreIndex, nodes: list[TextNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_steer_retriever.sae.bundled.BUNDLED_FOLDER", tmp_path)
    makers: list[Callable[[], object]] = [
        lambda: SAESteeredRetriever.from_nodes(nodes),
        lambda: SAESteeredRetriever.from_vector_store_index(index),
        lambda: SAESteerPostprocessor.from_defaults(steer=STEER),
    ]
    for make in makers:
        with pytest.raises(ArtifactError, match="sae-steer train --corpus ./docs --model .* --output ./sae"):
            make()


def test_from_defaults_takes_what_it_is_given(
    index: VectorStoreIndex, world: World, filled_folder: Path, expected: list[str]
) -> None:
    sae, few = (world.sae, world.catalog), some_nodes(world, 3)
    assert ids_of(SAESteeredRetriever.from_defaults(index=index, sae=sae, steer=STEER).retrieve(QUERY)) == expected
    opened = SAESteeredRetriever.from_defaults(persist_directory=filled_folder / "chroma", sae=sae, steer=STEER)
    assert ids_of(opened.retrieve(QUERY)) == expected
    made = SAESteeredRetriever.from_defaults(few, sae=sae, embed_model=world.embedder)
    assert set(ids_of(made.retrieve(QUERY))) == {node.node_id for node in few}
    with pytest.raises(ValueError, match="nothing to retrieve from"):
        SAESteeredRetriever.from_defaults(sae=sae)
    with pytest.raises(ValueError, match="brings its own"):
        SAESteeredRetriever.from_defaults(few, index=index, sae=sae)


# -- the postprocessor -------------------------------------------------------------------------------------------------


@pytest.fixture
def candidates(index: VectorStoreIndex) -> list[NodeWithScore]:
    """What a retriever that knows no steering found."""
    return index.as_retriever(similarity_top_k=16).retrieve(QUERY)


def test_it_gives_the_scores_of_the_steered_search(retriever: SteeredRetriever, world: World) -> None:
    reranker = Reranker(world.sae, retriever.embedder, world.catalog, store=retriever.store)
    postprocessor = SAESteerPostprocessor(reranker=reranker, steer=STEER)
    hits = retriever.search(QUERY, k=16)
    given = [NodeWithScore(node=TextNode(id_=hit.id, text=hit.text), score=hit.score) for hit in hits]
    expected = {hit.id: hit.score for hit in retriever.search(QUERY, k=len(world.ids), steer=STEER)}
    reranked = postprocessor.postprocess_nodes(given, query_str=QUERY)
    assert len(reranked) == 16
    assert [node.score for node in reranked] == pytest.approx([expected[node.node_id] for node in reranked], abs=1e-5)
    assert [node.score for node in reranked] == sorted((node.score for node in reranked), reverse=True)
    assert ids_of(reranked) != ids_of(given)


def test_it_changes_nothing_of_the_callers(
    postprocessor: SAESteerPostprocessor, candidates: list[NodeWithScore]
) -> None:
    before = [node.to_json() for node in candidates]
    bundle = SteeredQuery(QUERY, steer={"whitespace": 1.0})
    reranked = postprocessor.postprocess_nodes(candidates, bundle)
    assert [node.to_json() for node in candidates] == before
    assert bundle == SteeredQuery(QUERY, steer={"whitespace": 1.0})
    assert {id(node.node) for node in reranked}.isdisjoint({id(node.node) for node in candidates})


@pytest.mark.parametrize("steer", [None, {}])
def test_unsteered_nodes_keep_order_and_scores(
    postprocessor: SAESteerPostprocessor, candidates: list[NodeWithScore], steer: dict[str, float] | None
) -> None:
    bundle = SteeredQuery(QUERY, steer={}) if steer is not None else QueryBundle(QUERY)
    calm = postprocessor if steer is not None else SAESteerPostprocessor(reranker=postprocessor.reranker)
    backwards = candidates[::-1]
    kept = calm.postprocess_nodes(backwards, bundle)
    assert [(node.node_id, node.score) for node in kept] == [(node.node_id, node.score) for node in backwards]
    assert all(new.node is old.node for new, old in zip(kept, backwards, strict=True))


def test_query_steer_beats_its_own(postprocessor: SAESteerPostprocessor, candidates: list[NodeWithScore]) -> None:
    (first, *_) = postprocessor.postprocess_nodes(candidates, SteeredQuery(QUERY, steer={"calendar": 1.0}))
    assert first.node_id.startswith("calendar.")
    assert first.metadata["sae"]["steer"][0]["name"] == "calendar"


def test_it_says_why_but_not_to_the_llm(postprocessor: SAESteerPostprocessor, candidates: list[NodeWithScore]) -> None:
    (first, *_) = postprocessor.postprocess_nodes(candidates, QueryBundle(QUERY))
    said = json.loads(json.dumps(first.metadata["sae"]))
    assert said["unsteered_rank"] == ids_of(candidates).index(first.node_id) + 1
    parts = [*said["features"], *said["steering"]]
    total = sum(part["contribution"] for part in parts) + said["other_features"] + said["bias"] + said["residual"]
    assert total == pytest.approx(first.score, abs=1e-5)
    assert "unsteered_rank" not in first.node.get_content(MetadataMode.LLM)
    assert "unsteered_rank" not in first.node.get_content(MetadataMode.EMBED)
    bare = postprocessor.model_copy(update={"attach_explanation": False})
    assert "sae" not in bare.postprocess_nodes(candidates, QueryBundle(QUERY))[0].metadata


def test_suppressing_leaves_passages_out(postprocessor: SAESteerPostprocessor, candidates: list[NodeWithScore]) -> None:
    left = postprocessor.postprocess_nodes(candidates, SteeredQuery(QUERY, steer={"calendar": Suppress()}))
    assert any(node.node_id.startswith("calendar.") for node in candidates)
    assert 0 < len(left) < len(candidates)
    assert "calendar.calendar" not in ids_of(left)


def test_limits_and_missing_queries(postprocessor: SAESteerPostprocessor, candidates: list[NodeWithScore]) -> None:
    short = postprocessor.model_copy(update={"top_n": 3})
    everything = postprocessor.postprocess_nodes(candidates, QueryBundle(QUERY))
    assert ids_of(short.postprocess_nodes(candidates, QueryBundle(QUERY))) == ids_of(everything)[:3]
    assert len(short.postprocess_nodes(candidates, SteeredQuery(QUERY, steer={}))) == 3
    assert postprocessor.postprocess_nodes([], QueryBundle(QUERY)) == []
    with pytest.raises(ValueError, match="query_bundle"):
        postprocessor.postprocess_nodes(candidates)


def test_it_emits_rerank_events(
    postprocessor: SAESteerPostprocessor, candidates: list[NodeWithScore], listener: Listener
) -> None:
    reranked = postprocessor.model_copy(update={"top_n": 2}).postprocess_nodes(candidates, QueryBundle(QUERY))
    (start,), (end,) = listener.of("ReRankStartEvent"), listener.of("ReRankEndEvent")
    assert (start.top_n, start.model_name) == (2, "sentence-transformers/all-MiniLM-L6-v2")
    assert len(start.nodes) == len(candidates)
    assert ids_of(end.nodes) == ids_of(reranked)


def test_embeddings_that_fit_are_reused_and_others_are_not(world: World, embed_model: MiniLM) -> None:
    few = list(zip(world.ids, world.texts, world.vectors, strict=True))[:6]

    def rerank(vectors: list[list[float]], **fields: Any) -> list[tuple[str, float | None]]:
        embed_model.texts = 0
        made = SAESteerPostprocessor.from_defaults(
            sae=(world.sae, world.catalog), embed_model=embed_model, steer={"thread": 1.0}, **fields
        )
        rows = zip(few, vectors, strict=True)
        nodes = [
            NodeWithScore(node=TextNode(id_=name, text=text, embedding=vector)) for (name, text, _), vector in rows
        ]
        return [(node.node_id, node.score) for node in made.postprocess_nodes(nodes, query_str="wait for a thread")]

    own = [x.tolist() for _, _, x in few]
    reused = rerank(own)
    assert embed_model.texts == 0
    for vectors, fields in (([[1.0, 2.0]] * 6, {}), (own, {"reuse_embeddings": False})):
        again = rerank(vectors, **fields)
        assert embed_model.texts == 6
        assert [name for name, _ in again] == [name for name, _ in reused]
        assert [score for _, score in again] == pytest.approx([score for _, score in reused], abs=1e-5)


def test_postprocessor_in_a_query_engine(index: VectorStoreIndex, postprocessor: SAESteerPostprocessor) -> None:
    calm = SAESteerPostprocessor(reranker=postprocessor.reranker, top_n=3)
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=16, node_postprocessors=[calm])
    unsteered = ids_of(engine.query(QUERY).source_nodes)
    assert unsteered == ids_of(index.as_retriever(similarity_top_k=3).retrieve(QUERY))
    # VectorIndexRetriever has written its embedding into the query by now: it is used, not steered twice.
    response = engine.query(SteeredQuery(QUERY, steer=STEER))
    alone = calm.postprocess_nodes(
        index.as_retriever(similarity_top_k=16).retrieve(QUERY), SteeredQuery(QUERY, steer=STEER)
    )
    assert ids_of(response.source_nodes) == ids_of(alone) != unsteered
    assert [n.score for n in response.source_nodes] == pytest.approx([n.score for n in alone], abs=1e-5)
    assert "unsteered_rank" not in str(response)


async def test_postprocessor_in_an_async_query_engine(
    index: VectorStoreIndex, postprocessor: SAESteerPostprocessor
) -> None:
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=16, node_postprocessors=[postprocessor])
    own = await engine.aquery(QUERY)
    assert own.source_nodes[0].node_id == "json.JSONDecoder"
    asked = await engine.aquery(SteeredQuery(QUERY, steer={"calendar": 1.0}))
    assert asked.source_nodes[0].node_id.startswith("calendar.")


def test_postprocessor_in_a_chat_engine(index: VectorStoreIndex, postprocessor: SAESteerPostprocessor) -> None:
    engine = ContextChatEngine.from_defaults(
        index.as_retriever(similarity_top_k=16), llm=MockLLM(), node_postprocessors=[postprocessor]
    )
    assert engine.chat(QUERY).source_nodes[0].node_id == "json.JSONDecoder"


def test_steering_twice_scores_once(plain: SAESteeredRetriever, postprocessor: SAESteerPostprocessor) -> None:
    engine = RetrieverQueryEngine.from_args(plain, llm=MockLLM(), node_postprocessors=[postprocessor])
    nodes = engine.query(SteeredQuery(QUERY, steer=STEER)).source_nodes
    once = plain.retrieve(QUERY, steer=STEER)
    # The retriever embedded the passages bare, the postprocessor reads them with their metadata: nearly the same.
    assert nodes[0].node_id == once[0].node_id
    assert nodes[0].score == pytest.approx(once[0].score, abs=0.1)
    assert nodes[0].node.excluded_llm_metadata_keys.count("sae") == 1


def test_postprocessor_is_a_sound_component(postprocessor: SAESteerPostprocessor) -> None:
    assert SAESteerPostprocessor.class_name() == "SAESteerPostprocessor"
    body = json.loads(postprocessor.to_json())
    assert body["class_name"] == "SAESteerPostprocessor"
    assert body["steer"] == STEER
    assert "reranker" not in body
    assert len(repr(postprocessor)) < 400
    with pytest.raises(ValidationError, match="steeer"):
        SAESteerPostprocessor(reranker=postprocessor.reranker, steeer=STEER)  # type: ignore[call-arg]
    with pytest.raises(UnknownFeatureError, match="calendar"):
        SAESteerPostprocessor(reranker=postprocessor.reranker, steer={"clendar": 1.0})
    with pytest.raises(ValidationError, match="strength of 'json' is 'much': expected a number"):
        SAESteerPostprocessor(reranker=postprocessor.reranker, steer={"json": "much"})


def test_a_policy_works_in_every_place(
    plain: SAESteeredRetriever, postprocessor: SAESteerPostprocessor, expected: list[str], world: World
) -> None:
    policy = plain.retriever.resolve(STEER)
    assert ids_of(SAESteeredRetriever(plain.retriever, steer=policy).retrieve(QUERY)) == expected
    assert ids_of(plain.retrieve(SteeredQuery(QUERY, steer=policy))) == expected
    by_policy = SAESteerPostprocessor(reranker=postprocessor.reranker, steer=policy)
    nodes = plain.retrieve(QUERY)
    assert ids_of(by_policy.postprocess_nodes(nodes, query_str=QUERY)) == ids_of(
        postprocessor.postprocess_nodes(nodes, query_str=QUERY)
    )
    foreign = dataclasses.replace(policy, fingerprint="0" * 16)
    with pytest.raises(MismatchError, match=world.sae.fingerprint):
        plain.retrieve(QUERY, steer=foreign)
