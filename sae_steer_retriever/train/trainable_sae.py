"""The SAE during a fit: centred and scaled inputs, unit decoder rows, and the conversion to a TopKSAE."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sae_steer_retriever.sae.config import SAEConfig
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.sparse_kernels import sparse_decode_prefixes, sparse_encode

# Decoder rows whose gradient is projected at once.
_TILE = 512
KEPT_COSINE = 0.9
"""An adapted feature keeps at least this cosine with its old direction, and so keeps its meaning."""


class FittingSAE(torch.nn.Module):
    """a = W_e ((x - mu)/s) + c;  z = relu(TopK(a));  x_hat = mu + s (sum_i z_i d_i + b),  |d_i| = 1.

    The constants mu, (d,), and s = sqrt(E|x - mu|^2) are the corpus' mean and spread. In the paper's fit mu = 0, s = 1,
    and decoder rows have any length (`unit_rows=False`).
    """

    mu: Tensor
    s: Tensor
    start: Tensor

    def __init__(self, mu: Tensor, s: float, W_e: Tensor, D: Tensor, *, unit_rows: bool = True, kept: int = 0) -> None:
        """Set the constants, and the (n, d) starting weights of encoder and decoder.

        The first `kept` decoder rows stay within `KEPT_COSINE` of where they start.
        """
        super().__init__()
        self.register_buffer("mu", mu.clone())
        self.register_buffer("s", torch.tensor(float(s)))
        self.W_e = torch.nn.Parameter(W_e.clone())
        self.c = torch.nn.Parameter(torch.zeros(len(W_e)))
        self.D = torch.nn.Parameter(D.clone())
        self.b = torch.nn.Parameter(torch.zeros(len(mu)))
        # Not part of the saved state: a resumed fit makes it again from the seed.
        self.register_buffer("start", D.clone(), persistent=False)
        self.unit_rows = unit_rows
        self._kept = kept

    @classmethod
    def adapting(cls, sae: TopKSAE, s: float, kept: int) -> FittingSAE:
        """A model that starts as an SAE centred at the mean of the corpus; `fold` gives that SAE back."""
        model = cls(sae.b_dec, s, sae.W_enc, sae.W_dec, kept=kept)
        with torch.no_grad():
            model.c.copy_(sae.b_enc / s)
        return model

    def encode(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Values (in units of s) and indices, (B, k) each, sorted by value."""
        return sparse_encode((x - self.mu) / self.s, self.W_e, self.c, k)

    def decode(self, values: Tensor, indices: Tensor) -> Tensor:
        """(B, d) reconstructions."""
        (sums,) = sparse_decode_prefixes(values, indices, self.D, (indices.shape[1],))
        return self.mu + self.s * (sums + self.b)

    def decode_prefixes(self, values: Tensor, indices: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """(B, d) reconstructions from the first `length` latents, for each of the ascending lengths, in one pass."""
        sums = sparse_decode_prefixes(values, indices, self.D, lengths)
        offset = self.mu + self.s * self.b
        return [offset + self.s * part for part in sums]

    def alignment_with_start(self) -> Tensor:
        """Mean cosine between the decoder's rows, of unit norm, and where they started."""
        return (self.D * self.start).sum(dim=1).mean()

    @torch.no_grad()
    def before_step(self) -> None:
        """Remove the part of the decoder's gradient that would only change a row's length."""
        if self.unit_rows and self.D.grad is not None:
            # In tiles that stay in the cache: the whole product would be one more matrix to write and to read.
            tiles = zip(torch.split(self.D.grad, _TILE), torch.split(self.D, _TILE), strict=True)
            for gradient, rows in tiles:
                gradient.addcmul_((gradient * rows).sum(dim=1, keepdim=True), rows, value=-1)

    @torch.no_grad()
    def after_step(self) -> None:
        """Bring the decoder's rows back to unit norm, and kept rows back to within `KEPT_COSINE` of their start."""
        if self.unit_rows:
            self.D.div_(self.D.norm(dim=1, keepdim=True).clamp_min(1e-8))
        if self._kept:
            rows, start = self.D[: self._kept], self.start[: self._kept]
            far = torch.nonzero((rows * start).sum(dim=1) < KEPT_COSINE).reshape(-1)
            towards = start[far]
            across = rows[far] - (rows[far] * towards).sum(dim=1, keepdim=True) * towards
            across = across / across.norm(dim=1, keepdim=True).clamp_min(1e-8)
            rows[far] = KEPT_COSINE * towards + math.sqrt(1 - KEPT_COSINE * KEPT_COSINE) * across

    @torch.no_grad()
    def fold(self, config: SAEConfig) -> TopKSAE:
        """The same function as a TopKSAE, in embedding units, without centring and scaling: z' = s z."""
        b_enc = self.s * self.c + self.W_e @ (self.s * self.b)
        parts = (self.W_e, b_enc, self.D, self.mu + self.s * self.b)
        W_enc, b_enc, W_dec, b_dec = (part.detach().cpu().clone() for part in parts)
        return TopKSAE(W_enc, b_enc, W_dec, b_dec, config)
