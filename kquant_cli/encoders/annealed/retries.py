"""Annealing that is sure to settle: rows in which the extrapolation oscillated are annealed again with less of it.

The momenta that the search found lie near the edge of stability on rows of 1024. On short rows (64 to 256 columns, 5 to
30% of them with 400 sweeps) the averages then swing for ever, and the row ends with several times the error of others.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from kquant_cli.encoders.annealed.annealing import Coupling, Sweeps, anneal

LOST = 1.15  # times the expected error: three standard deviations of the rows of 256 columns
CALMER = (0.7, 0.0)  # factors of the momenta, one attempt after the other


def anneal_steadily(x: Tensor, coupling: Coupling, drive: Sweeps, expected: float) -> tuple[Tensor, Tensor]:
    """As `anneal` for rows x (rows, size) of unit mean square; `expected`: the mean squared error of a good row."""
    codes, trace = anneal(x, coupling, drive)
    alive = x.square().sum(dim=1) > 0  # no codes would be better for zeros
    errors = row_errors(x, codes, coupling, drive.codebook) * alive
    for factor in CALMER:
        lost = (errors > LOST * expected).nonzero().squeeze(1)
        if not len(lost):
            break
        again, _ = anneal(x[lost], coupling, replace(drive, momenta=factor * drive.momenta))
        found = row_errors(x[lost], again, coupling, drive.codebook)
        better = found < errors[lost]
        codes[lost[better]] = again[better]
        errors[lost[better]] = found[better]
    return codes, trace


def row_errors(x: Tensor, codes: Tensor, coupling: Coupling, codebook: Tensor) -> Tensor:
    """The mean of |x - u - Q v|^2 over each row (rows,), the scale that fits the row best left out."""
    u, v = (codebook.to(x.device)[:, column][codes.long()] for column in (0, 1))
    return (x - u - coupling.apply(v)).square_().mean(dim=1)
