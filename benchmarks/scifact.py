"""SciFact: what an SAE keeps of the retrieval, and the two guarantees, on real queries over a real Chroma store.

    python benchmarks/scifact.py --data FOLDER_WITH_BEIR_SCIFACT --work FOLDER [--seeds 0 1 2] [--json]

Trains on the documents and the train queries only (embeddings are cached), then prints nDCG@10 of the 300 test queries
for reconstructions on both sides, for original queries against reconstructed documents and for latents, each with its
retention; label AUROC beside a frozen random dictionary's; and, over the same queries: whether an unsteered search
equals a plain Chroma query, and whether every hit's parts sum to its score, steered or not.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.embedders import SentenceTransformerEmbedder
from sae_steer_retriever.embedding_cache import CachedEmbedder
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae import Array, TopKSAE
from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.corpus import read_corpus
from sae_steer_retriever.train.pipeline import train


def read_test(folder: Path) -> tuple[list[str], dict[str, str], dict[str, set[str]]]:
    """Query ids in order, their texts, and the relevant documents of each."""
    texts = {}
    for line in (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts[row["_id"]] = row["text"]
    relevant: dict[str, set[str]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, score = line.split("\t")
        if int(score) > 0:
            relevant.setdefault(query, set()).add(document)
    return list(relevant), texts, relevant


def ndcg_at_10(scores: Array, ids: list[str], queries: list[str], relevant: dict[str, set[str]]) -> float:
    """Mean nDCG@10 with binary relevance."""
    discount = 1 / np.log2(np.arange(2, 12))
    top = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    values = []
    for row, query in zip(top, queries, strict=True):
        gain = np.array([ids[document] in relevant[query] for document in row])
        values.append((gain * discount).sum() / discount[: len(relevant[query])].sum())
    return float(np.mean(values))


def unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def dense_codes(sae: TopKSAE, x: Array) -> Array:
    codes = sae.encode(x)
    out = np.zeros((len(x), sae.config.n), dtype=np.float32)
    np.put_along_axis(out, codes.indices.astype(np.int64), codes.values, axis=1)
    return out


def retention(sae: TopKSAE, ids: list[str], x: Array, queries: list[str], q: Array, relevant: Any) -> dict[str, float]:
    x_hat, q_hat = unit(sae.reconstruct(x)), unit(sae.reconstruct(q))
    z_x, z_q = unit(dense_codes(sae, x)), dense_codes(sae, q)
    rows = {"original": q @ x.T, "reconstructed": q_hat @ x_hat.T, "original_x_reconstructed": q @ x_hat.T}
    rows["latent_cosine"] = z_q @ z_x.T
    found = {name: ndcg_at_10(scores, ids, queries, relevant) for name, scores in rows.items()}
    return {
        f"{name} {what}": value if what == "ndcg@10" else value / found["original"]
        for name, value in found.items()
        for what in ("ndcg@10", "retention")
    }


def guarantees(retriever: SteeredRetriever, texts: list[str], vectors: Array, k: int = 10) -> dict[str, float]:
    """Over all queries: unsteered against plain Chroma, and parts against scores, with and without steering."""
    documents = retriever.store.documents
    features = [feature.id for feature in retriever.catalog.labelled]
    generator = np.random.default_rng(0)
    same, score_gap, sum_gap, hits = True, 0.0, 0.0, 0
    for text, vector in zip(texts, vectors, strict=True):
        plain = documents.query(query_embeddings=[vector], n_results=k, include=["distances"])
        for steer in ({}, None):
            found = retriever.search(text, k=k, steer=steer, embedding=vector)
            same &= [hit.id for hit in found] == plain["ids"][0]
            gaps = [abs(hit.score - (1 - d)) for hit, d in zip(found, plain["distances"][0], strict=True)]
            score_gap = max(score_gap, *gaps)
        chosen: NDArray[Any] = generator.choice(features, 2, replace=False)
        steer = {int(chosen[0]): 0.5, int(chosen[1]): -0.5}
        for space in ("original", "reconstructed"):
            found += retriever.search(text, k=k, steer=steer, embedding=vector, space=space)
        for hit in found:
            assert hit.attribution is not None
            sum_gap, hits = max(sum_gap, abs(hit.attribution.total - hit.score)), hits + 1
    return {
        "zero-steer ids equal": float(same),
        "zero-steer score gap": score_gap,
        "sum of parts gap": sum_gap,
        "hits checked": hits,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--latents", type=int, default=2048)
    parser.add_argument("-k", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    embedder = SentenceTransformerEmbedder()
    cached = CachedEmbedder(embedder, progress=True)
    corpus = read_corpus(arguments.data)
    ids = [passage.id for passage in corpus.passages]
    x = cached.embed_documents([passage.text for passage in corpus.passages])
    queries, texts, relevant = read_test(arguments.data)
    q = cached.embed_queries([texts[query] for query in queries])
    ratios: dict[str, Any] = {}
    for seed in arguments.seeds:
        output = arguments.work / f"sae-{seed}"
        config = TrainConfig(latents=arguments.latents, k=arguments.k, seed=seed)
        report = train(arguments.data, output, config, embedder=embedder)
        sae = TopKSAE.from_pretrained(output)
        figures: dict[str, float] = retention(sae, ids, x, queries, q, relevant)
        figures |= {name: value for name, value in report.to_json().items() if isinstance(value, int | float)}
        if seed == arguments.seeds[0]:
            retriever = SteeredRetriever.open(output, path=arguments.work / "chroma", embedding=embedder)
            metadatas = [passage.metadata for passage in corpus.passages]
            retriever.store.add(ids, [passage.text for passage in corpus.passages], metadatas, embedder=cached)
            figures |= guarantees(retriever, [texts[query] for query in queries], q)
        ratios |= {f"seed {seed} {name}": value for name, value in figures.items()}
    if arguments.json:
        print(json.dumps({"ratios": ratios}))
    else:
        width = max(map(len, ratios))
        print("\n".join(f"{name:<{width}}  {value:.6g}" for name, value in ratios.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
