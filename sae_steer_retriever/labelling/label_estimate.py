"""What labels by a language model will cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from sae_steer_retriever.labelling.label_cache import LabelCache
from sae_steer_retriever.labelling.label_prompt import LabelPrompt

# The usual rule of thumb for byte-pair vocabularies, in UTF-8 bytes, and a line of five keywords with some room.
_BYTES_PER_TOKEN, _TOKENS_PER_REPLY = 4, 24


class Price(NamedTuple):
    """What a model costs.

    Attributes:
        prompts: Of a million tokens that are read.
        replies: Of a million tokens that are written.
    """

    prompts: float
    replies: float


class Estimate(NamedTuple):
    """What labels will cost, by rule of thumb: four bytes of UTF-8 a token, 24 tokens a reply.

    A reply that is refused is asked for once more, so it may be up to twice as much; a model that thinks before it
    answers writes far more.

    Attributes:
        features: How many features are to be labelled.
        calls: Prompts that have no reply yet.
        tokens_in: What they hold.
        tokens_out: What their replies will hold.
        price: In the unit of the price that was given; None if none was.
    """

    features: int
    calls: int
    tokens_in: int
    tokens_out: int
    price: float | None = None

    def __str__(self) -> str:
        """One line for a person."""
        known = f" ({self.features - self.calls} of {self.features} need none)" if self.calls < self.features else ""
        line = f"{self.calls} prompts{known}, about {self.tokens_in:,} tokens to read and {self.tokens_out:,} to write"
        return line if self.price is None else f"{line}: about {self.price:.2f}, at most {2 * self.price:.2f}"


def estimate_labels(
    prompts: Mapping[int, LabelPrompt], model: str, cache: LabelCache | None = None, price: Price | None = None
) -> Estimate:
    """What it will cost to have the prompts answered.

    Args:
        prompts: By feature id.
        model: The model's name.
        cache: Replies that need not be asked for.
        price: Of the model's tokens.
    """
    texts = {prompt.hash: prompt.text for prompt in prompts.values()}
    asked = [text for key, text in texts.items() if cache is None or cache.get(model, key) is None]
    tokens_in = sum(-(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN) for text in asked)
    tokens_out = _TOKENS_PER_REPLY * len(asked)
    cost = None if price is None else (tokens_in * price.prompts + tokens_out * price.replies) / 1e6
    return Estimate(len(prompts), len(asked), tokens_in, tokens_out, cost)
