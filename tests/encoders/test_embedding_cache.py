"""Embeddings on disk: each text once, through kills, damage, threads and processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from toy import ToyEmbedder

from sae_steer_retriever.encoders import embedding_cache
from sae_steer_retriever.encoders.cache_root import cache_root
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.errors import ArtifactError, MismatchError
from sae_steer_retriever.sae.codes import Array
from sae_steer_retriever.sae.config import EncoderSpec

TEXTS = [f"word{number} and word{number % 7}" for number in range(50)]


def files(folder: Path) -> tuple[Path, Path]:
    (inner,) = [path for path in folder.iterdir() if path.is_dir()]
    return inner / "keys.bin", inner / "vectors.f32"


def test_a_text_is_embedded_once_and_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    embedder = ToyEmbedder()
    expected = embedder.embed_queries(TEXTS)
    cached = CachedEmbedder(embedder, tmp_path)
    first = cached.embed_documents(TEXTS + TEXTS[:5])
    assert sorted(embedder.embedded) == sorted(TEXTS)
    np.testing.assert_array_equal(first, np.concatenate([expected, expected[:5]]))
    again = CachedEmbedder(embedder, tmp_path)
    np.testing.assert_array_equal(again.embed_documents(TEXTS[::-1]), expected[::-1])
    assert len(embedder.embedded) == len(TEXTS)
    assert again.embed_documents([]).shape == (0, 16)
    assert again.spec == embedder.spec


class Prefixed(ToyEmbedder):
    """An encoder with two prefixes, or with a side of its own that it does not tell."""

    def __init__(self, query: str, document: str, pooling: str | None) -> None:
        super().__init__()
        self.spec = EncoderSpec("toy/prefixed", 16, query, document, pooling)
        self.queries: list[str] = []

    def embed_queries(self, texts: Sequence[str]) -> Array:
        self.queries.extend(texts)
        return super().embed_queries([f"{self.spec.query_prefix or 'side '}{text}" for text in texts])

    def embed_documents(self, texts: Sequence[str]) -> Array:
        self.embedded.extend(texts)
        return super().embed_queries([f"{self.spec.document_prefix}{text}" for text in texts])


@pytest.mark.parametrize(
    "embedder",
    [Prefixed("query: ", "passage: ", "mean"), Prefixed("", "", None)],
    ids=["prefixes", "an adapter's own asymmetry"],
)
def test_queries_and_documents_are_kept_apart(embedder: Prefixed, tmp_path: Path) -> None:
    cached = CachedEmbedder(embedder, tmp_path)
    for _ in range(2):
        query, document = cached.embed_queries(["bread"]), cached.embed_documents(["bread"])
        assert not np.allclose(query, document)
    assert (embedder.queries, embedder.embedded) == (["bread"], ["bread"])


def test_encoders_do_not_share_and_changed_prefixes_are_noticed(tmp_path: Path) -> None:
    one, other = Prefixed("a ", "b ", "mean"), Prefixed("a ", "c ", "mean")
    assert not np.allclose(
        CachedEmbedder(one, tmp_path).embed_documents(["x"]), CachedEmbedder(other, tmp_path).embed_documents(["x"])
    )
    wide = ToyEmbedder(d=8)
    CachedEmbedder(ToyEmbedder(), tmp_path).embed_documents(["x"])
    assert CachedEmbedder(wide, tmp_path).embed_documents(["x"]).shape == (1, 8)


def test_without_a_prefix_a_query_is_known_from_the_documents(tmp_path: Path) -> None:
    embedder = ToyEmbedder()
    embedder.spec = EncoderSpec("toy/words", 16, pooling="mean")
    cached = CachedEmbedder(embedder, tmp_path)
    cached.embed_documents(["bread"])
    (tmp_path / "x").touch()
    np.testing.assert_array_equal(cached.embed_queries(["bread"]), ToyEmbedder().embed_queries(["bread"]))
    keys = [path for path in tmp_path.rglob("keys.bin")]
    assert [path.stat().st_size for path in keys] == [16]


@pytest.mark.parametrize(
    "cut", ["rows without keys", "half a row", "half a key", "keys without rows", "zeros", "odd bytes"]
)
def test_whatever_a_kill_or_crash_left_the_next_run_is_right(cut: str, tmp_path: Path) -> None:
    expected = ToyEmbedder().embed_queries(TEXTS)
    CachedEmbedder(ToyEmbedder(), tmp_path).embed_documents(TEXTS[:30])
    keys, rows = files(tmp_path)
    if cut == "rows without keys":  # killed between the two writes
        with rows.open("ab") as stream:
            stream.write(expected[30:40].tobytes())
    elif cut == "half a row":
        with rows.open("ab") as stream:
            stream.write(b"\1" * 30)
    elif cut == "odd bytes":
        with rows.open("ab") as stream:
            stream.write(b"\1" * 3)
    elif cut == "half a key":
        with rows.open("ab") as stream:
            stream.write(expected[30:31].tobytes())
        with keys.open("ab") as stream:
            stream.write(b"\1" * 7)
    elif cut == "keys without rows":
        rows.write_bytes(rows.read_bytes()[: 20 * 64 + 10])
    else:  # a power failure wrote the length, not the content
        raw = bytearray(rows.read_bytes())
        raw[25 * 64 :] = bytes(5 * 64)
        rows.write_bytes(bytes(raw))
    embedder = ToyEmbedder()
    cached = CachedEmbedder(embedder, tmp_path)
    np.testing.assert_array_equal(cached.embed_documents(TEXTS[:15]), expected[:15])
    np.testing.assert_array_equal(cached.embed_documents(TEXTS), expected)
    assert len(embedder.embedded) <= 31
    last = ToyEmbedder()
    np.testing.assert_array_equal(CachedEmbedder(last, tmp_path).embed_documents(TEXTS), expected)
    assert last.embedded == []


def test_what_was_embedded_before_an_interrupt_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_cache, "_CHUNK", 10)

    class Interrupted(ToyEmbedder):
        def embed_documents(self, texts: Sequence[str]) -> Array:
            if len(self.embedded) == 30:
                raise KeyboardInterrupt
            return super().embed_documents(texts)

    with pytest.raises(KeyboardInterrupt):
        CachedEmbedder(Interrupted(), tmp_path).embed_documents(TEXTS)
    embedder = ToyEmbedder()
    CachedEmbedder(embedder, tmp_path).embed_documents(TEXTS)
    assert len(embedder.embedded) == 20


def test_a_text_of_any_characters_has_its_own_place(tmp_path: Path) -> None:
    embedder = ToyEmbedder()
    cached = CachedEmbedder(embedder, tmp_path)
    texts = ["a\0b", "a", "ä", "a\u0308", "\ud800", "x" * 100_000]
    first = cached.embed_documents(texts)
    assert len({row.tobytes() for row in first}) == len(texts)
    np.testing.assert_array_equal(cached.embed_documents(texts), first)


def test_two_open_caches_see_each_others_work(tmp_path: Path) -> None:
    one, two = ToyEmbedder(), ToyEmbedder()
    first, second = CachedEmbedder(one, tmp_path), CachedEmbedder(two, tmp_path)
    first.embed_documents(TEXTS[:30])
    np.testing.assert_array_equal(second.embed_documents(TEXTS), ToyEmbedder().embed_queries(TEXTS))
    assert len(two.embedded) == 20
    np.testing.assert_array_equal(first.embed_documents(TEXTS[::-1]), ToyEmbedder().embed_queries(TEXTS[::-1]))
    assert len(one.embedded) == 30


def test_eight_threads_may_share_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_cache, "_CHUNK", 3)
    cached, expected = CachedEmbedder(ToyEmbedder(), tmp_path), ToyEmbedder().embed_queries(TEXTS)
    wrong: list[object] = []

    def work(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(TEXTS))
        try:
            for start in range(0, 50, 10):
                part = order[start : start + 10]
                if not np.array_equal(cached.embed_documents([TEXTS[i] for i in part]), expected[part]):
                    wrong.append(part)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_places_are_rows_of_a_mapped_file(tmp_path: Path) -> None:
    """A text's row is known without copying it, and texts asked for again are not embedded again."""
    embedder = ToyEmbedder()
    cached, expected = CachedEmbedder(embedder, tmp_path), ToyEmbedder().embed_queries(TEXTS)
    assert cached.vectors().shape == (0, 16)
    assert cached.document_places([]).shape == (0,)
    places = cached.document_places(TEXTS + TEXTS[:5])
    vectors = cached.vectors()
    assert isinstance(vectors, np.memmap)
    assert not vectors.flags.writeable
    np.testing.assert_array_equal(vectors[places], np.concatenate([expected, expected[:5]]))
    np.testing.assert_array_equal(cached.document_places(TEXTS[::-1]), places[:50][::-1])
    assert len(embedder.embedded) == len(TEXTS)


def test_a_mapped_row_stays_what_it_is_while_others_write(tmp_path: Path) -> None:
    """Also where a kill left rows without keys behind: a mapped file is written over there, and never cut."""
    first = CachedEmbedder(ToyEmbedder(), tmp_path)
    places, expected = first.document_places(TEXTS[:20]), ToyEmbedder().embed_queries(TEXTS)
    vectors = first.vectors()
    _, rows = files(tmp_path)
    with rows.open("ab") as stream:
        stream.write(bytes(range(256)) * 20)
    left = rows.stat().st_size
    second = CachedEmbedder(ToyEmbedder(), tmp_path)
    second.embed_documents(TEXTS[20:40])
    assert rows.stat().st_size >= left
    np.testing.assert_array_equal(vectors[places], expected[:20])
    np.testing.assert_array_equal(first.embed_documents(TEXTS), expected)
    np.testing.assert_array_equal(CachedEmbedder(ToyEmbedder(), tmp_path).embed_documents(TEXTS), expected)


def test_keys_that_lost_their_rows_do_not_name_the_next_rows(tmp_path: Path) -> None:
    """A crash kept 30 keys and 20 rows; the next process is killed when it has written rows and no keys yet."""
    CachedEmbedder(ToyEmbedder(), tmp_path).embed_documents(TEXTS[:30])
    _, rows = files(tmp_path)
    rows.write_bytes(rows.read_bytes()[: 20 * 64])
    next_one = CachedEmbedder(ToyEmbedder(), tmp_path)

    class Killed(BaseException):
        pass

    class Keys(list[bytes]):
        def __iter__(self) -> Iterator[bytes]:
            raise Killed

    keys = Keys([next_one._key(text, "document") for text in TEXTS[30:]])
    with pytest.raises(Killed):
        next_one._append(keys, ToyEmbedder().embed_queries(TEXTS[30:]))
    np.testing.assert_array_equal(
        CachedEmbedder(ToyEmbedder(), tmp_path).embed_documents(TEXTS), ToyEmbedder().embed_queries(TEXTS)
    )


WORKER = """
import sys
from pathlib import Path
import numpy as np
from toy import ToyEmbedder
from sae_steer_retriever.encoders import embedding_cache
from test_embedding_cache import TEXTS
embedding_cache._CHUNK = 3
order = np.random.default_rng(int(sys.argv[2])).permutation(len(TEXTS))
cached = embedding_cache.CachedEmbedder(ToyEmbedder(), Path(sys.argv[1]))
for start in range(0, 50, 5):
    part = order[start : start + 5]
    rows = cached.embed_documents([TEXTS[i] for i in part])
    assert np.array_equal(rows, ToyEmbedder().embed_queries([TEXTS[i] for i in part]))
"""


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, Path(__file__).parents[:2]), os.getcwd()])}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(seed)], env=environment, stderr=subprocess.PIPE
        )
        for seed in (1, 2)
    ]
    for worker in workers:
        _, errors = worker.communicate()
        assert worker.returncode == 0, errors.decode()
    last = ToyEmbedder()
    np.testing.assert_array_equal(
        CachedEmbedder(last, tmp_path).embed_documents(TEXTS), ToyEmbedder().embed_queries(TEXTS)
    )
    assert last.embedded == []


def test_an_encoder_that_gives_the_wrong_number_of_vectors_spoils_nothing(tmp_path: Path) -> None:
    class Short(ToyEmbedder):
        def embed_documents(self, texts: Sequence[str]) -> Array:
            return super().embed_documents(texts)[1:]

    with pytest.raises(MismatchError, match=r"expected \(2, 16\)"):
        CachedEmbedder(Short(), tmp_path).embed_documents(["a", "b"])
    np.testing.assert_array_equal(
        CachedEmbedder(ToyEmbedder(), tmp_path).embed_documents(["a", "b"]), ToyEmbedder().embed_queries(["a", "b"])
    )


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_STEER_CACHE", str(tmp_path / "elsewhere"))
    CachedEmbedder(ToyEmbedder()).embed_documents(["a"])
    assert (tmp_path / "elsewhere" / "embeddings").is_dir()
    monkeypatch.delenv("SAE_STEER_CACHE")
    assert cache_root().name == "sae_steer_retriever"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAE_STEER_CACHE", str(tmp_path / "file"))
    with pytest.raises(ArtifactError, match="SAE_STEER_CACHE names another folder"):
        CachedEmbedder(ToyEmbedder())
