"""The SAE while it is being fitted: centred and scaled inputs, unit decoder rows, and the fold into a TopKSAE."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sae_steer_retriever.sae.config import SAEConfig
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.train.sparse_kernels import sparse_decode, sparse_decode_prefixes, sparse_encode

# Decoder rows whose gradient is projected at once.
_TILE = 512
KEPT_COSINE = 0.9
"""A feature that is adapted keeps at least this cosine with its direction, and with that its meaning."""


class FittingSAE(torch.nn.Module):
    """a = W_e ((x - mu)/s) + c;  z = relu(TopK(a));  x_hat = mu + s (sum_i z_i d_i + b),  |d_i| = 1.

    mu and s are the corpus' mean and spread, constants. In the paper's mode mu = 0, s = 1 and the decoder's rows have
    any length.
    """

    mu: Tensor
    s: Tensor
    start: Tensor

    def __init__(self, mu: Tensor, s: float, W_e: Tensor, D: Tensor, *, unit_rows: bool = True, kept: int = 0) -> None:
        """Take the constants and the starting weights.

        Args:
            mu: (d,) mean of the corpus.
            s: sqrt(E|x - mu|^2).
            W_e: (n, d) encoder.
            D: (n, d) decoder.
            unit_rows: Whether decoder rows keep unit norm.
            kept: How many of the first decoder rows stay within `KEPT_COSINE` of where they started.
        """
        super().__init__()
        self.register_buffer("mu", mu.clone())
        self.register_buffer("s", torch.tensor(float(s)))
        self.W_e = torch.nn.Parameter(W_e.clone())
        self.c = torch.nn.Parameter(torch.zeros(len(W_e)))
        self.D = torch.nn.Parameter(D.clone())
        self.b = torch.nn.Parameter(torch.zeros(len(mu)))
        # Made again from the seed by whoever resumes: no part of the state.
        self.register_buffer("start", D.clone(), persistent=False)
        self.unit_rows = unit_rows
        self._kept = kept

    @classmethod
    def adapting(cls, sae: TopKSAE, s: float, kept: int) -> FittingSAE:
        """One that starts as an SAE: `fold` undoes it.

        Args:
            sae: The SAE, centred where the corpus is.
            s: Spread of the corpus.
            kept: How many of its first features keep their meaning.
        """
        model = cls(sae.b_dec, s, sae.W_enc, sae.W_dec, kept=kept)
        with torch.no_grad():
            model.c.copy_(sae.b_enc / s)
        return model

    def encode(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Values (in units of s) and indices, (B, k) each, sorted by value."""
        return sparse_encode((x - self.mu) / self.s, self.W_e, self.c, k)

    def decode(self, values: Tensor, indices: Tensor) -> Tensor:
        """(B, d) reconstructions."""
        return self.mu + self.s * (sparse_decode(values, indices, self.D) + self.b)

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
        """Drop the part of the decoder's gradient that would only change a row's length."""
        if self.unit_rows and self.D.grad is not None:
            # In tiles that stay in the cache: whole, the product is one more matrix to write and to read.
            tiles = zip(torch.split(self.D.grad, _TILE), torch.split(self.D, _TILE), strict=True)
            for gradient, rows in tiles:
                gradient.addcmul_((gradient * rows).sum(dim=1, keepdim=True), rows, value=-1)

    @torch.no_grad()
    def after_step(self) -> None:
        """Bring the decoder's rows back to unit norm."""
        if self.unit_rows:
            self.D.div_(self.D.norm(dim=1, keepdim=True).clamp_min(1e-8))
        if self._kept:
            rows, start = self.D[: self._kept], self.start[: self._kept]
            cosines = (rows * start).sum(dim=1)
            far = torch.nonzero(cosines < KEPT_COSINE).reshape(-1)
            if len(far):
                rows[far] = _within(rows[far], start[far], KEPT_COSINE)

    @torch.no_grad()
    def fold(self, config: SAEConfig) -> TopKSAE:
        """The same function in embedding units, without centring and scaling: z' = s z."""
        b_dec = self.mu + self.s * self.b
        b_enc = self.s * self.c + self.W_e @ (self.s * self.b)
        parts = (self.W_e, b_enc, self.D, b_dec)
        W_enc, b_enc, W_dec, b_dec = (part.detach().cpu().clone() for part in parts)
        return TopKSAE(W_enc, b_enc, W_dec, b_dec, config)


def _within(rows: Tensor, start: Tensor, cosine: float) -> Tensor:
    """Unit rows turned towards unit rows until they have a cosine with them."""
    across = rows - (rows * start).sum(dim=1, keepdim=True) * start
    across = across / across.norm(dim=1, keepdim=True).clamp_min(1e-8)
    turned: Tensor = cosine * start + math.sqrt(1 - cosine * cosine) * across
    return turned
