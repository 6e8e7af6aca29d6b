"""One query in the spaces of embeddings: the documents' own, or their reconstructions."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_steer_retriever.explain.attribution import Attribution, Explainer, PassageExplainer
from sae_steer_retriever.explain.hits import ReadOn
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.codes import NO_CODE, Array, Codes
from sae_steer_retriever.search.candidates import Candidates, CandidateSearch
from sae_steer_retriever.search.encoded_query import Query
from sae_steer_retriever.search.ranking import Explain, Ranking, Scored, Scorer, in_order
from sae_steer_retriever.steering.plan import Plan, lift_of, plan
from sae_steer_retriever.steering.policy import Steering
from sae_steer_retriever.store.batches import Metadata
from sae_steer_retriever.store.documents import NeighbourLists, Record, in_score_space
from sae_steer_retriever.store.store_reader import StoreReader

# The best candidates are read on their reconstructions: three for each hit. Up to ten hits have the same candidates, so
# that fewer hits are the first of more.
_READ_FOR_EACH, _READ_AT_LEAST, _READ_AT_MOST = 3, 30, 300
# Boosts from this share of a unit's lift on are large: probes follow them in between, too.
_LARGE = 0.5
# How often hits that others changed meanwhile are ranked again.
_ATTEMPTS = 3
# A filter leaves out some passages: this many times as many are looked up.
_FILTERED = 4
# Differences of unit vectors up to this size are rounding.
_SAME = 1e-4
_NO_PLAN = Plan((), (), (), 1.0)


class OriginalSearch:
    """Ranks by the store's own score plus the steering's terms.

    The best candidates by terms read on the stored vectors are ordered by terms read on the reconstructions that the
    sidecar stores.
    """

    def __init__(
        self,
        store: StoreReader,
        catalog: FeatureCatalog,
        steering: Steering,
        query: Query,
        where: Metadata | None,
        read_on: ReadOn,
    ) -> None:
        """Plans the query.

        Args:
            store: The passages.
            catalog: Names and units of the features.
            steering: The edits.
            query: The question.
            where: Chroma's metadata filter.
            read_on: The vectors on which terms are read.
        """
        self._store = store
        self._catalog = catalog
        self._query = query
        self._q = query.embedding
        self._where = where
        self._read_on = read_on
        self._search: CandidateSearch | None = None
        if steering.edits:
            h_q = query.code if any(edit.reads_query for edit in steering.edits) else NO_CODE
            made = plan(steering, self._q, h_q, store.sae, catalog.calibration)
            if not made.is_empty:
                lengths, unit = store.lengths(), catalog.calibration.match_unit
                self._scorer = Scorer(
                    store.sae, made, unit, self._q, vectors=lengths.vector, reconstructions=(1.0, lengths.match)
                )
                probes = self._scorer.probes(_LARGE * lift_of(catalog.calibration) * lengths.vector)
                self._search = CandidateSearch(self._ask, self._scorer, probes)

    def _ask(self, probes: NDArray[np.float64], k: int) -> Any:
        return self._store.neighbours(probes, k, self._where)

    def search(self, k: int, fetch_k: int, *, vectors: bool) -> tuple[Ranking, dict[str, Record]]:
        """Returns the best `k` and their stored rows; each row's text, metadata and vector are of one version.

        Args:
            k: The number of hits.
            fetch_k: Candidates in all that the first call asks for.
            vectors: Whether `explain` needs their vectors.
        """
        if self._search is None:
            for _ in range(_ATTEMPTS):
                neighbours, records = self._store.nearest_records(self._q, k, self._where, vectors=vectors)
                if not vectors or self._store.holds(records):
                    break
            return Ranking.plain(*neighbours), records
        candidates = self._search.candidates(k, fetch_k, self._depth(k))
        for _ in range(_ATTEMPTS):
            ranking = self._rank(candidates, k)
            records = self._store.find(ranking.ids, self._where)
            changed = [
                name
                for row, name in enumerate(ranking.ids)
                if name not in records or not np.array_equal(records[name].vector, ranking.vectors[row])
            ]
            if not changed:
                break
            candidates = self._updated(candidates, records, changed)
        else:  # others keep writing: what was read last is scored as it was read
            ids = candidates.found.ids
            candidates = candidates._replace(order=[row for row in candidates.order if ids[row] in records])
            ranking = self._rank(candidates, k)
        return ranking, records

    def ranking(self, k: int, fetch_k: int) -> Ranking:
        """Returns the best `k`; see `search`."""
        if self._search is None:
            return Ranking.plain(*self._store.nearest(self._q, k, self._where))
        return self._rank(self._search.candidates(k, fetch_k, self._depth(k)), k)

    def explain(self, ranking: Ranking) -> Explain:
        """Returns a function that decomposes the scores of a ranking."""
        explainer = Explainer(self._q, self._query.code, self._store.sae, self._catalog.name)
        return lambda row, record: explainer.explain(record.vector, ranking.terms[row], offset=record.offset)

    def _depth(self, k: int) -> int:
        """Returns how many candidates are read for `k` hits."""
        if self._read_on == "vector":
            return k
        return max(k, _READ_AT_LEAST, min(_READ_FOR_EACH * k, _READ_AT_MOST))

    def _rank(self, candidates: Candidates, k: int) -> Ranking:
        """Returns the best `k`, terms read on reconstructions where they are known."""
        found = candidates.found
        depth = self._depth(k)
        while True:
            rows = np.array(candidates.order[:depth], dtype=np.int64)
            ids = [found.ids[row] for row in rows.tolist()]
            scored, read_on = self._read_again(found, ids, rows, candidates.scored.take(rows))
            best = in_order(ids, scored)[:k]
            if len(best) == k or depth >= len(candidates.order):
                break
            depth *= 2  # some have an excluded feature on their reconstructions alone
        return Ranking(
            [ids[row] for row in best],
            scored.scores[best],
            scored.base_scores[best],
            [candidates.base_ranks.get(ids[row]) for row in best],
            [self._scorer.named(scored.terms[:, row]) for row in best],
            found.vectors[rows[best]] if best else found.vectors[:0],
            [read_on[row] for row in best],
            [],
            candidates.proves(depth),
        )

    def _read_again(
        self, found: NeighbourLists, ids: list[str], rows: NDArray[np.int64], scored: Scored
    ) -> tuple[Scored, list[ReadOn]]:
        """Returns the scores of candidates, terms read on reconstructions where they are known, and where they are."""
        if self._read_on == "vector" or not ids:
            return scored, ["vector"] * len(ids)
        x_hat, known = self._store.reconstructions(ids, found.vectors[rows])
        again = self._scorer.score(found.vectors[rows], found.offsets[rows], x_hat)
        return scored.where(known, again), ["reconstruction" if one else "vector" for one in known.tolist()]

    def _updated(self, candidates: Candidates, records: dict[str, Record], changed: list[str]) -> Candidates:
        """Returns candidates with the vectors of changed passages as they are now, and without deleted ones."""
        found = candidates.found
        place_of = {name: place for place, name in enumerate(found.ids)}
        vectors, offsets = found.vectors.copy(), found.offsets.copy()
        gone = set()
        for name in changed:
            place = place_of[name]
            if name in records:
                vectors[place], offsets[place] = records[name].vector, records[name].offset
            else:
                gone.add(place)
        return _rescored(candidates, self._scorer, vectors, offsets, gone)


class SidecarSearch:
    """Ranks by the cosine of the shifted query with the sidecar's reconstructions, plus the document boosts.

    The query is decoded from its code, as in arXiv 2411.00786, or kept as it is. A row of the sidecar counts only if it
    was made from the passage's present vector.
    """

    def __init__(
        self,
        store: StoreReader,
        catalog: FeatureCatalog,
        steering: Steering,
        q: Array,
        h_q: Codes[NDArray[Any]],
        where: Metadata | None,
        *,
        decoded: bool,
    ) -> None:
        """Plans the query.

        Args:
            store: The passages.
            catalog: Names and units of the features.
            steering: The edits.
            q: (d,) the query's embedding.
            h_q: (1, K) its code.
            where: Chroma's metadata filter.
            decoded: Whether the query is the one that its code decodes to.
        """
        self._store = store
        self._catalog = catalog
        self._h_q = h_q
        self._where = where
        self._decoded = decoded
        self._query = store.sae.decode(h_q)[0] if decoded else q
        calibration, lengths = catalog.calibration, store.lengths()
        made = plan(steering, self._query, h_q, store.sae, calibration) if steering.edits else _NO_PLAN
        self._plain = made.is_empty
        self._shifted = self._query + made.total_shift(len(q))
        self._scorer = Scorer(
            store.sae,
            made,
            calibration.match_unit,
            self._query,
            reconstructions=(lengths.reconstruction, lengths.match),
            normalised=True,
        )
        self._probes = self._scorer.probes(_LARGE * lift_of(calibration))

    def search(self, k: int, fetch_k: int, *, vectors: bool) -> tuple[Ranking, dict[str, Record]]:
        """Returns the best `k` and their stored rows.

        Args:
            k: The number of hits.
            fetch_k: Candidates in all that the first call asks for.
            vectors: Not used: codes and reconstructions explain the scores.
        """
        among: list[str] | None = None
        while True:
            ask = lambda probes, count, among=among: self._store.sidecar.neighbours(probes, count, among)  # noqa: E731
            candidates = CandidateSearch(ask, self._scorer, self._probes).candidates(k, fetch_k)
            rows, records = self._valid(candidates, k)
            while (whole := self._whole(candidates, rows)) is not candidates:
                candidates = whole
                rows, records = self._valid(candidates, k)
            found, scored = candidates.found, candidates.scored
            proved = candidates.bound == -np.inf or (
                len(rows) == k and bool(scored.scores[rows[-1]] >= candidates.bound)
            )
            if proved or not found.full or (len(rows) == k and (self._where is None or among is not None)):
                break
            if self._where is not None and among is None:  # so few pass the filter that they are to be searched alone
                among = self._store.existing(where=self._where)
            else:
                fetch_k *= 4
        names = [found.ids[row] for row in rows]
        ranking = Ranking(
            names,
            scored.scores[rows],
            scored.base_scores[rows],
            list(range(1, len(rows) + 1)) if self._plain else self._base_ranks(names, candidates.base_ranks),
            [self._scorer.named(scored.terms[:, row]) for row in rows],
            found.vectors[rows] if rows else found.vectors[:0],
            [None if self._plain else "reconstruction"] * len(rows),
            [str(found.metadatas[row].get("codes")) for row in rows],
            proved,
        )
        return ranking, records

    def ranking(self, k: int, fetch_k: int) -> Ranking:
        """Returns the best `k`; see `search`."""
        return self.search(k, fetch_k, vectors=False)[0]

    def _valid(self, candidates: Candidates, k: int) -> tuple[list[int], dict[str, Record]]:
        """Returns the best `k` candidates that are rows of present vectors and pass the filter, with their passages."""
        found = candidates.found
        rows: list[int] = []
        records: dict[str, Record] = {}
        stale = begin = 0
        while begin < len(candidates.order) and len(rows) < k:
            count = (k - len(rows)) * (1 if self._where is None else _FILTERED)
            part = candidates.order[begin : begin + count]
            begin += count
            digests = {found.ids[row]: str(found.metadatas[row].get("source")) for row in part}
            there = self._store.unchanged(digests, self._where)
            stale += len(part) - len(there)
            rows += [row for row in part if found.ids[row] in there]
            records |= there
        if stale and self._where is None:  # a filter leaves passages out, too
            self._store.warn_stale(stale, stale + len(rows))
        return rows[:k], records

    def _whole(self, candidates: Candidates, rows: list[int]) -> Candidates:
        """Returns the same candidates if these rows' vectors are what their codes decode to, else mended ones.

        Chroma reads vectors first and metadata after: a write in between leaves an earlier vector beside new codes.
        """
        found = candidates.found
        if not rows:
            return candidates
        codes = self._store.sidecar.unpack([str(found.metadatas[row].get("codes")) for row in rows])
        decoded, _ = in_score_space(self._store.sae.decode(codes), "cosine")
        if np.abs(decoded - found.vectors[rows]).max() < _SAME:
            return candidates
        vectors = found.vectors.copy()
        vectors[rows] = decoded
        return _rescored(candidates, self._scorer, vectors, found.offsets)

    def _base_ranks(self, names: list[str], ranks: dict[str, int]) -> list[int | None]:
        """Returns ranks without steering among the passages that are still there and pass the filter."""
        last = max((ranks[name] for name in names if name in ranks), default=0)
        ahead = [name for name, rank in ranks.items() if rank <= last]
        there = {*self._store.existing([name for name in ahead if name not in names], self._where), *names}
        places = {name: place for place, name in enumerate((name for name in ahead if name in there), start=1)}
        return [places.get(name) for name in names]

    def explain(self, ranking: Ranking) -> Explain:
        """Returns a function that decomposes the scores of a ranking."""
        length = float(np.linalg.norm(self._shifted))
        if self._decoded:
            explainer = Explainer(self._query, self._h_q, self._store.sae, self._catalog.name)
            return lambda row, record: explainer.explain(ranking.vectors[row], ranking.terms[row], scale=1.0 / length)
        codes = self._store.sidecar.unpack(ranking.packed)
        x_hat = self._store.sae.decode(codes)
        scales = 1.0 / (np.linalg.norm(x_hat, axis=1).astype(np.float64) * length)
        passages = PassageExplainer(self._query, self._store.sae, self._catalog.name)

        def parts(row: int, record: Record) -> Attribution:
            code: Codes[NDArray[Any]] = Codes(codes.indices[row : row + 1], codes.values[row : row + 1])
            return passages.explain(code, ranking.terms[row], scale=float(scales[row]))

        return parts


def _rescored(
    candidates: Candidates, scorer: Scorer, vectors: Array, offsets: Array, gone: Collection[int] = ()
) -> Candidates:
    """Returns candidates with other vectors, without those that are gone."""
    found = candidates.found._replace(vectors=vectors, offsets=offsets)
    scored = scorer.score(vectors, offsets)
    left = [row for row in in_order(found.ids, scored) if row not in gone]
    # Others are writing: what was proved may no longer hold.
    return candidates._replace(found=found, scored=scored, order=left, bound=np.inf)
