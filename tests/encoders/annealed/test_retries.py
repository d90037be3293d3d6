"""Short rows, on which the searched momenta may oscillate, end as well as others."""

import pytest
import torch

from kquant_cli.bases import CoupledBases
from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import encode
from kquant_cli.encoders.annealed.annealing import anneal
from kquant_cli.encoders.annealed.retries import anneal_with_retries, row_errors
from kquant_cli.encoders.annealed.schedule import SWEEPS, expected_errors, find_schedule, points
from kquant_cli.encoders.annealed.sweeps import Sweeps, moving_positions


def unit_rows(rows, size, seed):
    x = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))
    return x / x.square().mean(dim=1, keepdim=True).sqrt()


@pytest.mark.parametrize(("levels", "effort"), [(8, "best"), (8, "balanced"), (16, "balanced")])
def test_rows_of_256(levels, effort):
    """Without the second attempt 5 to 10% of these rows have three times the error: 1.3 in the mean at (8, best)."""
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(5))
    error = encode(weight, EncoderConfig(levels=levels, effort=effort)).record.relative_error ** 2
    assert error < 1.08 * expected_errors(levels, effort)["ring"]


def test_only_lost_rows_are_annealed_again():
    """Rows that were good at once keep their codes; the others get better."""
    x, size = unit_rows(64, 128, 3), 128
    schedule, sweeps = find_schedule("ring", 8, "best"), SWEEPS["best"]
    drive = Sweeps(
        points("ring", 8, schedule),
        schedule.betas(sweeps),
        schedule.momenta(sweeps),
        moving_positions(12, size, 0.4, 0),
    )
    coupling, expected = CoupledBases(size, 0), expected_errors(8, "best")["ring"]
    first, _ = anneal(x, coupling, drive)
    errors = row_errors(x, first, coupling, drive.codebook)
    lost = errors > 1.15 * expected
    assert 0 < int(lost.sum()) < len(x)
    codes, _ = anneal_with_retries(x, coupling, drive, expected)
    assert torch.equal(codes[~lost], first[~lost])
    again = row_errors(x, codes, coupling, drive.codebook)
    assert (again <= errors).all()
    assert float(again[lost].mean()) < 0.8 * float(errors[lost].mean())
