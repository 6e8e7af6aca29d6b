"""Language models: whatever a user has at hand answers prompts, and what fails costs one prompt alone."""

from __future__ import annotations

import http.server
import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sae_steer_retriever.errors import MissingExtraError, SAESteerError
from sae_steer_retriever.labelling.language_model import (
    Failure,
    FunctionModel,
    LangChainModel,
    LlamaIndexModel,
    as_language_model,
)

ROOT = Path(__file__).resolve().parents[2]


def moody(prompt: str) -> str:
    """Does what its prompt says."""
    if prompt == "hang":
        time.sleep(30)
    if prompt == "timeout":
        raise TimeoutError("the server took 60 s")
    if prompt == "raise":
        raise RuntimeError("rate limit\nreached")
    if prompt == "nothing":
        return None  # type: ignore[return-value]
    return f"reply to {prompt}"


def test_a_prompt_that_hangs_or_fails_costs_only_itself() -> None:
    model = as_language_model(moody, timeout=1.0, concurrency=2)
    start = time.monotonic()
    found = model.complete(["one", "hang", "two", "raise", "timeout", "nothing", "three"])
    assert time.monotonic() - start < 5
    assert [found[place] for place in (0, 2, 6)] == ["reply to one", "reply to two", "reply to three"]
    assert [found[place][0] for place in (1, 3, 4, 5)] == ["timeout", "error", "timeout", "error"]
    assert found[1] == Failure("timeout", "no reply within 1 s")
    assert found[3] == Failure("error", "RuntimeError: rate limit reached")
    assert "NoneType" in found[5][1]


def test_prompts_are_under_way_together_but_not_more_than_allowed() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def reply(prompt: str) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return prompt

    prompts = [str(number) for number in range(12)]
    assert FunctionModel(reply, concurrency=3).complete(prompts) == prompts
    assert most == 3
    assert FunctionModel(reply).complete([]) == []


def test_a_hung_call_does_not_keep_the_process_from_ending() -> None:
    code = (
        "import time\n"
        "from sae_steer_retriever.labelling.language_model import as_language_model\n"
        "print(as_language_model(lambda prompt: time.sleep(60), name='slow', timeout=0.2).complete(['a'])[0].reason)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=50, check=True
    )
    assert done.stdout == "timeout\n"


def test_a_langchain_chat_model_answers() -> None:
    fakes = pytest.importorskip("langchain_core.language_models.fake_chat_models")
    messages = pytest.importorskip("langchain_core.messages")
    model = as_language_model(fakes.FakeListChatModel(responses=["salary, wages"]))
    assert isinstance(model, LangChainModel)
    assert (model.name, model.complete(["a", "b"])) == ("langchain:FakeListChatModel", ["salary, wages"] * 2)
    blocks = [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "salary, "}, "wages"]
    thinking = fakes.FakeMessagesListChatModel(responses=[messages.AIMessage(content=blocks)])
    assert as_language_model(thinking).complete(["a"]) == ["salary, wages"]


def test_a_langchain_chat_model_that_raises_costs_one_prompt() -> None:
    fakes = pytest.importorskip("langchain_core.language_models.fake_chat_models")
    failing = fakes.FakeListChatModel(responses=["salary, wages", "tax, income"], error_on_chunk_number=None, sleep=0)
    model = as_language_model(fakes.GenericFakeChatModel(messages=iter(["salary, wages"])), concurrency=1)
    first, second = model.complete(["a", "b"])
    assert first == "salary, wages"
    assert isinstance(second, Failure)
    assert second.reason == "error"
    assert as_language_model(failing, concurrency=1).complete(["a", "b"]) == ["salary, wages", "tax, income"]


def test_a_llama_index_llm_answers() -> None:
    llms = pytest.importorskip("llama_index.core.llms")
    model = as_language_model(llms.MockLLM())
    assert isinstance(model, LlamaIndexModel)
    assert model.name == "llama_index:MockLLM"
    assert model.complete(["salary, wages", "tax"]) == ["salary, wages", "tax"]


class ChatOpenAI:
    """What the class of that name has."""

    def __init__(self, **attributes: str) -> None:
        vars(self).update(attributes)

    def invoke(self, prompt: str) -> str:
        return prompt


class Custom:
    """A model of the user's own."""

    name = "mine"

    def complete(self, prompts: Sequence[str]) -> list[str | Failure]:
        return list(prompts)


def test_a_model_has_the_same_name_as_an_object_and_as_a_text() -> None:
    assert as_language_model(ChatOpenAI(model_name="gpt-4o-mini")).name == "openai:gpt-4o-mini"
    assert as_language_model(ChatOpenAI(model="llama3.2")).name == "openai:llama3.2"
    assert as_language_model(ChatOpenAI(), name="mine").name == "mine"
    assert as_language_model(moody).name == "function:moody"


def test_a_model_of_the_users_own_is_taken_as_it_is() -> None:
    custom = Custom()
    assert as_language_model(custom) is custom


@pytest.mark.parametrize("name", ["keywords", "person"])
def test_no_model_may_sign_as_somebody_else(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be called"):
        as_language_model(moody, name=name)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match=r"is a int: expected a name such as 'openai:gpt-4o-mini'"):
        as_language_model(7)
    for name in ("gpt-4o-mini", "openai:", ":x", ""):
        with pytest.raises(ValueError, match="expected provider:model"):
            as_language_model(name)
    with pytest.raises(ValueError, match="timeout"):
        as_language_model(moody, timeout=0)
    with pytest.raises(ValueError, match="concurrency"):
        as_language_model(moody, concurrency=0)


@pytest.mark.parametrize("absent", ["langchain", "langchain_openai"])
def test_a_name_without_its_packages_names_the_extra(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if absent != "langchain" and importlib.util.find_spec("langchain") is None:
        pytest.skip("needs the `llm` extra")

    class Absent:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name.split(".")[0] == absent:
                raise ModuleNotFoundError(name, name=name.split(".")[0])

    for name in [name for name in sys.modules if name.split(".")[0] == absent]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(MissingExtraError, match=r"sae-steer-retriever\[llm\]"):
        as_language_model("openai:gpt-4o-mini")


class _Replies(http.server.BaseHTTPRequestHandler):
    """A server on this machine that speaks as OpenAI's does."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = {"role": "assistant", "content": f"{asked['messages'][0]['content']}, at {asked['temperature']}"}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": asked["model"]}
        body |= {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def openai_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Replies)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("openai_server")
def test_a_name_becomes_a_model_that_is_asked_over_its_interface() -> None:
    pytest.importorskip("langchain_openai", reason="needs the `llm` extra")
    model = as_language_model("openai:gpt-4o-mini", timeout=20)
    assert model.name == "openai:gpt-4o-mini"
    assert model.complete(["a", "b"]) == ["a, at 0.0", "b, at 0.0"]


def test_a_missing_key_or_an_unknown_provider_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("langchain_openai", reason="needs the `llm` extra")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(SAESteerError, match=r"cannot set up the language model openai:gpt-4o-mini: .*OPENAI_API_KEY"):
        as_language_model("openai:gpt-4o-mini")
    with pytest.raises(SAESteerError, match="unheardof"):
        as_language_model("unheardof:model")
