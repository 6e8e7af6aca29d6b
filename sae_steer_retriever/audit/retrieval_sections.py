"""The parts of a report on what is retrieved: hubs, what names do not explain, exposure, and what steering changes."""

from __future__ import annotations

from sae_steer_retriever.audit.audit import Audit
from sae_steer_retriever.audit.charts import bars, histogram, ratios
from sae_steer_retriever.audit.exposure import Exposure
from sae_steer_retriever.audit.section import Section
from sae_steer_retriever.audit.steerability import STRENGTH
from sae_steer_retriever.audit.subject import NamedFeature
from sae_steer_retriever.evaluate.bootstrap import Estimate
from sae_steer_retriever.evaluate.table import Cell, Column, Table

_DRAWN = 6


def hubs_section(audit: Audit) -> Section:
    """What is retrieved for everything."""
    hubs = audit.hubs
    figures = Table(
        "Evenness of retrieval",
        (Column("figure"), Column("here"), Column("by chance")),
        (
            ("skewness of k-occurrence", f"{hubs.skewness:.1f}", f"{hubs.expected_skewness:.1f}"),
            ("passages that no query finds", f"{hubs.never:.1%}", f"{hubs.expected_never:.1%}"),
            ("largest k-occurrence", f"{hubs.largest:,}", f"below {hubs.hub_from:,}"),
            ("hub passages", f"{hubs.hubs:,}", "0"),
            (f"top-{hubs.k} places that hubs take", f"{hubs.hub_places:.1%}", "0 %"),
        ),
    )
    passages = Table(
        "Hub passages",
        (Column("queries"), Column("likeness of these", ".2f"), Column("passage"), Column("id")),
        tuple((hub.occurrence, hub.likeness, hub.passage.text, hub.passage.id) for hub in hubs.passages),
        (f"Two queries drawn at random have a cosine of {hubs.likeness:.2f}.",),
    )
    features = Table(
        "Features in most results, beyond chance",
        (
            Column("feature"),
            Column("id"),
            Column("queries", ".1%"),
            Column("by chance", ".1%"),
            Column("passages", ".2%"),
        ),
        tuple(
            (hub.feature.name, f"#{hub.feature.id}", hub.share, hub.expected, hub.passage_share)
            for hub in hubs.features
        ),
        _frequent(hubs.frequent),
    )
    labels = [str(count) for count in range(len(hubs.counts) - 1)] + [f"{len(hubs.counts) - 1}+"]
    expected = ", ".join(f"{label}: {count:,.0f}" for label, count in zip(labels, hubs.expected_counts, strict=True))
    return Section(
        name="hubs",
        title="Hubs: what is retrieved for everything",
        answer=f"k-occurrence has a skewness of {hubs.skewness:.1f} ({hubs.expected_skewness:.1f} without hubs); "
        f"{hubs.hubs:,} hub passages take {hubs.hub_places:.1%} of the top-{hubs.k} places.",
        reading="A passage's k-occurrence is the number of queries with it among their hits. A few passages that are "
        "found for unlike queries (likeness near that of all queries) push better ones out; a hub whose queries are "
        "alike is only popular.",
        action="Look at hub passages: very short or general ones, tables of contents and boilerplate are best "
        "removed or cut otherwise. Steer against a hub feature with a strength below zero.",
        definition="Without hubs every passage has a chance of k / N at each query, and k-occurrence is binomial. A "
        "hub is found more often than the most frequent of all passages would then be, 95 times of 100. Skewness: "
        "Radovanović, Nanopoulos & Ivanović (JMLR 2010). Queries that are alike raise it, too.",
        tables=tuple(table for table in (figures, passages, features) if table.rows),
        charts=(
            histogram(
                hubs.counts,
                "Passages by k-occurrence",
                f"queries (of {hubs.queries}) that find a passage",
                f"How many passages are found by how many queries; by chance it would be {expected}.",
                labels,
            ),
        ),
    )


def unexplained_section(audit: Audit) -> Section:
    """What names do not explain."""
    found = audit.unexplained
    worst = Table(
        "Queries that share no named feature with their best hits",
        (
            Column("query"),
            Column("it is about"),
            Column("named", ".0%"),
            Column("not reconstructed", ".0%"),
            Column("best hit"),
            Column("id"),
        ),
        tuple(
            (
                one.query,
                "; ".join(one.names) or "nothing with a clear label",
                one.named_share,
                one.unexplained_share,
                one.best.text,
                one.best.id,
            )
            for one in found.worst
        ),
    )
    return Section(
        name="unexplained",
        title="Unexplained retrieval",
        answer=f"{found.unexplained} of {found.queries} queries share no named feature with any of their "
        f"{found.depth} best hits. On average a query shares {found.shared:.1f} with a hit, {found.named_share:.0%} "
        f"of a score is from features with a clear label, and {found.unexplained_share:.0%} from what the SAE does "
        "not reconstruct.",
        reading="Where query and hits share no name, the hits were found by something that the dictionary has no "
        "word for: nothing can be explained to a user there, and steering has no handle.",
        action="Read these queries. If they are your everyday ones, train the SAE with them (`sae-steer train "
        "--queries`); if the hits are wrong, the encoder is at its limit.",
        definition="Names are the k_labels leading latents with a clear label, of query and hit. A score is "
        "decomposed as `search` explains it: features + bias + residual; shares are by absolute size, averaged over "
        "the hits.",
        tables=(worst,) if worst.rows else (),
    )


def exposure_section(audit: Audit) -> Section:
    """What is hardly ever retrieved, and what too often."""
    found = audit.exposure
    columns = (
        Column("perspective"),
        Column("id"),
        Column("passages", ".1%"),
        Column(f"top-{audit.sampled.k} places", ".1%"),
        Column("ratio", ".2f"),
        Column("queries that ask for it", ".1%"),
    )
    under = Table("Under-served", columns, tuple(map(_exposed, found.under)))
    over = Table("Over-served", columns, tuple(map(_exposed, found.over)))
    drawn = [(one.name, one.ratio, one.low, one.high) for one in (*found.under[:_DRAWN], *found.over[:_DRAWN])]
    return Section(
        name="exposure",
        title="Perspectives that are under- and over-served",
        answer=f"Of {found.tested} frequent features and families, {found.under_count} are under-served and "
        f"{found.over_count} over-served.",
        reading="The ratio is the share of the hits that have a perspective over the share of the passages that have "
        "it: below 1 it is in the collection, but hardly ever shown. Where hardly any query asks for it, that is no "
        "fault.",
        action="Where people do ask for it, steer towards it: a strength of +0.3 to +0.5, for these queries.",
        definition="Places are divided by the design effect, because the hits of one query are alike; intervals are "
        f"Wilson's at {found.confidence:.2%}. Of all that is listed, one in twenty may be so by chance (Benjamini & "
        "Hochberg).",
        tables=tuple(table for table in (under, over) if table.rows),
        charts=(
            ratios(
                drawn,
                "Share of the hits over share of the passages",
                "Squares: under-served; circles: over-served; lines: intervals. The dashed line is the passages' "
                "share.",
            ),
        )
        if drawn
        else (),
    )


def steerability_section(audit: Audit) -> Section:
    """What steering changes."""
    found = audit.steerability
    table = Table(
        f"Steering by {STRENGTH:+g}",
        (
            Column("name"),
            Column("passages", ".1%"),
            Column("replaced", ".0%"),
            Column("have it before", ".0%"),
            Column("after", ".0%"),
            Column("drift", ".3f"),
            Column("plain score lost", ".3f"),
        ),
        tuple(
            (
                one.name,
                one.passage_share,
                one.replaced,
                one.with_before,
                one.with_after,
                one.drift,
                one.score_lost,
            )
            for one in found.effects
        ),
        tuple(f"{name} cannot be steered by: {reason}" for name, reason in found.silent),
    )
    first = found.effects[0] if found.effects else None
    answer = (
        f"{first.name} changes most: {first.replaced:.0%} of the top {found.k} are new, and {first.with_after:.0%} "
        f"have it instead of {first.with_before:.0%}."
        if first
        else "No feature with a clear label is frequent enough to steer by."
    )
    return Section(
        name="steering",
        title="What steering would change",
        answer=answer,
        reading="Each of the most frequent features and families was raised for a sample of the queries, by the "
        "search that your application calls. Much replaced at little score lost is a strong handle.",
        action="Copy a line into `search(query, steer=...)`, or try it: "
        '`sae-steer search "..." --steer "NAME=+0.5" --explain`.',
        definition=f"Means over {found.queries} queries at strength {STRENGTH:+g} on both sides, top {found.k}. Drift "
        "is one minus the cosine between the query and the shifted query; plain score lost is the fall of the mean "
        "unsteered score.",
        tables=(table,) if table.rows else (),
        charts=(
            bars(
                [one.name for one in found.effects[:10]],
                [one.replaced for one in found.effects[:10]],
                f"Share of the top {found.k} that is new",
                f"How much of the top {found.k} a steering of {STRENGTH:+g} replaces, on average.",
            ),
        )
        if found.effects
        else (),
        code=tuple(
            one.line if one.name in one.steer else f"{one.line}  # {' '.join(one.name.split())}"
            for one in found.effects
        ),
    )


def _frequent(features: tuple[NamedFeature, ...]) -> tuple[str, ...]:
    if not features:
        return ()
    names = "; ".join(one.name if one.name == f"#{one.id}" else f"{one.name} (#{one.id})" for one in features)
    return (f"Hub features, which more than a tenth of the passages have, so that they tell little of any: {names}.",)


def _exposed(one: Exposure) -> tuple[Cell, ...]:
    number = f"family:{one.id}" if one.is_family else f"#{one.id}"
    estimate = Estimate(one.ratio, one.low, one.high)
    return (one.name, number, one.passage_share, one.place_share, estimate, one.query_share)


__all__ = ["exposure_section", "hubs_section", "steerability_section", "unexplained_section"]
