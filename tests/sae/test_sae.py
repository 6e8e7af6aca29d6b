"""The SAE: its equation, its two array types, and its folder on a good day and on bad ones."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import stat
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from toy import random_sae, unit_rows

from sae_steer_retriever.errors import ArtifactError, MismatchError
from sae_steer_retriever.features.annotations import ANNOTATIONS_FILE
from sae_steer_retriever.sae import atomic_files as artifact
from sae_steer_retriever.sae.codes import Array, Codes
from sae_steer_retriever.sae.config import EncoderSpec, SAEConfig
from sae_steer_retriever.sae.files import TENSORS, restored
from sae_steer_retriever.sae.topk_sae import TopKSAE

FILES = {"model.safetensors", "config.json"}


def naive(sae: TopKSAE, x: Array, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Equation 1 as it is printed, in float64: pre-activations, dense codes, reconstructions."""
    W_enc, b_enc, W_dec, b_dec = (t.double().numpy() for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
    pre = (x.astype(np.float64) - b_dec) @ W_enc.T + b_enc
    dense = np.zeros_like(pre)
    for row, values in enumerate(pre):
        for latent in sorted(range(len(values)), key=lambda i: -values[i])[:k]:
            dense[row, latent] = max(values[latent], 0.0)
    return pre, dense, dense @ W_dec + b_dec


def densify(codes: Codes[np.ndarray], n: int) -> np.ndarray:
    dense = np.zeros((len(codes.indices), n))
    for row in range(len(dense)):
        for latent, value in zip(codes.indices[row], codes.values[row], strict=True):
            dense[row, latent] += value
    return dense


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(0, 9),
    d=st.integers(1, 24),
    n=st.integers(1, 40),
    share=st.floats(0, 1),
    shift=st.sampled_from([0.0, -0.7, -3.0, 2.0]),
)
def test_codes_and_reconstructions_are_those_of_equation_1(
    seed: int, batch: int, d: int, n: int, share: float, shift: float
) -> None:
    k = max(1, round(share * n))
    sae = random_sae(seed, d, n, k, shift=shift)
    x = unit_rows(seed + 1, batch, d)
    codes = sae.encode(x)
    assert codes.indices.shape == codes.values.shape == (batch, k)
    assert (codes.indices.dtype, codes.values.dtype) == (np.int32, np.float32)
    assert (codes.values >= 0).all()
    assert (np.diff(codes.values, axis=1) <= 0).all(), "a code is sorted by value: its first latents are its names"
    assert all(len(set(row)) == k for row in codes.indices.tolist())
    _, dense, x_hat = naive(sae, x, k)
    # Where two latents tie within rounding either may be chosen; continuous random values do not tie.
    np.testing.assert_allclose(densify(codes, n), dense, atol=2e-5)
    np.testing.assert_allclose(sae.decode(codes), x_hat, atol=5e-5)
    np.testing.assert_array_equal(sae.reconstruct(x), sae.decode(codes))


def test_latents_below_zero_never_count_as_active() -> None:
    sae = random_sae(shift=-0.9, k=32)
    x = unit_rows(3, 200)
    codes = sae.encode(x)
    active = (codes.values > 0).sum(axis=1)
    pre, _, _ = naive(sae, x, 32)
    np.testing.assert_array_equal(active, (pre > 0).sum(axis=1))
    assert 0 < active.mean() < 32
    silent = random_sae(shift=-50.0)
    np.testing.assert_array_equal(silent.encode(x).values, 0)
    np.testing.assert_allclose(silent.reconstruct(x), np.tile(silent.bias, (200, 1)), atol=1e-7)


def test_a_batch_of_several_tiles_gives_what_its_rows_give_alone() -> None:
    sae = random_sae(1, d=4, n=2**17, k=5)  # 64 rows a tile
    x = unit_rows(2, 130, 4)
    whole = sae.encode(x)
    alone = [sae.encode(x[row : row + 1]) for row in (0, 63, 64, 127, 128, 129)]
    for row, codes in zip((0, 63, 64, 127, 128, 129), alone, strict=True):
        np.testing.assert_allclose(whole.values[row], codes.values[0], atol=1e-6)
        assert set(whole.indices[row].tolist()) == set(codes.indices[0].tolist())


def test_a_smaller_reading_is_the_head_of_the_larger_one() -> None:
    sae, x = random_sae(k=8), unit_rows(4, 50)
    whole, names = sae.encode(x), sae.encode(x, k=3)
    np.testing.assert_array_equal(whole.truncate(3).indices, names.indices)
    np.testing.assert_array_equal(whole.truncate(3).values, names.values)
    assert sae.encode(x, k=1000).indices.shape == (50, 32), "no more latents than there are"
    with pytest.raises(ValueError, match="k is 0"):
        sae.encode(x, k=0)


def test_tensors_give_tensors_and_arrays_give_arrays() -> None:
    sae, x = random_sae(), unit_rows(5, 7)
    arrays, tensors = sae.encode(x), sae.encode(torch.from_numpy(x))
    assert isinstance(arrays.values, np.ndarray)
    assert isinstance(tensors.values, torch.Tensor)
    np.testing.assert_array_equal(arrays.indices, tensors.indices.numpy())
    assert isinstance(sae.decode(arrays), np.ndarray)
    assert isinstance(sae.decode(tensors), torch.Tensor)
    np.testing.assert_array_equal(sae.decode(arrays), sae.decode(tensors).numpy())
    with torch.enable_grad():
        given_with_gradient = torch.from_numpy(x).requires_grad_()
        assert not sae.decode(sae.encode(given_with_gradient)).requires_grad


def test_embeddings_of_other_precision_or_layout_are_read_and_left_alone(tmp_path: Path) -> None:
    sae, x = random_sae(), unit_rows(6, 9)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays it must not write to
        np.testing.assert_array_equal(sae.encode(mapped).indices, sae.encode(x).indices)
        np.testing.assert_array_equal(sae.encode(np.asfortranarray(x.astype(np.float64))).values, sae.encode(x).values)
    before = x.copy()
    sae.reconstruct(x)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 15), dtype=np.float32), r"\(batch, 16\), got \(2, 15\)"),
        (np.zeros(16, dtype=np.float32), r"got \(16,\)"),
        (torch.zeros(1, 2, 16), r"got \(1, 2, 16\)"),
        (np.full((1, 16), np.nan, dtype=np.float32), "NaN"),
        (np.full((1, 16), np.inf), "infinite"),
    ],
)
def test_embeddings_that_cannot_be_right_are_refused(x: Any, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        random_sae().encode(x)


@pytest.mark.parametrize("latent", [-1, 32])
def test_codes_of_a_larger_dictionary_are_refused(latent: int) -> None:
    codes = Codes(np.array([[0, latent]], dtype=np.int32), np.ones((1, 2), dtype=np.float32))
    with pytest.raises(MismatchError, match=f"latent {latent}, but this SAE has #0 to #31"):
        random_sae().decode(codes)


@pytest.mark.parametrize(
    "change", [{"k": 0}, {"k": 33}, {"k_labels": 0}, {"k": 6.0}, {"n": True}, {"d": 17}], ids=lambda c: str(c)
)
def test_a_config_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change)) if "d" not in change else "17 dimensions"):
        dataclasses.replace(random_sae().config, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"W_dec": torch.zeros(32, 15)},
        {"b_enc": torch.zeros(16)},
        {"W_enc": torch.full((32, 16), float("nan"))},
        {"b_dec": torch.full((16,), float("inf"))},
    ],
)
def test_tensors_that_do_not_fit_the_config_are_refused(change: dict[str, torch.Tensor]) -> None:
    sae = random_sae()
    tensors = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec, **change}
    with pytest.raises(ArtifactError, match=next(iter(change))):
        TopKSAE(**tensors, config=sae.config)


# -- the folder -------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    sae = random_sae(k=5)
    config = dataclasses.replace(sae.config, training={"epochs": 3}, metrics={"fvu": 0.25, "name": "ä"})
    sae = TopKSAE(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, config)
    assert sae.save_pretrained(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    again = TopKSAE.from_pretrained(tmp_path / "new" / "folder")
    assert again.config == config
    assert again.fingerprint == sae.fingerprint
    x = unit_rows(8, 20)
    np.testing.assert_array_equal(sae.encode(x).values, again.encode(x).values)
    np.testing.assert_array_equal(sae.reconstruct(x), again.reconstruct(x))
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == FILES


def test_fingerprint_tells_apart_whatever_makes_codes_incomparable() -> None:
    sae = random_sae()
    other_bias = TopKSAE(sae.W_enc, sae.b_enc + 1e-6, sae.W_dec, sae.b_dec, sae.config)
    encoder = sae.config.encoder

    def configured(**changes: Any) -> str:
        config = dataclasses.replace(sae.config, **changes)
        return TopKSAE(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, config).fingerprint

    different = {
        sae.fingerprint,
        other_bias.fingerprint,
        configured(k=7),
        configured(k_labels=2),
        configured(encoder=dataclasses.replace(encoder, name="toy/other")),
        configured(encoder=dataclasses.replace(encoder, query_prefix="query: ")),
    }
    assert len(different) == 6
    assert configured(metrics={"fvu": 1.0}) == sae.fingerprint
    assert random_sae().fingerprint == sae.fingerprint


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_saved_files_are_as_readable_as_any_other_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    random_sae().save_pretrained(tmp_path)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in [*FILES, "plain"]}
    assert len(modes) == 1


def damage(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how.startswith("no ") and how != "no JSON":
        (folder / how.removeprefix("no ")).unlink()
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "cut in the header":
        weights.write_bytes(weights.read_bytes()[:20])
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "pickle":
        with weights.open("wb") as stream:
            pickle.dump(Bomb(str(folder / "unpickled")), stream)
    elif how == "torch pickle":
        torch.save({"W_enc": Bomb(str(folder / "unpickled"))}, weights)
    elif how == "foreign tensors":
        save_file({"encoder.weight": torch.zeros(3, 3)}, weights)
    elif how in ("float64", "int32"):
        save_file({name: tensor.to(getattr(torch, how)) for name, tensor in load_file(weights).items()}, weights)
    elif how == "transposed":
        transposed = {
            name: tensor.mT.contiguous() if tensor.ndim == 2 else tensor for name, tensor in load_file(weights).items()
        }
        save_file(transposed, weights)
    elif how == "not finite":
        tensors = load_file(weights)
        tensors["b_enc"][3] = float("nan")
        save_file(tensors, weights)
    elif how == "one flipped bit":
        raw = bytearray(weights.read_bytes())
        raw[-3] ^= 1
        weights.write_bytes(bytes(raw))
    else:
        body = json.loads(config.read_text(encoding="utf-8"))
        if how == "newer":
            body["format_version"] = 99
        elif how == "foreign config":
            body = {"architectures": ["BertModel"], "hidden_size": 384}
        elif how == "list":
            body = [body]
        elif how == "unknown encoder field":
            body["encoder"]["future"] = 1
        elif how == "text for a number":
            body["k"] = "6"
        raw = {"no JSON": b"{", "Latin-1": '{"ä": 1}'.encode("latin-1")}.get(how, json.dumps(body).encode())
        config.write_bytes(raw)


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no model.safetensors", "holds no model.safetensors"),
        ("no config.json", "holds no config.json"),
        ("truncated", "truncated or not a safetensors"),
        ("cut in the header", "truncated or not a safetensors"),
        ("empty", "truncated or not a safetensors"),
        ("pickle", "not a safetensors"),
        ("torch pickle", "not a safetensors"),
        ("foreign tensors", r"encoder\.weight.*expected .*W_enc.*another model"),
        ("float64", "dtype torch.float64, expected float32"),
        ("int32", "dtype torch.int32"),
        ("transposed", r"shape \(16, 32\), expected \(32, 16\)"),
        ("not finite", "b_enc holds values that are not finite"),
        ("one flipped bit", "do not belong together"),
        ("newer", "format version 99, this library reads 1: upgrade"),
        ("foreign config", "is not the config of an SAE"),
        ("list", "is not the config of an SAE"),
        ("unknown encoder field", "is not the config of an SAE"),
        ("text for a number", "is not the config of an SAE"),
        ("no JSON", "is not the config of an SAE"),
        ("Latin-1", "is not the config of an SAE"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(how: str, message: str, tmp_path: Path) -> None:
    random_sae().save_pretrained(tmp_path)
    damage(tmp_path, how)
    with pytest.raises(ArtifactError, match=message) as caught:
        TopKSAE.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "unpickled").exists(), "a pickle was executed"


def test_config_and_weights_of_two_saes_do_not_mix(tmp_path: Path) -> None:
    random_sae(1).save_pretrained(tmp_path / "one")
    random_sae(2).save_pretrained(tmp_path / "two")
    os.replace(tmp_path / "one" / "config.json", tmp_path / "two" / "config.json")
    with pytest.raises(ArtifactError) as caught:
        TopKSAE.from_pretrained(tmp_path / "two")
    assert random_sae(1).fingerprint in str(caught.value)
    assert random_sae(2).fingerprint in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    sae = random_sae()
    rounded = {name: getattr(sae, name).to(dtype) for name in TENSORS}
    halved = TopKSAE(**restored(rounded), config=sae.config)
    halved.save_pretrained(tmp_path)
    save_file(rounded, tmp_path / "model.safetensors")
    read = TopKSAE.from_pretrained(tmp_path)
    assert read.fingerprint == halved.fingerprint != sae.fingerprint
    assert read.W_dec.dtype == torch.float32
    # Rounding bends directions a little; that it also shortens them is mended.
    assert (rounded["W_dec"].float().norm(dim=1) - 1).abs().max() > 1e-5
    torch.testing.assert_close(read.W_dec.norm(dim=1), torch.ones(sae.config.n), atol=3e-7, rtol=0)
    torch.testing.assert_close(read.W_dec, sae.W_dec, atol=5e-3 if dtype == torch.bfloat16 else 5e-4, rtol=0)


def test_rounded_directions_have_one_length_on_every_machine() -> None:
    """Sums of float16 squares are exact in float64, so no order of addition gives another last bit."""
    rows = random_sae(3, d=384, n=64).W_dec.half()
    shuffled = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(2)
    one = restored({"W_enc": rows, "b_enc": zeros, "W_dec": rows, "b_dec": zeros})["W_dec"]
    other = restored({"W_enc": rows, "b_enc": zeros, "W_dec": rows[:, shuffled], "b_dec": zeros})["W_dec"]
    assert torch.equal(one[:, shuffled], other)
    assert torch.equal(restored({"W_enc": rows, "b_enc": zeros, "W_dec": 0 * rows, "b_dec": zeros})["W_dec"], 0 * rows)


FULL_DISK = """
import resource, signal, sys
from sae_steer_retriever.errors import ArtifactError
from toy import random_sae
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit then fails as one on a full disk does
sae = random_sae(2, n=4096)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    sae.save_pretrained(sys.argv[1])
except ArtifactError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_leaves_the_old_sae_and_nothing_else(tmp_path: Path) -> None:
    random_sae(1).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), "100000"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.getcwd()])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert "cannot save model.safetensors, config.json" in done.stdout, done.stderr
    assert "Nothing was replaced" in done.stdout
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_failure_at_the_second_file_leaves_the_first_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_sae(1).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    synced = os.fsync

    def fails_at_the_second(descriptor: int, calls: list[int] = []) -> None:  # noqa: B006 - counts
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        synced(descriptor)

    monkeypatch.setattr(artifact.os, "fsync", fails_at_the_second)
    with pytest.raises(ArtifactError, match="No space left on device"):
        random_sae(2).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interrupt_while_saving_leaves_no_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_sae(1).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(artifact.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        random_sae(2).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_saving_where_nothing_can_be_saved_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot save"):
        random_sae().save_pretrained(tmp_path / "file" / "sae")
    with pytest.raises(ArtifactError, match="is a file; expected the folder"):
        TopKSAE.from_pretrained(tmp_path / "file")


# -- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub that no one answers at, and an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("no_hub")
def test_a_hub_id_that_cannot_be_had_is_one_clear_error() -> None:
    with pytest.raises(ArtifactError, match=r"no folder owner/name, and the hub has no such repository") as caught:
        TopKSAE.from_pretrained("owner/name")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["./nowhere/sae", "nowhere", "/nowhere/sae", "a/b/c", "../a/b"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(ArtifactError, match="no folder .*sae-steer train"):
        TopKSAE.from_pretrained(path)


def test_a_hub_id_is_downloaded_without_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = random_sae()
    sae.save_pretrained(tmp_path)
    asked: dict[str, Any] = {}

    def download(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = TopKSAE.from_pretrained("owner/name", revision="v1", token="secret")
    assert loaded.fingerprint == sae.fingerprint
    assert (asked["repo_id"], asked["revision"], asked["token"]) == ("owner/name", "v1", "secret")
    assert set(asked["allow_patterns"]) == {"*.safetensors", "*.json", "README.md"}


class Hub:
    """Stands in for the remote hub: keeps what would be uploaded."""

    uploads: dict[str, Any]

    def __init__(self, *, token: str | None = None) -> None:
        Hub.uploads = {"token": token}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        Hub.uploads.update(private=private)
        return f"https://hub/{repo_id}"

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: str,
        allow_patterns: list[str],
        ignore_patterns: list[str],
        commit_message: str,
    ) -> None:
        names = {path.name for pattern in allow_patterns for path in Path(folder_path).glob(pattern)}
        names -= {path.name for pattern in ignore_patterns for path in Path(folder_path).glob(pattern)}
        Hub.uploads.update(repo_id=repo_id, names=names)


def test_pushing_uploads_what_from_pretrained_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    sae = random_sae()
    assert sae.push_to_hub("owner/name", private=True, token="t") == "https://hub/owner/name"
    assert Hub.uploads == {"token": "t", "private": True, "repo_id": "owner/name", "names": FILES}
    sae.save_pretrained(tmp_path)
    shared = {*FILES, "features.json", "evidence.json", "calibration.safetensors", "README.md"}
    # A person's own names and notes are nobody else's.
    for name in (*shared - {*FILES}, "checkpoint.pt", ANNOTATIONS_FILE):
        (tmp_path / name).write_text("")
    sae.push_to_hub("owner/name", folder=tmp_path)
    assert Hub.uploads["names"] == shared
    with pytest.raises(ArtifactError, match=sae.fingerprint):
        random_sae(9).push_to_hub("owner/name", folder=tmp_path)


@pytest.mark.usefixtures("no_hub")
def test_pushing_without_a_hub_is_one_clear_error() -> None:
    with pytest.raises(ArtifactError, match="cannot upload to 'owner/name'"):
        random_sae().push_to_hub("owner/name", token="t")


# -- encoders ---------------------------------------------------------------------------------------------------------


def test_the_same_encoder_by_its_short_and_long_name_is_the_same() -> None:
    long = EncoderSpec("sentence-transformers/all-MiniLM-L6-v2", 384)
    assert long.require_same(EncoderSpec("all-minilm-l6-v2", 384), "the SAE", "the embedder") is None
    with pytest.raises(MismatchError):
        long.require_same(EncoderSpec("all-minilm-l12-v2", 384), "the SAE", "the embedder")


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (EncoderSpec("toy/other", 16), ["'toy/words'", "'toy/other'"]),
        (EncoderSpec("toy/words", 17), ["16 dimensions", "17 dimensions"]),
        (EncoderSpec("toy/words", 16, query_prefix="query: "), ["'query: '", "''"]),
        (EncoderSpec("toy/words", 16, document_prefix="passage: "), ["'passage: '"]),
    ],
)
def test_another_encoder_is_refused_and_both_are_named(other: EncoderSpec, named: list[str]) -> None:
    with pytest.raises(MismatchError) as caught:
        EncoderSpec("toy/words", 16).require_same(other, "the SAE", "the embedder")
    assert all(part in str(caught.value) for part in [*named, "the SAE", "the embedder"])


def test_k_labels_never_exceeds_k() -> None:
    config = SAEConfig(d=16, n=32, k=4, k_labels=8, encoder=EncoderSpec("toy/words", 16))
    assert config.k_labels == 4


def test_names_of_the_first_release_work_and_warn() -> None:
    settings = {"d": 6, "n": 24, "k": 6, "encoder": EncoderSpec("toy/words", 6)}
    with pytest.warns(DeprecationWarning, match="is now"):
        config = SAEConfig(**settings, k_names=2, pursuit_steps=3, pursuit_candidates=12)  # type: ignore[call-arg]
    assert config == SAEConfig(**settings, k_labels=2, refine_steps=3, refine_candidates=12)
    for former, value in {"k_names": 2, "pursuit_steps": 3, "pursuit_candidates": 12}.items():
        with pytest.warns(DeprecationWarning, match=former):
            assert getattr(config, former) == value
    codes = random_sae().encode(unit_rows(0, 3))
    with pytest.warns(DeprecationWarning, match="truncate"):
        first = codes.leading(2)
    np.testing.assert_array_equal(first.indices, codes.truncate(2).indices)
