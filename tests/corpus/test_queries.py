"""Query-like texts made of passages, and files of real queries."""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_steer_retriever.corpus.passage import Passage
from sae_steer_retriever.corpus.query_texts import query_texts, read_queries, sentences
from sae_steer_retriever.corpus.read_corpus import read_corpus
from sae_steer_retriever.errors import CorpusError


def passage(text: str, title: str = "", name: str = "p") -> Passage:
    return Passage(name, f"{title}\n{text}" if title else text, title)


def texts_of(text: str, title: str = "", per_passage: int = 50) -> list[str]:
    return [found.text for found in query_texts([passage(text, title)], per_passage=per_passage)]


@pytest.mark.parametrize(
    "expected",
    [
        ["Dr. Jones met Mrs. Smith at St. Mary's.", "They talked."],
        ["J. R. R. Tolkien wrote it.", "It sold well."],
        ["The U.S. Navy paid $3.5 million.", "Nobody asked why."],
        ["See Fig. 2 and Eq. 3 of Smith et al. 2009 for details.", "We agree."],
        ["Use fruit, e.g. Apples, i.e. what grows.", "Then stop."],
        ["It rose by 0.5 in version 2.0.1 of the tool.", "Fine."],
        ['He said "stop!"', '"Why?" she asked.', "(Nobody knew.)", "It ended..."],
        ["Is it legal?", "Yes!", "The rule is no. 7 of the list.", "She said no.", "We left."],
        ["wait... what happened then.", "Über alles.", "¿Qué pasa?", "Nada."],
        ["東京は雨です。", "明日は晴れ！", "本当？"],
        ["Visit example.com for more.", "It is free."],
        ["It cost 20 euros.", "30 were left."],
        ["J.-P. Sartre stayed at Mary's.", "He drank HER2-B.", "Fine."],
    ],
)
def test_sentences(expected: list[str]) -> None:
    joint = "" if "。" in expected[0] else " "
    assert list(sentences(joint.join(expected))) == expected


def test_text_in_lower_case_is_split_too() -> None:
    assert list(sentences("first part ends. second part. see fig. 3 there.")) == [
        "first part ends.", "second part.", "see fig. 3 there.",
    ]  # fmt: skip


@given(st.text(st.sampled_from("aB. 1!?\n\"')e.g语。"), max_size=80))
def test_sentences_lose_nothing_but_white_space(text: str) -> None:
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_titles_come_first_then_sentences() -> None:
    text = "Parcels leave within two days. They are insured up to 500 euros.\n\nShort one."
    assert texts_of(text, "Shipping times") == [
        "Shipping times", "Parcels leave within two days.", "They are insured up to 500 euros.",
    ]  # fmt: skip


def test_sentences_of_hard_wrapped_lines_are_joined_and_list_items_are_not() -> None:
    text = (
        "The quick brown fox that everybody knows jumped over\nthe lazy dog of the neighbours.\n\n"
        "- **Open** the valve with [the key](https://example.org/key)\n- Close the valve again afterwards\n"
        "1. Then inform the shift supervisor"
    )
    assert texts_of(text) == [
        "The quick brown fox that everybody knows jumped over the lazy dog of the neighbours.",
        "Open the valve with the key",
        "Close the valve again afterwards",
        "Then inform the shift supervisor",
    ]


def test_code_tables_and_fragments_are_left_out() -> None:
    text = (
        "The function returns the number of rows.\n\n"
        "```python\nprint('this line is surely not a query')\n```\n"
        "    for (int i = 0; i < count; i++) { total += rows[i]; }\n"
        "| Name of the column | Its unit | Its range |\n"
        "Trainees of all years\t25 days\n"
        "Name          Age          Place of birth\n"
        "https://example.org/a/very/long/address/of/a/page\n"
        "12.5 13.75 18.25 19.5 22.0 23.125\n"
        "Too short.\n" + "word " * 80 + "and the end of it all."
    )
    assert texts_of(text) == ["The function returns the number of rows."]


def test_science_is_not_taken_for_code() -> None:
    claim = "Mortality fell significantly (p < .05, n = 120) in patients with HER2-positive tumours."
    assert texts_of(claim) == [claim]
    notation = "Fast [Ca(2+)](i) imaging shows a `gain of function' in HER2-B."
    assert texts_of(notation + " Cells die.") == [notation]


def test_no_text_is_given_twice() -> None:
    passages = [
        passage("It is the same sentence here. This one is different though.", "Introduction", "a"),
        passage("It is the  SAME sentence here. It is the same sentence here.", "Introduction", "b"),
    ]
    found = query_texts(passages)
    assert [(text.text, text.passage_index) for text in found] == [
        ("Introduction", 0), ("It is the same sentence here.", 0), ("This one is different though.", 0),
    ]  # fmt: skip


def test_text_without_punctuation_gives_stretches_of_words() -> None:
    text = "an electronic analogue computer for solving systems of linear equations with amplifiers " * 6
    found = texts_of(text)
    assert len(found) > 2
    assert all(20 <= len(piece) <= 150 and piece in " ".join(text.split()) for piece in found)
    assert texts_of(text, "Analogue computers") == ["Analogue computers"]


MANY = [
    passage(" ".join(f"Document {index} has the sentence {n}." for n in range(12)), f"Title {index}", f"p{index}")
    for index in range(40)
]


def test_at_most_so_many_of_a_passage() -> None:
    counts = Counter(found.passage_index for found in query_texts(MANY))
    assert counts == {index: 4 for index in range(40)}
    assert {found.text for found in query_texts(MANY, per_passage=1)} == {f"Title {index}" for index in range(40)}


def test_the_choice_is_seeded_and_independent_of_other_passages() -> None:
    assert query_texts(MANY, seed=1) == query_texts(MANY, seed=1)
    assert query_texts(MANY, seed=1) != query_texts(MANY, seed=2)
    assert [found.text for found in query_texts(MANY[7:8])] == [
        found.text for found in query_texts(MANY) if found.passage_index == 7
    ]


def test_a_limit_takes_a_seeded_sample_in_order() -> None:
    everything = query_texts(MANY)
    some = query_texts(MANY, 50)
    assert len(some) == 50
    assert some == [found for found in everything if found in some]
    assert some == query_texts(MANY, 50) != query_texts(MANY, 50, seed=3)
    assert len({found.passage_index for found in some}) > 20
    assert query_texts(MANY, 10_000) == everything
    assert query_texts(MANY, 0) == []


def test_a_passage_of_marks_takes_no_longer_than_its_length_justifies() -> None:
    before = time.process_time()
    for mark in (".", "a. ", "[", "[a](", "|", " " * 50 + "x", "\n", "http://", "`", "("):
        texts_of(mark * (100_000 // len(mark)))
    assert time.process_time() - before < 10


def test_scifact_gives_about_twenty_thousand(shared_data: Path) -> None:
    corpus = read_corpus(shared_data / "scifact")
    found = query_texts(corpus.passages)
    assert 19_500 < len(found) < 4 * 5183
    assert all(text.text in " ".join(corpus.passages[text.passage_index].text.split()) for text in found)
    titles = {passage.title for passage in corpus.passages}
    assert sum(text.text in titles for text in found) > 5_000


# --- files of queries ------------------------------------------------------------------------------------------


def test_queries_are_read_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_bytes("\ufeffwho?\r\n\r\n  where? \r\nwho?\r\n".encode())
    assert read_queries(tmp_path / "q.txt") == ["who?", "where?"]


def test_queries_are_read_from_json_lines(tmp_path: Path) -> None:
    rows = [{"_id": 1, "text": "who?"}, {"query": "where?"}, {"other": "x"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "q.jsonl").write_bytes(lines)
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(lines))
    assert read_queries(tmp_path / "q.jsonl") == read_queries(tmp_path / "q.jsonl.gz") == ["who?", "where?"]


def test_bad_files_of_queries_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such file of queries"):
        read_queries(tmp_path / "absent.txt")
    for name, content, message in [
        ("blank.txt", b"\n \n", "no query in"),
        ("other.jsonl", b'{"title": "x"}\n', "'text' or 'query'"),
        ("broken.jsonl", b'{"text": "x"}\n{"text"\n', "line 2 is not valid JSON"),
        ("binary.txt", b"a\0b", "NUL bytes"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorpusError, match=message):
            read_queries(tmp_path / name)
