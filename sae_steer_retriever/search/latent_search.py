"""One query by codes, exactly: the dot product or the damped cosine of its edited code with every passage's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.explain.attribution import Attribution, CodeExplainer, SteeringTerm
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.codes import Array, Codes, power_normalised
from sae_steer_retriever.sae.topk_sae import TopKSAE
from sae_steer_retriever.search.ranking import Explain, Ranking
from sae_steer_retriever.steering.document_boost import FeatureMatch
from sae_steer_retriever.steering.plan import SUPPRESSED_FROM, plan_code
from sae_steer_retriever.steering.policy import Steering
from sae_steer_retriever.store.batches import Metadata
from sae_steer_retriever.store.code_matrix import CodeMatrix, best
from sae_steer_retriever.store.documents import Record
from sae_steer_retriever.store.store_reader import StoreReader

# Candidates beyond the hits that are asked for, in case that some are no longer what was encoded.
_SPARE = 8
# A length to divide by where a code is empty.
_SMALLEST = float(np.finfo(np.float32).tiny)


class _MatchOnCodes(NamedTuple):
    """A `FeatureMatch` read on codes h of reconstructions: `clip(sum_f h_f (d_f . c) + b . c + c0, 0, 1)`.

    Attributes:
        along: (n,) every direction's dot product with c.
        offset: `b . c + c0`.
        amount: What a full match adds to a score.
    """

    along: Array
    offset: float
    amount: float

    @classmethod
    def of(cls, match: FeatureMatch, amount: float, sae: TopKSAE) -> _MatchOnCodes:
        along = sae.decoder @ match.direction.astype(np.float32)
        return cls(along, float(sae.bias @ match.direction) + match.constant, amount)

    def everywhere(self, matrix: CodeMatrix) -> Array:
        """Returns (N,) S of every passage of a matrix."""
        return np.asarray(np.clip(matrix.project(self.along) + np.float32(self.offset), 0.0, 1.0))

    def on(self, codes: Codes[NDArray[Any]]) -> NDArray[np.float64]:
        """Returns (batch,) S of some codes."""
        return np.clip(_along(codes, self.along) + self.offset, 0.0, 1.0)


class LatentSearch:
    """Ranks by `z_q . z_d`, or by the damped cosine `p(z_q) . p(z_d) / (|p(z_q)| |p(z_d)|)`, plus document boosts.

    z_q is the query's edited code, and p the power normalisation of activations; in the damped score edits change
    p(z_q). Only passages are found that share a latent with the query or score above 0, and whose stored vector is the
    one that their code in the sidecar was made of. The ranking is exact; equal scores keep the plain order, then the
    order of the sidecar's rows.
    """

    def __init__(
        self,
        store: StoreReader,
        matrix: CodeMatrix,
        catalog: FeatureCatalog,
        steering: Steering,
        h_q: Codes[NDArray[Any]],
        where: Metadata | None,
        score: Literal["dot", "damped"],
    ) -> None:
        """Plans the query.

        Args:
            store: The passages.
            matrix: Their codes.
            catalog: Names and units of the features.
            steering: The edits of the query's code.
            h_q: (1, K) the code, as the SAE gives it.
            where: Chroma's metadata filter.
            score: The similarity of codes.
        """
        sae, calibration = store.sae, catalog.calibration
        self._store = store
        self._matrix = matrix
        self._catalog = catalog
        self._where = where
        self._score = score
        self._h_q = self._compared(h_q)
        self._latents, self._vector, self._plan = plan_code(steering, h_q, calibration, damped=score == "damped")
        self._edited = self._vector + self._plan.total_shift(len(self._vector))
        unit = calibration.match_unit * np.float32(store.lengths().match)
        self._boosts, self._excluded = (
            [
                _MatchOnCodes.of(FeatureMatch.of_features(sae, unit, boost.features, boost.weights), boost.amount, sae)
                for boost in boosts
            ]
            for boosts in (self._plan.boosts, self._plan.excluded)
        )

    def search(self, k: int, fetch_k: int, *, vectors: bool) -> tuple[Ranking, dict[str, Record]]:
        """Returns the best `k` and their stored rows.

        Args:
            k: The number of hits.
            fetch_k: How many of the plain ranks are known.
            vectors: Not used: codes explain the scores.
        """
        allowed = None
        if self._where:
            allowed = np.zeros(len(self._matrix), dtype=bool)
            allowed[self._matrix.rows_of(self._store.existing(where=self._where))] = True
        plain = self._everywhere(self._vector)
        if allowed is not None:
            plain[~allowed] = 0.0
        if self._plan.is_empty:
            rows, records = self._stored(plain, 0.0, k)
            return Ranking.plain(self._ids(rows), self._exact(self._matrix.take(rows), self._vector)), records
        scores = self._everywhere(self._edited)
        for boost in self._boosts:
            scores += np.float32(boost.amount) * boost.everywhere(self._matrix)
        # A passage that a steering pushes below zero still answers the query.
        eligible = (plain > 0) | (scores > 0)
        for concept in self._excluded:
            eligible &= concept.everywhere(self._matrix) < SUPPRESSED_FROM
        if allowed is not None:
            eligible &= allowed
        rows, records = self._stored(np.where(eligible, scores, np.float32(-np.inf)), -np.inf, k)
        return self._steered(rows, self._plain_ranks(rows, plain, fetch_k, records)), records

    def ranking(self, k: int, fetch_k: int) -> Ranking:
        """Returns the best `k`.

        Args:
            k: The number of hits.
            fetch_k: How many of the plain ranks are known.
        """
        return self.search(k, fetch_k, vectors=False)[0]

    def explain(self, ranking: Ranking) -> Explain:
        """Returns a function that decomposes the scores of a ranking."""
        codes = self._matrix.take(self._matrix.rows_of(ranking.ids))
        scales = 1.0 / self._divisors(codes, self._edited)
        read = self._compared(codes)
        explainer = CodeExplainer(self._h_q, self._catalog.name)

        def shared(row: int, record: Record) -> Attribution:
            code: Codes[NDArray[Any]] = Codes(read.indices[row : row + 1], read.values[row : row + 1])
            return explainer.explain(code, ranking.terms[row], scale=float(scales[row]))

        return shared

    def _everywhere(self, vector: Array) -> Array:
        """Returns (N,) scores of all passages with a query, in float32 and without document boosts."""
        if self._score == "damped":
            vector = np.asarray(vector / max(float(np.linalg.norm(vector)), _SMALLEST), dtype=np.float32)
        return self._matrix.scores(self._score, self._latents, vector)

    def _exact(self, codes: Codes[NDArray[Any]], vector: Array) -> NDArray[np.float64]:
        """Returns (batch,) the same of some codes, in float64."""
        return np.asarray(self._products(codes, vector) / self._divisors(codes, vector))

    def _products(self, codes: Codes[NDArray[Any]], vector: Array) -> NDArray[np.float64]:
        along = np.zeros(self._store.sae.config.n, dtype=np.float32)
        along[self._latents] = vector
        return _along(self._compared(codes), along)

    def _divisors(self, codes: Codes[NDArray[Any]], vector: Array) -> NDArray[np.float64]:
        """Returns (batch,) what products of codes with a query are divided by."""
        if self._score == "dot":
            return np.ones(len(codes.indices))
        norms = np.linalg.norm(self._compared(codes).values.astype(np.float64), axis=1)
        return np.asarray(np.maximum(norms * np.linalg.norm(vector.astype(np.float64)), _SMALLEST))

    def _compared(self, codes: Codes[NDArray[Any]]) -> Codes[NDArray[Any]]:
        return power_normalised(codes) if self._score == "damped" else codes

    def _stored(self, scores: Array, above: float, k: int) -> tuple[NDArray[np.int64], dict[str, Record]]:
        """Returns the best `k` rows above a bar, best first, among those that the store still holds; and their records.

        Rows with a deleted or a changed vector are left out, and the next ones take their place.
        """
        known: dict[str, Record] = {}
        asked = 0
        limit = k + _SPARE
        while True:
            rows = best(scores, limit, above=above).rows
            known |= self._current(rows[asked:].tolist())
            held = rows[[name in known for name in self._ids(rows)]]
            if len(held) >= k or len(rows) < limit:
                held = self._ordered(held)[:k]
                return held, {name: known[name] for name in self._ids(held)}
            asked, limit = len(rows), 4 * limit

    def _ids(self, rows: NDArray[np.int64]) -> list[str]:
        return [self._matrix.ids[row] for row in rows.tolist()]

    def _current(self, rows: Iterable[int]) -> dict[str, Record]:
        """Returns the records of those rows whose stored vectors are the ones that were encoded."""
        return self._store.unchanged({self._matrix.ids[row]: self._matrix.digests[row] for row in rows})

    def _ordered(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns rows by their exact scores."""
        codes = self._matrix.take(rows)
        base = self._exact(codes, self._vector)
        scores = base if self._plan.is_empty else self._exact(codes, self._edited)
        for boost in self._boosts:
            scores = scores + boost.amount * boost.on(codes)
        return np.asarray(rows[np.lexsort((rows, -base, -scores))])

    def _plain_ranks(
        self, rows: NDArray[np.int64], plain: Array, fetch_k: int, records: dict[str, Record]
    ) -> list[int | None]:
        """Returns the ranks of rows without steering, from 1; None beyond `fetch_k`."""
        base = best(plain, fetch_k).rows
        base = base[np.lexsort((base, -self._exact(self._matrix.take(base), self._vector)))].tolist()
        place_of = {row: place for place, row in enumerate(base)}
        places = [place_of.get(row) for row in rows.tolist()]
        ahead = base[: max((place for place in places if place is not None), default=0)]
        there = records.keys() | self._current(row for row in ahead if self._matrix.ids[row] not in records)
        ranks = np.cumsum([self._matrix.ids[row] in there for row in ahead], dtype=np.int64)
        return [None if place is None else 1 + (int(ranks[place - 1]) if place else 0) for place in places]

    def _steered(self, rows: NDArray[np.int64], base_ranks: list[int | None]) -> Ranking:
        codes = self._matrix.take(rows)
        divisors = self._divisors(codes, self._edited)
        columns = [
            (shift.name, "query", self._products(codes, shift.vector) / divisors)
            for shift in self._plan.shifts
            if shift.vector.any()
        ]
        columns += [
            (boost.name, "document", concept.amount * concept.on(codes))
            for boost, concept in zip(self._plan.boosts, self._boosts, strict=True)
        ]
        scores = self._products(codes, self._vector) / divisors
        for _, _, values in columns:
            scores = scores + values
        return Ranking(
            self._ids(rows),
            scores,
            self._exact(codes, self._vector),
            base_ranks,
            [
                tuple(SteeringTerm(name, side, float(values[row])) for name, side, values in columns)
                for row in range(len(rows))
            ],
            np.empty((len(rows), 0)),
            ["reconstruction"] * len(rows),
            [],
            True,
        )


def _along(codes: Codes[NDArray[Any]], along: Array) -> NDArray[np.float64]:
    """Returns (batch,) dot products of codes with (n,) numbers, in float64."""
    return np.asarray((codes.values.astype(np.float64) * along[codes.indices]).sum(axis=1))
