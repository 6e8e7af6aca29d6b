"""A trie of the words that carry a feature: read from the peak backwards, as Neuron2Graph reads a neuron's tokens."""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.features.names import stem
from sae_steer_retriever.labelling.token_attribution import word_spans

DEPTH = 8
"""Words of the longest path; a longer window is cut to its last words."""
_WORD_LENGTH = 40
_APOSTROPHE = str.maketrans("\N{RIGHT SINGLE QUOTATION MARK}", "'")


class Window(NamedTuple):
    """Words in a row that carry a feature on their own.

    Attributes:
        words: In the order of the text; the last one is the peak.
        activation: The feature's match with them.
    """

    words: tuple[str, ...]
    activation: float


class TrieScore(NamedTuple):
    """How well a trie tells which texts have its feature.

    Attributes:
        precision: Share of the texts that it matches that have the feature; NaN where it matches none.
        recall: Share of the texts with the feature that it matches; NaN where there are none.
    """

    precision: float
    recall: float


@dataclasses.dataclass(frozen=True)
class TrieNode:
    """A word, and what may stand before it.

    Attributes:
        word: In small letters, as it is written most often.
        activation: The strongest match of the windows that pass here.
        count: How many windows do.
        end: Whether one of them begins here, so that nothing more need stand before it.
        children: The words before it, strongest first.
    """

    word: str
    activation: float
    count: int
    end: bool
    children: tuple[TrieNode, ...] = ()


@dataclasses.dataclass(frozen=True)
class Trie:
    """The words that carry a feature.

    Words are compared without case, plural and possessive; a compound such as "virus-infected" is also its parts.

    Attributes:
        roots: The peaks, the strongest first.
    """

    roots: tuple[TrieNode, ...] = ()

    @classmethod
    def build(cls, windows: Iterable[Window]) -> Trie:
        """Put windows into a trie.

        Args:
            windows: In any order; those whose activation is not above zero are left out. Words are cut after 40
                characters, windows before their last 8 words, and what cannot be printed is left out of a word.
        """
        paths = []
        for window in windows:
            words = [clean for clean in map(clean_word, window.words) if clean]
            # Six digits are enough to read, and are the same again after JSON.
            activation = float(f"{window.activation:.6g}")
            if words and 0 < activation < math.inf:
                paths.append((tuple(reversed(words))[:DEPTH], activation))
        return cls(_grow(paths))

    def __len__(self) -> int:
        """Number of nodes."""
        return sum(1 for _ in self.nodes())

    def nodes(self) -> Iterator[tuple[tuple[str, ...], TrieNode]]:
        """All nodes, depth first, each with its words in the order of a text."""
        yield from walk(self.roots, ())

    def matches(self, words: Sequence[str]) -> bool:
        """Whether one of the trie's windows stands in a text.

        Args:
            words: The text's, in order.
        """
        return self._strongest(words) is not None

    def strength(self, text: str) -> float:
        """The activation of the strongest window that stands in a text; 0 where none does."""
        found = self._strongest([text[start:end] for start, end in word_spans(text)])
        return 0.0 if found is None else found

    def words(self, limit: int | None = None) -> tuple[str, ...]:
        """The words and phrases that carry the feature, the heaviest first: activation times the windows that end so.

        A phrase whose own last words carry it alone is not among them.

        Args:
            limit: How many at most.
        """
        found = sorted(_shortest(self.roots, ()), key=lambda one: (-one[1], one[0]))
        return tuple(words for words, _ in found[:limit])

    def to_json(self) -> dict[str, Any]:
        """A JSON object: `{"nodes": [{"word", "activation", "count", "end", "before": [...]}]}`."""
        return {"nodes": [_node_to_json(node) for node in self.roots]}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Trie:
        """Read what `to_json` gave.

        Raises:
            ArtifactError: It is something else, or deeper than a trie can be.
        """
        try:
            return cls(tuple(_node_from_json(row, 1) for row in body["nodes"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ArtifactError(f"this is no trie of this library ({error!r}): label the SAE again.") from error

    def to_text(self) -> str:
        """An indented tree: a peak at the margin, what stands before it below, "*" where nothing more is needed."""
        lines = []
        for words, node in self.nodes():
            mark = " *" if node.end else ""
            lines.append(f"{'  ' * (len(words) - 1)}{node.word}{mark}  {node.activation:.2f} in {node.count}")
        return "\n".join(lines)

    def _strongest(self, words: Sequence[str]) -> float | None:
        keys = [_keys(word) for word in words]
        by_key = {word_key(node.word): node for node in self.roots}
        best: float | None = None
        for place in range(len(keys)):
            for key in keys[place]:
                if key in by_key:
                    found = _strongest_before(by_key[key], keys, place)
                    if found is not None and (best is None or found > best):
                        best = found
        return best


def detection(trie: Trie, texts_with: Sequence[str], texts_without: Sequence[str]) -> TrieScore:
    """How well a trie detects its feature in texts that it was not made of.

    Args:
        trie: The trie.
        texts_with: Texts that have the feature.
        texts_without: Texts that do not; precision is that among as many as there are here.
    """
    hits = sum(trie.matches(_words(text)) for text in texts_with)
    mistakes = sum(trie.matches(_words(text)) for text in texts_without)
    precision = hits / (hits + mistakes) if hits + mistakes else math.nan
    return TrieScore(precision, hits / len(texts_with) if texts_with else math.nan)


def clean_word(word: str) -> str:
    """A word as a trie keeps it: small letters, without what cannot be printed, at most 40 characters."""
    kept = (letter for letter in word[: 4 * _WORD_LENGTH] if not unicodedata.category(letter).startswith("C"))
    return " ".join("".join(kept).translate(_APOSTROPHE).casefold().split())[:_WORD_LENGTH].strip()


def word_key(word: str) -> str:
    """By what words are compared: without case, plural and possessive."""
    clean = clean_word(word)
    return stem(clean.removesuffix("'s")) or clean


def _words(text: str) -> list[str]:
    return [text[start:end] for start, end in word_spans(text)]


def _keys(word: str) -> set[str]:
    parts = word.split("-")
    return {key for key in map(word_key, [word, *parts] if len(parts) > 1 else [word]) if key}


def _grow(paths: Sequence[tuple[tuple[str, ...], float]]) -> tuple[TrieNode, ...]:
    groups: dict[str, list[tuple[tuple[str, ...], float]]] = {}
    for words, activation in paths:
        groups.setdefault(word_key(words[0]), []).append((words, activation))
    nodes = []
    for group in groups.values():
        written = Counter(words[0] for words, _ in group)
        nodes.append(
            TrieNode(
                word=min(written, key=lambda word: (-written[word], word)),
                activation=max(activation for _, activation in group),
                count=len(group),
                end=any(len(words) == 1 for words, _ in group),
                children=_grow([(words[1:], activation) for words, activation in group if len(words) > 1]),
            )
        )
    return tuple(sorted(nodes, key=lambda node: (-node.activation, node.word)))


def walk(nodes: Sequence[TrieNode], after: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], TrieNode]]:
    """Nodes and all that stand before them, each with its words in the order of the text.

    Args:
        nodes: Roots, or the children of a node.
        after: The words that follow them.
    """
    for node in nodes:
        words = (node.word, *after)
        yield words, node
        yield from walk(node.children, words)


def _shortest(nodes: Sequence[TrieNode], after: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    for node in nodes:
        words = (node.word, *after)
        if node.end:
            yield " ".join(words), node.activation * node.count
        else:
            yield from _shortest(node.children, words)


def _strongest_before(node: TrieNode, keys: Sequence[set[str]], place: int) -> float | None:
    best = node.activation if node.end else None
    for child in node.children:
        if place > 0 and word_key(child.word) in keys[place - 1]:
            found = _strongest_before(child, keys, place - 1)
            if found is not None and (best is None or found > best):
                best = found
    return best


def _node_to_json(node: TrieNode) -> dict[str, Any]:
    row: dict[str, Any] = {"word": node.word, "activation": node.activation, "count": node.count}
    row["end"] = node.end
    if node.children:
        row["before"] = [_node_to_json(child) for child in node.children]
    return row


def _node_from_json(row: Mapping[str, Any], depth: int) -> TrieNode:
    if depth > DEPTH:
        raise ValueError(f"it is deeper than {DEPTH} words")
    word, activation, count, end = row["word"], float(row["activation"]), int(row["count"]), row["end"]
    if not (isinstance(word, str) and clean_word(word) and 0 < activation < math.inf and isinstance(end, bool)):
        raise ValueError("a node without a word, an activation or an end")
    children = tuple(_node_from_json(child, depth + 1) for child in row.get("before", ()))
    return TrieNode(clean_word(word), activation, count, end, children)


__all__ = ["DEPTH", "Trie", "TrieNode", "TrieScore", "Window", "clean_word", "detection", "walk", "word_key"]
