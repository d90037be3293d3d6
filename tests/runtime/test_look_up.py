"""Codebooks on a grid of one byte: which are found to be, and that the tables give every entry back."""

import pytest
import torch

from kquant_cli.runtime.products.look_up import EIGHT, FOUR, SIXTEEN, SIXTEEN_PAIRED, TABLE, look_up


def entry(table, look, code):
    """What PRMT gives for a code: the byte of its low three bits, or, where bit 3 is set, that byte's sign."""
    byte = int(table.view(torch.int8)[8 * look + (code & 7)])
    return byte if code < 8 else -1 if byte < 0 else 0


def decoded(found, levels):
    """The entries (levels, 2) as product.cu looks them up."""
    table, kind = found.table, found.kind
    if kind in (FOUR, EIGHT):
        return [[entry(table, 0, code), entry(table, 2, code)] for code in range(levels)]
    if kind == SIXTEEN:
        both = range(0, 4, 2)
        return [[entry(table, k, c) + entry(table, k + 1, c ^ 8) for k in both] for c in range(levels)]
    return [[entry(table, 0, c & 7), entry(table, 2, c) + entry(table, 3, c & 7)] for c in range(levels)]


@pytest.mark.parametrize(("levels", "kind"), [(4, FOUR), (8, EIGHT), (16, SIXTEEN)])
@pytest.mark.parametrize("step", [1.0, 0.0372, 3e-9, 2e7])
def test_a_codebook_on_a_grid_is_found_and_given_back(levels, kind, step):
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        numbers = torch.randint(-126, 127, (levels, 2), generator=draw)
        numbers[3, 1] = (-126, 125, 40)[seed % 3]
        found = look_up(numbers.float() * step)
        assert found.kind == kind
        grid = torch.tensor(decoded(found, levels)).double() * found.step
        assert float((grid - numbers.double() * step).abs().max()) < 2e-5 * step
        assert int(found.table.view(torch.int8).abs().max()) <= 127


def test_pairs_of_codes_with_one_u_take_the_shorter_way():
    for seed in range(20):
        numbers = torch.randint(-63, 64, (16, 2), generator=torch.Generator().manual_seed(seed))
        numbers[8:, 0] = numbers[:8, 0]
        found = look_up(numbers.float())
        assert found.kind == SIXTEEN_PAIRED
        assert (torch.tensor(decoded(found, 16)) * found.step).round().tolist() == numbers.tolist()
    numbers[:8, 1], numbers[8:, 1] = 70, -70  # a difference of 140 is no byte
    assert look_up(numbers.float()).kind == SIXTEEN


def test_the_largest_byte_is_refused_where_the_tables_would_need_one_more():
    numbers = torch.arange(1, 33).view(16, 2)
    numbers[0, 0], numbers[8, 0] = 127, -3  # P would be 128
    assert look_up(numbers.float()).kind == TABLE + 4
    numbers[8, 0] = 3
    assert look_up(numbers.float()).kind == SIXTEEN


def test_other_codebooks_are_on_no_grid():
    draw = torch.Generator().manual_seed(0)
    numbers = torch.randint(-126, 127, (16, 2), generator=draw).float()
    others = [torch.randn(16, 2, generator=draw), numbers * 0.1 + 1e-3, (numbers * 0.1).half().float()]
    numbers[0, 0] = 200  # more than a byte
    for book in [*others, numbers]:
        assert look_up(book).kind == TABLE + 4


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("unit", [1.0, 1e-20, 1e20])
def test_a_table_has_both_numbers_of_each_code_in_float16(bits, unit):
    book = torch.randn(2**bits, 2, generator=torch.Generator().manual_seed(bits)) * unit
    found = look_up(book)
    assert (found.kind, found.bits, found.table.dtype) == (TABLE + bits, bits, torch.int32)
    decoded = found.table.view(torch.float16).view(-1, 2).double() * found.step
    assert float((decoded - book).abs().max() / book.abs().max()) < 2.0**-11


def test_what_no_kernel_looks_up():
    """Words of other numbers of levels are no fields of bits."""
    assert look_up(torch.randn(5, 2)) is None
    assert look_up(torch.randn(12, 2)) is None
    assert look_up(torch.zeros(16, 2)) is None
    assert look_up(torch.randn(16, 2) * float("nan")) is None
    assert look_up(torch.tensor([[1.0, float("inf")], [2.0, 3.0]])) is None


def test_the_words_of_a_look_up():
    """Digits of a word, below 0 where activations are float16."""
    assert [look_up(torch.randn(2**bits, 2)).digits for bits in range(1, 9)] == [-8, -4, -8, -2, -8, -4, -8, -1]
    assert [look_up(torch.tensor([[7.0, 3.0]] * levels)).digits for levels in (4, 8, 16)] == [4, 8, 2]
