"""The elementwise passes of the matrix form: in place, over blocks that stay in the cache, in as few visits as can be.

All matrices here are contiguous and equally large. Sums come back as tensors on their device, so that nobody waits.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from kquant_cli.threads import for_each

CPU_BLOCK = (
    2**18
)  # elements: small enough for the cache; the threads share the blocks, so that sums are always the same
GPU_BLOCK = 2**26


def take_step(c: Tensor, near: Tensor, part: Tensor | None = None) -> Tensor:
    """The sign step of size c: near -= c sign(near), and part += c sign(near) if given; returns `measure(near)`."""
    return _visit(c, near, part)


def measure(residual: Tensor) -> Tensor:
    """(|x|_1, |sign x|^2, |x|_F^2) in float64, with sign(0) = 0: the second is the number of entries that are not 0."""
    return _visit(None, residual, None)


def _visit(c: Tensor | None, near: Tensor, part: Tensor | None) -> Tensor:
    def visit(r: Tensor, p: Tensor) -> Tensor:
        signs = torch.sign(r)
        if c is not None:
            r.addcmul_(signs, c, value=-1)
            if part is not None:
                p.addcmul_(signs, c)
            torch.sign(r, out=signs)
        return torch.stack([torch.dot(r, signs), torch.dot(signs, signs), torch.dot(r, r)])

    sums = for_each(visit, _blocks(near), _blocks(near if part is None else part), device=near.device)
    return torch.stack(sums).sum(0, dtype=torch.float64)


def _blocks(matrix: Tensor) -> Iterator[Tensor]:
    return iter(matrix.view(-1).split(_block_size(matrix)))


def _block_size(matrix: Tensor) -> int:
    return GPU_BLOCK if matrix.is_cuda else CPU_BLOCK
