"""Search by codes: the exact sparse matrix against dense vectors, one thread, side by side.

    python benchmarks/latent_search.py --sae FOLDER_OF_AN_SAE (--data FOLDER_WITH_BEIR | --vectors FILE.npy) [--json]

Passages are the given real vectors and, up to `--passages`, mixtures of two of them each; their codes are the SAE's.
Queries are those of the folder, or with --vectors mixtures too. Limit all of it to one core (e.g. `taskset -c 0 env
OMP_NUM_THREADS=1`): the dense product uses every core that it gets.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.sae.codes import Array, Codes, power_normalised
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.store.code_matrix import CodeMatrix, Similarity

# The memory of a process that does nothing but hold the matrix and ask it.
_HOLD = """
import sys
import numpy as np
from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.store.code_matrix import CodeMatrix
indices, values = (np.load(f"{sys.argv[1]}/{name}.npy") for name in ("indices", "values"))
CodeMatrix(Codes(indices, values), int(sys.argv[2])).search("damped", Codes(indices[:50], values[:50]), 10)
with open("/proc/self/status") as status:  # getrusage would tell the parent's peak where that was larger
    print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")))
"""


def read(arguments: argparse.Namespace) -> tuple[Array, Array]:
    """Real passages and queries."""
    if arguments.vectors is not None:
        vectors = unit(np.load(arguments.vectors).astype(np.float32))
        return vectors, mixtures(vectors, arguments.queries, np.random.default_rng(1))
    from sae_steer_retriever.corpus.read_corpus import read_corpus
    from sae_steer_retriever.encoders.embedders import SentenceTransformerEmbedder
    from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder

    embedder = CachedEmbedder(SentenceTransformerEmbedder(), progress=True)
    passages = [passage.text for passage in read_corpus(arguments.data).passages]
    lines = (arguments.data / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    queries = [json.loads(line)["text"] for line in lines]
    return embedder.embed_documents(passages), embedder.embed_queries(queries)[: arguments.queries]


def unit(rows: Array) -> Array:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def mixtures(vectors: Array, count: int, random: np.random.Generator) -> Array:
    one, other = random.integers(len(vectors), size=(2, count))
    share = random.uniform(0.2, 0.8, size=(count, 1)).astype(np.float32)
    return unit(share * vectors[one] + (1 - share) * vectors[other])


def milliseconds(ask: Callable[[int], Any], queries: int) -> float:
    """Median over the queries."""
    times = []
    for number in range(queries):
        began = time.perf_counter()
        ask(number)
        times.append(1000 * (time.perf_counter() - began))
    return float(np.median(times))


def dense_top(x: Array, q: Array, k: int) -> NDArray[np.int64]:
    scores = x @ q
    top = np.argpartition(-scores, k)[:k]
    return np.asarray(top[np.argsort(-scores[top])])


def agreement(matrix: CodeMatrix, similarity: Similarity, queries: Codes[Any], k: int, n: int) -> tuple[float, float]:
    """Against dense codes, a thousand passages at a time: largest score difference, share of the same ids."""
    gap, same = 0.0, 0
    dense_queries = dense(queries, similarity, n)
    products = np.concatenate(
        [
            dense_queries @ dense(matrix.take(np.arange(start, min(start + 1000, len(matrix)))), similarity, n).T
            for start in range(0, len(matrix), 1000)
        ],
        axis=1,
    )
    for hits, scores in zip(matrix.search(similarity, queries, k), products, strict=True):
        gap = max(gap, float(np.abs(hits.scores - scores[hits.rows]).max()))
        same += len(set(np.argsort(-scores, kind="stable")[:k].tolist()) & set(hits.rows.tolist()))
    return gap, same / (k * len(queries.indices))


def dense(codes: Codes[Any], similarity: Similarity, n: int) -> Array:
    if similarity == "dot":
        return densified(codes, n)
    return unit_codes(densified(power_normalised(codes), n))


def densified(codes: Codes[Any], n: int) -> Array:
    out = np.zeros((len(codes.indices), n), dtype=np.float32)
    np.put_along_axis(out, codes.indices.astype(np.int64), codes.values, axis=1)
    return out


def unit_codes(rows: Array) -> Array:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def peak_mb(codes: Codes[Any], n: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        for name, array in zip(("indices", "values"), codes, strict=True):
            np.save(Path(folder) / f"{name}.npy", array)
        done = subprocess.run([sys.executable, "-c", _HOLD, folder, str(n)], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path)
    source.add_argument("--vectors", type=Path)
    parser.add_argument("--sae", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sae, k = TopKSAE.from_pretrained(arguments.sae), arguments.k
    x, q = read(arguments)
    random = np.random.default_rng(0)
    real = len(x)
    x = np.concatenate([x[: arguments.passages], mixtures(x, max(arguments.passages - real, 0), random)])
    codes = sae.encode(x)
    queries = sae.encode(q)
    matrix = CodeMatrix(codes, sae.config.n)
    few: Codes[Any] = Codes(queries.indices[:50], queries.values[:50])
    ratios: dict[str, float] = {"passages": len(x), "real passages among them": min(real, len(x))}
    if sys.platform.startswith("linux"):
        ratios["peak MB of a process with the damped matrix"] = peak_mb(codes, sae.config.n)

    def one(number: int) -> Codes[Any]:
        return Codes(queries.indices[number : number + 1], queries.values[number : number + 1])

    similarities: tuple[Similarity, ...] = ("damped", "dot")
    for similarity in similarities:
        began = time.perf_counter()
        matrix.scores(similarity, queries.indices[0], queries.values[0])
        ratios[f"seconds to make the {similarity} matrix"] = time.perf_counter() - began
        gap, same = agreement(matrix, similarity, few, k, sae.config.n)
        ratios |= {
            f"largest {similarity} score difference to dense codes": gap,
            f"same {similarity} top {k} as dense codes": same,
        }
        rounds = [
            (
                milliseconds(lambda number: matrix.search(similarity, one(number), k), len(q)),  # noqa: B023 - used here
                milliseconds(lambda number: dense_top(x, q[number], k), len(q)),
            )
            for _ in range(3)
        ]
        exact, plain = (min(times) for times in zip(*rounds, strict=True))
        ratios |= {
            f"ms a query, {similarity}": exact,
            f"ms a query, dense float32 of {x.shape[1]}": plain,
            f"{similarity} over dense": exact / plain,
        }
    if arguments.json:
        print(json.dumps({"ratios": ratios}))
    else:
        width = max(map(len, ratios))
        print("\n".join(f"{name:<{width}}  {value:.6g}" for name, value in ratios.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
