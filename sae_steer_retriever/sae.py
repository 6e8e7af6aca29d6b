"""The TopK sparse autoencoder: two affine maps, a TopK between them, and a folder on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torch.nn import functional

from sae_steer_retriever.artifact import write_files
from sae_steer_retriever.errors import ArtifactError, MismatchError

FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
# Rows are encoded in tiles, so that the dense pre-activations of a large dictionary never need much memory.
_TILE_BYTES = 32 * 2**20

Array = NDArray[np.float32]
ArrayType = TypeVar("ArrayType")


class Codes(NamedTuple, Generic[ArrayType]):
    """Sparse codes of a batch, sorted by value within each row, largest first.

    Attributes:
        indices: (batch, K) int32, the latents' ids.
        values: (batch, K) float32, >= 0. A zero is an empty place: that row has fewer than K active latents.
    """

    indices: ArrayType
    values: ArrayType

    def leading(self, k: int) -> Codes[ArrayType]:
        """The reading at a smaller K: the first `k` latents of every row."""
        return Codes(self.indices[:, :k], self.values[:, :k])  # type: ignore[index]


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """Which encoder an SAE reads; two embeddings are comparable only if these agree.

    Attributes:
        name: The encoder's name, e.g. "sentence-transformers/all-MiniLM-L6-v2".
        dimension: Size of its embeddings, `d`.
        query_prefix: Text put before every query.
        document_prefix: Text put before every document.
        pooling: How token vectors become one ("mean", "cls", ...), where known.
        revision: The encoder's revision, where known.
    """

    name: str
    dimension: int
    query_prefix: str = ""
    document_prefix: str = ""
    pooling: str | None = None
    revision: str | None = None

    def require_same(self, other: EncoderSpec, mine: str, theirs: str) -> None:
        """Refuse two encoders that do not make comparable embeddings.

        Args:
            other: The encoder to compare with.
            mine: What this one belongs to, for the message ("the SAE").
            theirs: What the other belongs to ("the embedder").

        Raises:
            MismatchError: The names, dimensions or prefixes differ; both are named.
        """
        if _base_name(self.name) != _base_name(other.name) or self.dimension != other.dimension:
            raise MismatchError(
                f"{mine} was made for encoder {self.name!r} ({self.dimension} dimensions), but {theirs} is "
                f"{other.name!r} ({other.dimension} dimensions): use the same encoder, or train an SAE for this one."
            )
        if (self.query_prefix, self.document_prefix) != (other.query_prefix, other.document_prefix):
            raise MismatchError(
                f"{mine} expects the prefixes {self.query_prefix!r} (query) and {self.document_prefix!r} (document) "
                f"for {self.name!r}, but {theirs} has {other.query_prefix!r} and {other.document_prefix!r}."
            )


@dataclasses.dataclass(frozen=True)
class SAEConfig:
    """What `config.json` says of an SAE.

    Attributes:
        d: Embedding size.
        n: Number of latents.
        k: Active latents per embedding, the reading for reconstruction.
        k_names: How many of a code's strongest latents are its *names*: labels, explanations, steering by name.
        encoder: The encoder whose embeddings it reads.
        training: Settings of the fit, for the record.
        metrics: Measurements taken at the end of the fit, for the record.
    """

    d: int
    n: int
    k: int
    encoder: EncoderSpec
    k_names: int = 8
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.n:
            raise ValueError(f"k = {self.k}: expected 1 <= k <= n = {self.n}.")
        if not self.k_names >= 1:
            raise ValueError(f"k_names = {self.k_names}: expected at least 1.")
        if self.encoder.dimension != self.d:
            raise MismatchError(
                f"the SAE reads {self.d} dimensions, but its encoder {self.encoder.name!r} gives "
                f"{self.encoder.dimension}."
            )
        object.__setattr__(self, "k_names", min(self.k_names, self.k))


class TopKSAE:
    """h = TopK(W_enc (x - b_dec) + b_enc),  x_hat = W_dec^T h + b_dec.

    Equation 1 of Kang, Wang & Xiong (arXiv 2411.00786), with the decoder stored by rows: W_enc and W_dec are
    (n, d), b_enc is (n,), b_dec is (d,), and every row of W_dec, a latent's direction, has unit norm. TopK keeps
    the K largest pre-activations of a row that are positive.

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

    def __repr__(self) -> str:
        """One line: sizes and the encoder."""
        c = self.config
        return f"TopKSAE({c.d} -> {c.n}, k={c.k}, k_names={c.k_names}, encoder={c.encoder.name!r})"

    @overload
    def encode(self, x: Tensor, k: int | None = None) -> Codes[Tensor]: ...
    @overload
    def encode(self, x: Array, k: int | None = None) -> Codes[NDArray[Any]]: ...

    def encode(self, x: Tensor | Array, k: int | None = None) -> Codes[Tensor] | Codes[NDArray[Any]]:
        """Codes of embeddings, in the kind of array that was given.

        Args:
            x: (batch, d) embeddings, a tensor or a NumPy array.
            k: Active latents per row; the config's `k` if not given.

        Returns:
            Codes(indices, values), each (batch, k).

        Raises:
            MismatchError: `x` is not (batch, d).
        """
        rows = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)) if isinstance(x, np.ndarray) else x
        if rows.ndim != 2 or rows.shape[1] != self.config.d:
            raise MismatchError(
                f"encode expects embeddings of shape (batch, {self.config.d}), got {tuple(rows.shape)}."
            )
        k = self.config.k if k is None else min(k, self.config.n)
        # The bias of the centred input folds into one vector: W (x - b) + c = W x + (c - W b).
        bias = self._folded_bias
        tile = max(1, _TILE_BYTES // (4 * self.config.n))
        indices = torch.empty((len(rows), k), dtype=torch.int32, device=self.W_enc.device)
        values = torch.empty((len(rows), k), dtype=torch.float32, device=self.W_enc.device)
        with torch.no_grad():
            for start in range(0, len(rows), tile):
                part = rows[start : start + tile].to(self.W_enc.device, torch.float32)
                top = functional.linear(part, self.W_enc, bias).topk(k, dim=1)
                indices[start : start + tile] = top.indices
                values[start : start + tile] = top.values.relu_()
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
        values = torch.as_tensor(codes.values, device=self.W_dec.device)
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.config.n:
            raise MismatchError(f"codes name latent {int(indices.max())}, but this SAE has {self.config.n}.")
        with torch.no_grad():
            x_hat = functional.embedding_bag(indices, self.W_dec, per_sample_weights=values, mode="sum") + self.b_dec
        return x_hat.cpu().numpy() if numpy else x_hat

    def reconstruct(self, x: Array) -> Array:
        """decode(encode(x)): (batch, d) to (batch, d)."""
        return self.decode(self.encode(x))

    def pre_activations(self, x: Array, latents: NDArray[np.integer[Any]]) -> Array:
        """W_enc (x - b_dec) + b_enc of a few latents only, before TopK: (batch, d) to (batch, len(latents))."""
        chosen = torch.as_tensor(latents).long()
        rows = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
        return functional.linear(rows, self.W_enc[chosen], self._folded_bias[chosen]).numpy()

    @cached_property
    def _folded_bias(self) -> Tensor:
        return self.b_enc - self.W_enc @ self.b_dec

    @cached_property
    def decoder(self) -> Array:
        """The decoder's rows as a NumPy array, (n, d): the latents' unit directions."""
        return self.W_dec.cpu().numpy()

    @cached_property
    def bias(self) -> Array:
        """The decoder's bias as a NumPy array, (d,)."""
        return self.b_dec.cpu().numpy()

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that name these weights, this K and this encoder; stores and policies pin it."""
        digest = hashlib.sha256()
        for tensor in (self.W_enc, self.b_enc, self.W_dec, self.b_dec):
            digest.update(tensor.cpu().numpy().tobytes())
        digest.update(f"{self.config.k} {_base_name(self.config.encoder.name)}".encode())
        return digest.hexdigest()[:16]

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
        config = self.config
        tensors = {name: getattr(self, name).cpu() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        identity = {"format_version": str(FORMAT_VERSION), "encoder": config.encoder.name, "k": str(config.k)}
        body = {
            "format_version": FORMAT_VERSION,
            "library": "sae_steer_retriever",
            "fingerprint": self.fingerprint,
            **dataclasses.asdict(config),
        }
        files = {
            WEIGHTS_FILE: save_safetensors(tensors, metadata=identity),
            CONFIG_FILE: (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode(),
        }
        write_files(folder, files)
        return folder

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, revision: str | None = None, token: str | None = None, device: str = "cpu"
    ) -> TopKSAE:
        """Load an SAE from a folder, or from a hub id such as "org/name".

        Args:
            path: Folder with `model.safetensors` and `config.json`, or a hub id.
            revision: Branch, tag or commit on the hub.
            token: Access token for a private repository on the hub.
            device: Where the tensors go.

        Raises:
            ArtifactError: A file is missing, truncated, foreign, of another format version, or the two do not
                belong together.
        """
        folder = resolve_folder(path, revision=revision, token=token)
        config, fingerprint = _read_config(folder / CONFIG_FILE)
        sae = cls(**_read_weights(folder / WEIGHTS_FILE), config=config)
        if fingerprint != sae.fingerprint:
            raise ArtifactError(
                f"{folder}: {CONFIG_FILE} was written for weights {fingerprint}, {WEIGHTS_FILE} holds "
                f"{sae.fingerprint}: the two files do not belong together; save or download both again."
            )
        return sae if device == "cpu" else sae.to(device)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the SAE to the Hugging Face hub.

        Returns:
            The repository's address.
        """
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"Upload {self!r}")
        return str(address)


def resolve_folder(path: str | Path, *, revision: str | None = None, token: str | None = None) -> Path:
    """The local folder of a saved SAE: `path` itself, or a downloaded snapshot of the hub repository it names.

    Raises:
        ArtifactError: No such folder, and no hub repository of that name could be had.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ArtifactError(f"{path} is a file; expected the folder that holds {WEIGHTS_FILE} and {CONFIG_FILE}.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) or str(path).startswith("."):
        raise ArtifactError(f"no folder {path}: give the folder that `sae-steer train --output` wrote, or a hub id.")
    from huggingface_hub import snapshot_download

    try:
        allowed = ["*.safetensors", "*.json", "README.md"]
        return Path(snapshot_download(str(path), revision=revision, token=token, allow_patterns=allowed))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"no folder {path}, and the hub has no such repository within reach ({type(error).__name__})."
        ) from error


def _read_config(path: Path) -> tuple[SAEConfig, str]:
    if not path.is_file():
        raise ArtifactError(f"{path.parent} holds no {CONFIG_FILE}: it is not the folder of a saved SAE.")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        version = body["format_version"]
        if version != FORMAT_VERSION:
            raise ArtifactError(
                f"{path} has format version {version}, this library reads {FORMAT_VERSION}: "
                "upgrade sae-steer-retriever, or train again."
            )
        fields = {field.name for field in dataclasses.fields(SAEConfig)}
        settings = {name: value for name, value in body.items() if name in fields}
        encoder = EncoderSpec(**settings.pop("encoder"))
        return SAEConfig(encoder=encoder, **settings), str(body["fingerprint"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{path} is not the config of an SAE of this library ({error}).") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ArtifactError(f"{path.parent} holds no {WEIGHTS_FILE}: it is not the folder of a saved SAE.")
    try:
        tensors = load_safetensors(path.read_bytes())
    except SafetensorError as error:
        raise ArtifactError(f"{path} is truncated or not a safetensors file ({error}).") from error
    expected = {"W_enc", "b_enc", "W_dec", "b_dec"}
    if set(tensors) != expected:
        raise ArtifactError(f"{path} holds {sorted(tensors)}, expected {sorted(expected)}: it is another model's file.")
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ArtifactError(f"{path}: {name} has dtype {tensor.dtype}, expected float32, float16 or bfloat16.")
    return tensors


def _base_name(encoder: str) -> str:
    # "all-MiniLM-L6-v2" and "sentence-transformers/all-MiniLM-L6-v2" are the same model to every framework.
    return encoder.removeprefix("sentence-transformers/").lower()
