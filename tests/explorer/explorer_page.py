"""The explorer in a real browser: what a person does with the page, and what must hold of every page they see."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from playwright.sync_api import BrowserContext, Locator, Page

from sae_steer_retriever.explain.hits import Hit

# How long the page may take, on a machine that does other things too, in s.
PATIENCE = 60.0
# Of a slider's thumb, in px.
_THUMB = 16
_CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")
T = TypeVar("T")


class ExplorerPage:
    """A tab that remembers every request and every complaint of the browser."""

    def __init__(self, context: BrowserContext, origin: str) -> None:
        """Open a tab of a context; `origin` is the explorer's address without a slash behind it."""
        self.page: Page = context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE)
        self.context = context
        self.origin = origin
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("dialog", lambda dialog: (self.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    @property
    def foreign(self) -> list[str]:
        """What was asked of anything but the explorer."""
        return [url for url in self.requests if not url.startswith((f"{self.origin}/", f"blob:{self.origin}/"))]

    def open(self, address: str = "/") -> None:
        """Go to a path, or to an address that the explorer made."""
        self.page.goto(address if address.startswith("http") else self.origin + address)

    def at(self, test_id: str) -> Locator:
        """What has a test id."""
        return self.page.get_by_test_id(test_id)

    def hits(self, which: str = "after") -> list[tuple[str, float]]:
        """The ids and the scores of a list of hits."""
        script = (
            "id => [...document.getElementById(id).children].map(row => "
            "[row.dataset.id, Number(row.querySelector('[data-testid=score]').textContent)])"
        )
        return [(str(name), float(score)) for name, score in self.page.evaluate(script, which)]

    def eventually(self, read: Callable[[], T], right: Callable[[T], bool]) -> T:
        """What can be read once it is right; an assertion that shows it if it never is."""
        deadline = time.monotonic() + PATIENCE
        while not right(found := read()):
            assert time.monotonic() < deadline, f"still {found!r}; the page complains of {self.complaints!r}"
            self.page.wait_for_timeout(40)
        return found

    def shows(self, hits: Sequence[Hit], which: str = "after") -> None:
        """Wait until a list shows just these hits in this order with these scores."""
        expected = [(hit.id, hit.score) for hit in hits]

        def right(found: list[tuple[str, float]]) -> bool:
            same = [name for name, _ in found] == [name for name, _ in expected]
            return same and all(abs(a - b) < 6e-4 for (_, a), (_, b) in zip(found, expected, strict=True))

        self.eventually(lambda: self.hits(which), right)

    def add_feature(self, name: str) -> Locator:
        """Steer by a feature, found by its name; its row of knobs."""
        self.at("feature-search").fill(name)
        self.at("feature-option").first.wait_for()
        self.at("feature-search").press("Enter")
        row = self.at("edit").last
        row.wait_for()
        return row

    def drag(self, slider: Locator, to: float, *, release: bool = True) -> None:
        """Take a slider's thumb with the mouse and pull it to a value."""
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        assert box is not None
        low, high, value = (float(slider.evaluate(f"node => node.{name}")) for name in ("min", "max", "value"))

        def place(of: float) -> float:
            return box["x"] + _THUMB / 2 + (of - low) / (high - low) * (box["width"] - _THUMB)

        middle = box["y"] + box["height"] / 2
        self.page.mouse.move(place(value), middle)
        self.page.mouse.down()
        self.page.mouse.move(place(to), middle, steps=8)
        if release:
            self.page.mouse.up()

    def tab_to(self, test_id: str, limit: int = 40) -> None:
        """Press Tab until something has the focus; at every stop it must be seen where the focus is."""
        stops = []
        for _ in range(limit):
            self.page.keyboard.press("Tab")
            stop: dict[str, Any] = self.page.evaluate(
                "() => { const node = document.activeElement, seen = node.closest('.file') || node;"
                " const style = getComputedStyle(seen);"
                " return {id: node.dataset.testid, tag: node.outerHTML.slice(0, 90), style: style.outlineStyle,"
                " width: parseFloat(style.outlineWidth)}; }"
            )
            assert stop["style"] != "none", stop
            assert stop["width"] >= 2, stop
            stops.append(stop["id"] or stop["tag"])
            if stop["id"] == test_id:
                return
        raise AssertionError(f"no Tab leads to {test_id}, but to {stops}")

    def unreadable(self) -> list[str]:
        """Texts in sight with less contrast than WCAG's AA asks for."""
        return [str(line) for line in self.page.evaluate(_CONTRAST)]

    def overflow(self) -> list[str]:
        """What is wider than the window, outside of boxes that scroll by themselves."""
        script = """() => {
            const wide = document.documentElement.clientWidth;
            if (document.documentElement.scrollWidth <= wide) return [];
            const over = [...document.body.querySelectorAll("*")].filter((node) => node.getBoundingClientRect().right > wide + 1);
            return [`${document.documentElement.scrollWidth} of ${wide} px`, ...over.slice(0, 5).map((node) => node.outerHTML.slice(0, 120))];
        }"""  # noqa: E501
        return [str(line) for line in self.page.evaluate(script)]
