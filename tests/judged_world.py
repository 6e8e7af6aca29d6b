"""Judged sets of a few topics, and fits of them that take a blink: for the tests of tables, figures and pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from small_world import World
from toy import ToyEmbedder

from benchmarks.paper.fits import FitSeries
from benchmarks.paper.seed_average import JudgedSet
from sae_steer_retriever.corpus.passage import Corpus, Passage
from sae_steer_retriever.evaluate.bootstrap import Estimate
from sae_steer_retriever.evaluate.fidelity import ROWS, Fidelity
from sae_steer_retriever.evaluate.metrics import Quality
from sae_steer_retriever.evaluate.retrieval_set import RetrievalSet, embed_set
from sae_steer_retriever.train.config import TrainConfig

CONFIG = TrainConfig(latents=32, k=4, k_labels=2, steps=4, batch_size=32, list_queries=4, list_size=4, sentences=0)


def judged_set(name: str, seed: int = 0, documents: int = 48, queries: int = 8) -> JudgedSet:
    """Documents of seven words of one of six topics; a query is three words of the document that answers it."""
    random = np.random.default_rng(seed)
    passages = [
        Passage(f"{name}-{row}", " ".join(f"{name}{row % 6}word{word}" for word in random.choice(20, 7, replace=False)))
        for row in range(documents)
    ]
    asked = [passages[row] for row in random.choice(documents, queries, replace=False)]
    retrieval_set = RetrievalSet(
        name=name,
        passages=passages,
        query_ids=[f"q-{passage.id}" for passage in asked],
        queries=[" ".join(passage.text.split()[:3]) for passage in asked],
        judgments={f"q-{passage.id}": {passage.id: 1} for passage in asked},
    )
    return retrieval_set, embed_set(retrieval_set, ToyEmbedder())


def fit_series(judged: JudgedSet, folder: Path) -> FitSeries:
    """Fits of a set's documents, four steps each."""
    retrieval_set, _ = judged
    return FitSeries(Corpus(retrieval_set.passages, retrieval_set.queries), folder, ToyEmbedder(), CONFIG)


def fidelity_of(
    kept: float, latent_kept: float = 0.9, *, width: float = 0.02, dataset: str = "toy", dead: float = 0.0
) -> Fidelity:
    """A fidelity with these retentions of nDCG@10, every interval as wide."""
    shares = dict.fromkeys(ROWS, kept) | {"original": 1.0, "latent_damped": latent_kept}
    metrics = ("mrr@10", "p@10", "r@10", "ndcg@10")
    qualities = []
    for name, share in shares.items():
        interval = (share - width / 2, share + width / 2)
        values, intervals = dict.fromkeys(metrics, 0.6 * share), dict.fromkeys(metrics, interval)
        per_query = dict.fromkeys(metrics, np.full(10, 0.6 * share))
        qualities.append(Quality(name, values, intervals, dict.fromkeys(metrics, share), intervals, per_query))
    return Fidelity(
        dataset=dataset, encoder="toy/words", d=16, n=32, k=4, documents=48, queries=10, mse=1e-3, fvu=0.2,
        fvu_documents=0.2, fvu_queries=0.2, l0=4.0, dead=dead, rare=0.0, rows=tuple(qualities),
    )  # fmt: skip


def meaning_of(
    sae: float | None,
    random: float = 0.7,
    kmeans: float = 0.75,
    *,
    labelled: float = 0.7,
    scored: float = 0.6,
    recurrence: float = 0.5,
) -> dict[str, Any]:
    """The JSON object of a `Meaning` with these medians of the hard label AUROC."""
    return {
        "passages": 48, "latents": 32, "k": 4, "k_names": 2, "seed": 0,
        "dictionaries": {
            name: {
                "labelled": 16, "share_labelled": labelled, "scored": 12, "share_scored": scored,
                "auroc_random": _median(own), "auroc_hard": _median(own), "coherence": _median(0.3),
                "frequencies": {"k_names": {"dead": 0.0, "rare": 0.1, "maximum": 0.3}},
            }
            for name, own in {"sae": sae, "random": random, "kmeans": kmeans}.items()
        },
        "random_passages": _median(0.0),
        "recurrence": {
            "steps": 600, "passages": [24, 24], "threshold": 0.7,
            "dictionaries": {
                name: {"recurrence": recurrence, "held_out_coherence": _median(0.2)}
                for name in ("sae", "random", "kmeans")
            },
        },
    }  # fmt: skip


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_judged_folder(world: World, folder: Path) -> Path:
    """The world's docstrings in BEIR layout; the second sentence of some asks for its docstring."""
    (folder / "qrels").mkdir()
    rows = [{"_id": name, "text": text} for name, text in zip(world.ids, world.texts, strict=True)]
    queries, qrels = [], ["query-id\tcorpus-id\tscore"]
    for name, text in zip(world.ids, world.texts, strict=True):
        sentences = " ".join(text.split()).split(". ")
        if len(sentences) > 1 and len(sentences[1]) > 30 and len(queries) < 40:
            queries.append({"_id": f"q{len(queries)}", "text": sentences[1]})
            qrels.append(f"{queries[-1]['_id']}\t{name}\t1")
    assert len(queries) == 40
    write_rows(folder / "corpus.jsonl", rows)
    write_rows(folder / "queries.jsonl", queries)
    (folder / "qrels" / "test.tsv").write_text("\n".join(qrels) + "\n", encoding="utf-8")
    return folder


def _median(value: float | None) -> dict[str, float | int | None]:
    return {"value": value, "low": value, "high": value, "features": 12}


def same(value: float) -> Estimate:
    """An estimate that is certain."""
    return Estimate(value, value, value)
