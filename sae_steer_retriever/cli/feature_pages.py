"""The catalog actions of `sae-steer features`: list, search, show, families and annotate."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sae_steer_retriever.cli.feature_options import (
    DEFAULT_LIMIT,
    OpenedCatalog,
    concept_if_possible,
    concept_of,
    embedder_of,
    required_text,
)
from sae_steer_retriever.cli.runner import Outcome, UsageError
from sae_steer_retriever.errors import ArtifactError, quoted

if TYPE_CHECKING:
    from sae_steer_retriever.features.feature import Feature
    from sae_steer_retriever.features.feature_card import FeaturePage

logger = logging.getLogger(__name__)


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `search`."""
    parser.add_argument("text", nargs="+", metavar="TEXT", help="words or a description")
    parser.add_argument("--hubs", action="store_true", help="include features of more than a tenth of the passages")
    parser.add_argument("--dead", action="store_true", help="include features that no passage has")


def add_show_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `show`."""
    parser.add_argument("name", nargs="+", metavar="ID", help="id, label or keyword")


def add_family_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `families`."""
    parser.add_argument("name", nargs="*", metavar="NAME", help="name or number of a family: lists its features")


def add_annotate_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `annotate`."""
    parser.add_argument("feature", metavar="ID", help="the feature's id")
    parser.add_argument("label", nargs="*", metavar="LABEL", help="the new name, a few words")
    parser.add_argument("--note", metavar="TEXT", help="a note to store with the name")
    parser.add_argument("--remove", action="store_true", help="remove your name and restore the generated one")


def list_features(arguments: argparse.Namespace, opened: OpenedCatalog) -> Outcome:
    """Returns the named features, the most frequent first."""
    catalog = opened.catalog
    named = sorted(catalog.labelled, key=lambda feature: (-feature.frequency, feature.id))
    shown = named[: arguments.limit or DEFAULT_LIMIT]
    alive = int((catalog.calibration.count > 0).sum())
    head = f"{len(named)} named features; {alive} of {len(catalog)} latents are active in the corpus"
    if len(shown) < len(named):
        head += f"; the {len(shown)} most frequent (--limit shows more)"
    unmatched = [one.label for one in catalog.annotations.unmatched]
    data: dict[str, Any] = {
        "latents": len(catalog),
        "alive": alive,
        "named": len(named),
        "named_by_a_person": len(catalog.annotations.names),
        "names_without_a_feature": unmatched,
        "features": [_data(feature) for feature in shown],
    }
    lines = [head, *_table(shown)]
    if unmatched:
        lines.append(f"names given to an earlier SAE that match no feature of this one: {'; '.join(unmatched)}")
    return Outcome("\n".join(lines), data)


def search(arguments: argparse.Namespace, opened: OpenedCatalog) -> Outcome:
    """Returns the features that match a text, by their words and by meaning.

    Raises:
        UsageError: The text is empty.
    """
    text = required_text(arguments.text, "search for what?")
    found = opened.catalog.search(
        text,
        concept=concept_if_possible(opened.sae, text),
        limit=arguments.limit or DEFAULT_LIMIT,
        include_hubs=arguments.hubs,
        include_dead=arguments.dead,
    )
    rows = {"query": text, "features": [_data(feature) for feature in found]}
    return Outcome("\n".join(_table(found)) if found else f"no feature answers to {quoted(text)}", rows)


def show(arguments: argparse.Namespace, opened: OpenedCatalog) -> Outcome:
    """Returns the page of a feature, or of every feature that a name means.

    Raises:
        UsageError: The name is empty.
        SAESteerError: No feature has the name or the id.
    """
    from sae_steer_retriever.features.names import feature_id

    catalog = opened.catalog
    name = required_text(arguments.name, "show what?")
    latent = feature_id(name)
    # A dead feature can be shown by its id, although it cannot be steered by.
    features = (
        (latent,) if latent is not None else catalog.resolve(name, lambda text: concept_of(opened.sae, text)).features
    )
    pages = [catalog.show(feature, directions=opened.sae.decoder) for feature in features]
    pages = [page.with_texts(_texts(arguments, page, opened)) for page in pages]
    text = "\n\n".join(map(str, pages))
    return Outcome(text, {"query": name, "features": [page.to_dict() for page in pages]})


def families(arguments: argparse.Namespace, opened: OpenedCatalog) -> Outcome:
    """Returns the families, the largest first, or the features of one family.

    Raises:
        UsageError: The name is empty.
        SAESteerError: No family has the name.
    """
    catalog = opened.catalog
    if arguments.name:
        name = required_text(arguments.name, "which family?")
        # A steering writes it as "family: NAME".
        family = catalog.family(re.sub(r"^family:\s*", "", name, flags=re.IGNORECASE))
        members = [catalog[feature] for feature in family.features]
        data = {"id": family.id, "name": family.name, "features": [_data(feature) for feature in members]}
        return Outcome("\n".join([f"family #{family.id}  {family.name}", *_table(members)]), data)
    ordered = sorted(catalog.families, key=lambda family: (-len(family.features), family.id))
    shown = ordered[: arguments.limit or DEFAULT_LIMIT]
    inside = sum(len(family.features) for family in ordered)
    head = f"{len(ordered)} families of features that occur together; {inside} of {len(catalog)} features are in one"
    if len(shown) < len(ordered):
        head += f"; the {len(shown)} largest (--limit shows more)"
    lines = [head]
    if shown:
        lines.append(f"{'id':>7}  {'features':>8}  name")
        lines += [f"{'#' + str(family.id):>7}  {len(family.features):>8}  {family.name}" for family in shown]
    rows = [{"id": family.id, "name": family.name, "features": list(family.features)} for family in shown]
    return Outcome("\n".join(lines), {"families": rows, "count": len(ordered), "features_in_one": inside})


def annotate(arguments: argparse.Namespace, opened: OpenedCatalog) -> Outcome:
    """Gives a feature a name, or removes the given name.

    Returns:
        The feature with its new and its old name.

    Raises:
        UsageError: The id is malformed, or both or neither of a label and --remove are given.
        SAESteerError: There is no such feature, or the SAE's folder cannot be written to.
        ValueError: The label is unusable.
    """
    from sae_steer_retriever.features.annotations import checked_label
    from sae_steer_retriever.features.names import feature_id, folded

    catalog = opened.catalog
    latent = feature_id(arguments.feature)
    if latent is None:
        raise UsageError(f"{quoted(arguments.feature)} is no feature's id; `sae-steer features search` finds it.")
    if bool(arguments.label) == arguments.remove:
        raise UsageError("give the feature's new name, or --remove to remove yours.")
    before = catalog[latent].name
    if arguments.remove:
        feature = catalog.remove_annotation(latent)
    else:
        label = checked_label(" ".join(arguments.label))  # before the encoder is loaded
        try:
            embedding = embedder_of(opened.sae).embed_queries([label])[0]
        except ArtifactError as error:
            logger.warning("the name is found by its words, not by its meaning: %s", error)
            embedding = None
        feature = catalog.annotate(latent, label, arguments.note, embedding=embedding)
    lines = [f"#{feature.id} is now {feature.name!r}, was {before!r}"]
    if feature.label and not catalog.calibration.count[feature.id]:
        lines.append("no passage of the corpus has this feature: steering by it changes nothing")
    alike = [
        other.id
        for other in catalog.labelled
        if other.id != feature.id and folded(other.label) == folded(feature.label)
    ]
    if alike:
        lines.append(f"{', '.join(f'#{other}' for other in alike)} has this name, too: steering by it uses all of them")
    note = catalog.annotations.names[latent].note if latent in catalog.annotations.names else None
    return Outcome("\n".join(lines), {**_data(feature), "before": before, "note": note, "same_label": alike})


def _table(features: Iterable[Feature]) -> list[str]:
    lines = [f"{'id':>7}  {'score':>5}  {'frequency':>9}  label"]
    for feature in features:
        score = "-" if feature.label_score is None else f"{feature.label_score:.2f}"
        lines.append(f"{'#' + str(feature.id):>7}  {score:>5}  {feature.frequency:>9.2%}  {feature.name}")
    return lines


def _data(feature: Feature) -> dict[str, Any]:
    return {
        "id": feature.id,
        "label": feature.label,
        "name": feature.name,
        "score": feature.label_score,
        "frequency": feature.frequency,
        "label_by": feature.label_by,
    }


def _texts(arguments: argparse.Namespace, page: FeaturePage, opened: OpenedCatalog) -> dict[str, str]:
    """Returns the texts of a page's passages that are in the store."""
    if opened.client is None or not page.passages:
        return {}
    from sae_steer_retriever.store.connection import translated

    with translated("reading passages"):
        collection = opened.client.get_collection(arguments.collection, embedding_function=None)
        found = collection.get(ids=list(page.passages), include=["documents"])
    return {name: text or "" for name, text in zip(found["ids"], found["documents"] or [], strict=True)}
