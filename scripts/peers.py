"""What others do, for scripts/compare_quality.py: a weight becomes a decoded weight and the bits that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from kquant_cli.bases import make_basis
from kquant_cli.codebooks import kmeans, kmeans_plus_plus, lloyd_max, nearest

NF4 = (  # the table of QLoRA (arXiv 2305.14314, appendix E), as bitsandbytes has it
    *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
)


@dataclass(frozen=True)
class Peer:
    """`encode`: weight (rows, columns) and rate to the decoded weight and its bits in all; `white`: rotated."""

    encode: Callable[[Tensor, float], tuple[Tensor, float]]
    rates: tuple[float, ...]
    white: bool = False

    def takes(self, rate: float) -> bool:
        """Whether it has this rate."""
        return rate in self.rates


def nf4(weight: Tensor, rate: float, group: int = 64) -> tuple[Tensor, float]:
    """4-bit NormalFloat: the table over the largest magnitude of 64 weights, with a float16 scale each."""
    flat = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % group)).view(-1, group)
    scale = flat.abs().amax(dim=1, keepdim=True).half().float()
    table = torch.tensor(NF4)
    codes = torch.bucketize(flat / scale.clamp_min(1e-12), (table[1:] + table[:-1]) / 2)
    decoded = (table[codes] * scale).flatten()[: weight.numel()].view(weight.shape)
    return decoded, 4 * weight.numel() + 16 * len(scale)


def hqq(weight: Tensor, rate: float, group: int = 64) -> tuple[Tensor, float]:
    """HQQ by its package, groups along the axis that its authors advise (1); zeros and scales float16."""
    from hqq.core.quantize import Quantizer

    packed, meta = Quantizer.quantize(
        weight, nbits=int(rate), group_size=group, axis=1, compute_dtype=torch.float32, device="cpu", bitpack=False
    )
    decoded = Quantizer.dequantize(packed, meta).view(weight.shape).float()
    return decoded, int(rate) * weight.numel() + 32 * (weight.numel() / group)


def lloyd_max_rotated(weight: Tensor, rate: float) -> tuple[Tensor, float]:
    """A random rotation of the rows, their scale, and the best scalar levels of a Gaussian."""
    levels = lloyd_max(2 ** int(rate)).float()
    basis = make_basis("signed_hadamard_dct", weight.shape[1])
    x = basis.adjoint(weight)
    scale = x.square().mean(dim=1, keepdim=True).sqrt()
    decoded = levels[torch.bucketize(x / scale, (levels[1:] + levels[:-1]) / 2)]
    fitted = (x * decoded).sum(dim=1, keepdim=True) / decoded.square().sum(dim=1, keepdim=True)
    return basis.apply(decoded * fitted), int(rate) * weight.numel() + 16 * len(weight)


def higgs_like(weight: Tensor, rate: float) -> tuple[Tensor, float]:
    """A random rotation, a scale a group of 256, and a grid of 2^(2 rate) points for pairs, as HIGGS's with p = 2."""
    grid = gaussian_grid(round(2 ** (2 * rate)))
    basis = make_basis("signed_hadamard_dct", weight.shape[1])
    x = basis.adjoint(weight)
    columns = x.shape[1]
    padded = torch.nn.functional.pad(x, (0, -columns % 256)).view(len(x), -1, 256)
    counts = torch.full((padded.shape[1],), 256.0)
    counts[-1] -= -columns % 256
    scale = (padded.square().sum(-1) / counts).sqrt().half().float()[..., None]
    pairs = (padded / scale.clamp_min(1e-12)).reshape(-1, 2)
    decoded = (grid[nearest(pairs, grid).long()].view(padded.shape) * scale).view(len(x), -1)[:, :columns]
    return basis.apply(decoded), rate * weight.numel() + 16 * scale.numel()


@cache
def gaussian_grid(points: int) -> Tensor:
    """K-means of 2^20 Gaussian pairs; a rate such as 2.5 has 2^5 = 32 points for two weights."""
    sample = torch.randn(2**20, 2, generator=torch.Generator().manual_seed(0))
    start = kmeans_plus_plus(sample[: 2**15], points, 0)
    return kmeans(sample, start, max_iter=300, tol=1e-7).centroids.float()


PEERS: dict[str, Peer] = {
    "NF4, groups of 64": Peer(nf4, (4.0,)),
    "HQQ, groups of 64": Peer(hqq, (4.0, 3.0, 2.0)),
    "HIGGS-like grid, p = 2": Peer(higgs_like, (4.0, 3.0, 2.5, 2.0), white=True),
    "rotation + Lloyd-Max": Peer(lloyd_max_rotated, (4.0, 3.0, 2.0), white=True),
}
