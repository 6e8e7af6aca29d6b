"""Those who are told how a fit goes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

from sae_steer_retriever.train.metrics_log import Measured


class Watcher(Protocol):
    """Is told of every step and every measurement; changes nothing."""

    def start(self, first: int) -> None:
        """The fit begins, `first` steps having been done by an earlier run."""

    def step(self, done: int, loss: float) -> None:
        """A step was done, the `done`-th, with this loss."""

    def measured(self, record: Measured) -> None:
        """The fit was measured; told before the step itself."""

    def close(self) -> None:
        """The fit has ended, or failed."""


class Watchers:
    """Several watchers as one."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = tuple(watchers)

    def step(self, done: int, loss: float) -> None:
        """Tell all of a step."""
        for watcher in self._watchers:
            watcher.step(done, loss)

    def measured(self, record: Measured) -> None:
        """Tell all of a measurement."""
        for watcher in self._watchers:
            watcher.measured(record)


@contextlib.contextmanager
def watched_by(watchers: Sequence[Watcher], first: int) -> Iterator[Watchers]:
    """Start all watchers, and close those that were started, whatever happens."""
    with contextlib.ExitStack() as open_ones:
        for watcher in watchers:
            watcher.start(first)
            open_ones.callback(watcher.close)
        yield Watchers(watchers)
