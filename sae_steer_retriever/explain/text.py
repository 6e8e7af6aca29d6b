"""How numbers, labels and passages are said within a sentence or a table: on one line, whatever they hold."""

from __future__ import annotations

from sae_steer_retriever.explain.attribution import Contribution, SteeringTerm

# Of a label of more words a sentence has the first; the table has all.
_TOLD_WORDS, _TOLD_CHARACTERS = 3, 60
_SHOWN_CHARACTERS = 240


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"


def listed(texts: list[str]) -> str:
    """One, one and another, or one, another and a third."""
    return " and ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else "".join(texts)


def one_line(text: str) -> str:
    """A text without line ends, and without what would steer a terminal or turn the direction of writing."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def excerpt(text: str) -> str:
    """The beginning of a passage, on one line."""
    line = one_line(text)
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 1].rstrip() + "…"


def is_named(part: Contribution) -> bool:
    """Whether a feature has a label that can be trusted: `Feature.name` marks the others with their id."""
    own = f"#{part.feature}"
    return bool(part.label) and part.label != own and not part.label.startswith(f"unclear {own} (")


def with_id(part: Contribution) -> str:
    """The label with its id, once."""
    label, own = one_line(part.label), f"#{part.feature}"
    if label == own or not label:
        return f"{own} (no label)"
    return label if label.startswith(f"unclear {own}") else f"{label} {own}"


def edit_name(term: SteeringTerm) -> str:
    """As the user wrote it; an id with its sign."""
    name = one_line(term.name)
    return f"#{name}" if name.isdecimal() else name


def quoted(name: str) -> str:
    """The beginning of a label or of what a user wrote, in quotation marks."""
    words = one_line(name).split(", ")
    short = ", ".join([*words[:_TOLD_WORDS], *(["…"] if len(words) > _TOLD_WORDS else [])])
    return f"'{short if len(short) <= _TOLD_CHARACTERS else short[: _TOLD_CHARACTERS - 1].rstrip() + '…'}'"


def phrase(part: Contribution) -> str:
    """A feature within a sentence, with what it adds."""
    name = quoted(part.label) if is_named(part) else f"feature #{part.feature}, whose label is unclear"
    if part.label == f"#{part.feature}" or not part.label:
        name = f"feature #{part.feature}, which has no label"
    return f"{name} ({signed(part.value)})"


def signed(value: float) -> str:
    """Three decimals with a sign; what rounds to 0 has a plus."""
    return f"{value:+.3f}" if abs(value) >= 0.0005 else "+0.000"


def percent(share: float) -> str:
    """A share as whole per cents."""
    return f"{100 * share:.0f} %"
