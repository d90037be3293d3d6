#!/usr/bin/env python3
"""The whole command on a GPU: `kquant compress` of a checkpoint with the shapes of OPT-1.3B and random weights.

    python scripts/bench_gpu_compress.py [--layers 24] [--effort balanced] [--device cuda] [--folder FOLDER]
                                         [--json FILE] [--jsonl FILE]

Says when each stage began (the first statistic, the first matrix, the last), weights a second of the whole and of the
encoding alone, and the share of the time in which the GPU was busy, as nvidia-smi samples it. With `--folder` the
checkpoint stays in FOLDER/source and the bundle in FOLDER/bundle.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from results import append_row, machine, write_results

from kquant_cli.demo import demo_model_path
from kquant_cli.files.safetensors_writer import tensor_file

SIZES = {"hidden_size": 2048, "word_embed_proj_dim": 2048, "ffn_dim": 8192, "vocab_size": 50272}
TINY = {"hidden_size": 128, "word_embed_proj_dim": 128, "ffn_dim": 512, "vocab_size": 4096}
POSITIONS, HEADS, SAMPLES = 2048, 32, 0.2  # seconds between two samples of the GPU


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of an OPT checkpoint by name."""
    width, hidden = config["hidden_size"], config["ffn_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.decoder.embed_tokens.weight": (config["vocab_size"], width),
        "model.decoder.embed_positions.weight": (POSITIONS + 2, width),
        "model.decoder.final_layer_norm.weight": (width,),
        "model.decoder.final_layer_norm.bias": (width,),
    }
    matrices = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
    matrices |= {"fc1": (hidden, width), "fc2": (width, hidden)}
    for layer in range(config["num_hidden_layers"]):
        for name, shape in matrices.items():
            shapes[f"model.decoder.layers.{layer}.{name}.weight"] = shape
            shapes[f"model.decoder.layers.{layer}.{name}.bias"] = shape[:1]
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            for part in ("weight", "bias"):
                shapes[f"model.decoder.layers.{layer}.{name}.{part}"] = (width,)
    return shapes


def write_checkpoint(folder: Path, layers: int, sizes: dict[str, int], device: str) -> int:
    """An OPT checkpoint of random float16 weights that transformers can run; returns its encodable weights."""
    config = json.loads((demo_model_path() / "config.json").read_text(encoding="utf-8"))
    config |= {**sizes, "num_hidden_layers": layers, "max_position_embeddings": POSITIONS, "num_attention_heads": HEADS}
    shapes = tensor_shapes(config)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    with tensor_file(folder / "model.safetensors", [(n, torch.float16, s) for n, s in shapes.items()]) as file:
        for name, shape in shapes.items():
            drawn = torch.empty(shape, dtype=torch.float16, device=device)
            file.write(name, drawn.fill_("norm.weight" in name) if len(shape) == 1 else drawn.normal_(0, 0.02))
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return sum(math.prod(shape) for name, shape in shapes.items() if ".layers." in name and len(shape) == 2)


class Busy:
    """Samples how busy the GPU is, in percent, until the block ends; nothing where there is no nvidia-smi."""

    def __enter__(self) -> Busy:
        self._samples: list[int] = []
        self._process = None
        if (program := shutil.which("nvidia-smi")) is not None:
            query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"-lms={int(1e3 * SAMPLES)}"]
            self._process = subprocess.Popen([program, *query], stdout=subprocess.PIPE, text=True)
            threading.Thread(target=self._read, daemon=True).start()
        return self

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._samples += [int(line) for line in self._process.stdout if line.strip().isdecimal()]

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    @property
    def share(self) -> float | None:
        """The mean, from 0 to 1."""
        return mean(self._samples) / 100 if self._samples else None


def compress(source: Path, bundle: Path, effort: str, device: str, weights: int) -> dict[str, Any]:
    """Run the command, every line with the seconds since its start."""
    command = [sys.executable, "-m", "kquant_cli", "compress", str(source), "-o", str(bundle), "--overwrite"]
    command += ["--calibration", "random"]  # the path without data: the model a module at a time
    command += ["--bits", "4", "--head-bits", "16", "--effort", effort, "--device", device]
    began, when, last = time.perf_counter(), dict[str, float](), 0.0
    with Busy() as busy:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            now = time.perf_counter() - began
            print(f"{now:7.2f}  {line.rstrip()}", flush=True)
            if "statistics of" in line:
                when.setdefault("first_statistic", now)
            if "weights/s" in line:
                when.setdefault("first_matrix", now)
                last = now
        code = process.wait()
    if code:
        raise SystemExit(f"kquant compress ended with {code}")
    seconds = time.perf_counter() - began
    run = json.loads((bundle / "run.json").read_text(encoding="utf-8"))
    return {
        "effort": effort,
        "seconds": seconds,
        **{f"{stage}_s": at for stage, at in when.items()},
        "last_matrix_s": last,
        "weights_a_second": weights / seconds,
        "encoding_weights_a_second": weights / max(last - when.get("first_matrix", 0.0), 1e-9),
        "gpu_busy": busy.share,
        "peak_bytes": run["peak_memory_bytes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--effort", nargs="+", default=["balanced"], choices=["fast", "balanced", "best"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="matrices of 128 x 128 to 512 x 128, to show that it runs")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--jsonl", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        began = time.perf_counter()
        weights = write_checkpoint(folder / "source", args.layers, TINY if args.tiny else SIZES, args.device)
        print(f"{weights:,} weights to encode, written in {time.perf_counter() - began:.1f} s", flush=True)
        for effort in args.effort:
            rows.append(compress(folder / "source", folder / "bundle", effort, args.device, weights))
            print(rows[-1], flush=True)
            append_row(args.jsonl, "compress", **rows[-1])
    write_results(args.json, {"machine": machine(), "layers": args.layers, "device": args.device, "runs": rows})


if __name__ == "__main__":
    main()
