"""The parts of a report on what is there: what a corpus is about, what queries ask for, and what is there twice."""

from __future__ import annotations

from sae_steer_retriever.audit.audit import Audit
from sae_steer_retriever.audit.charts import bars, histogram
from sae_steer_retriever.audit.near_duplicates import Duplicates
from sae_steer_retriever.audit.query_gaps import WEAK_BELOW, Asked
from sae_steer_retriever.audit.section import Section
from sae_steer_retriever.evaluate.table import Column, Table

_SHOWN_IDS = 5


def topics_section(audit: Audit) -> Section:
    """What the corpus is about."""
    topics, rest = audit.topics, audit.topics.unexplained
    features = Table(
        "Most frequent features",
        (
            Column("feature"),
            Column("id"),
            Column("label score", ".2f"),
            Column("here", ".2f"),
            Column("passages", ".1%"),
            Column("beside training", ".1f"),
            Column("family"),
        ),
        tuple(
            (
                topic.feature.name,
                f"#{topic.feature.id}",
                topic.feature.label_score,
                topic.label_here,
                topic.share,
                topic.lift,
                topic.family or "",
            )
            for topic in topics.topics
        ),
    )
    families = Table(
        "Most frequent families of features",
        (Column("family"), Column("features"), Column("passages", ".1%")),
        tuple((family.name, family.features, family.share) for family in topics.families),
    )
    worst = Table(
        "Passages that are explained worst",
        (Column("unexplained", ".0%"), Column("passage"), Column("id")),
        tuple((share, passage.text, passage.id) for share, passage in rest.worst),
    )
    tables = (features, families, worst) if topics.families else (features, worst)
    low, middle, high = rest.quantiles[0], rest.quantiles[2], rest.quantiles[4]
    return Section(
        name="topics",
        title="What the corpus is about",
        answer=f"{topics.coverage:.1%} of the passages have at least one of {topics.clear:,} features with a clear "
        f"label ({topics.live:,} features occur). A typical passage is explained but for {middle:.0%} (5 to 95 %: "
        f"{low:.0%} to {high:.0%}).",
        reading="Each passage is named by its strongest features; the table lists those that most passages have. The "
        "label score is from the text that the features were named on; “here” says how well the label tells its "
        "passages from others of this corpus (.5 is chance, 1 perfect). “Beside training” is how many times as "
        "frequent a feature is here as in that text.",
        action="Check that what you expect is there. Passages that are explained worst are often boilerplate, "
        "tables, code or another language: look at them, and fit or adapt an SAE on this corpus if there are many.",
        definition="A passage has a feature that is among its k_labels leading latents. A label is clear if its AUROC "
        "against near misses is at least .7, or was not measured. Unexplained is |x − x̂|² / |x − b|², of "
        f"{rest.passages:,} passages.",
        tables=tables,
        charts=(
            bars(
                [topic.feature.name for topic in topics.topics[:10]],
                [topic.share for topic in topics.topics[:10]],
                "Share of the passages that have a feature",
                "The ten most frequent features, by the share of the passages that have them.",
            ),
            histogram(
                rest.counts,
                "Unexplained share of passages",
                "share left unexplained",
                "Passages by what the SAE leaves unexplained of them; further to the left is better.",
            ),
        ),
    )


def gaps_section(audit: Audit) -> Section:
    """What queries ask for, and what the corpus lacks."""
    gaps = audit.gaps
    columns = (
        Column("feature"),
        Column("id"),
        Column("queries", ".1%"),
        Column("passages", ".2%"),
        Column("one of the queries"),
    )
    asked = Table("What queries ask for", columns, _asked(gaps.asked))
    lacking = Table("What queries ask for and the corpus lacks", columns, _asked(gaps.lacking))
    weak = Table(
        "Queries whose best hit is weak",
        (Column("query"), Column("best score", ".2f"), Column("deviation", ".1f"), Column("best hit"), Column("id")),
        tuple((one.query, one.score, one.deviation, one.best.text, one.best.id) for one in gaps.weak),
    )
    return Section(
        name="gaps",
        title="What queries ask for, and what the corpus lacks",
        answer=f"{gaps.lacking_queries:.1%} of the queries ask for a feature that nearly no passage has; "
        f"{gaps.weak_queries} of {audit.sampled.queries} have a best hit that is weak beside the others' "
        f"(median {gaps.median_best:.2f}).",
        reading="A feature that queries have and passages lack is a question that the collection cannot answer well; a "
        "weak best hit says the same of one query.",
        action="Add documents on it, or let the assistant say that it does not know where the best score is that low.",
        definition="A query asks for a clear feature that is among its names, and that it matches at .6 or more of a "
        f"passage that strongly has it. Lacking: asked for by at least {gaps.asked_from} queries, and among the names "
        f"of at most {gaps.lacking_from} passages. Weak: the best plain score lies below {WEAK_BELOW:g} robust "
        "standard deviations, .6745 (s − median) / MAD over the queries.",
        tables=tuple(table for table in (asked, lacking, weak) if table.rows),
        charts=(
            bars(
                [one.feature.name for one in gaps.asked],
                [one.query_share for one in gaps.asked],
                "Share of the queries that have a feature, and of the passages",
                "Bars: share of the queries that have a feature. Marks: share of the passages that have it.",
                [one.passage_share for one in gaps.asked],
            ),
        ),
    )


def duplicates_section(audit: Audit) -> Section:
    """What is there twice."""
    found = audit.duplicates
    levels = Table(
        "Copies and near-duplicates",
        (
            Column("alike"),
            Column("groups"),
            Column("passages too many"),
            Column(f"top-{audit.sampled.k} places wasted", ".2%"),
        ),
        tuple((_level(level), level.groups, level.extra, level.wasted) for level in found.levels),
    )
    largest = [
        Table(
            f"Largest groups: {_level(level)}",
            (Column("passages"), Column("text"), Column("ids")),
            tuple((group.passages, group.text, _ids(group.ids, group.passages)) for group in level.largest),
        )
        for level in found.levels
        if level.largest
    ]
    exact, near = found.levels[0], found.levels[1]
    how = (
        "All passages were compared with each other"
        if found.compared >= found.passages
        else f"{found.compared:,} passages, drawn at random, were compared with all {found.passages:,}: groups without "
        "one of these are missing"
    )
    return Section(
        name="duplicates",
        title="Copies and near-duplicates",
        answer=f"{exact.extra:,} passages are exact copies of others, {near.extra:,} are at a cosine of .98 or more; "
        f"they take {max(near.wasted, exact.wasted):.2%} of the top-{audit.sampled.k} places.",
        reading="A place is wasted if a hit says what one above it has said: the reader, or the language model, learns "
        "nothing from it.",
        action="Delete the copies by their ids (audit.json lists up to twenty of a group), or drop hits that repeat "
        "one.",
        definition="Exact: the same text, white space collapsed. By cosine: a passage and all later ones that are at "
        f"least so near to it and in no group yet. {how}. Wasted places are counted on the hits themselves, without a "
        "sample.",
        tables=(levels, *largest),
    )


def _asked(found: tuple[Asked, ...]) -> tuple[tuple[str, str, float, float, str], ...]:
    return tuple(
        (one.feature.name, f"#{one.feature.id}", one.query_share, one.passage_share, one.example) for one in found
    )


def _level(level: Duplicates) -> str:
    return "the same text" if level.cosine is None else f"cosine ≥ {level.cosine:g}"


def _ids(ids: tuple[str, ...], passages: int) -> str:
    shown = ", ".join(ids[:_SHOWN_IDS])
    more = passages - min(len(ids), _SHOWN_IDS)
    return f"{shown} and {more:,} more" if more else shown


__all__ = ["duplicates_section", "gaps_section", "topics_section"]
