"""Which words carry a feature in the collection: marked in its passages, and gathered in a trie."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sae_steer_retriever.explorer.feature_passages import feature_passages
from sae_steer_retriever.explorer.page_data import SHOWN
from sae_steer_retriever.labelling.neuron2graph import PASSAGES, grow_tries
from sae_steer_retriever.labelling.word_attribution import word_reader

if TYPE_CHECKING:
    from sae_steer_retriever.labelling.word_attribution import WordReader
    from sae_steer_retriever.retriever import SteeredRetriever

# Of a passage: encoders read no more of it.
_READ_CHARACTERS = 4000


class WordAttribution:
    """Reads words with the SAE's encoder, one question at a time: each takes several passes of the model."""

    def __init__(self, retriever: SteeredRetriever) -> None:
        """Take the parts; nothing is read before it is asked for.

        Args:
            retriever: Encoder, SAE and collection.
        """
        self._retriever = retriever
        self._reader: WordReader | None = None
        self._reading = threading.Lock()

    def marked(self, feature: int, passages: Sequence[str]) -> dict[str, Any]:
        """Each word's share of the feature's match, as far as lists show their passages.

        Args:
            feature: The feature's id.
            passages: Ids; those that are gone are left out.

        Raises:
            UnknownFeatureError: There is no such feature.
        """
        latent = self._retriever.catalog[feature].id
        texts = self._texts(passages)
        with self._reading:
            found = self._made().read(list(texts.values()), [[latent]] * len(texts)) if texts else []
        marked = {}
        for name, words in zip(texts, found, strict=True):
            shown = [place for place, (_, end) in enumerate(words.spans) if end <= SHOWN]
            marked[name] = {
                "spans": [words.spans[place] for place in shown],
                "values": [float(words.values[place, 0]) for place in shown],
                "match": float(words.match[0]),
            }
        return marked

    def trie(self, feature: int) -> dict[str, Any]:
        """The trie of the collection's strongest passages (`interpret.n2g`), as text.

        Args:
            feature: The feature's id.

        Raises:
            UnknownFeatureError: There is no such feature.
        """
        latent = self._retriever.catalog[feature].id
        top = feature_passages(self._retriever.store, latent, top=PASSAGES).top
        texts = list(self._texts([example.id for example in top]).values())
        rows = {latent: range(len(texts))}
        with self._reading:
            retriever = self._retriever
            grown = grow_tries(texts, rows, retriever.embedder, retriever.sae, reader=self._made())[latent]
        return {"text": grown.to_text().strip("\n"), "passages": len(texts)}

    def _texts(self, passages: Sequence[str]) -> dict[str, str]:
        records = self._retriever.store.find(list(dict.fromkeys(passages)), vectors=False)
        return {name: records[name].text[:_READ_CHARACTERS] for name in passages if name in records}

    def _made(self) -> WordReader:
        if self._reader is None:
            self._reader = word_reader(self._retriever.embedder, self._retriever.sae)
        return self._reader


__all__ = ["WordAttribution"]
