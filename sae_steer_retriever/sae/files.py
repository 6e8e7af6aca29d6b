"""An SAE's folder: `model.safetensors`, `config.json`, and the way to a folder on the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.sae.atomic_files import write_files
from sae_steer_retriever.sae.bundled import bundled_names, bundled_sae
from sae_steer_retriever.sae.config import EncoderSpec, SAEConfig, current_keys, former_keys

FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")
# Files of an SAE on the hub: weights, config, catalog, calibration and card.
_SHARED = ["*.safetensors", "*.json", "README.md"]
# The names and notes that a person gave to features stay on this machine.
_PRIVATE = ["annotations.json"]


def write_sae(folder: Path, tensors: Mapping[str, Tensor], config: SAEConfig, fingerprint: str) -> None:
    """Writes both files atomically; an ArtifactError says that the folder cannot be written and is unchanged."""
    identity = {"format_version": str(FORMAT_VERSION), "encoder": config.encoder.name, "k": str(config.k)}
    body = {
        "format_version": FORMAT_VERSION,
        "library": "sae_steer_retriever",
        "fingerprint": fingerprint,
        **former_keys({**dataclasses.asdict(config), "training": former_keys(config.training)}),
    }
    weights = save_safetensors({name: tensors[name].cpu() for name in TENSORS}, metadata=identity)
    text = json.dumps(body, indent=2, ensure_ascii=False) + "\n"
    write_files(folder, {WEIGHTS_FILE: _with_ordered_header(weights), CONFIG_FILE: text.encode()})


def _with_ordered_header(content: bytes) -> bytes:
    """Returns a safetensors file with sorted metadata, which the library writes in a random order."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # the numbers begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text + content[end:]


def read_config(path: Path) -> tuple[SAEConfig, str]:
    """Returns the config, and the fingerprint of the weights that it was written for.

    Raises:
        ArtifactError: The file is missing, foreign, or of another format version.
    """
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
        settings = {name: value for name, value in current_keys(body).items() if name in fields}
        settings["training"] = current_keys(settings.get("training") or {})
        encoder = EncoderSpec(**settings.pop("encoder"))
        return SAEConfig(encoder=encoder, **settings), str(body["fingerprint"])
    except ArtifactError:
        raise
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ArtifactError(f"{path} is not the config of an SAE of this library ({error!r}).") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the four tensors, `restored` to float32; nothing is ever unpickled.

    Raises:
        ArtifactError: The file is missing, truncated, or another model's.
    """
    if not path.is_file():
        raise ArtifactError(f"{path.parent} holds no {WEIGHTS_FILE}: it is not the folder of a saved SAE.")
    try:
        tensors = load_safetensors(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is truncated or not a safetensors file ({error}).") from error
    if set(tensors) != set(TENSORS):
        raise ArtifactError(f"{path} holds {sorted(tensors)}, expected {sorted(TENSORS)}: it is another model's file.")
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ArtifactError(f"{path}: {name} has dtype {tensor.dtype}, expected float32, float16 or bfloat16.")
    return restored(tensors)


def restored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a file's four tensors as float32, and rounded decoder rows normalised to unit norm again.

    The result is equal to the last bit on every machine, because the fingerprint depends on it: squares of float16
    numbers are whole multiples of 2^-48, so float64 holds their sums exactly in any order of addition.
    """
    rows = tensors["W_dec"]
    whole = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    if rows.dtype != torch.float32:
        exact = rows.to(torch.float64)
        norms = exact.square().sum(dim=1, keepdim=True).sqrt()
        whole["W_dec"] = torch.where(norms > 0, exact / norms, exact).to(torch.float32)
    return whole


def resolve_folder(path: str | Path, *, revision: str | None = None, token: str | None = None) -> Path:
    """Returns the local folder of a saved SAE: `path` itself, a bundled one, or a downloaded snapshot of the hub.

    `path` is a folder, the name of an encoder with a bundled SAE, or a hub id, of which `revision` names a branch, tag
    or commit.

    Raises:
        ArtifactError: No such folder, and no hub repository of that name could be had.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ArtifactError(f"{path} is a file; expected the folder that holds {WEIGHTS_FILE} and {CONFIG_FILE}.")
    bundled = bundled_sae(str(path))
    if bundled is not None:
        return bundled
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) or str(path).startswith("."):
        or_bundled = f", or the name of a bundled one: {', '.join(bundled_names())}" if bundled_names() else ""
        raise ArtifactError(
            f"no folder {path}: give the folder that `sae-steer train --output` wrote, a hub id{or_bundled}."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path), revision=revision, token=token, allow_patterns=_SHARED))
    except Exception as error:  # the hub's client changed its transport, and with that its errors, several times
        raise ArtifactError(
            f"no folder {path}, and the hub has no such repository within reach ({type(error).__name__})."
        ) from error


def upload_folder(folder: Path, repo_id: str, *, private: bool, token: str | None, message: str) -> str:
    """Returns the hub repository's address after uploading a saved SAE with its catalog and card.

    Raises:
        ArtifactError: The hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi(token=token)
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=_SHARED,
            ignore_patterns=_PRIVATE,
            commit_message=message,
        )
    except Exception as error:  # see resolve_folder
        reason = str(error).partition("\n")[0]
        raise ArtifactError(f"cannot upload to {repo_id!r}: {type(error).__name__}: {reason}") from error
    return str(address)
