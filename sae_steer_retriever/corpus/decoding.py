"""From the bytes of a file to text: byte order marks, UTF-8, older encodings, and the refusal of binary files."""

from __future__ import annotations

import re
from pathlib import Path

from sae_steer_retriever.errors import CorpusError

_BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


class UnreadableFileError(CorpusError):
    """One file gives no text. In a folder the file is skipped and the message is the reason."""


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file.

    Raises:
        UnreadableFileError: It cannot be opened.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableFileError(f"it cannot be opened: {error.strerror or error}") from error


def decode_text(data: bytes, *, declared_in_html: bool = False) -> tuple[str, str]:
    """Returns the text of a file, and a note if its encoding was guessed ("" if not).

    The text is decoded by its byte order mark, else as UTF-8, else, if `declared_in_html`, by a `charset=` near the
    beginning, else as cp1252 or latin-1.

    Raises:
        UnreadableFileError: The content is binary: it has NUL bytes and is neither UTF-16 nor UTF-32.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            try:
                return clean_text(data.decode(encoding)), ""
            except UnicodeDecodeError as error:
                if encoding != "utf-8-sig":
                    raise UnreadableFileError(
                        f"it begins with a byte order mark of {encoding}, but is not: {error.reason}"
                    ) from error
    if b"\0" in data:
        raise UnreadableFileError("it is a binary file (it contains NUL bytes)")
    try:
        return clean_text(data.decode("utf-8")), ""
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 (byte 0x{data[error.start]:02x} at offset {error.start})"
    declared = re.search(rb"charset=[\"']?([\w.:-]+)", data[:4096], re.IGNORECASE) if declared_in_html else None
    for encoding in (declared[1].decode("ascii", "replace") if declared else "cp1252", "cp1252", "latin-1"):
        try:
            text = data.decode(encoding)
            break
        except (UnicodeDecodeError, LookupError):  # never with latin-1
            continue
    return clean_text(text), f"read as {encoding}: {reason}"


def clean_text(text: str) -> str:
    """Returns a text that every tokenizer and store accepts: plain newlines, no NUL, no lone surrogates."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text
