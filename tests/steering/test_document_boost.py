"""How much of a steering's features passages have: its definition, its limits, and all passages of an index at once."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from exact_match import exact_match
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from toy import K_LABELS, K, N, catalog_for, random_sae, unit_rows

from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.features.calibration import calibrate, load_calibration, save_calibration
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.steering.document_boost import FeatureMatch
from sae_steer_retriever.store.code_index import CodeIndex

SAE = random_sae(3)
PASSAGES = unit_rows(4, 300)
CODES = SAE.encode(PASSAGES)
UNIT = catalog_for(SAE, PASSAGES).calibration.match_unit
IDS = [f"p{row}" for row in range(len(PASSAGES))]
# Weighted groups of one to four different features.
GROUPS = st.lists(
    st.tuples(st.integers(0, N - 1), st.floats(0.05, 1.0)), min_size=1, max_size=4, unique_by=lambda pair: pair[0]
)


def one_latent(latent: int, value: float) -> Codes[np.ndarray]:
    """The code of a passage whose reconstruction is the bias and one direction."""
    return Codes(np.array([[latent] + [0] * (K - 1)]), np.array([[value] + [0.0] * (K - 1)], dtype=np.float32))


def index_of(codes: Codes[np.ndarray] = CODES) -> CodeIndex:
    return CodeIndex.build([(IDS[: len(codes.indices)], codes)], N, K, K_LABELS)


INDEX = index_of()


# -- one passage ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(group=GROUPS, seed=st.integers(0, 1000), scale=st.floats(0.05, 20))
def test_presence_is_the_ramp_over_the_mean_of_clipped_matches(
    group: list[tuple[int, float]], seed: int, scale: float
) -> None:
    features, weights = zip(*group, strict=True)
    codes = SAE.encode(unit_rows(seed, 40))
    unit = (scale * UNIT).astype(np.float32)
    found = FeatureMatch(SAE, unit, features, weights).of(codes)
    np.testing.assert_allclose(found, exact_match(SAE, unit, features, weights, codes), atol=1e-5)
    assert found.min() >= 0.0
    assert found.max() <= 1.0


def test_the_definition_is_put_to_use_on_these_passages() -> None:
    """Else the test above could compare zeros: of most features some passages have nothing, a part, and all."""
    shares = np.stack([FeatureMatch(SAE, UNIT, [feature], [1.0]).of(CODES) for feature in range(N)])
    assert ((shares == 0).any(axis=1) & (shares == 1).any(axis=1)).mean() > 0.8
    assert (((shares > 0.01) & (shares < 0.99)).sum(axis=1) >= 3).mean() > 0.8


@pytest.mark.parametrize(
    ("units", "expected"), [(0.0, 0.0), (0.2, 0.0), (0.25, 0.0), (0.425, 0.5), (0.6, 1.0), (1.0, 1.0), (50.0, 1.0)]
)
def test_a_passage_that_is_one_unit_of_a_feature_has_it_in_full(units: float, expected: float) -> None:
    for feature in range(N):
        codes = one_latent(feature, units * float(UNIT[feature]))
        assert FeatureMatch(SAE, UNIT, [feature], [1.0]).of(codes) == pytest.approx(expected, abs=1e-5)


def test_a_near_direction_in_place_of_the_features_own_counts_by_its_cosine() -> None:
    near, own = SAE.decoder[1].astype(np.float64), SAE.decoder[0].astype(np.float64)
    direction = 0.5 * own + np.sqrt(0.75) * (near - (near @ own) * own) / np.linalg.norm(near - (near @ own) * own)
    rows = SAE.W_dec.clone()
    rows[1] = rows.new_tensor(direction)
    sae = TopKSAE(SAE.W_enc, SAE.b_enc, rows, SAE.b_dec, SAE.config)
    # Latent 0 is not among its latents, and its match is half of what latent 1 has.
    codes = one_latent(1, float(UNIT[0]))
    assert FeatureMatch(sae, UNIT, [0], [1.0]).of(codes) == pytest.approx((0.5 - 0.25) / 0.35, abs=1e-5)


def test_what_points_away_counts_for_nothing_and_does_not_cancel() -> None:
    overlaps = SAE.decoder @ SAE.decoder.T
    one, away = np.unravel_index(int(overlaps.argmin()), overlaps.shape)
    assert overlaps[one, away] < -0.3
    units = np.full(N, 0.1, dtype=np.float32)
    codes = one_latent(int(one), 1.0)
    assert FeatureMatch(SAE, units, [int(away)], [1.0]).of(codes) == [0.0]
    # Clipped before the mean: half of the pair is there in full.
    pair = FeatureMatch(SAE, units, [int(one), int(away)], [1.0, 1.0]).of(codes)
    assert pair == pytest.approx((0.5 - 0.25) / 0.35, abs=1e-5)


def test_all_latents_of_a_code_count_not_only_its_names() -> None:
    whole, named = (np.stack([FeatureMatch(SAE, UNIT, [f], [1.0]).of(c) for f in range(N)])
                    for c in (CODES, CODES.truncate(K_LABELS)))  # fmt: skip
    assert np.abs(whole - named).max() > 0.1


@settings(max_examples=40, deadline=None)
@given(group=GROUPS, scale=st.floats(1e-3, 1e3))
def test_only_the_weights_shares_matter(group: list[tuple[int, float]], scale: float) -> None:
    features, weights = zip(*group, strict=True)
    one = FeatureMatch(SAE, UNIT, features, weights).of(CODES)
    other = FeatureMatch(SAE, UNIT, features, [scale * weight for weight in weights]).of(CODES)
    np.testing.assert_allclose(one, other, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(group=GROUPS, seed=st.integers(0, 1000))
def test_the_order_of_features_does_not_matter(group: list[tuple[int, float]], seed: int) -> None:
    features, weights = zip(*group, strict=True)
    order = np.random.default_rng(seed).permutation(len(group)).tolist()
    one = FeatureMatch(SAE, UNIT, features, weights).of(CODES)
    other = FeatureMatch(SAE, UNIT, [features[i] for i in order], [weights[i] for i in order]).of(CODES)
    np.testing.assert_allclose(one, other, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(place=st.integers(0, K - 1), row=st.integers(0, 299), more=st.floats(0.0, 3.0))
def test_more_of_a_feature_is_never_less_present(place: int, row: int, more: float) -> None:
    indices, had = CODES.indices[row : row + 1], CODES.values[row : row + 1]
    has = had.copy()
    has[0, place] += np.float32(more)
    feature_match = FeatureMatch(SAE, UNIT, [int(indices[0, place])], [1.0])
    before, after = (feature_match.of(Codes(indices, values)) for values in (had, has))
    assert after >= before - 1e-6


def test_a_passage_without_a_code_has_nothing() -> None:
    nothing: Codes[np.ndarray] = Codes(np.zeros((2, K), dtype=np.int32), np.zeros((2, K), dtype=np.float32))
    assert FeatureMatch(SAE, UNIT, [0, 5], [1.0, 0.5]).of(nothing).tolist() == [0.0, 0.0]
    none: Codes[np.ndarray] = Codes(np.zeros((0, K), dtype=np.int32), np.zeros((0, K), dtype=np.float32))
    assert FeatureMatch(SAE, UNIT, [0], [1.0]).of(none).shape == (0,)


# -- all passages of an index -----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(group=GROUPS)
def test_all_passages_at_once_have_what_each_has(group: list[tuple[int, float]]) -> None:
    features, weights = zip(*group, strict=True)
    feature_match = FeatureMatch(SAE, UNIT, features, weights)
    everywhere = feature_match.everywhere(INDEX)
    np.testing.assert_allclose(everywhere, feature_match.of(CODES), atol=1e-5)
    assert FeatureMatch(SAE, UNIT, features, weights).everywhere(INDEX) is everywhere, "it is remembered"
    with pytest.raises(ValueError, match="read-only"):
        everywhere[0] = 1.0


def test_what_is_remembered_of_one_group_is_not_told_of_another() -> None:
    index = index_of()
    groups: list[tuple[Array, tuple[int, ...], tuple[float, ...]]] = [
        (UNIT, (5, 9), (1.0, 0.5)),
        (UNIT, (5, 9), (0.5, 1.0)),
        (UNIT, (9, 5), (1.0, 0.5)),
        (UNIT, (5,), (1.0,)),
        (2 * UNIT, (5, 9), (1.0, 0.5)),
    ]
    for _ in range(2):
        for unit, features, weights in groups:
            found = FeatureMatch(SAE, unit, features, weights).everywhere(index)
            np.testing.assert_allclose(found, exact_match(SAE, unit, features, weights, CODES), atol=1e-5)


def test_memory_for_answers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_steer_retriever.store.code_index._REMEMBERED_BYTES", 5 * 4 * len(IDS))
    index = index_of()
    for feature in range(20):
        FeatureMatch(SAE, UNIT, [feature], [1.0]).everywhere(index)
    assert len(index._answers) == 5
    latest = FeatureMatch(SAE, UNIT, [19], [1.0])
    assert latest.everywhere(index) is latest.everywhere(index)


def test_threads_get_the_same_answers() -> None:
    index, wrong = index_of(), []

    def work(start: int) -> None:
        for step in range(N):
            feature = (start + step) % N
            found = FeatureMatch(SAE, UNIT, [feature], [1.0]).everywhere(index)
            if not np.allclose(found, expected[feature], atol=1e-5):
                wrong.append(feature)

    expected = [exact_match(SAE, UNIT, [feature], [1.0], CODES) for feature in range(N)]
    threads = [threading.Thread(target=work, args=(7 * start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- overlaps ---------------------------------------------------------------------------------------------------------


def test_overlaps_are_cosines_also_after_many_others() -> None:
    sae = random_sae(5, n=256)
    for number in range(200):
        features = (number, (7 * number) % 256)
        expected = sae.decoder.astype(np.float64) @ sae.decoder[list(features)].astype(np.float64).T
        np.testing.assert_allclose(sae.overlaps(features), expected, atol=1e-6)
    assert len(sae._overlaps) <= 64
    np.testing.assert_allclose(sae.overlaps((0, 0)), sae.decoder @ sae.decoder[[0, 0]].T, atol=1e-6)


def test_units_of_matches_are_counted_apart_from_units_of_activations() -> None:
    named = CODES.truncate(K_LABELS)
    matches: Codes[np.ndarray] = Codes(named.indices, 3 * named.values)
    alone, both = calibrate([named], N, 0.2), calibrate([named], N, 0.2, [matches])
    np.testing.assert_array_equal(alone.match_unit, alone.unit)
    np.testing.assert_array_equal(both.unit, alone.unit)
    np.testing.assert_array_equal(both.count, alone.count)
    np.testing.assert_allclose(both.match_unit, 3 * alone.unit, rtol=1e-5)


def test_units_of_matches_survive_saving_and_files_of_before_have_units_of_activations(tmp_path: Path) -> None:
    named = CODES.truncate(K_LABELS)
    made = calibrate([named], N, 0.2, [Codes(named.indices, 3 * named.values)])
    file = tmp_path / "calibration.safetensors"
    file.write_bytes(save_calibration(made, None))
    again, _ = load_calibration(file, N)
    np.testing.assert_array_equal(again.match_unit, made.match_unit)
    tensors = made.tensors()
    del tensors["match_unit"]
    file.write_bytes(save(tensors))
    np.testing.assert_array_equal(load_calibration(file, N)[0].match_unit, made.unit)
    for broken in (np.zeros(N, np.float32), np.full(N, np.nan, np.float32), np.ones(N - 1, np.float32)):
        file.write_bytes(save({**tensors, "match_unit": broken}))
        with pytest.raises(ArtifactError, match="train again|describes"):
            load_calibration(file, N)
