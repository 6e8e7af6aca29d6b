"""`sae-steer features show` and `families`: all about one feature, and the groups they form."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from sae_steer_retriever.cli.feature_listing import feature_data, feature_table
from sae_steer_retriever.cli.feature_options import DEFAULT_LIMIT, OpenedCatalog, concept_of, required_text
from sae_steer_retriever.cli.outcome import Outcome

if TYPE_CHECKING:
    from sae_steer_retriever.features.feature_card import FeaturePage


def add_show_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `show` takes."""
    parser.add_argument("name", nargs="+", metavar="ID", help="id, label or keyword")


def add_family_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `families` takes."""
    parser.add_argument("name", nargs="*", metavar="NAME", help="a family's name or number: lists its features")


def show(arguments: argparse.Namespace, opened: OpenedCatalog) -> Outcome:
    """The page of a feature, or of each that a name means."""
    from sae_steer_retriever.features.names import feature_id

    catalog = opened.catalog
    name = required_text(arguments.name, "show what?")
    latent = feature_id(name)
    # By its id a dead feature can be looked at, though not steered by.
    features = (
        (latent,) if latent is not None else catalog.resolve(name, lambda text: concept_of(opened.sae, text)).features
    )
    pages = [catalog.show(feature, directions=opened.sae.decoder) for feature in features]
    pages = [page.with_texts(_texts(arguments, page, opened)) for page in pages]
    text = "\n\n".join(map(str, pages))
    return Outcome(text, {"query": name, "features": [page.to_dict() for page in pages]})


def families(arguments: argparse.Namespace, opened: OpenedCatalog) -> Outcome:
    """The families, those with the most features first; or the features of one."""
    catalog = opened.catalog
    if arguments.name:
        # As it is written in a steering, too.
        name = required_text(arguments.name, "which family?")
        family = catalog.family(re.sub(r"^family:\s*", "", name, flags=re.IGNORECASE))
        members = [catalog[feature] for feature in family.features]
        data = {"id": family.id, "name": family.name, "features": [feature_data(feature) for feature in members]}
        return Outcome("\n".join([f"family #{family.id}  {family.name}", *feature_table(members)]), data)
    ordered = sorted(catalog.families, key=lambda family: (-len(family.features), family.id))
    shown = ordered[: arguments.limit or DEFAULT_LIMIT]
    inside = sum(len(family.features) for family in ordered)
    head = f"{len(ordered)} families of features that passages have together; {inside} of {len(catalog)} are in one"
    if len(shown) < len(ordered):
        head += f"; the {len(shown)} largest (--limit shows more)"
    lines = [head]
    if shown:
        lines.append(f"{'id':>7}  {'features':>8}  name")
        lines += [f"{'#' + str(family.id):>7}  {len(family.features):>8}  {family.name}" for family in shown]
    rows = [{"id": family.id, "name": family.name, "features": list(family.features)} for family in shown]
    return Outcome("\n".join(lines), {"families": rows, "count": len(ordered), "features_in_one": inside})


def _texts(arguments: argparse.Namespace, page: FeaturePage, opened: OpenedCatalog) -> dict[str, str]:
    """The texts of a page's passages, as far as the store has them."""
    if opened.client is None or not page.passages:
        return {}
    from sae_steer_retriever.store.connection import translated

    with translated("reading passages"):
        collection = opened.client.get_collection(arguments.collection, embedding_function=None)
        found = collection.get(ids=list(page.passages), include=["documents"])
    return {name: text or "" for name, text in zip(found["ids"], found["documents"] or [], strict=True)}
