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

from sae_steer_retriever.encoders.embedders import SentenceTransformerEmbedder
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.evaluate.datasets import read_retrieval_set
from sae_steer_retriever.evaluate.fidelity import Fidelity, measure_fidelity
from sae_steer_retriever.evaluate.retrieval_set import embed_set
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.pipeline import fit


def figures_of(fidelity: Fidelity) -> dict[str, float]:
    """nDCG@10 of each way to search, with its retention, and how much of the vectors is lost."""
    found = {"fvu documents": fidelity.fvu_documents, "fvu queries": fidelity.fvu_queries}
    for row in fidelity.rows:
        found |= {f"{row.name} ndcg@10": row.values["ndcg@10"], f"{row.name} retention": row.retention["ndcg@10"]}
    return found


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
    judged = read_retrieval_set(arguments.data)
    vectors = embed_set(judged, cached)
    ratios: dict[str, Any] = {}
    for seed in arguments.seeds:
        output = arguments.work / f"sae-{seed}"
        config = TrainConfig(latents=arguments.latents, k=arguments.k, seed=seed)
        report = fit(arguments.data, output, config, embedder=embedder)
        sae = TopKSAE.from_pretrained(output)
        figures = figures_of(measure_fidelity(sae, judged, vectors))
        figures |= {name: value for name, value in report.to_json().items() if isinstance(value, int | float)}
        if seed == arguments.seeds[0]:
            retriever = SteeredRetriever.open(output, path=arguments.work / "chroma", embedding=embedder)
            metadatas = [passage.metadata for passage in judged.passages]
            retriever.store.add(judged.document_ids, judged.texts, metadatas, embedder=cached)
            figures |= guarantees(retriever, judged.queries, vectors.queries)
        ratios |= {f"seed {seed} {name}": value for name, value in figures.items()}
    if arguments.json:
        print(json.dumps({"ratios": ratios}))
    else:
        width = max(map(len, ratios))
        print("\n".join(f"{name:<{width}}  {value:.6g}" for name, value in ratios.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
