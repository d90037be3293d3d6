#!/usr/bin/env python3
"""Speed of the product of a packed matrix with few tokens on a GPU, beside cuBLAS and the memory's bandwidth.

    python scripts/bench_gpu_product.py [--rows 4096] [--columns 11008] [--bits 4 ...] [--tokens 1 ...] [--quick]
                                        [--json FILE] [--jsonl FILE]

Each product is timed as it runs when a model decodes: in a CUDA graph, over copies of the matrix that together are
several times larger than the L2 cache, so that every byte comes from memory. Three are compared: cuBLAS on the dense
matrix in the activations' dtype; the packed product of activations that are transformed already; and all of it, the
transforms of the annealed encoder included. The floor is the bytes of the packed codes over the bandwidth that a copy
of 1 GiB reaches in the same run (read and written bytes). On a CPU, with TRITON_INTERPRET=1, the script only shows
that it runs (--rows 64 --columns 256 --repeats 1): its times then say nothing. `--quick`: 4 bits alone.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from results import append_row, machine, write_results
from torch import Tensor

from kquant_cli.bases import make_basis
from kquant_cli.packing import row_bytes
from kquant_cli.runtime.products import Packed, backend_for, product, reference

CACHES = 4  # times the L2 cache that the copies take together
KINDS = ("signed_hadamard_dct", "twice_signed_hadamard_dct")  # of the annealed encoder


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


def measure(args: argparse.Namespace, bits: int, tokens: int, bytes_a_second: float) -> dict[str, Any]:
    """The three products at one size."""
    device, dtype, levels = args.device, getattr(torch, args.dtype), 2**bits
    size = args.rows * row_bytes(args.columns, levels)
    book = torch.randn(levels, 2, device=device)
    shape = (args.rows, row_bytes(args.columns, levels))
    copies = copies_for(size, device)
    # Every byte is a valid word: the numbers of levels are powers of two.
    matrices = [
        Packed(torch.randint(256, shape, dtype=torch.uint8, device=device), book, args.columns) for _ in range(copies)
    ]
    x = torch.randn(tokens, args.columns, device=device).to(dtype)
    first, second = (make_basis(kind, args.columns) for kind in KINDS)
    a, b = first.adjoint(x), second.adjoint(x)

    def whole(copy: int) -> object:
        return product(matrices[copy], first.adjoint(x), second.adjoint(x), False)

    packed = seconds(lambda copy: product(matrices[copy], a, b, False), copies, args.repeats, device)
    transformed = seconds(whole, copies, args.repeats, device)
    dense_bytes = args.rows * args.columns * x.element_size()
    dense = [
        torch.randn(args.rows, args.columns, device=device).to(dtype) for _ in range(copies_for(dense_bytes, device))
    ]
    plain = seconds(lambda copy: x @ dense[copy].T, len(dense), args.repeats, device)
    floor = size / bytes_a_second
    return {
        "bits": bits,
        "tokens": tokens,
        "backend": backend_for(matrices[0], a, False),
        "relative_error": relative_error(matrices[0], a, b),
        "dense_us": plain * 1e6,
        "packed_us": packed * 1e6,
        "with_transforms_us": transformed * 1e6,
        "floor_us": floor * 1e6,
        "times_as_fast": plain / packed,
        "times_as_fast_with_transforms": plain / transformed,
        "share_of_bandwidth": floor / packed,
        "share_of_bandwidth_with_transforms": floor / transformed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=11008)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 2, 3, 8], choices=range(1, 9))
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 256])
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
    titles = f"{'bits':>4} {'tokens':>6} {'dense':>9} {'packed':>9} {'+ bases':>9} {'floor':>9} us"
    print(titles + "  times as fast, and with bases; share of the bandwidth, and with bases")
    rows = []
    for bits in args.bits[: 1 if args.quick else None]:
        for tokens in args.tokens:
            row = measure(args, bits, tokens, bytes_a_second)
            rows.append(row)
            append_row(args.jsonl, "product", **row)
            times = (row[f"{name}_us"] for name in ("dense", "packed", "with_transforms", "floor"))
            print(
                f"{bits:>4} {tokens:>6}",
                *(f"{number:9.1f}" for number in times),
                f"  {row['times_as_fast']:.2f} / {row['times_as_fast_with_transforms']:.2f}",
                f"  {row['share_of_bandwidth']:.0%} / {row['share_of_bandwidth_with_transforms']:.0%}",
                f"  error {row['relative_error']:.1e}",
                flush=True,
            )
    shape = {"rows": args.rows, "columns": args.columns, "dtype": args.dtype, "repeats": args.repeats}
    values = {"machine": machine(), **shape, "bytes_a_second": bytes_a_second, "products": rows}
    write_results(args.json, values)


if __name__ == "__main__":
    main()
