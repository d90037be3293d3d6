#!/usr/bin/env python3
"""A bundle beside the dense model it was made from: tokens a second, memory, and the floor that the memory sets.

    python scripts/bench_runtime.py BUNDLE DENSE_FOLDER [--rounds 3] [--json scripts/results/bench-runtime.json]

`kquant bench` with more rows: both in float32 and in 16 bits. `saved` is how much smaller the process is with the
bundle in 16 bits than with the dense model in float16, over the same difference of the parameters' bytes.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
from results import RESULTS, machine, write_results
from rich.console import Console

from kquant_cli.report.speed import speed_table
from kquant_cli.speed import Row, Workload, bench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("dense")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=RESULTS / "bench-runtime.json")
    args = parser.parse_args()
    rows = [Row(args.bundle, "bundle", dtype) for dtype in ("float32", "float16")]
    rows += [Row(args.dense, "dense", dtype) for dtype in ("float32", "bfloat16", "float16")]
    workload = Workload(args.prompt_tokens, args.new_tokens)
    measured = bench(rows, args.device, workload, args.rounds, print)
    ours, dense = measured[1], measured[-1]
    saved = None
    if ours.loaded_memory is not None and dense.loaded_memory is not None:
        by_arithmetic = dense.parameter_bytes - ours.parameter_bytes
        saved = (dense.loaded_memory - ours.loaded_memory) / by_arithmetic
    entries = [
        {"path": Path(row.path).name, "kind": row.kind}
        | asdict(found)
        | {"floor_tokens_per_second": found.floor_tokens_per_second}
        for row, found in zip(rows, measured, strict=True)
    ]
    Console().print(speed_table(entries))
    print(f"saved memory over the arithmetic: {saved}")
    facts = {"threads": torch.get_num_threads(), "workload": asdict(workload), "rounds": args.rounds, "saved": saved}
    write_results(args.json, {"machine": machine(), **facts, "models": entries})


if __name__ == "__main__":
    main()
