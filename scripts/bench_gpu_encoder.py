#!/usr/bin/env python3
"""Speed of the annealed encoder on a GPU: seconds for a Gaussian matrix, at every effort.

    python scripts/bench_gpu_encoder.py [--rows 4096] [--columns 4096] [--bits 4] [--device cuda] [--quick]
                                        [--json FILE] [--jsonl FILE]

The error is measured on the decoded matrix, and must be the one that the encoder recorded. Of a balanced encoding the
launches of kernels are counted, and the time that they took on the GPU. `--quick`: not the best effort.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from results import append_row, machine, write_results

from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import encode

EFFORTS = ("fast", "balanced", "best")


def measure(weight: torch.Tensor, effort: str, bits: int) -> dict[str, Any]:
    """Encode twice, and time the second: the first compiles the kernels."""
    config = EncoderConfig(bits=bits, effort=effort)
    encode(weight, config)
    if weight.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    encoded = encode(weight, config)
    if weight.is_cuda:
        torch.cuda.synchronize()
    spent = time.perf_counter() - began
    assert encoded.record is not None
    error = float((encoded.decode() - weight).norm() / weight.norm())
    if abs(error / encoded.record.relative_error - 1) > 0.01:
        raise SystemExit(f"{effort}: the error is {error:.5f}, but recorded as {encoded.record.relative_error:.5f}")
    return {"effort": effort, "seconds": spent, "weights_a_second": weight.numel() / spent, "relative_error": error}


def profile(weight: torch.Tensor, bits: int) -> dict[str, Any]:
    """Kernels of one balanced encoding: how many were launched, and their time on the GPU, by the five longest."""
    activities = [torch.profiler.ProfilerActivity.CUDA if weight.is_cuda else torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as found:
        encode(weight, EncoderConfig(bits=bits, effort="balanced"))
        if weight.is_cuda:
            torch.cuda.synchronize()
    kernels = [event for event in found.key_averages() if _device_time(event) > 0]
    longest = sorted(kernels, key=_device_time, reverse=True)[:5]
    return {
        "launches": sum(event.count for event in kernels),
        "device_ms": sum(map(_device_time, kernels)) / 1e3,
        "longest_ms": {event.key[:80]: _device_time(event) / 1e3 for event in longest},
    }


def _device_time(event: Any) -> float:
    """Microseconds; torch has changed the name."""
    return float(getattr(event, "self_device_time_total", 0) or getattr(event, "self_cuda_time_total", 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--jsonl", type=Path)
    args = parser.parse_args()
    weight = torch.randn(args.rows, args.columns, generator=torch.Generator().manual_seed(0)).to(args.device)
    rows = []
    for effort in EFFORTS[: 2 if args.quick else 3]:
        rows.append(measure(weight, effort, args.bits))
        print(rows[-1], flush=True)
        append_row(args.jsonl, "encoder", **rows[-1])
    kernels = profile(weight, args.bits)
    print(kernels, flush=True)
    append_row(args.jsonl, "encoder", **kernels)
    shape = {"rows": args.rows, "columns": args.columns, "bits": args.bits, "device": args.device}
    write_results(args.json, {"machine": machine(), **shape, "efforts": rows, "kernels": kernels})


if __name__ == "__main__":
    main()
