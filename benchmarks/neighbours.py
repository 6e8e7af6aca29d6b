"""Recall of steered searches: the hits against a float64 brute force of the same definition over the whole store.

    python benchmarks/neighbours.py --sae FOLDER --store FOLDER [--collection docs] [--vectors QUERIES.npy]
                                    [--queries 40] [--seed 1] [--only WORDS] [--json] [--figure FILE.png]

The store is one that `benchmarks/query.py` filled, or any other of the SAE's encoder. Queries are mixtures of two of
the given vectors, or of two passages. Every query is steered by features that some passages have. Reported are
recall@10, the share of searches that were proved, the share that was proved and misses a hit (the store's own
neighbours are not exact), and the milliseconds. The rows of steering "0" are the store's own recall.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from latent_search import mixtures, unit
from query import Table

from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.steering.operations import AddRaw, Clamp, Scale, Suppress
from sae_steer_retriever.steering.plan import plan
from sae_steer_retriever.store.chroma_store import ChromaStore
from sae_steer_retriever.store.store_reader import StoreReader

K = 10
LOW, HIGH = 0.25, 0.6  # the ramp of the feature match, as the documentation has it
LEAST_SHARE, LARGEST_SHARE = 0.0005, 0.02


class World(NamedTuple):
    """All passages of a store, as a brute force needs them."""

    ids: list[str]
    x: np.ndarray  # (N, d) in score space
    offsets: np.ndarray  # (N,)
    x_hat: np.ndarray  # (N, d)
    real: np.ndarray  # (N,) bool: what the filter of the benchmark keeps


def read(store: StoreReader) -> World:
    ids: list[str] = []
    parts: list[list[np.ndarray]] = [[], [], [], []]
    for names, x, offsets in store.score_pages(5000):
        rows = store.sidecar.rows(names)
        page = store.documents.get(ids=names, include=["metadatas"])
        kept = {
            name: (row or {}).get("page", 0) == 3
            for name, row in zip(page["ids"], page["metadatas"] or [], strict=True)
        }
        ids += names
        x_hat = store.sae.decode(store.sidecar.unpack([rows[name].packed for name in names]))
        for part, found in zip(parts, (x, offsets, x_hat, [kept[name] for name in names]), strict=True):
            part.append(np.asarray(found))
    return World(ids, *(np.concatenate(part) for part in parts))


class BruteForce:
    """Scores of all passages by the definition, in float64."""

    def __init__(self, retriever: SteeredRetriever, world: World) -> None:
        self.retriever, self.world = retriever, world
        lengths = np.linalg.norm(world.x_hat, axis=1, keepdims=True)
        # "unit": reconstructions at the length of the typical one, as the reconstructed space reads them.
        self.y = {
            "x": world.x.astype(np.float64),
            "x_hat": world.x_hat.astype(np.float64),
            "unit": world.x_hat.astype(np.float64) / lengths * retriever.store.lengths().reconstruction,
        }
        self.products: dict[tuple[str, bytes], np.ndarray] = {}

    def times(self, y: str, vector: np.ndarray) -> np.ndarray:
        key = y, vector.astype(np.float64).tobytes()
        if key not in self.products:
            if len(self.products) > 200:
                self.products.clear()
            self.products[key] = self.y[y] @ vector.astype(np.float64)
        return self.products[key]

    def match(self, boost: Any, y: str) -> np.ndarray:
        sae, unit_ = self.retriever.sae, self.retriever.catalog.calibration.match_unit
        scale = 1.0 if y == "x" else self.retriever.store.lengths().match
        weights = np.asarray(boost.weights, dtype=np.float64)
        mean = np.zeros(len(self.world.ids))
        for weight, feature in zip(weights, boost.features, strict=True):
            row = sae.decoder[feature]
            mean += weight * (self.times(y, row) - row.astype(np.float64) @ sae.bias) / (unit_[feature] * scale)
        return np.clip((mean / weights.sum() - LOW) / (HIGH - LOW), 0, 1)

    def scores(self, made: Any, plain: np.ndarray, shift: np.ndarray, y: str) -> np.ndarray:
        found = plain + (self.times(y, shift) if shift.any() else 0.0)
        for boost in made.boosts:
            found = found + boost.amount * self.match(boost, y)
        for boost in made.excluded:
            found = np.where(self.match(boost, y) < 0.5, found, -np.inf)
        return found

    def best(self, q: np.ndarray, steer: Any, side: Any, space: str, read_on: str, where: bool) -> np.ndarray:
        """Rows of the best ten by the definition."""
        sae, world, retriever = self.retriever.sae, self.world, self.retriever
        steering = retriever.resolve(steer, side=side, space=space)
        h_q = sae.encode(q[None])
        vector = sae.decode(h_q)[0] if space == "reconstructed" else q
        made = plan(steering, vector, h_q, sae, retriever.catalog.calibration)
        v = made.total_shift(len(q)).astype(np.float64)
        left = np.where(world.real, 0.0, -np.inf) if where else 0.0
        if space == "original":
            plain = self.times("x", q) + world.offsets + left
            found = self.scores(made, plain, v, "x")
            if read_on == "reconstruction" and steering.edits:
                pool = np.argsort(-found, kind="stable")[: 3 * K]
                again = self.scores(made, plain, v, "x_hat")
                found = np.where(np.isin(np.arange(len(found)), pool) & np.isfinite(found), again, -np.inf)
        else:
            length = retriever.store.lengths().reconstruction * np.linalg.norm(vector + v)
            plain = self.times("unit", vector / length) + left
            found = self.scores(made, plain, v / length, "unit")
        order = np.argsort(-found, kind="stable")[:K]
        return order[np.isfinite(found[order])]


def steerings(features: list[int], own: list[int]) -> dict[str, tuple[dict[int, Any], Any]]:
    """Edits and side, by name."""
    a, b, c, *_ = features
    found: dict[str, tuple[dict[int, Any], Any]] = {"0": ({}, None)}
    for side in ("both", "document", "query"):
        for strength in (0.25, 0.5, 1.0, 2.0, -0.5, -1.0, -2.0):
            found[f"{side} {strength:+g}"] = ({a: strength}, side)
        found[f"{side} two +0.5"] = ({a: 0.5, b: 0.5}, side)
        found[f"{side} two +0.5 -0.5"] = ({a: 0.5, own[0]: -0.5}, side)
        found[f"{side} two +1"] = ({a: 1.0, b: 1.0}, side)
        found[f"{side} three +1"] = ({a: 1.0, b: 1.0, c: 1.0}, side)
        found[f"{side} three +0.5 +0.5 -0.5"] = ({a: 0.5, b: 0.5, own[0]: -0.5}, side)
        found[f"{side} five +0.3"] = (dict.fromkeys(features[:5], 0.3), side)
        found[f"{side} five +0.5 -0.5"] = ({**dict.fromkeys(features[:3], 0.5), own[0]: -0.5, own[1]: -0.5}, side)
        found[f"{side} ten +0.2 -0.2"] = ({**dict.fromkeys(features[:6], 0.2), **dict.fromkeys(own[:4], -0.2)}, side)
    found["raw +0.2"] = ({a: AddRaw(0.2)}, None)
    found["clamp 1"] = ({a: Clamp(1.0)}, None)
    found["scale 0"] = ({own[0]: Scale(0.0)}, None)
    found["scale 3"] = ({own[1]: Scale(3.0)}, None)
    found["suppress own"] = ({own[0]: Suppress()}, None)
    found["suppress two, add"] = ({own[0]: Suppress(), own[1]: Suppress(), a: 0.5}, None)
    return found


def draw(truth: BruteForce, q: np.ndarray, feature: int, strength: float, file: Path) -> None:
    """Draws the bound: every passage by its match and its plain score, the two lists, and the best ten."""
    import matplotlib.pyplot as plt

    retriever = truth.retriever
    sae, calibration = retriever.sae, retriever.catalog.calibration
    steering = retriever.resolve({feature: strength}, side="document")
    (boost,) = plan(steering, q, sae.encode(q[None]), sae, calibration).boosts
    plain = truth.times("x", q)
    row = sae.decoder[feature].astype(np.float64)
    linear = ((truth.times("x", row) - row @ sae.bias) / calibration.match_unit[feature] - LOW) / (HIGH - LOW)
    score = plain + boost.amount * np.clip(linear, 0, 1)
    one, two = np.argsort(-plain)[:25], np.argsort(-(plain + boost.amount * linear))[:25]
    best = np.argsort(-score)[:K]
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    axes.scatter(linear, plain, s=3, color="#c8c8c8", label="all passages", rasterized=True)
    axes.scatter(linear[one], plain[one], s=22, color="#3b6ea8", label="25 neighbours of the query")
    axes.scatter(linear[two], plain[two], s=22, color="#c4552d", label="25 neighbours along the line")
    axes.scatter(linear[best], plain[best], s=70, facecolors="none", edgecolors="black", label="the best ten")
    grid = np.linspace(linear.min(), max(linear.max(), 1.3), 200)
    limit = score[best[-1]]
    axes.plot(grid, limit - boost.amount * np.clip(grid, 0, 1), color="black", lw=1, label="score of the tenth")
    axes.axhline(plain[one[-1]], color="#3b6ea8", lw=1, ls="--", label="nothing unseen above (query)")
    reached = (plain + boost.amount * linear)[two[-1]]
    axes.plot(grid, reached - boost.amount * grid, color="#c4552d", lw=1, ls="--", label="nothing unseen above (line)")
    axes.set(
        xlabel="L(x): the ramp of the feature match goes from 0 to 1",
        ylabel="q . x, the plain score",
        ylim=(np.quantile(plain, 0.9), plain.max() + 0.03),
        xlim=(np.quantile(linear, 0.001), grid[-1]),
    )
    axes.legend(fontsize=8, loc="upper right")
    figure.savefig(file, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sae", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--collection", default="docs")
    parser.add_argument("--vectors", type=Path, help="queries are mixtures of these; of the passages if not given")
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", default="", help="only the rows that contain this text, as SPACE READ_ON FILTER STEERING"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--figure", type=Path, help="draw the bound for one query, and stop")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    sae = TopKSAE.from_pretrained(arguments.sae)
    store = ChromaStore.open(sae, path=arguments.store, collection=arguments.collection, create=False)
    world = read(store)
    random = np.random.default_rng(arguments.seed)
    source = world.x[random.choice(len(world.ids), 2000)] if arguments.vectors is None else np.load(arguments.vectors)
    queries = mixtures(unit(source.astype(np.float32)), arguments.queries, random)
    catalog = FeatureCatalog.load(arguments.sae, sae.fingerprint)
    retriever = SteeredRetriever(store, Table(sae.config.encoder, queries, queries), catalog)
    counts = np.zeros(sae.config.n, dtype=np.int64)
    for start in range(0, len(world.ids), 5000):
        names = world.ids[start : start + 5000]
        codes = store.sidecar.unpack([row.packed for row in store.sidecar.rows(names).values()])
        labels = codes.truncate(sae.config.k_labels)
        counts += np.bincount(labels.indices[labels.values > 0], minlength=sae.config.n)
    frequent = np.nonzero((counts >= LEAST_SHARE * len(world.ids)) & (counts <= LARGEST_SHARE * len(world.ids)))[0]
    truth = BruteForce(retriever, world)
    if arguments.figure is not None:
        codes = sae.encode(queries[:1])
        draw(truth, queries[0], int(random.choice(np.setdiff1d(frequent, codes.indices[0]))), 0.5, arguments.figure)
        return 0
    table: dict[str, list[tuple[float, float, float, float]]] = {}
    ways = [
        ("original", "vector", False),
        ("original", "reconstruction", False),
        ("original", "vector", True),
        ("original", "reconstruction", True),
        ("reconstructed", "", False),
        ("latent", "", False),
        ("reconstructed", "", True),
    ]
    for q in queries:
        codes = sae.encode(q[None])
        own = codes.indices[0, :4].tolist()
        features = random.choice(np.setdiff1d(frequent, codes.indices[0]), 6, replace=False).tolist()
        for name, (steer, side) in steerings(features, own).items():
            for space, read_on, filtered in ways:
                row = f"{space} {read_on or '-'} {'filtered' if filtered else 'all'} {name}"
                if arguments.only not in row:
                    continue
                options: dict[str, Any] = {"read_on": read_on} if read_on else {}
                began = time.perf_counter()
                hits = retriever.search(
                    "q",
                    embedding=q,
                    k=K,
                    steer=steer,
                    side=side,
                    space=space,
                    explain=False,
                    where={"page": 3} if filtered else None,
                    **options,
                )
                took = 1000 * (time.perf_counter() - began)
                rows = truth.best(q, steer, side, space, read_on, filtered)
                wanted = {world.ids[place] for place in rows.tolist()}
                recall = len(wanted & {hit.id for hit in hits}) / max(len(wanted), 1)
                table.setdefault(row, []).append((recall, hits.certified, hits.certified and recall < 1, took))
    result = {row: np.mean(found, axis=0).tolist() for row, found in table.items()}
    if arguments.json:
        json.dump({"recall": result}, sys.stdout)
    else:
        print(f"{'space, read on, filter, steering':60s} recall  proved  false    ms")
        for row, (recall, proved, false, took) in result.items():
            print(f"{row:60s} {recall:6.3f}  {proved:6.2f}  {false:5.3f}  {took:5.1f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
