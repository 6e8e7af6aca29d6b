"""Families: what passages have together becomes one group with one name, and nothing else does."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import csr_matrix
from scipy.spatial.distance import squareform
from small_world import World
from toy import catalog_for, random_sae, unit_rows

from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.features.catalog_files import read_catalog, write_catalog
from sae_steer_retriever.features.feature import Family
from sae_steer_retriever.labelling.families import average_linkage, find_families
from sae_steer_retriever.labelling.gather_evidence import Evidence
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.topk_sae import TopKSAE

PASSAGES = 400


def evidence_of(has: np.ndarray) -> Evidence:
    """Of an (n, N) table of who has what."""
    return Evidence(csr_matrix(has.astype(np.float32)), np.empty((len(has), 0), dtype=np.int64))


@pytest.fixture
def planted() -> tuple[np.ndarray, Array]:
    """Features 0-2 share one fifteenth of the passages, 3-4 another; 5-8 are by themselves, 9 is a hub, 10 is dead."""
    random = np.random.default_rng(0)
    has = random.random((11, PASSAGES)) < 0.05
    has[:5] = False
    has[:3, :27] = random.random((3, 27)) < 0.9
    has[3:5, 100:127] = random.random((2, 27)) < 0.9
    has[9], has[10] = random.random(PASSAGES) < 0.5, False
    has[9, :27] = True
    common = unit_rows(1, 2, 64)
    directions = unit_rows(0, 11, 64)
    directions[:3] += common[0]
    directions[3:5] += common[1]
    directions[9] += common[0]
    return has, directions / np.linalg.norm(directions, axis=1, keepdims=True)


KEYWORDS = {feature: (f"own{feature}", "hockey" if feature < 3 else "violin") for feature in range(11)}


def test_features_that_passages_have_together_are_a_family(planted: tuple[np.ndarray, Array]) -> None:
    """The hub is in all the passages of the first family, and in none of them; most shared words come first."""
    has, directions = planted
    families = find_families(evidence_of(has), directions, KEYWORDS)
    frequency = has.sum(axis=1)
    expected = sorted(([0, 1, 2], [3, 4]), key=lambda group: -frequency[group].sum())
    assert [sorted(family.features) for family in families] == expected
    assert [family.id for family in families] == [0, 1]
    names = {min(family.features): family.name for family in families}
    assert names[0].split(", ")[0] == "hockey"
    assert names[3].split(", ")[0] == "violin"
    for family in families:
        assert list(family.features) == sorted(family.features, key=lambda feature: (-frequency[feature], feature))


def test_opposite_or_nameless_features_join_nobody(planted: tuple[np.ndarray, Array]) -> None:
    has, directions = planted
    directions[3] = -directions[4]
    named = {feature: words for feature, words in KEYWORDS.items() if feature != 0}
    families = find_families(evidence_of(has), directions, named)
    assert [sorted(family.features) for family in families] == [[1, 2]]


def test_names_are_distinct_and_no_word_holds_another(planted: tuple[np.ndarray, Array]) -> None:
    """Two families whose members are labelled alike can still be told apart by name."""
    has, directions = planted
    alike = dict.fromkeys(range(11), ("virus", "viruses", "viral", "virus-infected"))
    families = find_families(evidence_of(has), directions, alike)
    assert [family.name for family in families] == ["virus, viral", "virus, viral (2)"]


def test_chance_makes_no_family() -> None:
    """Independent features meet, as often as their frequencies say."""
    has = np.random.default_rng(0).random((60, 3000)) < 0.05
    keywords = {feature: (f"word{feature}",) for feature in range(60)}
    assert find_families(evidence_of(has), np.ones((60, 4), dtype=np.float32) / 2, keywords) == ()


def test_nothing_to_group() -> None:
    assert find_families(evidence_of(np.zeros((4, 20), dtype=bool)), unit_rows(0, 4), {}) == ()


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.floats(0.1, 0.9), st.floats(0.1, 1.0))
@settings(max_examples=80, deadline=None)
def test_reciprocal_neighbours_end_where_average_linkage_does(
    seed: int, count: int, least: float, filled: float
) -> None:
    """Against SciPy's clustering of the whole matrix."""
    random = np.random.default_rng(seed)
    similarity = np.triu(random.random((count, count)) * (random.random((count, count)) < filled), 1)
    groups = average_linkage(csr_matrix(similarity), least, count)
    distance = 1 - similarity - similarity.T
    np.fill_diagonal(distance, 0)
    number = fcluster(linkage(squareform(distance), "average"), 1 - least, "distance")
    expected = [np.flatnonzero(number == found).tolist() for found in np.unique(number)]
    assert sorted(group.tolist() for group in groups) == sorted(group for group in expected if len(group) > 1)


def test_no_group_is_larger_than_allowed() -> None:
    """Thirty that are all equally near: ties make neither an endless loop nor one heap."""
    groups = average_linkage(csr_matrix(np.triu(np.ones((30, 30)), 1)), 0.5, 12)
    assert max(len(group) for group in groups) <= 12
    assert len(np.unique(np.concatenate(groups))) == sum(len(group) for group in groups) == 30


def test_families_of_real_text_are_of_one_topic(world: World) -> None:
    """Passages of two members of a family come from one module more often than those of any two features."""
    families = world.catalog.families
    assert families
    assert len({family.name for family in families}) == len(families)
    member = {feature: family.id for family in families for feature in family.features}
    assert len(member) == sum(len(family.features) for family in families)
    assert {feature.id: feature.family for feature in world.catalog.features if feature.family is not None} == member
    modules = [metadata["module"] for metadata in world.metadatas]
    place = {name: number for number, name in enumerate(world.ids)}
    shown = {
        feature: {modules[place[example.id]] for example in world.catalog.evidence(feature).top}
        for feature in (feature.id for feature in world.catalog.labelled)
    }

    def agreement(pairs: list[tuple[int, int]]) -> float:
        return float(np.mean([len(shown[one] & shown[other]) / len(shown[one] | shown[other]) for one, other in pairs]))

    inside = [pair for family in families for pair in itertools.combinations(family.features, 2)]
    everywhere = list(itertools.combinations(shown, 2))
    assert agreement(inside) > 2 * agreement(everywhere)


@pytest.fixture
def sae() -> TopKSAE:
    return random_sae()


def test_families_are_kept_with_the_catalog(sae: TopKSAE, tmp_path: Path) -> None:
    catalog = catalog_for(sae, unit_rows(0, 50))
    families = (Family(0, "hockey, playoffs", (3, 1)), Family(1, "orchid", (2, 5, 7)))
    write_catalog(tmp_path, catalog.features, catalog.calibration, sae.fingerprint, None, families)
    assert read_catalog(tmp_path, sae.fingerprint).families == families
    path = tmp_path / "features.json"
    path.write_text(path.read_text(encoding="utf-8").replace("[2,5,7]", "[2,5,99]"), encoding="utf-8")
    with pytest.raises(ArtifactError, match="family 'orchid'"):
        read_catalog(tmp_path, sae.fingerprint)


def test_a_catalog_of_the_first_format_is_read(sae: TopKSAE, tmp_path: Path) -> None:
    """One AUROC a label, no author, no family, no families: what version 0.1 wrote."""
    catalog = catalog_for(sae, unit_rows(0, 50))
    catalog.save(tmp_path)
    path = tmp_path / "features.json"
    body = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        {
            "id": feature,
            "label": "wages, salary" if feature else "",
            "keywords": ["wages", "salary"] if feature else [],
            "label_score": 0.8125 if feature else None,
            "frequency": 0.02,
            "unit": 0.4,
            "examples": ["p1", "p2"],
        }
        for feature in range(sae.config.n)
    ]
    old = {
        "format_version": 1,
        "fingerprint": body["fingerprint"],
        "calibration": body["calibration"],
        "features": rows,
    }
    path.write_text(json.dumps(old), encoding="utf-8")
    found = read_catalog(tmp_path, sae.fingerprint)
    assert found.families == ()
    assert found.features[0].score is None
    assert found.features[1].label_score == 0.8125
    assert (found.features[1].label_by, found.features[1].family) == ("keywords", None)
    assert found.features[1].keywords == ("wages", "salary")
