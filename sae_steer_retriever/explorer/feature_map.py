"""The map: all live features on a plane, where features with similar directions are close, and its route."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from numpy.typing import NDArray

from sae_steer_retriever.encoders.cache_root import cache_root
from sae_steer_retriever.explorer.search_routes import answer
from sae_steer_retriever.sae.codes import Array

if TYPE_CHECKING:
    from sae_steer_retriever.explorer.workbench import Workbench
    from sae_steer_retriever.features.catalog import FeatureCatalog
    from sae_steer_retriever.sae.topk_sae import TopKSAE

logger = logging.getLogger(__name__)

# Part of the file's name: a change of the layout's algorithm needs a new one.
_VERSION = "1"
_SEED = 0
# t-SNE sees the first principal components: the others are mostly noise, and cost time.
_COMPONENTS, _PERPLEXITY = 50, 30.0
# t-SNE runs in parts, so that the page can show each; 250 iterations are the fewest that scikit-learn accepts.
_ITERATIONS, _PARTS = 250, 4
# With fewer features the first projection is final.
_FEWEST = 10


class FeatureLayout(NamedTuple):
    """Positions of the features."""

    features: NDArray[np.int64]  # (m,) ids of the live features, ascending
    positions: Array  # (m, 2) in [0, 1]
    progress: float  # share of the work that is done; 1.0 when the layout is final


def map_routes(workbench: Workbench) -> APIRouter:
    """The map's route."""
    router = APIRouter(prefix="/api")
    catalog = workbench.retriever.catalog
    plane = FeatureMap(workbench.retriever.sae, catalog)

    @router.get("/map")
    async def positions(names: bool = True) -> JSONResponse:
        """Positions of all live features, with their names and families on request."""

        def work() -> dict[str, Any]:
            layout = plane.layout()
            x, y = layout.positions.round(5).T.tolist()
            data = {"progress": layout.progress, "ids": layout.features.tolist(), "x": x, "y": y}
            if names:
                chosen = [catalog[int(feature)] for feature in layout.features]
                data |= {
                    "names": [feature.name for feature in chosen],
                    "frequencies": [feature.frequency for feature in chosen],
                    "families": [feature.family for feature in chosen],
                    "family_names": {str(family.id): family.name for family in catalog.families},
                }
            return data

        return answer(await workbench.run(work))

    return router


class FeatureMap:
    """The layout of one catalog, computed once and cached on disk under the SAE's fingerprint.

    Barnes-Hut t-SNE (van der Maaten 2014, by scikit-learn) of the decoder's directions, started from their PCA.
    """

    def __init__(self, sae: TopKSAE, catalog: FeatureCatalog) -> None:
        self._features = np.flatnonzero(catalog.calibration.count > 0)
        self._directions = sae.decoder[self._features]
        digest = hashlib.blake2b(self._features.tobytes(), digest_size=6).hexdigest()
        self._path = cache_root() / "maps" / f"{sae.fingerprint}-{digest}-{_VERSION}.npy"
        self._lock = threading.Lock()
        self._layout: FeatureLayout | None = None
        self._thread: threading.Thread | None = None

    @property
    def path(self) -> Path:
        """The cache file of the final layout; it can be deleted."""
        return self._path

    def layout(self) -> FeatureLayout:
        """The best layout so far; a thread in the background computes the final one."""
        with self._lock:
            if self._layout is None:
                self._layout = self._kept() or self._first()
            if self._layout.progress < 1.0 and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="feature-map", daemon=True)
                self._thread.start()
            return self._layout

    def wait(self) -> FeatureLayout:
        """The final layout, once it is computed."""
        self.layout()
        if self._thread is not None:
            self._thread.join()
        return self.layout()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _kept(self) -> FeatureLayout | None:
        try:
            positions = np.load(self._path, allow_pickle=False)
        except (OSError, ValueError):
            return None
        if positions.shape != (len(self._features), 2) or not np.isfinite(positions).all():
            return None
        return FeatureLayout(self._features, positions.astype(np.float32), 1.0)

    def _first(self) -> FeatureLayout:
        done = 1.0 if len(self._features) < _FEWEST else 0.0
        return FeatureLayout(self._features, _fitted(_components(self._directions, 2)), done)

    def _work(self) -> None:
        began = time.monotonic()
        try:
            positions = tsne(self._directions, self._show)
        except (ValueError, MemoryError) as error:  # the first projection stays
            logger.warning("the map of %d features stays a plain projection: %s", len(self._features), error)
            positions = _components(self._directions, 2)
        self._keep(_fitted(positions))
        with self._lock:
            self._layout = FeatureLayout(self._features, _fitted(positions), 1.0)
        logger.info("laid out %d features in %.0f s", len(self._features), time.monotonic() - began)

    def _show(self, positions: Array, progress: float) -> None:
        with self._lock:
            self._layout = FeatureLayout(self._features, _fitted(positions), progress)

    def _keep(self, positions: Array) -> None:
        with contextlib.suppress(OSError):  # without a cache the map is computed again
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._path.parent, suffix=".npy", delete=False) as file:
                np.save(file, positions)
            Path(file.name).replace(self._path)


def tsne(directions: Array, show: Callable[[Array, float], None]) -> Array:
    """Returns (m, 2) positions of (m, d) directions, the same at every call.

    After each part `show` is called with the positions and the share of the work that is done.

    Raises:
        ValueError: There are too few directions.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    reduced = _components(directions, min(_COMPONENTS, *directions.shape))
    positions: Array = reduced[:, :2] / np.std(reduced[:, 0]).clip(1e-12) * 1e-4
    perplexity = min(_PERPLEXITY, (len(directions) - 1) / 3)
    # One thread: searches need the others meanwhile.
    with threadpool_limits(limits=1):
        for part in range(_PARTS):
            made = TSNE(
                init=positions.astype(np.float32),
                perplexity=perplexity,
                max_iter=_ITERATIONS,
                early_exaggeration=12.0 if part == 0 else 1.0,
                random_state=_SEED,
            )
            positions = np.asarray(made.fit_transform(reduced), dtype=np.float32)
            show(positions, (part + 1) / (_PARTS + 1))
    return positions


def _components(directions: Array, count: int) -> Array:
    """(m, count) principal components; their signs are the same on every machine."""
    centred = directions - directions.mean(axis=0) if len(directions) else directions
    found = np.zeros((len(directions), max(count, 2)), dtype=np.float32)
    if len(directions) > 1:
        _, vectors = np.linalg.eigh(centred.T.astype(np.float64) @ centred)
        axes = vectors[:, ::-1][:, :count]
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
        found[:, : axes.shape[1]] = centred @ axes
    return found


def _fitted(positions: Array) -> Array:
    """Positions moved and scaled into the unit square, with their proportions."""
    if not len(positions):
        return positions[:, :2]
    low, high = positions[:, :2].min(axis=0), positions[:, :2].max(axis=0)
    size = max(float((high - low).max()), 1e-12)
    return np.asarray((positions[:, :2] - (low + high) / 2) / size + 0.5, dtype=np.float32)
