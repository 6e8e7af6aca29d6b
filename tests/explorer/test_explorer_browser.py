"""The explorer in a real browser: people turn knobs, and see what the Python API would have told them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the `explorer` extra")
pytest.importorskip("uvicorn", reason="needs the `explorer` extra")
pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives the browser")

from explorer_page import ExplorerPage
from playwright.sync_api import Browser, Route, sync_playwright
from small_world import World

from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.explain.hits import Hit
from sae_steer_retriever.explorer.running import Explorer, explore
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.steering.operations import Add, Suppress
from sae_steer_retriever.steering.policy import Steering
from sae_steer_retriever.store.chroma_store import ChromaStore

pytestmark = pytest.mark.browser

QUESTION = "run a task in another thread"
HOSTILE = (
    "<script>window.hacked = true</script><img src=x onerror='window.hacked = true'>"
    "<a href='javascript:window.hacked = true'>a thread</a> \u202eright to left\u202c שלום 🦆"
)
Visit = Callable[..., ExplorerPage]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The machine's own Chromium, without a window."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip("no Chromium on this machine: `apt-get install chromium`, for instance")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=["--disable-dev-shm-usage"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def python(world: World, filled_folder: Path) -> SteeredRetriever:
    """The Python API over the store that the page shows."""
    return SteeredRetriever(ChromaStore.open(world.sae, path=filled_folder / "chroma"), world.embedder, world.catalog)


@pytest.fixture(scope="module")
def explorer(python: SteeredRetriever) -> Iterator[Explorer]:
    """A server on a port of its own."""
    with explore(python) as running:
        yield running


@pytest.fixture
def visit(browser: Browser, explorer: Explorer) -> Iterator[Visit]:
    """Opens tabs, each in a browser of its own; afterwards none may have complained, or have asked another host."""
    opened: list[ExplorerPage] = []

    def new(server: Explorer = explorer, **options: object) -> ExplorerPage:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})  # type: ignore[arg-type]
        origin = server.url.rstrip("/")
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=origin)
        opened.append(ExplorerPage(context, origin))
        return opened[-1]

    yield new
    for tab in opened:
        tab.context.close()
    assert [tab.complaints for tab in opened] == [[] for _ in opened]
    assert [tab.foreign for tab in opened] == [[] for _ in opened]


@pytest.fixture(scope="module")
def movers(world: World, python: SteeredRetriever) -> list[int]:
    """Two features that change which passages answer the question, and in which order."""
    embedding = world.embedder.embed_queries([QUESTION])[0]
    plain = [hit.id for hit in python.search(QUESTION, k=10, embedding=embedding)]
    found = []
    for feature in sorted(world.catalog.labelled, key=lambda feature: (-feature.frequency, feature.id)):
        hits = python.search(QUESTION, k=10, steer={f"#{feature.id}": 1.0}, embedding=embedding)
        if {hit.id for hit in hits} != set(plain) and any(hit.id in plain[3:] for hit in hits[:3]):
            found.append(feature.id)
        if len(found) == 2:
            return found
    raise AssertionError("no feature moves this question's hits")


def movement(rank: int, hit: Hit) -> str:
    """How a hit has moved, as the page says it."""
    if hit.base_rank is None:
        return "▲ new"
    steps = hit.base_rank - rank
    return "=" if steps == 0 else f"{'▲' if steps > 0 else '▼'} {abs(steps)} (was {hit.base_rank})"


# -- the bench --------------------------------------------------------------------------------------------------------


def test_what_is_typed_before_the_page_is_ready_is_kept(visit: Visit, python: SteeredRetriever) -> None:
    tab = visit()
    held: list[Route] = []
    tab.page.route("**/api/about", lambda route: held.append(route))
    tab.open()
    tab.at("query").press_sequentially(QUESTION[:9])
    tab.eventually(lambda: len(held), bool)
    held[0].continue_()
    tab.eventually(lambda: tab.at("query").input_value(), lambda text: text == QUESTION[:9])
    tab.page.unroute("**/api/about")
    tab.at("query").press_sequentially(QUESTION[9:])
    tab.shows(python.search(QUESTION, k=10))


def test_a_slider_moves_the_ranking_to_what_python_finds(
    visit: Visit, python: SteeredRetriever, movers: list[int]
) -> None:
    tab = visit()
    tab.open()
    tab.at("query").press_sequentially(QUESTION)  # found while it is typed
    plain = python.search(QUESTION, k=10)
    tab.shows(plain, "before")
    tab.shows(plain)
    chips = tab.at("chip").evaluate_all("nodes => nodes.map(node => Number(node.dataset.feature))")
    assert len(chips) == len(set(chips)) > 0
    row = tab.add_feature(f"#{movers[0]}")
    turn = int(tab.at("status").get_attribute("data-turn") or 0)
    tab.drag(row.get_by_test_id("edit-slider"), 1.5, release=False)
    # The ranking moves while the knob does, not when it is let go.
    tab.eventually(lambda: int(tab.at("status").get_attribute("data-turn") or 0), lambda now: now > turn)
    tab.page.mouse.up()
    strength = float(row.get_by_test_id("edit-number").input_value())
    assert strength == pytest.approx(1.5, abs=0.1)
    steer = {f"#{movers[0]}": strength}
    hits = python.search(QUESTION, k=10, steer=steer)
    assert [hit.id for hit in hits] != [hit.id for hit in plain]
    tab.shows(hits)
    tab.shows(plain, "before")
    moves = (
        tab.at("after").get_by_test_id("move").evaluate_all("nodes => nodes.map(node => node.firstChild.textContent)")
    )
    assert moves == [movement(rank, hit) for rank, hit in enumerate(hits, start=1)]
    gone = tab.page.locator("#before > .left").evaluate_all("nodes => nodes.map(node => node.dataset.id)")
    assert gone == [hit.id for hit in plain if hit.id not in {other.id for other in hits}]
    assert tab.at("drift-cosine").text_content() == f"{python.query_cosine(QUESTION, steer=steer).cosine:.3f}"
    # Why, beside every hit, and in full where it is asked for.
    first = tab.at("after-hit").first
    for hit in tab.at("after-hit").all():
        kinds = hit.get_by_test_id("bar").evaluate_all("nodes => nodes.map(node => node.dataset.kind)")
        assert {"feature", "unexplained"} <= set(kinds)
    assert "steering" in first.get_by_test_id("bar").evaluate_all("nodes => nodes.map(node => node.dataset.kind)")
    first.get_by_test_id("why").locator("summary").click()
    assert "steering" in (first.get_by_test_id("sentence").text_content() or "")
    row.get_by_test_id("edit-on").uncheck()
    tab.shows(plain)


def test_steps_are_undone_one_by_one(visit: Visit, python: SteeredRetriever, movers: list[int]) -> None:
    tab = visit()
    tab.open()
    tab.at("query").fill(QUESTION)
    tab.at("search").click()
    tab.shows(python.search(QUESTION, k=10))
    row = tab.add_feature(f"#{movers[0]}")
    tab.shows(python.search(QUESTION, k=10, steer={f"#{movers[0]}": 0.5}))
    tab.drag(row.get_by_test_id("edit-slider"), 1.6)
    dragged = float(row.get_by_test_id("edit-number").input_value())
    tab.shows(python.search(QUESTION, k=10, steer={f"#{movers[0]}": dragged}))
    tab.page.wait_for_timeout(1100)  # turns of one knob within a second are one step
    tab.at("edit-number").fill("1.2")
    tab.at("edit-number").press("Enter")
    tab.shows(python.search(QUESTION, k=10, steer={f"#{movers[0]}": 1.2}))
    tab.at("edit-remove").click()
    tab.shows(python.search(QUESTION, k=10))
    for strength in (1.2, dragged, 0.5):  # however far it was dragged: one step
        tab.at("undo").click()
        tab.shows(python.search(QUESTION, k=10, steer={f"#{movers[0]}": strength}))
        assert float(tab.at("edit-number").input_value()) == strength
    tab.at("undo").click()
    tab.shows(python.search(QUESTION, k=10))
    assert tab.at("edit").count() == 0


def test_all_of_it_without_a_mouse(visit: Visit, python: SteeredRetriever, movers: list[int]) -> None:
    tab = visit()
    tab.open()
    tab.page.wait_for_load_state("networkidle")
    keyboard = tab.page.keyboard
    tab.tab_to("query")
    keyboard.type(QUESTION)
    keyboard.press("Enter")
    tab.shows(python.search(QUESTION, k=10))
    tab.tab_to("feature-search")
    keyboard.type(f"#{movers[0]}")
    tab.at("feature-option").first.wait_for()
    keyboard.press("Enter")
    assert tab.page.evaluate("document.activeElement.dataset.testid") == "edit-slider"
    for _ in range(6):
        keyboard.press("ArrowRight")
    assert float(tab.at("edit-number").input_value()) == pytest.approx(0.8)
    tab.shows(python.search(QUESTION, k=10, steer={f"#{movers[0]}": 0.8}))
    keyboard.press("Control+z")
    undone = float(tab.at("edit-number").input_value())
    assert undone < 0.79  # all turns that came within a second
    tab.shows(python.search(QUESTION, k=10, steer={f"#{movers[0]}": undone}))
    focus = tab.page.evaluate("document.activeElement.dataset.testid")
    assert focus == "edit-slider", "who undoes by keyboard stays where they were"
    tab.tab_to("edit-side")
    keyboard.press("ArrowDown")
    tab.shows(python.search(QUESTION, k=10, steer={f"#{movers[0]}": Add(undone, "query")}))
    tab.tab_to("copy-link")
    keyboard.press("Enter")
    tab.eventually(lambda: tab.at("status").text_content(), lambda said: said == "The link is copied.")
    assert tab.at("error").is_hidden()


def test_a_link_restores_the_whole_bench_in_another_browser(
    visit: Visit, python: SteeredRetriever, movers: list[int]
) -> None:
    tab = visit()
    tab.open()
    tab.at("query").fill(f"{QUESTION}, straße 東京 🦆")
    tab.at("search").click()
    tab.add_feature(f"#{movers[0]}").get_by_test_id("edit-number").fill("0.85")
    second = tab.add_feature(f"#{movers[1]}")
    second.get_by_test_id("edit-op").select_option("suppress")
    third = tab.add_feature("#5")
    third.get_by_test_id("edit-on").uncheck()
    tab.page.locator("#more-options summary").click()
    tab.at("k").fill("7")
    tab.at("fetch-k").fill("60")
    tab.at("drift-cap").fill("0.6")
    tab.at("drift-cap").press("Enter")
    steer = {f"#{movers[0]}": 0.85, f"#{movers[1]}": Suppress()}
    hits = python.search(f"{QUESTION}, straße 東京 🦆", k=7, fetch_k=60, drift_cap=0.6, steer=steer)
    tab.shows(hits)
    tab.at("copy-link").click()
    tab.eventually(lambda: tab.at("status").text_content(), lambda said: said == "The link is copied.")
    link = tab.page.evaluate("navigator.clipboard.readText()")
    other = visit()
    other.open(link)
    other.shows(hits)
    fields = ("query", "k", "fetch-k", "side", "space", "drift-cap", "edit-on", "edit-number", "edit-op", "edit-side")
    read = "nodes => nodes.map(node => node.type === 'checkbox' ? node.checked : node.value)"
    for field in fields:
        assert other.at(field).evaluate_all(read) == tab.at(field).evaluate_all(read), field
    rows = "nodes => nodes.map(node => node.dataset.name)"
    assert other.at("edit").evaluate_all(rows) == [f"#{movers[0]}", f"#{movers[1]}", "#5"]
    other.page.reload()
    other.shows(hits)


def test_copied_python_runs_as_it_is(
    visit: Visit, explorer: Explorer, python: SteeredRetriever, movers: list[int], tmp_path: Path
) -> None:
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    steer = {f"#{movers[0]}": Add(0.9, "both"), f"#{movers[1]}": -0.4}
    tab = visit()
    tab.open(explorer.link(QUESTION, steer, k=4))
    tab.shows(python.search(QUESTION, k=4, steer=steer))
    shown = tab.page.evaluate(
        "[...document.querySelectorAll('#after > li')].map(row => "
        "row.querySelector('[data-testid=score]').textContent + ' ' + row.dataset.id)"
    )
    running = {}
    try:
        for framework in ("langchain", "llama-index"):
            tab.at(f"copy-{framework}").click()
            tab.at("text-body").wait_for()
            code = tab.at("text-body").text_content() or ""
            assert tab.page.evaluate("navigator.clipboard.readText()") == code
            tab.at("text-close").click()
            script = tmp_path / f"{framework}.py"
            script.write_text(code, encoding="utf-8")
            command = [sys.executable, str(script)]
            running[code] = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", cwd=tmp_path
            )
        for code, process in running.items():
            out, err = process.communicate(timeout=280)
            assert process.returncode == 0, code + err
            assert out.splitlines() == shown
    finally:
        for process in running.values():
            process.kill()


def test_a_policy_is_saved_and_loaded_again(
    visit: Visit, explorer: Explorer, python: SteeredRetriever, movers: list[int], tmp_path: Path
) -> None:
    steer = {f"#{movers[0]}": Add(0.9, "both"), f"#{movers[1]}": Suppress()}
    tab = visit()
    tab.open(explorer.link(QUESTION, steer, drift_cap=0.7))
    hits = python.search(QUESTION, k=10, steer=steer, drift_cap=0.7)
    tab.shows(hits)
    with tab.page.expect_download() as download:
        tab.at("save-policy").click()
    download.value.save_as(tmp_path / "policy.json")
    assert download.value.suggested_filename == "policy.json"
    assert Steering.load(tmp_path / "policy.json") == python.resolve(steer, drift_cap=0.7)
    tab.at("clear").click()
    tab.shows(python.search(QUESTION, k=10))
    tab.at("load-policy").set_input_files(tmp_path / "policy.json")
    tab.eventually(tab.at("edit").count, lambda count: count == 2)
    tab.shows(hits)


def test_an_unknown_name_is_told_where_everybody_notices(visit: Visit, explorer: Explorer) -> None:
    tab = visit()
    tab.open(explorer.link(QUESTION, {"zebra crossings": 0.5}))
    tab.at("error").wait_for()
    assert tab.at("error").get_attribute("role") == "alert"
    assert "Nearest features: #" in (tab.at("error").text_content() or "")
    tab.at("edit-on").uncheck()
    tab.eventually(tab.at("error").is_hidden, bool)
    tab.eventually(lambda: len(tab.hits()), lambda count: count == 10)
    assert [said for said in tab.complaints if "422" not in said] == []
    tab.complaints.clear()


# -- features, the map, compare ---------------------------------------------------------------------------------------


def test_a_name_stays(visit: Visit, world: World, filled_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(filled_folder / "sae", tmp_path / "sae")
    store = ChromaStore.open(world.sae, path=filled_folder / "chroma")
    catalog = FeatureCatalog.load(tmp_path / "sae", world.sae.fingerprint)
    feature = max(catalog.labelled, key=lambda one: (one.frequency, -one.id))
    name = "things <b>at once</b>"
    with explore(SteeredRetriever(store, world.embedder, catalog)) as running:
        tab = visit(running)
        tab.open(f"/features/{feature.id}")
        tab.eventually(lambda: tab.at("feature-title").text_content() or "", lambda said: feature.label in said)
        tab.eventually(tab.at("top").locator("mark").count, lambda count: count > 0)
        tab.at("rename").click()
        tab.at("new-label").fill(name)
        tab.at("new-note").fill("mine")
        tab.at("save-name").click()
        title = f"{name} #{feature.id}"
        tab.eventually(lambda: tab.at("feature-title").text_content(), lambda said: said == title)
        tab.page.reload()
        tab.eventually(lambda: tab.at("feature-title").text_content(), lambda said: said == title)
        assert "mine" in (tab.at("facts").text_content() or "")
        tab.at("steer-by").click()
        tab.eventually(lambda: tab.at("edit-name").text_content(), lambda said: said == title)
        tab.at("query").fill(QUESTION)
        tab.page.wait_for_load_state("networkidle")  # a server that ends lets go of what it is asked
        tab.page.goto("about:blank")  # typing asks again after a moment: not a server that is gone
    again = FeatureCatalog.load(tmp_path / "sae", world.sae.fingerprint)
    assert again[feature.id].label == name
    with explore(SteeredRetriever(store, world.embedder, again)) as running:
        tab = visit(running)
        tab.open("/features")
        tab.at("find").fill("things at once")
        first = tab.at("feature-row").first
        tab.eventually(lambda: first.get_attribute("data-feature"), lambda found: found == str(feature.id))
        tab.open(f"/features/{feature.id}")
        tab.at("unname").click()
        tab.eventually(lambda: tab.at("feature-title").text_content() or "", lambda said: feature.label in said)
        tab.page.wait_for_load_state("networkidle")
    assert FeatureCatalog.load(tmp_path / "sae", world.sae.fingerprint)[feature.id].label == feature.label


def test_the_map_has_every_live_feature_and_leads_to_it(visit: Visit, world: World) -> None:
    tab = visit()
    tab.open("/map")
    live = int((world.catalog.calibration.count > 0).sum())
    tab.eventually(lambda: tab.at("map").get_attribute("data-points"), lambda points: points == str(live))
    pixels = "node.getContext('2d').getImageData(0, 0, node.width, node.height).data.buffer"
    drawn = f"node => new Set(new Uint32Array({pixels})).size"
    assert tab.at("map").evaluate(drawn) > 20
    feature = world.catalog.labelled[0]
    tab.at("map-find").fill(f"#{feature.id}")
    tab.at("found-feature").first.wait_for()
    tab.at("colour").select_option("frequency")
    tab.at("found-feature").first.locator("a").click()
    tab.eventually(lambda: tab.at("feature-title").text_content() or "", lambda said: feature.label in said)
    tab.page.wait_for_load_state("networkidle")


def test_this_not_that_and_judged_hits_become_a_steering(visit: Visit, python: SteeredRetriever) -> None:
    positive, negative = ["Start a new thread of control.", "Threads share memory."], ["A month of the calendar."]
    tab = visit()
    tab.open("/compare")
    tab.at("positive").fill("\n\n".join(positive))
    tab.at("negative").fill("\n\n".join(negative))
    tab.at("contrast").click()
    contrast = python.contrast(positive, negative)
    tab.eventually(tab.at("reason").count, lambda count: count == len(contrast.reasons))
    tab.at("judge-query").fill(QUESTION)
    tab.at("judge-search").click()
    plain = python.search(QUESTION, k=10)
    tab.shows(plain, "judge-hits")
    tab.at("judge-hit").nth(4).get_by_test_id("judge-up").click()
    tab.at("judge-hit").nth(0).get_by_test_id("judge-down").click()
    tab.at("autosteer").click()
    judged = python.autosteer([plain[4].id], [plain[0].id], query=QUESTION)
    said = tab.at("ranks").text_content() or ""
    assert f"{judged.ranks_before[0]:.1f} without" in said
    assert f"{judged.ranks_after[0]:.1f} with it" in said
    tab.at("autosteer-result").get_by_test_id("open-bench").click()
    tab.shows(python.search(QUESTION, k=10, steer=judged.steering))


# -- every view -------------------------------------------------------------------------------------------------------


def test_hostile_texts_are_inert(
    visit: Visit, world: World, world_embedder: CachedEmbedder, filled_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(filled_folder / "sae", tmp_path / "sae")
    catalog = FeatureCatalog.load(tmp_path / "sae", world.sae.fingerprint)
    store = ChromaStore.open(world.sae, path=tmp_path / "chroma")
    ids = ["plain", "<b>bold</b>", "huge"]
    texts = ["a thread", HOSTILE, "thread" * 70_000]
    store.add(ids, texts, [{"<i>key</i>": HOSTILE}] * 3, embedder=world_embedder)
    names = world.sae.encode(world_embedder.embed_documents([HOSTILE])).truncate(world.sae.config.k_labels)
    feature = int(names.indices[0, 0])
    catalog.annotate(feature, HOSTILE[:80], HOSTILE)
    with explore(SteeredRetriever(store, world.embedder, catalog)) as running:
        tab = visit(running, viewport={"width": 390, "height": 844})
        for address in (running.link("a thread", {f"#{feature}": 0.7}), "/features", f"/features/{feature}", "/map"):
            tab.open(address)
            tab.page.wait_for_load_state("networkidle")
            if "#" in address:
                tab.eventually(lambda: len(tab.hits()), lambda count: count == 3)
                for summary in tab.page.locator("summary").all():
                    summary.click()
                for button in tab.at("show-all").all():
                    if button.is_visible():
                        button.click()
                huge = tab.page.locator("#after [data-id=huge]").get_by_test_id("text")
                tab.eventually(lambda: len(huge.text_content() or ""), lambda length: length > 200_000)  # noqa: B023
                hostile = tab.page.locator("#after > li").filter(has_text="bold").get_by_test_id("text")
                assert hostile.text_content() == HOSTILE
                assert hostile.get_attribute("dir") == "auto"
            assert tab.page.evaluate("window.hacked === undefined")
            within = "main script, main img, main b, main i:not(#legend i), main a[href^='javascript']"
            assert tab.page.locator(within).count() == 0, address
            assert tab.overflow() == [], address


def seen(tab: ExplorerPage, explorer: Explorer, movers: list[int]) -> Iterator[str]:
    """Every view of the explorer, with something in it."""
    steer = {f"#{movers[0]}": 1.8, f"#{movers[1]}": -0.5}
    tab.open(explorer.link(QUESTION, steer))
    tab.eventually(lambda: len(tab.hits()), lambda count: count == 10)
    tab.at("edit-on").last.uncheck()
    for test_id in ("bar", "chip"):
        tab.at(test_id).first.wait_for()
    tab.at("why").first.locator("summary").click()
    tab.page.locator("#more-options summary").click()
    tab.at("feature-search").press_sequentially("thread")
    tab.at("feature-option").first.wait_for()
    yield "bench"
    tab.at("feature-search").fill("")
    tab.at("copy-langchain").click()
    tab.at("text-body").wait_for()
    yield "a dialog"
    tab.open("/features")
    tab.at("feature-row").first.wait_for()
    yield "features"
    tab.open(f"/features/{movers[0]}")
    tab.eventually(tab.at("top").locator("mark").count, lambda count: count > 0)
    tab.at("rename").click()
    yield "a feature"
    tab.open("/map")
    tab.at("map-find").fill("thread")
    tab.at("found-feature").first.wait_for()
    tab.at("colour").select_option("frequency")
    yield "the map"
    tab.open("/compare")
    tab.at("judge-hit").first.wait_for()
    tab.at("contrast").click()  # with nothing pasted: an error in sight
    tab.at("error").wait_for()
    yield "an error"
    tab.at("positive").fill("Start a new thread of control.")
    tab.at("contrast").click()
    tab.at("reason").first.wait_for()
    tab.at("judge-up").first.click()
    tab.page.mouse.move(0, 0)
    yield "compare"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_every_text_has_contrast_and_fits_the_window(
    scheme: str, width: int, visit: Visit, explorer: Explorer, movers: list[int]
) -> None:
    tab = visit(color_scheme=scheme, viewport={"width": width, "height": 844}, reduced_motion="reduce")
    for view in seen(tab, explorer, movers):
        assert tab.unreadable() == [], view
        assert tab.overflow() == [], view
        if view == "bench":  # a finger can turn it
            assert tab.at("edit-slider").first.evaluate("node => node.clientWidth") > 100
