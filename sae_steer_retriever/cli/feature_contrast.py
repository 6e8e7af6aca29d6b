"""`sae-steer features contrast`: a steering from examples."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sae_steer_retriever.cli.feature_options import OpenedCatalog, embedder_of
from sae_steer_retriever.cli.runner import Outcome, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sae_steer_retriever.sae.codes import Codes

_DEFAULT_LIMIT = 5
_DEFAULT_STRENGTH = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    for option, what in (("--positive", "texts to rank higher"), ("--negative", "texts to rank lower")):
        parser.add_argument(option, nargs="+", action="extend", default=[], metavar="TEXT", help=what)
    for option, what in (("--like", "to rank higher"), ("--unlike", "to rank lower")):
        parser.add_argument(
            option, nargs="+", action="extend", default=[], metavar="ID", help=f"ids of passages of the --store {what}"
        )
    parser.add_argument(
        "--strength",
        type=float,
        default=_DEFAULT_STRENGTH,
        metavar="X",
        help=f"total strength: the average score gain of the positive examples (default: {_DEFAULT_STRENGTH:g})",
    )


def contrast(arguments: argparse.Namespace, opened: OpenedCatalog) -> Outcome:
    """Returns the features that the positive examples share and the negative ones lack, as a steering.

    Raises:
        UsageError: There is no positive example, or ids are given without a store.
        SAESteerError: An id is not in the store, or no feature separates the examples.
    """
    if not (arguments.positive or arguments.like):
        raise UsageError("like what? Give --positive TEXT ..., or --like ID ... with --store DIR.")
    if opened.client is None and (arguments.like or arguments.unlike):
        raise UsageError("--like and --unlike name passages of a store: give it with --store DIR.")
    from sae_steer_retriever.steering.from_examples import contrast

    found = contrast(
        opened.catalog,
        _names(arguments, opened, arguments.positive, arguments.like, "--positive"),
        _names(arguments, opened, arguments.negative, arguments.unlike, "--negative"),
        strength=arguments.strength,
        limit=arguments.limit or _DEFAULT_LIMIT,
    )
    options = " ".join(f"--steer '{name}={strength:+.2f}'" for name, strength in found.steer.items())
    return Outcome(f"{found}\n\n{options}", {**found.to_dict(), "options": options})


def _names(
    arguments: argparse.Namespace, opened: OpenedCatalog, texts: list[str], ids: list[str], option: str
) -> Codes[NDArray[Any]] | None:
    from sae_steer_retriever.steering.from_examples import (
        checked_texts,
        joined_labels,
        labels_of_passages,
        labels_of_texts,
    )

    parts: list[Codes[NDArray[np.generic]]] = []
    if texts:
        parts.append(labels_of_texts(opened.sae, embedder_of(opened.sae), checked_texts(texts, option)))
    if ids and opened.client is not None:
        from sae_steer_retriever.store.store_reader import StoreReader

        store = StoreReader.open(opened.sae, client=opened.client, collection=arguments.collection)
        parts.append(labels_of_passages(store, ids))
    return joined_labels(parts)
