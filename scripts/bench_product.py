#!/usr/bin/env python3
"""Speed of the product of packed matrices on a CPU, beside dense matrices in float32 and bfloat16.

    python scripts/bench_product.py [--side input] [--threads N] [--rounds 15] [--cache-mb M] [--json FILE]

Each shape and each number of levels has copies that together exceed the last-level cache (`--cache-mb`; by default what
the machine says, at most 1024), and one is read after the other, so that weights come from memory as they do when a
model runs. All methods take turns in every round, so that other work on the machine treats them alike; numbers are
medians over the rounds, ratios those of the medians. `floor` is the time in which the packed bytes can be read at the
bandwidth that a sum over a large buffer reaches in the same rounds. `layer` is a whole layer from x to y, transforms
and scales included, in float32 and in bfloat16: up to 16 levels one call (`runtime/cpu_layer.py`). Its two bases are
those of the input, as the annealed encoder's are, or with `--side output` those of the output, beside one of the input,
a scale of columns and a constant codebook. The fastest round is in the file, too: on a machine that does other work,
medians of several threads mostly say how long a thread waits for a core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from results import RESULTS, machine, write_results

from kquant_cli.bases import BasisSpec, CoupledBases
from kquant_cli.codebooks.integer_grids import integer_grids, ring_name
from kquant_cli.encoded import EncodedMatrix, Frame, Layout
from kquant_cli.packing import row_bytes
from kquant_cli.runtime import KashinLinear
from kquant_cli.runtime.products import Packed, backend_for, product
from kquant_cli.runtime.replace_layers import lay_out

SHAPES = ((4096, 11008), (4096, 4096), (576, 1536), (1536, 576))
LEVELS = (4, 8, 12, 16, 256)  # 2, 3, 3.6, 4 and 8 bits
TOKENS = (1, 4, 16)
LARGEST_CACHE = 2**30
MOST_COPIES = 512  # of a small matrix


def cache_bytes() -> int:
    """The last-level cache, where Linux says it, else 64 MiB."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    found = [int(size.read_text().strip().removesuffix("K")) * 1024 for size in sizes]
    return min(max(found, default=2**26), LARGEST_CACHE)


def turns(methods: dict[str, Callable[[int], object]], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each method, median and fastest round; it gets the number of its call, of several a round if short."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    calls = dict.fromkeys(methods, 0)
    for _ in range(rounds + 1):
        for name, method in methods.items():
            spent, done = 0.0, 0
            while not done or (spent < 2e-3 and done < 50):
                began = time.perf_counter()
                method(calls[name])
                spent += time.perf_counter() - began
                done += 1
                calls[name] += 1
            times[name].append(spent / done)
    times = {name: found[1:] for name, found in times.items()}  # the first round warms up
    return {name: statistics.median(found) for name, found in times.items()}, {n: min(f) for n, f in times.items()}


def copies(size: int, cache: int) -> int:
    """How many matrices of `size` bytes exceed the cache, and one more."""
    return min(cache // size + 2, MOST_COPIES)


def on_shape(rows: int, columns: int, cache: int, rounds: int, side: str) -> list[dict[str, Any]]:
    """One row of results for each number of levels and of tokens."""
    found = []
    dense = {
        dtype: [torch.randn(rows, columns).to(dtype) for _ in range(copies(rows * columns * dtype.itemsize, cache))]
        for dtype in (torch.float32, torch.bfloat16)
    }
    stream = torch.ones(cache // 4 + 2**22)
    layers = {levels: layer_copies(rows, columns, levels, cache, side) for levels in LEVELS}
    for tokens in TOKENS:
        a, b = torch.randn(2, tokens, columns)
        packed = {levels: [packed_of(layer) for layer in made] for levels, made in layers.items()}
        backends = {levels: backend_for(matrices[0], a, False) for levels, matrices in packed.items()}
        methods: dict[str, Callable[[int], object]] = {
            str(levels): (lambda i, p=matrices, a=a, b=b: product(p[i % len(p)], a, b, False))  # type: ignore[misc]
            for levels, matrices in packed.items()
        }
        for levels, made in layers.items():
            for x in (a, a.bfloat16()):
                methods[f"layer {levels} {x.dtype}"] = lambda i, m=made, x=x: m[i % len(m)](x)  # type: ignore[misc]
        for dtype, matrices in dense.items():
            x = a.to(dtype)
            methods[str(dtype)] = lambda i, w=matrices, x=x: x @ w[i % len(w)].T  # type: ignore[misc]
        methods["sum"] = lambda i: stream.sum()
        seconds, fastest = turns(methods, rounds)
        bandwidth = stream.numel() * 4 / seconds["sum"]
        for levels in LEVELS:
            size, mine = rows * row_bytes(columns, levels), seconds[str(levels)]
            layer, half = (seconds[f"layer {levels} {dtype}"] for dtype in dense)
            found.append(
                {
                    "rows": rows,
                    "columns": columns,
                    "levels": levels,
                    "tokens": tokens,
                    "backend": backends[levels],
                    "ms": 1e3 * mine,
                    "float32_ms": 1e3 * seconds[str(torch.float32)],
                    "bfloat16_ms": 1e3 * seconds[str(torch.bfloat16)],
                    "layer_ms": 1e3 * layer,
                    "layer_bfloat16_ms": 1e3 * half,
                    "times_float32": seconds[str(torch.float32)] / mine,
                    "times_bfloat16": seconds[str(torch.bfloat16)] / mine,
                    "layer_times_float32": seconds[str(torch.float32)] / layer,
                    "layer_bfloat16_times_float32": seconds[str(torch.float32)] / half,
                    "layer_bfloat16_times_bfloat16": seconds[str(torch.bfloat16)] / half,
                    "fastest_ms": 1e3 * fastest[str(levels)],
                    "fastest_times_float32": fastest[str(torch.float32)] / fastest[str(levels)],
                    "gb_per_s": size / mine / 1e9,
                    "bandwidth_gb_per_s": bandwidth / 1e9,
                    "floor_ms": 1e3 * size / bandwidth,
                }
            )
            row = found[-1]
            print(
                f"{rows} x {columns}  {levels:3} levels  {tokens:2} tokens  {row['ms']:8.3f} ms  float32 "
                f"{row['float32_ms']:8.3f} ({row['times_float32']:.2f} x, fastest "
                f"{row['fastest_times_float32']:.2f} x)  bfloat16 {row['bfloat16_ms']:8.3f}  "
                f"layer {row['layer_ms']:.3f}, bfloat16 {row['layer_bfloat16_ms']:.3f}  "
                f"{row['gb_per_s']:.1f} of {bandwidth / 1e9:.1f} GB/s",
                flush=True,
            )
    return found


def layer_copies(rows: int, columns: int, levels: int, cache: int, side: str) -> list[KashinLinear]:
    """Layers of random codes, laid out as a model's are."""
    if side == "input":
        pair = CoupledBases(columns, 0)
        frame = Frame(right_u=pair.first, right_v=pair.second)
    else:
        pair, basis = CoupledBases(rows, 0), BasisSpec("signed_hadamard_dct", columns)
        frame = Frame(left_u=pair.first, left_v=pair.second, right_u=basis, right_v=basis)
    grid = ring_name(levels) if side == "output" and ring_name(levels) in integer_grids() else None
    layout = Layout((rows, columns), levels, frame, grid=grid, scale=(rows, 1), col_scale=side == "output")
    constant, scale = layout.grid_codebook(torch.device("cpu")), torch.rand(rows, 1).half()
    book = torch.randn(levels, 2) if constant is None else constant
    col_scale = torch.rand(columns).half() if layout.col_scale else None
    layers = []
    for _ in range(copies(rows * row_bytes(columns, levels), cache)):
        codes = torch.randint(levels, (rows, columns), dtype=torch.uint8)
        layers.append(KashinLinear.of(EncodedMatrix(layout, codes, book, scale, col_scale)))
    lay_out(torch.nn.ModuleList(layers))
    return layers


def packed_of(layer: KashinLinear) -> Packed:
    """What its product reads."""
    return Packed(layer.weight_codes, layer.codebook, layer.in_features, blocks=layer.blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=("input", "output"), default="input", help="where a layer's two bases are")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--cache-mb", type=int, help="the last-level cache, where the machine's word is not to be taken"
    )
    parser.add_argument("--json", type=Path, default=RESULTS / "bench-product.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cache = args.cache_mb * 2**20 if args.cache_mb else cache_bytes()
    values = machine() | {"threads": args.threads, "cache_mb": cache / 2**20, "rounds": args.rounds, "side": args.side}
    with torch.inference_mode():
        values["products"] = [row for shape in SHAPES for row in on_shape(*shape, cache, args.rounds, args.side)]
    write_results(args.json, values)


if __name__ == "__main__":
    main()
