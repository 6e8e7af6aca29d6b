"""A steered retriever in a LlamaIndex query engine and chat engine, with a mock LLM so that it runs offline.

    python examples/llama_index_engine.py

Uses the SAE and the store of `examples/quickstart.py`, and makes them first if they are missing.
"""

from __future__ import annotations

import sys

from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from quickstart import DATA, QUESTION, prepare

from sae_steer_retriever.integrations.llama_index import SAESteeredRetriever
from sae_steer_retriever.integrations.llama_index_types import SteeredQuery


def main() -> int:
    """Run the example."""
    prepare(DATA)
    llm = MockLLM(max_tokens=20)
    retriever = SAESteeredRetriever.open(DATA / "chroma", similarity_top_k=3)
    engine = RetrieverQueryEngine(retriever, get_response_synthesizer(llm=llm))
    for steer in ({}, {"thread": 0.5}, {"subprocess": 0.5}):
        response = engine.query(SteeredQuery(QUESTION, steer=steer))
        print(f"\nsteer={steer}")
        for node in response.source_nodes:
            print(f"  {node.score:.3f}  {node.node.node_id}")

    # A chat engine passes plain strings: the steering goes into the constructor.
    steered = SAESteeredRetriever.open(DATA / "chroma", similarity_top_k=3, steer={"coroutine": 0.5})
    chat = ContextChatEngine.from_defaults(retriever=steered, llm=llm)
    print("\nchat engine, coroutine +0.5:")
    for node in chat.chat(QUESTION).source_nodes:
        print(f"  {node.score:.3f}  {node.node.node_id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
