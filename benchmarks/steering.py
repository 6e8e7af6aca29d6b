"""Steering against its baselines on 20 Newsgroups and Reuters-21578, named as a person would name their topics.

    python benchmarks/steering.py --data FOLDER --sae DIR [--output DIR] [--only 20newsgroups|reuters21578]
        [--limit-passages N] [--keep FOLDER] [--no-extras] [--json]

Reads `20newsgroups.jsonl.gz` (`_id`, `title`, `text`, `label`) and `reuters21578.jsonl.gz` (`labels`) from FOLDER. The
SAE is the one of `name_resolution.py`, fitted to both. Embeddings are cached; with --keep the codes are kept too, so
that a run with the same SAE and passages takes less than two minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from name_resolution import CONCEPTS
from numpy.typing import NDArray

from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.evaluate.steering_benchmark import measure_steering
from sae_steer_retriever.evaluate.steering_corpus import QUESTIONS, read_labelled_corpus
from sae_steer_retriever.evaluate.steering_dictionaries import encoded
from sae_steer_retriever.evaluate.steering_setting import SteeringSetting
from sae_steer_retriever.retriever import load_sae
from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE

REUTERS_QUESTIONS = (
    "what is the outlook for prices?",
    "who bought it?",
    "how much did it rise?",
    "why did it fall?",
    "what did the government decide?",
    "what did the minister say?",
    "how large is the deficit?",
    "which countries are affected?",
    "what is expected next year?",
    "how much was produced?",
    "how much was exported?",
    "what did the company announce?",
    "what caused the losses?",
    "is there an agreement?",
    "who opposes the plan?",
    "what will happen to demand?",
    "how did the market react?",
    "what are the new rules?",
    "when does it take effect?",
    "how large are the stocks?",
)
CORPORA = {"20newsgroups": QUESTIONS, "reuters21578": REUTERS_QUESTIONS}


def kept_codes(folder: Path, sae: TopKSAE, setting: SteeringSetting) -> Codes[NDArray[Any]]:
    """Codes of the passages, from a file or into it."""
    digest = hashlib.sha256(setting.vectors.tobytes()).hexdigest()[:16]
    file = folder / f"codes-{sae.fingerprint}-{digest}.npz"
    if file.is_file():
        with np.load(file) as arrays:
            return Codes(arrays["indices"], arrays["values"])
    codes = encoded(sae, setting.vectors)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(file, indices=codes.indices, values=codes.values)
    return codes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sae", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", choices=tuple(CORPORA))
    parser.add_argument("--limit-passages", type=int)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--no-extras", action="store_true", help="neither removal nor combinations")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sae, catalog, embedder = load_sae(arguments.sae)
    cached = CachedEmbedder(embedder, progress=True)
    concepts = {label: words for words, label in CONCEPTS.items()}
    for name in [arguments.only] if arguments.only else CORPORA:
        corpus = read_labelled_corpus(arguments.data / f"{name}.jsonl.gz", limit=arguments.limit_passages)
        report = measure_steering(
            sae,
            catalog,
            cached,
            corpus,
            name,
            concepts=concepts,
            questions=CORPORA[name],
            codes=(lambda setting: kept_codes(arguments.keep, sae, setting)) if arguments.keep else None,
            extras=not arguments.no_extras,
            progress=True,
        )
        print(json.dumps(report.to_json()) if arguments.json else report.to_text() + "\n", flush=True)
        if arguments.output:
            print("written:", *report.write(arguments.output), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
