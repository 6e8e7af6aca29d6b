"""`sae-steer features tries`: the words that activate a feature, with their precision and recall."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import logging
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_steer_retriever.cli.feature_options import DEFAULT_LIMIT, OpenedCatalog, open_catalog
from sae_steer_retriever.cli.feature_passages import cached_embedder, check_source, open_passages
from sae_steer_retriever.cli.runner import Outcome, UsageError, count
from sae_steer_retriever.cli.store_options import make_folder
from sae_steer_retriever.errors import MissingExtraError

if TYPE_CHECKING:
    from sae_steer_retriever.encoders.embedders import Embedder
    from sae_steer_retriever.features.catalog import FeatureCatalog
    from sae_steer_retriever.labelling.measured_tries import MeasuredTrie

logger = logging.getLogger(__name__)

SUMMARY = "find the words that activate a feature by Neuron2Graph, with precision and recall on unseen passages"
# Equal to the settings of `labelling`, which is slow to import.
PASSAGES, MOST_PASSAGES = 16, 512
HOW_CHOICES = ("auto", "split", "prefixes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this action; all actions share `--sae`, `--store`, `--json` and so on."""
    add = parser.add_argument
    add("name", nargs="*", metavar="ID", help="ids, labels or keywords; quote a name of several words")
    add("--all", action="store_true", help="all named features, or the --limit most frequent")
    add("--corpus", type=Path, metavar="PATH", help="the SAE's training documents, in place of --store")
    add(
        "--passages",
        type=_passages,
        default=PASSAGES,
        metavar="N",
        help=f"strongest passages to read per feature, at most {MOST_PASSAGES} (default: {PASSAGES})",
    )
    add(
        "--how",
        choices=HOW_CHOICES,
        default=HOW_CHOICES[0],
        help="split divides a passage's feature match among its tokens (exact for mean-pooling encoders); prefixes "
        "encodes every prefix of it (slow); auto uses split if the encoder allows it (default: auto)",
    )
    add("--substitutes", action="store_true", help="also test other words of the corpus in place of the found ones")
    add("--picture", type=Path, metavar="DIR", help="draw each trie into this folder")
    add("--save", action="store_true", help="save the tries in the SAE's folder, so that `show` prints them")


def run(arguments: argparse.Namespace) -> Outcome:
    """Returns the tries with their precision and recall; saves them on request.

    Raises:
        UsageError: The options contradict each other, or a file does not exist.
        SAESteerError: No feature has the name, the SAE is damaged, the store does not answer, the encoder cannot be
            loaded or split, or matplotlib is not installed.
    """
    _check(arguments)
    opened = open_catalog(arguments)
    if arguments.save:
        _require_evidence(opened)
    embedder = functools.cache(lambda: cached_embedder(opened.sae, arguments))
    features = _features(arguments, opened, embedder)
    passages = open_passages(arguments, opened, embedder)
    if passages is None or not any(text.strip() for text in passages.texts):
        raise UsageError("the store holds no texts: give the indexed documents with --corpus PATH, and --sae DIR.")
    from sae_steer_retriever.labelling.measured_tries import measured_tries

    found = measured_tries(
        opened.sae,
        passages.texts,
        passages.vectors,
        embedder(),
        features,
        seed=int(opened.sae.config.training.get("seed", 0)),
        limit=arguments.passages,
        how=arguments.how,
        substitutes=arguments.substitutes,
    )
    pictures = {} if arguments.picture is None else _draw(found, opened.catalog, arguments.picture)
    saved = _save(found, opened) if arguments.save else []
    lines = _table(found, opened.catalog) if arguments.all else _trees(found, opened.catalog)
    if pictures:
        lines += ["", f"drawn: {', '.join(map(str, pictures.values()))}"]
    if arguments.save:
        lines += ["", f"kept {len(saved)} tries in {opened.folder}: `sae-steer features show` shows them"]
    rows = [_data(feature, one, opened.catalog, pictures.get(feature)) for feature, one in found.items()]
    return Outcome("\n".join(lines), {"passages": len(passages.ids), "features": rows, "saved": saved})


def _check(arguments: argparse.Namespace) -> None:
    if bool(arguments.name) == arguments.all:
        raise UsageError("whose tries? Give ids or names of features, or --all for every named one, not both.")
    if arguments.limit is not None and not arguments.all:
        raise UsageError("--limit goes with --all: features given by name are all read.")
    check_source(arguments)
    if arguments.corpus is None and arguments.store is None:
        raise UsageError("tries are made from passages: give --corpus PATH, or --store DIR.")
    if arguments.picture is not None:
        # Checked now, not after minutes of work.
        if importlib.util.find_spec("matplotlib") is None:
            raise MissingExtraError("drawing a trie", "evaluate")
        make_folder(arguments.picture, "--picture")


def _require_evidence(opened: OpenedCatalog) -> None:
    from sae_steer_retriever.features.evidence import EVIDENCE_FILE

    if not (opened.folder / EVIDENCE_FILE).is_file():
        raise UsageError(
            f"--save: {opened.folder} has no {EVIDENCE_FILE} to save tries in: create it with "
            "`sae-steer features label`."
        )


def _features(arguments: argparse.Namespace, opened: OpenedCatalog, embedder: Callable[[], Embedder]) -> list[int]:
    from sae_steer_retriever.features.names import feature_id
    from sae_steer_retriever.features.text_reading import read_concept

    catalog = opened.catalog
    if arguments.all:
        named = sorted(catalog.labelled, key=lambda feature: (-feature.frequency, feature.id))
        if not named:
            raise UsageError(f"no feature of {opened.folder} has a name: give ids, or name them with `features label`.")
        return [feature.id for feature in named[: arguments.limit]]
    found: list[int] = []
    for name in arguments.name:
        latent = feature_id(name)
        if latent is not None:
            found.append(catalog[latent].id)
        else:
            meant = catalog.resolve(name, lambda text: read_concept(opened.sae, embedder().embed_queries([text])[0]))
            found += meant.features
    return list(dict.fromkeys(found))


def _draw(found: Mapping[int, MeasuredTrie], catalog: FeatureCatalog, folder: Path) -> dict[int, Path]:
    from sae_steer_retriever.labelling.trie_picture import draw_trie

    return {
        feature: draw_trie(one.trie, folder / f"trie-{feature}.png", title=f"#{feature} {catalog.name(feature)}")
        for feature, one in found.items()
        if one.trie.roots
    }


def _save(found: Mapping[int, MeasuredTrie], opened: OpenedCatalog) -> list[int]:
    """Saves the tries in the SAE's evidence; returns the features saved."""
    from sae_steer_retriever.features.evidence import read_evidence, write_evidence

    evidence = read_evidence(opened.folder, opened.sae.fingerprint)
    saved = []
    for feature, one in found.items():
        if feature in evidence:
            trie = one.trie.to_json() if one.trie.roots else None
            evidence[feature] = dataclasses.replace(evidence[feature], trie=trie)
            saved += [feature] if trie else []
        elif one.trie.roots:
            logger.warning("the trie of #%d is not saved: no passage had the feature when it was labelled", feature)
    write_evidence(opened.folder, evidence, opened.sae.fingerprint)
    return saved


def _trees(found: Mapping[int, MeasuredTrie], catalog: FeatureCatalog) -> list[str]:
    lines: list[str] = []
    for feature, one in found.items():
        lines += ["", f"#{feature}  {catalog.name(feature)}", _measured(one)]
        tree = one.trie.to_text().splitlines()
        lines += [f"    {line}" for line in tree] if tree else [f"    {_empty(one)}"]
    return lines[1:]


def _empty(one: MeasuredTrie) -> str:
    if not one.made_of:
        return "no passage to make it from has the feature"
    return "in no passage do a few words activate the feature"


def _measured(one: MeasuredTrie) -> str:
    return (
        f"precision {_share(one.score.precision)}, recall {_share(one.score.recall)} on {one.having:,} unseen passages "
        f"with it and {one.lacking:,} without; made of {one.made_of:,} passages"
    )


def _table(found: Mapping[int, MeasuredTrie], catalog: FeatureCatalog) -> list[str]:
    precision, recall = (
        _median(getattr(one.score, which) for one in found.values()) for which in ("precision", "recall")
    )
    empty = sum(not one.trie.roots for one in found.values())
    lines = [
        f"{len(found)} tries, {empty} of them empty; median precision {_share(precision)}, recall {_share(recall)} on "
        "unseen passages",
        f"{'id':>7}  {'precision':>9}  {'recall':>6}  words  (of: label)",
    ]
    shown: Sequence[tuple[int, MeasuredTrie]] = list(found.items())[:DEFAULT_LIMIT]
    for feature, one in shown:
        words = ", ".join(one.trie.words(5)) or "-"
        numbers = f"{_share(one.score.precision):>9}  {_share(one.score.recall):>6}"
        lines.append(f"{'#' + str(feature):>7}  {numbers}  {words}  (of: {catalog.name(feature)})")
    if len(found) > len(shown):
        lines.append(f"and {len(found) - len(shown)} more (--json lists all)")
    return lines


def _data(feature: int, one: MeasuredTrie, catalog: FeatureCatalog, picture: Path | None) -> dict[str, Any]:
    return {
        "id": feature,
        "label": catalog[feature].label,
        "name": catalog.name(feature),
        "words": list(one.trie.words()),
        "trie": one.trie.to_json(),
        "precision": one.score.precision,
        "recall": one.score.recall,
        "made_of": one.made_of,
        "having": one.having,
        "lacking": one.lacking,
        "picture": None if picture is None else str(picture),
    }


def _median(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return statistics.median(known) if known else math.nan


def _share(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _passages(text: str) -> int:
    number = count(text)
    if number > MOST_PASSAGES:
        raise argparse.ArgumentTypeError(f"{text!r}: expected at most {MOST_PASSAGES} passages a feature")
    return number
