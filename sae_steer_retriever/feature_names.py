"""How people write a feature: by its id, or by a word in some form."""

from __future__ import annotations

import re

import numpy as np


def feature_id(name: str | int) -> int | None:
    """The id that a name is: `84340`, "84340", "#84340" or what an unclear feature is shown as; None if it is none."""
    if isinstance(name, int | np.integer):
        return int(name)
    text = name.strip()
    # "unclear #12 (court, tennis)" is how an explanation shows a feature: what is shown can be asked for.
    shown = re.fullmatch(r"unclear #(\d{1,12})( \(.*\))?", text, flags=re.ASCII | re.DOTALL)
    digits = shown[1] if shown else text.removeprefix("#")
    return int(digits) if re.fullmatch(r"\d{1,12}", digits, flags=re.ASCII) else None


def stem(word: str) -> str:
    """Case and a plain English plural do not make another name: a key for comparison, not a word."""
    folded = " ".join(word.casefold().split())
    if len(folded) > 3 and folded.endswith("s") and not folded.endswith(("ss", "us", "is")):
        folded = folded[:-1]
    if len(folded) > 3 and folded.endswith("ie"):  # families and family, movies and movie
        return folded[:-2] + "y"
    if len(folded) > 3 and folded.endswith(("xe", "ze", "che", "she", "sse")):  # taxes and tax, caches and cache
        return folded[:-1]
    return folded
