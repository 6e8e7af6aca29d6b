"""`sae-steer features annotate`: give a feature a name of one's own."""

from __future__ import annotations

import argparse
import logging

from sae_steer_retriever.cli.feature_listing import feature_data
from sae_steer_retriever.cli.feature_options import OpenedCatalog, embedder_of
from sae_steer_retriever.cli.outcome import Outcome, UsageError
from sae_steer_retriever.errors import ArtifactError, quoted

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `annotate` takes."""
    parser.add_argument("feature", metavar="ID", help="the feature's id")
    parser.add_argument("label", nargs="*", metavar="LABEL", help="its new name, a few words")
    parser.add_argument("--note", metavar="TEXT", help="anything else to keep with the name")
    parser.add_argument("--remove", action="store_true", help="take your name back: the generated one counts again")


def annotate(arguments: argparse.Namespace, opened: OpenedCatalog) -> Outcome:
    """Name a feature, or take the name back.

    Raises:
        UsageError: The id is none, or both or neither of a label and --remove are given.
        SAESteerError: There is no such feature, or the SAE's folder cannot be written to.
        ValueError: The label cannot be one.
    """
    from sae_steer_retriever.features.names import feature_id, folded

    catalog = opened.catalog
    latent = feature_id(arguments.feature)
    if latent is None:
        raise UsageError(f"{quoted(arguments.feature)} is no feature's id; `sae-steer features search` finds it.")
    label = " ".join(arguments.label)
    if bool(arguments.label) == arguments.remove:
        raise UsageError("give the feature's new name, or --remove to take yours back.")
    before = catalog[latent].name
    if arguments.remove:
        feature = catalog.remove_annotation(latent)
    else:
        from sae_steer_retriever.features.annotations import checked_label

        label = checked_label(label)  # before the encoder is loaded for it
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
        others = ", ".join(f"#{other}" for other in alike)
        lines.append(f"{others} has this name too: steering by it means all of them")
    note = catalog.annotations.names[latent].note if latent in catalog.annotations.names else None
    data = {**feature_data(feature), "before": before, "note": note, "same_label": alike}
    return Outcome("\n".join(lines), data)
