"""How people write a feature: by its id, or by a word in some form."""

from __future__ import annotations

import re
import unicodedata

import numpy as np


def feature_id(name: str | int) -> int | None:
    """The id that a name is: `84340`, "84340", "#84340" or what an unclear feature is shown as; None if it is none.

    Raises:
        TypeError: It is neither a number nor a text.
    """
    if isinstance(name, int | np.integer):
        return int(name)
    if not isinstance(name, str):
        raise TypeError(f"a feature is named by its id or by a text, got {type(name).__name__}.")
    text = name.strip()
    # "unclear #12 (court, tennis)" is how an explanation shows a feature: what is shown can be asked for.
    shown = re.fullmatch(r"unclear #(\d{1,12})( \(.*\))?", text, flags=re.ASCII | re.DOTALL)
    digits = shown[1] if shown else text.removeprefix("#")
    return int(digits) if re.fullmatch(r"\d{1,12}", digits, flags=re.ASCII) else None


def folded(name: str) -> str:
    """A name as it is compared: without case, with its spaces once and its accents composed (NFC)."""
    return unicodedata.normalize("NFC", " ".join(name.casefold().split()))


def stem(word: str) -> str:
    """Case and a plain English plural do not make another name: a key for comparison, not a word."""
    key = folded(word)
    if len(key) > 3 and key.endswith("s") and not key.endswith(("ss", "us", "is")):
        key = key[:-1]
    if len(key) > 3 and key.endswith("ie"):  # families and family, movies and movie
        return key[:-2] + "y"
    if len(key) > 3 and key.endswith(("xe", "ze", "che", "she", "sse")):  # taxes and tax, caches and cache
        return key[:-1]
    return key
