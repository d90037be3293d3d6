"""The numbers of levels that an allocation chooses from.

Of the level counts whose packed codes take the same bits (packing.py: 12 codes of 24 or of 25 levels take 56 bits) only
one is offered, so that more levels always mean more bits: the largest even one, as rings of points are antipodal pairs,
and above 64, where few are needed, a round one.
"""

from __future__ import annotations

from collections.abc import Callable

from kquant_cli.packing import MAX_LEVELS

LEVELS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 256)


def possible_levels(allows: Callable[[int], bool]) -> tuple[int, ...]:
    """Those of `LEVELS` that an encoder allows; all that it allows, where it allows none of them."""
    return tuple(filter(allows, LEVELS)) or tuple(filter(allows, range(2, MAX_LEVELS + 1)))
