"""`sae-steer features`: look features up in the catalog of an SAE, name them, and steer by examples."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from sae_steer_retriever.cli import (
    feature_annotation,
    feature_contrast,
    feature_pages,
    feature_tries,
)
from sae_steer_retriever.cli import (
    feature_labels as labelling,
)
from sae_steer_retriever.cli.feature_listing import feature_data, feature_table
from sae_steer_retriever.cli.feature_options import (
    DEFAULT_LIMIT,
    OpenedCatalog,
    add_options,
    concept_if_possible,
    open_catalog,
    require_same_sae,
    required_text,
)
from sae_steer_retriever.cli.outcome import Outcome, UsageError
from sae_steer_retriever.errors import quoted

SUMMARY = "look at the features of an SAE, name them, find those that examples share"
_METAVAR = "list | search TEXT | show ID | families | contrast | annotate ID LABEL | label | tries ID"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options and the things to do; without a word it is `list`."""
    add_options(parser, nested=False)
    actions = parser.add_subparsers(metavar=_METAVAR, dest="action", required=False)

    def action(name: str, what: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=what, description=what)
        add_options(added, nested=True)
        return added

    action("list", "the named features, the most frequent first (default)")
    search = action("search", "features that answer to a text, by their words and by meaning")
    search.add_argument("text", nargs="+", metavar="TEXT", help="words, or a description")
    search.add_argument("--hubs", action="store_true", help="also features of more than a tenth of the passages")
    search.add_argument("--dead", action="store_true", help="also features that no passage has")
    feature_pages.add_show_arguments(action("show", "all about a feature, or about those that a name means"))
    feature_pages.add_family_arguments(action("families", "groups of features that passages have together"))
    feature_contrast.add_arguments(action("contrast", "the features that some texts share and others lack"))
    feature_annotation.add_arguments(action("annotate", "give a feature a name of your own"))
    feature_tries.add_arguments(action("tries", feature_tries.SUMMARY))
    # Has options of its own: what it writes to cannot be a store.
    label = actions.add_parser("label", help=labelling.SUMMARY, description=labelling.SUMMARY)
    labelling.add_arguments(label, nested=True)
    # Not in the help: takes any arguments, to name the command that has replaced it.
    actions.add_parser("tables", add_help=False, prefix_chars="\0").add_argument("moved", nargs="*")


def run(arguments: argparse.Namespace) -> Outcome:
    """Do what the arguments ask for.

    Raises:
        UsageError: Neither an SAE nor a store is named, or it is not there.
        SAESteerError: The SAE is damaged, or another than the store's; the store does not answer; or a name means no
            feature.
    """
    action = arguments.action or "list"
    if action == "tables":
        raise UsageError(
            "`features tables` is no action of sae-steer any more: from a checkout of the repository, run `python -m "
            "benchmarks.paper feature-tables` with the same options."
        )
    if action in _OPENING:
        return _OPENING[action](arguments)
    opened = open_catalog(arguments)
    require_same_sae(opened, arguments.collection)
    return _ACTIONS[action](arguments, opened)


def _search(arguments: argparse.Namespace, opened: OpenedCatalog) -> Outcome:
    text = required_text(arguments.text, "search for what?")
    found = opened.catalog.search(
        text,
        concept=concept_if_possible(opened.sae, text),
        limit=arguments.limit or DEFAULT_LIMIT,
        include_hubs=arguments.hubs,
        include_dead=arguments.dead,
    )
    rows = {"query": text, "features": [feature_data(feature) for feature in found]}
    return Outcome("\n".join(feature_table(found)) if found else f"no feature answers to {quoted(text)}", rows)


def _list(arguments: argparse.Namespace, opened: OpenedCatalog) -> Outcome:
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
        "features": [feature_data(feature) for feature in shown],
    }
    lines = [head, *feature_table(shown)]
    if unmatched:
        lines.append(f"names of an earlier SAE's features that this one lacks: {'; '.join(unmatched)}")
    return Outcome("\n".join(lines), data)


_ACTIONS: dict[str, Callable[[argparse.Namespace, OpenedCatalog], Outcome]] = {
    "list": _list,
    "search": _search,
    "show": feature_pages.show,
    "families": feature_pages.families,
    "contrast": feature_contrast.contrast,
    "annotate": feature_annotation.annotate,
}
# These check their options before they open anything.
_OPENING: dict[str, Callable[[argparse.Namespace], Outcome]] = {
    "label": labelling.run,
    "tries": feature_tries.run,
}
