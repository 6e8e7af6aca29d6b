"""The map's request: where the features stand, and what they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from sae_steer_retriever.explorer.feature_map import FeatureMap
from sae_steer_retriever.explorer.search_routes import answer

if TYPE_CHECKING:
    from sae_steer_retriever.explorer.workbench import Workbench


def map_routes(workbench: Workbench) -> APIRouter:
    """The routes.

    Args:
        workbench: What they ask.
    """
    router = APIRouter(prefix="/api")
    plane = FeatureMap(workbench.retriever.sae, workbench.retriever.catalog)

    @router.get("/map")
    async def positions(names: bool = True) -> JSONResponse:
        """Positions of all live features; their names and families unless they are known already."""
        return answer(await workbench.run(_map_data, workbench, plane, names=names))

    return router


def _map_data(workbench: Workbench, plane: FeatureMap, *, names: bool) -> dict[str, Any]:
    layout = plane.layout()
    catalog = workbench.retriever.catalog
    data: dict[str, Any] = {
        "progress": layout.progress,
        "ids": layout.features.tolist(),
        "x": layout.positions[:, 0].round(5).tolist(),
        "y": layout.positions[:, 1].round(5).tolist(),
    }
    if names:
        chosen = [catalog[int(feature)] for feature in layout.features]
        data |= {
            "names": [feature.name for feature in chosen],
            "frequencies": [feature.frequency for feature in chosen],
            "families": [feature.family for feature in chosen],
            "family_names": {str(family.id): family.name for family in catalog.families},
        }
    return data


__all__ = ["map_routes"]
