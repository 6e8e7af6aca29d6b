"""How much of a steering's features vectors have: its definition and its limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exact_match import exact_match
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save
from toy import K_LABELS, D, N, catalog_for, random_sae, unit_rows

from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.features.calibration import calibrate, load_calibration, save_calibration
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.steering.document_boost import FeatureMatch

SAE = random_sae(3)
PASSAGES = unit_rows(4, 300)
CODES = SAE.encode(PASSAGES)
UNIT = catalog_for(SAE, PASSAGES).calibration.match_unit
# Weighted groups of one to four different features.
GROUPS = st.lists(
    st.tuples(st.integers(0, N - 1), st.floats(0.05, 1.0)), min_size=1, max_size=4, unique_by=lambda pair: pair[0]
)


def along(latent: int, amount: float, sae: TopKSAE = SAE) -> Array:
    """(1, d) the bias and so much of one direction."""
    return np.asarray(sae.bias + amount * sae.decoder[latent], dtype=np.float32)[None]


def match(group: list[tuple[int, float]], vectors: Array = PASSAGES, scale: float = 1.0) -> NDArray[np.float64]:
    features, weights = zip(*group, strict=True)
    return FeatureMatch.of_features(SAE, UNIT, features, weights, scale=scale).of(vectors)


# -- a vector ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(group=GROUPS, seed=st.integers(0, 1000), scale=st.floats(0.05, 20))
def test_a_match_is_the_ramp_over_the_mean_of_the_features_matches(
    group: list[tuple[int, float]], seed: int, scale: float
) -> None:
    features, weights = zip(*group, strict=True)
    vectors = unit_rows(seed, 40)
    unit = (scale * UNIT).astype(np.float32)
    feature_match = FeatureMatch.of_features(SAE, unit, features, weights)
    found = feature_match.of(vectors)
    np.testing.assert_allclose(found, exact_match(SAE, unit, features, weights, vectors), atol=1e-5)
    np.testing.assert_allclose(found, np.clip(feature_match.linear(vectors), 0, 1), atol=1e-12)


def test_the_definition_is_put_to_use_on_these_passages() -> None:
    """Else the test above could compare zeros: of most features some passages have nothing, a part, and all."""
    shares = np.stack([match([(feature, 1.0)]) for feature in range(N)])
    assert ((shares == 0).any(axis=1) & (shares == 1).any(axis=1)).mean() > 0.8
    assert (((shares > 0.01) & (shares < 0.99)).sum(axis=1) >= 3).mean() > 0.8


@pytest.mark.parametrize(
    ("units", "expected"),
    [(-3.0, 0.0), (0.0, 0.0), (0.2, 0.0), (0.25, 0.0), (0.425, 0.5), (0.6, 1.0), (1.0, 1.0), (50.0, 1.0)],
)
def test_a_passage_that_has_one_unit_of_a_feature_matches_in_full(units: float, expected: float) -> None:
    for feature in range(N):
        vector = along(feature, units * float(UNIT[feature]))
        assert match([(feature, 1.0)], vector) == pytest.approx(expected, abs=1e-5)


def test_a_near_direction_in_place_of_the_features_own_counts_by_its_cosine() -> None:
    near, own = SAE.decoder[1].astype(np.float64), SAE.decoder[0].astype(np.float64)
    direction = 0.5 * own + np.sqrt(0.75) * (near - (near @ own) * own) / np.linalg.norm(near - (near @ own) * own)
    rows = SAE.W_dec.clone()
    rows[1] = rows.new_tensor(direction)
    sae = TopKSAE(SAE.W_enc, SAE.b_enc, rows, SAE.b_dec, SAE.config)
    found = FeatureMatch.of_features(sae, UNIT, [0], [1.0]).of(along(1, float(UNIT[0]), sae))
    assert found == pytest.approx((0.5 - 0.25) / 0.35, abs=1e-5)


def test_what_points_away_from_one_feature_takes_from_the_mean_of_a_family() -> None:
    overlaps = SAE.decoder @ SAE.decoder.T
    one, away = (int(latent) for latent in np.unravel_index(int(overlaps.argmin()), overlaps.shape))
    cosine = float(overlaps[one, away])
    assert cosine < -0.3
    units = np.full(N, 0.1, dtype=np.float32)
    vector = along(one, 0.1)
    assert FeatureMatch.of_features(SAE, units, [away], [1.0]).of(vector) == [0.0]
    # The mean is linear, so that nearest neighbours find what it is large for: it is clipped as a whole.
    pair = FeatureMatch.of_features(SAE, units, [one, away], [2.0, 2.0]).of(vector)
    assert pair == pytest.approx(max(0.0, ((1 + cosine) / 2 - 0.25) / 0.35), abs=1e-5)
    assert pair < (0.5 - 0.25) / 0.35


@settings(max_examples=40, deadline=None)
@given(group=GROUPS, scale=st.floats(1e-3, 1e3))
def test_only_the_weights_shares_matter(group: list[tuple[int, float]], scale: float) -> None:
    scaled = [(feature, scale * weight) for feature, weight in group]
    np.testing.assert_allclose(match(group), match(scaled), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(group=GROUPS, seed=st.integers(0, 1000))
def test_the_order_of_features_does_not_matter(group: list[tuple[int, float]], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(group)).tolist()
    np.testing.assert_allclose(match(group), match([group[place] for place in order]), atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(feature=st.integers(0, N - 1), row=st.integers(0, 299), more=st.floats(0.0, 3.0))
def test_more_of_a_feature_is_never_a_worse_match(feature: int, row: int, more: float) -> None:
    vector = PASSAGES[row : row + 1]
    more_of_it = np.asarray(vector + more * SAE.decoder[feature], dtype=np.float32)
    assert match([(feature, 1.0)], more_of_it) >= match([(feature, 1.0)], vector) - 1e-6


@pytest.mark.parametrize("length", [0.02, 1.0, 7.0])
def test_vectors_of_another_typical_length_match_as_unit_vectors_do(length: float) -> None:
    for feature in range(N):
        found = match([(feature, 1.0)], length * PASSAGES, scale=length)
        np.testing.assert_allclose(found, match([(feature, 1.0)]), atol=1e-5)


def test_no_vectors_have_no_matches() -> None:
    assert match([(0, 1.0)], np.empty((0, D), dtype=np.float32)).shape == (0,)


# -- units ------------------------------------------------------------------------------------------------------------


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
