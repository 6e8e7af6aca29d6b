"""Language models behind one protocol: LangChain chat models, LlamaIndex LLMs, a function, or a name of either."""

from __future__ import annotations

import importlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from sae_steer_retriever.errors import MissingExtraError, SAESteerError
from sae_steer_retriever.features.feature import BY_KEYWORDS, BY_PERSON

DEFAULT_TIMEOUT = 60.0
"""Seconds that one reply may take."""
DEFAULT_CONCURRENCY = 8
"""Prompts that are sent at once."""

# Providers whose packages the extra `llm` installs.
_PROVIDERS_OF_THE_EXTRA = ("openai", "ollama")
_SHOWN_CHARACTERS = 200


class Failure(NamedTuple):
    """The reason why a prompt had no reply: "timeout" or "error", and the error on one line."""

    reason: Literal["timeout", "error"]
    message: str


@runtime_checkable
class LanguageModel(Protocol):
    """Answers prompts."""

    @property
    def name(self) -> str:
        """The model's name, e.g. "openai:gpt-4o-mini": recorded with every label it writes."""
        ...

    def complete(self, prompts: Sequence[str]) -> list[str | Failure]:
        """One reply or failure for each prompt, in their order; a prompt that fails raises nothing."""
        ...


class FunctionModel:
    """A function from prompt to reply, as a `LanguageModel`.

    Prompts are sent in daemon threads. A late thread is abandoned, so a call that hangs holds up neither the other
    prompts nor the end of the process. (LangChain's `batch` waits for its slowest call, and the threads of its pool
    keep the process from ending.)

    Example:
        >>> model = FunctionModel(lambda prompt: prompt.upper(), name="shout")
        >>> model.complete(["salary, wages"])
        ['SALARY, WAGES']
    """

    def __init__(
        self,
        function: Callable[[str], str],
        *,
        name: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        concurrency: int = DEFAULT_CONCURRENCY,
    ) -> None:
        """Adapt a function that takes a prompt and returns the reply; it is called in several threads.

        The name, by default the function's own, is part of the key of cached replies, so name lambdas. See
        `as_language_model` for the other arguments.

        Raises:
            ValueError: The name is reserved, or a number is out of range.
        """
        self.name = name or f"function:{getattr(function, '__qualname__', type(function).__name__)}"
        if self.name in (BY_KEYWORDS, BY_PERSON):
            raise ValueError(f"a language model cannot be called {self.name!r}: the name marks other labels.")
        if not timeout > 0:
            raise ValueError(f"timeout = {timeout}: expected a number of seconds above 0.")
        if concurrency < 1:
            raise ValueError(f"concurrency = {concurrency}: expected at least 1.")
        self._function, self._timeout, self._concurrency = function, timeout, concurrency

    def complete(self, prompts: Sequence[str]) -> list[str | Failure]:
        """One reply or failure for each prompt, in their order."""
        found: list[str | Failure] = [Failure("timeout", f"no reply within {self._timeout:g} s")] * len(prompts)
        answers: queue.SimpleQueue[tuple[int, str | Failure]] = queue.SimpleQueue()
        waiting, deadlines = deque(range(len(prompts))), dict[int, float]()

        def ask(place: int) -> None:
            answers.put((place, self._outcome(prompts[place])))

        while waiting or deadlines:
            while waiting and len(deadlines) < self._concurrency:
                place = waiting.popleft()
                deadlines[place] = time.monotonic() + self._timeout
                threading.Thread(target=ask, args=(place,), daemon=True, name=f"prompt-{place}").start()
            try:
                place, outcome = answers.get(timeout=max(0.0, min(deadlines.values()) - time.monotonic()))
            except queue.Empty:
                now = time.monotonic()
                deadlines = {place: deadline for place, deadline in deadlines.items() if deadline > now}
            else:
                # A reply after its deadline counts as a timeout.
                if deadlines.pop(place, None) is not None:
                    found[place] = outcome
        return found

    def _outcome(self, prompt: str) -> str | Failure:
        # A provider's client raises errors of its own kinds; each costs one prompt.
        try:
            text = self._function(prompt)
        except Exception as error:
            message = " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN_CHARACTERS]
            late = isinstance(error, TimeoutError) or "timeout" in type(error).__name__.casefold()
            return Failure("timeout" if late else "error", message)
        if not isinstance(text, str):
            return Failure("error", f"returned a {type(text).__name__}, expected a text")
        return text


class LangChainModel(FunctionModel):
    """A LangChain `BaseChatModel`, or another runnable that returns a message or a text, as a `LanguageModel`."""

    def __init__(self, model: Any, *, name: str | None = None, **options: Any) -> None:
        """Adapt an object with `invoke(text)`, named by default by its class and `model_name` or `model`.

        The `options` are those of `FunctionModel`.
        """
        name = name or _name_of(model, "langchain", getattr(model, "model", None))
        super().__init__(lambda prompt: _message_text(model.invoke(prompt)), name=name, **options)


class LlamaIndexModel(FunctionModel):
    """A LlamaIndex `LLM`, as a `LanguageModel`."""

    def __init__(self, llm: Any, *, name: str | None = None, **options: Any) -> None:
        """Adapt an object with `complete(text)`, named by default by its class and `metadata.model_name`.

        The `options` are those of `FunctionModel`.
        """
        name = name or _name_of(llm, "llama_index", getattr(getattr(llm, "metadata", None), "model_name", None))
        super().__init__(lambda prompt: llm.complete(prompt).text, name=name, **options)


def as_language_model(
    source: Any, *, name: str | None = None, timeout: float = DEFAULT_TIMEOUT, concurrency: int = DEFAULT_CONCURRENCY
) -> LanguageModel:
    """Returns a `LanguageModel` for a name, a chat model of a framework, or a function.

    Args:
        source: A `LanguageModel`, a name ("openai:gpt-4o-mini", "ollama:llama3.2", any that LangChain's
            `init_chat_model` knows), a LangChain `BaseChatModel`, a LlamaIndex `LLM`, or a function from prompt to
            reply.
        name: Recorded with the labels; see the adapters for the default. A `LanguageModel` keeps its own.
        timeout: Seconds that one reply may take.
        concurrency: Prompts that are sent at once.

    Raises:
        MissingExtraError: It is a name, and the extra `llm` is not installed.
        SAESteerError: It is a name, and the provider's package or its key is missing.
        TypeError: `source` is none of these.
        ValueError: The name has no provider, or a number is out of range.

    Example:
        >>> as_language_model(lambda prompt: "salary, wages", name="constant").name
        'constant'
    """
    options: dict[str, Any] = {"timeout": timeout, "concurrency": concurrency}
    if isinstance(source, str):
        return LangChainModel(_chat_model(source, timeout), name=name or source.strip(), **options)
    # A LlamaIndex LLM also has `complete`, but no `name` beside it.
    if isinstance(source, LanguageModel) and not hasattr(source, "metadata"):
        return source
    if hasattr(source, "invoke"):
        return LangChainModel(source, name=name, **options)
    if hasattr(source, "complete") and hasattr(source, "metadata"):
        return LlamaIndexModel(source, name=name, **options)
    if callable(source):
        return FunctionModel(source, name=name, **options)
    raise TypeError(
        f"the language model is a {type(source).__name__}: expected a name such as 'openai:gpt-4o-mini', a LangChain "
        "chat model, a LlamaIndex LLM, a function from prompt to reply, or an object with name and complete."
    )


def require_model_name(text: str) -> str:
    """Returns a name of the form "provider:model", without blanks around it.

    Raises:
        ValueError: The name has another form.
    """
    provider, _, model = text.strip().partition(":")
    if not provider or not model:
        raise ValueError(f"{text!r} is no model name: expected provider:model, e.g. openai:gpt-4o-mini.")
    return text.strip()


def _chat_model(text: str, timeout: float) -> Any:
    """LangChain's chat model of that name, at temperature 0."""
    name = require_model_name(text)
    provider = name.partition(":")[0]
    try:
        init_chat_model = importlib.import_module("langchain.chat_models").init_chat_model
    except ModuleNotFoundError as error:
        if error.name not in ("langchain", "langchain.chat_models"):  # it is there, but something it needs is not
            raise
        raise MissingExtraError("a language model by name", "llm") from error
    try:
        return init_chat_model(name, temperature=0, timeout=timeout)
    except ImportError as error:
        if provider in _PROVIDERS_OF_THE_EXTRA:
            raise MissingExtraError(f"the language model {name}", "llm") from error
        raise SAESteerError(f"the language model {name} needs another package: {error}") from error
    # Each provider raises its own errors for a missing key or an unknown setting.
    except Exception as error:
        raise SAESteerError(f"cannot set up the language model {name}: {error}") from error


def _name_of(model: Any, framework: str, attribute: Any) -> str:
    """The model's name as a text: ChatOpenAI(model="gpt-4o-mini") is "openai:gpt-4o-mini"."""
    given = getattr(model, "model_name", None)
    given = given if isinstance(given, str) and given else attribute
    kind = type(model).__name__
    # "unknown" is LlamaIndex' default.
    if isinstance(given, str) and given and given != "unknown":
        return f"{kind.removeprefix('Chat').casefold()}:{given}"
    return f"{framework}:{kind}"


def _message_text(message: Any) -> str:
    """The text of a message, or of its text blocks."""
    content = getattr(message, "content", message)
    if isinstance(content, list):
        parts = [part if isinstance(part, str) else part.get("text", "") for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    return content  # type: ignore[no-any-return]  # `_outcome` refuses other types
