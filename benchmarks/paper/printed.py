"""Figures printed by Kang, Wang & Xiong (arXiv 2411.00786), shown beside ours."""

from __future__ import annotations

from typing import NamedTuple

from sae_steer_retriever.evaluate.fidelity import LATENT, ORIGINAL, RECONSTRUCTED


class PaperRow(NamedTuple):
    """A row of the paper's Table 1 or 8.

    Attributes:
        search: The way to search, named as in `Fidelity`.
        k: Active latents; None for the original embeddings.
        mse: Mean squared error per dimension; None if not printed.
        mrr: MRR.
        precision: P@10.
        recall: R@10.
    """

    search: str
    k: int | None
    mse: float | None
    mrr: float
    precision: float
    recall: float


class PaperSet(NamedTuple):
    """The rows of one encoder on one set of queries.

    Attributes:
        encoder: Its name in the paper.
        data: The set.
        rows: The original embeddings first.
    """

    encoder: str
    data: str
    rows: tuple[PaperRow, ...]

    @property
    def name(self) -> str:
        """Returns the name of the set in a table."""
        return f"{self.data}, {self.encoder}"

    def row(self, search: str, k: int | None) -> PaperRow | None:
        """Returns a row by its way to search and K; None if the paper has none, as for cosines of latents."""
        return next((row for row in self.rows if (row.search, row.k) == (search, k)), None)

    def kept(self, row: PaperRow) -> tuple[float, float, float]:
        """Returns MRR, P@10 and R@10 of a row as shares of those of the original embeddings."""
        original = self.rows[0]
        return row.mrr / original.mrr, row.precision / original.precision, row.recall / original.recall


TABLE_1_IN_DOMAIN = PaperSet(
    "BGE-base-en-v1.5",
    "MS MARCO",
    (
        PaperRow(ORIGINAL, None, None, 0.3605, 0.0649, 0.6211),
        PaperRow(LATENT, 32, None, 0.2721, 0.0507, 0.4869),
        PaperRow(LATENT, 64, None, 0.3062, 0.0564, 0.5406),
        PaperRow(LATENT, 128, None, 0.3306, 0.0601, 0.5760),
        PaperRow(RECONSTRUCTED, 32, 0.00022, 0.2984, 0.0552, 0.5291),
        PaperRow(RECONSTRUCTED, 64, 0.00017, 0.3194, 0.0583, 0.5589),
        PaperRow(RECONSTRUCTED, 128, 0.00011, 0.3455, 0.0626, 0.5991),
    ),
)
"""Table 1, left: validation queries of the fitted collection."""

TABLE_1_OUT_OF_DOMAIN = PaperSet(
    "BGE-base-en-v1.5",
    "BEIR",
    (
        PaperRow(ORIGINAL, None, None, 0.3699, 0.0891, 0.5415),
        PaperRow(LATENT, 32, None, 0.2420, 0.0581, 0.3590),
        PaperRow(LATENT, 64, None, 0.2923, 0.0708, 0.4212),
        PaperRow(LATENT, 128, None, 0.2981, 0.0735, 0.4461),
        PaperRow(RECONSTRUCTED, 32, 0.00043, 0.2549, 0.0619, 0.3768),
        PaperRow(RECONSTRUCTED, 64, 0.00033, 0.2913, 0.0721, 0.4361),
        PaperRow(RECONSTRUCTED, 128, 0.00019, 0.3407, 0.0818, 0.4954),
    ),
)
"""Table 1, right: TREC-COVID, Natural Questions and DBpedia-entity, one pooled score."""

TABLE_8 = PaperSet(
    "MiniCPM-Embedding",
    "MS MARCO",
    (
        PaperRow(ORIGINAL, None, None, 0.3770, 0.0682, 0.6519),
        PaperRow(LATENT, 32, None, 0.1908, 0.0389, 0.3745),
        PaperRow(LATENT, 64, None, 0.2594, 0.0507, 0.4870),
        PaperRow(LATENT, 128, None, 0.2953, 0.0565, 0.5416),
        PaperRow(RECONSTRUCTED, 32, 0.00014, 0.3128, 0.0587, 0.5613),
        PaperRow(RECONSTRUCTED, 64, 0.00011, 0.3397, 0.0630, 0.6025),
        PaperRow(RECONSTRUCTED, 128, 0.00009, 0.3535, 0.0649, 0.6207),
    ),
)
"""Table 8: the second encoder on the fitted collection; the paper has no other set for it."""


class LossPair(NamedTuple):
    """One quantity with and without the KL term.

    Attributes:
        search: The way to search.
        k: Active latents.
        mse: MRR by the MSE alone.
        kld: MRR with the KL term.
    """

    search: str
    k: int
    mse: float
    kld: float


FIGURE_2 = LossPair(LATENT, 128, mse=0.2760, kld=0.3306)
"""The only printed pair of Figure 2: BGE-base-en-v1.5 on MS MARCO."""
