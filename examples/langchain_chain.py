"""A steered retriever in a LangChain question-answering chain, with a fake chat model so that it runs offline.

    python examples/langchain_chain.py

Uses the SAE and the store of `examples/quickstart.py`, and makes them first if they are missing.
"""

from __future__ import annotations

import sys

from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnablePassthrough
from quickstart import DATA, QUESTION, prepare

from sae_steer_retriever.integrations.langchain import SAESteeredRetriever


def as_context(documents: list[Document]) -> str:
    """The model's context: the passages, without scores."""
    return "\n\n".join(document.page_content for document in documents)


def main() -> int:
    """Run the example."""
    prepare(DATA)
    retriever = SAESteeredRetriever.open(DATA / "chroma", k=3)

    print("\nper call:")
    for document in retriever.invoke(QUESTION, steer={"thread": 0.5}):
        why = document.metadata["sae"]
        print(f"  {document.metadata['relevance_score']:.3f}  {document.id}  (unsteered rank {why['unsteered_rank']})")

    # A call's steer= does not reach a retriever inside {"context": retriever}; a configurable field does.
    steerable = retriever.configurable_fields(steer=ConfigurableField(id="steer"))
    prompt = ChatPromptTemplate.from_template("Answer from this context:\n{context}\n\nQuestion: {question}")
    model = FakeListChatModel(responses=["(a real chat model would answer here)"])
    chain = {"context": steerable | as_context, "question": RunnablePassthrough()} | prompt | model | StrOutputParser()
    for steer in ({}, {"coroutine": 0.5}):
        answer = chain.invoke(QUESTION, config={"configurable": {"steer": steer}})
        found = [document.id for document in retriever.invoke(QUESTION, steer=steer)]
        print(f"in a chain, steer={steer}: context {found} -> {answer}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
