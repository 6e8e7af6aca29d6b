"""LangChain documents on their way into the store, hits on their way out as documents, and the stamp on a trace."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from langchain_core.documents import Document

from sae_steer_retriever.explain.hits import Hit
from sae_steer_retriever.integrations.explanation import EXPLANATION_KEY, explanation
from sae_steer_retriever.steering.policy import Steering

SCORE_KEY = "relevance_score"
# LlamaIndex keeps a node beside its text under these keys; they mean nothing in LangChain.
_NODE_MARK = "_node_content"
_NODE_KEYS = frozenset({_NODE_MARK, "_node_type", "document_id", "doc_id", "ref_doc_id"})


def document_of(hit: Hit, steering: Steering) -> Document:
    """A hit as a new document; with an attribution, its metadata say why it was found, in plain Python types."""
    metadata = hit.metadata
    if _NODE_MARK in metadata:
        metadata = {key: value for key, value in metadata.items() if key not in _NODE_KEYS}
    if hit.attribution is not None:
        reasons = explanation(steering, hit.base_rank, hit.base_score, hit.attribution)
        metadata = {**metadata, SCORE_KEY: hit.score, EXPLANATION_KEY: reasons}
    return Document(id=hit.id, page_content=hit.text, metadata=metadata)


def ids_of(documents: Sequence[Document]) -> list[str]:
    """The documents' own ids; where there is none, a digest of the text, so that adding it again changes nothing."""
    seen: Counter[str] = Counter()
    ids = []
    for document in documents:
        if document.id is not None:
            ids.append(document.id)
            continue
        text = document.page_content
        # The same text may stand in several documents, with other metadata: the second has an id of its own.
        salt = seen[text].to_bytes(8, "little")
        seen[text] += 1
        ids.append(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, salt=salt).hexdigest())
    return ids


def metadata_of(document: Document) -> dict[str, Any]:
    """A document's metadata without empty lists, which Chroma refuses and document loaders like to leave."""
    return {key: value for key, value in document.metadata.items() if not (isinstance(value, list) and not value)}


def requested(steer: Any) -> Any:  # noqa: ANN401 - user input, checked later
    """A steering as it was asked for, in types every tracer can write."""
    if isinstance(steer, Steering):
        return {edit.name: edit.strength if edit.op == "add" else edit.op for edit in steer.edits}
    if isinstance(steer, Mapping):
        return {str(name): float(value) if isinstance(value, Real) else repr(value) for name, value in steer.items()}
    return {} if steer is None else repr(steer)
