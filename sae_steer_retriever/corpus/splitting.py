"""Splits a long text into passages, at the ends of paragraphs and sentences if there are any."""

from __future__ import annotations

from collections.abc import Iterator

from sae_steer_retriever.errors import MissingExtraError

_SEPARATORS = [r"\n\s*\n", r"(?<=[.!?…])\s+|(?<=[。！？])", r"\n"]
_BOUNDARIES = (("\n\n",), (". ", "! ", "? ", ".\n", "!\n", "?\n", "。"), ("\n",), (" ", "\t"))
_ENDS_OF_PARTS = ("\n", ". ", "! ", "? ", "… ", "。", "！", "？")
_SHORTEST_PART = 16
_PASSAGES_PER_BLOCK = 50


def split_text(text: str, size: int, overlap: int = 0) -> list[str]:
    """Returns pieces of at most `size` characters that together hold all non-space characters of a text.

    `langchain_text_splitters.RecursiveCharacterTextSplitter` does the work within bounds, because its time grows with
    the square of `size` if the parts that it merges are very short (words, one-letter lines). A very long text is cut
    into blocks first. Blocks of very short parts, and text without paragraphs, sentences or lines, are cut here in
    linear time. A piece repeats `overlap` characters of the one before, as far as the boundaries allow.

    Raises:
        MissingExtraError: The text is longer than `size` and the extra `langchain` is not installed.
    """
    text = text.strip()
    if len(text) <= size:
        return [text] if text else []
    try:
        from langchain_text_splitters import RecursiveCharacterTextSplitter
    except ImportError as error:
        raise MissingExtraError("splitting long texts", "langchain") from error
    overlap = min(overlap, size // 2 - 1)
    splitter = RecursiveCharacterTextSplitter(
        separators=_SEPARATORS, is_separator_regex=True, keep_separator="end", chunk_size=size, chunk_overlap=overlap
    )
    return [
        stripped
        for block in _cut(text, size * _PASSAGES_PER_BLOCK, overlap)
        for piece in ([block] if _has_tiny_parts(block) else splitter.split_text(block))
        for part in _cut(piece, size, overlap)
        if (stripped := part.strip())
    ]


def _has_tiny_parts(block: str) -> bool:
    return sum(map(block.count, _ENDS_OF_PARTS)) * _SHORTEST_PART > len(block)


def _cut(text: str, size: int, overlap: int) -> Iterator[str]:
    """Cuts at the best boundary in the second half of each window, and at its end if there is none."""
    start = 0
    while len(text) - start > size:
        end = _boundary(text, start + size // 2, start + size)
        yield text[start:end]
        start = end - overlap
    yield text[start:]


def _boundary(text: str, earliest: int, latest: int) -> int:
    for marks in _BOUNDARIES:
        end = max(found + len(mark) if (found := text.rfind(mark, earliest, latest)) >= 0 else -1 for mark in marks)
        if end >= 0:
            return end
    return latest
