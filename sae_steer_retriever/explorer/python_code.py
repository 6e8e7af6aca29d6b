"""The workbench's search as a Python script, for LangChain or for LlamaIndex."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from sae_steer_retriever.errors import SAESteerError
from sae_steer_retriever.steering.operations import Add, Operation, When

if TYPE_CHECKING:
    from sae_steer_retriever.explorer.workbench_state import WorkbenchState
    from sae_steer_retriever.retriever import SteeredRetriever
    from sae_steer_retriever.steering.policy import Steering
    from sae_steer_retriever.store.chroma_store import ChromaStore

Framework = Literal["langchain", "llama_index"]

_MODULES = {
    "langchain": "sae_steer_retriever.integrations.langchain",
    "llama_index": "sae_steer_retriever.integrations.llama_index",
}
_COUNTS = {"langchain": "k", "llama_index": "similarity_top_k"}
_LOOPS = {
    "langchain": "for document in retriever.invoke({query}):\n"
    "    print(f\"{{document.metadata['relevance_score']:.3f}}\", document.id)\n",
    "llama_index": 'for found in retriever.retrieve({query}):\n    print(f"{{found.score:.3f}}", found.node.node_id)\n',
}
# A longer call is written over several lines.
_LINE = 100


class StoreAddress(NamedTuple):
    """Where a Python script finds the store."""

    collection: str  # the documents collection's name
    folder: Path | None = None  # the folder of an embedded Chroma; None for a server or a store in memory
    host: str | None = None  # a Chroma server's host
    port: int = 8000  # its port
    sae: str | None = None  # folder or hub id of the SAE; None for the SAE that the store was indexed with


def address_of(store: ChromaStore) -> StoreAddress:
    """The address of an open store, from its Chroma client."""
    settings, name = store._client.get_settings(), store.documents.name
    if settings.chroma_server_host:
        return StoreAddress(name, None, settings.chroma_server_host, int(settings.chroma_server_http_port or 8000))
    return StoreAddress(name, Path(settings.persist_directory).resolve() if settings.is_persistent else None)


def python_code(state: WorkbenchState, retriever: SteeredRetriever, address: StoreAddress, framework: Framework) -> str:
    """Returns a script that prints the ids and scores which the workbench shows.

    Raises:
        SAESteerError: The store is in memory, where no other program finds it, or the steering is unusable.
    """
    if address.folder is None and address.host is None:
        raise SAESteerError(
            "the store is in the memory of the program that opened the explorer, so no script can open it: give the "
            "retriever a folder (persist_directory=), or save the policy."
        )
    steering = state.steering(retriever)  # an unusable one fails here, not in the script
    options = [f"{_COUNTS[framework]}={state.k}", *_steer(state, steering)]
    given = state.model_dump(include={"space", "side", "fetch_k", "drift_cap"}, exclude_defaults=True)
    options += [f"{name}={value!r}" for name, value in given.items()]
    names = sorted({part for operation in state.steer.values() for part in _names(operation)})
    imports = [f"from sae_steer_retriever import {', '.join(names)}"] if names and not state.pinned else []
    if state.pinned:
        imports = ["from sae_steer_retriever import Steering"]
    if address.host is not None:
        imports.append("from sae_steer_retriever import SteeredRetriever")
    lines = [*sorted(imports), f"from {_MODULES[framework]} import SAESteeredRetriever", ""]
    if address.folder is not None:
        where = [repr(str(address.folder)), f"collection_name={address.collection!r}"]
        where += [f"sae={address.sae!r}"] if address.sae is not None else []
        lines.append(_call("retriever = SAESteeredRetriever.open", where + options))
    else:
        parts = [] if address.sae is None else [repr(address.sae)]
        parts += [f"host={address.host!r}", f"port={address.port}"]
        parts += [f"collection={address.collection!r}", "create=False"]
        lines.append(_call("core = SteeredRetriever.open", parts))
        first = "retriever=core" if framework == "langchain" else "core"
        lines.append(_call("retriever = SAESteeredRetriever", [first, *options]))
    return "\n".join(lines) + "\n" + _LOOPS[framework].format(query=repr(state.query))


def _steer(state: WorkbenchState, steering: Steering) -> list[str]:
    if state.pinned:  # their names mean other features by now: write out the whole steering
        return [f"steer=Steering.from_json({steering.to_json()!r})"]
    items = ", ".join(f"{name!r}: {_written(operation)}" for name, operation in state.steer.items())
    return [f"steer={{{items}}}"] if items else []


def _written(operation: Operation | float) -> str:
    if isinstance(operation, float):
        return repr(operation)
    if isinstance(operation, When):
        return f"When({operation.feature!r}, above={operation.above!r}, then={_written(operation.then)})"
    fields = {name: value for name, value in vars(operation).items() if value is not None}
    arguments = [f"side={value!r}" if name == "side" else repr(value) for name, value in fields.items()]
    # A bare number means `Add` on the default side.
    return arguments[0] if list(fields) == ["strength"] else f"{type(operation).__name__}({', '.join(arguments)})"


def _names(operation: Operation) -> list[str]:
    """The classes that the script imports for an operation."""
    if isinstance(operation, When):
        return ["When", *([] if isinstance(operation.then, float) else _names(operation.then))]
    return [] if isinstance(operation, Add) and operation.side is None else [type(operation).__name__]


def _call(function: str, arguments: list[str]) -> str:
    line = f"{function}({', '.join(arguments)})"
    if len(line) <= _LINE:
        return line
    return "\n".join([f"{function}(", *(f"    {argument}," for argument in arguments), ")"])
