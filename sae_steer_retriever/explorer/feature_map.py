"""All live features on a plane: directions that are near in the dictionary are near on the map."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.encoders.cache_root import cache_root
from sae_steer_retriever.sae.codes import Array

if TYPE_CHECKING:
    from sae_steer_retriever.features.catalog import FeatureCatalog
    from sae_steer_retriever.sae.topk_sae import TopKSAE

logger = logging.getLogger(__name__)

# Another way to lay features out is another name on disk.
_VERSION = "1"
_SEED = 0
# t-SNE looks at the first principal components: the rest of a direction's neighbourhood is noise, and costs time.
_COMPONENTS, _PERPLEXITY = 50, 30.0
# Laid out in parts, so that a part can be seen while the next is worked out: the fewest that scikit-learn takes each.
_ITERATIONS, _PARTS = 250, 4
# Fewer points than this have no neighbourhoods to keep.
_FEWEST = 10


class FeatureLayout(NamedTuple):
    """Where the features stand.

    Attributes:
        features: (m,) ids of the live features, ascending.
        positions: (m, 2) in [0, 1].
        progress: Share of the work that is done; 1.0 for the final layout.
    """

    features: NDArray[np.int64]
    positions: Array
    progress: float


class FeatureMap:
    """The layout of one catalog, worked out once and kept under the SAE's fingerprint.

    PCA, then Barnes-Hut t-SNE (van der Maaten, 2014; scikit-learn's) of the decoder's directions, seeded by the PCA.
    """

    def __init__(self, sae: TopKSAE, catalog: FeatureCatalog) -> None:
        """Take the dictionary.

        Args:
            sae: Its directions.
            catalog: Which of its features are live.
        """
        self._features = np.flatnonzero(catalog.calibration.count > 0)
        self._directions = sae.decoder[self._features]
        digest = hashlib.blake2b(self._features.tobytes(), digest_size=6).hexdigest()
        self._path = cache_root() / "maps" / f"{sae.fingerprint}-{digest}-{_VERSION}.npy"
        self._lock = threading.Lock()
        self._layout: FeatureLayout | None = None
        self._thread: threading.Thread | None = None

    @property
    def path(self) -> Path:
        """Where the final layout is kept; it can be made again."""
        return self._path

    def layout(self) -> FeatureLayout:
        """The best layout there is by now; the work for the final one goes on in the background."""
        with self._lock:
            if self._layout is None:
                self._layout = self._kept() or self._first()
            if self._layout.progress < 1.0 and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="feature-map", daemon=True)
                self._thread.start()
            return self._layout

    def wait(self) -> FeatureLayout:
        """The final layout."""
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
        except (ValueError, MemoryError) as error:  # the first layout is a map, too
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
        with contextlib.suppress(OSError):  # a full or read-only cache costs time, not results
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._path.parent, suffix=".npy", delete=False) as file:
                np.save(file, positions)
            Path(file.name).replace(self._path)


def tsne(directions: Array, show: Callable[[Array, float], None]) -> Array:
    """(m, 2) positions of directions, the same ones every time.

    Args:
        directions: (m, d).
        show: Gets the positions after each part of the work, and the share of it that is done.

    Raises:
        ValueError: There are too few.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    reduced = _components(directions, min(_COMPONENTS, *directions.shape))
    positions: Array = reduced[:, :2] / np.std(reduced[:, 0]).clip(1e-12) * 1e-4
    perplexity = min(_PERPLEXITY, (len(directions) - 1) / 3)
    # One thread: the others are for those who search meanwhile.
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
    """(m, count) principal components, with signs that do not depend on the machine."""
    centred = directions - directions.mean(axis=0) if len(directions) else directions
    found = np.zeros((len(directions), max(count, 2)), dtype=np.float32)
    if len(directions) > 1:
        _, vectors = np.linalg.eigh(centred.T.astype(np.float64) @ centred)
        axes = vectors[:, ::-1][:, :count]
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
        found[:, : axes.shape[1]] = centred @ axes
    return found


def _fitted(positions: Array) -> Array:
    """Positions moved and scaled, alike in both directions, into the unit square."""
    if not len(positions):
        return positions[:, :2]
    low, high = positions[:, :2].min(axis=0), positions[:, :2].max(axis=0)
    size = max(float((high - low).max()), 1e-12)
    return np.asarray((positions[:, :2] - (low + high) / 2) / size + 0.5, dtype=np.float32)


__all__ = ["FeatureLayout", "FeatureMap", "tsne"]
