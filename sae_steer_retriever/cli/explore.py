"""`sae-steer explore`: serve the web page that shows features and steers by them."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from pathlib import Path

from sae_steer_retriever.cli.runner import Outcome, add_common_arguments, number_type
from sae_steer_retriever.cli.store_options import add_sae_argument, add_store_arguments, open_retriever

SUMMARY = "serve a web page that shows features and steers by them with sliders"
# As in `explorer.running`, which needs the `explorer` extra.
_HOST, _PORT = "127.0.0.1", 8765


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add_store_arguments(parser)
    add_sae_argument(parser)
    add("--policy", metavar="FILE", help="file of a saved steering that the page starts with")
    add("--host", default=_HOST, metavar="HOST", help=f"address to listen on (default: {_HOST}, this machine only)")
    add(
        "--port",
        type=number_type(int, 0, 65535, "a port from 0 to 65535"),
        default=_PORT,
        metavar="N",
        help=f"port; 0 takes a free one (default: {_PORT})",
    )
    add(
        "--token",
        metavar="TEXT",
        help="token that every browser must bring (default: a random one, if other machines can reach --host)",
    )
    add("--open", action="store_true", help="open a browser, too")
    add_common_arguments(parser)


def run(arguments: argparse.Namespace) -> Outcome:
    """Returns the address of the page, once it was served until interrupted.

    Raises:
        UsageError: The store, the collection, the SAE or the policy does not exist.
        SAESteerError: The address is taken, the SAE does not fit the store, or the store does not answer.
    """
    from sae_steer_retriever.explorer.python_code import StoreAddress
    from sae_steer_retriever.explorer.running import Explorer

    retriever, location = open_retriever(arguments), arguments.store
    folder = None if location.folder is None else location.folder.resolve()
    # A copied script finds the store's own SAE as this command does.
    own = arguments.sae
    own = str(Path(own).resolve()) if own is not None and Path(own).is_dir() else own
    address = StoreAddress(arguments.collection, folder, location.host, location.port, own)
    explorer = Explorer(retriever, host=arguments.host, port=arguments.port, token=arguments.token, address=address)
    _announce(explorer.url, arguments)
    if not arguments.verbose:  # the page shows these warnings, and moving a slider would log hundreds
        logging.getLogger("sae_steer_retriever.steering").setLevel(logging.ERROR)
    if arguments.open:
        import webbrowser

        webbrowser.open(explorer.url)
    with contextlib.suppress(KeyboardInterrupt):
        explorer.serve()
    return Outcome("closed", {"url": explorer.url, "closed": True})


def _announce(url: str, arguments: argparse.Namespace) -> None:
    """Print the address at once: the outcome is printed when the server ends."""
    line = json.dumps({"url": url}) if arguments.json else f"explorer: {url}  (Ctrl+C ends it)"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
