#!/usr/bin/env python3
"""A bundle beside the dense model it was made from: tokens a second, memory, and the floor that the memory sets.

    python scripts/bench_runtime.py BUNDLE DENSE_FOLDER [--rounds 3] [--json scripts/results/bench-runtime.json]
                                    [--llama-bench PROGRAM --gguf FILE]

`kquant bench` with more rows: both in float32 and in 16 bits, the bundle also by its modules, without the calls that
take whole layers together (KQUANT_FUSED=0). With llama.cpp's program and a file of its own the same work is measured
there, in turns with the others. `saved` is how much smaller the process is with the
bundle in 16 bits than with the dense model in float16, over the same difference of the parameters' bytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from dataclasses import asdict
from pathlib import Path

import torch
from results import RESULTS, machine, write_results
from rich.console import Console

from kquant_cli.report.speed import speed_table
from kquant_cli.speed import Row, Workload, bench


def llama_cpp(program: Path, file: Path, workload: Workload) -> dict[str, float]:
    """Tokens a second of prefill and decode, by llama.cpp's own program."""
    sizes = {"-p": workload.prompt, "-n": workload.new, "-r": workload.repeats, "-t": torch.get_num_threads()}
    options = [str(part) for pair in sizes.items() for part in pair]
    command = [str(program), "-m", str(file), *options, "-o", "json"]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(made.stdout[made.stdout.index("[") :])
    return {"prefill" if test["n_prompt"] else "decode": test["avg_ts"] for test in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("dense")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--json", type=Path, default=RESULTS / "bench-runtime.json")
    args = parser.parse_args()
    rows = [Row(args.bundle, "bundle", dtype) for dtype in ("float16", "bfloat16", "float32")]
    rows += [Row(args.bundle, "bundle, by modules", "float16", {"KQUANT_FUSED": "0"})]
    rows += [Row(args.dense, "dense", dtype) for dtype in ("float32", "bfloat16", "float16")]
    workload = Workload(args.prompt_tokens, args.new_tokens)
    peers: list[dict[str, float]] = []

    def say(line: str) -> None:
        print(line, flush=True)
        if args.llama_bench and rows[0].path in line and f"({rows[0].kind}, {rows[0].dtype})" in line:  # once a round
            peers.append(llama_cpp(args.llama_bench, args.gguf, workload))

    measured = bench(rows, args.device, workload, args.rounds, say)
    ours, dense = measured[0], measured[-1]
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
    peer = {name: statistics.median(found[name] for found in peers) for name in peers[0]} if peers else None
    if peer is not None:
        peer = {"path": args.gguf.name, **peer}
        print(peer)
    print(f"saved memory over the arithmetic: {saved}")
    facts = {"threads": torch.get_num_threads(), "workload": asdict(workload), "rounds": args.rounds, "saved": saved}
    facts |= {"llama.cpp": peer}
    write_results(args.json, {"machine": machine(), **facts, "models": entries})


if __name__ == "__main__":
    main()
