"""How evenly +0.5 acts on different features: before calibration, on the query's side and on the documents'.

    python benchmarks/strengths.py --sae DIR --corpus corpus.jsonl [--features 200] [--strength 0.5] [--json]

For random live features and the benchmark's ambiguous questions:

* gain: what the feature's own passages (the 20 in which it is strongest) gain on average over a typical passage, in
  units of the calibration's score spread: 1.0 is the distance between a question's second and hundredth neighbour;
* places: how many of the ten first hits are other passages than before;
* drift: how much of their plain score the ten first hits lose.

"raw" adds the strength to the query's activation as arXiv 2411.00786 does, the same number whatever the feature.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from steering.corpus import QUESTIONS
from steering.dictionaries import encoded

from sae_steer_retriever.corpus.read_corpus import read_corpus
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.features.loading import load_sae
from sae_steer_retriever.labelling.gather_evidence import LABELLED_FROM
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.steering.document_boost import FeatureMatch
from sae_steer_retriever.steering.edit import Edit
from sae_steer_retriever.steering.operations import Side
from sae_steer_retriever.steering.plan import plan
from sae_steer_retriever.steering.policy import Steering

_OWN, _HITS = 20, 10


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sae", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--features", type=int, default=200)
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sae, catalog, embedder = load_sae(arguments.sae)
    cached = CachedEmbedder(embedder, progress=True)
    vectors = np.asarray(cached.embed_documents([passage.text for passage in read_corpus(arguments.corpus).passages]))
    questions = cached.embed_queries(list(QUESTIONS))
    codes, queries = encoded(sae, vectors), sae.encode(questions)
    calibration = catalog.calibration
    x_hat = sae.decode(codes)
    plain = questions @ vectors.T
    live = np.flatnonzero(calibration.count >= LABELLED_FROM)
    chosen = np.random.default_rng(arguments.seed).choice(live, min(arguments.features, len(live)), replace=False)

    def raw(feature: int) -> Array:
        return np.asarray(arguments.strength * (x_hat @ sae.decoder[feature]))

    def by(side: Side) -> Callable[[int], Array]:
        def added(feature: int) -> Array:
            edit = Edit(f"#{feature}", (feature,), (1.0,), "add", arguments.strength, side)
            found = plan(Steering((edit,), sae.fingerprint, 1e-6), questions[0], queries, sae, calibration)
            gains = x_hat @ found.shift(sae.config.d)
            for boost in found.boosts:
                feature_match = FeatureMatch(sae, calibration.match_unit, boost.features, boost.weights)
                gains = gains + boost.amount * feature_match.of(codes)
            return np.asarray(gains)

        return added

    ways = {"raw": raw, "query": by("query"), "document": by("document"), "both": by("both")}
    rows = {name: np.array([effects(way(feature), x_hat @ sae.decoder[feature], plain, calibration.score_spread)
                            for feature in chosen.tolist()]) for name, way in ways.items()}  # fmt: skip
    report = {name: summary(found) for name, found in rows.items()}
    if arguments.json:
        ratios = {
            f"gain of +{arguments.strength:g}, {name}, p90 over p10": row["gain"]["ratio"]
            for name, row in report.items()
        }
        print(json.dumps({"features": len(chosen), "effects": report, "ratios": ratios}))
        return
    print(f"{len(chosen)} features, strength {arguments.strength:+g}\n")
    print("| units | gain p10 | p50 | p90 | p90 / p10 | places p10 | p50 | p90 | drift p50 | p90 |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, row in report.items():
        gain, places, drift = row["gain"], row["places"], row["drift"]
        cells = [f"{gain[at]:.2f}" for at in ("p10", "p50", "p90", "ratio")]
        cells += [f"{places[at]:.1f}" for at in ("p10", "p50", "p90")] + [f"{drift[at]:.1%}" for at in ("p50", "p90")]
        print(f"| {name} | {' | '.join(cells)} |")


def effects(gains: Array, matches: Array, plain: Array, spread: float) -> tuple[float, float, float]:
    """Gain of its own passages, places changed and drift, of one feature."""
    own = np.argsort(-matches, kind="stable")[:_OWN]
    places, drift = [], []
    for base in plain:
        before, after = (set(np.argpartition(-scores, _HITS)[:_HITS].tolist()) for scores in (base, base + gains))
        places.append(len(after - before))
        drift.append(1 - base[list(after)].mean() / base[list(before)].mean())
    return float(gains[own].mean() - np.median(gains)) / spread, float(np.mean(places)), float(np.mean(drift))


def summary(found: NDArray[np.float64]) -> dict[str, Any]:
    """Deciles of each effect."""
    summed: dict[str, Any] = {}
    for place, name in enumerate(("gain", "places", "drift")):
        low, middle, high = np.quantile(found[:, place], (0.1, 0.5, 0.9)).tolist()
        summed[name] = {"p10": low, "p50": middle, "p90": high, "ratio": high / low if low > 0 else float("inf")}
    return summed


if __name__ == "__main__":
    main()
