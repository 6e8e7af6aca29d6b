"""Memory and time of labelling a large dictionary, in a process of its own: keywords, scores, evidence and families.

    python benchmarks/label_memory.py [--passages 36000] [--dimension 384] [--latents 8192] [--json]

Clustered unit vectors stand in for embeddings, and texts of about 100 words from a Zipf vocabulary, a fifth of them
their cluster's own, for passages; the dictionary's directions are near data points. Labels and words are embedded by a
table, so that the time is that of everything but the encoder, and all is written as `sae-steer train` writes it. The
starting process reads the memory of the labelling one, as `fit_memory.py` does. Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from fit_memory import Memory

BAR_GB, BAR_SECONDS = 3.0, 600.0
_CLUSTERS, _WORDS, _OWN_WORDS, _LENGTH = 2000, 60_000, 8, 100
_FIGURES = ("VmHWM", "RssAnon", "RssFile")


def label(arguments: argparse.Namespace) -> None:
    """The labelling process: a line a stage on stdout, the last one JSON."""
    import torch

    from sae_steer_retriever.features.calibration import calibrate
    from sae_steer_retriever.labelling.gather_evidence import read_label_latents
    from sae_steer_retriever.labelling.keyword_labels import label_features
    from sae_steer_retriever.sae.codes import Array
    from sae_steer_retriever.sae.config import EncoderSpec, SAEConfig
    from sae_steer_retriever.sae.directions import data_directions
    from sae_steer_retriever.sae.topk_sae import TopKSAE

    d, count = arguments.dimension, arguments.passages
    random = np.random.default_rng(0)

    class Table:
        """A vector a text, drawn from a fixed table."""

        def __init__(self) -> None:
            self.spec = EncoderSpec("synthetic/clustered", d)
            rows = random.normal(size=(4096, d)).astype(np.float32)
            self._rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)

        def embed_documents(self, texts: Sequence[str]) -> Array:
            return self._rows[[sum(text.encode()) % len(self._rows) for text in texts]]

        embed_queries = embed_documents

    print("imports", flush=True)
    cluster = random.integers(0, _CLUSTERS, count)
    vectors = random.normal(size=(_CLUSTERS, d)).astype(np.float32)[cluster]
    vectors += random.standard_normal((count, d), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    print("texts", flush=True)
    names = np.array([f"w{''.join(chr(97 + int(digit)) for digit in str(number))}x" for number in range(_WORDS)])
    own = random.integers(0, _WORDS, (_CLUSTERS, _OWN_WORDS))
    texts = []
    for number in cluster:
        common = np.minimum(random.zipf(1.2, _LENGTH - _LENGTH // 5), _WORDS) - 1
        texts.append(" ".join(names[np.concatenate([common, random.choice(own[number], _LENGTH // 5)])]))
    print("dictionary", flush=True)
    mean = torch.from_numpy(vectors.mean(axis=0))
    directions = data_directions(torch.from_numpy(vectors) - mean, arguments.latents, torch.Generator().manual_seed(0))
    config = SAEConfig(d=d, n=arguments.latents, k=64, k_labels=8, refine_steps=8, encoder=Table().spec)
    sae = TopKSAE(directions, torch.zeros(arguments.latents), directions, mean, config)
    print("names", flush=True)
    codes = read_label_latents(sae, vectors)
    calibration = calibrate([codes], config.n, 0.2)
    print("labels", flush=True)
    began = time.perf_counter()
    ids = [str(number) for number in range(count)]
    report = label_features(sae, calibration, ids, texts, vectors, Table(), names=codes)
    seconds = time.perf_counter() - began
    print("files", flush=True)
    report.catalog.save(arguments.folder)
    figures = {"seconds": seconds, "labelled": report.labelled, "scored": report.scored}
    print(json.dumps({**figures, "families": len(report.families)}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=36_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--latents", type=int, default=8192)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        label(arguments)
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
    ratios = {
        "labels": found["labelled"],
        "scored labels": found["scored"],
        "families": found["families"],
        "seconds of labelling": found["seconds"],
        "peak memory (VmHWM), GiB": peak["VmHWM"],
        "peak allocated (RssAnon), GiB": peak["RssAnon"],
    }
    ratios = {name: round(value, 3) for name, value in ratios.items()}
    if arguments.json:
        print(json.dumps({"ratios": ratios, "stages": memory.peaks}))
        return 0
    print("| stage | seconds | RssAnon, GiB | VmHWM so far, GiB |\n|---|---|---|---|")
    for stage in memory.lines:
        own = memory.peaks.get(stage)
        if own is not None:
            figures = " | ".join(f"{own.get(name, 0.0):.2f}" for name in ("RssAnon", "VmHWM"))
            print(f"| {stage} | {memory.seconds[stage]:.0f} | {figures} |")
    print("\n" + "\n".join(f"{name:<40}{value:g}" for name, value in ratios.items()))
    gigabytes = peak["VmHWM"] * 2**30 / 1e9
    kept = gigabytes < BAR_GB and found["seconds"] < BAR_SECONDS
    bar = f"under {BAR_GB:g} GB and {BAR_SECONDS:g} s"
    print(f"bar: {bar}: {gigabytes:.2f} GB, {found['seconds']:.0f} s, {'kept' if kept else 'MISSED'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
