"""The replies of language models on disk: no prompt is asked, or paid for, twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from sae_steer_retriever.encoders.cache_root import cache_root
from sae_steer_retriever.errors import ArtifactError


def default_label_cache() -> Path:
    """The file of replies that all SAEs share; it contains no passages."""
    return cache_root() / "labels" / "replies.jsonl"


class LabelCache:
    """Replies by model and prompt, in an append-only file of JSON Lines.

    A killed run leaves at most one incomplete line, which the next run skips. The first reply to a prompt stays, so
    labelling again gives the same labels. Processes may share the file.
    """

    def __init__(self, path: Path) -> None:
        """Read the replies in the file at `path`, which is made with its folder when the first reply is kept.

        Raises:
            ArtifactError: The file cannot be read.
        """
        self._path = path
        self._replies: dict[tuple[str, str], str] = {}
        self._writing = threading.Lock()
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise ArtifactError(f"cannot read {path}: {error.strerror or error}.") from error
        for line in content.split(b"\n"):
            self._read(line)

    def __len__(self) -> int:
        """Number of replies."""
        return len(self._replies)

    def get(self, model: str, prompt: str) -> str | None:
        """The reply of the model with a name to the prompt with a hash (`LabelPrompt.hash`), if it is known."""
        return self._replies.get((model, prompt))

    def keep(self, model: str, replies: Mapping[str, str]) -> None:
        """Add a model's replies, by `LabelPrompt.hash`; a prompt that has a reply keeps it.

        Raises:
            ArtifactError: The file cannot be written.
        """
        with self._writing:
            new = {prompt: reply for prompt, reply in replies.items() if (model, prompt) not in self._replies}
            if not new:
                return
            # ASCII alone, so that an incomplete line never ends within a character.
            rows = [{"model": model, "prompt": prompt, "reply": reply} for prompt, reply in new.items()]
            lines = "".join(json.dumps(row) + "\n" for row in rows).encode("ascii")
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{self._path}.lock"), self._path.open("a+b") as stream:
                    stream.write(lines if _ends_a_line(self._path) else b"\n" + lines)
            except OSError as error:
                problem = f"cannot keep the replies of {model} in {self._path}"
                raise ArtifactError(f"{problem}: {error.strerror or error}.") from error
            self._replies.update({(model, prompt): reply for prompt, reply in new.items()})

    def _read(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            key, reply = (row["model"], row["prompt"]), row["reply"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return  # empty or incomplete
        if all(isinstance(part, str) for part in (*key, reply)):
            self._replies.setdefault(key, reply)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(size - 1, 0))
        return stream.read(1) in (b"", b"\n")
