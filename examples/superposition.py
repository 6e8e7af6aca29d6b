"""Draws every picture and prints every number of docs/tutorial.md, from the bundled SAE.

    python examples/superposition.py                                              # pictures to ./tutorial
    python examples/superposition.py --output docs/tutorial --page docs/tutorial.md   # and fill in the page's numbers

Needs the extras `evaluate` (matplotlib) and `offline` (the encoder's weights), no network and no data set: the texts
are 192 sentences in `superposition_texts.py` and docstrings of the standard library. A minute or two on two cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import superposition_pictures as pictures
import torch
from standard_library import collect
from superposition_geometry import CLOSE, cosines, directions_that_fit, recovery_curves
from superposition_page import decimals, filled, table
from superposition_reading import (
    STANDS_IN,
    Reading,
    SenseFeature,
    absorption,
    best_texts,
    both_ways,
    has_name,
    products,
    purity,
    read,
    sense_features,
    tell_apart,
    tell_apart_by_examples,
    title,
    unexplained,
)
from superposition_steering import PLACES, STRENGTHS, sentence_ids, steer_all
from superposition_texts import FULL_SENTENCE, SENSES

from sae_steer_retriever import SteeredRetriever, TopKSAE
from sae_steer_retriever.encoders.embedders import Embedder
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.explain.attribution import Explainer
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.features.feature import CLEAR_FROM
from sae_steer_retriever.features.loading import load_sae
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.directions import random_directions
from sae_steer_retriever.store.chroma_store import ChromaStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOCSTRINGS = 400
DIMENSIONS = (2, 8, 32, 128, 384)
PLANTED, TRIALS = (1, 2, 4, 8, 16, 32, 64, 128), 24
CODE_SIZES = (4, 8, 16, 32, 64, 128)


class Parts(NamedTuple):
    """The SAE and the texts of the tutorial.

    Attributes:
        sae: The dictionary.
        catalog: The labels of its features.
        embedder: Its encoder, with a cache.
        sentences: The 192 sentences, encoded.
        docstrings: Embeddings of the docstrings.
        everything: Sentences and docstrings, encoded.
        random: (n, d) random directions to compare with.
    """

    sae: TopKSAE
    catalog: FeatureCatalog
    embedder: Embedder
    sentences: Reading
    docstrings: Array
    everything: Reading
    random: Array


Drawn = tuple[dict[str, str], dict[str, "Figure"]]
"""Markdown by the name of its place in the page, and pictures by the stem of their file."""


def prepare(sae_path: str | None) -> Parts:
    """Load the SAE, embed and encode the texts."""
    sae, catalog, encoder = load_sae(sae_path)
    embedder = CachedEmbedder(encoder)
    texts = [text for sense in SENSES for text in sense.sentences]
    groups = [group for group, sense in enumerate(SENSES) for _ in sense.sentences]
    passages = list(collect().values())
    others = passages[:: max(1, len(passages) // DOCSTRINGS)][:DOCSTRINGS]
    vectors, docstrings = embedder.embed_documents(texts), embedder.embed_documents(others)
    both = np.concatenate([vectors, docstrings])
    drawn = random_directions(sae.config.n, sae.config.d, torch.Generator().manual_seed(0)).numpy()
    everything = read(sae, [*texts, *others], [*groups, *[-1] * len(others)], both)
    return Parts(sae, catalog, embedder, read(sae, texts, groups, vectors), docstrings, everything, drawn)


def directions(parts: Parts) -> Drawn:
    """Sections 1 and 2: single numbers against features, and how many directions fit."""
    sentences, groups = parts.sentences, parts.sentences.groups
    ways = both_ways(sentences.vectors - parts.sae.bias)
    rows = [
        purity("dimensions, upwards and downwards", ways, groups),
        purity("random directions", products(sentences.vectors - parts.sae.bias, parts.random), groups),
        purity("features", sentences.matches, groups),
    ]
    chance = 7 / (len(groups) - 1)
    draw = np.random.default_rng(0)
    examples = [["read by", "its three best of the 192 sentences"]]
    for dimension in sorted(draw.choice(parts.sae.config.d, 3, replace=False).tolist()):
        examples.append([f"dimension {dimension}", "<br>".join(best_texts(sentences, ways[:, dimension]))])
    labelled = [feature for feature in rows[2].chosen if parts.catalog[feature].label]
    for feature in sorted(draw.choice(labelled, 3, replace=False).tolist()):
        name = title(parts.catalog, feature)
        examples.append([name, "<br>".join(best_texts(sentences, sentences.matches[:, feature]))])
    shares = [["", "how many name five sentences or more", "pairs of their five best that are of one meaning"]]
    shares += [[row.name, f"{row.directions:,}", f"{row.share:.2f}"] for row in rows]
    shares.append(["any two sentences", "", f"{chance:.2f}"])
    own, drawn = cosines(parts.sae.decoder), cosines(parts.random)
    fitting = {d: directions_that_fit(d) for d in DIMENSIONS}
    near = [["", f"pairs with a cosine of {CLOSE:g} or more in size", "cosine with the nearest, median"]]
    for name, found in (("this SAE's features", own), ("as many random directions", drawn)):
        near.append([name, f"{found.close:.2%}", f"{np.median(found.nearest):.2f}"])
    room = [["dimensions", *map(str, fitting)], ["directions kept", *(f"{count:,}" for count in fitting.values())]]
    blocks = {"examples": table(examples), "purity": table(shares), "cosines": table(near), "room": table(room)}
    return blocks, {"directions": pictures.draw_directions(own, drawn, fitting)}


def recovery(parts: Parts) -> Drawn:
    """Sections 2 and 3: features recovered from planted sums and from real text."""
    curves = recovery_curves(parts.sae.decoder, parts.random, PLANTED, TRIALS)
    planted = [["features in the sum", *map(str, PLANTED)]]
    planted += [[curve.name, *decimals(curve.shares)] for curve in curves]
    rest = {
        name: {k: unexplained(parts.sae, vectors, k) for k in CODE_SIZES}
        for name, vectors in (("192 sentences", parts.sentences.vectors), ("docstrings", parts.docstrings))
    }
    left = [["features in the code", *map(str, CODE_SIZES)]]
    left += [[name, *decimals(tuple(shares.values()))] for name, shares in rest.items()]
    picture = pictures.draw_recovery(curves, rest, parts.sae.config.k)
    return {"recovery": table(planted), "unexplained": table(left)}, {"recovery": picture}


def decomposition(parts: Parts) -> Drawn:
    """Section 3: the parts of one sentence's embedding."""
    x: Array = parts.embedder.embed_documents([FULL_SENTENCE])[0]
    found = Explainer(x, parts.sae.encode(x[None]), parts.sae, lambda latent: title(parts.catalog, latent)).explain(x)
    picture = pictures.draw_decomposition(found, FULL_SENTENCE, parts.sae.config.k_labels)
    named = sum(part.value for part in found.features[: parts.sae.config.k_labels])
    rows = [
        ["largest eight features", "other features", "bias", "unexplained", "sum"],
        [f"{part:.3f}" for part in (named, sum(p.value for p in found.features) - named, found.bias, found.residual)],
    ]
    rows[1].append(f"{found.total:.6f}")
    return {"decomposition": table(rows)}, {"decomposition": picture}


def meanings(parts: Parts) -> Drawn:
    """Section 4: the feature of each meaning."""
    sentences, groups = parts.sentences, parts.sentences.groups
    centred = sentences.vectors - parts.sae.bias
    told = [
        tell_apart("one dimension", both_ways(centred), groups),
        tell_apart("one random direction", products(centred, parts.random), groups),
        tell_apart("one feature", sentences.matches, groups),
        tell_apart_by_examples(centred, groups),
    ]
    apart = [["", "AUROC, mean", "without a mistake"]]
    apart += [[row.name, f"{row.auroc:.3f}", f"{row.perfect} of {row.of}"] for row in told]
    named = has_name(sentences, parts.sae.config.n, parts.sae.config.k_labels)
    found = sense_features(sentences, named, parts.catalog)
    rows = [["meaning", "feature", "own, of 4", "other meaning, of 4", f"elsewhere, of {len(groups) - 16}"]]
    for one in found:
        name = title(parts.catalog, one.feature)
        rows.append([SENSES[one.group].name, name, str(one.own), str(one.other), str(one.elsewhere)])
    clean = sum(one.own >= 3 and one.other == 0 for one in found)
    summary = f"{clean} of {len(found)} have it in at least three of their own sentences and in none of the other's."
    order = sorted(found, key=lambda one: (one.own - one.other, one.margin))
    picture = pictures.draw_senses(sentences, [order[-1], order[-2], order[1], order[0]], named, parts.catalog)
    blocks = {"told": table(apart), "senses": f"{table(rows)}\n\n{summary}", **_relatives(parts, order[-1])}
    return blocks, {"meanings": picture}


def _relatives(parts: Parts, clearest: SenseFeature) -> dict[str, str]:
    page = parts.catalog.show(clearest.feature, directions=parts.sae.decoder)
    family = [[f"nearest to {title(parts.catalog, clearest.feature)}", "cosine"]]
    family += [[title(parts.catalog, near.feature.id), f"{near.cosine:.2f}"] for near in page.neighbours]
    missing = absorption(parts.everything, parts.sae, parts.catalog)
    text = (
        f"In {missing.strong:,} pairs of a text and a feature the match says that the text has it. "
        f"In {missing.absent:.0%} of them the feature is not among the {parts.sae.config.k} of the code; in "
        f"{missing.replaced:.0%} of these an active feature is a near relative of it (cosine of {STANDS_IN:g} or more)."
    )
    if missing.example is not None:
        absent, instead, count = missing.example
        stand_in, missed = title(parts.catalog, instead), title(parts.catalog, absent)
        text += f" Most often, in {count} texts, {stand_in} stands where {missed} could."
    return {"relatives": table(family), "absorption": text}


def frequencies(parts: Parts) -> Drawn:
    """Section 4: how often features occur, and how good their labels are."""
    frequency = parts.catalog.calibration.frequency
    scores = [feature.label_score for feature in parts.catalog.features if feature.label_score is not None]
    order = np.sort(frequency)[::-1]
    rows = [
        ["features", "dead", "most frequent", "median", "share of all names that the top 1 % take"],
        [
            f"{len(frequency):,}", f"{int((frequency == 0).sum()):,}", f"{order[0]:.1%}", f"{np.median(order):.2%}",
            f"{order[: max(1, len(order) // 100)].sum() / order.sum():.0%}",
        ],
    ]  # fmt: skip
    judged = [
        ["labelled", "scored", "AUROC against near misses, median", f"below {CLEAR_FROM:g}: shown as unclear"],
        [
            f"{len(parts.catalog.labelled):,}", f"{len(scores):,}", f"{np.median(scores):.3f}" if scores else "",
            f"{np.mean(np.array(scores) < CLEAR_FROM):.1%}" if scores else "",
        ],
    ]  # fmt: skip
    picture = pictures.draw_frequencies(frequency, scores, CLEAR_FROM)
    return {"frequencies": table(rows), "labels": table(judged)}, {"frequencies": picture}


def steering(parts: Parts) -> Drawn:
    """Section 5: the effect of features on a search."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        store = ChromaStore.open(parts.sae, path=folder)
        store.add(sentence_ids(), parts.sentences.texts, embedder=parts.embedder)
        benefit = steer_all(SteeredRetriever(store, parts.embedder, parts.catalog))
    rows = [["", *(f"{strength:+g}" if strength else "0" for strength in STRENGTHS), "word appended"]]
    rows.append([f"wanted meaning in the first {PLACES}", *decimals(benefit.mean("shares") + benefit.mean("appended"))])
    rows.append(["unsteered score kept", *decimals(benefit.mean("kept") + benefit.mean("appended_kept"))])
    unnamed = ", ".join(sense.name for sense in benefit.unnamed) or "none"
    text = (
        f"{table(rows)}\n\nMean of {len(benefit.steered)} questions; left out, because no feature answers to the "
        f"word, or unrelated ones do: {unnamed}. "
        f"Over all hits the parts of a score sum to it within {benefit.error:.1e}."
    )
    return {"steering": text}, {"steering": pictures.draw_steering(benefit.clearest, benefit)}


def setup(parts: Parts) -> Drawn:
    """The SAE and the texts that everything was measured with."""
    c = parts.sae.config
    text = (
        f"SAE `{parts.sae.fingerprint}` for {c.encoder.name}: {c.n:,} features in {c.d} dimensions, K = {c.k}, "
        f"the first {c.k_labels} are a text's names. Texts: {len(parts.sentences.texts)} sentences, "
        f"{len(parts.docstrings)} docstrings of Python {sys.version_info.major}.{sys.version_info.minor}."
    )
    return {"setup": text}, {}


CHAPTERS: tuple[Callable[[Parts], Drawn], ...] = (
    setup, directions, recovery, decomposition, meanings, frequencies, steering,
)  # fmt: skip


def main() -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sae", help="folder of another SAE (default: the bundled one for all-MiniLM-L6-v2)")
    parser.add_argument("--output", type=Path, default=Path("tutorial"), help="folder for the pictures")
    parser.add_argument("--page", type=Path, help="Markdown page to fill the measured numbers into")
    arguments = parser.parse_args()
    parts = prepare(arguments.sae)
    arguments.output.mkdir(parents=True, exist_ok=True)
    blocks: dict[str, str] = {}
    for chapter in CHAPTERS:
        texts, drawn = chapter(parts)
        blocks |= texts
        for stem, canvas in drawn.items():
            pictures.save(canvas, arguments.output / f"{stem}.png")
        for name, text in texts.items():
            print(f"{name}\n\n{text}\n", flush=True)
    if arguments.page is not None:
        arguments.page.write_text(filled(arguments.page.read_text(encoding="utf-8"), blocks), encoding="utf-8")
    print(f"pictures -> {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
