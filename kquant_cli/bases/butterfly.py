"""A random orthogonal butterfly of any size n: Q = B_count ... B_2 B_1, B = (permutation) (layer L-1) ... (layer 0).

L = ceil(log2 n). Layer l turns the pair of coordinates (i, i + 2^l), for every i whose bit l is clear, by its own
random angle a: x_i, x_j -> cos(a) x_i - sin(a) x_j, sin(a) x_i + cos(a) x_j; a pair that reaches beyond n stays put.
The permutation takes x to x[perm]. From RandomState(seed), for each product in turn: 2^(L-1) angles for each layer
(`random_angles`; layer 0 first, i ascending over 2^L, also for the pairs beyond n), then perm (`random_permutation`).

Fast application: the layers l, ..., l + g - 1 act within sets of s = 2^g coordinates that differ in those bits only, so
together they are a block-diagonal matrix with s x s blocks, once each set is gathered (the factorisation of Monarch
matrices). A product costs L / g gathers of rows and batched s x s matrix products instead of 6 n L operations of its
own: 2^13 = 8192 takes three of each.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from numpy.random import RandomState
from torch import Tensor

from kquant_cli.bases.application import CPU_CHUNK
from kquant_cli.bases.basis import GeneratedBasis
from kquant_cli.bases.draws import random_angles, random_permutation
from kquant_cli.bases.groups import split_bits
from kquant_cli.bases.spec import BasisSpec

GROUP_BITS = 5  # measured: blocks of 16 and 32 beat 64 and more on a CPU; three gathers a product up to n = 32768


class Stage(NamedTuple):
    """x -> blocks @ x[gather], or for the adjoint x -> (blocks^T @ x)[scatter]; no blocks for the last stage."""

    gather: Tensor  # (padded size,)
    scatter: Tensor  # its inverse
    blocks: Tensor | None  # (padded size / s, s, s)


class Butterfly(GeneratedBasis):
    """`count` butterflies (default 3), each with a permutation; at most 32 n numbers are kept for a group of layers."""

    options: ClassVar[dict[str, int]] = {"count": 3}
    chunk: ClassVar[int] = 2 * CPU_CHUNK  # every chunk reads the blocks

    @classmethod
    def numbers(cls, spec: BasisSpec) -> int:
        """The angles of all layers."""
        return spec.options.get("count", cls.options["count"]) * spec.size * (spec.size - 1).bit_length()

    def make_tables(self, device: torch.device, dtype: torch.dtype) -> list[Stage]:
        """The stages, in the order in which they act."""
        n = self.size
        bits = (n - 1).bit_length()
        groups = split_bits(bits, GROUP_BITS)
        lowest = 2 ** (
            bits - groups[-1]
        )  # the lowest bit of the last group: whole sets of the others make its multiples
        padded = -(-n // lowest) * lowest
        assert self.spec is not None
        draws = RandomState(self.spec.seed)
        place = torch.arange(padded)  # place[i]: where the stages so far have put coordinate i
        stages = []
        for _ in range(self.option("count")):
            begin = 0
            for g in groups:
                block_rows = _merged_layers(draws, n, bits, begin, g)[:padded]
                order = _sets_together(padded, begin, g)
                gather = place[order]
                place = torch.argsort(order)
                side = min(2**g, padded // 2**begin)
                blocks = block_rows[order, :side].view(-1, side, side)
                stages.append(Stage(gather.to(device), torch.argsort(gather).to(device), blocks.to(device, dtype)))
                begin += g
            permutation = torch.arange(padded)
            permutation[:n] = torch.from_numpy(random_permutation(draws, n))
            place = place[permutation]
        stages.append(Stage(place.to(device), torch.argsort(place).to(device), None))
        return stages

    def rows(self, x: Tensor, tables: list[Stage], adjoint: bool) -> Tensor:
        """By columns: gathering whole rows of the transposed chunk is fast."""
        return self.columns(x.T.contiguous(), tables, adjoint).T

    def columns(self, x: Tensor, tables: list[Stage], adjoint: bool) -> Tensor:
        """Stage by stage; zeros below the n rows make the sets whole, and stay zero."""
        n, c = x.shape
        padded = len(tables[0].gather)
        if padded > n:
            x = torch.cat([x, x.new_zeros(padded - n, c)])
        for gather, scatter, blocks in reversed(tables) if adjoint else tables:
            if not adjoint:
                x = x.index_select(0, gather)
            if blocks is not None:
                x = torch.bmm(blocks.mT if adjoint else blocks, x.view(len(blocks), -1, c)).view(padded, c)
            if adjoint:
                x = x.index_select(0, scatter)
        return x[:n]


def _merged_layers(draws: RandomState, n: int, bits: int, begin: int, g: int) -> Tensor:
    """The product of the layers begin .. begin + g - 1: row i holds the 2^g columns that share i's other bits."""
    size = 2**bits
    product = torch.eye(2**g, dtype=torch.float64)[(torch.arange(size) >> begin) % 2**g]  # (2^L, 2^g)
    for layer in range(begin, begin + g):
        angles = torch.from_numpy(random_angles(draws, size // 2)).view(-1, 2**layer)
        upper = torch.arange(size).view(-1, 2, 2**layer)[:, 1]
        angles = torch.where(upper < n, angles, 0.0)[..., None]
        low, high = product.view(-1, 2, 2**layer, 2**g).unbind(1)
        cosine, sine = angles.cos(), angles.sin()
        product = torch.stack([cosine * low - sine * high, sine * low + cosine * high], 1).view(size, 2**g)
    return product


def _sets_together(padded: int, begin: int, g: int) -> Tensor:
    """The coordinates in the order (high bits, low bits, bits begin .. begin + g - 1): each set in one piece."""
    return torch.arange(padded).view(-1, min(2**g, padded // 2**begin), 2**begin).transpose(1, 2).flatten()
