"""Word attribution in the collection: how much each word of a passage activates a feature, and a trie of words."""

from __future__ import annotations

import functools
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

# Characters of a passage: encoders read no more.
_READ_CHARACTERS = 4000


class WordAttribution:
    """Attributes features to words with the SAE's encoder, one request at a time: each runs the model several times."""

    def __init__(self, retriever: SteeredRetriever) -> None:
        self._retriever = retriever
        self._reading = threading.Lock()

    def marked(self, feature: int, passages: Sequence[str]) -> dict[str, Any]:
        """Returns each word's share of the feature's match, for the part of a passage that lists show.

        Deleted passages are left out.

        Raises:
            UnknownFeatureError: No feature has this id.
        """
        latent = self._retriever.catalog[feature].id
        texts = self._texts(passages)
        with self._reading:
            found = self._reader.read(list(texts.values()), [[latent]] * len(texts)) if texts else []
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
        """Returns the Neuron2Graph trie of the collection's strongest passages, as text.

        Raises:
            UnknownFeatureError: No feature has this id.
        """
        latent = self._retriever.catalog[feature].id
        top = feature_passages(self._retriever.store, latent, top=PASSAGES).top
        texts = list(self._texts([example.id for example in top]).values())
        retriever, rows = self._retriever, {latent: range(len(texts))}
        with self._reading:
            grown = grow_tries(texts, rows, retriever.embedder, retriever.sae, reader=self._reader)[latent]
        return {"text": grown.to_text().strip("\n"), "passages": len(texts)}

    def _texts(self, passages: Sequence[str]) -> dict[str, str]:
        records = self._retriever.store.find(list(dict.fromkeys(passages)), vectors=False)
        return {name: records[name].text[:_READ_CHARACTERS] for name in passages if name in records}

    @functools.cached_property
    def _reader(self) -> WordReader:
        return word_reader(self._retriever.embedder, self._retriever.sae)
