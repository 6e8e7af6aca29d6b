"""The search for the default recipe: what each change costs in fidelity and what it brings in meaning.

    python benchmarks/recipe.py --corpus FOLDER --work FOLDER [--out-of-domain FOLDER] [--seeds 0 1 2] \\
        [--change '{"latents": 1024}' ...] [--recurrence-steps 600] [--pursuit 0 8]
    python benchmarks/recipe.py --plot frontier.png --results RESULTS.jsonl

Fits `TrainConfig` with each change (kept in the work folder: a second run only measures), and prints one JSON object a
line for each reading: overlap@10 of sentences that were not fitted and, where the corpus is a judged set, retention of
nDCG@10; labels on unseen passages, read at `k_labels`; coherence; the most frequent name; recurrence. The refinement
is a way to read a dictionary, so one fit is read with each of the given numbers of steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper.fits import FitSeries

from sae_steer_retriever.corpus.passage import Corpus
from sae_steer_retriever.corpus.read_corpus import read_corpus
from sae_steer_retriever.encoders.embedders import Embedder, SentenceTransformerEmbedder
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.errors import SAESteerError
from sae_steer_retriever.evaluate.agreement import held_out_queries, measure_agreement
from sae_steer_retriever.evaluate.datasets import read_retrieval_set
from sae_steer_retriever.evaluate.fidelity import measure_fidelity
from sae_steer_retriever.evaluate.meaning import measure_dictionary
from sae_steer_retriever.evaluate.recurrence import measure_recurrence
from sae_steer_retriever.evaluate.retrieval_set import embed_set
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.config import TrainConfig

ROWS = {
    "reconstructed": "reconstructed",
    "original_x_reconstructed": "mixed",
    "latent": "dot",
    "latent_cosine": "cos",
    "latent_damped": "damped",
}


def fidelity_of(sae: TopKSAE, folder: Path, embedder: Embedder) -> dict[str, float]:
    """Retention of nDCG@10 in each way to search, and FVU of documents and queries."""
    judged = read_retrieval_set(folder)
    found = measure_fidelity(sae, judged, embed_set(judged, embedder))
    kept = {ROWS[row.name]: row.retention["ndcg@10"] for row in found.rows if row.name in ROWS}
    return {**kept, "fvu_documents": found.fvu_documents, "fvu_queries": found.fvu_queries}


def overlap_of(sae: TopKSAE, corpus: Corpus, vectors: Array, embedder: Embedder) -> dict[str, float]:
    """overlap@10 of sentences that the fit has not drawn; {} where it drew them all."""
    try:
        texts = [query.text for query in held_out_queries(corpus.passages, sae.config.training)]
    except SAESteerError:
        return {}
    found = measure_agreement(sae, vectors, embedder.embed_queries(texts), latent=True)
    return {ROWS[name]: row.overlap.value for name, row in found.rows.items()}


def measure(
    sae: TopKSAE, corpus: Corpus, folders: Sequence[Path], embedder: Embedder, recurrence_steps: int
) -> dict[str, Any]:
    """Fidelity and meaning of one reading of a dictionary."""
    vectors = embedder.embed_documents([passage.text for passage in corpus.passages])
    found = measure_dictionary(sae, corpus.passages, vectors, embedder)
    record: dict[str, Any] = {
        "overlap": overlap_of(sae, corpus, vectors, embedder),
        "retention": {folder.name: fidelity_of(sae, folder, embedder) for folder in folders},
        "labelled": found.share_labelled,
        "scored": found.share_scored,
        "auroc_random": found.auroc_random.value,
        "auroc_hard": found.auroc_hard.value,
        "coherence": found.coherence.value,
        "most_frequent_name": found.frequencies["k_labels"].maximum,
        "dead": found.frequencies["k"].dead,
    }
    if recurrence_steps:
        halves = measure_recurrence(sae, corpus.passages, vectors, embedder, steps=recurrence_steps).dictionaries
        record["recurrence"] = {name: half.recurrence for name, half in halves.items()}
        record["held_out_coherence"] = {name: half.held_out_coherence.value for name, half in halves.items()}
    return record


def plot(results: Path, picture: Path) -> None:
    """Each reading by its retention (overlap where there are no judgments) and its features' meaning."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharex=True)
    for axis, column, label in zip(
        axes, ("auroc_hard", "coherence"), ("label AUROC against near misses", "coherence of a feature's passages"),
        strict=True,
    ):  # fmt: skip
        for number, name in enumerate(dict.fromkeys(record["name"] for record in records)):
            own = [record for record in records if record["name"] == name]
            for steps, marker in ((0, "o"), (8, "s")):
                read = [record for record in own if bool(record["pursuit"]) == bool(steps)]
                x = [next(iter(record["retention"].values()))["reconstructed"] for record in read]
                y = [record[column] for record in read]
                shown = f"C{number % 10}"
                axis.scatter(x, y, color=shown, marker=marker, s=36, label=name if axis is axes[0] and steps else None)
        axis.set(xlabel="retention of nDCG@10, reconstructed", ylabel=label)
        axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, title="square: with refinement\ncircle: without")
    figure.savefig(picture, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--judged", action="store_true", help="the corpus is a judged set: measure retention on it")
    parser.add_argument("--out-of-domain", type=Path, nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--change", type=json.loads, nargs="+", default=[{}], help="settings, as JSON")
    parser.add_argument("--pursuit", type=int, nargs="+", default=[TrainConfig().refine_steps])
    parser.add_argument("--recurrence-steps", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    if arguments.plot:
        plot(arguments.results, arguments.plot)
        return 0
    embedder = CachedEmbedder(SentenceTransformerEmbedder())
    corpus = read_corpus(arguments.corpus)
    fits = FitSeries(corpus, arguments.work, embedder, TrainConfig())
    folders = [*([arguments.corpus] if arguments.judged else []), *arguments.out_of_domain]
    for seed in arguments.seeds:
        for change in arguments.change:
            fitted = fits.sae(**change, seed=seed)
            for steps in arguments.refine:
                config = dataclasses.replace(fitted.config, refine_steps=steps)
                sae = TopKSAE(fitted.W_enc, fitted.b_enc, fitted.W_dec, fitted.b_dec, config)
                # Both readings are of one dictionary, and so is the recurrence.
                again = arguments.recurrence_steps if steps == arguments.refine[-1] else 0
                record = measure(sae, corpus, folders, embedder, again)
                name = ", ".join(f"{key} {value}" for key, value in change.items()) or "the default"
                sys.stdout.write(json.dumps({"name": name, "seed": seed, "pursuit": steps, **record}) + "\n")
                sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
