"""Packing against hand-made bytes and plain integer arithmetic."""

import pytest
import torch

from kquant_cli.packing import count_invalid, pack, row_bytes, unpack, word


def test_bytes_by_hand():
    codes = torch.tensor([[1, 2, 3, 4, 15]], dtype=torch.uint8)  # three words: codes 0 and 3, 1 and 4, 2 and none
    assert pack(codes, 16).tolist() == [[0x41, 0xF2, 0x03]]
    assert pack(torch.tensor([[1, 2, 0, 1, 2]], dtype=torch.uint8), 3).tolist() == [[1 + 2 * 3 + 27 + 2 * 81]]
    eight = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0]], dtype=torch.uint8)
    number = sum(code << (3 * i) for i, code in enumerate(eight[0].tolist()))
    assert pack(eight, 8).tolist() == [list(number.to_bytes(3, "little"))]
    assert pack(torch.tensor([[200, 7]], dtype=torch.uint8), 256).tolist() == [[200, 7]]


def test_digits_and_bytes_are_dealt_in_stretches():
    codes = torch.arange(16, dtype=torch.uint8)[None] % 8  # two words of eight digits, in three bytes each
    numbers = [sum(int(codes[0, 2 * i + t]) << (3 * i) for i in range(8)) for t in (0, 1)]
    expected = [number >> 8 * byte & 255 for byte in range(3) for number in numbers]
    assert pack(codes, 8).tolist() == [expected]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [(2, (8, 1)), (3, (5, 1)), (4, (4, 1)), (8, (8, 3)), (32, (8, 5)), (64, (4, 3)), (128, (8, 7))],
)
def test_words(levels, expected):
    assert word(levels) == expected


def test_round_trip_and_size_of_every_number_of_levels():
    """Rows of a single code, of about a word, and of several words with and without a rest."""
    for levels in range(2, 257):
        digits, size = word(levels)
        for columns in (1, 7, 8, 33, 100):
            codes = torch.randint(levels, (5, columns), generator=torch.Generator().manual_seed(levels)).to(torch.uint8)
            codes[0] = levels - 1  # the largest number a word can hold
            packed = pack(codes, levels)
            words = -(-columns // digits)
            assert packed.shape == (5, row_bytes(columns, levels)) == (5, words * size), (levels, columns)
            assert torch.equal(unpack(packed, levels, columns), codes), (levels, columns)
            number = sum(int(c) * levels**i for i, c in enumerate(codes[1, ::words].tolist()))
            assert int.from_bytes(bytes(packed[1, ::words].tolist()), "little") == number, (levels, columns)


def test_refuses():
    with pytest.raises(ValueError, match="a code is 4"):
        pack(torch.tensor([[4]], dtype=torch.uint8), 4)
    with pytest.raises(ValueError, match="between 2 and 256"):
        word(1)
    with pytest.raises(ValueError, match="expected 4"):
        unpack(torch.zeros(2, 5, dtype=torch.uint8), 16, 8)


@pytest.mark.parametrize(("levels", "columns"), [(2, 8), (3, 7), (5, 50), (8, 9), (16, 6), (16, 7), (24, 30), (256, 5)])
def test_words_that_packing_cannot_have_written_are_counted(levels, columns):
    torch.manual_seed(0)
    packed = pack(torch.randint(0, levels, (4, columns), dtype=torch.uint8), levels)
    assert count_invalid(packed, levels, columns) == 0
    possible = [  # of each byte of the first row, the values with which the row is still one that packing writes
        sum(torch.equal(pack(unpack(row, levels, columns), levels), row) for row in rows_with(packed[:1], place))
        for place in range(packed.shape[1])
    ]
    counted = [
        256 - sum(count_invalid(row, levels, columns) > 0 for row in rows_with(packed[:1], place))
        for place in range(packed.shape[1])
    ]
    assert counted == possible


def rows_with(row, place):
    for value in range(256):
        changed = row.clone()
        changed[0, place] = value
        yield changed
