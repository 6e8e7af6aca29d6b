"""The steering benchmark: planted perspectives, where what is best and what is nothing is known."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from small_world import World
from toy import D, ToyEmbedder, catalog_for, random_sae

from benchmarks.steering.__main__ import main
from benchmarks.steering.benchmark import measure_steering
from benchmarks.steering.corpus import (
    QUESTIONS,
    LabelledCorpus,
    frequent_labels,
    read_concepts,
    read_labelled_corpus,
    read_questions,
    words_of,
)
from benchmarks.steering.cost import steering_costs
from benchmarks.steering.curve import Outcomes, area, chosen_strength, outcomes, read_off
from benchmarks.steering.dictionaries import DEFAULT_NAME, Dictionary, product
from benchmarks.steering.methods import ADD_NAME, ORACLE_NAME, Signal, vector_methods
from benchmarks.steering.pairs import combined
from benchmarks.steering.removal import removals
from benchmarks.steering.setting import EXAMPLES, SteeringSetting, setting_of, top_ten
from benchmarks.steering.study import compare, halves
from sae_steer_retriever.corpus.passage import Passage
from sae_steer_retriever.encoders.cache_root import CACHE_VARIABLE
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.errors import CorpusError
from sae_steer_retriever.evaluate.retrieval_set import RetrievalSet

CONCEPTS, QUERIES, EACH = 6, 8, 80


def planted(seed: int = 0, noise: float = 0.6) -> SteeringSetting:
    """Passages around six directions, queries anywhere, names near the directions but not on them."""
    random = np.random.default_rng(seed)

    def unit(rows: np.ndarray) -> np.ndarray:
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    centres = unit(random.normal(size=(CONCEPTS, D)))
    common = unit(random.normal(size=(1, D)))
    owner = np.repeat(np.arange(CONCEPTS), EACH)
    vectors = unit(centres[owner] + common + noise * unit(random.normal(size=(len(owner), D))))
    members = owner[None] == np.arange(CONCEPTS)[:, None]
    names = tuple(f"concept {number}" for number in range(CONCEPTS))
    return setting_of(
        vectors,
        members,
        names,
        names,
        unit(centres + 0.6 * unit(random.normal(size=(CONCEPTS, D)))),
        tuple(f"question {number}" for number in range(QUERIES)),
        unit(common + 0.5 * unit(random.normal(size=(QUERIES, D)))),
        ToyEmbedder(),
    )


@pytest.fixture(scope="module")
def setting() -> SteeringSetting:
    return planted()


@pytest.fixture(scope="module")
def dictionary(setting: SteeringSetting) -> Dictionary:
    sae = random_sae()
    return Dictionary(sae, setting, catalog_for(sae, setting.vectors).calibration)


def everything(setting: SteeringSetting) -> tuple[range, range]:
    return range(len(setting.questions)), range(len(setting.words))


class TestRanking:
    def test_a_warm_start_ranks_as_a_cold_one(self, setting: SteeringSetting) -> None:
        random = np.random.default_rng(1)
        base = setting.base[0]
        for _ in range(50):
            scores = base + random.normal(size=len(base)).astype(np.float32)
            start = random.choice(len(base), 10, replace=False)
            cold = top_ten(scores, base)
            assert top_ten(scores, base, start).tolist() == cold.tolist()
            assert cold.tolist() == np.argsort(-scores, kind="stable")[:10].tolist()

    def test_ties_keep_the_unsteered_order(self) -> None:
        base = np.arange(20, dtype=np.float32)
        assert top_ten(np.zeros(20, dtype=np.float32), base).tolist() == list(range(19, 9, -1))

    def test_strength_zero_changes_nothing(self, setting: SteeringSetting) -> None:
        for method in vector_methods(setting):
            if len(method.strengths) > 1:
                found = outcomes(method, setting, *everything(setting))
                assert method.strengths[0] == 0
                assert not found.loss[:, :, 0].any(), method.name
                assert found.share[:, :, 0] == pytest.approx(setting.members[:, setting.plain].mean(axis=2).T)

    def test_the_loss_is_the_fall_of_the_top_10s_score(self, setting: SteeringSetting) -> None:
        method = next(method for method in vector_methods(setting) if method.name == ADD_NAME)
        found = outcomes(method, setting, [2], [3])
        place = len(found.strengths) // 2
        scores = setting.base[2] + np.float32(found.strengths[place]) * (setting.vectors @ setting.concepts[3])
        rows = np.argsort(-scores, kind="stable")[:10]
        before = np.sort(setting.base[2])[-10:].mean()
        assert found.loss[0, 0, place] == pytest.approx(1 - setting.base[2][rows].mean() / before, abs=1e-6)
        assert found.share[0, 0, place] == pytest.approx(setting.members[3][rows].mean())


class TestSetting:
    def test_examples_are_in_no_ranking(self, setting: SteeringSetting) -> None:
        examples = np.concatenate([*setting.positives, *setting.negatives])
        assert all(len(rows) == EXAMPLES for rows in setting.positives)
        assert float((examples @ setting.vectors.T).max()) < 1 - 1e-6
        assert setting.members.shape == (CONCEPTS, len(setting.vectors))

    def test_what_is_chosen_on_is_not_reported(self) -> None:
        chosen, reported = halves(7, 6)
        assert not set(chosen.queries) & set(reported.queries)
        assert sorted([*chosen.queries, *reported.queries]) == list(range(7))
        assert not set(chosen.concepts) & set(reported.concepts)


class TestCurve:
    def test_a_curve_is_read_off_between_its_points(self) -> None:
        loss, share = np.array([0.0, 0.04, 0.08]), np.array([0.1, 0.3, 0.5])
        assert read_off(loss, share, [0.02, 0.05, 0.5]) == pytest.approx([0.2, 0.35, 0.5])
        assert area(np.array([0.0, 0.1]), np.array([0.1, 0.3])) == pytest.approx(0.2)

    def test_a_curve_says_nothing_of_less_than_it_starts_with(self) -> None:
        found = read_off(np.array([0.03, 0.08]), np.array([0.1, 0.3]), [0.02, 0.05])
        assert np.isnan(found[0])
        assert found[1] == pytest.approx(0.18)

    def test_the_strength_that_is_chosen_keeps_to_the_loss(self) -> None:
        loss, share = np.array([[[0.0, 0.04, 0.09]]]), np.array([[[0.1, 0.3, 0.9]]])
        assert chosen_strength(Outcomes(share, loss, np.arange(3.0))) == 1
        assert chosen_strength(Outcomes(share, loss + 0.2, np.arange(3.0))) is None


class TestComparison:
    def test_the_oracle_leads_and_nothing_stays_where_it_was(self, setting: SteeringSetting) -> None:
        nothing = Signal("nothing", "", setting, np.zeros_like(setting.members, dtype=np.float32))
        compared = compare([*vector_methods(setting), nothing], setting, draws=200)
        results = {result.name: result for result in compared.results}
        assert compared.results[0].name == ORACLE_NAME
        at_five = {name: result.shares[1].value for name, result in results.items()}
        assert at_five[ORACLE_NAME] > at_five["DiffMean"] > at_five["nothing"]
        assert at_five[ORACLE_NAME] > at_five[ADD_NAME] > at_five["nothing"]
        assert results["nothing"].loss == 0

    def test_differences_are_drawn_in_pairs(self, setting: SteeringSetting) -> None:
        compared = compare(list(vector_methods(setting)), setting, draws=500)
        ahead = compared.differences(ORACLE_NAME, ADD_NAME)[1]
        assert 0 < ahead.low <= ahead.value <= ahead.high
        behind = compared.differences(ADD_NAME, ORACLE_NAME)[1]
        assert (behind.low, behind.high) == pytest.approx((-ahead.high, -ahead.low))
        same = compared.differences(ADD_NAME, ADD_NAME)[1]
        assert (same.low, same.value, same.high) == (0, 0, 0)
        one, other = (compared.shares(name)[1] for name in (ORACLE_NAME, ADD_NAME))
        assert ahead.high - ahead.low < (one.high - one.low) + (other.high - other.low)

    def test_the_way_to_the_ceiling_is_one_at_its_end(self, setting: SteeringSetting) -> None:
        compared = compare(list(vector_methods(setting)), setting, draws=50)
        assert compared.way(ORACLE_NAME, ADD_NAME, ORACLE_NAME)[1].value == pytest.approx(1)
        assert compared.way(ADD_NAME, ADD_NAME, ORACLE_NAME)[1].value == pytest.approx(0)

    def test_a_rewriting_is_one_point(self, setting: SteeringSetting) -> None:
        methods = list(vector_methods(setting, rewrite=lambda question, words: words))
        rewritten = next(method for method in methods if method.name == "LLM rewrite")
        assert rewritten.strengths.tolist() == [1.0]
        found = outcomes(rewritten, setting, [0, 1], [2])
        # The words alone: the same ranking whatever the question.
        assert found.share[0, 0, 0] == found.share[1, 0, 0]


class TestProduct:
    def test_names_without_a_feature_are_counted_and_not_steered(
        self, setting: SteeringSetting, dictionary: Dictionary
    ) -> None:
        catalog = catalog_for(dictionary.sae, setting.vectors)
        words = ("feature 3 name", *setting.words[1:])
        known = Dictionary(dictionary.sae, dataclasses.replace(setting, words=words), catalog.calibration)
        default = product(catalog, known)[0]
        assert default.name == DEFAULT_NAME
        assert sorted(default.why_not) == list(range(1, CONCEPTS))
        assert "concept 1" in default.why_not[1]
        assert np.array_equal(default.scores(0, 1, 2.0), setting.base[0])
        assert not np.array_equal(default.scores(0, 0, 2.0), setting.base[0])

    def test_scores_are_those_that_the_product_ranks_by(self, setting: SteeringSetting, dictionary: Dictionary) -> None:
        from sae_steer_retriever.sae.codes import Codes
        from sae_steer_retriever.search.ranking import Scorer
        from sae_steer_retriever.steering.edit import Edit
        from sae_steer_retriever.steering.plan import plan
        from sae_steer_retriever.steering.policy import Steering

        h_q = Codes(dictionary.queries.indices[1:2], dictionary.queries.values[1:2])
        for side in ("document", "query", "both"):
            edits = (Edit("one", (3, 5), (1.0, 0.5), "add", 0.7, side),)
            steering = Steering(edits, dictionary.sae.fingerprint)
            found = plan(steering, setting.queries[1], h_q, dictionary.sae, dictionary.calibration)
            scorer = Scorer(dictionary.sae, found, dictionary.calibration.match_unit, setting.queries[1])
            offsets = np.zeros(len(setting.vectors), dtype=np.float32)
            x_hat = dictionary.sae.decode(dictionary.codes)
            expected = scorer.score(setting.vectors, offsets, x_hat).scores
            assert setting.base[1] + dictionary.gains(1, edits) == pytest.approx(expected, abs=1e-5), side


class TestFurther:
    def test_an_oracle_removes_and_nothing_does_not(self, setting: SteeringSetting) -> None:
        signals = np.zeros_like(setting.members, dtype=np.float32)
        oracle = Signal(ORACLE_NAME, "", setting, setting.members.astype(np.float32))
        found = {
            (removal.name, removal.queries): removal
            for removal in removals([oracle, Signal("nothing", "", setting, signals)], setting)
        }
        ambiguous = found[ORACLE_NAME, "ambiguous"]
        assert ambiguous.after < ambiguous.before
        assert ambiguous.left_at_best.value < 1
        assert found["nothing", "ambiguous"].left.value == 1

    def test_two_concepts_share_the_top_10(self, setting: SteeringSetting) -> None:
        (found,) = combined([Signal(ORACLE_NAME, "", setting, setting.members.astype(np.float32))], setting)
        assert found.either > found.before
        assert 0 < found.weaker <= found.either / 2


class TestCost:
    def test_steering_by_what_was_not_asked_for_costs_quality(
        self, world: World, cached_embedder: CachedEmbedder
    ) -> None:
        pytest.importorskip("ir_measures")
        # Three of ten: each is embedded.
        rows = [row for row in range(len(world.ids)) if row % 10 in (0, 3, 6)]
        passages = [Passage(world.ids[row], world.texts[row]) for row in rows]
        names = world.ids[::10]
        # The name of a function asks for its docstring.
        judged = RetrievalSet(
            "docstrings",
            passages,
            names,
            [name.rpartition(".")[2] for name in names],
            {name: {name: 1} for name in names},
        )
        found = {cost.name: cost for cost in steering_costs(world.sae, world.catalog, cached_embedder, judged)}
        base = cached_embedder.embed_queries(judged.queries) @ world.vectors[rows].T
        own = [judged.document_ids.index(name) for name in names]
        ranks = (base > base[np.arange(len(names)), own][:, None]).sum(axis=1)
        expected = np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean()
        assert found[DEFAULT_NAME].before == pytest.approx(expected, abs=1e-3)
        assert found[DEFAULT_NAME].at_half is not None
        assert found[ADD_NAME].at[2] < found[ADD_NAME].before


class TestCorpus:
    def write(self, path: Path, rows: list[dict[str, object]]) -> Path:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
        return path

    def test_labels_of_either_form_are_read_and_repeated_ids_left_out(self, tmp_path: Path) -> None:
        rows: list[dict[str, object]] = [
            {"_id": "a", "title": "Ice", "text": "a puck", "label": "hockey"},
            {"_id": "a", "text": "another", "label": "hockey"},
            {"_id": "b", "text": "a bat", "labels": ["baseball", "cricket"]},
            {"_id": "c", "text": "", "label": "hockey"},
        ]
        found = read_labelled_corpus(self.write(tmp_path / "rows.jsonl.gz", rows))
        assert found.texts == ["Ice\na puck", "a bat"]
        assert found.labels == [frozenset({"hockey"}), frozenset({"baseball", "cricket"})]
        assert len(found.notes) == 2

    def test_a_limit_draws_the_same_passages_every_time(self, tmp_path: Path) -> None:
        rows: list[dict[str, object]] = [{"text": f"text {number}", "label": "one"} for number in range(30)]
        path = self.write(tmp_path / "rows.jsonl", rows)
        first, second = (read_labelled_corpus(path, limit=7) for _ in range(2))
        assert first.ids == second.ids
        assert len(set(first.ids)) == 7

    @pytest.mark.parametrize("row", [{"text": "no label"}, {"text": "odd", "label": {"a": 1}}])
    def test_rows_that_say_nothing_of_their_label_are_refused(self, tmp_path: Path, row: dict[str, object]) -> None:
        with pytest.raises(CorpusError, match="label"):
            read_labelled_corpus(self.write(tmp_path / "rows.jsonl", [row]))

    def test_rare_labels_are_not_steered_towards(self) -> None:
        labels = [frozenset({"often"})] * 9 + [frozenset({"sometimes", "often"})] * 5 + [frozenset({"rare"})]
        corpus = LabelledCorpus([""] * 15, [""] * 15, labels, ())
        assert frequent_labels(corpus, least=5) == ("often", "sometimes")
        with pytest.raises(CorpusError, match="at least 10 passages"):
            frequent_labels(corpus, least=10)

    def test_words_are_those_given_or_the_label_without_its_punctuation(self) -> None:
        labels = ("rec.sport.hockey", "money-fx")
        assert words_of(labels, {"money-fx": "foreign exchange"}) == ("rec sport hockey", "foreign exchange")
        with pytest.raises(CorpusError, match="did you mean money-fx"):
            words_of(labels, {"money_fx": "foreign exchange"})

    def test_files_of_concepts_and_questions_are_checked(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text('{"a": 1}')
        with pytest.raises(CorpusError, match="label -> words"):
            read_concepts(path)
        path.write_text("one?\n\none?\n")
        with pytest.raises(CorpusError, match="at least two"):
            read_questions(path)
        path.write_text("one?\n two?\n")
        assert read_questions(path) == ("one?", "two?")


@pytest.fixture(scope="module")
def corpus_file(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginnings of the docstrings of three modules, twice, so that there are enough; the second ones say so."""
    path = tmp_path_factory.mktemp("steering") / "modules.jsonl"
    rows = [
        {"_id": f"{name}-{copy}", "text": f"{text[:120]}{' (again)' * copy}", "label": metadata["module"]}
        for name, text, metadata in zip(world.ids, world.texts, world.metadatas, strict=True)
        for copy in range(2)
        if metadata["module"] in ("asyncio", "math", "shutil")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def kept_embeddings(
    cached_embedder: CachedEmbedder, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command finds what `cached_embedder` remembers, where pytest keeps anything."""
    kept = getattr(request.config, "cache", None)
    if kept:
        monkeypatch.setenv(CACHE_VARIABLE, str(kept.mkdir("embeddings").parent))


class TestCommand:
    def test_a_report_has_every_method_and_writes_its_files(
        self, world: World, cached_embedder: CachedEmbedder, corpus_file: Path, tmp_path: Path
    ) -> None:
        corpus = read_labelled_corpus(corpus_file)
        report = measure_steering(
            world.sae, world.catalog, cached_embedder, corpus, "modules", questions=QUESTIONS[:6], draws=50
        )
        table = report.tables()[0]
        names = {str(record["method"]) for record in table.records()}
        assert {DEFAULT_NAME, ORACLE_NAME, ADD_NAME, "text-append", "Rocchio", "PCA directions"} <= names
        assert table.records()[0]["method"] == ORACLE_NAME
        assert f"Unresolved: {len(report.unresolved)} of {len(report.words)} names" in report.to_text()
        json.dumps(report.to_json(), allow_nan=False)
        pytest.importorskip("matplotlib")
        files = {file.name for file in report.write(tmp_path)}
        assert {"steering-modules.md", "steering-modules.csv", "steering-modules.png"} <= files

    @pytest.mark.usefixtures("kept_embeddings")
    def test_the_command_compares_on_a_file_with_words_for_its_labels(
        self, world: World, filled_folder: Path, corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        questions = tmp_path / "questions.txt"
        questions.write_text("how do I start?\nwhat does it return?\nwhich errors are raised?\nis it safe?\n")
        concepts = tmp_path / "concepts.json"
        concepts.write_text(json.dumps({"asyncio": "coroutines", "nothing": "at all"}))
        arguments = ["--sae", str(filled_folder / "sae"), "--corpus", str(corpus_file), "--queries", str(questions)]
        arguments += ["--concepts", str(concepts), "--limit-passages", "240", "--json", "--quiet"]
        code = main(arguments)
        captured = capsys.readouterr()
        assert code == 0, captured.err
        found = json.loads(captured.out)
        table = found["steering-modules"]
        assert ORACLE_NAME in {row["method"] for row in table["rows"]}
        assert any("of 4 questions" in note for note in table["notes"])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "give either --corpus FILE"),
            (["--corpus", "x", "--data", "y"], "give either --corpus FILE"),
            (["--meaning", "--sae", "x", "--corpus", "y"], "unrecognized arguments: --meaning"),
            (["--sae", "x", "--corpus", "nowhere"], "--corpus: no such file: nowhere"),
            (["--only", "20newsgroups", "--corpus", "x"], "--only goes with --data"),
            (["--data", "x", "--concepts", "y"], "--queries and --concepts go with --corpus"),
            (["--data", "nowhere"], "--data: no such file: "),
        ],
    )
    def test_options_that_do_not_go_together_are_refused(
        self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
