"""Annealing that is sure to settle: rows in which the extrapolation oscillated are annealed again with less of it.

The momenta that the search found lie near the edge of stability on rows of 1024. On short rows (64 to 256 columns, 5 to
30% of them with 400 sweeps) the averages then swing for ever, and the row ends with several times the error of others.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from kquant_cli.bases import CoupledBases
from kquant_cli.encoders.annealed.annealing import anneal
from kquant_cli.encoders.annealed.sweeps import Sweeps

RETRY_ABOVE = 1.15  # times the expected error: three standard deviations of the rows of 256 columns
MOMENTUM_FACTORS = (0.7, 0.0)  # one attempt after the other


def anneal_with_retries(x: Tensor, bases: CoupledBases, drive: Sweeps, expected: float) -> tuple[Tensor, Tensor]:
    """As `anneal` for rows x (rows, size) of unit mean square; `expected`: the mean squared error of a good row."""
    codes, trace = anneal(x, bases, drive)
    alive = x.square().sum(dim=1) > 0  # no codes would be better for zeros
    errors = row_errors(x, codes, bases, drive.codebook) * alive
    for factor in MOMENTUM_FACTORS:
        failed = (errors > RETRY_ABOVE * expected).nonzero().squeeze(1)
        if not len(failed):
            break
        again, _ = anneal(x[failed], bases, replace(drive, momenta=factor * drive.momenta))
        found = row_errors(x[failed], again, bases, drive.codebook)
        better = found < errors[failed]
        codes[failed[better]] = again[better]
        errors[failed[better]] = found[better]
    return codes, trace


def row_errors(x: Tensor, codes: Tensor, bases: CoupledBases, codebook: Tensor) -> Tensor:
    """The mean of |x - u - Q v|^2 over each row (rows,), the scale that fits the row best left out."""
    u, v = (codebook.to(x.device)[:, column][codes.long()] for column in (0, 1))
    return (x - u - bases.couple(v)).square_().mean(dim=1)
