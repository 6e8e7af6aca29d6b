"""The trie: what it matches, its scores, and its three ways out (JSON, text, picture)."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_steer_retriever.errors import ArtifactError, MissingExtraError
from sae_steer_retriever.features.trie import DEPTH, Trie, TrieScore, Window, detection
from sae_steer_retriever.labelling.trie_picture import draw_trie

WINDOWS = st.lists(
    st.builds(
        Window,
        words=st.lists(st.text(max_size=60), min_size=1, max_size=12).map(tuple),
        activation=st.floats(allow_nan=True, allow_infinity=True, width=32),
    ),
    max_size=12,
)


@pytest.fixture
def trie() -> Trie:
    """What carries "interest rates": the peak "rates" needs "interest" before it, "lending" needs nothing."""
    return Trie.build(
        [
            Window(("interest", "rates"), 0.6),
            Window(("Interest", "rate"), 0.5),
            Window(("mortgage", "rates"), 0.4),
            Window(("lending",), 0.45),
        ]
    )


def test_a_window_is_found_only_where_all_its_words_stand_in_a_row(trie: Trie) -> None:
    assert trie.matches(["higher", "interest", "rates", "again"])
    assert not trie.matches(["rates", "of", "interest"])
    assert not trie.matches(["rates"])
    assert trie.matches(["lending"])
    assert not trie.matches([])


def test_case_plural_possessive_and_compounds_make_no_other_word(trie: Trie) -> None:
    assert trie.strength("An INTEREST RATE of 4 %") == pytest.approx(0.6)
    assert trie.strength("The mortgage rate's fall") == pytest.approx(0.4)
    assert trie.strength("Nothing of the kind") == 0.0
    assert trie.strength("peer-to-peer-lending") == pytest.approx(0.45)
    assert Trie.build([Window(("Alzheimer\u2019s",), 1.0)]).matches(["Alzheimer's"])


def test_a_compound_in_the_trie_is_not_found_by_one_of_its_parts() -> None:
    assert not Trie.build([Window(("virus-infected",), 1.0)]).matches(["virus"])


def test_words_are_the_heaviest_first_and_phrases_where_no_word_suffices(trie: Trie) -> None:
    assert trie.words() == ("interest rates", "lending", "mortgage rates")
    assert trie.words(1) == ("interest rates",)
    shorter = Trie.build([Window(("t", "cell"), 0.9), Window(("cells",), 0.2)])
    assert shorter.words() == ("cell",)


def test_nodes_count_the_windows_that_pass(trie: Trie) -> None:
    counts = {words: (node.count, node.end) for words, node in trie.nodes()}
    assert counts[("rates",)] == (3, False)
    assert counts[("interest", "rates")] == (2, True)
    assert len(trie) == 4


def test_detection_counts_hits_and_mistakes(trie: Trie) -> None:
    has = ["interest rates rose", "lending", "a text on money"]
    lacks = ["lending a hand", "rates of decay", "a dog", "a cat"]
    assert detection(trie, has, lacks) == TrieScore(precision=2 / 3, recall=2 / 3)
    empty = detection(Trie(), has, lacks)
    assert math.isnan(empty.precision)
    assert empty.recall == 0.0
    assert math.isnan(detection(trie, [], lacks).recall)


@given(WINDOWS)
@settings(max_examples=150, deadline=None)
def test_json_gives_the_same_trie_back_whatever_the_words_are(windows: list[Window]) -> None:
    trie = Trie.build(windows)
    written = json.dumps(trie.to_json(), ensure_ascii=False, allow_nan=False).encode()
    assert Trie.from_json(json.loads(written)) == trie


@given(WINDOWS)
@settings(max_examples=150, deadline=None)
def test_no_word_breaks_a_line_or_grows_long(windows: list[Window]) -> None:
    trie = Trie.build(windows)
    lines = trie.to_text().split("\n") if len(trie) else []
    assert len(lines) == len(trie)
    for words, node in trie.nodes():
        assert len(words) <= DEPTH
        assert node.word.isprintable()
        assert 0 < len(node.word) <= 40


@given(st.lists(st.lists(st.from_regex(r"[a-z]{1,6}", fullmatch=True), min_size=1, max_size=DEPTH), min_size=1))
@settings(max_examples=100, deadline=None)
def test_a_trie_matches_every_window_it_was_made_of(windows: list[list[str]]) -> None:
    trie = Trie.build([Window(tuple(words), 1.0) for words in windows])
    assert all(trie.matches(["before", *words, "after"]) for words in windows)


def test_order_of_windows_makes_no_difference(trie: Trie) -> None:
    windows = [Window(("b", "a"), 0.5), Window(("c", "a"), 0.5), Window(("A",), 0.1), Window(("d",), 0.5)]
    assert Trie.build(windows) == Trie.build(windows[::-1])


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"nodes": [{"word": "a"}]},
        {"nodes": [{"word": "", "activation": 1, "count": 1, "end": True}]},
        {"nodes": [{"word": "a", "activation": float("nan"), "count": 1, "end": True}]},
        {"nodes": [{"word": "a", "activation": 1, "count": 1, "end": "yes"}]},
        {"nodes": ["a"]},
        {"nodes": 3},
    ],
)
def test_a_foreign_object_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match="no trie"):
        Trie.from_json(body)


def test_an_object_nested_without_end_is_refused() -> None:
    node: dict[str, object] = {"word": "a", "activation": 1.0, "count": 1, "end": True}
    for _ in range(5_000):
        node = {**node, "before": [node]}
    with pytest.raises(ArtifactError, match="deeper than"):
        Trie.from_json({"nodes": [node]})


def test_text_is_an_indented_tree(trie: Trie) -> None:
    assert trie.to_text().split("\n") == [
        "rates  0.60 in 3",
        "  interest *  0.60 in 2",
        "  mortgage *  0.40 in 1",
        "lending *  0.45 in 1",
    ]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_picture_is_drawn_of_any_words(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    odd = [Window(("$x", "\\frac", "w" * 300), 0.5), Window(("\u6f22\u5b57", "\u202eevil\n"), 0.4)]
    many = [Window((f"before{number}", f"peak{number % 40}"), 1.0) for number in range(200)]
    for name, windows in {"odd": odd, "many": many, "none": []}.items():
        path = draw_trie(Trie.build(windows), tmp_path / "new" / f"{name}{suffix}", title="#12 $ a_b")
        assert path.stat().st_size > 500


def test_boxes_of_a_picture_do_not_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    save = figure.Figure.savefig

    def remember(self: object, *arguments: object, **options: object) -> None:
        drawn.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(figure.Figure, "savefig", remember)
    windows = [Window((("WM" * 9, "of", "a")[number % 3], f"peak{'W' * number}"), 1 + number) for number in range(25)]
    draw_trie(Trie.build(windows), tmp_path / "trie.png", title="W" * 50)
    (canvas,) = drawn
    canvas.draw_without_rendering()
    texts = [text for text in canvas.axes[0].texts if text.get_text()]
    extents = [(text.get_bbox_patch() or text).get_window_extent() for text in texts]
    assert len(extents) == 31
    whole = canvas.bbox
    for place, box in enumerate(extents):
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1
        assert not any(box.overlaps(other) for other in extents[:place])


def test_without_matplotlib_the_extra_is_named(trie: Trie, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"\[evaluate\]"):
        draw_trie(trie, tmp_path / "trie.png")
    with pytest.raises(ValueError, match="limit is 0"):
        draw_trie(trie, tmp_path / "trie.png", limit=0)
