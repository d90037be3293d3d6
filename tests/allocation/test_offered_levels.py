"""Which level counts are offered."""

from itertools import pairwise

from kquant_cli.allocation import LEVELS, possible_levels
from kquant_cli.packing import MAX_LEVELS, row_bytes

COLUMNS = 21 * 5 * 8 * 11  # so that whole words fill a row for most level counts


def test_more_levels_take_more_bytes() -> None:
    for fewer, more in pairwise(LEVELS):
        assert row_bytes(COLUMNS, fewer) < row_bytes(COLUMNS, more)
    assert (LEVELS[0], LEVELS[-1]) == (2, MAX_LEVELS)
    assert {2**bits for bits in range(1, 9)} <= set(LEVELS)


def test_of_even_level_counts_of_equal_bits_the_largest_is_offered() -> None:
    for levels in LEVELS:
        if 5 < levels < 80:  # above, where few are needed, round numbers
            assert row_bytes(COLUMNS, levels) < row_bytes(COLUMNS, levels + 2)


def test_what_an_encoder_allows_is_offered() -> None:
    assert possible_levels(lambda levels: True) == LEVELS
    assert possible_levels(lambda levels: levels % 2 == 0) == tuple(levels for levels in LEVELS if levels % 2 == 0)
    assert possible_levels(lambda levels: levels == 16) == (16,)
    assert possible_levels(lambda levels: levels in (7, 11)) == (7, 11)  # none of those that are offered
