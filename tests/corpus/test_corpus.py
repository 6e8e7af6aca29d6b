"""Reading files and folders into passages."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_steer_retriever.corpus.passage import Corpus
from sae_steer_retriever.corpus.read_corpus import read_corpus
from sae_steer_retriever.errors import CorpusError, MissingExtraError

SENTENCE = "The warehouse ships every parcel within two working days of the order. "


def write(path: Path, content: str | bytes | list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def texts(corpus: Corpus) -> list[str]:
    return [passage.text for passage in corpus.passages]


def pdf(*pages: str, title: str = "") -> bytes:
    """A PDF file with one line of text on each page."""
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {len(pages)} /Kids [{' '.join(f'{5 + 2 * i} 0 R' for i in range(len(pages)))}] >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        f"<< /Title ({title}) >>",
    ]
    for i, text in enumerate(pages):
        drawn = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET"
        page = f"<< /Type /Page /Parent 2 0 R /Contents {6 + 2 * i} 0 R /MediaBox [0 0 612 792] "
        objects.append(page + "/Resources << /Font << /F1 3 0 R >> >> >>")
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    data = "%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    data += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    start = data.index("xref\n0")
    data += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R /Info 4 0 R >>\nstartxref\n{start}\n%%EOF\n"
    return data.encode("latin-1")


# --- folders ---------------------------------------------------------------------------------------------------


def test_a_folder_is_read_with_its_subfolders_in_sorted_order(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "second")
    write(tmp_path / "a" / "z.md", "# Returns\n\nfirst")
    write(tmp_path / "c.jsonl", [{"text": "third"}])
    write(tmp_path / ".git" / "config.txt", "hidden")
    write(tmp_path / ".hidden.txt", "hidden")
    write(tmp_path / "picture.png", b"\x89PNG")
    corpus = read_corpus(tmp_path)
    assert texts(corpus) == ["Returns\nfirst", "second", "third"]
    assert [passage.id for passage in corpus.passages] == ["a/z.md#1", "b.txt#1", "c.jsonl#1"]
    assert corpus.passages[0].metadata == {"source": "a/z.md", "title": "Returns"}
    assert corpus.passages[1].metadata == {"source": "b.txt"}
    assert [path for path, _ in corpus.skipped] == ["picture.png"]


def test_a_missing_path_names_the_nearest_one(tmp_path: Path) -> None:
    write(tmp_path / "handbook" / "a.txt", "x")
    with pytest.raises(CorpusError, match=r"no such file or folder: .*handbok \(did you mean handbook\?\)"):
        read_corpus(tmp_path / "handbok")


def test_an_empty_folder_and_one_without_readable_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="the folder is empty"):
        read_corpus(tmp_path)
    write(tmp_path / "photo.jpeg", b"\xff\xd8")
    with pytest.raises(CorpusError, match=r"photo\.jpeg.*\.jpeg are not read.*\.md"):
        read_corpus(tmp_path)


def test_a_single_file_of_another_kind_is_an_error_that_lists_the_kinds(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"scan\.tiff is not of a kind.*\.txt, \.md"):
        read_corpus(write(tmp_path / "scan.tiff", b"II"))


def test_links_are_never_followed_in_circles_nor_read_twice(tmp_path: Path) -> None:
    root = tmp_path / "docs"
    write(root / "sub" / "a.txt", "once")
    write(tmp_path / "elsewhere" / "b.txt", "linked")
    try:
        (root / "sub" / "up").symlink_to(root, target_is_directory=True)
        (root / "again").symlink_to(root / "sub", target_is_directory=True)
        (root / "itself").symlink_to(root / "itself")
        (root / "broken.txt").symlink_to(root / "nowhere.txt")
        (root / "outside").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    except OSError as error:
        pytest.skip(f"this system makes no symbolic links: {error}")
    corpus = read_corpus(root)
    assert sorted(texts(corpus)) == ["linked", "once"]
    assert [path for path, _ in corpus.skipped] == ["again", "broken.txt", "itself", "outside/back", "sub/up"]


def test_a_file_that_is_linked_through_a_hidden_folder_is_read(tmp_path: Path) -> None:
    write(tmp_path / "..data" / "a.txt", "mounted")
    try:
        (tmp_path / "a.txt").symlink_to(tmp_path / "..data" / "a.txt")
    except OSError as error:
        pytest.skip(f"this system makes no symbolic links: {error}")
    assert texts(read_corpus(tmp_path)) == ["mounted"]


def test_an_unreadable_file_is_skipped_in_a_folder_and_an_error_alone(tmp_path: Path) -> None:
    write(tmp_path / "good.txt", "good")
    binary = write(tmp_path / "binary.txt", b"abc\0\1\2def")
    write(tmp_path / "empty.md", "  \n")
    write(tmp_path / "rows.jsonl.gz", [{"text": "x"}]).write_bytes(b"\x1f\x8bnot gzip")
    corpus = read_corpus(tmp_path)
    assert texts(corpus) == ["good"]
    reasons = dict(corpus.skipped)
    assert "NUL bytes" in reasons["binary.txt"]
    assert "no text" in reasons["empty.md"]
    assert "gzip" in reasons["rows.jsonl.gz"]
    with pytest.raises(CorpusError, match=r"cannot read .*binary\.txt: .*NUL bytes"):
        read_corpus(binary)


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", lambda: 0)() == 0, reason="permissions bind no one here")
def test_a_file_without_permission_is_skipped(tmp_path: Path) -> None:
    write(tmp_path / "good.txt", "good")
    write(tmp_path / "secret.txt", "secret").chmod(0)
    assert dict(read_corpus(tmp_path).skipped)["secret.txt"].startswith("it cannot be opened")


# --- text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_is_read_without_a_note(tmp_path: Path, encoding: str) -> None:
    corpus = read_corpus(write(tmp_path / "a.txt", "Überweisung — 東京".encode(encoding)))
    assert texts(corpus) == ["Überweisung — 東京"]
    assert corpus.notes == []


def test_an_older_encoding_is_read_and_said(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path / "a.txt", "caf\xe9 \x80".encode("latin-1")))
    assert texts(corpus) == ["café €"]
    assert corpus.notes == [("a.txt", "read as cp1252: not UTF-8 (byte 0xe9 at offset 3)")]
    corpus = read_corpus(write(tmp_path / "b.txt", b"caf\xe9 \x81!"))
    assert texts(corpus) == ["café \x81!"]
    assert "latin-1" in corpus.notes[0][1]


def test_the_charset_that_a_page_declares_is_honoured(tmp_path: Path) -> None:
    page = '<meta charset="shift_jis"><p>東京の天気</p>'.encode("shift_jis")
    assert texts(read_corpus(write(tmp_path / "a.html", page))) == ["東京の天気"]


def test_a_long_text_is_split_at_sentence_ends(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path / "a.txt", SENTENCE * 40), passage_characters=300)
    assert len(corpus.passages) > 5
    assert all(len(text) <= 300 and text.endswith(".") for text in texts(corpus))
    assert [passage.id for passage in corpus.passages[:2]] == ["a.txt#1", "a.txt#2"]


def test_overlap_repeats_the_end_of_the_passage_before(tmp_path: Path) -> None:
    numbered = " ".join(f"This is sentence number {number} of the text." for number in range(60))
    plain = texts(read_corpus(write(tmp_path / "a.txt", numbered), passage_characters=400))
    overlapping = texts(read_corpus(tmp_path / "a.txt", passage_characters=400, overlap=100))
    assert not plain[1].startswith(plain[0].split(". ")[-1])
    for before, after in zip(overlapping, overlapping[1:], strict=False):
        assert after.split(". ")[0] in before


@pytest.mark.parametrize(("size", "overlap"), [(10, 0), (400, 200), (400, -1)])
def test_impossible_sizes_are_refused(tmp_path: Path, size: int, overlap: int) -> None:
    with pytest.raises(CorpusError, match=f"passages of {size} characters with {overlap} overlapping"):
        read_corpus(write(tmp_path / "a.txt", "x"), passage_characters=size, overlap=overlap)


text_files = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff"), max_size=200),
        st.sampled_from(["\n\n", "\n", SENTENCE, SENTENCE * 5, "x" * 150]),
        st.sampled_from(["\n" * 60, "a. " * 40, "語。" * 80, " " * 120]),
    ),
    max_size=25,
).map("".join)


@given(text=text_files, size=st.integers(50, 400), overlap=st.integers(0, 24))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_passage_loses_text(text: str, size: int, overlap: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder) / "a.txt", text)
        if not text.strip():
            with pytest.raises(CorpusError, match="no text"):
                read_corpus(file, passage_characters=size, overlap=overlap)
            return
        first = read_corpus(file, passage_characters=size, overlap=overlap)
        assert first == read_corpus(file, passage_characters=size, overlap=overlap)
    assert len({passage.id for passage in first.passages}) == len(first.passages)
    assert all(0 < len(found) <= size for found in texts(first))
    expected = "".join(text.split())
    position = 0
    for found in map("".join, map(str.split, texts(first))):
        # With an overlap a passage may begin before the end of the one before, but it leaves no gap.
        begin = expected.rfind(found, 0, position + len(found)) if overlap else position
        assert begin >= 0
        assert expected[begin : begin + len(found)] == found
        position = max(position, begin + len(found))
    assert position == len(expected)


def test_a_single_line_of_50_megabytes_takes_seconds(tmp_path: Path) -> None:
    words = "lorem ipsum dolor sit amet " * 700_000
    file = write(tmp_path / "dump.txt", SENTENCE * 200_000 + words + "x" * 10_000_000 + "a. " * 2_500_000)
    assert file.stat().st_size > 50_000_000
    read_corpus(write(tmp_path / "warm.txt", SENTENCE * 40))
    before = time.process_time()
    corpus = read_corpus(file)
    assert time.process_time() - before < 10
    assert 41_000 < len(corpus.passages) < 60_000
    assert max(map(len, texts(corpus))) <= 1200


@pytest.mark.parametrize("mark", ["<", "<a ", "<!--", "<!x ", "<?", "</", "<a b='", "&#", "<![CDATA["])
def test_a_malformed_page_takes_no_longer_than_its_length_justifies(tmp_path: Path, mark: str) -> None:
    page = write(tmp_path / "a.html", "<p>The answer is here.</p>" + mark * (200_000 // len(mark)))
    before = time.process_time()
    assert texts(read_corpus(page))[0].startswith("The answer is here.")
    assert time.process_time() - before < 5


# --- headings --------------------------------------------------------------------------------------------------


def titles_and_texts(corpus: Corpus) -> list[tuple[str, str]]:
    return [(passage.title, passage.text) for passage in corpus.passages]


def test_markdown_passages_have_the_nearest_heading_as_title(tmp_path: Path) -> None:
    page = (
        "---\ntitle: Handbook\nauthor: nobody\n---\n"
        "Intro.\n\n# Refund *policy* #\n\n## Deadlines\n14 days.\n\n"
        "```bash\n# not a heading\n```\n\nUnderlined\n----------\nLast.\n\n- item\n---\nafter a rule\n"
    )
    assert titles_and_texts(read_corpus(write(tmp_path / "a.md", page))) == [
        ("Handbook", "Handbook\nIntro."),
        # A heading without text of its own stays with the next one.
        ("Deadlines", "Refund *policy\nDeadlines\n14 days.\n\n```bash\n# not a heading\n```"),
        ("Underlined", "Underlined\nLast.\n\n- item\n---\nafter a rule"),
    ]


def test_every_passage_of_a_long_section_carries_its_heading(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path / "a.md", "## Shipping\n" + SENTENCE * 30), passage_characters=300)
    assert len(corpus.passages) > 3
    assert all(text.startswith("Shipping\nThe warehouse") and len(text) <= 300 for text in texts(corpus))
    assert {passage.metadata["title"] for passage in corpus.passages} == {"Shipping"}


def test_a_document_of_headings_only_is_not_lost(tmp_path: Path) -> None:
    assert titles_and_texts(read_corpus(write(tmp_path / "a.md", "# One\n## Two\n"))) == [("Two", "One\nTwo")]


def test_restructured_text_headings(tmp_path: Path) -> None:
    rest = "Run it.\n\n=== ===\na   b\n=== ===\n\nNo\n\n----\n\nEnd."
    page = f"=====\nGuide\n=====\n\nIntro.\n\nInstall\n-------\n{rest}\n"
    assert titles_and_texts(read_corpus(write(tmp_path / "a.rst", page))) == [
        ("Guide", "Guide\nIntro."),
        ("Install", f"Install\n{rest}"),
    ]


def test_html_is_read_without_scripts_and_navigation(tmp_path: Path) -> None:
    page = """<html><head><title>Shop &amp; help</title><style>p {color: red}</style></head><body>
    <nav><a href="/">Home</a><nav>inner</nav></nav><script>if (a < b) alert("x")</script><!-- <p>old</p> -->
    <p>Welcome to\n\tour <b>shop</b>.</p><h2>Prices</h2><table><tr><td>Tea<td>2</tr><tr><td>Cake</td><td>3</td></tr>
    </table><p>x < y<br>second<pre>a\n  b</pre></body></html>"""
    assert titles_and_texts(read_corpus(write(tmp_path / "a.html", page))) == [
        ("Shop & help", "Shop & help\nWelcome to our shop."),
        ("Prices", "Prices\nTea\t2\nCake\t3\n\nx < y\nsecond\n\na\n  b"),
    ]


def test_navigation_that_is_never_closed_does_not_swallow_the_page(tmp_path: Path) -> None:
    page = "<nav><a>Home</a><main><h1>News</h1><p>It rained.</p></main>"
    assert texts(read_corpus(write(tmp_path / "a.htm", page))) == ["News\nIt rained."]


# --- PDF and Word ----------------------------------------------------------------------------------------------


def test_pdf_pages_are_passages(tmp_path: Path) -> None:
    pytest.importorskip("pypdf", reason="the extra `documents` is not installed")
    corpus = read_corpus(write(tmp_path / "a.pdf", pdf("First page.", "Second page.", title="Annual report")))
    assert titles_and_texts(corpus) == [
        ("Annual report", "Annual report\nFirst page."),
        ("Annual report", "Annual report\nSecond page."),
    ]
    assert corpus.passages[1].metadata == {"source": "a.pdf", "title": "Annual report", "page": 2}
    assert corpus.passages[1].id == "a.pdf#2"


def test_damaged_scanned_and_encrypted_pdf_files_are_skipped_with_the_reason(tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf", reason="the extra `documents` is not installed")
    write(tmp_path / "good.txt", "good")
    write(tmp_path / "damaged.pdf", b"%PDF-1.4\nnothing else")
    write(tmp_path / "scanned.pdf", pdf(""))
    writer = pypdf.PdfWriter()
    writer.add_blank_page(100, 100)
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(tmp_path / "encrypted.pdf")
    reasons = dict(read_corpus(tmp_path).skipped)
    assert "damaged PDF" in reasons["damaged.pdf"]
    assert "OCR" in reasons["scanned.pdf"]
    assert "encrypted" in reasons["encrypted.pdf"]


def test_word_headings_and_tables(tmp_path: Path) -> None:
    docx = pytest.importorskip("docx", reason="the extra `documents` is not installed")
    document = docx.Document()
    document.add_paragraph("Before.")
    document.add_heading("Leave", level=1)
    document.add_paragraph("Thirty days.")
    table = document.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "Trainees", "25"
    document.save(tmp_path / "a.docx")
    corpus = read_corpus(tmp_path / "a.docx")
    assert titles_and_texts(corpus) == [("", "Before."), ("Leave", "Leave\nThirty days.\n\nTrainees\t25")]
    with pytest.raises(CorpusError, match="not a Word file"):
        read_corpus(write(tmp_path / "b.docx", "plain text"))


@pytest.mark.parametrize(("name", "module"), [("a.pdf", "pypdf"), ("a.docx", "docx")])
def test_an_absent_reader_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    file = write(tmp_path / name, b"anything")
    with pytest.raises(MissingExtraError, match=r"\[documents\]"):
        read_corpus(file)
    write(tmp_path / "b.txt", "good")
    corpus = read_corpus(tmp_path)
    assert texts(corpus) == ["good"]
    assert "[documents]" in dict(corpus.skipped)[name]


def test_only_splitting_needs_the_splitter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain_text_splitters", None)
    write(tmp_path / "a.txt", SENTENCE)
    assert len(read_corpus(tmp_path).passages) == 1
    write(tmp_path / "b.txt", SENTENCE * 100)
    with pytest.raises(MissingExtraError, match=r"splitting long texts .*\[langchain\]"):
        read_corpus(tmp_path)


def test_reading_imports_no_framework(tmp_path: Path) -> None:
    write(tmp_path / "a.md", "# Title\n" + SENTENCE)
    code = (
        "import sys; from sae_steer_retriever.corpus.read_corpus import read_corpus; read_corpus(sys.argv[1]); "
        "print({'torch', 'chromadb', 'langchain_core', 'llama_index', 'pypdf', 'docx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- rows ------------------------------------------------------------------------------------------------------


def test_rows_keep_their_id_title_and_scalar_fields(tmp_path: Path) -> None:
    rows = [
        {"_id": 7, "text": "Body.", "title": "Head", "year": 1999, "score": 0.5, "open": True, "a": ["a"], "b": None},
        {"id": "x", "text": "Only text.", "source": "https://example.org", "nan": float("nan"), "big": 2**70},
        {"text": "No id\u2028line separator."},
    ]
    corpus = read_corpus(write(tmp_path / "a.jsonl.gz", rows))
    assert [passage.id for passage in corpus.passages] == ["7", "x", "a.jsonl.gz#3"]
    assert corpus.passages[0].text == "Head\nBody."
    assert corpus.passages[0].metadata == {
        "source": "a.jsonl.gz", "title": "Head", "year": 1999, "score": 0.5, "open": True,
    }  # fmt: skip
    assert corpus.passages[1].metadata == {"source": "https://example.org", "big": str(2**70)}
    assert corpus.passages[2].text == "No id\u2028line separator."


def test_rows_are_split_only_when_twice_as_long_as_a_passage(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"_id": "a", "text": SENTENCE * 8}, {"_id": "b", "text": SENTENCE * 9}])
    corpus = read_corpus(file, passage_characters=300)
    assert [passage.id for passage in corpus.passages] == ["a", "b#1", "b#2", "b#3"]


def test_duplicate_ids_name_the_id_and_both_lines(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"_id": "x", "text": "1"}, {"text": "2"}, {"_id": "x", "text": "3"}])
    with pytest.raises(CorpusError, match=r"id 'x': a\.jsonl, line 1 and a\.jsonl, line 3"):
        read_corpus(file)


@pytest.mark.parametrize("line", ['{"text": "cut o', "plain text", '["text"]', "[" * 5000, '"text"', "null"])
def test_a_broken_line_names_the_file_and_the_line_even_in_a_folder(tmp_path: Path, line: str) -> None:
    write(tmp_path / "a.jsonl", f'{{"text": "good"}}\n\n{line}\n')
    with pytest.raises(CorpusError, match=r"a\.jsonl, line 3 is (not valid JSON|a JSON \w+, expected an object)"):
        read_corpus(tmp_path)


def test_rows_without_text_are_counted(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"text": "good"}, {"text": " "}, {"title": "t"}, {"text": 3}])
    corpus = read_corpus(file)
    assert texts(corpus) == ["good"]
    assert corpus.skipped == [("a.jsonl", "3 rows without text (the first on line 2)")]


def test_a_file_without_any_text_names_the_fields_that_it_has(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"none of its 1 rows has a 'text'.*fields are: content, url"):
        read_corpus(write(tmp_path / "a.jsonl", [{"content": "x", "url": "y"}]))


def test_text_that_stores_refuse_is_made_acceptable(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path / "a.jsonl", '{"text": "a\\ud800b\\u0000c\\r\\nd"}\n'))
    assert texts(corpus) == ["a?bc\nd"]


def test_csv_rows(tmp_path: Path) -> None:
    content = '\ufeffid;Text;year\r\n1;"two\r\nlines; quoted";2001\r\n2;;2002\r\n3;third;\r\n'
    corpus = read_corpus(write(tmp_path / "a.csv", content))
    assert [(passage.id, passage.text) for passage in corpus.passages] == [("1", "two\nlines; quoted"), ("3", "third")]
    assert corpus.passages[0].metadata == {"source": "a.csv", "year": "2001"}
    assert corpus.skipped == [("a.csv", "1 row without text (the first on line 4)")]


def test_csv_ids_are_the_lines_on_which_rows_begin(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path / "a.csv", 'text\n"one\nmore"\ntwo\n'))
    assert [(passage.id, passage.text) for passage in corpus.passages] == [("a.csv#2", "one\nmore"), ("a.csv#4", "two")]


def test_the_only_column_of_a_csv_file_is_its_text(tmp_path: Path) -> None:
    assert texts(read_corpus(write(tmp_path / "a.csv", "question\nwho?\nwhere?\n"))) == ["who?", "where?"]


def test_csv_faults_say_what_and_where(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no column 'text'.*its columns are question, answer"):
        read_corpus(write(tmp_path / "a.csv", "question,answer\nwho,me\n"))
    with pytest.raises(CorpusError, match=r"b\.csv, line 3 has 2 fields, its header has 1"):
        read_corpus(write(tmp_path / "b.csv", "text\nfine\nnot, quoted\n"))
    with pytest.raises(CorpusError, match=r"c\.csv, line 2 is not valid CSV"):
        read_corpus(write(tmp_path / "c.csv", 'text\n"never closed\nfine\n'))


def test_long_csv_fields_are_read_and_the_limit_of_the_process_is_left_alone(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    corpus = read_corpus(write(tmp_path / "a.csv", "text\n" + "word " * 50_000 + "\n"))
    assert len(corpus.passages) > 200
    assert csv.field_size_limit() == before


# --- retrieval sets --------------------------------------------------------------------------------------------


def beir_folder(folder: Path, suffix: str = "") -> Path:
    write(
        folder / f"corpus.jsonl{suffix}",
        [
            {"_id": "d1", "title": "Tea", "text": SENTENCE * 100, "metadata": {}},
            {"_id": "d2", "title": "", "text": "No title."},
            {"_id": "d3", "title": "No text", "text": ""},
            {"_id": "d4", "title": "", "text": ""},
        ],
    )
    queries = {"q1": "first", "q2": "only for the test", "q3": "third"}
    write(folder / f"queries.jsonl{suffix}", [{"_id": name, "text": text} for name, text in queries.items()])
    write(folder / "qrels" / "train.tsv", "query-id\tcorpus-id\tscore\nq3\td1\t1\nq3\td2\t1\nq1\td2\t1\n")
    write(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq2\td1\t1\n")
    return folder


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_retrieval_set_gives_whole_documents_and_its_training_queries(tmp_path: Path, suffix: str) -> None:
    corpus = read_corpus(beir_folder(tmp_path, suffix), passage_characters=300)
    assert [passage.id for passage in corpus.passages] == ["d1", "d2", "d3"]
    assert texts(corpus) == ["Tea " + SENTENCE.strip() + " " + (SENTENCE * 99).strip(), "No title.", "No text"]
    assert corpus.passages[0].title == corpus.passages[0].metadata["title"] == "Tea"
    assert corpus.queries == ["first", "third"]
    assert corpus.skipped == [(f"corpus.jsonl{suffix}", "1 row without text (the first on line 4)")]


def test_a_retrieval_set_without_training_judgements_has_no_queries(tmp_path: Path) -> None:
    (beir_folder(tmp_path) / "qrels" / "train.tsv").unlink()
    write(tmp_path / "README.md", "# About\n\nthe set")
    corpus = read_corpus(tmp_path)
    assert corpus.queries == []
    assert "README.md" in dict(corpus.skipped)


def test_train_judgements_may_have_the_columns_of_trec(tmp_path: Path) -> None:
    folder = beir_folder(tmp_path)
    expected = read_corpus(folder).queries
    write(folder / "qrels" / "train.tsv", "q3\t0\td1\t1\nq3\t0\td2\t1\nq1\t0\td2\t1\n")
    assert read_corpus(folder).queries == expected != []


def test_broken_judgements_name_the_line(tmp_path: Path) -> None:
    write(beir_folder(tmp_path) / "qrels" / "train.tsv", "query-id\tcorpus-id\tscore\nq1 d1 1\n")
    with pytest.raises(CorpusError, match=r"train\.tsv, line 2 has 1 columns, expected 3"):
        read_corpus(tmp_path)


def test_a_file_of_queries_is_added(tmp_path: Path) -> None:
    given = write(tmp_path / "real.txt", "where is my parcel?\n")
    read = read_corpus(beir_folder(tmp_path / "set"), queries=given)
    assert read.queries == ["where is my parcel?", "first", "third"]
    assert read_corpus(write(tmp_path / "a.txt", "x"), queries=given).queries == ["where is my parcel?"]
    with pytest.raises(CorpusError, match=r"no such file of queries: .*absent\.txt"):
        read_corpus(tmp_path / "a.txt", queries=tmp_path / "absent.txt")


def test_scifact(shared_data: Path) -> None:
    corpus = read_corpus(shared_data / "scifact")
    assert len(corpus.passages) == 5183
    assert len(corpus.queries) == 809
    assert corpus.skipped == []
    assert all(passage.text.startswith(passage.title + " ") for passage in corpus.passages)
