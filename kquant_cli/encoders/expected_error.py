"""The error that an encoder is expected to leave, between the level counts at which it was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise


def interpolated_error(levels: int, table: Mapping[int, float]) -> float:
    """The relative squared error expected with `levels` centroids, from measured ones in `table` (levels: error).

    The logarithm of the error is linear in log2(levels) between neighbours of the table, and beyond its ends goes on
    as between the last two.

    Raises
    ------
    ValueError
        The table has fewer than two entries, or an error that is not positive, or `levels` is below 2.
    """
    if len(table) < 2 or not all(error > 0 for error in table.values()):
        raise ValueError(f"expected a table of two or more positive errors, found {dict(table)}")
    if levels < 2:
        raise ValueError(f"levels must be 2 or more, not {levels}")
    known = sorted(table)
    low, high = next((pair for pair in pairwise(known) if levels <= pair[1]), (known[-2], known[-1]))
    share = math.log(levels / low) / math.log(high / low)
    return math.exp((1 - share) * math.log(table[low]) + share * math.log(table[high]))
