"""The reference of GPTQ: what it loses in H is well below what rounding loses, in the bits that it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from gptq import GROUP, gptq


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_loses_less_than_rounding(bits):
    draw = torch.Generator().manual_seed(bits)
    weight = torch.randn(48, 200, generator=draw)
    x = torch.randn(600, 200, generator=draw) @ torch.randn(200, 200, generator=draw)
    h = x.T @ x

    def loss(decoded):
        error = (decoded - weight).double()
        return float(((error @ h.double()) * error).sum())

    decoded, stored = gptq(weight, h, bits)
    rounded, _ = gptq(weight, torch.eye(200), bits)  # nothing to feed errors back through
    assert loss(decoded) < 0.8 * loss(rounded)
    assert stored == bits * weight.numel() + (16 + bits) * 48 * -(-200 // GROUP)
    assert all(len(row.unique()) <= 2 * 2**bits for row in decoded)
