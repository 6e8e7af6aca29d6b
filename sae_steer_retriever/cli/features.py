"""`sae-steer features`: looks features up in the catalog of an SAE, names them, and finds them from examples."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from sae_steer_retriever.cli import (
    feature_contrast,
    feature_pages,
    feature_tables,
    feature_tries,
)
from sae_steer_retriever.cli import (
    feature_labels as labelling,
)
from sae_steer_retriever.cli.feature_options import OpenedCatalog, add_options, open_catalog, require_same_sae
from sae_steer_retriever.cli.runner import Outcome

SUMMARY = "look up the features of an SAE, name them, and find the features of examples"
_METAVAR = "list | search TEXT | show ID | families | contrast | annotate ID LABEL | label | tables | tries ID"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options and the actions; the default action is `list`."""
    add_options(parser, nested=False)
    actions = parser.add_subparsers(metavar=_METAVAR, dest="action", required=False)

    def action(name: str, what: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=what, description=what)
        add_options(added, nested=True)
        return added

    action("list", "list the named features, the most frequent first (default)")
    feature_pages.add_search_arguments(action("search", "find features by words and by meaning"))
    feature_pages.add_show_arguments(action("show", "show a feature: statistics, keywords, strongest passages"))
    feature_pages.add_family_arguments(action("families", "list groups of features that occur together"))
    feature_contrast.add_arguments(action("contrast", "find the features that some texts share and others lack"))
    feature_pages.add_annotate_arguments(action("annotate", "give a feature your own name"))
    feature_tables.add_arguments(action("tables", feature_tables.SUMMARY))
    feature_tries.add_arguments(action("tries", feature_tries.SUMMARY))
    # It has options of its own: it writes to an SAE's folder, not to a store.
    label = actions.add_parser("label", help=labelling.SUMMARY, description=labelling.SUMMARY)
    labelling.add_arguments(label, nested=True)


def run(arguments: argparse.Namespace) -> Outcome:
    """Returns the outcome of the action.

    Raises:
        UsageError: The store does not exist, or the options contradict each other.
        SAESteerError: The SAE is damaged or not the store's, the store does not answer, or no feature has the name.
    """
    action = arguments.action or "list"
    if action in _OPENING:
        return _OPENING[action](arguments)
    opened = open_catalog(arguments)
    require_same_sae(opened, arguments.collection)
    return _ACTIONS[action](arguments, opened)


_ACTIONS: dict[str, Callable[[argparse.Namespace, OpenedCatalog], Outcome]] = {
    "list": feature_pages.list_features,
    "search": feature_pages.search,
    "show": feature_pages.show,
    "families": feature_pages.families,
    "contrast": feature_contrast.contrast,
    "annotate": feature_pages.annotate,
}
# These actions check their options before they open anything.
_OPENING: dict[str, Callable[[argparse.Namespace], Outcome]] = {
    "label": labelling.run,
    "tables": feature_tables.run,
    "tries": feature_tries.run,
}
