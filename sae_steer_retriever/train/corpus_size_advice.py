"""What to tell someone whose corpus is too small for what is asked of it."""

from __future__ import annotations

from sae_steer_retriever.train.sizing import Sizes

# Rules of thumb, not measured. A latent that names fewer passages than the second has too few examples to make a label
# of and to test it on.
_ENOUGH_PASSAGES = 500
_ENOUGH_FIRINGS = 8


def advise(passages: int, rows: int, sizes: Sizes, k_labels: int, *, latents_given: bool) -> tuple[str, ...]:
    """Sentences on what will suffer, each with what to do about it; none if nothing will.

    Args:
        passages: Number of passages.
        rows: Number of rows fitted: passages, their query-like texts, queries.
        sizes: Of the SAE.
        k_labels: Naming latents per passage.
        latents_given: Whether someone asked for that many latents; the library's own choice is not held against the
            number of rows.
    """
    latents, k = sizes.latents, sizes.k
    # With the k that is advised, where less is: following one sentence must not bring up another.
    firings = _firings(passages, latents, min(k, _quarter(latents)), k_labels)
    advice = []
    if passages < _ENOUGH_PASSAGES:
        advice.append(
            f"{passages:,} passages: features will be coarse: topics rather than details. Add documents, or lower "
            "--passage-characters to get more and shorter passages."
        )
    rare = firings < _ENOUGH_FIRINGS
    crowded = latents_given and latents > rows / 2
    bearable = _bearable_latents(passages, rows, sizes, k_labels) if rare or crowded else latents
    if rare:
        advice.append(
            f"{latents:,} latents: each would name {firings:.1f} of {passages:,} passages on average, fewer than "
            f"{_ENOUGH_FIRINGS}: most latents will be too rare to be named: {_remedy(bearable, k)}."
        )
    elif crowded:
        advice.append(
            f"{latents:,} latents for {rows:,} rows, more than one for two: many latents will hold a single row "
            f"instead of what rows share: {_remedy(bearable, k)}."
        )
    if k > _quarter(latents):
        best = _quarter(bearable or latents)
        advice.append(
            f"k = {k}, more than a quarter of {latents:,} latents: most latents will be active in most texts and tell "
            f"nothing apart: lower -k to {min(k, best)}."
        )
    return tuple(advice)


def _quarter(latents: int) -> int:
    """The most active latents that leave a code sparse."""
    return max(1, latents // 4)


def _firings(passages: int, latents: int, k: int, k_labels: int) -> float:
    """How many passages a latent names, on average."""
    return passages * min(k_labels, k) / latents


def _bearable_latents(passages: int, rows: int, sizes: Sizes, k_labels: int) -> int | None:
    """The largest power of two below the number of latents about which nothing would have to be said."""
    largest, latents = None, 4
    while latents < sizes.latents and latents <= rows / 2:
        if _firings(passages, latents, min(sizes.k, _quarter(latents)), k_labels) >= _ENOUGH_FIRINGS:
            largest = latents
        latents *= 2
    return largest


def _remedy(latents: int | None, k: int) -> str:
    if latents is None:
        return "add documents"
    return f"lower --latents to {latents}" + (f" and -k to {_quarter(latents)}" if k > _quarter(latents) else "")
