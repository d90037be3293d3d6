"""The numbers of levels that an allocation chooses from, and the error that each is predicted to leave.

Of the level counts whose packed codes take the same bits (packing.py: 12 codes of 24 or of 25 levels take 56 bits) only
one is offered, so that more levels always mean more bits: the largest even one, as rings of points are antipodal pairs,
and above 64, where few are needed, a round one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from types import MappingProxyType

LEVELS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 256)

# Relative squared error of the annealed encoder on Gaussian rows, at its balanced effort (SCIENCE.md section 3).
MEASURED: Mapping[int, float] = MappingProxyType(
    {2: 0.30, 3: 0.137, 4: 0.0735, 5: 0.0502, 6: 0.0363, 8: 0.0210, 12: 0.0100, 16: 0.0060, 32: 0.0018, 64: 0.0007}
)


def predicted_error(levels: int, table: Mapping[int, float] = MEASURED) -> float:
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
