"""The noise has the energy that is asked for, row by row, where the encoder's error has it."""

import pytest
import torch

from kquant_cli.calibration.noise import noise

WEIGHT = torch.randn(6, 40000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 6)[:, None]
SCALE = torch.rand(40000, generator=torch.Generator().manual_seed(1)) + 0.1


@pytest.mark.parametrize("scale", [None, SCALE], ids=["plain", "channel-scaled"])
def test_every_row_has_the_relative_squared_error_spread_evenly(scale: torch.Tensor | None) -> None:
    d = torch.ones(40000) if scale is None else scale
    error = noise(WEIGHT, 1e-2, scale, "a") * d
    energy = error.square().sum(1) / (WEIGHT * d).square().sum(1)
    torch.testing.assert_close(energy, torch.full((6,), 1e-2), rtol=0.04, atol=0)
    halves = error.view(6, 2, -1).square().sum(2)
    torch.testing.assert_close(halves[:, 0], halves[:, 1], rtol=0.08, atol=0)
    normal = error / error.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(normal.pow(4).mean(1), torch.full((6,), 3.0), rtol=0.1, atol=0)
    assert float(torch.corrcoef(error).fill_diagonal_(0).abs().max()) < 0.03


def test_the_label_determines_it() -> None:
    assert torch.equal(noise(WEIGHT, 1e-2, None, "a"), noise(WEIGHT, 1e-2, None, "a"))
    assert not torch.equal(noise(WEIGHT, 1e-2, None, "a"), noise(WEIGHT, 1e-2, None, "b"))
    assert torch.count_nonzero(noise(torch.zeros(2, 3), 1e-2, None, "a")) == 0
