#!/usr/bin/env python3
"""Speed of the product of a packed matrix with few tokens on a GPU, beside cuBLAS and the memory's bandwidth.

    python scripts/bench_gpu_product.py [--rows 4096] [--columns 11008] [--bits 4 ...] [--tokens 1 ...] [--quick]
                                        [--json FILE] [--jsonl FILE]

Each product is timed as it runs when a model decodes: in a CUDA graph, over copies of the matrix that together are
several times larger than the L2 cache, so that every byte comes from memory. Compared are: cuBLAS on the dense matrix
in the activations' dtype; Triton's packed product of activations that are transformed already; a whole layer from its
codes, transforms and scales included, by the fastest kernels for them; and the whole layer by decoding its weight: with
the bases on the input side, then on the output side. The codebook is on a grid of one byte, as the CUDA kernels for few
tokens want it. From the number of tokens on from which a layer is faster decoded than from its codes, layers should be
decoded: DENSE_TOKENS in runtime/products/dense.py and dense_output.py.

The floor is the bytes of the packed codes over the bandwidth that a copy of 1 GiB reaches in the same run (read and
written bytes). On a CPU, with TRITON_INTERPRET=1, the script only shows that it runs (--rows 64 --columns 256
--repeats 1): its times then say nothing. `--quick`: 4 bits alone.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from results import append_row, machine, write_results
from torch import Tensor

from kquant_cli.bases import CoupledBases
from kquant_cli.encoded import EncodedMatrix, Frame, Layout
from kquant_cli.packing import row_bytes, unpack
from kquant_cli.runtime.coupled_frame import CoupledFrame
from kquant_cli.runtime.linear import KashinLinear
from kquant_cli.runtime.products import Packed, backend_for, dense, dense_output, product, reference

CACHES = 4  # times the L2 cache that the copies take together
NEVER = 2**30  # tokens


def seconds(work: Callable[[int], object], copies: int, repeats: int, device: str) -> float:
    """Of one call: the median over `repeats` runs of `work` on each of the copies, captured in one graph on a GPU."""
    if device == "cpu":
        began = time.perf_counter()
        for _ in range(repeats):
            work(0)
        return (time.perf_counter() - began) / repeats
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # compiles the kernels and makes the tables
        for copy in range(copies):
            work(copy)
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for copy in range(copies):
            work(copy)
    times = []
    for _ in range(repeats + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / copies)
    return median(times[3:])


def bandwidth(device: str, repeats: int) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.randint(255, (2**30 if device == "cuda" else 2**20,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * len(source) / seconds(lambda _: target.copy_(source), 1, repeats, device)


def copies_for(size: int, device: str) -> int:
    """Copies of `size` bytes that together exceed the L2 cache several times."""
    if device == "cpu":
        return 1
    return max(2, -(-CACHES * torch.cuda.get_device_properties(0).L2_cache_size // size))


def relative_error(packed: Packed, a: Tensor, b: Tensor) -> float:
    """Of the product, against the reference in float64."""
    expected = reference.product(packed, a.double(), b.double(), False)[0]
    return float((product(packed, a, b, False)[0].double() - expected).norm() / expected.norm())


def layer_of(packed: Packed, side: str) -> KashinLinear:
    """A layer with coupled bases on the `output` side, and a right basis, or else on the input side."""
    rows, columns, device = packed.rows, packed.columns, packed.codes.device
    right, left, output = CoupledBases(columns, 0), CoupledBases(rows, 0), side == "output"
    frame = Frame(right_u=right.first, right_v=right.first if output else right.second)
    frame = replace(frame, left_u=left.first, left_v=left.second) if output else frame
    layout = Layout((rows, columns), packed.levels, frame, scale=(rows, 1), col_scale=output, channel_scale=not output)
    codes = unpack(packed.codes.cpu(), packed.levels, columns)
    scale, other = (torch.rand(rows, 1) + 0.5).half(), (torch.rand(columns) + 0.5).half()
    others = {"col_scale" if output else "channel_scale": other}
    return KashinLinear.of(EncodedMatrix(layout, codes, packed.codebook.cpu(), scale, **others)).to(device)


def layer_seconds(layers: list[KashinLinear], x: Tensor, decoded: bool, repeats: int) -> float | None:
    """Of a layer from its codes, or by decoding its weight (None where that cannot be)."""
    with torch.no_grad():
        dense.DENSE_TOKENS = dense_output.DENSE_TOKENS = 0 if decoded else NEVER
        if decoded and not decodes(layers[0], x):
            return None
        layers[0](x)  # the trials
        return seconds(lambda copy: layers[copy](x), len(layers), repeats, x.device.type)


def decodes(layer: KashinLinear, x: Tensor) -> bool:
    """Whether the weight of a layer of `layer_of` is decoded for x."""
    frame = CoupledFrame.of(layer.layout.frame)
    assert frame is not None and frame.right is not None
    packed = Packed(layer.weight_codes, layer.codebook, layer.in_features)
    scales = (getattr(layer, f"weight_{name}", None) for name in ("scale", "col_scale", "channel_scale"))
    if frame.left is None:
        return dense.supports(frame.right, packed, x, dense.Scales(*scales))
    return dense_output.supports(frame.left, frame.right, packed, x, dense.Scales(*scales))


def measure(args: argparse.Namespace, bits: int, tokens: int, bytes_a_second: float) -> dict[str, Any]:
    """The products at one size."""
    device, dtype, levels = args.device, getattr(torch, args.dtype), 2**bits
    size = args.rows * row_bytes(args.columns, levels)
    book = torch.randint(-126, 127, (levels, 2), device=device) * 0.01
    shape = (args.rows, row_bytes(args.columns, levels))
    # Every byte is a valid word: the numbers of levels are powers of two.
    matrices = [
        Packed(torch.randint(256, shape, dtype=torch.uint8, device=device), book, args.columns)
        for _ in range(copies_for(size, device))
    ]
    layers = {side: [layer_of(matrix, side) for matrix in matrices] for side in ("input", "output")}
    x = torch.randn(tokens, args.columns, device=device).to(dtype)
    a, b = torch.randn(2, tokens, args.columns, device=device).to(dtype)
    dense_bytes = args.rows * args.columns * x.element_size()
    weights = [
        torch.randn(args.rows, args.columns, device=device).to(dtype) for _ in range(copies_for(dense_bytes, device))
    ]
    times = {
        "dense": seconds(lambda copy: x @ weights[copy].T, len(weights), args.repeats, device),
        "packed": seconds(lambda copy: product(matrices[copy], a, b, False), len(matrices), args.repeats, device),
        "layer": layer_seconds(layers["input"], x, False, args.repeats),
        "decoded_layer": layer_seconds(layers["input"], x, True, args.repeats),
        "output": layer_seconds(layers["output"], x, False, args.repeats),
        "decoded_output": layer_seconds(layers["output"], x, True, args.repeats),
        "floor": size / bytes_a_second,
    }
    layer = min(filter(None, (times["layer"], times["decoded_layer"])))
    return {
        "bits": bits,
        "tokens": tokens,
        "backend": backend_for(matrices[0], a, False),
        "relative_error": relative_error(matrices[0], a, b),
        **{f"{name}_us": time and time * 1e6 for name, time in times.items()},
        "times_as_fast": (times["dense"] or 0) / layer,
        "share_of_bandwidth": (times["floor"] or 0) / layer,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=11008)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 2, 3, 8], choices=range(1, 9))
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64, 96, 128, 192, 256, 512])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--jsonl", type=Path)
    args = parser.parse_args()
    if args.device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("there is no CUDA device; TRITON_INTERPRET=1 runs the kernels on the CPU, for tiny sizes")
    torch.manual_seed(0)
    bytes_a_second = bandwidth(args.device, args.repeats)
    print(f"memory: {bytes_a_second / 1e9:.0f} GB/s read and written by a copy")
    names = ("dense", "packed", "layer", "decoded_layer", "output", "decoded_output", "floor")
    print(f"{'bits':>4} {'tokens':>6}", *(f"{name:>14}" for name in names), "us, times as fast, share of the bandwidth")
    rows = []
    for bits in args.bits[: 1 if args.quick else None]:
        for tokens in args.tokens:
            row = measure(args, bits, tokens, bytes_a_second)
            rows.append(row)
            append_row(args.jsonl, "product", **row)
            times = (row[f"{name}_us"] for name in names)
            print(
                f"{bits:>4} {tokens:>6}",
                *(f"{'-':>14}" if number is None else f"{number:14.1f}" for number in times),
                f"  {row['times_as_fast']:.2f}  {row['share_of_bandwidth']:.0%}  error {row['relative_error']:.1e}",
                flush=True,
            )
    shape = {"rows": args.rows, "columns": args.columns, "dtype": args.dtype, "repeats": args.repeats}
    values = {"machine": machine(), **shape, "bytes_a_second": bytes_a_second, "products": rows}
    write_results(args.json, values)


if __name__ == "__main__":
    main()
