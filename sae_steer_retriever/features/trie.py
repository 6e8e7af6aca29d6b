"""A trie of the words that carry a feature, read backwards from the strongest word (Neuron2Graph)."""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sae_steer_retriever.errors import ArtifactError
from sae_steer_retriever.features.names import stem

Span = tuple[int, int]

DEPTH = 8
"""Words of the longest path; a longer window is cut to its last words."""
# Letters and digits; hyphens, apostrophes, points and underscores join them to one word: COVID-19, IL-1.5.
_WORD = re.compile(r"[^\W_]+(?:[-_.'\N{RIGHT SINGLE QUOTATION MARK}][^\W_]+)*")
_WORD_LENGTH = 40
_APOSTROPHE = str.maketrans("\N{RIGHT SINGLE QUOTATION MARK}", "'")


class Window(NamedTuple):
    """Adjacent words that carry a feature when they are embedded alone, and their match with the feature.

    The last one is the peak, the word with the largest share of the match.
    """

    words: tuple[str, ...]
    activation: float


class TrieScore(NamedTuple):
    """How well a trie detects its feature in texts.

    Attributes:
        precision: Of the texts that the trie matches, the share that have the feature; NaN where it matches none.
        recall: Of the texts that have the feature, the share that the trie matches; NaN where there are none.
    """

    precision: float
    recall: float


@dataclasses.dataclass(frozen=True)
class TrieNode:
    """A word, and the words that may stand before it.

    Attributes:
        word: Its most frequent spelling, in small letters.
        activation: The strongest match of the windows that contain this path.
        count: Number of these windows.
        end: Whether one of them begins here, so that no word need stand before it.
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
        """Returns the trie of some windows.

        Args:
            windows: In any order; those with an activation of zero or less are left out. A window keeps its last 8
                words, a word its first 40 printable characters.

        Example:
            >>> trie = Trie.build([Window(("open", "file"), 0.4), Window(("closed", "files"), 0.2)])
            >>> print(trie.to_text())
            file  0.40 in 2
              open *  0.40 in 1
              closed *  0.20 in 1
            >>> trie.matches(["Open", "Files"])
            True
        """
        paths = []
        for window in windows:
            words = [clean for clean in map(clean_word, window.words) if clean]
            # Six digits survive a round trip through JSON.
            activation = float(f"{window.activation:.6g}")
            if words and 0 < activation < math.inf:
                paths.append((tuple(reversed(words))[:DEPTH], activation))
        return cls(_grow(paths))

    def __len__(self) -> int:
        """Number of nodes."""
        return len(list(self.nodes()))

    def nodes(self) -> Iterator[tuple[tuple[str, ...], TrieNode]]:
        """All nodes, depth first, each with its words in the order of the text."""
        return walk(self.roots)

    def matches(self, words: Sequence[str]) -> bool:
        """Whether the words of a text, in order, contain one of the trie's windows."""
        return self._strongest(words) is not None

    def strength(self, text: str) -> float:
        """The activation of the strongest window in a text; 0 where the text has none."""
        return self._strongest(_words(text)) or 0.0

    def words(self, limit: int | None = None) -> tuple[str, ...]:
        """Returns the words and phrases that carry the feature, by activation times number of windows, largest first.

        A phrase is left out where its last words carry the feature alone.
        """
        found = sorted(_shortest(self.roots), key=lambda one: (-one[1], one[0]))
        return tuple(words for words, _ in found[:limit])

    def to_json(self) -> dict[str, Any]:
        """A JSON object: `{"nodes": [{"word", "activation", "count", "end", "before": [...]}]}`."""
        return {"nodes": [_node_to_json(node) for node in self.roots]}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Trie:
        """Returns the trie that `to_json` wrote.

        Raises:
            ArtifactError: The object is no trie, or deeper than a trie can be.
        """
        try:
            return cls(tuple(_node_from_json(row, 1) for row in body["nodes"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ArtifactError(f"this is no trie of this library ({error!r}): label the SAE again.") from error

    def to_text(self) -> str:
        """An indented tree: a peak at the margin, the words before it below, "*" where no further word is needed."""
        return "\n".join(
            f"{'  ' * (len(words) - 1)}{node.word}{' *' if node.end else ''}  {node.activation:.2f} in {node.count}"
            for words, node in self.nodes()
        )

    def _strongest(self, words: Sequence[str]) -> float | None:
        keys = [_keys(word) for word in words]
        by_key = {word_key(node.word): node for node in self.roots}
        peaks = ((by_key[key], place) for place, own in enumerate(keys) for key in own & by_key.keys())
        return max((activation for node, place in peaks for activation in _ending(node, keys, place)), default=None)


def detection(trie: Trie, texts_with: Sequence[str], texts_without: Sequence[str]) -> TrieScore:
    """How well a trie detects its feature in texts with it and texts without it that it was not made of."""
    hits = sum(trie.matches(_words(text)) for text in texts_with)
    mistakes = sum(trie.matches(_words(text)) for text in texts_without)
    precision = hits / (hits + mistakes) if hits + mistakes else math.nan
    return TrieScore(precision, hits / len(texts_with) if texts_with else math.nan)


def word_spans(text: str) -> list[Span]:
    """(start, end) of each word of a text, in characters."""
    return [match.span() for match in _WORD.finditer(text)]


def clean_word(word: str) -> str:
    """A word as a trie keeps it: small letters, printable, at most 40 characters."""
    kept = (letter for letter in word[: 4 * _WORD_LENGTH] if not unicodedata.category(letter).startswith("C"))
    return " ".join("".join(kept).translate(_APOSTROPHE).casefold().split())[:_WORD_LENGTH].strip()


def word_key(word: str) -> str:
    """The key by which words are compared: without case, plural and possessive."""
    clean = clean_word(word)
    return stem(clean.removesuffix("'s")) or clean


def _words(text: str) -> list[str]:
    return [text[start:end] for start, end in word_spans(text)]


def _keys(word: str) -> set[str]:
    return {key for key in map(word_key, {word, *word.split("-")}) if key}


def _grow(paths: Sequence[tuple[tuple[str, ...], float]]) -> tuple[TrieNode, ...]:
    groups: dict[str, list[tuple[tuple[str, ...], float]]] = {}
    for words, activation in paths:
        groups.setdefault(word_key(words[0]), []).append((words, activation))
    nodes = []
    for group in groups.values():
        written = Counter(words[0] for words, _ in group)
        word = min(written, key=lambda word: (-written[word], word))
        activation = max(activation for _, activation in group)
        is_end = any(len(words) == 1 for words, _ in group)
        children = _grow([(words[1:], activation) for words, activation in group if len(words) > 1])
        nodes.append(TrieNode(word, activation, len(group), is_end, children))
    return tuple(sorted(nodes, key=lambda node: (-node.activation, node.word)))


def walk(nodes: Sequence[TrieNode], after: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], TrieNode]]:
    """Nodes and their descendants, depth first, each with its words in the order of the text, before `after`."""
    for node in nodes:
        words = (node.word, *after)
        yield words, node
        yield from walk(node.children, words)


def _shortest(nodes: Sequence[TrieNode], after: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    for node in nodes:
        words = (node.word, *after)
        if node.end:
            yield " ".join(words), node.activation * node.count
        else:
            yield from _shortest(node.children, words)


def _ending(node: TrieNode, keys: Sequence[set[str]], place: int) -> Iterator[float]:
    """Activations of the windows below a node that end with the word at a place of a text."""
    if node.end:
        yield node.activation
    for child in node.children:
        if place > 0 and word_key(child.word) in keys[place - 1]:
            yield from _ending(child, keys, place - 1)


def _node_to_json(node: TrieNode) -> dict[str, Any]:
    row: dict[str, Any] = {"word": node.word, "activation": node.activation, "count": node.count, "end": node.end}
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
