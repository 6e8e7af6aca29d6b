"""Training data of a fit, and the order in which its steps draw from it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_steer_retriever.encoders.vector_rows import VectorRows, Vectors
from sae_steer_retriever.train.measure import HeldOut


class Rows(NamedTuple):
    """Embeddings that the steps draw from."""

    rows: Vectors  # (N, d) the embeddings to reconstruct: passages, titles and sentences, queries
    documents: Vectors  # (M, d) passages, the candidates of the lists
    queries: Vectors  # (Q, d) the list queries
    lists: NDArray[np.int64]  # (Q, L) rows of `documents` nearest to each query


class TrainingData(NamedTuple):
    """Training data of a fit. The parts of a memory-mapped corpus share one store and hold positions only."""

    fitted: Rows  # for the first and longest part of the fit, which ends with the measurement
    everything: Rows  # for the second part: held-out rows join, because the corpus to search contains them
    held_out: HeldOut  # the first part is measured on these


class DrawnRows:
    """(N, d) rows; indexing copies the chosen ones into a tensor."""

    def __init__(self, rows: Vectors) -> None:
        """Take the rows, without copying them."""
        self._rows = rows if isinstance(rows, VectorRows) else VectorRows(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, chosen: Tensor | slice) -> Tensor:
        return torch.from_numpy(self._rows[chosen if isinstance(chosen, slice) else chosen.numpy()])


class Sampler:
    """Draws the rows and list queries of each step: a function of seed and step alone, so that a fit can resume."""

    def __init__(self, source: Rows, seed: int) -> None:
        """Take the rows, without copying them."""
        self.rows, self.documents, self.queries = (
            DrawnRows(part) for part in (source.rows, source.documents, source.queries)
        )
        self.lists = torch.from_numpy(source.lists)
        self._seed = seed
        self._orders: dict[str, tuple[int, Tensor]] = {}

    def draw_rows(self, step: int, size: int) -> Tensor:
        """(size,) positions in `rows`: the step's share of a fresh permutation per pass."""
        return self._draw("rows", len(self.rows), step, size)

    def draw_queries(self, step: int, size: int) -> Tensor:
        """(size,) positions in `queries`, likewise."""
        return self._draw("queries", len(self.queries), step, size)

    def sample_rows(self, most: int) -> Tensor:
        """(min(N, most), d) copy of all rows, or of a seeded sample in their order where there are more."""
        if len(self.rows) <= most:
            return self.rows[:]
        generator = torch.Generator().manual_seed(self._seed)
        return self.rows[torch.randperm(len(self.rows), generator=generator)[:most].sort().values]

    def _draw(self, name: str, count: int, step: int, size: int) -> Tensor:
        size = min(size, count)
        number, position = divmod(step, max(1, count // size))
        if name not in self._orders or self._orders[name][0] != number:
            salt = 1 if name == "rows" else 2
            generator = torch.Generator().manual_seed((self._seed * 1_000_003 + number) * 7 + salt)
            self._orders[name] = (number, torch.randperm(count, generator=generator))
        return self._orders[name][1][position * size : (position + 1) * size]
