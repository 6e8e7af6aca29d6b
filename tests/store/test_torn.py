"""Queries beside writes: the text, the vector and the score of a hit are of one version of its passage.

A text tells the version of its passage, and its vector is a function of the text. So every hit tells what its scores
have to be.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chroma_server import chroma_server
from numpy.typing import NDArray
from toy import N, ToyEmbedder, catalog_for, random_sae

from sae_steer_retriever.explain.hits import Hit
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.search.options import LATENT_SCORES, READ_ON, SearchKeywords
from sae_steer_retriever.search.ranking import Scorer
from sae_steer_retriever.steering.operations import Operation, Suppress
from sae_steer_retriever.steering.plan import plan
from sae_steer_retriever.store.chroma_store import ChromaStore

SAE = random_sae(3)
COUNT = 60
TOLERANCE = 1e-4
Steer = Mapping[int, float | Operation]


def text_of(passage: int, version: int) -> str:
    return f"p{passage:03} v{version} w{(passage * 7 + version) % 23} topic{version % 3}"


def options(feature: int, other: int) -> list[SearchKeywords]:
    """Searches of each space, unsteered and steered."""
    steers: list[Steer] = [{}, {feature: 0.5}, {feature: 1.0, other: -0.5}, {feature: Suppress(), other: 0.5}]
    found: list[SearchKeywords] = []
    for steer in steers:
        found += [{"steer": steer, "read_on": read_on} for read_on in READ_ON]
        found += [{"steer": steer, "space": "reconstructed"}]
        found += [{"steer": steer, "space": "latent", "latent_score": score} for score in LATENT_SCORES]
    return found


class Version:
    """What the scores of a hit have to be, by its text."""

    def __init__(self, retriever: SteeredRetriever, query: str, asked: SearchKeywords) -> None:
        self._asked = asked
        self._space = asked.get("space", "original")
        self._on_codes = self._space == "latent" and asked["latent_score"] != "match"
        q = ToyEmbedder().embed_queries([query])[0]
        self._h_q = SAE.encode(q[None])
        if self._on_codes:
            return
        vector = SAE.decode(self._h_q)[0] if self._space == "reconstructed" else q
        calibration, lengths = retriever.catalog.calibration, retriever.store.lengths()
        steering = retriever.resolve(asked["steer"], space=self._space)
        made = plan(steering, vector, self._h_q, SAE, calibration)
        if self._space == "original":
            self._scorer = Scorer(SAE, made, calibration.match_unit, vector, reconstructions=(1.0, lengths.match))
        else:
            self._scorer = Scorer(
                SAE,
                made,
                calibration.match_unit,
                vector,
                reconstructions=(lengths.reconstruction, lengths.match),
                normalised=True,
            )

    def torn(self, hit: Hit) -> str | None:
        """Returns which part of a hit is of another version than its text; None if all are of one."""
        if not hit.text.startswith(hit.id):
            return "text"
        assert hit.attribution is not None
        if abs(hit.attribution.total - hit.score) > TOLERANCE:
            return "attribution"
        x = ToyEmbedder().embed_queries([hit.text])
        code = SAE.encode(x)
        if self._on_codes:
            base = self._of_codes(code)
            return None if abs(base - hit.base_score) < TOLERANCE else "base score"
        x_hat = SAE.decode(code)
        if self._space == "original":
            read = x_hat if hit.read_on == "reconstruction" else None
            scored = self._scorer.score(x, np.zeros(1, np.float32), read)
        else:
            scored = self._scorer.score(x_hat / np.linalg.norm(x_hat), np.zeros(1, np.float32))
        if abs(scored.base_scores[0] - hit.base_score) > TOLERANCE:
            return "base score"
        return None if abs(scored.scores[0] - hit.score) < TOLERANCE else f"terms read on the {hit.read_on}"

    def _of_codes(self, code: Codes[NDArray[Any]]) -> float:
        power = 0.7 if self._asked["latent_score"] == "damped" else 1.0
        q, x = (np.zeros(N), np.zeros(N))
        for dense, own in ((q, self._h_q), (x, code)):
            dense[own.indices[0]] = own.values[0].astype(np.float64) ** power
        return float(q @ x) / (1.0 if power == 1.0 else float(np.linalg.norm(q) * np.linalg.norm(x)))


@dataclasses.dataclass
class Outcome:
    """What readers saw beside writers."""

    hits: int = 0
    writes: int = 0
    read_on: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    torn: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    errors: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def beside_writes(opened: Callable[[], ChromaStore], readers: int, writers: int, seconds: float) -> Outcome:
    """Searches by `readers` threads of one retriever, while each of `writers` threads changes passages of its own."""
    first = opened()
    embedder = ToyEmbedder()
    names = [f"p{passage:03}" for passage in range(COUNT)]
    first.add(names, [text_of(passage, 0) for passage in range(COUNT)], embedder=embedder)
    catalog = catalog_for(SAE, embedder.embed_queries([text_of(passage, 0) for passage in range(COUNT)]))
    retriever = SteeredRetriever(opened(), embedder, catalog)
    feature, other = np.argsort(-catalog.calibration.count)[:2].tolist()
    asked = options(feature, other)
    queries = [text_of(passage, 0) for passage in range(0, COUNT, 5)]
    expected = {(query, place): Version(retriever, query, one) for query in queries for place, one in enumerate(asked)}
    outcome, lock = Outcome(), threading.Lock()
    until = time.monotonic() + seconds

    def write(number: int) -> None:
        store, own = opened(), range(number, COUNT, writers)
        random = np.random.default_rng(number)
        for version in itertools.count(1):
            if time.monotonic() > until:
                break
            changed = random.choice(own, 3, replace=False).tolist()
            texts = [text_of(passage, version) for passage in changed]
            store.add([names[passage] for passage in changed], texts, embedder=ToyEmbedder())
            with lock:
                outcome.writes += 1

    def read(number: int) -> None:
        random = np.random.default_rng(1000 + number)
        while time.monotonic() < until:
            query, place = queries[random.integers(len(queries))], int(random.integers(len(asked)))
            hits = retriever.search(query, k=5, **asked[place])
            found = [expected[query, place].torn(hit) for hit in hits]
            with lock:
                outcome.hits += len(hits)
                outcome.read_on.update(str(hit.read_on) for hit in hits)
                outcome.torn.update(f"{part}, {asked[place]}" for part in found if part is not None)

    def caught(work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except Exception as error:  # noqa: BLE001 - every error of a thread is told
            with lock:
                outcome.errors[f"{work.__name__}: {error!r}"] += 1

    threads = [threading.Thread(target=caught, args=(write, number)) for number in range(writers)]
    threads += [threading.Thread(target=caught, args=(read, number)) for number in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcome


def assert_whole(outcome: Outcome) -> None:
    assert not outcome.errors
    assert outcome.writes >= 3
    assert outcome.hits >= 100
    assert outcome.read_on["reconstruction"] > 0
    assert not outcome.torn


@pytest.mark.filterwarnings("ignore::sae_steer_retriever.errors.StaleSidecarWarning")
def test_hits_are_of_one_version_in_one_process(tmp_path: Path) -> None:
    assert_whole(beside_writes(lambda: ChromaStore.open(SAE, path=tmp_path / "chroma"), 6, 2, 5.0))


@pytest.mark.server
@pytest.mark.filterwarnings("ignore::sae_steer_retriever.errors.StaleSidecarWarning")
def test_hits_are_of_one_version_on_a_server(tmp_path: Path) -> None:
    with chroma_server(tmp_path / "server") as (port, _):
        assert_whole(beside_writes(lambda: ChromaStore.open(SAE, host="127.0.0.1", port=port), 6, 2, 5.0))
