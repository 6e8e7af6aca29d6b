"""What steering and explaining cost a query: a plain Chroma query against the retriever's, side by side in one process.

    python benchmarks/query.py --sae FOLDER_OF_AN_SAE (--corpus FILE_OR_FOLDER | --vectors FILE.npy) [--store FOLDER]
                               [--passages 100000] [--queries 100] [--rounds 3] [--json]

Passages are the given real ones and, up to `--passages`, mixtures of two of them each, in an embedded Chroma; filling
it takes minutes, so `--store` keeps it, and a later run with the same SAE and passages reuses it. Every query comes
with its embedding, and names are embedded by a table: no figure has the sentence encoder in it. Each query, a mixture
of two passages that no other round asks for, goes through all ways of searching in a random order. A new concept every
time is the label of another feature; the repeated one is always the same. LangChain and LlamaIndex are measured where
they are installed. Beside the time that passes stands the time that the process' threads were computing, which other
processes disturb less. `--profile` also times Chroma's own calls and the parts of a steered and explained query.
Limit all of it to one core (`OMP_NUM_THREADS=1 taskset -c 0`).
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from latent_search import mixtures, unit

from sae_steer_retriever.explain.hits import ReadOn
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.config import EncoderSpec
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.chroma_store import ChromaStore

K, FETCH_K, STRENGTH = 10, 100, 0.5
# A concept that some passages have, as a person would name one; not the rarest, not the most frequent.
LEAST_SHARE, LARGEST_SHARE = 0.0005, 0.02
BARS = {
    "steered+explained over plain Chroma, p50": 1.2,
    "steered+explained over plain Chroma, nothing remembered, p50": 1.5,
    "steered+explained over plain Chroma of 10, p50": 3.0,
    "steered+explained on vectors over plain Chroma, p50": 0.9,
    "steered+explained on vectors over plain Chroma of 10, p50": 2.3,
    "unsteered over plain Chroma of 10, p50": 1.05,
}
Ask = Callable[[int], object]


class Table:
    """An encoder that has embedded everything before: passages and queries by number, names by their letters."""

    def __init__(self, spec: EncoderSpec, passages: Array, queries: Array) -> None:
        self.spec = spec
        self._passages = passages
        self._queries = queries

    def embed_documents(self, texts: Sequence[str]) -> Array:
        return self._passages[[int(text) for text in texts]]

    def embed_queries(self, texts: Sequence[str]) -> Array:
        return self._queries[[_number(text) % len(self._queries) for text in texts]]


def _number(text: str) -> int:
    return int(text.rpartition(" ")[2]) if text.startswith("question ") else sum(text.encode())


def read(arguments: argparse.Namespace) -> tuple[list[str], Array]:
    """Texts and embeddings of the real passages."""
    if arguments.vectors is not None:
        vectors = unit(np.load(arguments.vectors).astype(np.float32))
        random = np.random.default_rng(2)
        words = np.array([f"word{number}" for number in range(5000)])
        return [f"passage {row}: " + " ".join(random.choice(words, 100)) for row in range(len(vectors))], vectors
    from sae_steer_retriever.corpus.read_corpus import read_corpus
    from sae_steer_retriever.encoders.embedders import SentenceTransformerEmbedder
    from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder

    embedder = CachedEmbedder(SentenceTransformerEmbedder(), progress=True)
    texts = [passage.text for passage in read_corpus(arguments.corpus).passages]
    return texts, embedder.embed_documents(texts)


def filled(folder: Path, arguments: argparse.Namespace, texts: list[str], vectors: Array) -> ChromaStore:
    """The store of all passages; what is there already is left as it is."""
    sae = TopKSAE.from_pretrained(arguments.sae)
    store = ChromaStore.open(sae, path=folder)
    count = arguments.passages
    if len(store) == store.sidecar.count() == count:
        return store
    real = min(len(vectors), count)
    x = np.concatenate([vectors[:real], mixtures(vectors, count - real, np.random.default_rng(0))])
    names = [f"passage-{row}" for row in range(count)]
    store.add(
        names,
        [texts[row % len(texts)] for row in range(count)],
        [{"source": f"file-{row % 500}.txt", "page": row % 37, "real": row < real} for row in range(count)],
        embedder=Table(sae.config.encoder, x, x),
        embedded_as=[str(row) for row in range(count)],
        progress=True,
    )
    return store


def concepts_of(catalog: FeatureCatalog, store: ChromaStore) -> list[str]:
    """Labels that mean one feature each, of features that some passages have, in a random order."""
    counts = np.zeros(store.sae.config.n, dtype=np.int64)
    for _, codes, _ in store.sidecar.pages():
        names = codes.truncate(store.sae.config.k_labels)
        counts += np.bincount(names.indices[names.values > 0], minlength=len(counts))
    count = store.sidecar.count()
    frequent = set(np.nonzero((counts >= LEAST_SHARE * count) & (counts <= LARGEST_SHARE * count))[0].tolist())
    labels: dict[str, list[int]] = {}
    for feature in catalog.features:
        if feature.label:
            labels.setdefault(feature.label.casefold(), []).append(feature.id)
    alone = [label for label, alike in labels.items() if len(alike) == 1 and alike[0] in frequent]
    if len(alone) < 2:
        raise SystemExit("the SAE's catalog has no labels of features that .05 to 2 % of the passages have.")
    return [alone[place] for place in np.random.default_rng(3).permutation(len(alone))]


def ways(retriever: SteeredRetriever, queries: Array, concepts: list[str]) -> dict[str, Ask]:
    """Every way of searching, by its name: the number of a query to its answer."""
    documents = retriever.store.documents
    once, new = concepts[0], concepts[1:]

    def plain(k: int, number: int) -> object:
        return documents.query(
            query_embeddings=[queries[number]],
            n_results=k,
            include=["documents", "metadatas", "distances"],
        )

    def ours(
        number: int, *, steer: Mapping[str, float] | None, explain: bool, read_on: ReadOn = "reconstruction"
    ) -> object:
        return retriever.search(
            f"question {number}", k=K, steer=steer, explain=explain, embedding=queries[number], read_on=read_on
        )

    def forgotten(number: int) -> object:
        retriever.store._reconstructions._remembered.clear()
        return ours(number, steer=same, explain=True)

    def another(number: int) -> dict[str, float]:
        return {new[number % len(new)]: STRENGTH}

    same = {once: STRENGTH}
    found: dict[str, Ask] = {
        f"plain Chroma, {FETCH_K} candidates": functools.partial(plain, FETCH_K),
        f"plain Chroma, {K}": functools.partial(plain, K),
        "unsteered": functools.partial(ours, steer=None, explain=False),
        "unsteered, explained": functools.partial(ours, steer=None, explain=True),
        "steered": functools.partial(ours, steer=same, explain=False),
        "steered, explained": functools.partial(ours, steer=same, explain=True),
        "steered, explained, on vectors": functools.partial(ours, steer=same, explain=True, read_on="vector"),
        "steered, explained, on vectors, new concept": lambda number: ours(
            number, steer=another(number), explain=True, read_on="vector"
        ),
        "steered, explained, nothing remembered": forgotten,
        "steered, new concept": lambda number: ours(number, steer=another(number), explain=False),
        "steered, explained, new concept": lambda number: ours(number, steer=another(number), explain=True),
    }
    if importlib.util.find_spec("langchain_core") is not None:
        from sae_steer_retriever.integrations.langchain import SAESteeredRetriever as LangChain

        chain = LangChain(retriever=retriever, k=K, steer=same)
        found["steered, explained, LangChain"] = lambda number: chain.invoke(f"question {number}")
    if importlib.util.find_spec("llama_index") is not None:
        from llama_index.core.schema import QueryBundle

        from sae_steer_retriever.integrations.llama_index import SAESteeredRetriever as LlamaIndex

        nodes = LlamaIndex(retriever, K, steer=same)
        bundles = [QueryBundle(f"question {row}", embedding=query.tolist()) for row, query in enumerate(queries)]
        found["steered, explained, LlamaIndex"] = lambda number: nodes.retrieve(bundles[number])
    return found


class Times(NamedTuple):
    """Milliseconds of one way of searching: (queries,) that passed, and that the process was computing."""

    passed: Array
    computing: Array

    def summary(self) -> dict[str, float]:
        """What is reported of them."""
        p50, p95 = np.percentile(self.passed, [50, 95])
        return {"p50": float(p50), "p95": float(p95), "computing p50": float(np.median(self.computing))}


def measured(asked: Mapping[str, Ask], numbers: Iterator[int], rounds: int, queries: int) -> dict[str, Times]:
    """The times of every way; each asks every query once, in a random order of ways."""
    random = np.random.default_rng(4)
    names = list(asked)
    warm = next(numbers)
    for name in names:
        asked[name](warm)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for _ in range(queries):
            number = next(numbers)
            for place in random.permutation(len(names)):
                began, computed = time.perf_counter(), time.process_time()
                asked[names[place]](number)
                passed, computing = time.perf_counter() - began, time.process_time() - computed
                times[names[place]].append((1000 * passed, 1000 * computing))
    return {name: Times(*np.array(taken, dtype=np.float32).T) for name, taken in times.items()}


def ratios_of(times: Mapping[str, Times]) -> dict[str, float]:
    """Percentiles in relation to each other; the steered ones are of the repeated concept unless they say otherwise."""
    ratios = {}
    for percentile in (50, 95):
        taken = {name: float(np.percentile(times[name].passed, percentile)) for name in times}
        many, few = taken[f"plain Chroma, {FETCH_K} candidates"], taken[f"plain Chroma, {K}"]
        explained, new = taken["steered, explained"], taken["steered, explained, new concept"]
        found = {
            "steered+explained over plain Chroma": explained / many,
            f"steered+explained over plain Chroma of {K}": explained / few,
            "steered+explained over plain Chroma, new concept": new / many,
            f"steered+explained over plain Chroma of {K}, new concept": new / few,
            "steered+explained on vectors over plain Chroma": taken["steered, explained, on vectors"] / many,
            f"steered+explained on vectors over plain Chroma of {K}": taken["steered, explained, on vectors"] / few,
            "steered+explained on vectors over plain Chroma, new concept": (
                taken["steered, explained, on vectors, new concept"] / many
            ),
            "steered+explained over plain Chroma, nothing remembered": (
                taken["steered, explained, nothing remembered"] / many
            ),
            "steered over plain Chroma": taken["steered"] / many,
            f"unsteered over plain Chroma of {K}": taken["unsteered"] / few,
            f"unsteered+explained over plain Chroma of {K}": taken["unsteered, explained"] / few,
        }
        for name in ("LangChain", "LlamaIndex"):
            if f"steered, explained, {name}" in taken:
                adapter = taken[f"steered, explained, {name}"]
                found[f"{name}'s steered+explained over plain Chroma"] = adapter / many
                found[f"{name}'s steered+explained over ours alone"] = adapter / explained
        ratios |= {f"{name}, p{percentile}": ratio for name, ratio in found.items()}
    return ratios


def parts(retriever: SteeredRetriever, queries: Array, concept: str) -> dict[str, Ask]:
    """Chroma's own calls and the parts of a steered and explained query, each alone."""
    store, sae, documents = retriever.store, retriever.sae, retriever.store.documents
    ids = store.existing()
    found: dict[int, list[str]] = {}

    def nearest(number: int) -> list[str]:
        if number not in found:
            found[number] = store.nearest(queries[number], FETCH_K).ids
        return found[number]

    def others(number: int, count: int) -> list[str]:
        return [ids[row] for row in np.random.default_rng(number).choice(len(ids), count, replace=False)]

    def chroma(number: int, k: int, include: list[str], among: list[str] | None = None) -> object:
        query = queries[number]
        return documents.query(query_embeddings=[query], n_results=k, include=include, ids=among)  # type: ignore[arg-type]

    def fetch(number: int, include: list[str]) -> object:
        return documents.get(ids=nearest(number)[:K], include=include)  # type: ignore[arg-type]

    return {
        f"Chroma query({FETCH_K}), distances only": lambda number: chroma(number, FETCH_K, ["distances"]),
        f"Chroma query({K}), distances only": lambda number: chroma(number, K, ["distances"]),
        f"Chroma query({K}), documents too": lambda number: chroma(number, K, ["documents", "metadatas", "distances"]),
        f"Chroma query among {FETCH_K} ids": lambda number: chroma(
            number, FETCH_K, ["distances"], others(number, FETCH_K)
        ),
        f"Chroma get({K}), documents, metadatas": lambda number: fetch(number, ["documents", "metadatas"]),
        f"Chroma get({K}), embeddings": lambda number: fetch(number, ["embeddings"]),
        f"Chroma get({K}), all": lambda number: fetch(number, ["documents", "metadatas", "embeddings"]),
        f"Chroma get({FETCH_K}), embeddings": lambda number: documents.get(ids=nearest(number), include=["embeddings"]),
        f"Chroma get({FETCH_K}), ids only": lambda number: documents.get(ids=nearest(number), include=[]),
        "encode": lambda number: sae.encode(queries[number][None]),
        "resolve": lambda number: retriever.resolve({concept: STRENGTH}),
    }


def profiled(retriever: SteeredRetriever, queries: Array, numbers: Iterator[int], count: int, concept: str) -> str:
    """Where the time of steered and explained queries goes: cProfile's cumulative times, in ms a query."""
    import cProfile
    import pstats

    profile = cProfile.Profile()
    for _ in range(count):
        number = next(numbers)
        profile.enable()
        retriever.search("q", k=K, steer={concept: STRENGTH}, embedding=queries[number])
        profile.disable()
    rows = []
    for (file, _, function), (_, calls, _, cumulative, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        rows.append((1000 * cumulative / count, calls / count, f"{Path(file).name}:{function}"))
    rows.sort(reverse=True)
    return "\n".join(f"{taken:9.3f} ms {calls:8.1f} calls  {name}" for taken, calls, name in rows[:45])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--corpus", type=Path)
    source.add_argument("--vectors", type=Path)
    parser.add_argument("--sae", type=Path, required=True)
    parser.add_argument("--store", type=Path, help="where to keep the filled Chroma; a temporary folder if not given")
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=100, help="queries a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    texts, vectors = read(arguments)
    count = arguments.rounds * arguments.queries * (2 if arguments.profile else 1) + 100
    queries = mixtures(vectors, count, np.random.default_rng(1))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        store = filled(arguments.store or Path(temporary), arguments, texts, vectors)
        catalog = FeatureCatalog.load(arguments.sae, store.sae.fingerprint)
        retriever = SteeredRetriever(store, Table(store.sae.config.encoder, vectors, queries), catalog)
        concepts = concepts_of(catalog, store)
        numbers, passages = iter(range(count)), len(store)
        times = measured(ways(retriever, queries, concepts), numbers, arguments.rounds, arguments.queries)
        if arguments.profile:
            times |= measured(parts(retriever, queries, concepts[0]), numbers, 1, arguments.queries)
            print(profiled(retriever, queries, numbers, 50, concepts[0]), file=sys.stderr)
    ratios = ratios_of(times)
    summaries = {name: taken.summary() for name, taken in times.items()}
    if arguments.json:
        print(json.dumps({"ratios": ratios, "ms": summaries, "passages": passages, "bars": BARS}))
        return 0
    width = max(map(len, [*times, *ratios]))
    print(f"{'ms a query':<{width}}" + "".join(f"{name:>15}" for name in next(iter(summaries.values()))))
    for name, summary in summaries.items():
        print(f"{name:<{width}}" + "".join(f"{value:15.2f}" for value in summary.values()))
    print()
    for name, value in ratios.items():
        bar = f"  (bar {BARS[name]:g})" if name in BARS else ""
        print(f"{name:<{width}}  {value:8.2f}{bar}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
