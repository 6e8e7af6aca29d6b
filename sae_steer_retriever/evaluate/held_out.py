"""Query-like texts of a corpus that an SAE's training has not used."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from sae_steer_retriever.corpus.passage import Passage
from sae_steer_retriever.corpus.query_texts import QueryText, query_texts
from sae_steer_retriever.errors import ArtifactError, CorpusError

PseudoQuery = QueryText
"""A title or sentence that stands in for a query, and the position of its passage."""

# More titles and sentences than any passage has.
_ALL = 1_000_000


def held_out_queries(passages: Sequence[Passage], training: Mapping[str, Any], limit: int = 500) -> list[PseudoQuery]:
    """Titles and sentences of passages that the training of an SAE on these passages has not drawn.

    What was drawn follows from the recorded `seed` and `sentences`, as long as the passages are read as they were
    then. The passages themselves were fitted, so these are unseen texts, not unseen content.

    Args:
        passages: The corpus.
        training: `sae.config.training`; without a record of `sentences` no text counts as used.
        limit: Most texts; a seeded sample of them is taken when there are more.

    Returns:
        The texts, in the order of their passages; the same for the same corpus and record.

    Raises:
        ArtifactError: The record holds a seed or a number of sentences that training cannot have written.
        CorpusError: Training used every title and sentence, or there is none.
    """
    seed, used_of_passage = recorded(training, "seed"), recorded(training, "sentences")
    used = query_texts(passages, seed=seed, per_passage=used_of_passage) if used_of_passage else []
    # As in `query_texts`, letter case and spacing make no other text.
    known = {_normalised(query.text) for query in used}
    texts = query_texts(passages, per_passage=_ALL)
    if not texts:
        raise CorpusError(
            f"none of the {len(passages)} passages has a title, or a sentence long enough to stand in for a query: "
            "evaluate on a judged set (--dataset)"
        )
    unused = [query for query in texts if _normalised(query.text) not in known]
    if not unused:
        raise CorpusError(
            f"no sentence of these {len(passages)} passages is left to measure with: training drew all {len(used)} "
            f"(at most {used_of_passage} of each passage), if it was fitted to them; train with fewer --sentences, or "
            "evaluate on a judged set (--dataset)"
        )
    if len(unused) <= limit:
        return unused
    chosen = random.Random(seed).sample(range(len(unused)), max(limit, 0))
    return [unused[position] for position in sorted(chosen)]


def recorded(training: Mapping[str, Any], name: str, default: int = 0) -> int:
    """A whole number that the training of an SAE has recorded.

    Args:
        training: `sae.config.training`.
        name: Of the setting.
        default: What it counts as where there is no record of it.

    Raises:
        ArtifactError: The record holds something else, which training cannot have written.
    """
    value = training.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ArtifactError(
            f"the SAE's config records {name} = {value!r} of its training, expected a whole number of at least 0: "
            "it was altered; train again"
        )
    return value


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())
