"""`sae-steer features`: looks features up in the catalog of an SAE, names them, and finds them from examples."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from sae_steer_retriever.cli import feature_contrast, feature_pages, feature_tries
from sae_steer_retriever.cli import feature_labels as labelling
from sae_steer_retriever.cli.feature_options import OpenedCatalog, add_options, open_catalog, require_same_sae
from sae_steer_retriever.cli.runner import Outcome, UsageError

SUMMARY = "look up the features of an SAE, name them, and find the features of examples"
_METAVAR = "list | search TEXT | show ID | families | contrast | annotate ID LABEL | label | tries ID"


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
    feature_tries.add_arguments(action("tries", feature_tries.SUMMARY))
    # It has options of its own: it writes to an SAE's folder, not to a store.
    label = actions.add_parser("label", help=labelling.SUMMARY, description=labelling.SUMMARY)
    labelling.add_arguments(label, nested=True)
    # Not in the help: takes any arguments, to name the command that has replaced it.
    actions.add_parser("tables", add_help=False, prefix_chars="\0").add_argument("moved", nargs="*")


def run(arguments: argparse.Namespace) -> Outcome:
    """Returns the outcome of the action.

    Raises:
        UsageError: The store does not exist, or the options contradict each other.
        SAESteerError: The SAE is damaged or not the store's, the store does not answer, or no feature has the name.
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


_ACTIONS: dict[str, Callable[[argparse.Namespace, OpenedCatalog], Outcome]] = {
    "list": feature_pages.list_features,
    "search": feature_pages.search,
    "show": feature_pages.show,
    "families": feature_pages.families,
    "contrast": feature_contrast.contrast,
    "annotate": feature_pages.annotate,
}
# These actions check their options before they open anything.
_OPENING: dict[str, Callable[[argparse.Namespace], Outcome]] = {"label": labelling.run, "tries": feature_tries.run}
