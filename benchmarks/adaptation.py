"""What adapting a general SAE to a small corpus is worth: beside that SAE as it is, and one fitted from scratch.

    python benchmarks/adaptation.py --sae all-MiniLM-L6-v2 --dataset FOLDER [--passages 1000] [--seeds 0 1 2] \\
        [--set '{"latents": 512}'] [--only-adapted]

Draws that many passages of a judged set at random, without its train queries, adapts the SAE to them, fits another
from scratch with the defaults, and measures these, and the SAE as it is, over all passages with the test queries:
retention of nDCG@10. Prints one JSON object a line for each reading, and a table at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sae_steer_retriever.corpus.passage import Corpus
from sae_steer_retriever.encoders.embedders import Embedder, SentenceTransformerEmbedder
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.evaluate.datasets import read_retrieval_set
from sae_steer_retriever.evaluate.fidelity import measure_fidelity
from sae_steer_retriever.evaluate.retrieval_set import EmbeddedSet, RetrievalSet, embed_set
from sae_steer_retriever.sae.files import resolve_folder
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.adaptation import adapted_config, adapted_start
from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.embedded_corpus import embed_corpus
from sae_steer_retriever.train.pipeline import fitted_sae, prepare, prepare_adaptation
from sae_steer_retriever.train.sizing import adapted_sizes

COLUMNS = {
    "reconstructed": "reconstructed",
    "original_x_reconstructed": "mixed",
    "latent": "latent",
    "latent_cosine": "latent cosine",
    "latent_damped": "latent power-normalised",
}


def sampled(judged: RetrievalSet, count: int, seed: int) -> Corpus:
    """Some passages of a set at random, in their order; none of its queries."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(judged.passages))[:count])
    return Corpus([judged.passages[row] for row in rows])


def adapted(
    parent: TopKSAE, corpus: Corpus, embedder: Embedder, settings: dict[str, Any]
) -> Iterator[tuple[str, TopKSAE]]:
    """The SAE before its fit, when it is centred and looks at the corpus alone, and after."""
    config = adapted_config(parent.config, settings)
    embedded = embed_corpus(corpus, config, embedder)
    sizes = adapted_sizes(config, len(corpus.passages), len(embedded.data.everything.rows), parent.config)
    start = adapted_start(parent, embedded.data.fitted, sizes.latents, config)
    yield "adapted, no steps", start.whole(start.live)
    output = Path("adapted")  # nothing is written there: the checkpoint is not used
    trainer, _ = prepare_adaptation(start, embedded, config, sizes.epochs, output, resume=False)
    yield "adapted", start.whole(trainer.fit().sae)


def from_scratch(corpus: Corpus, embedder: Embedder, seed: int) -> TopKSAE:
    """Today's default fit."""
    config = TrainConfig(seed=seed)
    embedded = embed_corpus(corpus, config, embedder)
    trainer, _ = prepare(corpus, embedded, config, embedder.spec, Path("scratch"), resume=False)
    return fitted_sae(trainer.fit())


def measured(sae: TopKSAE, judged: RetrievalSet, vectors: EmbeddedSet) -> dict[str, float]:
    """Retention of nDCG@10 in each way to search, and FVU of documents and queries."""
    found = measure_fidelity(sae, judged, vectors)
    kept = {COLUMNS[row.name]: row.retention["ndcg@10"] for row in found.rows if row.name in COLUMNS}
    return {**kept, "fvu documents": found.fvu_documents, "fvu queries": found.fvu_queries}


def table(records: list[dict[str, Any]]) -> str:
    """Means over the seeds, and the range."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in dict.fromkeys(record["name"] for record in records):
        own = [record for record in records if record["name"] == name]
        cells = []
        for column in COLUMNS.values():
            values = [record[column] for record in own]
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{sum(values) / len(values):.3f}{spread}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sae", required=True, help="folder of the general SAE, or the name of one that ships")
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", type=json.loads, default={}, help="settings of the adaptation, as JSON")
    parser.add_argument("--only-adapted", action="store_true", help="neither the SAE as it is nor a fit from scratch")
    arguments = parser.parse_args()
    embedder = CachedEmbedder(SentenceTransformerEmbedder())
    judged = read_retrieval_set(arguments.dataset)
    vectors = embed_set(judged, embedder)
    parent = TopKSAE.from_pretrained(resolve_folder(arguments.sae))
    records: list[dict[str, Any]] = []

    def record(name: str, seed: int | None, sae: TopKSAE, seconds: float) -> None:
        sizes = {"latents": sae.config.n, "k": sae.config.k, "seconds": round(seconds, 1)}
        records.append({"name": name, "seed": seed, **sizes, **measured(sae, judged, vectors)})
        sys.stdout.write(json.dumps(records[-1]) + "\n")
        sys.stdout.flush()

    if not arguments.only_adapted:
        record("as it is", None, parent, 0.0)
    for seed in arguments.seeds:
        corpus = sampled(judged, arguments.passages, seed)
        started = time.monotonic()
        for name, sae in adapted(parent, corpus, embedder, {**arguments.set, "seed": seed}):
            seconds = time.monotonic() - started
            record(name, seed, sae, seconds)
            started = time.monotonic() - seconds
        if not arguments.only_adapted:
            started = time.monotonic()
            scratch = from_scratch(corpus, embedder, seed)
            record("from scratch", seed, scratch, time.monotonic() - started)
    sys.stdout.write(table(records) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
