"""Running one command: arguments, logging, what goes to stdout and stderr, and the exit code."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sae_steer_retriever.cli.outcome import Outcome, UsageError
from sae_steer_retriever.errors import SAESteerError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def add_common_arguments(parser: argparse.ArgumentParser, *, nested: bool = False) -> None:
    """Add what every command takes: `--json`, `--quiet` and `--verbose`.

    Args:
        parser: Gets the options.
        nested: Whether a parser around this one has them too: then only an option that is given counts.
    """
    default: Any = argparse.SUPPRESS if nested else False
    parser.add_argument("--json", action="store_true", default=default, help="print one JSON object instead of text")
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("--quiet", action="store_true", default=default, help="no progress bars and no warnings")
    volume.add_argument(
        "-v", "--verbose", action="store_true", default=default, help="log more, and show where an error came from"
    )


def count(text: str) -> int:
    """A whole number of at least 1, as an argument's type."""
    with contextlib.suppress(ValueError):
        number = int(text)
        if number >= 1:
            return number
    raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")


def main_of(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse `argv` and run what it asks for.

    Args:
        parser: Its defaults hold `run`, which takes the namespace and returns an `Outcome`.
        argv: The arguments; those of the process if None.

    Returns:
        The exit code: 0 ok, 1 failed, 2 usage, 130 interrupted.
    """
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else OK
    if arguments.quiet or not sys.stderr.isatty():
        # transformers draws a bar while it loads an encoder, into a log file too; this is the only switch it reads.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with _logging_to_stderr(arguments):
        return _execute(arguments.run, arguments)


def _execute(run: Callable[[argparse.Namespace], Outcome], arguments: argparse.Namespace) -> int:
    try:
        outcome = run(arguments)
        _write(outcome, as_json=arguments.json)
    except BrokenPipeError:
        # Whoever reads stdout has gone, e.g. `| head`. Python flushes once more at its end, which must not fail again.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        _complain("interrupted", arguments)
        return INTERRUPTED
    except UsageError as error:
        _complain(f"{error}", arguments)
        return USAGE
    # The core raises ValueError and TypeError with a message for users; where one is a bug, --verbose shows it.
    except (SAESteerError, ValueError, TypeError, OSError) as error:
        _complain(f"{error}", arguments)
        return FAILED
    return OK


def _complain(message: str, arguments: argparse.Namespace) -> None:
    if arguments.verbose:
        traceback.print_exc(file=sys.stderr)
    line = " ".join(message.split()) or "no reason was given; --verbose shows where it came from"
    sys.stderr.write(f"error: {line}\n")


def _write(outcome: Outcome, *, as_json: bool) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = json.dumps(_standard(outcome.data), ensure_ascii=False) if as_json else outcome.text
    try:
        text.encode(encoding)
    except UnicodeEncodeError:  # a Windows console, or half a surrogate pair in a document
        if as_json:
            text = json.dumps(_standard(outcome.data))
        else:
            text = text.encode(encoding, errors="replace").decode(encoding)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _standard(value: Any) -> Any:  # noqa: ANN401 - anything JSON can hold
    """The same without NaN and infinity, which are no JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _standard(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_standard(part) for part in value]
    return value


@contextlib.contextmanager
def _logging_to_stderr(arguments: argparse.Namespace) -> Iterator[None]:
    """Show the library's log while a command runs; other libraries' loggers are left as they are."""
    logger = logging.getLogger("sae_steer_retriever")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LowerCaseLevel("%(levelname)s: %(message)s"))
    before = logger.level, logger.propagate
    level = logging.ERROR if arguments.quiet else logging.INFO if arguments.verbose else logging.WARNING
    logger.setLevel(level)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


class _LowerCaseLevel(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return line.replace(record.levelname, record.levelname.lower(), 1)
