"""Whose turn it is: of one person's requests only the newest is worth its work."""

from __future__ import annotations

import threading
from collections import OrderedDict

# Pages that are remembered; of one that is forgotten every request counts as its newest.
_PAGES = 1000


class LatestRequest:
    """The newest turn of each page; safe to share between threads."""

    def __init__(self) -> None:
        self._newest: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, page: str, turn: int) -> None:
        """Note that a page has asked for something; an older turn that comes late changes nothing.

        Args:
            page: An id that the page made for itself.
            turn: A number that grows with each of its requests.
        """
        with self._lock:
            self._newest[page] = max(turn, self._newest.pop(page, turn))
            while len(self._newest) > _PAGES:
                self._newest.popitem(last=False)

    def is_newest(self, page: str, turn: int) -> bool:
        """Whether the page has asked for nothing since."""
        with self._lock:
            return turn >= self._newest.get(page, turn)


__all__ = ["LatestRequest"]
