"""Running `sae-steer` inside a test, and reading what it printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from sae_steer_retriever.__main__ import main


class Ran(NamedTuple):
    """A command's exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """What --json printed: exactly one line."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line of an expected failure."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


Run = Callable[..., Ran]


@pytest.fixture
def sae_steer(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `sae-steer` in this process."""

    def run(*arguments: object, entry: Callable[[list[str]], int] = main) -> Ran:
        capsys.readouterr()
        code = entry([str(argument) for argument in arguments])
        return Ran(code, *capsys.readouterr())

    return run
