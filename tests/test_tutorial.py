"""The tutorial: what its example computes on parts whose answer is known, and that its page and pictures are whole."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import K_LABELS, D, N, catalog_for, random_sae, unit_rows

from sae_steer_retriever.sae.codes import Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))
geometry = importlib.import_module("superposition_geometry")
page = importlib.import_module("superposition_page")
reading = importlib.import_module("superposition_reading")
texts = importlib.import_module("superposition_texts")

GROUPS = np.repeat(np.arange(len(texts.SENSES)), 8)
PAGE = ROOT / "docs" / "tutorial.md"
TUTORIAL = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
needs_page = pytest.mark.skipif(not TUTORIAL, reason="the source distribution has no docs/")


@settings(max_examples=25, deadline=None)
@given(k=st.integers(1, 16), seed=st.integers(0, 1000))
def test_a_sum_of_orthogonal_features_is_read_back_whole(k: int, seed: int) -> None:
    planted = geometry.plant(32, k, trials=5, seed=seed)
    for steps in (0, 10):
        assert geometry.recovered(torch.eye(32), planted, steps, seed).tolist() == [1.0] * 5


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_a_refinement_reads_back_a_few_of_more_features_than_dimensions(seed: int) -> None:
    directions = torch.from_numpy(unit_rows(seed, 512, 128))
    planted = geometry.plant(512, 5, trials=20, seed=seed)
    assert all(len(set(row)) == 5 for row in planted.tolist())
    found = geometry.recovered(directions, planted, seed=seed).mean()
    assert found > 0.95
    assert found >= geometry.recovered(directions, planted, steps=0, seed=seed).mean()
    too_many = geometry.plant(512, 100, trials=5, seed=seed)
    assert geometry.recovered(directions, too_many, seed=seed).mean() < 0.8


def test_as_many_directions_fit_as_the_plane_has_room_for_and_more_in_more_dimensions() -> None:
    assert geometry.directions_that_fit(2, drawn=2_000) == 2
    assert geometry.directions_that_fit(2, drawn=2_000, limit=0.6) == 3  # lines more than 53 degrees apart
    counts = [geometry.directions_that_fit(d, drawn=2_000) for d in (8, 64, 256)]
    assert counts == sorted(counts)
    assert counts[0] <= 8 < 256 < counts[2] <= 2_000


def test_cosines_of_orthogonal_rows_are_none() -> None:
    found = geometry.cosines(np.eye(12, dtype=np.float32), sample=6)
    assert len(found.pairs) == 15
    assert found.close == 0
    assert found.nearest.tolist() == [0.0] * 6


def test_directions_of_one_meaning_are_pure_and_random_ones_are_not() -> None:
    own = np.eye(len(texts.SENSES), dtype=np.float32)[GROUPS]
    assert reading.purity("own", own + 0.1 * unit_rows(0, len(GROUPS), own.shape[1]), GROUPS, names=1).share == 1.0
    chance = reading.purity("random", unit_rows(1, len(GROUPS), 100), GROUPS)
    assert chance.directions > 0
    assert chance.share < 0.2


def test_a_direction_is_judged_on_sentences_that_have_not_chosen_it() -> None:
    noise = unit_rows(0, len(GROUPS), 500)
    assert 0.35 < reading.tell_apart("noise", noise, GROUPS).auroc < 0.65
    own = np.eye(len(texts.SENSES), dtype=np.float32)[GROUPS]
    told = reading.tell_apart("planted", np.concatenate([noise, own], axis=1), GROUPS)
    assert (told.auroc, told.perfect, told.of) == (1.0, 24, 24)
    assert reading.tell_apart_by_examples(own, GROUPS).perfect == 24


def test_the_planted_feature_of_a_meaning_is_found() -> None:
    sae = random_sae(n=N, k=K_LABELS)
    vectors = unit_rows(3, len(GROUPS))
    catalog = catalog_for(sae, unit_rows(4, 200))
    found = reading.read(sae, [""] * len(GROUPS), GROUPS, vectors)
    assert found.matches.shape == (len(GROUPS), N)
    named = np.zeros((len(GROUPS), N), dtype=np.bool_)
    named[np.arange(len(GROUPS)), GROUPS] = True
    features = reading.sense_features(found, named, catalog)
    assert [one.feature for one in features] == list(range(24))
    assert {(one.own, one.other, one.elsewhere) for one in features} == {(4, 0, 0)}


def test_a_relative_that_takes_a_features_place_is_absorption() -> None:
    sae = random_sae()
    sae.W_dec[1] = torch.nn.functional.normalize(sae.W_dec[0] + 0.1 * sae.W_dec[1], dim=0)
    sae.W_enc[:] = sae.W_dec
    catalog = catalog_for(sae, unit_rows(4, 3_000))
    vectors = (sae.bias + 5 * sae.decoder[:1]).astype(np.float32)
    found = reading.read(sae, ["text"], [0], vectors)
    for active, replaced in ((1, True), (0, False)):
        codes = Codes(np.array([[active]]), np.array([[1.0]]))
        missing = reading.absorption(found._replace(codes=codes), sae, catalog)
        assert missing.strong >= 2
        assert (missing.example is not None and missing.example[:2] == (0, 1)) is replaced


def test_more_features_leave_less_unexplained() -> None:
    drawn = random_sae()
    tensors = (drawn.W_enc, drawn.b_enc, drawn.W_dec, drawn.b_dec)
    sae = TopKSAE(*tensors, dataclasses.replace(drawn.config, refine_steps=20))
    vectors = unit_rows(0, 50)
    left = [reading.unexplained(sae, vectors, k) for k in (1, 4, D)]
    assert left == sorted(left, reverse=True)
    assert 0 <= left[-1] < left[0] <= 1


def test_sentences_have_their_word_and_meanings_come_in_pairs() -> None:
    assert len(texts.SENSES) == 24
    for one, other in zip(texts.SENSES[::2], texts.SENSES[1::2], strict=True):
        assert one.word == other.word
        assert one.meaning != other.meaning
    every = [sentence for sense in texts.SENSES for sentence in sense.sentences]
    assert len(set(every)) == 8 * 24
    assert all(sense.word in sentence.lower() for sense in texts.SENSES for sentence in sense.sentences)


def test_measured_parts_are_put_in_their_places_and_can_be_again() -> None:
    empty = "a\n<!-- measured: one -->\n<!-- end -->\nb\n<!-- measured: two -->\nold\n<!-- end -->\n"
    once = page.filled(empty, {"one": page.table([["x", "y"], ["1|2", "3"]])})
    assert page.filled(once, {"one": "new"}) == empty.replace("one -->\n", "one -->\nnew\n")
    assert "| x | y |\n| --- | --- |\n| 1\\|2 | 3 |" in once
    assert "\nold\n" in once
    assert page.places(once) == {"one", "two"}


@needs_page
def test_every_place_in_the_page_is_filled_and_is_something_that_the_example_measures() -> None:
    script = (ROOT / "examples" / "superposition.py").read_text(encoding="utf-8")
    places = page.places(TUTORIAL)
    assert len(places) > 10
    assert {name for name in places if f'"{name}": ' not in script} == set()
    assert re.findall(r"<!-- measured: ([\w-]+) -->\s*<!-- end -->", TUTORIAL) == []


@needs_page
def test_every_picture_is_small_there_shown_and_described() -> None:
    found = re.findall(r"!\[([^\]]*)\]\(tutorial/([\w-]+\.png)\)", TUTORIAL)
    shown = {name: alternative for alternative, name in found}
    folder = ROOT / "docs" / "tutorial"
    assert set(shown) == {path.name for path in folder.glob("*.png")}
    for name, alternative in shown.items():
        assert len(alternative) > 60, name
        assert 0 < (folder / name).stat().st_size < 150_000, name


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)", TUTORIAL))))
def test_links_of_the_page_lead_somewhere(link: str) -> None:
    assert (ROOT / "docs" / link).exists()
