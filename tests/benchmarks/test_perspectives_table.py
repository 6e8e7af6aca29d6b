"""Table 4: questions with two perspectives, and who is counted before and after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from small_world import World
from toy import catalog_for

from benchmarks.paper.perspective_questions import (
    NEWSGROUP_QUESTIONS,
    PAPER_QUESTIONS,
    BinaryQuestion,
    Perspective,
)
from benchmarks.paper.perspective_search import PerspectiveSearch
from benchmarks.paper.table_4 import labelled_table_4, run_trials, table_4
from sae_steer_retriever.errors import CorpusError, MismatchError
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.retriever import SteeredRetriever
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.config import EncoderSpec, SAEConfig
from sae_steer_retriever.sae.topk_sae import TopKSAE

D = 6
QUESTION = "which of the two?"


class AxesEmbedder:
    """The question points to the first axis; there are no other texts."""

    spec = EncoderSpec(name="toy/axes", dimension=D)

    def embed_queries(self, texts: Sequence[str]) -> Array:
        return np.repeat(np.eye(D, dtype=np.float32)[:1], len(texts), axis=0)

    embed_documents = embed_queries


def planted(names: int = 2) -> PerspectiveSearch:
    """Twelve passages about axis 0: six of them more and more about axis 1 as well, six about axis 2."""
    config = SAEConfig(d=D, n=D, k=4, k_labels=names, encoder=AxesEmbedder.spec)
    sae = TopKSAE(torch.eye(D), torch.zeros(D), torch.eye(D), torch.zeros(D), config)
    rows = np.zeros((12, D), dtype=np.float32)
    # The further down, the farther from the question.
    rows[:, 0] = np.linspace(0.95, 0.7, 12)
    rows[range(12), [1, 2] * 6] = np.sqrt(1 - rows[:, 0] ** 2)
    catalog = catalog_for(sae, rows)
    embeddings = np.eye(D, dtype=np.float32)
    catalog = FeatureCatalog(catalog.features, catalog.calibration, sae.fingerprint, embeddings)
    return PerspectiveSearch(sae, catalog, AxesEmbedder(), [f"p{row}" for row in range(12)], rows)


def question(*words: str, labels: tuple[str, str] = ("odd", "even")) -> BinaryQuestion:
    one, two = (Perspective(name, label, (1, 4)) for name, label in zip(words, labels, strict=True))
    return BinaryQuestion(QUESTION, (one, two), "here")


ASKED = question("#1", "#2")
LABELS = [frozenset({"odd" if row % 2 == 0 else "even"}) for row in range(12)]


# --- Searching -----------------------------------------------------------------------------------------------------


def test_raising_a_feature_brings_its_passages() -> None:
    search = planted()
    plain = search.replaced(QUESTION, 1, 0.0)
    assert plain.before.tolist() == plain.after.tolist() == [0, 1, 2, 3, 4]
    assert plain.cosine_loss == pytest.approx(0.0, abs=1e-6)
    change = search.replaced(QUESTION, 1, 2.0)
    # 0.95 + 2 * 0.31 .. 0.72 + 2 * 0.69: of axis 1 the farthest are now the best.
    assert change.after.tolist() == [10, 8, 6, 4, 2]
    base = search.vectors[:, 0]
    assert change.cosine_loss == pytest.approx(1 - base[[10, 8, 6, 4, 2]].mean() / base[:5].mean(), abs=1e-6)


def test_steering_is_the_retrievers(world: World, retriever: SteeredRetriever) -> None:
    search = PerspectiveSearch(world.sae, world.catalog, world.embedder, world.ids, world.vectors)
    asked = "parse a string into an object"
    frequent = np.argsort(-world.catalog.calibration.count)[:8].tolist()
    moved = 0
    for latent, strength in ((latent, strength) for latent in frequent for strength in (0.0, 0.5, 1.5)):
        words = f"#{latent}"
        meant = search.meant(words)
        assert meant is not None
        change = search.steered(asked, search.steering(words, meant, strength))
        hits = retriever.search(asked, k=5, steer={words: strength}, read_on="vector")
        assert [world.ids[row] for row in change.after] == [hit.id for hit in hits]
        plain = retriever.search(asked, k=5)
        assert [world.ids[row] for row in change.before] == [hit.id for hit in plain]
        moved += change.after.tolist() != change.before.tolist()
    assert moved >= 4


def test_words_that_mean_nothing_are_none_and_are_said() -> None:
    search = planted()
    assert search.meant("feature 1 name") is not None
    assert search.meant("#77") is None
    trials = run_trials(search, [question("#1", "#77")])
    assert (len(trials.found), trials.unresolved) == (1, ("#77",))
    with pytest.raises(CorpusError, match="nothing matches '#99'"):
        run_trials(search, [question("#99", "#77")])


def test_embeddings_of_other_passages_are_refused() -> None:
    search = planted()
    with pytest.raises(MismatchError, match="expected one each"):
        PerspectiveSearch(search.sae, search.catalog, AxesEmbedder(), ["only one"], search.vectors)


# --- Passages of a perspective ------------------------------------------------------------------------------------


def test_who_belongs_by_each_rule() -> None:
    search = planted()
    assert search.named(1).tolist() == [True, False] * 6
    assert not search.named(3).any()
    near = search.near_label(1)
    assert near is not None
    # The median of six cosines with axis 1: the three farthest from the question are at or above it.
    assert np.flatnonzero(near).tolist() == [6, 8, 10]
    assert search.near_label(3) is None, "no passage is named so"
    # A name is one of the first: the question's own axis is the first of every passage.
    assert not planted(names=1).named(1)[:8].any()


def test_counts_before_and_after_by_hand() -> None:
    table = labelled_table_4(planted(), LABELS, [ASKED])
    odd, even, total = table.records()
    assert (odd["replace +0.5, before"], even["replace +0.5, before"]) == (3, 2)
    search = planted()
    for record, feature, parity in ((odd, 1, 0), (even, 2, 1)):
        after = search.replaced(QUESTION, feature, 0.5).after
        assert record["replace +0.5, after"] == int((after % 2 == parity).sum()) > record["replace +0.5, before"]
    for column, cell in total.items():
        if column.endswith(("before", "after")):
            assert cell == odd[column] + even[column]


def test_the_papers_table_counts_by_both_rules() -> None:
    table = table_4(planted(), [ASKED])
    odd, even, total = table.records()
    assert (odd["replace +0.5, named"][:2], even["replace +0.5, named"][:2]) == ("3/", "2/")
    assert odd["replace +0.5, label"].startswith("0/"), "rows 0 to 4 are below the median"
    assert (odd["paper B/A"], total["paper B/A"]) == ("1/4", "2/8")
    assert any("say which passages belong" in note for note in table.notes)


def test_the_last_steering_costs_no_more_than_the_papers_way() -> None:
    trials = run_trials(planted(), [ASKED])
    costs = [np.mean([trial.ways[way].cosine_loss for trial in trials.found]) for way in range(3)]
    assert costs[2] <= costs[0]
    assert 0 <= trials.matched <= 8


def test_labels_of_another_corpus_are_refused() -> None:
    with pytest.raises(CorpusError, match=r"labels there: even, odd; wanted: alt\.atheism"):
        labelled_table_4(planted(), LABELS)


def test_the_questions_are_those_of_the_paper_and_twenty_more() -> None:
    printed = [one.printed for asked in PAPER_QUESTIONS for one in asked.perspectives if one.printed]
    assert (len(printed), sum(before for before, _ in printed), sum(after for _, after in printed)) == (10, 16, 39)
    assert len({asked.text for asked in NEWSGROUP_QUESTIONS}) == 20
    assert len({one.label for asked in NEWSGROUP_QUESTIONS for one in asked.perspectives}) == 20
    assert all(asked.perspectives[0].label != asked.perspectives[1].label for asked in NEWSGROUP_QUESTIONS)
