"""Apply a transform along any axis of a tensor: views and copies, chunks, threads and dtypes; no mathematics.

A basis gives two kernels, one for the rows of a matrix and one for its columns. Here every tensor becomes such a
matrix, by a view wherever its strides allow. On a CPU the matrix is walked in chunks that stay in a core's cache, and
the chunks, not the operations inside them, are what the threads share: an operation on a chunk takes about 0.1 ms, less
than it costs to start and join threads around it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kquant_cli.threads import alone, for_each

CPU_CHUNK = 2**18  # elements: 1 MiB of float32; measured: half of it and twice as much are slower
DEVICE_CHUNK = 2**26  # elements: only bounds the memory of temporaries
SHARED = 2**15  # elements: of so many at most an operation is not shared out by torch
NARROWEST_COLUMNS = 32  # a narrower block of columns would use a part of each cache line, and of each page

Kernel = Callable[[Tensor], Tensor]


def transform(
    x: Tensor, dim: int, size: int, rows: Kernel, columns: Kernel, out: Tensor | None = None, chunk: int = CPU_CHUNK
) -> Tensor:
    """The kernels' linear map along `dim` of `x`, whose length there is `size`.

    `rows` maps (r, size) to (r, size), `columns` maps (size, c) to (size, c), each the same map of every vector; they
    must not write to their input, and get and give the compute dtype (float32 for 16-bit floats). `out` may be `x`
    itself. `chunk` is the number of elements that a kernel gets at a time on a CPU.
    """
    check(x, dim, size, out)
    if x.ndim == 2 and not x.is_contiguous() and x.T.is_contiguous():
        result = transform(x.T, 1 - dim % 2, size, rows, columns, None if out is None else out.T, chunk).T
        return result if out is None else out
    if x.numel() == 0:
        return x.clone() if out is None else out
    dim %= x.ndim
    along_columns = dim == 0 and x.ndim > 1
    moved = x if along_columns else x.movedim(dim, -1)
    matrix = moved.reshape(size, -1) if along_columns else moved.reshape(-1, size)
    kernel = columns if along_columns else rows
    target = None
    if out is not None and out.is_contiguous() and dim in (0, x.ndim - 1):
        target = out.view(matrix.shape)
    result = _in_chunks(matrix, int(along_columns), kernel, target, chunk).view(moved.shape)
    result = result if along_columns else result.movedim(-1, dim)
    if out is None or target is not None:
        return result if out is None else out
    return out.copy_(result)


def check(x: Tensor, dim: int, size: int, out: Tensor | None) -> None:
    """ValueError unless `x` is a float tensor with `size` entries along `dim`, and `out` is like it."""
    if not x.is_floating_point():
        raise ValueError(f"a basis applies to real floating-point tensors, not to {x.dtype}")
    if not -x.ndim <= dim < x.ndim or x.shape[dim] != size:
        raise ValueError(f"dimension {dim} of a tensor of shape {tuple(x.shape)} must exist and have {size} entries")
    if out is not None and (out.shape != x.shape or out.dtype != x.dtype or out.device != x.device):
        raise ValueError(f"out must have the input's shape {tuple(x.shape)}, dtype {x.dtype} and device {x.device}")


def _in_chunks(matrix: Tensor, axis: int, kernel: Kernel, target: Tensor | None, chunk: int) -> Tensor:
    """`kernel` over `matrix`, block by block along `axis` (0: of rows, 1: of columns), to `target` if there is one."""
    compute = torch.promote_types(matrix.dtype, torch.float32)
    step = _chunk_length(matrix, axis, chunk)
    if matrix.shape[axis] <= step:
        # with several threads torch cuts what is larger than SHARED in pieces, whose ends are rounded otherwise
        one = chunk < DEVICE_CHUNK and matrix.numel() > SHARED
        result = (alone(kernel, matrix.to(compute), device=matrix.device) if one else kernel(matrix.to(compute))).to(
            matrix.dtype
        )
        return result.contiguous() if target is None else target.copy_(result)
    result = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device) if target is None else target

    def work(begin: int) -> None:
        length = min(step, matrix.shape[axis] - begin)
        result.narrow(axis, begin, length).copy_(kernel(matrix.narrow(axis, begin, length).to(compute)))

    for_each(work, range(0, matrix.shape[axis], step), device=matrix.device)
    return result


def _chunk_length(matrix: Tensor, axis: int, chunk: int) -> int:
    """How many rows (axis 0) or columns (axis 1) go to a kernel at a time."""
    narrowest = 1 if axis == 0 else NARROWEST_COLUMNS
    return max(narrowest, (chunk if matrix.device.type == "cpu" else DEVICE_CHUNK) // matrix.shape[1 - axis])
