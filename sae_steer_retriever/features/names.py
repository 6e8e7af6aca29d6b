"""Names of features as people write them: ids, and words in any case and number."""

from __future__ import annotations

import re
import unicodedata

import numpy as np


def feature_id(name: str | int) -> int | None:
    """Returns the id in a name such as `84340`, "84340", "#84340" or "unclear #84340 (...)"; None for other names.

    Raises:
        TypeError: `name` is neither a number nor a text.
    """
    if isinstance(name, int | np.integer):
        return int(name)
    if not isinstance(name, str):
        raise TypeError(f"a feature is named by its id or by a text, got {type(name).__name__}.")
    text = name.strip()
    # An explanation shows a feature with a weak label as "unclear #12 (court, tennis)".
    shown = re.fullmatch(r"unclear #(\d{1,12})( \(.*\))?", text, flags=re.ASCII | re.DOTALL)
    digits = shown[1] if shown else text.removeprefix("#")
    return int(digits) if re.fullmatch(r"\d{1,12}", digits, flags=re.ASCII) else None


def folded(name: str) -> str:
    """A name as it is compared: without case, with single spaces and composed accents (NFC)."""
    return unicodedata.normalize("NFC", " ".join(name.casefold().split()))


def stem(word: str) -> str:
    """The key by which words are compared: without case and English plural endings."""
    key = folded(word)
    if len(key) > 3 and key.endswith("s") and not key.endswith(("ss", "us", "is")):
        key = key[:-1]
    if len(key) > 3 and key.endswith("ie"):  # families and family, movies and movie
        return key[:-2] + "y"
    if len(key) > 3 and key.endswith(("xe", "ze", "che", "she", "sse")):  # taxes and tax, caches and cache
        return key[:-1]
    return key
