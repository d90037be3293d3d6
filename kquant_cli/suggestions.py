"""The nearest known words, for whoever has mistyped one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def near(word: str, known: Iterable[str], cutoff: float = 0.5) -> list[str]:
    """At most two known words near `word`, the nearest first; `cutoff`: how alike they must be, 0 to 1."""
    return get_close_matches(word, list(known), n=2, cutoff=cutoff)


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean `x`?' for the known words nearest to `word`, or ''."""
    found = near(word, known)
    return f"; did you mean {' or '.join(f'`{c}`' for c in found)}?" if found else ""
