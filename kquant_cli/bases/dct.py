"""The orthonormal DCT-II, frequencies in the columns of Q: Q^T x are x's coefficients, Q c is the vector that has them.

    Q[j, k] = s_k cos(pi (2 j + 1) k / (2 n)),    s_0 = sqrt(1 / n), s_k = sqrt(2 / n)

Small sizes multiply by Q. Others take one real FFT of length n (J. Makhoul, "A fast cosine transform in one and two
dimensions", IEEE Trans. ASSP 28, 1980): with v = (x_0, x_2, x_4, ..., x_5, x_3, x_1) and V its DFT,

    exp(-i pi k / (2 n)) V_k = (c_k / s_k) - i (c_{n-k} / s_{n-k})    for k = 0 .. n / 2, where c_n = 0

so a gather, an FFT, a product and a second gather make the transform; the conjugates, used below, spare the minus sign.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kquant_cli.bases.basis import GeneratedBasis

LARGEST_DENSE_CPU = 64  # measured: at 64 the matrix product and the FFT take equally long on a CPU
LARGEST_DENSE_DEVICE = 512  # one product against five passes over memory


class DCTTables(NamedTuple):
    """What the kernels read; `matrix` is Q for small sizes, and the others are empty then."""

    matrix: Tensor  # (n, n)
    order: Tensor  # (n,) x[order] = v backwards in time, whose DFT is the conjugate of V
    inverse_order: Tensor  # (n,)
    split: Tensor  # (n,) where c_k is among the real numbers Re, Im, Re, Im, ... of the half spectrum
    merge: Tensor  # (2 (n // 2 + 1),) the other way round
    analysis: Tensor  # (n // 2 + 1,) complex factors of the spectrum, from x to c
    synthesis: Tensor  # (n // 2 + 1,) from c to x


class DCT(GeneratedBasis):
    """The orthonormal DCT-II of any size; no randomness, the seed is not used."""

    def make_tables(self, device: torch.device, dtype: torch.dtype) -> DCTTables:
        """Q for small sizes, gathers and twiddle factors for others."""
        n = self.size
        empty = torch.empty(0, device=device)
        if n <= (LARGEST_DENSE_CPU if device.type == "cpu" else LARGEST_DENSE_DEVICE):
            return DCTTables(dct_matrix(n).to(device, dtype), *[empty] * 6)
        j = torch.arange(n)
        order = torch.cat([j[::2], j[1::2].flip(0)])  # v, then backwards in time: v_0, v_{n-1}, ..., v_1
        order = torch.cat([order[:1], order[1:].flip(0)])
        k = torch.arange(n // 2 + 1)
        negative = torch.arange((n - 1) // 2, 0, -1)  # n - k for the coefficients k that are imaginary parts
        split = torch.cat([2 * k, 2 * negative + 1])
        merge = torch.stack([k, (n - k) % n], 1).flatten()  # Im of k = 0 is any number: the inverse FFT ignores it
        twiddle = torch.polar(torch.ones(n // 2 + 1, dtype=torch.float64), math.pi * k.double() / (2 * n))
        scale = torch.full((n // 2 + 1,), math.sqrt(2 / n), dtype=torch.float64)
        scale[0] = math.sqrt(1 / n)
        complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
        return DCTTables(
            empty,
            order.to(device),
            torch.argsort(order).to(device),
            split.to(device),
            merge.to(device),
            (twiddle * scale).to(device, complex_dtype),
            (twiddle.conj() / scale).to(device, complex_dtype),
        )

    def rows(self, x: Tensor, tables: DCTTables, adjoint: bool) -> Tensor:
        """Gathers along the rows."""
        if tables.matrix.numel():
            return x @ (tables.matrix if adjoint else tables.matrix.T)
        if adjoint:
            return _analysis(x.index_select(1, tables.order), tables).index_select(1, tables.split)
        return _synthesis(x.index_select(1, tables.merge), tables).index_select(1, tables.inverse_order)

    def columns(self, x: Tensor, tables: DCTTables, adjoint: bool) -> Tensor:
        """Gathers of whole rows, and the FFT on transposed copies."""
        if tables.matrix.numel():
            return (tables.matrix.T if adjoint else tables.matrix) @ x
        if adjoint:
            return _transposed(_analysis(_transposed(x.index_select(0, tables.order)), tables)).index_select(
                0, tables.split
            )
        return _transposed(_synthesis(_transposed(x.index_select(0, tables.merge)), tables)).index_select(
            0, tables.inverse_order
        )


def _analysis(v: Tensor, tables: DCTTables) -> Tensor:
    """Rows of v (r, n) to c_k + i c_{n-k} as real numbers (r, 2 (n // 2 + 1))."""
    return torch.view_as_real(torch.fft.rfft(v).mul_(tables.analysis)).flatten(1)


def _synthesis(merged: Tensor, tables: DCTTables) -> Tensor:
    """The other way round."""
    spectrum = torch.view_as_complex(merged.unflatten(1, (-1, 2))).mul_(tables.synthesis)
    return torch.fft.irfft(spectrum, n=tables.order.numel())


def _transposed(x: Tensor) -> Tensor:
    return x.T.contiguous()


def dct_matrix(n: int) -> Tensor:
    """Q (n, n) in float64, the cosines' arguments reduced in integers."""
    j = torch.arange(n)
    q = torch.cos(((2 * j[:, None] + 1) * j % (4 * n)).double() * (math.pi / (2 * n))) * math.sqrt(2 / n)
    q[:, 0] = math.sqrt(1 / n)
    return q
