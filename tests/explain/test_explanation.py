"""Explanations for people: what they say, that they sum, and that no text in them is markup."""

from __future__ import annotations

import dataclasses
import html.parser
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_world import World

from sae_steer_retriever.explain.attribution import Attribution, Contribution, SteeringTerm
from sae_steer_retriever.explain.explanation import Explanation
from sae_steer_retriever.explain.hits import Hit
from sae_steer_retriever.explain.text import listed, one_line, ordinal
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.search.options import SPACES
from sae_steer_retriever.steering.operations import Suppress

QUERY = "wait until a thread has finished"


def hit(why: Attribution | None, *, base_rank: int | None = 7, text: str = "A passage.", name: str = "a.md#1") -> Hit:
    score = 0.0 if why is None else why.total
    steering = 0.0 if why is None else sum(term.value for term in why.steering)
    return Hit(name, text, {}, score, score - steering, base_rank, why)


def told(
    features: list[tuple[int, str, float]],
    steering: list[tuple[str, str, float]] | None = None,
    *,
    bias: float = 0.0,
    residual: float = 0.0,
    **options: Any,
) -> Explanation:
    why = Attribution(
        tuple(Contribution(*part) for part in features),
        tuple(SteeringTerm(*term) for term in steering or []),
        bias,
        residual,
    )
    base_rank = options.pop("base_rank", 7)
    return Explanation("a question", hit(why, base_rank=base_rank), **{"rank": 2, "space": "original", **options})


# --- what the sentence says --------------------------------------------------------------------------------------


def test_the_sentence_names_rank_reasons_and_what_is_not_explained() -> None:
    found = told(
        [(1, "vaccine, immunisation", 0.21), (2, "children", 0.1), (3, "weather", 0.001)],
        [("fever", "document", 0.2)],
        residual=0.3,
        steered=True,
    )
    assert found.sentence == (
        "This passage ranks 2nd (7th without steering) mostly because it and the query share 'vaccine, immunisation' "
        "(+0.210) and 'children' (+0.100), and the steering by 'fever' adds 0.200; 37 % of the score is not explained "
        "by named features."
    )


def test_what_speaks_against_a_passage_is_said() -> None:
    sentence = told([(1, "tax", 0.1), (2, "law", -0.06)], [("pay", "query", -0.05)], steered=True).sentence
    assert "the steering by 'pay' takes 0.050 away" in sentence
    assert "'law' (-0.060) speaks against it" in sentence
    alone = told([(1, "tax", -0.1)], bias=0.3).sentence
    assert alone.startswith("This passage ranks 2nd, though no feature of the query speaks for it; 'tax' (-0.100)")


def test_both_sides_of_an_edit_are_told_as_one() -> None:
    sides = [("pay", "query", 0.2), ("pay", "document", 0.1), ("7", "document", 0.2)]
    sentence = told([], sides, steered=True, base_rank=None).sentence
    assert sentence == (
        "This passage ranks 2nd (far below without steering) mostly because the steering by 'pay' adds 0.300 and the "
        "steering by '#7' adds 0.200."
    )


def test_many_small_features_are_no_reason_but_are_counted() -> None:
    small = [(latent, f"word{latent}", 0.02) for latent in range(2, 40)]
    sentence = told([(1, "tax", 0.2), *small]).sentence
    assert "in part because it and the query share 'tax' (+0.200)" in sentence
    assert "38 other features add +0.760 in all" in sentence
    assert "word2" not in sentence
    assert "not explained" not in sentence


def test_labels_that_cannot_be_trusted_do_not_explain() -> None:
    found = told([(1, "unclear #1 (foo, bar)", 0.2), (2, "#2", 0.1), (3, "tax", 0.1)])
    assert "feature #1, whose label is unclear (+0.200)" in found.sentence
    assert "feature #2, which has no label (+0.100)" in found.sentence
    assert found.unnamed == pytest.approx(0.75)
    assert "75 % of the score is not explained by named features" in found.sentence
    assert "unclear #1 (foo, bar)" in found.table
    assert "#2 (no label)" in found.table


def test_a_label_that_looks_like_another_id_is_a_name() -> None:
    assert told([(1, "#12 in a series", 0.2)]).unnamed == 0.0


def test_nothing_at_all_can_be_explained() -> None:
    found = told([], space=None, rank=None)
    assert found.sentence == "This passage has a score of 0.000, though no feature of the query speaks for it."
    assert "what the search ranked by" in found.meaning
    assert found._repr_html_().startswith("<div")


def test_a_long_label_is_cut_in_the_sentence_and_whole_in_the_table() -> None:
    found = told([(1, "employment, salary, wages, jobs, bonuses", 0.2), (2, "x" * 400, 0.2)])
    assert "'employment, salary, wages, …'" in found.sentence
    assert "employment, salary, wages, jobs, bonuses #1" in found.table
    assert len(found.sentence) < 300


def test_ordinals() -> None:
    said = ["1st", "2nd", "3rd", "4th", "11th", "21st", "112th", "1,332nd"]
    assert [ordinal(number) for number in (1, 2, 3, 4, 11, 21, 112, 1332)] == said


def test_lists() -> None:
    assert [listed(list(texts)) for texts in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]


# --- the parts ---------------------------------------------------------------------------------------------------

numbers = st.floats(-1, 1, allow_subnormal=False)


@given(
    values=st.lists(numbers, max_size=20),
    terms=st.lists(numbers, max_size=3),
    bias=numbers,
    residual=numbers,
    space=st.sampled_from([*SPACES, None]),
)
def test_parts_sum_to_the_score_and_shares_to_one(
    values: list[float], terms: list[float], bias: float, residual: float, space: str | None
) -> None:
    features = [(latent, f"label {latent}", value) for latent, value in enumerate(values)]
    steering = [(f"edit {place}", "query", value) for place, value in enumerate(terms)]
    found = told(features, steering, bias=bias, residual=residual, space=space, steered=bool(terms))
    assert sum(part.value for part in found.parts) == pytest.approx(found.hit.score, abs=1e-9)
    shares = sum(part.share for part in found.parts)
    assert shares == pytest.approx(1.0 if any([*values, *terms, bias, residual]) else 0.0)
    assert 0 <= found.unnamed <= 1 + 1e-9
    assert "nan" not in str(found)
    assert "-0.000" not in str(found).replace(f"{found.hit.score:.3f}", "")
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_latent_space_has_no_bias_to_show() -> None:
    assert [part.kind for part in told([(1, "tax", 0.2)], space="latent").parts] == ["feature"]
    kinds = [part.kind for part in told([(1, "tax", 0.2)], space="reconstructed").parts]
    assert kinds == ["feature", "bias", "unexplained"]


# --- texts are data ----------------------------------------------------------------------------------------------


class Elements(html.parser.HTMLParser):
    """Which elements and attributes a page has, and what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.said = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said += data


BAD = "</td><script>alert(1)</script>\x1b[31m\u202e<img src=x onerror=alert(1)>\n\n\"'& "


def test_no_text_is_markup_or_steers_a_terminal() -> None:
    why = Attribution(
        (Contribution(1, BAD, 0.2), Contribution(2, f"unclear #2 ({BAD})", -0.2)),
        (SteeringTerm(BAD, "query", 0.1), SteeringTerm(BAD, "document", -0.4)),
        0.1,
        0.1,
    )
    found = Explanation(BAD, hit(why, text=BAD * 9, name=BAD), rank=1, space="original", steered=True)
    page = Elements()
    page.feed(found._repr_html_())
    assert page.open == []
    assert page.tags == {"div", "p", "b", "table", "thead", "tbody", "tr", "th", "td"}
    assert page.attributes == {"style", "scope", "aria-hidden"}
    assert "<script>alert(1)</script>" in page.said
    for text in (str(found), found.sentence, found.table, page.said):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "\n" not in found.sentence
    assert len(found.table.splitlines()) == 2 + len(found.parts)
    assert found.to_dict()["text"] == BAD * 9


@given(st.text())
def test_any_text_becomes_one_line(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert line == one_line(line)


def test_bars_are_as_long_as_the_parts_and_start_at_one_axis() -> None:
    page = told([(1, "tax", 0.3), (2, "law", -0.1)], space="latent")._repr_html_()
    assert "left:25.00%;width:75.00%" in page
    assert "left:0.00%;width:25.00%" in page
    assert page.count("left:25.00%;top:-.3em") == 2
    # The page's own text colour and background: nothing is set that a dark theme could clash with.
    assert "color:#" not in page
    assert "http" not in page
    assert "background:#FFF" not in page.upper()


# --- in a real store ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
def test_a_hit_and_its_id_are_explained_alike(retriever: SteeredRetriever, space: Any) -> None:
    for steer in (None, {40: 1.0}):
        hits = retriever.search(QUERY, k=6, space=space, steer=steer)
        for rank, found in enumerate(hits, start=1):
            given_hit, by_id = (retriever.explain(QUERY, what, space=space, steer=steer) for what in (found, found.id))
            assert given_hit.hit is found
            assert (given_hit.rank, by_id.rank) == (rank, rank)
            assert by_id.steered == (steer is not None)
            assert by_id.hit.score == pytest.approx(found.score, abs=1e-6)
            assert by_id.attribution.total == pytest.approx(found.score, abs=1e-4)
            assert f"ranks {ordinal(rank)}" in by_id.sentence
            assert by_id.hit.text == found.text


def test_what_ranks_low_can_be_asked_about(retriever: SteeredRetriever, world: World) -> None:
    last = retriever.search(QUERY, k=len(world.ids), explain=False)[-1]
    found = retriever.explain(QUERY, last.id)
    assert found.rank == len(world.ids)
    assert found.hit.score == pytest.approx(last.score, abs=1e-6)


def test_an_unexplained_hit_is_explained(retriever: SteeredRetriever) -> None:
    plain = retriever.search(QUERY, k=2, steer={40: 1.0}, explain=False)[1]
    found = retriever.explain(QUERY, plain, steer={40: 1.0})
    assert found.rank == 2
    assert found.hit.attribution is not None
    with pytest.raises(ValueError, match="give explain the query, steer, side and space of the search"):
        retriever.explain("sockets", plain)


def test_a_hit_of_another_search_keeps_its_reasons_without_a_rank(retriever: SteeredRetriever) -> None:
    found = retriever.search(QUERY, k=1, steer={40: 1.0}, side="query")[0]
    other = retriever.explain(QUERY, found)
    assert other.hit is found
    assert other.rank is None
    assert f"has a score of {found.score:.3f} ({found.base_score:.3f} without steering)" in other.sentence


def test_a_hit_of_another_tool_is_explained_as_it_is(retriever: SteeredRetriever) -> None:
    made = told([(1, "tax", 0.2)]).hit
    assert retriever.explain(QUERY, made).sentence.startswith("This passage has a score of 0.200 mostly because")


def test_passages_that_are_no_hits_are_refused(retriever: SteeredRetriever) -> None:
    with pytest.raises(ValueError, match="no passage 'nowhere' in collection 'docs'"):
        retriever.explain(QUERY, "nowhere")
    first = retriever.search(QUERY, k=1)[0]
    with pytest.raises(ValueError, match="is not among the hits of this query"):
        retriever.explain(QUERY, first.id, where={"module": "calendar"})
    with pytest.raises(TypeError, match="hit must be a Hit or a passage's id, got int"):
        retriever.explain(QUERY, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="query must be a text"):
        retriever.explain(3, first)  # type: ignore[arg-type]


def test_suppression_shows_in_the_place(retriever: SteeredRetriever) -> None:
    first = retriever.search(QUERY, k=1)[0]
    assert first.attribution is not None
    steer = {first.attribution.features[0].feature: Suppress()}
    hits = retriever.search(QUERY, k=3, steer=steer)
    found = retriever.explain(QUERY, hits[0], steer=steer)
    assert found.steered
    assert "without steering)" in found.sentence


def test_a_hit_without_an_attribution_has_no_explanation() -> None:
    with pytest.raises(ValueError, match="has no attribution: search with explain=True"):
        Explanation("a question", dataclasses.replace(hit(None)))
