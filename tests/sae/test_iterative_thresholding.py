"""Codes that are refined after the encoder's TopK: lower errors, true codes found, nothing else changed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import random_sae, unit_rows

from sae_steer_retriever.sae.iterative_thresholding import FEW_ROWS, products, refine
from sae_steer_retriever.sae.topk_sae import TopKSAE

# Rows that share one product, with a few candidates each.
_MANY = 3_000


def _decoder(n: int, d: int, seed: int) -> torch.Tensor:
    rows = torch.randn((n, d), generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def _pursuing(sae: TopKSAE, steps: int, candidates: int | None = None) -> TopKSAE:
    config = dataclasses.replace(sae.config, refine_steps=steps, refine_candidates=candidates)
    return TopKSAE(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, config)


def _errors(x: torch.Tensor, decoder: torch.Tensor, indices: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    codes = torch.zeros((len(x), len(decoder))).scatter_add_(1, indices, values)
    return (x - codes @ decoder).square().sum(dim=1)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 12), steps=st.integers(0, 6), coherent=st.booleans())
@pytest.mark.parametrize("rows", [7, _MANY])
def test_no_row_gets_worse_and_codes_stay_codes(rows: int, seed: int, k: int, steps: int, coherent: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    decoder = _decoder(40, 12, seed)
    if coherent:  # nearly one direction: where a fixed step would diverge
        decoder = decoder * 0.05 + decoder[:1]
        decoder = decoder / decoder.norm(dim=1, keepdim=True)
    x = torch.randn((rows, 12), generator=generator)
    start = (x @ decoder.T).topk(k, dim=1)
    values = start.values.relu()
    indices, refined = refine(x, decoder, start.indices, values, steps)
    before, after = _errors(x, decoder, start.indices, values), _errors(x, decoder, indices, refined)
    assert (after <= before * (1 + 1e-4) + 1e-5).all()
    assert (refined >= 0).all()
    match = (x @ decoder.T).gather(1, indices).where(refined > 0, torch.tensor(-torch.inf))
    assert (match[:, :-1] >= match[:, 1:]).all()
    for row in range(min(rows, 7)):
        active = indices[row][refined[row] > 0].tolist()
        assert len(set(active)) == len(active)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    rows=st.sampled_from([1, 9, _MANY]),
    k=st.integers(1, 6),
    among=st.integers(6, 40),
    steps=st.integers(0, 6),
)
def test_candidates_are_all_that_a_code_has_and_no_row_gets_worse(
    seed: int, rows: int, k: int, among: int, steps: int
) -> None:
    decoder = _decoder(40, 12, seed)
    x = torch.randn((rows, 12), generator=torch.Generator().manual_seed(seed))
    guess = (x @ decoder.T + 0.1 * torch.randn((rows, 40), generator=torch.Generator().manual_seed(1))).topk(among)
    start, values = guess.indices[:, :k], guess.values[:, :k].relu()
    indices, refined = refine(x, decoder, start, values, steps, guess.indices)
    before, after = _errors(x, decoder, start, values), _errors(x, decoder, indices, refined)
    assert (after <= before * (1 + 1e-4) + 1e-5).all()
    assert (refined >= 0).all()
    for row in range(min(rows, 9)):
        active = indices[row][refined[row] > 0].tolist()
        assert len(set(active)) == len(active)
        assert set(active) <= set(guess.indices[row].tolist())


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 9), k=st.integers(1, 8), steps=st.integers(0, 8))
def test_all_latents_as_candidates_are_the_refinement_without_any(seed: int, rows: int, k: int, steps: int) -> None:
    decoder = _decoder(64, 24, seed)
    x = torch.randn((rows, 24), generator=torch.Generator().manual_seed(seed))
    guess = (x @ decoder.T).topk(64, dim=1)
    start, values = guess.indices[:, :k], guess.values[:, :k].relu()
    among_all = refine(x, decoder, start, values, steps, guess.indices)
    free = refine(x, decoder, start, values, steps)
    # As sums: a near tie may end either way.
    np.testing.assert_allclose(_errors(x, decoder, *among_all), _errors(x, decoder, *free), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("candidates", [None, 32, 64])
def test_a_row_alone_has_the_code_that_it_has_among_others(candidates: int | None) -> None:
    """Alone it is an array with copies of its candidates' directions, in a large batch there is one product for all."""
    sae = _pursuing(random_sae(d=48, n=256, k=12, k_labels=4), 8, candidates)
    x = unit_rows(5, 800, 48)
    together = sae.encode(x)
    for row in range(60):
        alone = sae.encode(x[row : row + 1])
        np.testing.assert_array_equal(alone.indices[0], together.indices[row])
        np.testing.assert_allclose(alone.values[0], together.values[row], atol=1e-5)


def _reference(
    x: np.ndarray, decoder: np.ndarray, latents: np.ndarray, values: np.ndarray, steps: int, own: np.ndarray
) -> float:
    """The error of one row's refined code, in float64 and with dense codes."""
    code, share = np.zeros(len(decoder)), 1.0
    code[latents] = values
    for _ in range(steps):
        gradient = decoder @ (x - code @ decoder)
        present = np.zeros(len(decoder))
        present[latents] = gradient[latents]
        length = max(np.square(present @ decoder).sum(), 1e-12)
        moved = code + min(np.square(present).sum() / length, 3.0) * share * gradient
        tried_latents = own[np.argsort(-moved[own], kind="stable")[: len(latents)]]
        tried = np.zeros(len(decoder))
        tried[tried_latents] = np.maximum(moved[tried_latents], 0)
        if np.square(x - tried @ decoder).sum() < np.square(x - code @ decoder).sum():
            latents, code = tried_latents, tried
        else:
            share /= 2
    return float(np.square(x - code @ decoder).sum())


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 8), steps=st.integers(0, 12), coherent=st.booleans())
@pytest.mark.parametrize("rows", [3, _MANY])
def test_few_rows_and_many_take_the_steps_of_the_formula(
    rows: int, seed: int, k: int, steps: int, coherent: bool
) -> None:
    decoder = _decoder(64, 24, seed)
    if coherent:  # where steps are refused and halved
        decoder = decoder * 0.05 + decoder[:1]
        decoder = decoder / decoder.norm(dim=1, keepdim=True)
    x = torch.randn((rows, 24), generator=torch.Generator().manual_seed(seed))
    guess = (x @ decoder.T).topk(16, dim=1)
    start, values = guess.indices[:, :k], guess.values[:, :k].relu()
    errors = _errors(x, decoder, *refine(x, decoder, start, values, steps, guess.indices))[:9]
    of = (array[:9].double().numpy() for array in (x, values))
    expected = [
        _reference(vector, decoder.double().numpy(), latents, amounts, steps, own)
        for vector, amounts, latents, own in zip(*of, start[:9].numpy(), guess.indices[:9].numpy(), strict=True)
    ]
    # As errors: a near tie may end either way.
    np.testing.assert_allclose(errors, expected, rtol=1e-2 if coherent else 1e-3, atol=1e-3 if coherent else 1e-4)


@pytest.mark.parametrize(("n", "d"), [(4096, 384), (97, 48), (60, 1024), (3, 20_000)])
@pytest.mark.parametrize("rows", [1, 10, FEW_ROWS])
def test_products_in_blocks_are_those_of_the_whole(n: int, d: int, rows: int) -> None:
    directions, x = unit_rows(1, n, d), unit_rows(2, rows, d)
    exact = x.astype(np.float64) @ directions.T.astype(np.float64)
    np.testing.assert_allclose(products(x, directions), exact, atol=1e-6)


@pytest.mark.parametrize("k", [5, 12, 256])
def test_few_rows_without_steps_have_the_codes_of_many(k: int) -> None:
    sae, x = random_sae(d=48, n=256, k=12), unit_rows(5, FEW_ROWS + 1, 48)
    few, many = sae.encode(x[:FEW_ROWS], k), sae.encode(x, k)
    np.testing.assert_array_equal(few.indices[few.values > 0], many.indices[:FEW_ROWS][few.values > 0])
    np.testing.assert_allclose(few.values, many.values[:FEW_ROWS], atol=1e-6)


def test_the_bundled_dictionary_reads_ten_rows_as_it_reads_a_batch() -> None:
    sae, x = TopKSAE.from_pretrained("all-MiniLM-L6-v2"), unit_rows(7, 60, 384)
    many, few = sae.encode(x), sae.encode(x[:10])
    lost = [((x[:10] - sae.decode(codes)[:10]) ** 2).sum(axis=1) for codes in (many, few)]
    assert (few.indices == many.indices[:10]).all(axis=1).mean() >= 0.8
    np.testing.assert_allclose(lost[1].mean(), lost[0].mean(), rtol=1e-3)


@pytest.mark.parametrize("steps", [0, 8])
def test_one_row_is_encoded_as_a_tensor_that_wants_gradients_too(steps: int) -> None:
    sae, x = _pursuing(random_sae(d=48, n=256, k=12, k_labels=4), steps, 24), unit_rows(5, 1, 48)
    codes = sae.encode(torch.from_numpy(x).requires_grad_())
    np.testing.assert_array_equal(codes.indices.numpy(), sae.encode(x).indices)


def test_few_candidates_give_another_code_and_all_of_them_the_same() -> None:
    plain, x = random_sae(d=48, n=256, k=12), unit_rows(6, 40, 48)
    free, few, every = (_pursuing(plain, 8, candidates) for candidates in (None, 24, 256))
    lost = [((x - sae.reconstruct(x)) ** 2).sum() for sae in (plain, few, free)]
    assert lost[2] < lost[1] < lost[0]
    np.testing.assert_array_equal(every.encode(x).indices, free.encode(x).indices)
    assert every.fingerprint == free.fingerprint != few.fingerprint
    # At another K the candidates are never fewer than the code.
    assert few.encode(x, k=40).indices.shape == (40, 40)


def test_the_code_that_made_a_row_is_found() -> None:
    generator = torch.Generator().manual_seed(3)
    decoder = _decoder(96, 64, 3)
    truth = torch.stack([torch.randperm(96, generator=generator)[:4] for _ in range(200)])
    x = torch.einsum("bk,bkd->bd", 0.5 + torch.rand((200, 4), generator=generator), decoder[truth])
    guess = (x @ decoder.T).topk(4, dim=1)
    found, _ = refine(x, decoder, guess.indices, guess.values, 30)

    def share(indices: torch.Tensor) -> float:
        return float((truth[:, :, None] == indices[:, None, :]).any(dim=2).float().mean())

    assert share(found) > 0.97
    assert share(found) > share(guess.indices) + 0.1


def test_an_sae_refines_its_codes_when_its_config_says_so() -> None:
    plain = random_sae()
    refining = TopKSAE(
        plain.W_enc, plain.b_enc, plain.W_dec, plain.b_dec, dataclasses.replace(plain.config, refine_steps=8)
    )
    x = np.random.default_rng(0).standard_normal((20, plain.config.d)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    lost = [((x - sae.reconstruct(x)) ** 2).sum(axis=1) for sae in (plain, refining)]
    assert (lost[1] <= lost[0] + 1e-6).all()
    assert lost[1].sum() < lost[0].sum()
    # Other codes: a store made with the one must not be opened with the other.
    assert refining.fingerprint != plain.fingerprint
    one_by_one = np.concatenate([refining.encode(row[None]).values for row in x])
    np.testing.assert_allclose(one_by_one, refining.encode(x).values, atol=1e-5)


def test_refinement_steps_survive_saving(tmp_path: object) -> None:
    plain = random_sae()
    config = dataclasses.replace(plain.config, refine_steps=5)
    TopKSAE(plain.W_enc, plain.b_enc, plain.W_dec, plain.b_dec, config).save_pretrained(str(tmp_path))
    assert TopKSAE.from_pretrained(str(tmp_path)).config.refine_steps == 5


def test_candidates_survive_saving_and_older_folders_have_all(tmp_path: Path) -> None:
    _pursuing(random_sae(), 5, 12).save_pretrained(tmp_path / "new")
    assert TopKSAE.from_pretrained(tmp_path / "new").config.refine_candidates == 12
    config = _pursuing(random_sae(), 5).save_pretrained(tmp_path / "old") / "config.json"
    body = json.loads(config.read_text(encoding="utf-8"))
    del body["pursuit_candidates"]  # files keep the keys of the first release
    config.write_text(json.dumps(body), encoding="utf-8")
    assert TopKSAE.from_pretrained(tmp_path / "old").config.refine_candidates is None


@pytest.mark.parametrize("steps", [0, 8])
def test_without_candidates_an_sae_keeps_the_name_that_its_stores_know(steps: int) -> None:
    sae = random_sae()
    digest = hashlib.sha256()
    for tensor in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec):
        digest.update(tensor.numpy().tobytes())
    digest.update(b"(6, 3, 'toy/words', ('', ''))")
    digest.update(b"8" if steps else b"")
    assert _pursuing(sae, steps).fingerprint == digest.hexdigest()[:16]
    # Without steps there is nothing to choose from, and candidates change nothing.
    assert (_pursuing(sae, steps, 12).fingerprint == digest.hexdigest()[:16]) == (steps == 0)


@pytest.mark.parametrize("candidates", [0, 5, True, 6.5])
def test_candidates_are_a_whole_number_of_at_least_k(candidates: object) -> None:
    with pytest.raises(ValueError, match=r"refine_candidates = .*: expected .* None for all"):
        dataclasses.replace(random_sae().config, refine_candidates=candidates)  # type: ignore[arg-type]


def test_a_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="refine_steps = -1"):
        dataclasses.replace(random_sae().config, refine_steps=-1)
