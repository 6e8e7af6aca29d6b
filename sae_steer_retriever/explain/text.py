"""Numbers, labels and passages as text for a sentence or a table, always on one line."""

from __future__ import annotations

from sae_steer_retriever.errors import excerpt as cut
from sae_steer_retriever.explain.attribution import Contribution, SteeringTerm

# The most words and characters of a label in a sentence; a table shows the whole label.
_LABEL_WORDS, _LABEL_CHARACTERS = 3, 60
_EXCERPT_CHARACTERS = 240


def ordinal(number: int) -> str:
    """Returns 1st, 2nd, 3rd, 4th, 11th, 21st, 1,332nd."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"


def listed(texts: list[str]) -> str:
    """Returns "a", "a and b" or "a, b and c"."""
    return " and ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else "".join(texts)


def one_line(text: str) -> str:
    """Returns a text on one line, without control characters and without marks that reverse the writing direction."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def excerpt(text: str, characters: int = _EXCERPT_CHARACTERS) -> str:
    """Returns a text on one line, cut to at most `characters` with "…" at its end."""
    return cut(one_line(text), characters)


def is_named(part: Contribution) -> bool:
    """Returns whether a feature has a clear label; `Feature.name` marks the others with their id."""
    own = f"#{part.feature}"
    return bool(part.label) and part.label != own and not part.label.startswith(f"unclear {own} (")


def with_id(part: Contribution) -> str:
    """Returns the label followed by the id."""
    label, own = one_line(part.label), f"#{part.feature}"
    if label == own or not label:
        return f"{own} (no label)"
    return label if label.startswith(f"unclear {own}") else f"{label} {own}"


def edit_name(term: SteeringTerm) -> str:
    """Returns an edit's name as the user wrote it; an id gets a "#"."""
    name = one_line(term.name)
    return f"#{name}" if name.isdecimal() else name


def quoted(name: str) -> str:
    """Returns the first words of a label or of an edit's name, in quotation marks."""
    words = one_line(name).split(", ")
    short = ", ".join([*words[:_LABEL_WORDS], *(["…"] if len(words) > _LABEL_WORDS else [])])
    return f"'{excerpt(short, _LABEL_CHARACTERS)}'"


def phrase(part: Contribution) -> str:
    """Returns a feature and its contribution, for a sentence."""
    name = quoted(part.label) if is_named(part) else f"feature #{part.feature}, whose label is unclear"
    if part.label == f"#{part.feature}" or not part.label:
        name = f"feature #{part.feature}, which has no label"
    return f"{name} ({signed(part.value)})"


def signed(value: float) -> str:
    """Returns a number with a sign and three decimals; a number that rounds to 0 gets a plus."""
    return f"{value:+.3f}" if abs(value) >= 0.0005 else "+0.000"


def percent(share: float) -> str:
    """Returns a share in whole per cent."""
    return f"{100 * share:.0f} %"
