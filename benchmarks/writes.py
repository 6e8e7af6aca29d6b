"""What writes cost the queries after them: the first steered query after a write over the next ones, memory, disk.

    python benchmarks/writes.py --sae FOLDER_OF_AN_SAE (--corpus FILE_OR_FOLDER | --vectors FILE.npy) [--store FOLDER]
                                [--passages 40000] [--rounds 9] [--single-writes 10000] [--json]

The store is filled as `benchmarks/query.py` fills it, and every query comes with its embedding. A second process opens
the same folder; each of the two writes single passages and asks. Memory is that of fresh processes that opened the
store and asked 100 queries: plain Chroma with the SAE loaded, and the retriever. Single writes go between queries into
a store of `--passages`, and the same passages into a plain Chroma beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from latent_search import mixtures
from query import STRENGTH, Table, concepts_of, filled, read

from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.chroma_store import ChromaStore
from sae_steer_retriever.store.connection import connect

K, NEXT, ASKED = 10, 8, 100
BARS = {
    "first over next, after an attach": 1.1,
    "first over next, after an own write": 1.1,
    "first over next, after another process' write": 1.1,
    "first over next, in a process that did not write": 1.1,
    "MB of memory beyond plain Chroma": 200.0,
    "bytes outside of the Chroma folder": 0.0,
}


class Process:
    """One process over a store: it writes single passages and asks queries."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, vectors: Array, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._seed = seed
        self._vectors = vectors
        self._written = 0
        sae = TopKSAE.from_pretrained(arguments.sae)
        self.store = ChromaStore.open(sae, path=folder)
        self._catalog = FeatureCatalog.load(arguments.sae, sae.fingerprint)
        self.concept = arguments.concept or concepts_of(self._catalog, self.store)[0]
        self.reopen()

    def reopen(self) -> None:
        """Opens the store as a new retriever does."""
        self.store = ChromaStore.from_collection(self.store.documents, self.store.sae)
        spec = self.store.sae.config.encoder
        self._retriever = SteeredRetriever(self.store, Table(spec, self._vectors, self._vectors), self._catalog)

    def vector(self) -> Array:
        """A new mixture of two passages."""
        return mixtures(self._vectors, 1, self._random)[0]

    def write(self) -> None:
        """Adds a passage."""
        name, x = f"added-{self._seed}-{self._written}", self.vector()[None]
        self._written += 1
        self.store.add([name], ["0"], embedder=Table(self.store.sae.config.encoder, x, x))

    def attach(self) -> None:
        """Adds a passage as another tool does, and attaches the collection anew."""
        name = f"theirs-{self._seed}-{self._written}"
        self._written += 1
        self.store.documents.add(ids=[name], embeddings=[self.vector()], documents=["theirs"])
        self.reopen()
        self.store.attach()

    def ask(self) -> float:
        """Milliseconds of a steered and explained query."""
        q = self.vector()
        began = time.perf_counter()
        self._retriever.search("question 0", k=K, steer={self.concept: STRENGTH}, embedding=q)
        return 1000 * (time.perf_counter() - began)

    def ask_plainly(self) -> float:
        """Milliseconds of a plain Chroma query."""
        q = self.vector()
        began = time.perf_counter()
        self.store.documents.query(query_embeddings=[q], n_results=100)
        return 1000 * (time.perf_counter() - began)


class Other:
    """A `Process` in another process, which answers by lines."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def do(self, what: str) -> float:
        """Returns what the method `what` of the other process returns."""
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("no pipe.")
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def end(self) -> None:
        """Ends it."""
        self._process.communicate()


def first_over_next(before: Callable[[], object], ask: Callable[[], float], rounds: int) -> tuple[float, float]:
    """Medians over rounds: of the first query after `before`, and of the next ones."""
    first, following = [], []
    for _ in range(rounds):
        before()
        first.append(ask())
        following += [ask() for _ in range(NEXT)]
    return float(np.median(first)), float(np.median(following))


def resident() -> float:
    """Megabytes of this process that are resident."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.exists() else 0


def single_writes(process: Process, folder: Path, plain_folder: Path, count: int) -> dict[str, float]:
    """Growth by single writes between queries, in bytes a write, beside a plain Chroma of the same passages."""
    documents = process.store.documents
    plain = connect(path=plain_folder).get_or_create_collection("docs", embedding_function=None)
    for begin in range(0, len(process.store), 5000):
        page = documents.get(limit=5000, offset=begin, include=["embeddings", "documents"])
        plain.add(ids=page["ids"], embeddings=page["embeddings"], documents=page["documents"])
    before, before_plain, memory = size_of(folder), size_of(plain_folder), resident()
    for _ in range(count):
        process.write()
        process.ask()
    own, memory = size_of(folder) - before, resident() - memory
    began = resident()
    for number in range(count):
        x = process.vector()
        plain.add(ids=[f"plain-{number}"], embeddings=[x], documents=["0"])
        plain.query(query_embeddings=[x], n_results=10)
    return {
        "KB of disk a single write": own / count / 1024,
        "KB of disk a single write, plain Chroma": (size_of(plain_folder) - before_plain) / count / 1024,
        "MB of memory by single writes": memory,
        "MB of memory by single writes, plain Chroma": resident() - began,
    }


def part_of(arguments: argparse.Namespace, vectors: Array) -> int:
    """What the other processes of this benchmark do."""
    process = Process(arguments, arguments.store, vectors, seed=7)
    if arguments.part == "other":
        for line in sys.stdin:
            print(getattr(process, line.strip())() or 0.0, flush=True)
        return 0
    for _ in range(ASKED):
        if arguments.part == "memory":
            process.ask()
        else:
            process.ask_plainly()
    print(resident())
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--corpus", type=Path)
    source.add_argument("--vectors", type=Path)
    parser.add_argument("--sae", type=Path, required=True)
    parser.add_argument("--store", type=Path, help="the store; single passages are added to it")
    parser.add_argument("--passages", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--single-writes", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", choices=["other", "memory", "plain memory"], help=argparse.SUPPRESS)
    parser.add_argument("--concept", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    texts, vectors = read(arguments)
    if arguments.part:
        return part_of(arguments, vectors)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = arguments.store or Path(temporary) / "store"
        os.environ["SAE_STEER_CACHE"] = str(cache := Path(temporary) / "cache")
        filled(folder, arguments, texts, vectors)
        process = Process(arguments, folder, vectors, seed=5)
        given = ["--corpus", str(arguments.corpus)] if arguments.corpus else ["--vectors", str(arguments.vectors)]
        command = [sys.executable, __file__, *given, "--sae", str(arguments.sae), "--store", str(folder)]
        command += ["--concept", process.concept, "--part"]
        memory = {
            part: float(subprocess.run([*command, part], check=True, capture_output=True, text=True).stdout.split()[-1])
            for part in ("memory", "plain memory")
        }
        other = Other([*command, "other"])
        for _ in range(NEXT):
            process.ask(), process.ask_plainly(), other.do("ask"), other.do("ask_plainly")
        rounds = arguments.rounds
        ms = {
            "after nothing": first_over_next(lambda: None, process.ask, rounds),
            "after an attach": first_over_next(process.attach, process.ask, rounds),
            "after an own write": first_over_next(process.write, process.ask, rounds),
            "after an own write, plain Chroma": first_over_next(process.write, process.ask_plainly, rounds),
            "after another process' write": first_over_next(lambda: other.do("write"), process.ask, rounds),
            "in a process that did not write": first_over_next(process.write, lambda: other.do("ask"), rounds),
            "in a process that did not write, plain Chroma": first_over_next(
                process.write, lambda: other.do("ask_plainly"), rounds
            ),
        }
        ratios = {f"first over next, {name}": first / following for name, (first, following) in ms.items()}
        ratios["MB of memory beyond plain Chroma"] = memory["memory"] - memory["plain memory"]
        if arguments.single_writes:
            ratios |= single_writes(process, folder, Path(temporary) / "plain", arguments.single_writes)
        ratios["bytes outside of the Chroma folder"] = float(size_of(cache))
        other.end()
    if arguments.json:
        print(json.dumps({"ratios": ratios, "ms": ms, "MB": memory, "passages": arguments.passages, "bars": BARS}))
        return 0
    width = max(map(len, [*ms, *ratios]))
    print(f"{'ms a query':<{width}}{'first':>10}{'next':>10}")
    for name, (first, following) in ms.items():
        print(f"{name:<{width}}{first:10.2f}{following:10.2f}")
    print()
    for name, value in ratios.items():
        bar = f"  (bar {BARS[name]:g})" if name in BARS else ""
        print(f"{name:<{width}}  {value:8.2f}{bar}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
