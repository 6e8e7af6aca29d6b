"""Memory and time of a fit on a corpus that is much larger than its dictionary, in a process of its own.

    python benchmarks/fit_memory.py [--passages 500000] [--dimension 768] [--latents 16384] [--steps 100] [--json]

Clustered unit vectors stand in for embeddings; everything else is what `sae-steer train` does before it labels: the
embedding cache on disk, the split, the lists of `--queries` real queries, the digest and the fit, with its
measurements. The starting process reads the memory of the fitting one every 20 ms: RssAnon is what it has allocated,
RssFile what is mapped of files (libraries, and the pages of the vectors that were read, which the kernel takes back
when it needs them). VmHWM, the peak of their sum, counts both. Needs Linux (/proc), and 4 bytes a number of disk in the
temporary folder. Limit it to one core (e.g. `taskset -c 0 env OMP_NUM_THREADS=1`) to compare times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

BAR_GB = 4.0
_CLUSTERS = 2000
_FIGURES = ("VmHWM", "RssAnon", "RssFile")


def fit(arguments: argparse.Namespace) -> None:
    """The fitting process: a line a stage on stdout, the last one JSON."""
    from sae_steer_retriever.corpus.passage import Corpus, Passage
    from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
    from sae_steer_retriever.sae.codes import Array
    from sae_steer_retriever.sae.config import EncoderSpec
    from sae_steer_retriever.train.config import TrainConfig
    from sae_steer_retriever.train.embedded_corpus import embed_corpus
    from sae_steer_retriever.train.pipeline import prepare

    d = arguments.dimension

    class Clustered:
        """Vectors around the centre that a text's number names."""

        def __init__(self) -> None:
            self.spec = EncoderSpec("synthetic/clustered", d)
            self._centres = np.random.default_rng(0).normal(size=(_CLUSTERS, d)).astype(np.float32)

        def embed_documents(self, texts: Sequence[str]) -> Array:
            numbers = np.array([int(text.rsplit(" ", 1)[1]) for text in texts])
            noise = np.random.default_rng(int(numbers[0])).standard_normal((len(texts), d), dtype=np.float32)
            rows = self._centres[numbers % _CLUSTERS] + noise
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

        embed_queries = embed_documents

    print("imports", flush=True)
    corpus = Corpus(
        [Passage(str(number), f"passage {number}") for number in range(arguments.passages)],
        queries=[f"query {number}" for number in range(arguments.queries)],
    )
    config = TrainConfig(
        latents=arguments.latents, k=arguments.k, steps=arguments.steps, sentences=0, init=arguments.init, device="cpu"
    )
    folder = Path(arguments.folder)
    embedder = CachedEmbedder(Clustered(), folder)
    print("embedding", flush=True)
    embedder.document_places([passage.text for passage in corpus.passages])
    print("split and lists", flush=True)
    embedded = embed_corpus(corpus, config, embedder)
    print("digest and start", flush=True)
    trainer, _ = prepare(corpus, embedded, config, embedder.spec, folder / "sae", resume=False)
    print("fit", flush=True)
    ends = [time.perf_counter()]
    found = trainer.fit(on_step=lambda _: ends.append(time.perf_counter()))
    seconds = np.diff(ends).tolist()
    figures = {"step": statistics.median(seconds), "fit": sum(seconds), "fvu": found.measurement.fvu}
    print(json.dumps(figures), flush=True)


class Memory:
    """The peaks of a process, in GiB, by the stage it was in."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.peaks: dict[str, dict[str, float]] = {}
        self.seconds: dict[str, float] = {}
        self.lines = ["start"]

    def watch(self) -> None:
        """Read lines and figures until the process ends."""
        reader = threading.Thread(target=self._read)
        reader.start()
        while self._process.poll() is None:
            stage, began = self.lines[-1], time.perf_counter()
            for name, value in self._status().items():
                known = self.peaks.setdefault(stage, {})
                known[name] = max(known.get(name, 0.0), value)
            time.sleep(0.02)
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began
        reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.lines.extend(line.strip() for line in self._process.stdout)

    def _status(self) -> dict[str, float]:
        try:
            lines = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8").splitlines()
        except OSError:
            return {}
        values = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
        return {name: int(values[name][0]) / 2**20 for name in _FIGURES if name in values}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=500_000)
    parser.add_argument("--queries", type=int, default=2000, help="more only make the search of their lists longer")
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--latents", type=int, default=16_384)
    parser.add_argument("-k", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--init", default="random", choices=("random", "data", "kmeans"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        fit(arguments)
        return 0
    if not Path("/proc/self/status").is_file():
        print("no /proc/self/status: this needs Linux.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *sys.argv[1:], "--folder", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            memory = Memory(process)
            memory.watch()
        if process.returncode:
            return 1
    found = json.loads(memory.lines.pop())
    peak = {name: max(stage.get(name, 0.0) for stage in memory.peaks.values()) for name in _FIGURES}
    corpus = 4 * arguments.passages * arguments.dimension / 2**30
    ratios = {
        "vectors on disk, GiB": corpus,
        "peak memory (VmHWM), GiB": peak["VmHWM"],
        "peak allocated (RssAnon), GiB": peak["RssAnon"],
        "peak mapped files (RssFile), GiB": peak["RssFile"],
        "seconds a step, median": found["step"],
        "seconds of the fit, with measurements": found["fit"],
    }
    ratios = {name: round(value, 3) for name, value in ratios.items()}
    if arguments.json:
        print(json.dumps({"ratios": ratios, "stages": memory.peaks}))
        return 0
    print("| stage | seconds | RssAnon, GiB | RssFile, GiB | VmHWM so far, GiB |\n|---|---|---|---|---|")
    for stage in memory.lines:
        own = memory.peaks.get(stage)
        if own is not None:
            figures = " | ".join(f"{own.get(name, 0.0):.2f}" for name in ("RssAnon", "RssFile", "VmHWM"))
            print(f"| {stage} | {memory.seconds[stage]:.0f} | {figures} |")
    print("\n" + "\n".join(f"{name:<40}{value:g}" for name, value in ratios.items()))
    gigabytes = peak["VmHWM"] * 2**30 / 1e9
    print(f"bar: peak memory under {BAR_GB:g} GB: {gigabytes:.2f} GB, {'kept' if gigabytes < BAR_GB else 'MISSED'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
