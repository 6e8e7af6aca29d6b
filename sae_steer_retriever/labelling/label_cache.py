"""The replies of language models on disk: what was asked once is not asked, nor paid for, again."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from sae_steer_retriever.encoders.cache_root import cache_root
from sae_steer_retriever.errors import ArtifactError


def default_label_cache() -> Path:
    """The file of replies that all SAEs share; it holds no passages."""
    return cache_root() / "labels" / "replies.jsonl"


class LabelCache:
    """Replies by model and prompt, in an append-only file of JSON Lines.

    A killed run leaves at most one line cut short, which the next one passes over; every reply before it counts. The
    first reply to a prompt stays its reply, so labels that are made again are the same. Processes may share the file.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Args:
            path: The file; made with its folder when the first reply is kept.

        Raises:
            ArtifactError: The file cannot be read.
        """
        self._path = path
        self._replies: dict[tuple[str, str], str] = {}
        self._writing = threading.Lock()
        if not path.exists():
            return
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"cannot read {path}: {error.strerror or error}.") from error
        for line in content.split(b"\n"):
            self._read(line)

    def __len__(self) -> int:
        """How many replies are known."""
        return len(self._replies)

    def get(self, model: str, prompt: str) -> str | None:
        """The reply of a model to a prompt, if it is known.

        Args:
            model: The model's name.
            prompt: `prompt_hash` of the prompt.
        """
        return self._replies.get((model, prompt))

    def keep(self, model: str, replies: Mapping[str, str]) -> None:
        """Remember replies; of a prompt that has one already the first one stays.

        Args:
            model: The model's name.
            replies: By `prompt_hash` of the prompt.

        Raises:
            ArtifactError: The file cannot be written.
        """
        with self._writing:
            new = {prompt: reply for prompt, reply in replies.items() if (model, prompt) not in self._replies}
            if not new:
                return
            # ASCII alone, so that a line that is cut short is never cut within a character.
            rows = [{"model": model, "prompt": prompt, "reply": reply} for prompt, reply in new.items()]
            lines = "".join(json.dumps(row) + "\n" for row in rows).encode("ascii")
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{self._path}.lock"), self._path.open("a+b") as stream:
                    stream.write(lines if _ends_a_line(self._path) else b"\n" + lines)
            except OSError as error:
                raise ArtifactError(
                    f"cannot keep the replies of {model} in {self._path}: {error.strerror or error}."
                ) from error
            self._replies.update({(model, prompt): reply for prompt, reply in new.items()})

    def _read(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            key, reply = (row["model"], row["prompt"]), row["reply"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return  # empty, or cut short by a kill
        if all(isinstance(part, str) for part in (*key, reply)):
            self._replies.setdefault(key, reply)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        if not size:
            return True
        stream.seek(size - 1)
        return stream.read(1) == b"\n"
