"""The TopK sparse autoencoder: two affine maps with a TopK between them, kept in a folder."""

from __future__ import annotations

import hashlib
import tempfile
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
from sae_steer_retriever.sae import files
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.config import SAEConfig
from sae_steer_retriever.sae.iterative_thresholding import FEW_ROWS, products, refine

# Rows are encoded in tiles, so that the dense pre-activations of a large dictionary need little memory.
_TILE_BYTES = 32 * 2**20


class TopKSAE:
    """h = TopK(W_enc (x - b_dec) + b_enc),  x_hat = W_dec^T h + b_dec.

    Equation 1 of Kang, Wang & Xiong (arXiv 2411.00786), with the decoder stored by rows: W_enc and W_dec are
    (n, d), b_enc is (n,), b_dec is (d,), and every row of W_dec, a latent's direction, has unit norm. TopK keeps
    the K largest pre-activations of a row that are positive.

    With `refine_steps` = T > 0 that code is h_0, and T steps of iterative hard thresholding refine it:

        h_t+1 = TopK(h_t + mu_t W_dec (x - b_dec - W_dec^T h_t)),

    each kept if the error falls. With `refine_candidates` = M the codes h_t have latents only among the M largest
    pre-activations.

    Do not write to the tensors: training has its own parameters and ends in a new TopKSAE.

    Example:
        >>> from sae_steer_retriever import TopKSAE
        >>> sae = TopKSAE.from_pretrained("all-MiniLM-L6-v2")
        >>> codes = sae.encode(vectors)
        >>> codes.indices.shape == (len(vectors), sae.config.k)
        True
    """

    def __init__(self, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, config: SAEConfig) -> None:
        """Check the shapes and take the tensors as float32.

        Raises:
            ArtifactError: A tensor has another shape than `config` says, or a value that is not finite.
        """
        n, d = config.n, config.d
        given = (W_enc, b_enc, W_dec, b_dec)
        for name, tensor, shape in zip(files.TENSORS, given, ((n, d), (n,), (n, d), (d,)), strict=True):
            if tuple(tensor.shape) != shape:
                raise ArtifactError(f"{name} has shape {tuple(tensor.shape)}, expected {shape} from the config.")
            if not torch.isfinite(tensor).all():
                raise ArtifactError(f"{name} holds values that are not finite.")
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = (
            tensor.detach().to(torch.float32).contiguous() for tensor in given
        )
        self.config = config

    def __repr__(self) -> str:
        """One line: sizes and the encoder."""
        c = self.config
        return f"TopKSAE({c.d} -> {c.n}, k={c.k}, k_labels={c.k_labels}, encoder={c.encoder.name!r})"

    @overload
    def encode(self, x: Tensor, k: int | None = None) -> Codes[Tensor]: ...
    @overload
    def encode(self, x: Array, k: int | None = None) -> Codes[NDArray[Any]]: ...

    def encode(self, x: Tensor | Array, k: int | None = None) -> Codes[Tensor] | Codes[NDArray[Any]]:
        """Returns the codes of embeddings, (batch, k) indices and values, as the type of array that was given.

        Args:
            x: (batch, d) embeddings, a tensor or a NumPy array.
            k: Active latents per row; the config's `k` if not given. With a refinement, `encode(x, k)` and the first
                latents of a longer code (`Codes.truncate`) differ.

        Raises:
            MismatchError: `x` is not (batch, d), or not finite.
            ValueError: `k` is below 1.

        Example:
            >>> sae.encode(embedder.embed_queries(["who pays for returns?"]), k=8).values.shape
            (1, 8)
        """
        n = self.config.n
        if x.ndim != 2 or x.shape[1] != self.config.d:
            raise MismatchError(f"encode expects embeddings of shape (batch, {self.config.d}), got {tuple(x.shape)}.")
        if k is not None and k < 1:
            raise ValueError(f"k is {k}: expected at least 1.")
        k, steps = self.config.k if k is None else min(k, n), self.config.refine_steps
        among = self.config.refine_candidates if steps else None
        tile = max(1, _TILE_BYTES // (4 * n))
        indices = torch.empty((len(x), k), dtype=torch.int32, device=self.W_enc.device)
        values = torch.empty((len(x), k), dtype=torch.float32, device=self.W_enc.device)
        with torch.no_grad():
            for start in range(0, len(x), tile):
                part = self._rows(x[start : start + tile])
                if not torch.isfinite(part).all():
                    raise MismatchError("encode expects finite embeddings, got NaN or infinite values.")
                largest, levels = self._largest(part, max(k, among or 0))
                found, active = largest[:, :k], levels[:, :k].relu_()
                if steps:
                    candidates = None if among is None else largest
                    found, active = refine(part - self.b_dec, self.W_dec, found, active, steps, candidates)
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
        """Returns the reconstructed embeddings x_hat, (batch, d) float32, as the type of array that was given.

        They are not normalised: TopK shrinks norms unevenly.

        Args:
            codes: (batch, K) codes; any K.

        Raises:
            MismatchError: A latent's id is not below `n`.

        Example:
            >>> sae.decode(sae.encode(vectors[:2])).shape
            (2, 384)
        """
        numpy = isinstance(codes.indices, np.ndarray)
        indices = torch.as_tensor(codes.indices, device=self.W_dec.device).long()
        values = torch.as_tensor(codes.values, device=self.W_dec.device).to(torch.float32)
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.config.n:
            worst = int(indices.min()) if int(indices.min()) < 0 else int(indices.max())
            raise MismatchError(f"codes name latent {worst}, but this SAE has #0 to #{self.config.n - 1}.")
        if numpy and len(indices) <= FEW_ROWS and self.W_dec.device.type == "cpu":  # torch takes ten times as long
            x_hat = (codes.values[:, None] @ self.decoder[codes.indices])[:, 0] + self.bias
            return np.asarray(x_hat, dtype=np.float32)
        with torch.no_grad():
            x_hat = functional.embedding_bag(indices, self.W_dec, per_sample_weights=values, mode="sum") + self.b_dec
        return x_hat.cpu().numpy() if numpy else x_hat

    def reconstruct(self, x: Array) -> Array:
        """Returns decode(encode(x)), (batch, d)."""
        return self.decode(self.encode(x))

    def _rows(self, x: Tensor | Array) -> Tensor:
        # A copy: torch warns about read-only arrays, and embeddings are often memory-mapped.
        rows = torch.from_numpy(np.array(x, dtype=np.float32, order="C")) if isinstance(x, np.ndarray) else x
        return rows.to(self.W_enc.device, torch.float32)

    def _largest(self, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Latents and values of the largest pre-activations, (B, count) each, the highest first."""
        if len(rows) > FEW_ROWS or rows.device.type != "cpu":
            top = functional.linear(rows, self.W_enc, self._folded_bias).topk(count, dim=1)
            return top.indices, top.values
        every, rest = products(rows.detach().numpy(), self.W_enc.numpy()), self.config.n - count
        every += self._folded_bias.numpy()
        chosen = every.argpartition(rest, axis=1)[:, rest:]
        order = (-np.take_along_axis(every, chosen, 1)).argsort(axis=1)
        chosen = np.take_along_axis(chosen, order, 1)
        return torch.from_numpy(chosen), torch.from_numpy(np.take_along_axis(every, chosen, 1))

    @cached_property
    def _folded_bias(self) -> Tensor:
        # The bias of the centred input folds into one vector: W (x - b) + c = W x + (c - W b).
        return self.b_enc - self.W_enc @ self.b_dec

    @cached_property
    def decoder(self) -> Array:
        """(n, d) the decoder's rows as a NumPy array: the latents' unit directions."""
        return self.W_dec.cpu().numpy()

    @cached_property
    def bias(self) -> Array:
        """(d,) the decoder's bias as a NumPy array."""
        return self.b_dec.cpu().numpy()

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that identify the weights, the `k` and `k_labels` of the fit, and the encoder.

        Catalogs, policies and stores record it. A `k` that was chosen later (`with_k`) is not part of it, because
        features mean the same at any K. Codes differ, so stores also record their K.
        """
        digest = hashlib.sha256()
        for tensor in (self.W_enc, self.b_enc, self.W_dec, self.b_dec):
            digest.update(tensor.cpu().numpy().tobytes())
        encoder = self.config.encoder
        prefixes = (encoder.query_prefix, encoder.document_prefix)
        k = self.config.fitted_k or self.config.k
        digest.update(repr((k, self.config.k_labels, encoder.base_name, prefixes)).encode())
        if self.config.refine_steps:  # older SAEs have none, and their fingerprints do not change
            digest.update(repr(self.config.refine_steps).encode())
            if self.config.refine_candidates is not None:
                digest.update(repr(("candidates", self.config.refine_candidates)).encode())
        return digest.hexdigest()[:16]

    def with_k(self, k: int) -> TopKSAE:
        """Returns the same dictionary at another K: fewer latents explain more simply, more reconstruct better.

        Features keep their meaning, names and units, so catalogs, policies and `fingerprint` stay valid.

        Args:
            k: Active latents per embedding, at least `k_labels`, at most `n` and `refine_candidates`.

        Raises:
            ValueError: `k` is out of range.

        Example:
            >>> sae.with_k(32).encode(vectors[:2]).indices.shape
            (2, 32)
        """
        if k == self.config.k:
            return self
        return TopKSAE(self.W_enc, self.b_enc, self.W_dec, self.b_dec, self.config.with_k(k))

    def to(self, device: str) -> TopKSAE:
        """Returns the same SAE with its tensors on another device."""
        W_enc, b_enc, W_dec, b_dec = (t.to(device) for t in (self.W_enc, self.b_enc, self.W_dec, self.b_dec))
        return TopKSAE(W_enc, b_enc, W_dec, b_dec, self.config)

    def save_pretrained(self, path: str | Path) -> Path:
        """Returns the folder `path` after writing `model.safetensors` and `config.json` into it, atomically.

        Raises:
            ArtifactError: The folder cannot be written; its content is unchanged.

        Example:
            >>> sae.save_pretrained("./sae").name
            'sae'
        """
        folder = Path(path)
        files.write_sae(folder, {name: getattr(self, name) for name in files.TENSORS}, self.config, self.fingerprint)
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
        """Returns the SAE of a folder, of a hub id such as "org/name", or the bundled one of an encoder's name.

        Args:
            path: Folder with `model.safetensors` and `config.json`, a hub id, or a name such as "all-MiniLM-L6-v2".
            k: Active latents per embedding, in place of the fit's; see `with_k`.
            revision: Branch, tag or commit on the hub.
            token: Access token for a private repository on the hub.
            device: Torch device of the tensors.

        Raises:
            ArtifactError: A file is missing, truncated, foreign, of another format version, or the two do not
                belong together.
            ValueError: `k` is out of range.

        Example:
            >>> TopKSAE.from_pretrained("all-MiniLM-L6-v2", k=32).config.k
            32
        """
        folder = files.resolve_folder(path, revision=revision, token=token)
        config, fingerprint = files.read_config(folder / files.CONFIG_FILE)
        sae = cls(**files.read_weights(folder / files.WEIGHTS_FILE), config=config)
        if fingerprint != sae.fingerprint:
            raise ArtifactError(
                f"{folder}: {files.CONFIG_FILE} was written for weights {fingerprint}, {files.WEIGHTS_FILE} holds "
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
            _, saved = files.read_config(Path(folder) / files.CONFIG_FILE)
            if saved != self.fingerprint:
                raise ArtifactError(f"{folder} holds SAE {saved}, this one is {self.fingerprint}: save it there first.")
            return files.upload_folder(Path(folder), repo_id, private=private, token=token, message=message)
        with tempfile.TemporaryDirectory() as temporary:
            self.save_pretrained(temporary)
            return files.upload_folder(Path(temporary), repo_id, private=private, token=token, message=message)


class FeatureDirections(NamedTuple):
    """Linear matches of embeddings with features, before TopK: `rows[f] . x + constants[f]`.

    Attributes:
        rows: (n, d) the decoder's rows if the SAE refines (it orders latents by `<d_f, x - b_dec>`), else the encoder's
            (the pre-activation is `<w_f, x - b_dec> + b_enc[f]`).
        constants: (n,) the terms without x.
    """

    rows: Array
    constants: Array

    @classmethod
    def of(cls, sae: TopKSAE) -> FeatureDirections:
        """Returns the directions that order an SAE's label latents."""
        if sae.config.refine_steps:
            return cls(sae.decoder, -(sae.decoder @ sae.bias))
        rows: Array = sae.W_enc.cpu().numpy()
        return cls(rows, sae.b_enc.cpu().numpy() - rows @ sae.bias)

    def match(self, vectors: Array, features: Sequence[int] | NDArray[np.int64]) -> Array:
        """Returns (batch, features) matches of (batch, d) embeddings."""
        chosen = np.asarray(features, dtype=np.int64)
        return np.asarray(vectors @ self.rows[chosen].T + self.constants[chosen], dtype=np.float32)
