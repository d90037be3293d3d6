#!/usr/bin/env python3
"""Peak resident set of `kquant compress` on a checkpoint with the shapes of OPT-1.3B, made of random float16 weights.

    python scripts/peak_memory.py [--layers 24 48] [--encoder greedy] [--json FILE]

The checkpoint is written as a stream into a temporary folder (5.3 GB for 48 layers) and compressed in a process of its
own. The peak that the run states in its run.json is printed; it should not grow with the number of layers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from results import machine, write_results

from kquant_cli.files.safetensors_writer import tensor_file

QUICK = {  # iterations take time, not memory
    "annealed": "effort: fast\ncalibration: random\n",
    "greedy": "max_iter: 2\nkmeans_iter: 2\nrestarts: 1\ncalibration: none\n",
}
WIDTH, FEED_FORWARD, VOCABULARY, POSITIONS = 2048, 8192, 50272, 2050


def write_checkpoint(folder: Path, layers: int) -> int:
    """An OPT checkpoint of random weights; returns its bytes."""
    block = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in ("q", "k", "v", "out")}
    block |= {"fc1": (FEED_FORWARD, WIDTH), "fc2": (WIDTH, FEED_FORWARD)}
    shapes: dict[str, tuple[int, ...]] = {
        "model.decoder.embed_tokens.weight": (VOCABULARY, WIDTH),
        "model.decoder.embed_positions.weight": (POSITIONS, WIDTH),
    }
    for layer in range(layers):
        shapes |= {f"model.decoder.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    generator = torch.Generator().manual_seed(0)
    with tensor_file(folder / "model.safetensors", [(n, torch.float16, s) for n, s in shapes.items()]) as file:
        for name, shape in shapes.items():
            file.write(name, torch.randn(shape, generator=generator).mul_(0.02).half())
    config = {"model_type": "opt", "hidden_size": WIDTH, "ffn_dim": FEED_FORWARD, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": VOCABULARY, "dtype": "float16"}))
    return (folder / "model.safetensors").stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[24, 48])
    parser.add_argument("--encoder", default="greedy", choices=list(QUICK))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = earlier(args.json)
    for layers in args.layers:
        with tempfile.TemporaryDirectory() as tmp:
            source, bundle = Path(tmp) / "source", Path(tmp) / "bundle"
            source.mkdir()
            size = write_checkpoint(source, layers)
            command = [sys.executable, "-m", "kquant_cli", "compress", str(source), "-o", str(bundle)]
            config = Path(tmp) / "quick.yaml"
            config.write_text(f"encoder: {args.encoder}\nhead_bits: 16\n{QUICK[args.encoder]}")
            subprocess.run([*command, "--config", str(config)], check=True, stdout=subprocess.DEVNULL)
            run = json.loads((bundle / "run.json").read_text())
        rows.append(
            {
                "layers": layers,
                "checkpoint_gb": size / 1e9,
                "peak_gb": run["peak_memory_bytes"] / 1e9,
                "seconds": run["seconds"],
                "encoder": args.encoder,
            }
        )
        print(rows[-1], flush=True)
    write_results(args.json, {"machine": machine(), "rows": rows})


def earlier(file: Path | None) -> list[dict[str, Any]]:
    """The rows of earlier runs on such a machine, which this run adds to."""
    if file is None or not file.exists():
        return []
    values = json.loads(file.read_text(encoding="utf-8"))
    return values["rows"] if values["machine"] == machine() else []


if __name__ == "__main__":
    main()
