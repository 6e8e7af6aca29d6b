"""`python -m sae_steer_retriever.evaluate`: the same as `sae-steer evaluate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sae_steer_retriever.cli import evaluate
from sae_steer_retriever.cli.runner import main_of


def main(argv: Sequence[str] | None = None) -> int:
    """Measure an SAE.

    Args:
        argv: The arguments; those of the process if None.

    Returns:
        The exit code: 0 ok, 1 failed, 2 usage, 130 interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sae_steer_retriever.evaluate", description=f"{evaluate.SUMMARY}.", allow_abbrev=False
    )
    evaluate.add_arguments(parser)
    parser.set_defaults(run=evaluate.run)
    return main_of(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
