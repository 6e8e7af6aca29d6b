"""Runs a command: arguments, logging, output on stdout and stderr, and the exit code."""

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
from typing import Any, NamedTuple, TypeVar

from sae_steer_retriever.errors import SAESteerError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
_Number = TypeVar("_Number", int, float)


class Outcome(NamedTuple):
    """The result of a command, as text and as data."""

    text: str  # lines for people, without the last line's end
    data: dict[str, Any]  # one JSON object for programs; it may hold more than the text


class UsageError(SAESteerError):
    """The options of a command are wrong: exit code 2."""


def add_common_arguments(parser: argparse.ArgumentParser, *, nested: bool = False) -> None:
    """Adds `--json`, `--quiet` and `--verbose`; without defaults if `nested`, as a parent parser then has them, too."""
    default: Any = argparse.SUPPRESS if nested else False
    parser.add_argument("--json", action="store_true", default=default, help="print one JSON object instead of text")
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("--quiet", action="store_true", default=default, help="show no progress bars and no warnings")
    volume.add_argument(
        "-v", "--verbose", action="store_true", default=default, help="log more, and print the traceback of an error"
    )


def number_type(kind: type[_Number], least: float, most: float, expected: str) -> Callable[[str], _Number]:
    """Returns the `type` of an argument: a number from `least` to `most`; the error says what is expected."""

    def read(text: str) -> _Number:
        with contextlib.suppress(ValueError):
            number = kind(text)
            if least <= number <= most:
                return number
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")

    return read


count = number_type(int, 1, sys.float_info.max, "a whole number of at least 1")


def main_of(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parses the arguments and runs the command.

    Args:
        parser: Its default `run` takes the namespace and returns an `Outcome`.
        argv: The arguments; those of the process if None.

    Returns:
        The exit code: 0 ok, 1 failed, 2 usage, 130 interrupted.
    """
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else OK
    if arguments.quiet or not sys.stderr.isatty():
        # transformers draws a progress bar while it loads an encoder, even into a file; it reads only this switch.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with _logging_to_stderr(arguments):
        return _execute(arguments.run, arguments)


def _execute(run: Callable[[argparse.Namespace], Outcome], arguments: argparse.Namespace) -> int:
    try:
        outcome = run(arguments)
        _write(outcome, as_json=arguments.json)
    except BrokenPipeError:
        # The reader of stdout is gone, e.g. `| head`. Python flushes once more at exit, which must not fail again.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        _complain("interrupted", arguments)
        return INTERRUPTED
    except UsageError as error:
        _complain(f"{error}", arguments)
        return USAGE
    # The library raises ValueError and TypeError with messages for users; --verbose shows whether one is a bug.
    except (SAESteerError, ValueError, TypeError, OSError) as error:
        _complain(f"{error}", arguments)
        return FAILED
    return OK


def _complain(message: str, arguments: argparse.Namespace) -> None:
    if arguments.verbose:
        traceback.print_exc(file=sys.stderr)
    line = " ".join(message.split()) or "no reason was given; --verbose prints the traceback"
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
    """Returns the value with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _standard(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_standard(part) for part in value]
    return value


@contextlib.contextmanager
def _logging_to_stderr(arguments: argparse.Namespace) -> Iterator[None]:
    """Sends the library's log to stderr while a command runs."""
    logger = logging.getLogger("sae_steer_retriever")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LowerCaseLevel("%(levelname)s: %(message)s"))
    before = logger.level, logger.propagate
    logger.setLevel(logging.ERROR if arguments.quiet else logging.INFO if arguments.verbose else logging.WARNING)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


class _LowerCaseLevel(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace(record.levelname, record.levelname.lower(), 1)
