"""`sae-steer features contrast`: which features some examples have and others lack, to steer by."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sae_steer_retriever.cli.feature_options import OpenedCatalog, embedder_of
from sae_steer_retriever.cli.outcome import Outcome, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sae_steer_retriever.sae.codes import Codes

_DEFAULT_LIMIT = 5
_DEFAULT_STRENGTH = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `contrast` takes."""
    for option, what in (("--positive", "texts to be like"), ("--negative", "texts to be unlike")):
        parser.add_argument(option, nargs="+", action="extend", default=[], metavar="TEXT", help=what)
    for option, what in (("--like", "to be like"), ("--unlike", "to be unlike")):
        parser.add_argument(
            option, nargs="+", action="extend", default=[], metavar="ID", help=f"passages of the --store {what}"
        )
    parser.add_argument(
        "--strength",
        type=float,
        default=_DEFAULT_STRENGTH,
        metavar="X",
        help=f"what the positives themselves gain on average (default: {_DEFAULT_STRENGTH:g})",
    )


def contrast(arguments: argparse.Namespace, opened: OpenedCatalog) -> Outcome:
    """Read features off examples.

    Raises:
        UsageError: There is no positive example, or ids are given without a store.
        SAESteerError: An id is not in the store, or no feature tells the examples apart.
    """
    if not (arguments.positive or arguments.like):
        raise UsageError("like what? Give --positive TEXT ..., or --like ID ... with a --store.")
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
    """The label latents of texts and of stored passages together."""
    from sae_steer_retriever.steering.from_examples import (
        checked_texts,
        joined_names,
        names_of_passages,
        names_of_texts,
    )

    parts: list[Codes[NDArray[np.generic]]] = []
    if texts:
        parts.append(names_of_texts(opened.sae, embedder_of(opened.sae), checked_texts(texts, option)))
    if ids and opened.client is not None:
        from sae_steer_retriever.store.chroma_store import ChromaStore

        store = ChromaStore.open(opened.sae, client=opened.client, collection=arguments.collection, create=False)
        parts.append(names_of_passages(store, ids))
    return joined_names(parts)
