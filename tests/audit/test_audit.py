"""An audit finds what was planted in a store, says it safely, and leaves the store as it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from chromadb.api import ClientAPI
from command_line import Run
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import skew
from small_world import World

from sae_steer_retriever.audit.audit import Audit, audit
from sae_steer_retriever.audit.audited_queries import AuditedQueries, queries_of_file, sentences_of_passages
from sae_steer_retriever.audit.exposure import design_effect, wilson
from sae_steer_retriever.audit.hubs import skewness
from sae_steer_retriever.audit.near_duplicates import groups_by_cosine
from sae_steer_retriever.audit.private_copy import private_copy
from sae_steer_retriever.audit.query_gaps import deviations
from sae_steer_retriever.audit.read_only_store import ReadOnlyStore
from sae_steer_retriever.audit.report import to_html, to_markdown, to_text, write_report
from sae_steer_retriever.audit.steerability import STRENGTH
from sae_steer_retriever.audit.subject import Subject, feature_match
from sae_steer_retriever.audit.summary import LINES, summary
from sae_steer_retriever.audit.top_hits import PassageVectors, top_hits
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.errors import CorpusError, MismatchError, StoreError
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.store.chroma_store import ChromaStore
from sae_steer_retriever.store.connection import connect
from sae_steer_retriever.store.sidecar import SUFFIX
from sae_steer_retriever.store.store_reader import StoreReader

NOTHING = "How long must sourdough bread with rye flour and honey stay in the oven?"
EVIL = '<script>alert("1")</script> & <img src=x onerror=alert(2)> | `code` *bold*'
K = 10


class Planted(NamedTuple):
    """A plain store in which some things are known.

    Attributes:
        folder: Of the store; it has no sidecar.
        questions: File of queries.
        copied: Id of the passage that is there twice, the second time as "copy".
        lacking: A feature that queries ask for and no passage has.
        hidden: A frequent feature that no query's hits have.
    """

    folder: Path
    questions: Path
    copied: str
    lacking: int
    hidden: int


def fill(folder: Path, ids: list[str], texts: list[str], vectors: np.ndarray, name: str = "docs") -> ClientAPI:
    """A collection as another tool would have made it."""
    client = connect(path=folder)
    collection = client.get_or_create_collection(
        name, embedding_function=None, configuration={"hnsw": {"space": "cosine", "ef_search": 200}}
    )
    if ids:
        collection.add(ids=ids, embeddings=vectors, documents=texts)
    return client


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file with a digest of its bytes and the time of its last change."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def planted(world: World, cached_embedder: CachedEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    folder = tmp_path_factory.mktemp("planted")
    names = feature_match(world.sae.encode(world.vectors).truncate(4), 64).toarray()
    clear = np.array([bool(one.label) and (one.label_score or 0) >= 0.7 for one in world.catalog.features])
    by_frequency = np.argsort(-np.where(clear, names.sum(axis=0), 0), kind="stable")
    # Its passages are left out, and its questions stay.
    lacking = next(int(row) for row in by_frequency[::-1] if clear[row] and names[:, row].sum() >= 6)
    kept = np.nonzero(names[:, lacking] == 0)[0]
    firsts = [text.split(".")[0][:120] for text in world.texts]
    asked = cached_embedder.embed_queries(firsts)
    stored = PassageVectors(world.vectors[kept], np.zeros(len(kept), dtype=np.float32))
    hits = kept[top_hits(asked, stored, K).rows]
    hidden = next(int(row) for row in by_frequency if clear[row] and row != lacking)
    # Only questions whose hits lack it.
    own = [row for row in range(len(firsts)) if not names[hits[row], hidden].any() or names[row, lacking]]
    questions = list(dict.fromkeys(firsts[row] for row in own))
    (folder / "questions.txt").write_text("\n".join([NOTHING, *questions]), encoding="utf-8")
    hub = cached_embedder.embed_queries(questions).mean(axis=0)
    ids = [world.ids[row] for row in kept]
    fill(
        folder / "chroma",
        [*ids, "copy", "hub"],
        [*(world.texts[row] for row in kept), "  " + world.texts[kept[3]].replace(" ", "  "), EVIL],
        np.concatenate([world.vectors[kept], world.vectors[kept[3]][None], hub[None] / np.linalg.norm(hub)]),
    )
    return Planted(folder / "chroma", folder / "questions.txt", ids[3], lacking, hidden)


@pytest.fixture(scope="module")
def store(planted: Planted, world: World) -> Iterator[ReadOnlyStore]:
    with private_copy(planted.folder) as folder:
        yield ReadOnlyStore(connect(path=folder), "docs", world.sae)


@pytest.fixture(scope="module")
def queries(planted: Planted, world: World, cached_embedder: CachedEmbedder) -> AuditedQueries:
    return queries_of_file(planted.questions, world.sae, cached_embedder, limit=1000)


@pytest.fixture(scope="module")
def found(store: ReadOnlyStore, queries: AuditedQueries, world: World, cached_embedder: CachedEmbedder) -> Audit:
    return audit(store, world.catalog, cached_embedder, queries)


# -- planted facts ----------------------------------------------------------------------------------------------------


def test_a_copy_of_a_passage_is_found_and_its_wasted_places_are_counted(found: Audit, planted: Planted) -> None:
    exact, near, _ = found.duplicates.levels
    assert found.duplicates.compared == found.duplicates.passages == found.sampled.passages
    assert {planted.copied, "copy"} in [set(group.ids) for group in exact.largest]
    assert any({planted.copied, "copy"} <= set(group.ids) for group in near.largest)
    assert exact.wasted > 0
    assert near.wasted >= exact.wasted


def test_a_passage_that_is_near_every_query_is_the_first_hub(found: Audit) -> None:
    first = found.hubs.passages[0]
    assert first.passage.id == "hub"
    assert first.occurrence > found.hubs.queries / 4
    assert first.occurrence == found.hubs.largest >= found.hubs.hub_from
    assert found.hubs.skewness > found.hubs.expected_skewness
    # It is found for everything: the queries that find it are hardly more alike than all queries.
    assert first.likeness < 2 * found.hubs.likeness


def test_a_query_about_nothing_in_the_corpus_is_weak(found: Audit) -> None:
    assert NOTHING in [one.query for one in found.gaps.weak]
    assert found.gaps.weak_queries < found.sampled.queries / 4


def test_what_queries_ask_for_and_no_passage_has_is_lacking(found: Audit, planted: Planted) -> None:
    lacking = {one.feature.id: one for one in found.gaps.lacking}
    assert planted.lacking in lacking
    assert lacking[planted.lacking].passages == 0
    assert found.gaps.lacking_queries > 0


def test_a_perspective_that_no_hit_has_is_under_served(found: Audit, planted: Planted) -> None:
    under = {one.id: one for one in found.exposure.under if not one.is_family}
    assert planted.hidden in under
    one = under[planted.hidden]
    assert one.ratio < 0.2
    assert one.low <= one.ratio <= one.high < 1


def test_topics_are_the_most_frequent_clear_features(found: Audit, store: ReadOnlyStore, world: World) -> None:
    codes = world.sae.encode(store.unit_vectors(np.arange(len(store.ids))))
    counts = feature_match(codes.truncate(4), 64).toarray().sum(axis=0)
    shares = [topic.share for topic in found.topics.topics]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(counts[found.topics.topics[0].feature.id] / len(store.ids))
    assert all(topic.feature.label_score is None or topic.feature.label_score >= 0.7 for topic in found.topics.topics)
    assert sum(found.topics.unexplained.counts) == len(store.ids)


def test_unexplained_queries_share_no_clear_name_with_their_hits(
    found: Audit, store: ReadOnlyStore, queries: AuditedQueries, world: World
) -> None:
    hits = top_hits(queries.vectors, store.stored, K)
    subject = Subject(store, world.catalog, queries, hits)
    asked, passages = subject.query_names.toarray(), subject.passage_names.toarray()
    alone = [
        not (asked[query] * passages[rows[: found.unexplained.depth]] * subject.clear).any()
        for query, rows in enumerate(hits.rows)
    ]
    assert sum(alone) == found.unexplained.unexplained
    assert 0 < found.unexplained.named_share < 1


def test_steering_does_what_the_same_search_does(
    found: Audit, planted: Planted, queries: AuditedQueries, world: World, cached_embedder: CachedEmbedder
) -> None:
    with private_copy(planted.folder) as folder:
        retriever = SteeredRetriever(StoreReader.open(world.sae, path=folder), cached_embedder, world.catalog)
        effect = max(found.steerability.effects, key=lambda one: one.replaced)
        chosen = np.sort(np.random.default_rng(0).choice(len(queries), found.steerability.queries, replace=False))
        new = []
        for row in chosen:
            before = {hit.id for hit in retriever.search(queries.texts[row], k=K, explain=False)}
            after = {hit.id for hit in retriever.search(queries.texts[row], k=K, steer=effect.steer, explain=False)}
            new.append(len(after - before) / K)
    assert effect.replaced == pytest.approx(np.mean(new))
    assert effect.replaced > 0
    assert effect.with_after > effect.with_before
    assert set(effect.steer.values()) == {STRENGTH}
    assert effect.line == f"steer={effect.steer!r}"


# -- the report -------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def test_a_page_is_self_contained_and_a_script_in_a_passage_is_text(found: Audit) -> None:
    pytest.importorskip("jinja2")
    page = to_html(found)
    elements = Elements(page)
    assert "&lt;script&gt;alert(" in page
    assert not {"script", "img", "link", "iframe", "object", "embed"} & set(elements.tags)
    assert not [name for name, _ in elements.attributes if name.startswith("on") or name in ("src", "srcset")]
    assert all(value.startswith("#") for name, value in elements.attributes if name == "href")
    assert "url(" not in page
    assert "@import" not in page
    assert page.count("<svg") == page.count("<title>") - 1 == page.count("<desc>")
    anchors = {value for name, value in elements.attributes if name == "id"}
    assert {value[1:] for name, value in elements.attributes if name == "href"} <= anchors


def test_markdown_shows_a_passage_as_it_is(found: Audit) -> None:
    page = to_markdown(found)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert r"\`code\` \*bold\*" in page
    assert "steer={" in page


def test_summary_has_few_lines_ordered_by_consequence_and_says_what_is_fine(found: Audit) -> None:
    findings = summary(found)
    assert 1 < len(findings) <= LINES
    wrong = [finding.share for finding in findings if not finding.fine]
    assert wrong == sorted(wrong, reverse=True)
    assert [finding.fine for finding in findings] == sorted(finding.fine for finding in findings)
    assert all(any(character.isdigit() for character in finding.sentence) for finding in findings)
    assert all(finding.sentence in to_text(found) for finding in findings)


def test_a_result_is_json_and_the_same_seed_gives_the_same(
    found: Audit, store: ReadOnlyStore, queries: AuditedQueries, world: World, cached_embedder: CachedEmbedder
) -> None:
    text = json.dumps(found.to_json(), allow_nan=False)
    again = audit(store, world.catalog, cached_embedder, queries)
    assert json.dumps(again.to_json()) == text


def test_files_are_written_with_data_only_where_it_is_asked_for(found: Audit, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    assert [path.name for path in write_report(found, tmp_path / "a" / "b")] == ["audit.html", "audit.md"]
    files = write_report(found, tmp_path, data=True)
    assert json.loads(files[2].read_text(encoding="utf-8"))["sampled"]["collection"] == "docs"


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_reports_and_leaves_a_plain_store_byte_identical(
    sae_steer: Run, planted: Planted, filled_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("jinja2")
    before = contents(planted.folder)
    ran = sae_steer(
        "audit", "--store", planted.folder, "--sae", filled_folder / "sae", "--queries", planted.questions,
        "--limit-queries", 30, "--output", tmp_path / "report", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert contents(planted.folder) == before
    assert ran.data["sampled"]["queries"] == 30
    assert ran.data["sampled"]["queries_given"] > 30
    assert not ran.data["sampled"]["has_companion"]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["audit.html", "audit.json", "audit.md"]
    assert "drawn from" in (tmp_path / "report" / "audit.md").read_text(encoding="utf-8")


def test_without_queries_sentences_stand_in_and_an_indexed_store_is_left_byte_identical(
    sae_steer: Run, filled_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("jinja2")
    shutil.copytree(filled_folder / "chroma", tmp_path / "chroma")
    before = contents(tmp_path / "chroma")
    ran = sae_steer("audit", "--store", tmp_path / "chroma", "--limit-queries", 30, "--output", tmp_path / "report")
    assert ran.code == 0, ran.err
    assert contents(tmp_path / "chroma") == before
    assert "30 sentences drawn from the passages in place of queries" in " ".join(ran.out.split())
    assert "no sidecar" not in ran.out


def test_a_sentence_does_not_find_the_passage_it_is_from(store: ReadOnlyStore, cached_embedder: CachedEmbedder) -> None:
    drawn = sentences_of_passages(store, cached_embedder, limit=20)
    hits = top_hits(drawn.vectors, store.stored, K, drawn.sources)
    assert len(drawn) == len(set(drawn.sources.tolist())) == 20
    assert not (hits.rows == drawn.sources[:, None]).any()


def test_a_sample_of_a_large_store_is_enough_and_is_said(
    planted: Planted, queries: AuditedQueries, world: World, cached_embedder: CachedEmbedder
) -> None:
    with private_copy(planted.folder) as folder:
        store = ReadOnlyStore(connect(path=folder), "docs", world.sae, limit=100)
        codes = store.codes_at(np.arange(len(store.ids)))
        np.testing.assert_array_equal(
            codes.indices, world.sae.encode(store.unit_vectors(np.arange(len(store.ids)))).indices
        )
        sampled = audit(store, world.catalog, cached_embedder, queries)
    assert (sampled.sampled.coded, sampled.sampled.passages) == (100, len(store.ids))
    assert "100 passages drawn at random" in to_text(sampled)
    assert sampled.hubs.passages[0].passage.id == "hub"


def test_errors_say_what_is_wrong_before_anything_is_written(
    sae_steer: Run, planted: Planted, filled_folder: Path, tmp_path: Path
) -> None:
    output, sae = tmp_path / "report", filled_folder / "sae"
    binary, fields, few = tmp_path / "queries.txt", tmp_path / "queries.jsonl", tmp_path / "few.txt"
    binary.write_bytes(b"PK\x03\x04\x00\x00\x00\x00\xff\xfe\x00\x00")
    fields.write_text('{"question_text": "what?"}\n', encoding="utf-8")
    few.write_text("one?\ntwo?\n", encoding="utf-8")
    (tmp_path / "none.txt").write_text("\n \n", encoding="utf-8")
    for file, code, words in (
        (tmp_path / "missing.txt", 2, "no such file"),
        (tmp_path / "none.txt", 1, "no query"),
        (binary, 1, "quer"),
        (fields, 1, "'text' or 'query'"),
        (few, 1, "at least 5"),
    ):
        ran = sae_steer("audit", "--store", planted.folder, "--sae", sae, "--queries", file, "--output", output)
        assert (ran.code, words in ran.error) == (code, True), ran.err
    for store, words in ((tmp_path / "nothing", "no store"), (tmp_path, "no store")):
        ran = sae_steer("audit", "--store", store, "--output", output)
        assert (ran.code, words in ran.error) == (2, True)
    ran = sae_steer("audit", "--store", planted.folder, "--collection", "dosc", "--output", output)
    assert (ran.code, "'docs'" in ran.error) == (2, True)
    assert not output.exists() or not list(output.iterdir())


def test_too_few_passages_and_foreign_collections_are_refused(world: World, tmp_path: Path) -> None:
    client = fill(tmp_path, [], [], world.vectors[:0])
    with pytest.raises(CorpusError, match="is empty"):
        ReadOnlyStore(client, "docs", world.sae)
    fill(tmp_path, ["one"], ["A passage."], world.vectors[:1])
    with pytest.raises(CorpusError, match="holds 1 passages.* at least 20"):
        ReadOnlyStore(client, "docs", world.sae)
    ChromaStore.open(world.sae, client=client)
    with pytest.raises(StoreError, match="is the sidecar of 'docs'"):
        ReadOnlyStore(client, f"docs{SUFFIX}", world.sae)
    fill(tmp_path, ["one"], ["A passage."], world.vectors[:1, :100], "small")
    with pytest.raises(MismatchError, match="100 dimensions"):
        ReadOnlyStore(client, "small", world.sae)


@pytest.mark.parametrize("space", ["cosine", "ip", "l2"])
def test_codes_are_the_sidecar_s_where_they_are_of_the_stored_vector(space: str, world: World, tmp_path: Path) -> None:
    norms = np.random.default_rng(0).uniform(0.5, 2, (len(world.ids), 1)).astype(np.float32)
    collection = connect(path=tmp_path).create_collection(
        "docs", embedding_function=None, configuration={"hnsw": {"space": space}}
    )
    collection.add(ids=world.ids, embeddings=norms * world.vectors, documents=world.texts)
    indexed = ChromaStore.from_collection(collection, world.sae)
    indexed.attach()
    client = indexed._client
    sidecar = client.get_collection(f"docs{SUFFIX}", embedding_function=None)
    assert ReadOnlyStore(client, "docs", world.sae).encoded == 0
    # To tell a code that is read from one that is made: the first passage's row now holds the second one's code.
    second = sidecar.get(ids=[world.ids[1]], include=["metadatas"])["metadatas"][0]["codes"]
    sidecar.update(ids=[world.ids[0]], metadatas=[{"codes": second}])
    # Another tool changes a passage, adds one, and takes a row away.
    collection.update(ids=[world.ids[2]], embeddings=world.vectors[3:4])
    collection.add(ids=["new"], embeddings=world.vectors[4:5], documents=["A passage that another tool added."])
    sidecar.delete(ids=[world.ids[5]])
    store = ReadOnlyStore(client, "docs", world.sae)
    assert store.encoded == 3
    assert len(store.coded) == len(store.ids) == len(world.ids) + 1
    place_of = {name: row for row, name in enumerate(world.ids)} | {"new": 4, world.ids[0]: 1, world.ids[2]: 3}
    expected = world.sae.encode(world.vectors[[place_of[name] for name in store.ids]])
    found = store.codes_at(np.arange(len(store.ids)))
    # All but two places of a row: normalising again changes last digits, which may swap two latents.
    assert (found.indices == expected.indices).mean(axis=1).min() > 0.8
    np.testing.assert_array_equal(store.label_latents.indices, found.indices[:, :4])


def test_a_sidecar_with_rows_missing_is_said_and_completed_by_a_sample_of_all_passages(
    world: World, filled_folder: Path, cached_embedder: CachedEmbedder
) -> None:
    with private_copy(filled_folder / "chroma") as folder:
        client = connect(path=folder)
        client.get_collection(f"docs{SUFFIX}", embedding_function=None).delete(ids=world.ids[::2])
        whole = ReadOnlyStore(client, "docs", world.sae)
        queries = sentences_of_passages(whole, cached_embedder, limit=20)
        found = audit(whole, world.catalog, cached_embedder, queries)
        part = ReadOnlyStore(client, "docs", world.sae, limit=30)
    missing = len(world.ids[::2])
    assert found.sampled.encoded == missing
    assert f"{missing} of them encoded for this audit" in to_text(found)
    # Rows that are there are no likelier to be in the sample than others.
    assert len(part.coded) == pytest.approx(60, abs=1)
    assert part.encoded == pytest.approx(30, abs=12)


# -- the maths --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(12, 60), st.integers(1, 10))
def test_top_hits_are_those_of_all_scores(seed: int, queries: int, passages: int, k: int) -> None:
    random = np.random.default_rng(seed)
    asked, vectors = random.normal(size=(queries, 5)).astype("f4"), random.normal(size=(passages, 5)).astype("f4")
    offsets = random.normal(size=passages).astype("f4")
    without = random.integers(-1, passages, size=queries)
    scores = asked @ vectors.T + offsets
    for row, left_out in enumerate(without):
        if left_out >= 0:
            scores[row, left_out] = -np.inf
    hits = top_hits(asked, PassageVectors(vectors, offsets), k, without)
    np.testing.assert_allclose(hits.scores, -np.sort(-scores, axis=1)[:, :k], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(scores, hits.rows, axis=1), hits.scores, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 0.99))
def test_groups_are_near_their_leader_and_miss_no_pair(seed: int, cosine: float) -> None:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(40, 3)).astype("f4")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    (groups,) = groups_by_cosine(vectors, np.arange(40), [cosine])
    inside = [row for group in groups for row in group]
    assert len(inside) == len(set(inside))
    for leader, *members in groups:
        assert (vectors[members] @ vectors[leader] >= cosine).all()
    alone = sorted(set(range(40)) - set(inside))
    near = np.triu(vectors[alone] @ vectors[alone].T, 1)
    assert not (near >= cosine).any()


@given(st.lists(st.integers(0, 50), min_size=3, max_size=60))
def test_skewness_is_the_third_standardised_moment(values: list[int]) -> None:
    expected = 0.0 if len(set(values)) == 1 else float(skew(values))
    assert skewness(np.array(values)) == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 200), st.integers(1, 200), st.floats(0.5, 0.9999))
def test_an_interval_holds_its_proportion_and_narrows_with_trials(hits: int, trials: int, confidence: float) -> None:
    share = min(hits, trials) / trials
    low, high = wilson(share, trials, confidence)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    assert high > low
    more = wilson(share, 4 * trials, confidence)
    assert more[1] - more[0] < high - low


def test_hits_that_come_together_are_worth_fewer_draws() -> None:
    random = np.random.default_rng(0)
    independent = random.binomial(10, 0.2, size=(2000, 1)).astype(float)
    together = 10.0 * random.binomial(1, 0.2, size=(2000, 1))
    assert design_effect(independent, 10)[0] == pytest.approx(1.0, abs=0.1)
    assert design_effect(together, 10)[0] == pytest.approx(10.0, rel=0.1)


def test_deviations_are_robust_and_zero_where_all_are_the_same() -> None:
    assert not deviations(np.full(5, 0.3)).any()
    scores = np.concatenate([np.random.default_rng(0).normal(size=2000), [-100.0]])
    assert deviations(scores)[-1] < -50
    assert deviations(scores)[:-1].std() == pytest.approx(1.0, abs=0.1)
