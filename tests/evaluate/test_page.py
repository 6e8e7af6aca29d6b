"""The report page: complete, self-contained, and safe whatever a dataset or a label is called."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from judged_world import fidelity_of, meaning_of, same

from sae_steer_retriever.evaluate.agreement import Agreement, RankingAgreement
from sae_steer_retriever.evaluate.page import write_page
from sae_steer_retriever.evaluate.plots import Plot, draw_features, finish_axes, new_canvas
from sae_steer_retriever.evaluate.report_tables import agreement_table, fidelity_table, meaning_table
from sae_steer_retriever.evaluate.table import Column, Table
from sae_steer_retriever.evaluate.verdict import judge

EVIL = '<script>alert("1")</script> & <img src=x onerror=alert(2)>'


class Elements(HTMLParser):
    """The elements, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("page") / "new" / "report"
    canvas = new_canvas(4, 3)
    axes = canvas.subplots()
    axes.errorbar([32.0, 64.0], [0.8, 0.9], yerr=[[0.1, 0.1], [0.1, 0.1]], label="mse", marker="o")
    axes.legend()
    finish_axes(axes, f"{EVIL}, $x$", "K", "kept")
    plots = [
        Plot("losses", EVIL, EVIL, canvas),
        Plot("features", "Features", "Labels.", draw_features([0.9, 0.8], [0.1, 0.2])),
    ]
    table = Table(EVIL, (Column(EVIL), Column("n")), ((EVIL, 7),), (EVIL,))
    rows = {name: RankingAgreement(same(0.7), same(0.8)) for name in ("reconstructed", "original_x_reconstructed")}
    fidelity, agreement = fidelity_of(0.97, dataset=EVIL), Agreement(48, 100, rows)
    meaning = meaning_of(0.9)
    tables = [fidelity_table(fidelity), agreement_table(agreement), meaning_table(meaning), table]
    written = write_page(target, EVIL, judge(fidelity, agreement, meaning), tables, plots)
    assert [file.name for file in written[:2]] == ["report.md", "report.html"]
    assert all(file.exists() for file in written)
    return target


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_escapes_whatever_a_dataset_or_a_label_is_called(page: str) -> None:
    found = Elements(page)
    assert {"script", "img"}.isdisjoint(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    # Escaped, not lost: the heading, the table's title, its column, cell and note, the plot's title and caption.
    assert sum(EVIL in text for text in found.texts) >= 7


def test_the_markdown_escapes_it_too(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text
    assert "![Features](features.png)" in text


def test_the_page_needs_nothing_beside_it(page: str) -> None:
    found = Elements(page)
    assert {"link", "iframe", "object"}.isdisjoint(found.tags)
    links = [value for name, value in found.attributes if name in ("src", "href", "xlink:href")]
    assert links, "the drawings refer to their own parts: has this test gone blind?"
    assert [value for value in links if not value.startswith("#")] == []
    assert re.findall(r"url\((?!#)", page) == []
    assert "@import" not in page


def test_the_drawings_share_no_id_and_refer_to_their_own(page: str) -> None:
    found = Elements(page)
    ids = [value for name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert found.tags.count("svg") == 2
    used = {value[1:] for name, value in found.attributes if name == "xlink:href"} | set(
        re.findall(r"url\(#([^)]+)\)", page)
    )
    assert used <= set(ids)


def test_the_page_has_the_tables_the_verdict_and_a_sentence_a_plot(page: str) -> None:
    text = " ".join(" ".join(Elements(page).texts).split())
    for part in (
        "rank nearly as well",
        "Good for",
        "Meaning of the features",
        "frozen random",
        "97.0%",
        "0.700",
        "Labels.",
    ):
        assert part in text
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_a_page_of_agreement_alone_needs_no_plot(tmp_path: Path) -> None:
    rows = {"reconstructed": RankingAgreement(same(0.4), same(0.5))}
    agreement = Agreement(48, 100, rows)
    files = write_page(tmp_path, "My documents", judge(agreement=agreement), [agreement_table(agreement)])
    text = files[0].read_text(encoding="utf-8")
    assert text.startswith("# My documents\n\nThere are no judgments")
    assert "Do not search its reconstructions" in text
