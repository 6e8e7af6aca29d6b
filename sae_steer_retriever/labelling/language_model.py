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
"""Prompts that are under way at once."""

# Those whose packages the extra `llm` holds.
_PROVIDERS_OF_THE_EXTRA = ("openai", "ollama")
_SHOWN_CHARACTERS = 200


class Failure(NamedTuple):
    """That a prompt had no reply.

    Attributes:
        reason: Whether the model took too long, or failed in another way.
        message: What went wrong, on one line.
    """

    reason: Literal["timeout", "error"]
    message: str


@runtime_checkable
class LanguageModel(Protocol):
    """Answers prompts."""

    @property
    def name(self) -> str:
        """Which model this is, e.g. "openai:gpt-4o-mini": recorded with what it writes."""
        ...

    def complete(self, prompts: Sequence[str]) -> list[str | Failure]:
        """One reply or failure for each prompt, in their order. Does not raise because a single prompt failed."""
        ...


class _Threads:
    """Asks a model several prompts at once, each of which may take so long and no longer.

    The threads are daemons, and one that is late is left alone: no thread can be ended from outside, but a call that
    hangs holds up neither the other prompts nor the end of the process, as a thread pool's would.
    """

    def __init__(self, timeout: float, concurrency: int) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout = {timeout}: expected a number of seconds above 0.")
        if concurrency < 1:
            raise ValueError(f"concurrency = {concurrency}: expected at least 1.")
        self._timeout, self._concurrency = timeout, concurrency

    def complete(self, reply: Callable[[str], str], prompts: Sequence[str]) -> list[str | Failure]:
        found: list[str | Failure] = [Failure("timeout", f"no reply within {self._timeout:g} s")] * len(prompts)
        answers: queue.SimpleQueue[tuple[int, str | Failure]] = queue.SimpleQueue()
        waiting, deadlines = deque(range(len(prompts))), dict[int, float]()

        def ask(place: int) -> None:
            answers.put((place, _outcome(reply, prompts[place])))

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
                # A reply that comes after its deadline is a timeout all the same.
                if deadlines.pop(place, None) is not None:
                    found[place] = outcome
        return found


def _outcome(reply: Callable[[str], str], prompt: str) -> str | Failure:
    # Whatever a provider's client raises is about this one prompt, and is handed back as that.
    try:
        text = reply(prompt)
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN_CHARACTERS]
        late = isinstance(error, TimeoutError) or "timeout" in type(error).__name__.casefold()
        return Failure("timeout" if late else "error", message)
    if not isinstance(text, str):
        return Failure("error", f"gave a {type(text).__name__}, expected a text")
    return text


class LangChainModel:
    """A LangChain `BaseChatModel` (or any of its runnables that gives a message or a text), as a `LanguageModel`."""

    def __init__(
        self,
        model: Any,
        *,
        name: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        concurrency: int = DEFAULT_CONCURRENCY,
    ) -> None:
        """Adapt `model`.

        Args:
            model: Any object with `invoke(text)`.
            name: The model's name; made of the class and its `model_name` or `model` if not given.
            timeout: Seconds that one reply may take.
            concurrency: Prompts that are under way at once.

        Raises:
            ValueError: The name is reserved, or a number is out of range.
        """
        self.name = _checked(name or _name_of(model, "langchain", getattr(model, "model", None)))
        self._model, self._threads = model, _Threads(timeout, concurrency)

    def complete(self, prompts: Sequence[str]) -> list[str | Failure]:
        """One reply or failure for each prompt, in their order."""
        # Not `batch`: it waits for its slowest call, and its pool's threads for theirs when the process ends.
        return self._threads.complete(lambda prompt: _message_text(self._model.invoke(prompt)), prompts)


class LlamaIndexModel:
    """A LlamaIndex `LLM`, as a `LanguageModel`."""

    def __init__(
        self,
        llm: Any,
        *,
        name: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        concurrency: int = DEFAULT_CONCURRENCY,
    ) -> None:
        """Adapt `llm`.

        Args:
            llm: Any object with `complete(text)` that gives an object with a `text`.
            name: The model's name; made of the class and `metadata.model_name` if not given.
            timeout: Seconds that one reply may take.
            concurrency: Prompts that are under way at once.

        Raises:
            ValueError: The name is reserved, or a number is out of range.
        """
        given = getattr(getattr(llm, "metadata", None), "model_name", None)
        self.name = _checked(name or _name_of(llm, "llama_index", given))
        self._llm, self._threads = llm, _Threads(timeout, concurrency)

    def complete(self, prompts: Sequence[str]) -> list[str | Failure]:
        """One reply or failure for each prompt, in their order."""
        return self._threads.complete(lambda prompt: self._llm.complete(prompt).text, prompts)


class FunctionModel:
    """A function from prompt to reply, as a `LanguageModel`."""

    def __init__(
        self,
        function: Callable[[str], str],
        *,
        name: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        concurrency: int = DEFAULT_CONCURRENCY,
    ) -> None:
        """Adapt `function`.

        Args:
            function: Takes a prompt, gives the reply; is called in several threads.
            name: What its labels are recorded as, and its replies are cached under; the function's own name if not
                given, so give one where there are several lambdas.
            timeout: Seconds that one reply may take.
            concurrency: Prompts that are under way at once.

        Raises:
            ValueError: The name is reserved, or a number is out of range.
        """
        self.name = _checked(name or f"function:{getattr(function, '__qualname__', type(function).__name__)}")
        self._function, self._threads = function, _Threads(timeout, concurrency)

    def complete(self, prompts: Sequence[str]) -> list[str | Failure]:
        """One reply or failure for each prompt, in their order."""
        return self._threads.complete(self._function, prompts)


def as_language_model(
    source: Any,
    *,
    name: str | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    concurrency: int = DEFAULT_CONCURRENCY,
) -> LanguageModel:
    """A `LanguageModel` from whatever a user has at hand.

    Args:
        source: A `LanguageModel`, a name ("openai:gpt-4o-mini", "ollama:llama3.2", any that LangChain's
            `init_chat_model` knows), a LangChain `BaseChatModel`, a LlamaIndex `LLM`, or a function from prompt to
            reply.
        name: What its labels are recorded as; by default as each adapter says. A `LanguageModel` keeps its own.
        timeout: Seconds that one reply may take.
        concurrency: Prompts that are under way at once.

    Raises:
        MissingExtraError: It is a name, and the extra `llm` is not installed.
        SAESteerError: It is a name, and the provider's package or its key is missing.
        TypeError: None of these.
        ValueError: The name has no provider, or a number is out of range.
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
    """The same without blanks around it, if it is of the form "provider:model".

    Raises:
        ValueError: It is not.
    """
    provider, _, model = text.strip().partition(":")
    if not provider or not model:
        raise ValueError(f"{text!r} names no language model: expected provider:model, e.g. openai:gpt-4o-mini.")
    return text.strip()


def _chat_model(text: str, timeout: float) -> Any:
    """LangChain's chat model of that name, as little random as the provider allows."""
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
    # Every provider has its own errors for a missing key or an unknown setting.
    except Exception as error:
        raise SAESteerError(f"cannot set up the language model {name}: {error}") from error


def _name_of(model: Any, framework: str, attribute: Any) -> str:
    """The name that the same model has as a text: ChatOpenAI(model="gpt-4o-mini") is "openai:gpt-4o-mini"."""
    given = getattr(model, "model_name", None)
    given = given if isinstance(given, str) and given else attribute
    kind = type(model).__name__
    # LlamaIndex' own default says nothing.
    if isinstance(given, str) and given and given != "unknown":
        return f"{kind.removeprefix('Chat').casefold()}:{given}"
    return f"{framework}:{kind}"


def _checked(name: str) -> str:
    if name in (BY_KEYWORDS, BY_PERSON):
        raise ValueError(f"a language model cannot be called {name!r}: that is who else writes labels.")
    return name


def _message_text(message: Any) -> str:
    """What a message says: its text, or the text among its blocks."""
    content = getattr(message, "content", message)
    if isinstance(content, list):
        parts = [part if isinstance(part, str) else part.get("text", "") for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    return content  # type: ignore[no-any-return]  # what is no text is refused where replies are gathered
