"""The command line `sae-steer`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sae_steer_retriever import __version__
from sae_steer_retriever.cli import audit, evaluate, explore, features, index, search, train
from sae_steer_retriever.cli.runner import main_of

_EXAMPLE = """\
examples:
  sae-steer train --corpus ./docs --output ./sae
  sae-steer index --corpus ./docs --sae ./sae --store ./chroma
  sae-steer features search employment --sae ./sae
  sae-steer search "parental leave" --store ./chroma --steer employment=+0.5 --explain
  sae-steer explore --store ./chroma
  sae-steer evaluate --corpus ./docs --sae ./sae --meaning
  sae-steer audit --store ./chroma --queries questions.txt
"""


_COMMANDS = {
    "train": train,
    "index": index,
    "search": search,
    "explore": explore,
    "features": features,
    "evaluate": evaluate,
    "audit": audit,
}


class _CommandParser(argparse.ArgumentParser):
    """Adds its arguments at first use, so that one command does not load the modules of another."""

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 - argparse's own
        add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*args, **kwargs)
        self._add_arguments = add_arguments

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:  # noqa: ANN401
        if self._add_arguments is not None:
            add_arguments, self._add_arguments = self._add_arguments, None
            add_arguments(self)
        return super().parse_known_args(args, namespace)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-steer",
        description="See why a passage was retrieved and steer what is retrieved, with the named features of a sparse "
        "autoencoder (SAE).",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sae-steer {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_CommandParser)
    for name, command in _COMMANDS.items():
        summary = command.SUMMARY
        added = commands.add_parser(
            name, help=summary, description=f"{summary}.", add_arguments=command.add_arguments, allow_abbrev=False
        )
        added.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments; the process' own if None.

    Returns:
        The exit code: 0 ok, 1 failed, 2 usage, 130 interrupted.
    """
    return main_of(_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
