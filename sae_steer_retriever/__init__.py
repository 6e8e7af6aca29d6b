"""See why a passage was retrieved, and steer what is retrieved, with the named features of a sparse autoencoder.

The public names are listed once, in `__init__.pyi`. Each is imported when it is first used, so that importing the
package loads neither torch nor a vector store nor a framework.
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """Returns a public name, imported on first use (PEP 562).

    Raises:
        ImportError: `SAESteeredRetriever` was asked for; the message names the two modules that have it.
        AttributeError: The package exports no such name.
    """
    if name == "SAESteeredRetriever":
        raise ImportError(
            "SAESteeredRetriever exists once for each framework: import it from "
            "sae_steer_retriever.integrations.langchain or from sae_steer_retriever.integrations.llama_index. "
            "Without a framework use sae_steer_retriever.SteeredRetriever."
        )
    try:
        return _attribute(name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
