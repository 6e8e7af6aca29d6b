"""The LangChain adapter: every route a steering takes through LangChain, and what arrives at the other end."""

from __future__ import annotations

import gc
import json
import operator
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict
from uuid import UUID

import pytest

pytest.importorskip("langchain_core")
langchain_chroma = pytest.importorskip("langchain_chroma")
pytest.importorskip("langchain_classic")
pytest.importorskip("langchain_tests")
pytest.importorskip("langgraph")

import chromadb  # noqa: E402
import numpy as np  # noqa: E402
from langchain_classic.chains.retrieval import create_retrieval_chain  # noqa: E402
from langchain_classic.retrievers.contextual_compression import ContextualCompressionRetriever  # noqa: E402
from langchain_classic.retrievers.ensemble import EnsembleRetriever  # noqa: E402
from langchain_classic.retrievers.merger_retriever import MergerRetriever  # noqa: E402
from langchain_classic.retrievers.multi_query import MultiQueryRetriever  # noqa: E402
from langchain_core.callbacks import BaseCallbackHandler, Callbacks  # noqa: E402
from langchain_core.documents import BaseDocumentCompressor, Document  # noqa: E402
from langchain_core.embeddings import Embeddings  # noqa: E402
from langchain_core.language_models import FakeListChatModel  # noqa: E402
from langchain_core.load import dumps  # noqa: E402
from langchain_core.retrievers import BaseRetriever  # noqa: E402
from langchain_core.runnables import ConfigurableField, RunnableLambda  # noqa: E402
from langchain_core.tools import create_retriever_tool  # noqa: E402
from langchain_tests.integration_tests import RetrieversIntegrationTests  # noqa: E402
from langgraph.graph import END, START, StateGraph  # noqa: E402
from pydantic import ValidationError  # noqa: E402
from small_world import World  # noqa: E402

from sae_steer_retriever.encoders.embedders import SentenceTransformerEmbedder  # noqa: E402
from sae_steer_retriever.errors import (  # noqa: E402
    ArtifactError,
    MismatchError,
    SteeringError,
    StoreError,
    UnknownFeatureError,
)
from sae_steer_retriever.integrations.langchain import SAESteeredRetriever  # noqa: E402
from sae_steer_retriever.retriever import SteeredRetriever  # noqa: E402
from sae_steer_retriever.sae.codes import Array  # noqa: E402
from sae_steer_retriever.sae.config import EncoderSpec  # noqa: E402
from sae_steer_retriever.steering.operations import Clamp, Suppress  # noqa: E402
from sae_steer_retriever.store.chroma_store import ChromaStore  # noqa: E402

QUERY = "how do I run work in the background and wait for it?"
STEER = {"thread": 0.5}
AWAY = {"thread": -2.0}
Route = Callable[[Any], list[Document]]


class Remembered(Embeddings):
    """The world's encoder as LangChain sees one; passages it knows are looked up, and every request is counted."""

    model_name = "all-MiniLM-L6-v2"

    def __init__(self, world: World) -> None:
        self._embedder = world.embedder
        self._known = dict(zip(world.texts, world.vectors.tolist(), strict=True))
        self.documents_embedded = 0

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.documents_embedded += len(texts)
        unknown = [text for text in texts if text not in self._known]
        self._known |= dict(zip(unknown, self._embedder.embed_documents(unknown).tolist(), strict=True))
        return [self._known[text] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        vector: list[float] = self._embedder.embed_queries([text])[0].tolist()
        return vector


class Counting:
    """An `Embedder` that counts the documents it embeds."""

    def __init__(self, embedder: SentenceTransformerEmbedder) -> None:
        self._embedder = embedder
        self.documents_embedded = 0

    @property
    def spec(self) -> EncoderSpec:
        return self._embedder.spec

    def embed_queries(self, texts: Sequence[str]) -> Array:
        return self._embedder.embed_queries(texts)

    def embed_documents(self, texts: Sequence[str]) -> Array:
        self.documents_embedded += len(texts)
        return self._embedder.embed_documents(texts)


class KeepAll(BaseDocumentCompressor):
    """Compresses nothing."""

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        return documents


class Question(TypedDict, total=False):
    """State of the LangGraph tests."""

    question: str
    steer: dict[str, float]
    documents: list[Document]


@pytest.fixture(scope="module")
def core(world: World, filled_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SteeredRetriever]:
    """Like `retriever` of the small world, whose name LangChain's own suite takes. Nothing here writes to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_STEER_CACHE", str(tmp_path_factory.mktemp("langchain")))
        store = ChromaStore.open(world.sae, path=filled_folder / "chroma")
        yield SteeredRetriever(store, world.embedder, world.catalog)


@pytest.fixture
def plain(core: SteeredRetriever) -> SAESteeredRetriever:
    """Not steered unless a test says so."""
    return SAESteeredRetriever(retriever=core)


@pytest.fixture(scope="module")
def expected(core: SteeredRetriever) -> dict[str, list[str]]:
    """The ids the core finds: not steered, steered, and steered away."""
    found = {
        name: [hit.id for hit in core.search(QUERY, steer=steer)]
        for name, steer in {"plain": None, "steered": STEER, "away": AWAY}.items()
    }
    assert found["steered"] != found["plain"] != found["away"]
    return found


@pytest.fixture
def pair(world: World) -> tuple[Any, Any]:
    """The world's SAE as `sae=` takes it."""
    return (world.sae, world.catalog)


@pytest.fixture
def documents() -> list[Document]:
    """Three documents, two of them with ids of their own."""
    return [
        Document("A thread is started with start() and waited for with join().", id="thread", metadata={"page": 1}),
        Document("A zip archive is a compressed folder in one file.", metadata={"page": 2, "tags": ["a", "b"]}),
        Document("The arithmetic mean is the sum of the data divided by their number.", id="mean"),
    ]


def ids(documents: Sequence[Document]) -> list[str | None]:
    return [document.id for document in documents]


def applied(documents: Sequence[Document]) -> list[str]:
    """The names of the steering that every document says was applied to it."""
    (names,) = {tuple(edit["name"] for edit in document.metadata["sae"]["steer"]) for document in documents}
    return list(names)


def compressed(retriever: Any) -> ContextualCompressionRetriever:
    return ContextualCompressionRetriever(base_compressor=KeepAll(), base_retriever=retriever)


def ensemble(retriever: Any) -> EnsembleRetriever:
    return EnsembleRetriever(retrievers=[retriever], weights=[1.0])


def merger(retriever: Any) -> MergerRetriever:
    return MergerRetriever(retrievers=[retriever])


def multi_query(retriever: Any, questions: str = QUERY) -> MultiQueryRetriever:
    return MultiQueryRetriever.from_llm(retriever=retriever, llm=FakeListChatModel(responses=[questions]))


def parallel(retriever: Any) -> Any:
    return {"context": retriever, "question": RunnableLambda(str)} | RunnableLambda(operator.itemgetter("context"))


def tool_artifact(retriever: Any) -> list[Document]:
    tool = create_retriever_tool(retriever, "docs", "Searches.", response_format="content_and_artifact")
    call = {"type": "tool_call", "id": "1", "name": "docs", "args": {"query": QUERY}}
    found: list[Document] = tool.invoke(call).artifact
    return found


def graph(node: Any) -> Any:
    builder = StateGraph(Question)
    builder.add_node("retrieve", node)
    builder.add_edge(START, "retrieve")
    builder.add_edge("retrieve", END)
    return builder.compile()


def retrieval_chain(retriever: Any) -> Any:
    return create_retrieval_chain(retriever, RunnableLambda(lambda _: "an answer"))


ROUTES: dict[str, Route] = {
    "invoke": lambda r: r.invoke(QUERY),
    "batch": lambda r: r.batch([QUERY, "zip files"])[0],
    "stream": lambda r: next(iter(r.stream(QUERY))),
    "with_retry": lambda r: r.with_retry().invoke(QUERY),
    "pipe": lambda r: (r | RunnableLambda(list)).invoke(QUERY),
    "parallel": lambda r: parallel(r).invoke(QUERY),
    "tool": tool_artifact,
    "compression": lambda r: compressed(r).invoke(QUERY),
    "ensemble": lambda r: ensemble(r).invoke(QUERY),
    "langgraph": lambda r: graph(lambda s: {"documents": r.invoke(s["question"])}).invoke({"question": QUERY})[
        "documents"
    ],
}
RETRIEVER_ROUTES: dict[str, Route] = {
    "retrieval_chain": lambda r: retrieval_chain(r).invoke({"input": QUERY})["context"],
    "merger": lambda r: merger(r).invoke(QUERY),
    "multi_query": lambda r: multi_query(r).invoke(QUERY),
}


class TestStandard(RetrieversIntegrationTests):
    """LangChain's own suite, nothing left out."""

    @pytest.fixture(autouse=True)
    def _given(self, core: SteeredRetriever) -> None:
        self.core = core

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return SAESteeredRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"retriever": self.core, "steer": STEER}

    @property
    def retriever_query_example(self) -> str:
        return QUERY


# -- what keeps a steering --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", [*ROUTES, *RETRIEVER_ROUTES])
def test_constructor_steer_keeps_to_every_route(
    route: str, plain: SAESteeredRetriever, expected: dict[str, list[str]]
) -> None:
    found = {**ROUTES, **RETRIEVER_ROUTES}[route](plain.with_steer(STEER))
    assert ids(found) == expected["steered"]
    assert applied(found) == ["thread"]


@pytest.mark.parametrize("route", ROUTES)
def test_bound_steer_keeps_to_every_route_that_takes_a_runnable(
    route: str, plain: SAESteeredRetriever, expected: dict[str, list[str]]
) -> None:
    assert ids(ROUTES[route](plain.bind(steer=STEER))) == expected["steered"]


@pytest.mark.parametrize(
    "route",
    [
        lambda r: r.invoke(QUERY, steer=STEER),
        lambda r: r.batch([QUERY], steer=STEER)[0],
        lambda r: (r | RunnableLambda(list)).invoke(QUERY, steer=STEER),
        lambda r: compressed(r).invoke(QUERY, steer=STEER),
        lambda r: graph(lambda s: {"documents": r.invoke(s["question"], steer=s.get("steer"))}).invoke(
            {"question": QUERY, "steer": STEER}
        )["documents"],
    ],
    ids=["invoke", "batch", "pipe", "compression", "langgraph"],
)
def test_call_steer_arrives(route: Route, plain: SAESteeredRetriever, expected: dict[str, list[str]]) -> None:
    assert ids(route(plain)) == expected["steered"]


@pytest.mark.parametrize("wrap", [parallel, ensemble, merger], ids=["parallel", "ensemble", "merger"])
def test_a_call_steer_that_langchain_drops_shows_in_the_stamp(
    wrap: Callable[[Any], Any], plain: SAESteeredRetriever, expected: dict[str, list[str]]
) -> None:
    found = wrap(plain).invoke(QUERY, steer=STEER)
    assert ids(found) == expected["plain"]
    assert applied(found) == []


async def test_call_steer_arrives_in_async_calls(plain: SAESteeredRetriever, expected: dict[str, list[str]]) -> None:
    assert ids(await plain.ainvoke(QUERY, steer=STEER)) == expected["steered"]
    assert ids((await plain.abatch([QUERY, QUERY], steer=STEER))[1]) == expected["steered"]
    assert [ids(chunk) async for chunk in plain.astream(QUERY, steer=STEER)] == [expected["steered"]]
    assert len(await plain.ainvoke(QUERY, k=2)) == 2


@pytest.fixture
def configurable(plain: SAESteeredRetriever) -> Any:
    return plain.configurable_fields(steer=ConfigurableField(id="steer"), k=ConfigurableField(id="k"))


def config(steer: Any, **more: Any) -> Any:
    return {"configurable": {"steer": steer, **more}}


CHAINS: dict[str, Callable[[Any], Any]] = {
    "alone": lambda r: r,
    "pipe": lambda r: r | RunnableLambda(list),
    "parallel": parallel,
    "ensemble": ensemble,
    "retrieval_chain": lambda r: (
        RunnableLambda(lambda q: {"input": q})
        | retrieval_chain((lambda x: x["input"]) | r)
        | operator.itemgetter("context")
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
async def test_configured_steer_is_each_items_own(
    chain: str, configurable: Any, expected: dict[str, list[str]]
) -> None:
    runnable, configs = CHAINS[chain](configurable), [config(STEER), config(AWAY), config({})]
    wanted = [expected["steered"], expected["away"], expected["plain"]]
    assert [ids(found) for found in runnable.batch([QUERY] * 3, config=configs)] == wanted
    assert [ids(found) for found in await runnable.abatch([QUERY] * 3, config=configs)] == wanted
    assert ids(runnable.with_config(configs[1]).invoke(QUERY)) == expected["away"]


def test_configured_steer_reaches_a_tool_inside_a_chain_only(configurable: Any) -> None:
    tool = create_retriever_tool(configurable, "docs", "Searches.")
    unsteered = tool.invoke({"query": QUERY})
    steered = [document.page_content for document in configurable.invoke(QUERY, config=config(STEER))]
    steered_only = [text for text in steered if text not in unsteered]
    assert steered_only
    found = (RunnableLambda(lambda q: {"query": q}) | tool).invoke(QUERY, config=config(STEER))
    assert all(text in found for text in steered_only)


def test_configured_steer_passes_a_compression_only_when_a_chain_invokes_it(
    configurable: Any, expected: dict[str, list[str]]
) -> None:
    alone = compressed(configurable)
    chain = RunnableLambda(str) | alone
    assert ids(chain.invoke(QUERY, config=config(STEER))) == expected["steered"]
    for lost in (alone.invoke(QUERY, config=config(STEER)), chain.batch([QUERY], config=config(STEER))[0]):
        assert ids(lost) == expected["plain"]
        assert applied(lost) == []


async def test_configured_steer_reaches_a_langgraph_node(configurable: Any, expected: dict[str, list[str]]) -> None:
    async def retrieve(state: Question) -> Question:
        return {"documents": await configurable.ainvoke(state["question"])}

    app = graph(lambda state: {"documents": configurable.invoke(state["question"])})
    assert ids(app.invoke({"question": QUERY}, config=config(STEER))["documents"]) == expected["steered"]
    state = await graph(retrieve).ainvoke({"question": QUERY}, config=config(STEER, k=2))  # type: ignore[arg-type]
    assert ids(state["documents"]) == expected["steered"][:2]


def test_configured_values_are_validated(configurable: Any) -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        configurable.invoke(QUERY, config=config({}, k=0))
    with pytest.raises(UnknownFeatureError, match="Did you mean 'thread'"):
        configurable.invoke(QUERY, config=config({"threadd": 0.5}))


@pytest.mark.parametrize("wrap", [merger, multi_query])
def test_wrappers_that_want_a_retriever_refuse_a_bound_one_and_take_with_steer(
    wrap: Callable[[Any], Any], plain: SAESteeredRetriever, configurable: Any
) -> None:
    for other in (plain.bind(steer=STEER), configurable):
        with pytest.raises(ValidationError):
            wrap(other)
    assert applied(wrap(plain.with_steer(STEER)).invoke(QUERY)) == ["thread"]


def test_a_dict_that_becomes_the_query_is_refused(plain: SAESteeredRetriever, configurable: Any) -> None:
    message = r"query must be str, got dict: put \(lambda x: x\[\"input\"\]\) \| retriever in the chain"
    for other in (plain.bind(steer=STEER), configurable):
        with pytest.raises(TypeError, match=message):
            retrieval_chain(other).invoke({"input": QUERY})
    with pytest.raises(TypeError, match=message):
        graph(plain).invoke({"question": QUERY})


async def test_a_dict_is_refused_in_async_calls(plain: SAESteeredRetriever) -> None:
    with pytest.raises(TypeError, match="query must be str, got dict"):
        await plain.ainvoke({"input": QUERY})  # type: ignore[arg-type]


# -- which steering wins, and what is refused -------------------------------------------------------------------------


def test_a_call_wins_over_configuration_and_constructor(core: SteeredRetriever, expected: dict[str, list[str]]) -> None:
    steered = SAESteeredRetriever(retriever=core, steer=STEER, k=3)
    assert ids(steered.invoke(QUERY, steer=None, k=None)) == expected["steered"][:3]
    assert ids(steered.invoke(QUERY, steer=AWAY, k=4)) == expected["away"]
    assert ids(steered.invoke(QUERY, steer={}, k=4)) == expected["plain"]
    configurable = steered.configurable_fields(steer=ConfigurableField(id="steer"))
    assert applied(configurable.invoke(QUERY, config=config({}))) == []
    assert ids(configurable.invoke(QUERY, config=config({}), steer=AWAY, k=4)) == expected["away"]


def test_filter_is_chromas_and_an_empty_one_in_a_call_lifts_it(
    core: SteeredRetriever, expected: dict[str, list[str]]
) -> None:
    filtered = SAESteeredRetriever(retriever=core, filter={"module": "threading"}, steer=STEER)
    assert {document.metadata["module"] for document in filtered.invoke(QUERY)} == {"threading"}
    assert {document.metadata["module"] for document in filtered.invoke(QUERY, filter={"module": "json"})} == {"json"}
    assert ids(filtered.invoke(QUERY, filter={})) == expected["steered"]


def test_options_reach_the_core(core: SteeredRetriever, plain: SAESteeredRetriever) -> None:
    given: list[dict[str, Any]] = [
        {"space": "reconstructed", "side": "query", "drift_cap": 0.95, "fetch_k": 20},
        {"space": "latent", "latent_score": "dot", "side": "query"},
        {"read_on": "vector", "side": "query"},
    ]
    for options in given:
        found = plain.with_steer({"thread": 2.0}, **options).invoke(QUERY)
        hits = core.search(QUERY, steer={"thread": 2.0}, **options)
        assert [(d.id, d.metadata["relevance_score"]) for d in found] == [(hit.id, hit.score) for hit in hits]
        assert {edit["side"] for edit in found[0].metadata["sae"]["steer"]} == {"query"}
        for document, hit in zip(found, hits, strict=True):
            why = document.metadata["sae"]
            assert (why["read_on"], why["certified"]) == (hit.read_on, hits.certified)


def test_steering_may_come_from_json_by_id_or_as_a_policy(plain: SAESteeredRetriever) -> None:
    by_id = plain.invoke(QUERY, steer={2: 0.5})
    assert ids(plain.invoke(QUERY, steer=json.loads(json.dumps({2: 0.5})))) == ids(by_id)
    policy = plain.retriever.resolve({"thread": 0.5, "json": Suppress()})
    assert ids(plain.with_steer(policy).invoke(QUERY)) == ids(plain.invoke(QUERY, steer=policy))
    assert applied(plain.invoke(QUERY, steer={"thread": Clamp(0.5)})) == ["thread"]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_misspelt_keyword_is_an_error(asynchronous: bool, plain: SAESteeredRetriever) -> None:
    with pytest.raises(TypeError, match="steeer"):
        _ = await plain.ainvoke(QUERY, steeer=STEER) if asynchronous else plain.invoke(QUERY, steeer=STEER)


def test_a_misspelt_field_is_an_error(core: SteeredRetriever, plain: SAESteeredRetriever, pair: Any) -> None:
    for make in (
        lambda: SAESteeredRetriever(retriever=core, steeer=STEER),  # type: ignore[call-arg]
        lambda: plain.with_steer(STEER, driftcap=0.9),
        lambda: SAESteeredRetriever.from_texts(["text"], sae=pair, persist_dir="here"),
    ):
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            make()


@pytest.mark.parametrize(
    ("steer", "error"),
    [
        ({"threadd": 0.5}, UnknownFeatureError),
        ({"thread": "much"}, SteeringError),
        ({"thread": float("nan")}, SteeringError),
        (["thread"], SteeringError),
    ],
)
def test_an_unusable_steering_is_refused_wherever_it_comes_from(
    steer: Any, error: type[Exception], plain: SAESteeredRetriever
) -> None:
    with pytest.raises(error):
        plain.invoke(QUERY, steer=steer)
    plain.steer = steer  # pydantic does not look at assignments
    with pytest.raises(error):
        plain.invoke(QUERY)
    with pytest.raises(error):
        plain.model_copy(update={"steer": steer}).invoke(QUERY)


def test_numbers_out_of_range_are_refused(core: SteeredRetriever, plain: SAESteeredRetriever) -> None:
    with pytest.raises(ValueError, match="k is 0"):
        plain.invoke(QUERY, k=0)
    for field in (
        {"k": 0},
        {"fetch_k": 0},
        {"drift_cap": 0.0},
        {"space": "origin"},
        {"side": "left"},
        {"read_on": "text"},
    ):
        with pytest.raises(ValidationError):
            SAESteeredRetriever(retriever=core, **field)  # type: ignore[arg-type]


def test_with_steer_makes_a_new_validated_retriever_on_the_same_store(plain: SAESteeredRetriever) -> None:
    tagged = plain.with_steer(STEER, k=2, tags=["mine"])
    steered = tagged.with_steer(AWAY)
    assert steered.retriever is plain.retriever
    assert (steered.k, steered.tags, steered.steer) == (2, ["mine"], AWAY)
    assert (plain.k, plain.tags, plain.steer, tagged.steer) == (4, None, None, STEER)
    with pytest.raises(UnknownFeatureError):
        plain.with_steer({"threadd": 0.5})


# -- documents out ----------------------------------------------------------------------------------------------------


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from (*leaves(key), *leaves(item))
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


@pytest.mark.parametrize("space", ["original", "reconstructed", "latent"])
def test_metadata_is_plain_and_sums_to_the_score(space: Any, plain: SAESteeredRetriever) -> None:
    steer = {"thread": np.float32(0.5), "2": 1, "json": Suppress()}
    found = plain.with_steer(steer, space=space, k=10).invoke(QUERY)
    for document in found:
        assert {type(leaf) for leaf in leaves(document.metadata)} <= {str, int, float, bool, type(None)}
        assert json.loads(json.dumps(document.metadata)) == document.metadata
        assert "not_implemented" not in dumps(document)
        why = document.metadata["sae"]
        parts = [part["contribution"] for part in (*why["features"], *why["steering"])]
        total = sum(parts) + why["other_features"] + why["bias"] + why["residual"]
        assert total == pytest.approx(document.metadata["relevance_score"], abs=1e-5)
        assert 0 <= why["unexplained"] <= 1
        assert len(why["features"]) <= 5
    scores = [document.metadata["relevance_score"] for document in found]
    assert scores == sorted(scores, reverse=True)
    edits = {edit["name"]: edit for edit in found[0].metadata["sae"]["steer"]}
    assert edits["thread"]["strength"] == 0.5
    assert edits["2"]["features"] == [2]
    assert edits["json"]["op"] == "suppress"


def test_ranks_and_scores_before_steering_are_those_of_the_plain_search(plain: SAESteeredRetriever) -> None:
    before = {document.id: place for place, document in enumerate(plain.invoke(QUERY, k=50), start=1)}
    scores = {document.id: document.metadata["relevance_score"] for document in plain.invoke(QUERY, k=50)}
    moved = 0
    for place, document in enumerate(plain.invoke(QUERY, steer=STEER, k=6), start=1):
        why = document.metadata["sae"]
        assert why["unsteered_rank"] == before[document.id]
        assert why["unsteered_score"] == pytest.approx(scores[document.id], abs=1e-6)
        gained = sum(term["contribution"] for term in why["steering"])
        assert document.metadata["relevance_score"] == pytest.approx(why["unsteered_score"] + gained, abs=1e-6)
        moved += why["unsteered_rank"] != place
    assert moved


def test_without_scores_documents_are_as_stored(world: World, plain: SAESteeredRetriever) -> None:
    (found,) = plain.with_steer(STEER, attach_scores=False, k=1).invoke(QUERY)
    place = world.ids.index(str(found.id))
    assert (found.page_content, found.metadata) == (world.texts[place], world.metadatas[place])


def test_multi_query_takes_scored_documents_for_different_ones(plain: SAESteeredRetriever) -> None:
    questions = f"{QUERY}\nhow do I wait for work in the background?"
    unscored = multi_query(plain.with_steer(STEER, attach_scores=False), questions).invoke(QUERY)
    assert len(set(ids(unscored))) == len(unscored)
    scored = multi_query(plain.with_steer(STEER), questions).invoke(QUERY)
    assert len(set(ids(scored))) < len(scored)


def test_documents_of_two_calls_share_nothing(plain: SAESteeredRetriever) -> None:
    (first,), (second,) = plain.invoke(QUERY, k=1), plain.invoke(QUERY, k=1)
    first.metadata["sae"]["features"].clear()
    first.metadata["module"] = "changed"
    assert second.metadata["sae"]["features"]
    (third,) = plain.invoke(QUERY, k=1)
    assert third == second


def test_repr_is_short_and_says_what_was_set(core: SteeredRetriever) -> None:
    assert repr(SAESteeredRetriever(retriever=core)) == "SAESteeredRetriever()"
    assert repr(SAESteeredRetriever(retriever=core, k=2, steer=STEER)) == (
        "SAESteeredRetriever(k=2, steer={'thread': 0.5})"
    )
    assert len(dumps(SAESteeredRetriever(retriever=core))) < 500


# -- traces -----------------------------------------------------------------------------------------------------------


class Trace(BaseCallbackHandler):
    """Keeps what a tracer is told."""

    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {}
        self.errors: list[BaseException] = []

    def on_retriever_start(
        self,
        serialized: dict[str, Any],
        query: str,
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.metadata = dict(metadata or {})

    def on_retriever_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)


async def test_a_trace_shows_the_steering_and_the_encoder(plain: SAESteeredRetriever) -> None:
    trace = Trace()
    steered = plain.with_steer(STEER, metadata={"team": "search"})
    steered.invoke(QUERY, config={"callbacks": [trace]})
    assert trace.metadata["sae_steer"] == STEER
    assert trace.metadata["team"] == "search"
    assert trace.metadata["ls_retriever_name"] == "saesteered"
    assert trace.metadata["ls_vector_store_provider"] == "Chroma"
    assert trace.metadata["ls_embedding_provider"] == "SentenceTransformerEmbedder"
    assert trace.metadata["ls_embedding_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    await steered.ainvoke(QUERY, config={"callbacks": [trace]}, steer={"thread": np.float32(1), 2: Suppress()})
    assert json.loads(json.dumps(trace.metadata["sae_steer"])) == {"thread": 1.0, "2": "Suppress()"}
    steered.invoke(QUERY, config={"callbacks": [trace]}, steer=plain.retriever.resolve(AWAY))
    assert trace.metadata["sae_steer"] == AWAY
    steered.invoke(QUERY, config={"callbacks": [trace]}, steer={})
    assert trace.metadata["sae_steer"] == {}


@pytest.mark.parametrize("steer", [{"threadd": 0.5}, {"thread": "much"}, "thread"])
def test_a_refused_steering_is_an_error_of_the_traced_run(steer: Any, plain: SAESteeredRetriever) -> None:
    trace = Trace()
    with pytest.raises((UnknownFeatureError, SteeringError)) as refused:
        plain.invoke(QUERY, config={"callbacks": [trace]}, steer=steer)
    assert trace.errors == [refused.value]
    assert "thread" in str(trace.metadata["sae_steer"])


# -- documents in -----------------------------------------------------------------------------------------------------


def test_from_documents_retrieves_what_was_given_and_changes_nothing(
    documents: list[Document], pair: Any, embedder: SentenceTransformerEmbedder
) -> None:
    before = [document.model_copy(deep=True) for document in documents]
    steer = {"thread": 0.5}
    retriever = SAESteeredRetriever.from_documents(documents, sae=pair, embedding=embedder, k=2, steer=steer)
    found = retriever.invoke("waiting for a thread")
    found[0].metadata["page"] = 9
    assert found[0].id == "thread"
    assert found[0].page_content == before[0].page_content
    assert len(found) == 2
    assert documents == before
    assert steer == {"thread": 0.5}
    steer["thread"] = 5.0
    assert retriever.steer == {"thread": 0.5}


def test_adding_again_embeds_nothing_and_duplicates_nothing(
    tmp_path: Path, documents: list[Document], pair: Any, embedder: SentenceTransformerEmbedder
) -> None:
    documents.append(Document(documents[1].page_content, metadata={"page": 7}))  # the same text on another page
    counting = Counting(embedder)
    for expected_count in (4, 4):
        retriever = SAESteeredRetriever.from_documents(
            documents, sae=pair, embedding=counting, persist_directory=tmp_path / "chroma"
        )
        assert counting.documents_embedded == expected_count
        assert len(retriever.retriever.store) == 4
    assert sorted(d.metadata.get("page", 0) for d in retriever.invoke("zip")) == [0, 1, 2, 7]
    added = retriever.add_documents([Document("A new passage about calendars.")])
    assert len(retriever.retriever.store) == 5
    assert retriever.invoke("calendars", k=1)[0].id == added[0]


def test_from_texts_takes_ids_and_metadatas(pair: Any, embedder: SentenceTransformerEmbedder) -> None:
    metadatas: list[Any] = [{"page": 1, "title": None, "authors": []}, None]
    retriever = SAESteeredRetriever.from_texts(
        ["threads and locks", "zip archives"], metadatas=metadatas, ids=["a", "b"], sae=pair, embedding=embedder
    )
    found = {document.id: document for document in retriever.invoke("locks")}
    assert found["a"].metadata.keys() - {"relevance_score", "sae"} == {"page"}
    assert found["b"].page_content == "zip archives"
    assert metadatas == [{"page": 1, "title": None, "authors": []}, None]
    with pytest.raises(TypeError, match="texts is one text"):
        SAESteeredRetriever.from_texts("threads", sae=pair, embedding=embedder)
    with pytest.raises(ValueError, match="2 texts and 1 metadatas"):
        SAESteeredRetriever.from_texts(["a", "b"], metadatas=[{}], sae=pair, embedding=embedder)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document("text", metadata={"source": {"file": "a"}}), "metadata 'source' of passage .* is a dict"),
        (Document("  ", id="blank"), "passage 'blank' is empty"),
    ],
)
def test_documents_chroma_cannot_store_are_named(
    document: Document, message: str, pair: Any, embedder: SentenceTransformerEmbedder
) -> None:
    counting = Counting(embedder)
    with pytest.raises(ValueError, match=message):
        SAESteeredRetriever.from_documents([document], sae=pair, embedding=counting)
    assert counting.documents_embedded == 0


def test_an_unknown_default_steering_is_refused_before_anything_is_embedded(
    documents: list[Document], pair: Any, embedder: SentenceTransformerEmbedder
) -> None:
    counting = Counting(embedder)
    with pytest.raises(UnknownFeatureError, match="threadd"):
        SAESteeredRetriever.from_documents(documents, sae=pair, embedding=counting, steer={"threadd": 1})
    assert counting.documents_embedded == 0


def test_stored_keys_of_the_same_name_come_back_without_scores(
    pair: Any, embedder: SentenceTransformerEmbedder
) -> None:
    stored = {"relevance_score": 7.0, "sae": "mine", "score": 3}
    retriever = SAESteeredRetriever.from_texts(["threads"], metadatas=[stored], sae=pair, embedding=embedder)
    (found,) = retriever.invoke("threads")
    assert found.metadata["relevance_score"] < 2
    assert found.metadata["sae"]["unsteered_rank"] == 1
    assert found.metadata["score"] == 3
    assert retriever.with_steer(None, attach_scores=False).invoke("threads")[0].metadata == stored


def test_stores_without_a_folder_are_separate_and_leave_nothing(
    pair: Any,
    embedder: SentenceTransformerEmbedder,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SAE_STEER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first = SAESteeredRetriever.from_texts(["threads"], sae=pair, embedding=embedder)
    second = SAESteeredRetriever.from_texts(["zip archives"], sae=pair, embedding=embedder)
    beside = langchain_chroma.Chroma("docs", Remembered(world))  # Chroma's in-memory client, with its own settings
    assert [d.page_content for d in first.invoke("zip", steer=STEER)] == ["threads"]
    assert [d.page_content for d in second.invoke("zip", steer=STEER)] == ["zip archives"]
    assert beside.similarity_search("zip") == []
    del first, second
    gc.collect()
    assert [path for path in tmp_path.rglob("*") if path.name != "cache"] == []


# -- collections that exist -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["cosine", "l2", "ip"])
def test_from_chroma_is_langchain_chromas_own_search_until_it_is_steered(
    space: str, world: World, pair: Any, tmp_path: Path
) -> None:
    embeddings = Remembered(world)
    chroma = langchain_chroma.Chroma(
        "theirs", embeddings, persist_directory=str(tmp_path), collection_metadata={"hnsw:space": space}
    )
    chroma.add_texts(world.texts, world.metadatas, world.ids)
    before, metadata = chroma.get(include=["documents", "metadatas", "embeddings"]), chroma._collection.metadata
    embedded = embeddings.documents_embedded

    retriever = SAESteeredRetriever.from_chroma(chroma, sae=pair, k=8)

    for query in (QUERY, "what day is it?", "read a zip file"):
        theirs = chroma.similarity_search_with_score(query, k=8)
        ours = retriever.invoke(query, steer={"thread": 0.0})
        assert ids(ours) == [document.id for document, _ in theirs]
        distances = np.array([distance for _, distance in theirs])
        similarities = 1 - (distances / 2 if space == "l2" else distances)
        np.testing.assert_allclose([d.metadata["relevance_score"] for d in ours], similarities, atol=1e-6)
    steered = retriever.invoke(QUERY, steer=STEER)
    assert ids(steered) != ids(retriever.invoke(QUERY))
    assert applied(steered) == ["thread"]
    assert embeddings.documents_embedded == embedded
    after = chroma.get(include=["documents", "metadatas", "embeddings"])
    assert (after["ids"], after["documents"], after["metadatas"]) == (
        before["ids"],
        before["documents"],
        before["metadatas"],
    )
    np.testing.assert_array_equal(after["embeddings"], before["embeddings"])
    assert chroma._collection.metadata == metadata


def test_from_chroma_takes_a_collection_and_hides_llama_index_keys(
    world: World, pair: Any, embedder: SentenceTransformerEmbedder, tmp_path: Path
) -> None:
    collection = chromadb.PersistentClient(tmp_path).create_collection("nodes", embedding_function=None)
    node = {"_node_content": "{}", "_node_type": "TextNode", "doc_id": "d", "document_id": "d", "ref_doc_id": "d"}
    metadatas: list[Any] = [{**node, "file": "a.txt"}, {"doc_id": "a user's own"}]
    collection.add(["n1", "n2"], world.vectors[:2], metadatas, world.texts[:2])
    retriever = SAESteeredRetriever.from_chroma(collection, sae=pair, embedding=embedder, attach_scores=False)
    found = {document.id: document.metadata for document in retriever.invoke(world.texts[0])}
    assert found == {"n1": {"file": "a.txt"}, "n2": {"doc_id": "a user's own"}}


def test_from_chroma_without_attaching_writes_no_codes_and_still_steers(
    world: World, pair: Any, embedder: SentenceTransformerEmbedder, tmp_path: Path
) -> None:
    collection = chromadb.PersistentClient(tmp_path).create_collection("plain", embedding_function=None)
    collection.add(world.ids, world.vectors, documents=world.texts)
    retriever = SAESteeredRetriever.from_chroma(collection, sae=pair, embedding=embedder, attach=False)
    assert retriever.retriever.store.sidecar.count() == 0
    assert applied(retriever.invoke(QUERY, steer=STEER)) == ["thread"]


def test_from_chroma_refuses_what_does_not_belong(world: World, pair: Any, tmp_path: Path) -> None:
    class Other(Remembered):
        model_name = "another-encoder"

    with pytest.raises(MismatchError, match="another-encoder"):
        SAESteeredRetriever.from_chroma(
            langchain_chroma.Chroma("other", Other(world), persist_directory=str(tmp_path)), sae=pair
        )
    with pytest.raises(TypeError, match="expected a chromadb Collection"):
        SAESteeredRetriever.from_chroma(["no", "collection"], sae=pair)


def test_open_finds_the_store_and_its_sae(
    filled_folder: Path, tmp_path: Path, expected: dict[str, list[str]], embedder: SentenceTransformerEmbedder
) -> None:
    recorded = SAESteeredRetriever.open(filled_folder / "chroma", embedding=embedder, steer=STEER)
    given = SAESteeredRetriever.open(str(filled_folder / "chroma"), sae=filled_folder / "sae", embedding=embedder)
    assert ids(recorded.invoke(QUERY)) == expected["steered"]
    assert ids(given.invoke(QUERY)) == expected["plain"]
    with pytest.raises(StoreError, match="no folder"):
        SAESteeredRetriever.open(tmp_path / "absent", sae=filled_folder / "sae")
    assert not (tmp_path / "absent").exists()
    with pytest.raises(StoreError, match="nothing"):
        SAESteeredRetriever.open(
            filled_folder / "chroma", sae=filled_folder / "sae", collection_name="nothing", embedding=embedder
        )


def test_the_saes_own_encoder_is_the_default(filled_folder: Path, documents: list[Document]) -> None:
    retriever = SAESteeredRetriever.from_documents(documents, sae=filled_folder / "sae", k=1)
    assert retriever.invoke("waiting for a thread")[0].id == "thread"


def test_where_none_ships_the_error_says_how_to_train_one(
    documents: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_steer_retriever.sae.bundled.BUNDLED_FOLDER", tmp_path)
    with pytest.raises(ArtifactError, match=r"sae-steer train --corpus \./docs --model .* --output \./sae"):
        SAESteeredRetriever.from_documents(documents)
    with pytest.raises(TypeError, match="expected a folder, a hub id, or a"):
        SAESteeredRetriever.from_documents(documents, sae=3)  # type: ignore[arg-type]


def test_batches_from_many_threads_are_the_single_answers(plain: SAESteeredRetriever) -> None:
    queries = [f"{QUERY} {word}" for word in ("thread", "zip", "mean", "date", "socket", "json", "csv", "path")]
    batched = plain.with_steer(STEER).batch(queries, config={"max_concurrency": 8})
    assert [ids(found) for found in batched] == [ids(plain.invoke(query, steer=STEER)) for query in queries]
