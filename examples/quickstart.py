"""Train, index, ask, steer, explain: the whole path on the standard library's own documentation.

    python examples/quickstart.py

Needs no API key and no download (extra `offline`). The first run embeds a few thousand passages and fits a sparse
autoencoder on them, which takes minutes on two CPU cores; later runs reuse both. All files are written to
./quickstart-data.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from pathlib import Path

from standard_library import write_corpus

from sae_steer_retriever import Hit, SentenceTransformerEmbedder, SteeredRetriever
from sae_steer_retriever.corpus.read_corpus import read_corpus
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.train.config import TrainConfig
from sae_steer_retriever.train.pipeline import fit

DATA = Path("quickstart-data")
QUESTION = "how do I run work in the background and wait for it?"
# Words a user would type for perspectives on this question.
PERSPECTIVES = ("thread", "coroutine", "subprocess", "queue", "signal")
SHOWN = 2
WIDTH = 58


def prepare(folder: Path) -> SteeredRetriever:
    """Collect the corpus, fit an SAE on it and index it, or open what an earlier run made."""
    corpus, sae = folder / "standard_library.jsonl", folder / "sae"
    embedder = SentenceTransformerEmbedder()
    if not corpus.exists():
        print(f"{write_corpus(corpus):,} passages of the standard library's documentation -> {corpus}")
    if not (sae / "features.json").exists():
        # Fewer sentences and epochs than the defaults, to save time.
        report = fit(corpus, sae, TrainConfig(sentences=1, epochs=60), embedder=embedder)
        print(report.summary())
    retriever = SteeredRetriever.open(sae, path=folder / "chroma", embedding=embedder)
    passages = read_corpus(corpus).passages
    done = retriever.store.add(
        [passage.id for passage in passages],
        [passage.text for passage in passages],
        [passage.metadata for passage in passages],
        embedder=CachedEmbedder(embedder, progress=True),
        progress=True,
    )
    print(f"indexed: {done.added} added, {done.updated} updated, {done.unchanged} unchanged")
    return retriever


def perspectives(retriever: SteeredRetriever) -> list[str]:
    """The first two of the words that this SAE has features for."""
    found = []
    for word in PERSPECTIVES:
        try:
            resolution = retriever.resolve_name(word)
        except LookupError as error:
            print(f"  (skipped: {error})")
            continue
        names = "; ".join(
            f"#{feature} {retriever.catalog.name(feature)} x{weight:.2f}"
            for feature, weight in zip(resolution.features, resolution.weights, strict=True)
        )
        print(f"  {word!r} means {names}")
        found.append(word)
        if len(found) == SHOWN:
            break
    return found


def show(question: str, before: list[Hit], after: list[Hit], word: str, strength: float) -> None:
    """Print both rankings side by side, then why the first steered hits were found."""
    print(f"\n{question}\n{'-' * (2 * WIDTH + 3)}")
    print(f"{'unsteered':<{WIDTH}} | steered: {{{word!r}: {strength:+}}}")
    for old, new in zip(before, after, strict=True):
        rank = f"was {new.base_rank}" if new.base_rank else "new"
        left = f"{old.score:.3f}  {old.id}"[:WIDTH]
        print(f"{left:<{WIDTH}} | {new.score:.3f}  {new.id}  ({rank})")
    print("why:")
    for hit in after[:3]:
        assert hit.attribution is not None
        terms = [term for term in hit.attribution.steering if term.value]
        parts = [f"{term.value:+.3f} steering {term.name!r} ({term.side})" for term in terms]
        parts += [f"{part.value:+.3f} {part.label}" for part in hit.attribution.top(3)]
        parts.append(f"{hit.attribution.bias:+.3f} common to all, {hit.attribution.residual:+.3f} unexplained")
        print(textwrap.fill(f"{hit.id}: " + "; ".join(parts), 2 * WIDTH, initial_indent="  ", subsequent_indent="    "))


def main() -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder for corpus, SAE and store")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--strength", type=float, default=0.5)
    arguments = parser.parse_args()
    start = time.monotonic()
    retriever = prepare(arguments.data)
    print(f"ready after {time.monotonic() - start:.0f} s\n")
    before = retriever.search(arguments.question, k=5)
    for word in perspectives(retriever):
        after = retriever.search(arguments.question, k=5, steer={word: arguments.strength})
        show(arguments.question, before, after, word, arguments.strength)
    return 0


if __name__ == "__main__":
    sys.exit(main())
