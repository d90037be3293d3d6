"""The elementwise passes of the matrix form: in place, over blocks that stay in the cache, in as few visits as can be.

All matrices here are contiguous and equally large. Sums come back as tensors on their device, so that nobody waits.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

CPU_BLOCK = 2**18  # elements: four matrices' blocks fit into the cache, and an operation is still worth two threads
GPU_BLOCK = 2**26


def blocks(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same stretch of each matrix, one after the other, as flat views."""
    size = GPU_BLOCK if matrices[0].is_cuda else CPU_BLOCK
    return zip(*(matrix.view(-1).split(size) for matrix in matrices), strict=True)


def write_signs(residual: Tensor, signs: Tensor) -> Tensor:
    """signs <- sign(residual), with sign(0) = 0; returns |signs|^2, the number of entries that are not zero."""
    counts = []
    for r, s in blocks(residual, signs):
        torch.sign(r, out=s)
        counts.append(torch.dot(s, s))
    return torch.stack(counts).sum(dtype=torch.float64)


def take_step(c: Tensor, near: Tensor, part: Tensor, far: Tensor, image: Tensor) -> Tensor:
    """The sign step of size c: with S = sign(near), part += c S, near -= c S, far -= c image; returns `norms` after it.

    S is taken again from `near` instead of being read back: the matrix of signs has become the image.
    """
    sums, scratch = [], _scratch(near)
    for r, p, f, t in blocks(near, part, far, image):
        s = torch.sign(r, out=scratch[: len(r)])
        p.addcmul_(s, c)
        r.addcmul_(s, c, value=-1)
        f.addcmul_(t, c, value=-1)
        sums += _block_norms(r, f, scratch)
    return _total(sums)


def norms(near: Tensor, far: Tensor) -> Tensor:
    """(|near|_1, |far|_1, |near|_F^2) in float64."""
    scratch = _scratch(near)
    return _total([part for r, f in blocks(near, far) for part in _block_norms(r, f, scratch)])


def _block_norms(r: Tensor, f: Tensor, scratch: Tensor) -> list[Tensor]:
    # abs and sum, both vectorised, take a third of the time of vector_norm(..., 1)
    return [torch.abs(x, out=scratch[: len(x)]).sum() for x in (r, f)] + [torch.dot(r, r)]


def _total(sums: list[Tensor]) -> Tensor:
    return torch.stack(sums).view(-1, 3).sum(0, dtype=torch.float64)


def _scratch(like: Tensor) -> Tensor:
    return like.new_empty(min(like.numel(), GPU_BLOCK if like.is_cuda else CPU_BLOCK))
