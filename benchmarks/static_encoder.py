"""A second encoder without a download: the packaged MiniLM distilled into static embeddings, one vector a token.

    python benchmarks/static_encoder.py OUTPUT [--dimension 256] [--json]

Runs every token of MiniLM's vocabulary through the model once and keeps the principal components of what comes out
(model2vec), which takes no text. OUTPUT is a sentence-transformers folder: `--model OUTPUT` and `as_embedder(OUTPUT)`
load it. Needs `pip install "model2vec[distill]"`. Prints its size, the time, and how its cosines agree with MiniLM's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from model2vec.distill import distill_from_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

from sae_steer_retriever.encoders.embedders import SentenceTransformerEmbedder, as_embedder

# Pairs on one subject and on two, for a look at whether cosines mean anything.
SENTENCES = (
    "The cat sleeps on the sofa.",
    "A kitten naps on the couch.",
    "Interest rates were raised by the central bank.",
    "The bank made borrowing more expensive.",
    "Proteins fold into three-dimensional shapes.",
    "The shape of an enzyme decides what it binds.",
)


def distil(output: Path, dimension: int) -> None:
    """Distil the packaged MiniLM and save it as a sentence-transformers folder."""
    teacher = SentenceTransformerEmbedder().model
    transformer = teacher[0]
    student = distill_from_model(transformer.auto_model, teacher.tokenizer, pca_dims=dimension)
    static = StaticEmbedding(student.tokenizer, embedding_weights=np.asarray(student.embedding, dtype=np.float32))
    SentenceTransformer(modules=[static, Normalize()], device="cpu").save_pretrained(str(output))


def agreement(output: Path) -> float:
    """Correlation of all pairwise cosines with MiniLM's."""
    cosines = []
    for embedder in (SentenceTransformerEmbedder(), as_embedder(output)):
        vectors = embedder.embed_documents(SENTENCES)
        cosines.append((vectors @ vectors.T)[np.triu_indices(len(SENTENCES), 1)])
    return float(np.corrcoef(cosines)[0, 1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    start = time.perf_counter()
    distil(arguments.output, arguments.dimension)
    seconds = time.perf_counter() - start
    spec = as_embedder(arguments.output).spec
    size = sum(file.stat().st_size for file in arguments.output.rglob("*") if file.is_file()) / 1e6
    ratios = {
        "dimension": spec.dimension,
        "size, MB": round(size, 1),
        "distilled in, s": round(seconds, 1),
        "correlation of cosines with MiniLM": round(agreement(arguments.output), 3),
    }
    if arguments.json:
        print(json.dumps({"ratios": ratios}))
    else:
        print(
            "\n".join([*(f"{name:<36}{value}" for name, value in ratios.items()), f"{'recorded name':<36}{spec.name}"])
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
