"""`sae-steer features`: look features up in the catalog of an SAE."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from sae_steer_retriever.commands.execution import add_common_arguments, count
from sae_steer_retriever.commands.location import (
    DEFAULT_COLLECTION,
    StoreLocation,
    require_collection,
    sae_of,
)
from sae_steer_retriever.commands.outcome import Outcome, UsageError
from sae_steer_retriever.errors import ArtifactError

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

    from sae_steer_retriever.features import Concept, Feature, FeatureCatalog
    from sae_steer_retriever.sae import TopKSAE

logger = logging.getLogger(__name__)

SUMMARY = "look at the features of an SAE"
_DEFAULT_LIMIT = 20
_NEAREST = 5
_SHOWN_CHARACTERS = 240


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options and the three things to do: `list` (also without a word), `search` and `show`."""
    _add_options(parser, nested=False)
    parser.set_defaults(action="list")
    actions = parser.add_subparsers(metavar="list | search TEXT | show ID", dest="action", required=False)
    listing = actions.add_parser("list", help="the named features, the most frequent first (default)")
    search = actions.add_parser("search", help="features that answer to a text, by their words and by meaning")
    search.add_argument("text", nargs="+", metavar="TEXT", help="words, or a description")
    show = actions.add_parser("show", help="all about a feature, or about those that a name means")
    show.add_argument("name", nargs="+", metavar="ID", help="id, label or keyword")
    for action in (listing, search, show):
        _add_options(action, nested=True)


def _add_options(parser: argparse.ArgumentParser, *, nested: bool) -> None:
    """Add the options, which may stand before or after the word for what to do."""

    def default(value: object) -> Any:  # noqa: ANN401 - argparse takes any default
        return argparse.SUPPRESS if nested else value

    parser.add_argument("--sae", default=default(None), metavar="DIR", help="folder of the SAE")
    parser.add_argument(
        "--store",
        type=StoreLocation.parse,
        default=default(None),
        metavar="DIR|http://HOST:PORT",
        help="a store: its SAE is used where --sae is not given, and `show` shows example passages",
    )
    parser.add_argument(
        "--collection",
        default=default(DEFAULT_COLLECTION),
        metavar="NAME",
        help=f"the store's documents collection (default: {DEFAULT_COLLECTION})",
    )
    parser.add_argument(
        "--limit",
        type=count,
        default=default(_DEFAULT_LIMIT),
        metavar="N",
        help=f"features to list at most (default: {_DEFAULT_LIMIT})",
    )
    add_common_arguments(parser, nested=nested)


class _Opened(NamedTuple):
    """What the options name: the SAE with its catalog, and the store where one is given."""

    sae: TopKSAE
    catalog: FeatureCatalog
    client: ClientAPI | None


def run(arguments: argparse.Namespace) -> Outcome:
    """List, search or show features.

    Raises:
        UsageError: Neither an SAE nor a store is named, or it is not there.
        SAESteerError: The SAE is damaged, the store does not answer, or a name means no feature.
    """
    opened = _open(arguments)
    if arguments.action == "search":
        text = " ".join(arguments.text)
        found = opened.catalog.search(text, concept=_concept_if_possible(opened.sae, text), limit=arguments.limit)
        rows = {"query": text, "features": [_row_data(feature) for feature in found]}
        return Outcome("\n".join(_table(found)) if found else f"no feature answers to {text!r}", rows)
    if arguments.action == "show":
        return _show(arguments, opened)
    catalog = opened.catalog
    named = sorted(catalog.labelled, key=lambda feature: (-feature.frequency, feature.id))
    shown = named[: arguments.limit]
    alive = int((catalog.calibration.count > 0).sum())
    head = f"{len(named)} named features; {alive} of {len(catalog)} latents are active in the corpus"
    if len(shown) < len(named):
        head += f"; the {len(shown)} most frequent (--limit shows more)"
    data: dict[str, Any] = {
        "latents": len(catalog),
        "alive": alive,
        "named": len(named),
        "features": [_row_data(feature) for feature in shown],
    }
    return Outcome("\n".join([head, *_table(shown)]), data)


def _open(arguments: argparse.Namespace) -> _Opened:
    if arguments.sae is None and arguments.store is None:
        raise UsageError("whose features? Name an SAE with --sae DIR, or a store with --store DIR.")
    from sae_steer_retriever.features import FeatureCatalog
    from sae_steer_retriever.sae import TopKSAE, resolve_folder

    client = None
    location = arguments.sae
    if arguments.store is not None:
        client = arguments.store.connect(create=False)
        require_collection(client, arguments.store, arguments.collection)
        location = sae_of(arguments.sae, client, arguments.collection)
    folder = resolve_folder(location)
    sae = TopKSAE.from_pretrained(folder)
    return _Opened(sae, FeatureCatalog.load(folder, sae.fingerprint), client)


def _concept(sae: TopKSAE, text: str) -> Concept:
    """The text as the SAE reads it."""
    from sae_steer_retriever.embedders import as_embedder
    from sae_steer_retriever.features import Concept

    embedding = as_embedder(sae.config.encoder.name).embed_queries([text])
    return Concept(embedding[0], sae.encode(embedding))


def _concept_if_possible(sae: TopKSAE, text: str) -> Concept | None:
    """The same; None where the encoder cannot be had, so that a search compares words alone."""
    try:
        return _concept(sae, text)
    except ArtifactError as error:
        logger.warning("only words are compared, not meanings: %s", error)
        return None


def _table(features: list[Feature]) -> list[str]:
    lines = [f"{'id':>7}  {'score':>5}  {'frequency':>9}  label"]
    lines += [
        f"{'#' + str(feature.id):>7}  {_score(feature):>5}  {feature.frequency:>9.2%}  {feature.name}"
        for feature in features
    ]
    return lines


def _score(feature: Feature) -> str:
    return "-" if feature.label_score is None else f"{feature.label_score:.2f}"


def _show(arguments: argparse.Namespace, opened: _Opened) -> Outcome:
    catalog = opened.catalog
    name = " ".join(arguments.name)
    digits = name.strip().removeprefix("#")
    if digits.isdecimal():  # a dead feature can be looked at, though not steered by
        features = [catalog[int(digits)]]
    else:
        resolution = catalog.resolve(name, lambda text: _concept(opened.sae, text))
        features = [catalog[latent] for latent in resolution.features]
    blocks: list[str] = []
    rows: list[dict[str, Any]] = []
    for feature in features:
        near = _nearest(feature, opened)
        passages = _passages(arguments, feature, opened.client)
        blocks.append("\n".join(_feature_lines(feature, near, passages)))
        rows.append(
            {
                **_row_data(feature),
                "keywords": list(feature.keywords),
                "unit": feature.unit,
                "active_in": int(catalog.calibration.count[feature.id]),
                "nearest": [{"id": other.id, "label": other.name, "cosine": cosine} for other, cosine in near],
                "examples": [{"id": name, "text": passages.get(name)} for name in feature.examples],
            }
        )
    return Outcome("\n\n".join(blocks), {"query": name, "features": rows})


def _nearest(feature: Feature, opened: _Opened) -> list[tuple[Feature, float]]:
    """The named features whose directions are nearest, with their cosines."""
    cosines = opened.sae.decoder @ opened.sae.decoder[feature.id]
    others = [other for other in opened.catalog.labelled if other.id != feature.id]
    others.sort(key=lambda other: (-cosines[other.id], other.id))
    return [(other, float(cosines[other.id])) for other in others[:_NEAREST]]


def _passages(arguments: argparse.Namespace, feature: Feature, client: ClientAPI | None) -> dict[str, str]:
    """The texts of a feature's examples, as far as the store has them."""
    if client is None or not feature.examples:
        return {}
    from sae_steer_retriever.connection import translated

    with translated("reading examples"):
        collection = client.get_collection(arguments.collection, embedding_function=None)
        found = collection.get(ids=list(feature.examples), include=["documents"])
    return {name: text or "" for name, text in zip(found["ids"], found["documents"] or [], strict=True)}


def _feature_lines(feature: Feature, near: list[tuple[Feature, float]], passages: dict[str, str]) -> list[str]:
    lines = [
        f"#{feature.id}  {feature.name}",
        f"keywords   {', '.join(feature.keywords) or '-'}",
        f"score      {_score(feature)}  (how well the label finds the feature's passages: AUROC, 0.5 is chance)",
        f"frequency  {feature.frequency:.2%} of the passages",
        f"unit       {feature.unit:.4f}  (the activation that a strength of 1.0 stands for)",
    ]
    if near:
        lines.append("nearest")
        lines += [f"    {cosine:+.2f}  #{other.id} {other.name}" for other, cosine in near]
    if feature.examples:
        lines.append("examples")
    for name in feature.examples:
        lines.append(f"    {name}")
        text = " ".join(passages.get(name, "").split())
        if text:
            cut = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1].rstrip() + "…"
            lines.append(f"        {cut}")
    return lines


def _row_data(feature: Feature) -> dict[str, Any]:
    return {
        "id": feature.id,
        "label": feature.label,
        "name": feature.name,
        "score": feature.label_score,
        "frequency": feature.frequency,
    }
