"""The TopK sparse autoencoder: two affine maps, a TopK between them, and a folder on disk."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sae_steer_retriever.errors import ArtifactError, MismatchError
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.config import SAEConfig
from sae_steer_retriever.sae.files import (
    CONFIG_FILE,
    TENSORS,
    WEIGHTS_FILE,
    read_config,
    read_weights,
    resolve_folder,
    upload_folder,
    write_sae,
)
from sae_steer_retriever.sae.iterative_thresholding import dots, pursue

# Rows are encoded in tiles, so that the dense pre-activations of a large dictionary never need much memory.
_TILE_BYTES = 32 * 2**20
# Groups of features whose overlaps with all others are remembered: n floats a feature.
_REMEMBERED_OVERLAPS = 64


class TopKSAE:
    """h = TopK(W_enc (x - b_dec) + b_enc),  x_hat = W_dec^T h + b_dec.

    Equation 1 of Kang, Wang & Xiong (arXiv 2411.00786), with the decoder stored by rows: W_enc and W_dec are
    (n, d), b_enc is (n,), b_dec is (d,), and every row of W_dec, a latent's direction, has unit norm. TopK keeps
    the K largest pre-activations of a row that are positive.

    With `refine_steps` = T > 0 that h is h_0, and h = h_T of

        h_t+1 = TopK(h_t + mu_t W_dec (x - b_dec - W_dec^T h_t)),

    kept where the error falls (`refinement`): the same decoder, asked for a code that reconstructs. With
    `refine_candidates` = M the codes h_t may have only the M latents of the largest pre-activations.

    The tensors are read-only by agreement: training has its own parameters and ends in a new TopKSAE.
    """

    def __init__(self, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, config: SAEConfig) -> None:
        """Check the shapes and take the tensors as float32.

        Raises:
            ArtifactError: A tensor has another shape than `config` says, or a value that is not finite.
        """
        n, d = config.n, config.d
        given = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        expected = {"W_enc": (n, d), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}
        for name, tensor in given.items():
            if tuple(tensor.shape) != expected[name]:
                raise ArtifactError(
                    f"{name} has shape {tuple(tensor.shape)}, expected {expected[name]} from the config."
                )
            if not torch.isfinite(tensor).all():
                raise ArtifactError(f"{name} holds values that are not finite.")
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = (
            given[name].detach().to(torch.float32).contiguous() for name in ("W_enc", "b_enc", "W_dec", "b_dec")
        )
        self.config = config
        self._overlaps: dict[tuple[int, ...], Array] = {}
        self._overlaps_lock = threading.Lock()

    def __repr__(self) -> str:
        """One line: sizes and the encoder."""
        c = self.config
        return f"TopKSAE({c.d} -> {c.n}, k={c.k}, k_labels={c.k_labels}, encoder={c.encoder.name!r})"

    @overload
    def encode(self, x: Tensor, k: int | None = None) -> Codes[Tensor]: ...
    @overload
    def encode(self, x: Array, k: int | None = None) -> Codes[NDArray[Any]]: ...

    def encode(self, x: Tensor | Array, k: int | None = None) -> Codes[Tensor] | Codes[NDArray[Any]]:
        """Codes of embeddings, in the kind of array that was given.

        Args:
            x: (batch, d) embeddings, a tensor or a NumPy array.
            k: Active latents per row; the config's `k` if not given. With a refinement, codes of two `k` are two codes:
                the first latents of a longer one are `Codes.truncate`.

        Returns:
            Codes(indices, values), each (batch, k).

        Raises:
            MismatchError: `x` is not (batch, d), or not finite.
            ValueError: `k` is below 1.
        """
        if x.ndim != 2 or x.shape[1] != self.config.d:
            raise MismatchError(f"encode expects embeddings of shape (batch, {self.config.d}), got {tuple(x.shape)}.")
        if k is not None and k < 1:
            raise ValueError(f"k is {k}: expected at least 1.")
        k = self.config.k if k is None else min(k, self.config.n)
        steps = self.config.refine_steps
        among = self.config.refine_candidates if steps else None
        tile = max(1, _TILE_BYTES // (4 * self.config.n))
        indices = torch.empty((len(x), k), dtype=torch.int32, device=self.W_enc.device)
        values = torch.empty((len(x), k), dtype=torch.float32, device=self.W_enc.device)
        with torch.no_grad():
            for start in range(0, len(x), tile):
                part = self._rows(x[start : start + tile])
                if not torch.isfinite(part).all():
                    raise MismatchError("encode expects finite embeddings, got NaN or infinite values.")
                top = self._activations(part).topk(max(k, among or 0), dim=1)
                found, active = top.indices[:, :k], top.values[:, :k].relu_()
                if steps:
                    candidates = None if among is None else top.indices
                    found, active = pursue(part - self.b_dec, self.W_dec, found, active, steps, candidates)
                indices[start : start + tile] = found
                values[start : start + tile] = active
        if isinstance(x, np.ndarray):
            return Codes(indices.cpu().numpy(), values.cpu().numpy())
        return Codes(indices, values)

    @overload
    def decode(self, codes: Codes[Tensor]) -> Tensor: ...
    @overload
    def decode(self, codes: Codes[NDArray[Any]]) -> Array: ...

    def decode(self, codes: Codes[Tensor] | Codes[NDArray[Any]]) -> Tensor | Array:
        """Reconstructed embeddings x_hat, in the kind of array that was given.

        Args:
            codes: (batch, K) codes; any K.

        Returns:
            (batch, d) float32. Not normalised: TopK shrinks norms unevenly.

        Raises:
            MismatchError: A latent's id is not below `n`.
        """
        numpy = isinstance(codes.indices, np.ndarray)
        indices = torch.as_tensor(codes.indices, device=self.W_dec.device).long()
        values = torch.as_tensor(codes.values, device=self.W_dec.device).to(torch.float32)
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.config.n:
            worst = int(indices.min()) if int(indices.min()) < 0 else int(indices.max())
            raise MismatchError(f"codes name latent {worst}, but this SAE has #0 to #{self.config.n - 1}.")
        with torch.no_grad():
            x_hat = functional.embedding_bag(indices, self.W_dec, per_sample_weights=values, mode="sum") + self.b_dec
        return x_hat.cpu().numpy() if numpy else x_hat

    def reconstruct(self, x: Array) -> Array:
        """decode(encode(x)): (batch, d) to (batch, d)."""
        return self.decode(self.encode(x))

    def _rows(self, x: Tensor | Array) -> Tensor:
        # A copy: torch warns of arrays it must not write to, and embeddings are often memory-mapped.
        rows = torch.from_numpy(np.array(x, dtype=np.float32, order="C")) if isinstance(x, np.ndarray) else x
        return rows.to(self.W_enc.device, torch.float32)

    def _activations(self, rows: Tensor) -> Tensor:
        if len(rows) == 1 and rows.device.type == "cpu":  # half of what torch's product of one row takes
            return torch.from_numpy(dots(self.W_enc.numpy(), rows[0].numpy())).add_(self._folded_bias)[None]
        return functional.linear(rows, self.W_enc, self._folded_bias)

    @cached_property
    def _folded_bias(self) -> Tensor:
        # The bias of the centred input folds into one vector: W (x - b) + c = W x + (c - W b).
        return self.b_enc - self.W_enc @ self.b_dec

    @cached_property
    def decoder(self) -> Array:
        """The decoder's rows as a NumPy array, (n, d): the latents' unit directions."""
        return self.W_dec.cpu().numpy()

    def overlaps(self, features: tuple[int, ...]) -> Array:
        """(n, m) cosines of all directions with those of some features; the latest answers are remembered."""
        with self._overlaps_lock:
            found = self._overlaps.pop(features, None)
            if found is None:
                found = self.decoder @ self.decoder[list(features)].T
                while len(self._overlaps) >= _REMEMBERED_OVERLAPS:
                    self._overlaps.pop(next(iter(self._overlaps)))
            self._overlaps[features] = found
        return found

    @cached_property
    def bias(self) -> Array:
        """The decoder's bias as a NumPy array, (d,)."""
        return self.b_dec.cpu().numpy()

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that name these weights, the readings they were fitted for and the encoder.

        Catalogs, policies and stores pin it. A K that was chosen later (`with_k`) is not part of it, because features
        mean the same at any K; codes do not, so stores record their K beside it.
        """
        digest = hashlib.sha256()
        for tensor in (self.W_enc, self.b_enc, self.W_dec, self.b_dec):
            digest.update(tensor.cpu().numpy().tobytes())
        encoder = self.config.encoder
        prefixes = (encoder.query_prefix, encoder.document_prefix)
        k = self.config.fitted_k or self.config.k
        digest.update(repr((k, self.config.k_labels, encoder.base_name, prefixes)).encode())
        if self.config.refine_steps:  # absent from older SAEs, whose names stay as they were
            digest.update(repr(self.config.refine_steps).encode())
            if self.config.refine_candidates is not None:
                digest.update(repr(("candidates", self.config.refine_candidates)).encode())
        return digest.hexdigest()[:16]

    def with_k(self, k: int) -> TopKSAE:
        """The same dictionary read at another K: fewer latents explain more simply, more reconstruct better.

        Features keep their meaning, names and units, so catalogs, policies and `fingerprint` stay valid.

        Args:
            k: Active latents per embedding, at least `k_labels`, at most `n` and `refine_candidates`.

        Raises:
            ValueError: It is out of range.
        """
        if k == self.config.k:
            return self
        return TopKSAE(self.W_enc, self.b_enc, self.W_dec, self.b_dec, self.config.with_k(k))

    def to(self, device: str) -> TopKSAE:
        """The same SAE with its tensors on another device."""
        W_enc, b_enc, W_dec, b_dec = (t.to(device) for t in (self.W_enc, self.b_enc, self.W_dec, self.b_dec))
        return TopKSAE(W_enc, b_enc, W_dec, b_dec, self.config)

    def save_pretrained(self, path: str | Path) -> Path:
        """Write `model.safetensors` and `config.json` into a folder, atomically.

        Returns:
            The folder.

        Raises:
            ArtifactError: The folder cannot be written; what was there is untouched.
        """
        folder = Path(path)
        write_sae(folder, {name: getattr(self, name) for name in TENSORS}, self.config, self.fingerprint)
        return folder

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        k: int | None = None,
        revision: str | None = None,
        token: str | None = None,
        device: str = "cpu",
    ) -> TopKSAE:
        """Load an SAE from a folder, from a hub id such as "org/name", or one that ships, by its encoder's name.

        Args:
            path: Folder with `model.safetensors` and `config.json`, a hub id, or a name such as "all-MiniLM-L6-v2".
            k: Active latents per embedding, in place of those it was fitted for; see `with_k`.
            revision: Branch, tag or commit on the hub.
            token: Access token for a private repository on the hub.
            device: Where the tensors go.

        Raises:
            ArtifactError: A file is missing, truncated, foreign, of another format version, or the two do not
                belong together.
            ValueError: `k` is out of range.
        """
        folder = resolve_folder(path, revision=revision, token=token)
        config, fingerprint = read_config(folder / CONFIG_FILE)
        sae = cls(**read_weights(folder / WEIGHTS_FILE), config=config)
        if fingerprint != sae.fingerprint:
            raise ArtifactError(
                f"{folder}: {CONFIG_FILE} was written for weights {fingerprint}, {WEIGHTS_FILE} holds "
                f"{sae.fingerprint}: the two files do not belong together; save or download both again."
            )
        if k is not None:
            sae = sae.with_k(k)
        return sae if device == "cpu" else sae.to(device)

    def push_to_hub(
        self, repo_id: str, *, folder: str | Path | None = None, private: bool = False, token: str | None = None
    ) -> str:
        """Upload the SAE to the Hugging Face hub.

        Args:
            repo_id: "owner/name".
            folder: The folder it was saved in: its catalog, calibration and card are uploaded too, so that a
                retriever can be opened from the hub. Without it only the weights and the config are.
            private: Whether only you can see the repository, if it is new.
            token: Access token; the one of `hf auth login` if not given.

        Returns:
            The repository's address.

        Raises:
            ArtifactError: `folder` holds another SAE, the hub cannot be reached, or it refuses.
        """
        message = f"Upload {self!r}"
        if folder is not None:
            _, saved = read_config(Path(folder) / CONFIG_FILE)
            if saved != self.fingerprint:
                raise ArtifactError(f"{folder} holds SAE {saved}, this one is {self.fingerprint}: save it there first.")
            return upload_folder(Path(folder), repo_id, private=private, token=token, message=message)
        with tempfile.TemporaryDirectory() as temporary:
            self.save_pretrained(temporary)
            return upload_folder(Path(temporary), repo_id, private=private, token=token, message=message)


class FeatureDirections(NamedTuple):
    """How strongly an embedding x has a feature, before anything is cut off: `rows[f] . x + constants[f]`.

    Attributes:
        rows: (n, d) the decoder's rows after a refinement, whose names are ordered by `<d_f, x - b_dec>`; else the
            encoder's, whose pre-activation is `<w_f, x - b_dec> + b_enc[f]`.
        constants: (n,) all terms without x.
    """

    rows: Array
    constants: Array

    @classmethod
    def of(cls, sae: TopKSAE) -> FeatureDirections:
        """The directions by which an SAE names texts."""
        if sae.config.refine_steps:
            return cls(sae.decoder, -(sae.decoder @ sae.bias))
        rows: Array = sae.W_enc.cpu().numpy()
        return cls(rows, sae.b_enc.cpu().numpy() - rows @ sae.bias)

    def match(self, vectors: Array, features: Sequence[int] | NDArray[np.int64]) -> Array:
        """(batch, features) matches of (batch, d) embeddings."""
        chosen = np.asarray(features, dtype=np.int64)
        return np.asarray(vectors @ self.rows[chosen].T + self.constants[chosen], dtype=np.float32)
