"""Does a name that a person types find the feature that they mean? 60 concepts of 20 Newsgroups and Reuters-21578.

    python benchmarks/name_resolution.py --data FOLDER --corpus corpus.jsonl --write-corpus
    sae-steer train --corpus corpus.jsonl --output DIR
    python benchmarks/name_resolution.py --data FOLDER --corpus corpus.jsonl --sae DIR [--json]

Reads `20newsgroups.jsonl.gz` (`_id`, `title`, `text`, `label`) and `reuters21578.jsonl.gz` (`labels`) from FOLDER, and
an SAE that was fitted to both and labelled. The concepts are the 20 groups and the 40 most frequent topics, in words
that were chosen before any feature was looked at.

A feature is right for a concept if at least 14 of the 20 passages in which it is strongest carry the concept's label.
Of the concepts for which any feature is right: for how many is the first feature of `resolve` right?
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.corpus.read_corpus import read_corpus
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.errors import AmbiguousFeatureError, UnknownFeatureError
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.loading import load_sae
from sae_steer_retriever.features.text_reading import Concept, read_concept
from sae_steer_retriever.labelling.gather_evidence import (
    Evidence,
    frequent_features,
    gather_evidence,
    nearest_features,
    read_label_latents,
    strengths,
)
from sae_steer_retriever.sae.topk_sae import TopKSAE

AT = 20
RIGHT_FROM = 0.7
CONCEPTS = {
    "computer graphics": "comp.graphics",
    "Microsoft Windows": "comp.os.ms-windows.misc",
    "PC hardware": "comp.sys.ibm.pc.hardware",
    "Macintosh": "comp.sys.mac.hardware",
    "X Window System": "comp.windows.x",
    "for sale": "misc.forsale",
    "cars": "rec.autos",
    "motorcycles": "rec.motorcycles",
    "baseball": "rec.sport.baseball",
    "hockey": "rec.sport.hockey",
    "encryption": "sci.crypt",
    "electronics": "sci.electronics",
    "medicine": "sci.med",
    "space": "sci.space",
    "Christianity": "soc.religion.christian",
    "guns": "talk.politics.guns",
    "Middle East": "talk.politics.mideast",
    "politics": "talk.politics.misc",
    "religion": "talk.religion.misc",
    "atheism": "alt.atheism",
    "earnings": "earn",
    "acquisitions": "acq",
    "foreign exchange": "money-fx",
    "crude oil": "crude",
    "grain": "grain",
    "trade": "trade",
    "interest rates": "interest",
    "shipping": "ship",
    "wheat": "wheat",
    "corn": "corn",
    "oilseeds": "oilseed",
    "sugar": "sugar",
    "dollar": "dlr",
    "gross national product": "gnp",
    "coffee": "coffee",
    "vegetable oil": "veg-oil",
    "gold": "gold",
    "money supply": "money-supply",
    "natural gas": "nat-gas",
    "livestock": "livestock",
    "soybeans": "soybean",
    "balance of payments": "bop",
    "consumer prices": "cpi",
    "copper": "copper",
    "meat": "carcass",
    "foreign reserves": "reserves",
    "unemployment": "jobs",
    "cocoa": "cocoa",
    "rice": "rice",
    "steel": "iron-steel",
    "cotton": "cotton",
    "aluminium": "alum",
    "yen": "yen",
    "industrial production": "ipi",
    "animal feed": "meal-feed",
    "gasoline": "gas",
    "rubber": "rubber",
    "barley": "barley",
    "zinc": "zinc",
    "petrochemicals": "pet-chem",
}


class Answer(NamedTuple):
    """What a concept's name found.

    Attributes:
        concept: The name.
        found: The first feature of `resolve`, None if it refused.
        precision: Share of the label among its 20 strongest passages.
        how: How it was found, or what was said instead.
        best: The feature with the largest such share.
        best_precision: That share.
    """

    concept: str
    found: int | None
    precision: float
    how: str
    best: int
    best_precision: float


def read_rows(folder: Path) -> Iterator[tuple[str, str, str, frozenset[str]]]:
    """Id, title, text and labels of each passage; 300 ids of Reuters come twice, of which the first are read."""
    seen = set()
    for file in ("20newsgroups", "reuters21578"):
        with gzip.open(folder / f"{file}.jsonl.gz", "rt", encoding="utf-8") as stream:
            for line in stream:
                row = json.loads(line)
                name = f"{file[:2]}-{row['_id']}"
                if name not in seen:
                    seen.add(name)
                    yield name, row["title"], row["text"], frozenset(row.get("labels", [row.get("label")]))


def write_corpus(folder: Path, file: Path) -> None:
    """The corpus in the layout that `sae-steer train --corpus` reads."""
    with file.open("w", encoding="utf-8") as stream:
        for name, title, text, _ in read_rows(folder):
            stream.write(json.dumps({"_id": name, "title": title, "text": text}) + "\n")


def precisions(evidence: Evidence, members: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n,) the share of members among each feature's 20 strongest passages; what is missing to 20 counts as a miss."""
    found = np.zeros(evidence.feature_match.shape[0])
    for feature in range(len(found)):
        rows, _ = evidence.passages(feature)
        found[feature] = members[rows[:AT]].sum() / AT
    return found


def ask(catalog: FeatureCatalog, sae: TopKSAE, embedder: CachedEmbedder, name: str) -> tuple[int | None, str]:
    """The first feature that a name means, and how; None and why not where it is refused."""

    def concept(text: str) -> Concept:
        embedding = embedder.embed_queries([text])
        return read_concept(sae, embedding[0])

    try:
        resolution = catalog.resolve(name, concept)
    except (UnknownFeatureError, AmbiguousFeatureError) as error:
        return None, f"{type(error).__name__}: {error}"
    return resolution.features[0], resolution.how


def answers(data: Path, folder: Path, corpus: Path) -> list[Answer]:
    """Ask for every concept."""
    sae, catalog, embedder = load_sae(folder)
    cached = CachedEmbedder(embedder, progress=True)
    passages = read_corpus(corpus).passages
    vectors = cached.embed_documents([passage.text for passage in passages])
    labels = {name: found for name, _, _, found in read_rows(data)}
    names = strengths(sae, vectors, read_label_latents(sae, vectors))
    evidence = gather_evidence(names, nearest_features(sae, frequent_features(names, sae.config.n)))
    found = []
    for name, label in CONCEPTS.items():
        share = precisions(evidence, np.array([label in labels[passage.id] for passage in passages]))
        feature, how = ask(catalog, sae, cached, name)
        precision = 0.0 if feature is None else float(share[feature])
        best = int(share.argmax())
        found.append(Answer(name, feature, precision, how, best, float(share[best])))
    return found


def table(found: list[Answer]) -> str:
    """One line for each concept, and the sum."""
    lines = [f"{'concept':<24}{'found':>7}{'P@20':>6}{'best':>7}{'P@20':>6}  how"]
    for answer in found:
        shown = "-" if answer.found is None else f"#{answer.found}"
        lines.append(
            f"{answer.concept:<24}{shown:>7}{answer.precision:>6.2f}{'#' + str(answer.best):>7}"
            f"{answer.best_precision:>6.2f}  {answer.how}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sae", type=Path)
    parser.add_argument("--corpus", type=Path, help="where the corpus is, or is to be written")
    parser.add_argument("--write-corpus", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.write_corpus:
        write_corpus(arguments.data, arguments.corpus)
        return 0
    found = answers(arguments.data, arguments.sae, arguments.corpus)
    possible = [answer for answer in found if answer.best_precision >= RIGHT_FROM]
    right = [answer for answer in possible if answer.precision >= RIGHT_FROM]
    ratios = {
        "concepts that have a feature": len(possible) / len(found),
        "of those, found by name": len(right) / max(len(possible), 1),
    }
    if arguments.json:
        print(json.dumps({"ratios": ratios, "answers": [answer._asdict() for answer in found]}))
    else:
        print(table(found))
        print(f"{len(possible)} of {len(found)} concepts have a feature; {len(right)} of these are found by name")
    return 0


if __name__ == "__main__":
    sys.exit(main())
