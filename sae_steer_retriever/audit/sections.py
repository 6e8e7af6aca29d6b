"""The sections of the report: for each, the answer, how to read it, what to do, tables and charts."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from sae_steer_retriever.audit.audit import Audit
from sae_steer_retriever.audit.charts import Chart, bars, histogram, ratios
from sae_steer_retriever.audit.query_gaps import WEAK_BELOW
from sae_steer_retriever.audit.steerability import STRENGTH
from sae_steer_retriever.evaluate.table import Column, Table

_DRAWN, _BARS = 6, 10


class Section(NamedTuple):
    """One section of the report."""

    name: str  # its anchor in the page
    title: str  # its heading
    answer: str  # the result in a sentence or two
    reading: str  # how to read it
    action: str  # what to do about it
    definition: str  # what exactly was counted
    tables: tuple[Table, ...]  # its figures
    charts: tuple[Chart, ...] = ()  # the same, drawn
    code: tuple[str, ...] = ()  # lines of Python to copy


_FEATURE = ("feature=feature.name", "id=feature.reference")


def sections(audit: Audit) -> tuple[Section, ...]:
    """The sections, in order."""
    makers = (_topics, _gaps, _hubs, _duplicates, _unexplained, _exposure, _steering)
    return tuple(make(audit) for make in makers)


def _table(title: str, rows: Sequence[object], columns: Sequence[str], *notes: str) -> tuple[Table, ...]:
    """Returns one table, or none if there are no rows.

    A column is written "heading=attribute.of.a.row:format"; the attribute is the heading if it is not given.
    """
    headings, sources = [], []
    for column in columns:
        heading, _, rest = column.partition("=")
        source, _, format_ = (rest or heading).partition(":")
        headings.append(Column(heading.partition(":")[0], format_))
        sources.append(attrgetter(source))
    cells = tuple(tuple(source(row) for source in sources) for row in rows)
    return (Table(title, tuple(headings), cells, notes),) if rows else ()


def _topics(audit: Audit) -> Section:
    topics, rest = audit.topics, audit.topics.unexplained
    low, _, middle, _, high = rest.quantiles
    most = topics.topics[:_BARS]
    return Section(
        name="topics",
        title="What the corpus is about",
        answer=f"{topics.coverage:.1%} of the passages have at least one of {topics.clear:,} features with a clear "
        f"label ({topics.live:,} features occur). The SAE leaves {middle:.0%} of a typical passage unexplained (5th to "
        f"95th percentile: {low:.0%} to {high:.0%}).",
        reading="The table lists the features that most passages have. The label score was measured on the text that "
        "the features were labelled on. “Here” is the label's score on this corpus: how well it separates passages "
        "with the feature from others (.5 is chance, 1 is perfect). “Times training” is the feature's frequency here "
        "over its frequency in that text.",
        action="Check that the topics you expect are there. The passages that are explained worst are often "
        "boilerplate, tables, code or another language. Read them; if there are many, fit or adapt an SAE on this "
        "corpus.",
        definition="A passage has a feature if it is one of the passage's `k_labels` strongest latents. A label is "
        "clear if its AUROC against near misses is at least .7 or was not measured. The unexplained share is "
        f"|x − x̂|² / |x − b|², over {rest.passages:,} passages.",
        tables=(
            *_table(
                "Most frequent features",
                topics.topics,
                (*_FEATURE, "label score=feature.label_score:.2f", "here=label_here:.2f", "passages=share:.1%")
                + ("times training=lift:.1f", "family=family_name"),
            ),
            *_table(
                "Most frequent families of features", topics.families, ("family=name", "features", "passages=share:.1%")
            ),
            *_table(
                "Passages that are explained worst",
                rest.worst,
                ("unexplained:.0%", "passage=passage.text", "id=passage.id"),
            ),
        ),
        charts=(
            bars(
                [topic.feature.name for topic in most],
                [topic.share for topic in most],
                "Share of the passages that have a feature",
                "The ten most frequent features, by the share of the passages that have them.",
            ),
            histogram(
                rest.counts,
                "Unexplained share of passages",
                "share that the SAE leaves unexplained",
                "Passages by the share that the SAE leaves unexplained; further left is better.",
            ),
        ),
    )


def _gaps(audit: Audit) -> Section:
    gaps = audit.gaps
    columns = (*_FEATURE, "queries=query_share:.1%", "passages=passage_share:.2%", "example query=example")
    return Section(
        name="gaps",
        title="What queries ask for, and what the corpus lacks",
        answer=f"{gaps.lacking_queries:.1%} of the queries ask for a feature that hardly any passage has. "
        f"{gaps.weak_queries} of {audit.sampled.queries} queries have a weak best hit (median score of the best hits: "
        f"{gaps.median_best:.2f}).",
        reading="If queries have a feature that passages lack, the collection cannot answer them well. A weak best hit "
        "says the same about a single query.",
        action="Add documents on these topics, or let the assistant say that it does not know when the best score is "
        "as low as in the table.",
        definition="A query asks for a feature if the feature has a clear label, is one of the query's `k_labels` "
        "strongest latents, and the query matches it at least .6 times as strongly as a passage that strongly has it. "
        f"Lacking: at least {gaps.asked_from} queries ask for it, and at most {gaps.lacking_from} passages have it. "
        f"Weak: the best unsteered score lies below {WEAK_BELOW:g} robust standard deviations, .6745 (s − median) / "
        "MAD over the queries.",
        tables=(
            *_table("Features that queries ask for", gaps.asked, columns),
            *_table("Features that queries ask for and the corpus lacks", gaps.lacking, columns),
            *_table(
                "Queries with a weak best hit",
                gaps.weak,
                ("query", "best score=score:.2f", "deviation:.1f", "best hit=best.text", "id=best.id"),
            ),
        ),
        charts=(
            bars(
                [one.feature.name for one in gaps.asked],
                [one.query_share for one in gaps.asked],
                "Share of the queries that ask for a feature, and of the passages that have it",
                "Bars: share of the queries that ask for a feature. Marks: share of the passages that have it.",
                [one.passage_share for one in gaps.asked],
            ),
        ),
    )


def _hubs(audit: Audit) -> Section:
    hubs = audit.hubs
    figures = (
        ("skewness of k-occurrence", f"{hubs.skewness:.1f}", f"{hubs.expected_skewness:.1f}"),
        ("passages that no query retrieves", f"{hubs.never:.1%}", f"{hubs.expected_never:.1%}"),
        ("largest k-occurrence", f"{hubs.largest:,}", f"below {hubs.hub_from:,}"),
        ("hub passages", f"{hubs.hubs:,}", "0"),
        (f"top-{hubs.k} places that hubs take", f"{hubs.hub_places:.1%}", "0 %"),
    )
    frequent = [f"{one.name} ({one.reference})" if one.name != one.reference else one.name for one in hubs.frequent]
    notes = [f"Features of more than a tenth of the passages distinguish little: {'; '.join(frequent)}."][
        : len(frequent)
    ]
    last = len(hubs.counts) - 1
    labels = [*map(str, range(last)), f"{last}+"]
    expected = ", ".join(f"{label}: {count:,.0f}" for label, count in zip(labels, hubs.expected_counts, strict=True))
    return Section(
        name="hubs",
        title="Hubs: passages that unrelated queries retrieve",
        answer=f"The k-occurrence has a skewness of {hubs.skewness:.1f} ({hubs.expected_skewness:.1f} without hubs). "
        f"{hubs.hubs:,} hub passages take {hubs.hub_places:.1%} of the top-{hubs.k} places.",
        reading="A passage's k-occurrence is the number of queries that retrieve it. A hub that unrelated queries "
        "retrieve (their mean cosine is near that of all queries) pushes better passages out. A hub with similar "
        "queries is only popular.",
        action="Read the hub passages. Remove very short or general ones, tables of contents and boilerplate, or split "
        "them differently. Steer against a hub feature with a negative strength.",
        definition="Without hubs every passage has a chance of k / N at each query, and k-occurrence is binomial. A "
        "hub has a larger k-occurrence than the largest of all passages would then have in 95 of 100 cases. Skewness: "
        "Radovanović, Nanopoulos & Ivanović (JMLR 2010). Similar queries raise it, too.",
        tables=(
            Table("Evenness of retrieval", (Column("figure"), Column("here"), Column("by chance")), figures),
            *_table(
                "Hub passages",
                hubs.passages,
                ("queries=occurrence", "cosine of these=likeness:.2f", "passage=passage.text", "id=passage.id"),
                f"Two random queries have a cosine of {hubs.likeness:.2f}.",
            ),
            *_table(
                "Features in the most results, compared with chance",
                hubs.features,
                (*_FEATURE, "queries=share:.1%", "by chance=expected:.1%", "passages=passage_share:.2%"),
                *notes,
            ),
        ),
        charts=(
            histogram(
                hubs.counts,
                "Passages by k-occurrence",
                f"queries (of {hubs.queries}) that retrieve a passage",
                f"How many passages are retrieved by how many queries. By chance it would be {expected}.",
                labels,
            ),
        ),
    )


def _duplicates(audit: Audit) -> Section:
    found, k = audit.duplicates, audit.sampled.k
    exact, near = found.levels[0], found.levels[1]
    how = (
        "All passages were compared with each other"
        if found.compared >= found.passages
        else f"{found.compared:,} random passages were compared with all {found.passages:,}: groups without one of "
        "these are missing"
    )
    return Section(
        name="duplicates",
        title="Copies and near-duplicates",
        answer=f"{exact.extra:,} passages are exact copies of others, and {near.extra:,} have a cosine of .98 or more "
        f"with another. They waste {max(near.wasted, exact.wasted):.2%} of the top-{k} places.",
        reading="A place is wasted if its hit repeats a higher one: neither the reader nor the language model learns "
        "anything from it.",
        action="Delete the copies by their ids (audit.json lists up to twenty ids of a group), or drop repeated hits "
        "in your application.",
        definition="Exact copies have the same text, with white space collapsed. A group by cosine is a passage and "
        f"all later passages in no group yet that are at least that near to it. {how}. Wasted places are counted on "
        "all hits, not on a sample.",
        tables=(
            *_table(
                "Copies and near-duplicates",
                found.levels,
                ("criterion", "groups", "redundant passages=extra", f"wasted top-{k} places=wasted:.2%"),
            ),
            *(
                table
                for level in found.levels
                for table in _table(
                    f"Largest groups: {level.criterion}", level.largest, ("passages", "text", "ids=shown_ids")
                )
            ),
        ),
    )


def _unexplained(audit: Audit) -> Section:
    found = audit.unexplained
    return Section(
        name="unexplained",
        title="Unexplained retrieval",
        answer=f"{found.unexplained} of {found.queries} queries share no named feature with any of their "
        f"{found.depth} best hits. On average a query shares {found.shared:.1f} named features with a hit; features "
        f"with a clear label contribute {found.named_share:.0%} of a score, and the part that the SAE does not "
        f"reconstruct {found.unexplained_share:.0%}.",
        reading="If a query and its hits share no named feature, the SAE has no word for the reason of the match: it "
        "cannot be explained to a user, and steering cannot change it.",
        action="Read these queries. If they are typical, train the SAE with them (`sae-steer train --queries`). If the "
        "hits are wrong, the encoder is at its limit.",
        definition="Named features are the latents with a clear label among the `k_labels` strongest of the query and "
        "of the hit. A score is split as `search` explains it: features + bias + residual. Shares are by absolute "
        "size, averaged over the hits.",
        tables=_table(
            "Queries that share no named feature with their best hits",
            found.worst,
            ("query", "its features=about", "named=named_share:.0%", "not reconstructed=unexplained_share:.0%")
            + ("best hit=best.text", "id=best.id"),
        ),
    )


def _exposure(audit: Audit) -> Section:
    found = audit.exposure
    columns = ["feature or family=name", "id=reference", "passages=passage_share:.1%"]
    columns += [f"top-{audit.sampled.k} places=place_share:.1%", "ratio=estimate:.2f"]
    columns += ["queries that have it=query_share:.1%"]
    drawn = [(one.name, one.ratio, one.low, one.high) for one in (*found.under[:_DRAWN], *found.over[:_DRAWN])]
    chart = ratios(
        drawn,
        "Share of the hits over share of the passages",
        "Squares: under-served. Circles: over-served. Lines: intervals. The dashed line marks equal shares.",
    )
    return Section(
        name="exposure",
        title="Under- and over-served features",
        answer=f"Of {found.tested} frequent features and families, {found.under_count} are under-served and "
        f"{found.over_count} over-served.",
        reading="The ratio is the share of the hits that have a feature over the share of the passages that have it. "
        "Below 1 the feature is in the collection, but rarely among the hits. That is no problem if hardly any query "
        "has it.",
        action="If people do ask for it, steer towards it in these queries, with a strength of +0.3 to +0.5.",
        definition="The hits of one query resemble each other, so the number of hits is divided by the design effect. "
        f"The intervals are Wilson's at {found.confidence:.2%}. One in twenty of the listed features may be there by "
        "chance (Benjamini & Hochberg).",
        tables=(*_table("Under-served", found.under, columns), *_table("Over-served", found.over, columns)),
        charts=(chart,) if drawn else (),
    )


def _steering(audit: Audit) -> Section:
    found = audit.steerability
    answer = "No feature with a clear label is frequent enough to steer by."
    if found.effects:
        first = found.effects[0]
        answer = (
            f"{first.name} changes the results most: {first.replaced:.0%} of the top {found.k} are new, and "
            f"{first.with_after:.0%} have it instead of {first.with_before:.0%}."
        )
    chart = bars(
        [one.name for one in found.effects[:_BARS]],
        [one.replaced for one in found.effects[:_BARS]],
        f"Share of the top {found.k} that is new",
        f"The mean share of the top {found.k} that a steering of {STRENGTH:+g} replaces.",
    )
    return Section(
        name="steering",
        title="What steering would change",
        answer=answer,
        reading="Each of the most frequent features and families was raised for a sample of the queries, with the same "
        "search that your application calls. A good feature to steer by replaces many hits at a small score loss.",
        action="Copy a line into `search(query, steer=...)`, or try it: "
        '`sae-steer search "..." --steer "NAME=+0.5" --explain`.',
        definition=f"Means over {found.queries} queries at strength {STRENGTH:+g} on both sides, top {found.k}. Drift "
        "is one minus the cosine between the query and the shifted query. Score lost is the fall of the mean unsteered "
        "score.",
        tables=_table(
            f"Steering by {STRENGTH:+g}",
            found.effects,
            ("name", "passages=passage_share:.1%", "replaced:.0%", "have it before=with_before:.0%")
            + ("after=with_after:.0%", "drift:.3f", "score lost=score_lost:.3f"),
            *(f"{name} cannot be used for steering: {reason}" for name, reason in found.silent),
        ),
        charts=(chart,) if found.effects else (),
        code=tuple(
            one.line if one.name in one.steer else f"{one.line}  # {' '.join(one.name.split())}"
            for one in found.effects
        ),
    )
