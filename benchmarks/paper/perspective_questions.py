"""Questions with two natural groups of answers: the paper's (arXiv 2411.00786), and twenty for 20 Newsgroups."""

from __future__ import annotations

from typing import NamedTuple


class Perspective(NamedTuple):
    """One of the two groups of answers.

    Attributes:
        words: Its name, as a person types it.
        label: Label of its passages in a labelled corpus; "" otherwise.
        printed: The paper's counts in the top 5 before and after; None for questions that are not the paper's.
    """

    words: str
    label: str = ""
    printed: tuple[int, int] | None = None


class BinaryQuestion(NamedTuple):
    """A question and its two perspectives.

    Attributes:
        text: The question.
        perspectives: Its two groups of answers.
        source: Its origin.
    """

    text: str
    perspectives: tuple[Perspective, Perspective]
    source: str


def _printed(source: str, text: str, *rows: tuple[str, int, int]) -> BinaryQuestion:
    one, two = (Perspective(words, printed=(before, after)) for words, before, after in rows)
    return BinaryQuestion(text, (one, two), source)


def _groups(text: str, one: str, two: str) -> BinaryQuestion:
    first, second = (Perspective(_NEWSGROUPS[label], label) for label in (one, two))
    return BinaryQuestion(text, (first, second), "20 Newsgroups")


_NEWSGROUPS = {
    "alt.atheism": "atheism",
    "comp.graphics": "computer graphics",
    "comp.os.ms-windows.misc": "Microsoft Windows",
    "comp.sys.ibm.pc.hardware": "PC hardware",
    "comp.sys.mac.hardware": "Macintosh",
    "comp.windows.x": "X Window System",
    "misc.forsale": "for sale",
    "rec.autos": "cars",
    "rec.motorcycles": "motorcycles",
    "rec.sport.baseball": "baseball",
    "rec.sport.hockey": "hockey",
    "sci.crypt": "encryption",
    "sci.electronics": "electronics",
    "sci.med": "medicine",
    "sci.space": "space",
    "soc.religion.christian": "Christianity",
    "talk.politics.guns": "guns",
    "talk.politics.mideast": "Middle East",
    "talk.politics.misc": "politics",
    "talk.religion.misc": "religion",
}

PAPER_QUESTIONS = (
    _printed(
        "Table 4, BGE",
        "What is the primary focus of a university education?",
        ("employment, salary, wages, jobs, bonuses", 2, 3),
        ("growth, improvement, learning, strategy, development", 3, 5),
    ),
    _printed(
        "Table 5, BGE",
        "What is a key factor in the spread of infectious diseases?",
        ("health, nutrition, immune, disease, metabolism", 2, 3),
        ("demographics, migration, populations, countries, socioeconomic", 1, 4),
    ),
    _printed(
        "Table 5, BGE",
        "What is a major influence on automotive emissions?",
        ("climate, weather, precipitation, seasons, diversity", 2, 5),
        ("automotive, engineering, mechanics, combustion, manufacturing", 3, 5),
    ),
    _printed(
        "Table 9, MiniCPM",
        "What determines the success of rehabilitation therapy?",
        ("energy, transformation, healing, vitality, balance", 0, 0),
        ("time, duration, intervals, periods, estimation", 0, 5),
    ),
    _printed(
        "Table 9, MiniCPM",
        "What shapes consumer decisions when buying eyewear?",
        ("health, vision, care, eye, conditions", 1, 5),
        ("glasses, eyewear, sunglasses, styles, features", 2, 4),
    ),
)
"""The questions of Tables 4, 5 and 9, with the labels of the paper's features and its counts."""

NEWSGROUP_QUESTIONS = (
    _groups("what is the best engine?", "rec.autos", "rec.motorcycles"),
    _groups("how much power does it need?", "sci.electronics", "comp.sys.ibm.pc.hardware"),
    _groups("how do I get a better picture?", "comp.graphics", "sci.space"),
    _groups("who won the game last night?", "rec.sport.baseball", "rec.sport.hockey"),
    _groups("which player should be traded?", "rec.sport.baseball", "rec.sport.hockey"),
    _groups("does God exist?", "alt.atheism", "soc.religion.christian"),
    _groups("what does the Bible say about it?", "soc.religion.christian", "talk.religion.misc"),
    _groups("should the government be allowed to control it?", "sci.crypt", "talk.politics.guns"),
    _groups("which driver do I need?", "comp.os.ms-windows.misc", "comp.sys.ibm.pc.hardware"),
    _groups("how do I change the fonts?", "comp.windows.x", "comp.os.ms-windows.misc"),
    _groups("how do I install a new hard disk?", "comp.sys.ibm.pc.hardware", "comp.sys.mac.hardware"),
    _groups("what is a fair price for a used one?", "rec.motorcycles", "misc.forsale"),
    _groups("is radiation dangerous?", "sci.med", "sci.space"),
    _groups("who is to blame for the deaths?", "talk.politics.mideast", "talk.politics.guns"),
    _groups("how does the sensor work?", "sci.electronics", "sci.space"),
    _groups("is it moral to kill?", "alt.atheism", "talk.politics.guns"),
    _groups("should drugs be legal?", "sci.med", "talk.politics.misc"),
    _groups("how do I read this file format?", "comp.graphics", "comp.sys.mac.hardware"),
    _groups("what did the president decide?", "talk.politics.misc", "talk.politics.mideast"),
    _groups("how can I protect myself?", "talk.politics.guns", "sci.crypt"),
)
"""Twenty of our own, written down before any was searched; labels assign the passages to the groups."""
