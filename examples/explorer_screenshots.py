"""Takes screenshots of the explorer on the quickstart's corpus, for the README and the docs.

    pip install "sae-steer-retriever[explorer,offline]" playwright pillow   # and Chromium, from Debian for instance
    python examples/explorer_screenshots.py [--data quickstart-data] [--output docs/pictures]

The first run makes the quickstart's SAE and store, which takes minutes on two CPU cores; later runs reuse them.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from quickstart import DATA, PERSPECTIVES, QUESTION, prepare

from sae_steer_retriever import SteeredRetriever
from sae_steer_retriever.explorer.running import Explorer, explore

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
DESKTOP, PHONE = (1280, 860), (390, 1800)
STRENGTH = 0.5
# Most bytes of a picture: everybody who reads the page loads it.
LARGEST = 200_000
LIKE = "A thread runs a function beside the others of its process and shares its memory with them."
LIKED = ("threading", "concurrent", "asyncio", "subprocess", "multiprocessing", "queue")
UNLIKE = "A new process is started with its own memory; its output is read through a pipe."


class Camera:
    """Takes screenshots of one explorer."""

    def __init__(self, browser: Browser, explorer: Explorer, output: Path) -> None:
        self._browser = browser
        self._explorer = explorer
        self._output = output

    def view(self, size: tuple[int, int] = DESKTOP, *, dark: bool = False) -> Page:
        """An empty window."""
        width, height = size
        context = self._browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        context.set_default_timeout(300_000)
        return context.new_page()

    def workbench(self, page: Page, steer: Mapping[str, float]) -> None:
        """Open the workbench, and wait until it explains its hits."""
        page.goto(self._explorer.link(QUESTION, steer))
        page.locator("#after [data-testid=bar]").first.wait_for()
        page.locator("#before [data-testid=bar]").first.wait_for()
        page.locator("[data-testid=chip]").first.wait_for()

    def keep(self, page: Page, name: str) -> None:
        """Write what is in the window."""
        page.mouse.move(0, 0)
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(300)
        path = self._output / f"{name}.png"
        page.screenshot(path=path, animations="disabled")
        if path.stat().st_size > LARGEST:  # in fewer colours: letters have many at their edges
            with Image.open(path) as picture:
                small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            small.save(path, optimize=True)
        size = path.stat().st_size
        print(f"{path}: {size / 1000:.0f} kB{'  LARGE' if size > LARGEST else ''}")
        page.context.close()


def moving(retriever: SteeredRetriever) -> str:
    """The word of the quickstart's that changes this question's hits most."""
    plain = {hit.id for hit in retriever.search(QUESTION, k=10)}
    changed = {}
    for word in PERSPECTIVES:
        try:
            changed[word] = sum(hit.id not in plain for hit in retriever.search(QUESTION, k=10, steer={word: STRENGTH}))
        except LookupError:
            continue
    return max(changed, key=lambda word: (changed[word], word))


def photograph(camera: Camera, retriever: SteeredRetriever, url: str) -> None:
    """Take all pictures."""
    word = moving(retriever)
    resolution = retriever.resolve_name(word)
    feature = resolution.features[0]
    steer = {word: STRENGTH}
    for name, given, size, dark in (
        ("bench-before", {}, DESKTOP, False),
        ("bench-after", steer, DESKTOP, False),
        ("bench-after-dark", steer, DESKTOP, True),
        ("bench-after-phone", steer, PHONE, False),
    ):
        page = camera.view(size, dark=dark)
        camera.workbench(page, given)
        camera.keep(page, name)
    page = camera.view()
    page.goto(f"{url}features/{feature}")
    page.locator("#top mark").first.wait_for()
    page.locator("#page").wait_for()
    camera.keep(page, "feature")
    page = camera.view()
    page.goto(f"{url}map")
    page.locator("#canvas[data-progress='1']").wait_for()
    page.locator("#map-find").fill(word)
    page.locator("[data-testid=found-feature]").first.wait_for()
    camera.keep(page, "map")
    page = camera.view()
    page.goto(f"{url}compare")
    page.locator("#positive").fill(LIKE)
    page.locator("#negative").fill(UNLIKE)
    page.locator("[data-testid=contrast]").click()
    page.locator("[data-testid=reason]").first.wait_for()
    page.locator("#judge-query").fill(QUESTION)
    page.locator("[data-testid=judge-search]").click()
    page.locator("#judge-hits [data-testid=bar]").first.wait_for()
    ids = page.locator("#judge-hits > li").evaluate_all("rows => rows.map(row => row.dataset.id)")
    liked = next((place for place, name in enumerate(ids) if name.startswith(LIKED)), len(ids) - 1)
    page.locator("[data-testid=judge-up]").nth(liked).click()
    page.locator("[data-testid=judge-down]").nth(0).click()
    page.locator("#autosteer").click()
    page.locator("[data-testid=ranks]").wait_for()
    camera.keep(page, "compare")


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="the quickstart's folder")
    parser.add_argument("--output", type=Path, default=PICTURES)
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("no Chromium on this machine: `apt-get install chromium`, for instance", file=sys.stderr)
        return 2
    retriever = prepare(arguments.data)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with explore(retriever) as explorer, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        photograph(Camera(browser, explorer, arguments.output), retriever, explorer.url)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
