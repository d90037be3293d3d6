"""The fast sum of a tensor's bytes: its definition written out, and that no change of them passes."""

import pytest
import torch

from kquant_cli.files.tensor_sums import BLOCK, FACTOR, WORDS, TensorSum, _weights, tensor_sum


def defined(content: bytes) -> int:
    weights, total = [w % (1 << 64) for w in _weights().tolist()], 0
    whole = len(content) // 8 * 8
    for begin in range(0, whole, BLOCK):
        block = content[begin : min(begin + BLOCK, whole)]
        words = [int.from_bytes(block[at : at + 8], "little") for at in range(0, len(block), 8)]
        total = (total * FACTOR + sum(w * x for w, x in zip(weights, words, strict=False))) % (1 << 64)
    if whole < len(content):
        total = (total * FACTOR + int.from_bytes(content[whole:], "little") + 1) % (1 << 64)
    return total


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 800, BLOCK, BLOCK + 8, 2 * BLOCK + 13])
def test_the_definition(size):
    values = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    assert tensor_sum(values) == defined(values.numpy().tobytes())
    pieces = TensorSum()
    for piece in values.split(BLOCK):
        pieces.add(piece)
    assert pieces.value == tensor_sum(values)


def test_the_weights_are_odd_and_differ():
    weights = _weights()
    assert weights.numel() == WORDS
    assert bool((weights % 2 != 0).all())
    assert len(set(weights.tolist())) == WORDS


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.bool, torch.complex64])
def test_a_change_anywhere_is_seen(dtype):
    values = torch.randint(0, 2, (40, 33), generator=torch.Generator().manual_seed(0)).to(dtype)
    before = tensor_sum(values)
    for place in ((0, 0), (17, 4), (39, 32)):
        other = values.clone()
        other[place] = 1 - other[place].to(torch.complex64).real
        assert tensor_sum(other) != before
    assert tensor_sum(values.flip(0)) != before
    assert tensor_sum(values.T.contiguous().T) == before
    assert tensor_sum(torch.tensor(1.0)) != tensor_sum(torch.tensor(2.0))
