"""Gathers the training texts of the bundled SAE, without duplicates and without texts of the test sets.

    python train/base_corpus.py --data DATA --clones CLONES --output base
    sae-steer train --config train/recipes/base-minilm.toml --corpus base/corpus.jsonl --queries base/queries.jsonl \
        --output base/sae

The sources are listed in `train/base-sources.toml`. `manifest.json` records what each gave and a hash of its texts.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).parent))

from base_readers import READERS, Text, rows

from sae_steer_retriever.corpus.passage import Passage
from sae_steer_retriever.corpus.query_texts import query_texts

SOURCES = Path(__file__).with_name("base-sources.toml")
# Thirteen words in a row are no coincidence; other work on contamination uses the same number.
SHARED_WORDS = 13
SHORTEST = 12
SEED = 0


@dataclass
class Count:
    """Counts of a source's texts, by what happened to them."""

    read: int = 0
    short: int = 0
    duplicates: int = 0
    measured: int = 0
    left_out: int = 0
    kept: int = 0
    sentences: int = 0


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits."""
    return "".join(sign if sign.isalnum() else " " for sign in text.lower()).split()


def shingles(text: str) -> Iterator[int]:
    """Hashes of all runs of thirteen words; one hash of the whole text if it is shorter."""
    own = words(text)
    for start in range(max(1, len(own) - SHARED_WORDS + 1)):
        joined = " ".join(own[start : start + SHARED_WORDS])
        yield int.from_bytes(hashlib.blake2b(joined.encode(), digest_size=8).digest(), "little")


class Sieve:
    """Keeps each text once, and none that overlaps with a test set."""

    def __init__(self, measured_on: Iterable[Path]) -> None:
        self._seen: set[bytes] = set()
        self._measured: set[int] = set()
        for path in measured_on:
            for text in rows(path, {}):
                self._measured.update(shingles(f"{text.title} {text.text}"))

    def keep(self, text: Text, count: Count) -> bool:
        """Whether the text is kept; counts the reason if not."""
        whole = f"{text.title} {text.text}"
        count.read += 1
        if len(text.text) < SHORTEST:
            count.short += 1
            return False
        digest = hashlib.blake2b(" ".join(words(whole)).encode(), digest_size=16).digest()
        if digest in self._seen:
            count.duplicates += 1
            return False
        self._seen.add(digest)
        if not self._measured.isdisjoint(shingles(whole)):
            count.measured += 1
            return False
        return True


def place(path: str, roots: dict[str, Path]) -> Path:
    """The file that a source's path names."""
    root, _, rest = path.partition("/")
    return roots[root] / rest


def gather(sources: list[dict[str, Any]], sieve: Sieve, roots: dict[str, Path], output: Path) -> dict[str, Any]:
    """Write corpus.jsonl and queries.jsonl; return the manifest."""
    manifest: dict[str, Any] = {}
    with (
        (output / "corpus.jsonl").open("w", encoding="utf-8") as corpus,
        (output / "queries.jsonl").open("w", encoding="utf-8") as queries,
    ):
        for source in sources:
            count, digest = Count(), hashlib.blake2b(digest_size=16)
            read = READERS[source["reader"]](place(source.get("path", "data/"), roots), source)
            kept = [text for text in read if sieve.keep(text, count)]
            if (most := source.get("most")) and len(kept) > most:
                count.left_out = len(kept) - most
                kept = [kept[row] for row in sorted(random.Random(SEED).sample(range(len(kept)), most))]
            count.kept = len(kept)
            stream = queries if source.get("role") == "query" else corpus
            for number, text in enumerate(kept):
                digest.update(write(stream, {"_id": f"{source['name']}-{number}", **text._asdict()}))
            count.sentences = write_sentences(queries, kept, source)
            told = {key: source[key] for key in ("what", "licence", "repository", "commit") if key in source}
            told["role"] = source.get("role", "passage")
            manifest[source["name"]] = {**told, **vars(count), "hash": digest.hexdigest()}
            sys.stderr.write(f"{source['name']}: {vars(count)}\n")
    return manifest


def write(stream: TextIO, row: dict[str, str]) -> bytes:
    """Write one line of JSON without empty fields; return the line."""
    line = json.dumps({key: value for key, value in row.items() if value}, ensure_ascii=False)
    stream.write(line + "\n")
    return line.encode()


def write_sentences(queries: TextIO, kept: Sequence[Text], source: dict[str, Any]) -> int:
    """Write titles and sentences of a source's passages as queries; return their number."""
    if not (per_passage := source.get("sentences", 0)):
        return 0
    passages = [Passage(str(row), f"{text.title}\n{text.text}".strip(), text.title) for row, text in enumerate(kept)]
    found = query_texts(passages, seed=SEED, per_passage=per_passage)
    for number, query in enumerate(found):
        write(queries, {"_id": f"{source['name']}-sentence-{number}", "text": query.text})
    return len(found)


def main() -> None:
    """Gather the sources."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with base/, perspectives/ and the test sets")
    parser.add_argument(
        "--clones", type=Path, required=True, help="folder with clones of the repositories in base-sources.toml"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for corpus, queries and manifest")
    arguments = parser.parse_args()
    csv.field_size_limit(10_000_000)
    settings = tomllib.loads(SOURCES.read_text(encoding="utf-8"))
    roots = {"data": arguments.data, "clones": arguments.clones}
    arguments.output.mkdir(parents=True, exist_ok=True)
    sieve = Sieve(place(path, roots) for path in settings["measured_on"]["paths"])
    manifest = gather(settings["source"], sieve, roots, arguments.output)
    (arguments.output / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
