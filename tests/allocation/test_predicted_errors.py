"""Which level counts are offered, and the errors predicted for them."""

import math
from itertools import pairwise

import pytest

from kquant_cli.allocation.level_counts import LEVELS, MEASURED, predicted_error
from kquant_cli.packing import MAX_LEVELS, row_bytes

COLUMNS = 21 * 5 * 8 * 11  # so that whole words fill a row for most level counts


def test_more_levels_take_more_bytes_and_leave_less_error() -> None:
    for fewer, more in pairwise(LEVELS):
        assert row_bytes(COLUMNS, fewer) < row_bytes(COLUMNS, more)
        assert predicted_error(fewer) > predicted_error(more)
    assert (LEVELS[0], LEVELS[-1]) == (2, MAX_LEVELS)
    assert {2**bits for bits in range(1, 9)} <= set(LEVELS)


def test_of_even_level_counts_of_equal_bits_the_largest_is_offered() -> None:
    for levels in LEVELS:
        if 5 < levels < 80:  # above, where few are needed, round numbers
            assert row_bytes(COLUMNS, levels) < row_bytes(COLUMNS, levels + 2)


def test_measured_errors_are_returned_as_they_are() -> None:
    for levels, error in MEASURED.items():
        assert predicted_error(levels) == pytest.approx(error, rel=1e-12)


def test_between_them_the_logarithm_is_linear_in_the_bits() -> None:
    table = {4: 1e-1, 16: 1e-3}
    assert predicted_error(8, table) == pytest.approx(1e-2)
    assert predicted_error(64, table) == pytest.approx(1e-5)  # and so beyond the ends
    assert predicted_error(2, table) == pytest.approx(1.0)
    assert math.log(predicted_error(10)) == pytest.approx(
        math.log(0.021) + math.log2(10 / 8) / math.log2(12 / 8) * math.log(0.01 / 0.021)
    )


def test_impossible_tables_and_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="two or more positive errors"):
        predicted_error(4, {4: 0.1})
    with pytest.raises(ValueError, match="two or more positive errors"):
        predicted_error(4, {4: 0.1, 8: 0.0})
    with pytest.raises(ValueError, match="levels must be 2 or more"):
        predicted_error(1)
