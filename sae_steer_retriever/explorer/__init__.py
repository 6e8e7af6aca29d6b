"""The explorer: a web page on this machine that shows features, steers by them and compares rankings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_steer_retriever.explorer.running import Explorer as Explorer
    from sae_steer_retriever.explorer.running import explore as explore


def __getattr__(name: str) -> Any:
    if name not in ("Explorer", "explore"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sae_steer_retriever.explorer import running  # loads fastapi

    return getattr(running, name)
