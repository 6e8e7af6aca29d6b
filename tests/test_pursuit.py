"""Codes that are refined after the encoder's TopK: lower errors, true codes found, nothing else changed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import random_sae

from sae_steer_retriever.pursuit import pursue
from sae_steer_retriever.sae import TopKSAE


def _decoder(n: int, d: int, seed: int) -> torch.Tensor:
    rows = torch.randn((n, d), generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def _errors(x: torch.Tensor, decoder: torch.Tensor, indices: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    codes = torch.zeros((len(x), len(decoder))).scatter_add_(1, indices, values)
    return (x - codes @ decoder).square().sum(dim=1)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 12), steps=st.integers(0, 6), coherent=st.booleans())
def test_no_row_gets_worse_and_codes_stay_codes(seed: int, k: int, steps: int, coherent: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    decoder = _decoder(40, 12, seed)
    if coherent:  # nearly one direction: where a fixed step would diverge
        decoder = decoder * 0.05 + decoder[:1]
        decoder = decoder / decoder.norm(dim=1, keepdim=True)
    x = torch.randn((7, 12), generator=generator)
    start = (x @ decoder.T).topk(k, dim=1)
    values = start.values.relu()
    indices, refined = pursue(x, decoder, start.indices, values, steps)
    before, after = _errors(x, decoder, start.indices, values), _errors(x, decoder, indices, refined)
    assert (after <= before * (1 + 1e-4) + 1e-5).all()
    assert (refined >= 0).all()
    match = (x @ decoder.T).gather(1, indices).where(refined > 0, torch.tensor(-torch.inf))
    assert (match[:, :-1] >= match[:, 1:]).all()
    for row in range(len(x)):
        active = indices[row][refined[row] > 0].tolist()
        assert len(set(active)) == len(active)


def test_the_code_that_made_a_row_is_found() -> None:
    generator = torch.Generator().manual_seed(3)
    decoder = _decoder(96, 64, 3)
    truth = torch.stack([torch.randperm(96, generator=generator)[:4] for _ in range(200)])
    x = torch.einsum("bk,bkd->bd", 0.5 + torch.rand((200, 4), generator=generator), decoder[truth])
    guess = (x @ decoder.T).topk(4, dim=1)
    found, _ = pursue(x, decoder, guess.indices, guess.values, 30)

    def share(indices: torch.Tensor) -> float:
        return float((truth[:, :, None] == indices[:, None, :]).any(dim=2).float().mean())

    assert share(found) > 0.97
    assert share(found) > share(guess.indices) + 0.1


def test_an_sae_refines_its_codes_when_its_config_says_so() -> None:
    plain = random_sae()
    refining = TopKSAE(
        plain.W_enc, plain.b_enc, plain.W_dec, plain.b_dec, dataclasses.replace(plain.config, pursuit_steps=8)
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


def test_pursuit_steps_survive_saving(tmp_path: object) -> None:
    plain = random_sae()
    config = dataclasses.replace(plain.config, pursuit_steps=5)
    TopKSAE(plain.W_enc, plain.b_enc, plain.W_dec, plain.b_dec, config).save_pretrained(str(tmp_path))
    assert TopKSAE.from_pretrained(str(tmp_path)).config.pursuit_steps == 5


def test_a_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="pursuit_steps = -1"):
        dataclasses.replace(random_sae().config, pursuit_steps=-1)
