#!/usr/bin/env python3
"""Our range reads beside safetensors.safe_open: seconds and peak resident memory of reading a file tensor by tensor.

    python scripts/bench_reading.py [--gigabytes 2] [--rounds 3] [--folder FOLDER]

Two files of random bytes, in a temporary folder: large tensors, as of a dense model, and the 5000 small ones that a
bundle of a mixture of experts has many of. Each is read once for the page cache, and then by every reader in a process
of its own, in turns; a tensor is dropped before the next is read. The memory is VmHWM (Linux) after the last tensor
less VmRSS after the imports. The line in kquant_cli/files/safetensors_reader.py that says why the reader is as it is
comes from here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import safetensors
import torch

from kquant_cli.files.safetensors_reader import read_header, read_tensor
from kquant_cli.files.safetensors_writer import tensor_file
from kquant_cli.process_memory import resident_set

LARGE = (4096, 8192)  # float16: 64 MiB a tensor, about a projection of a 70B model
SMALL, SMALL_COUNT = (64, 128), 5000
READERS = ("ranges", "safe_open mmap", "safe_open mmap, copied", "safe_open mmap, opened anew", "safe_open pread")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--reader", choices=READERS, help=argparse.SUPPRESS)  # in the process of its own
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.reader:
        print(json.dumps(measure(args.reader, args.file)))
        return
    print(f"safetensors {safetensors.__version__}, torch {torch.__version__}, {args.gigabytes:g} GB")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        count = max(1, round(args.gigabytes * 1e9 / (2 * LARGE[0] * LARGE[1])))
        for shape, number in ((LARGE, count), (SMALL, SMALL_COUNT)):
            print(f"\n{number} tensors of {shape[0]} x {shape[1]} in float16")
            compare(write(Path(folder) / "x.safetensors", shape, number), args.rounds)


def compare(file: Path, rounds: int) -> None:
    measure("ranges", file)  # the page cache is warm from here on
    found: dict[str, list[dict[str, float]]] = {reader: [] for reader in READERS}
    for _ in range(rounds):
        for reader in READERS:
            found[reader].append(in_a_process(reader, file))
    assert len({run["sum"] for runs in found.values() for run in runs}) == 1
    for reader, runs in found.items():
        seconds, peak = (statistics.median(run[key] for run in runs) for key in ("seconds", "peak"))
        print(f"{reader:28} {seconds:6.2f} s  {peak / 1e6:6.0f} MB")


def write(file: Path, shape: tuple[int, int], count: int) -> Path:
    with tensor_file(file, [(f"{n}.weight", torch.float16, shape) for n in range(count)]) as out:
        for n in range(count):
            out.write(f"{n}.weight", torch.randint(-(2**15), 2**15, shape, dtype=torch.int16).view(torch.float16))
    return file


def in_a_process(reader: str, file: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--reader", reader, "--file", str(file)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(reader: str, file: Path) -> dict[str, float]:
    """Touch every byte of every tensor once; the sum is the same whoever reads."""
    before, start, total = resident_set("now") or 0, time.perf_counter(), 0
    infos = read_header(file)
    opened = None
    if "anew" not in reader and reader != "ranges":
        opened = open_library(reader, file)
    for name, info in infos.items():
        if reader == "ranges":
            tensor = read_tensor(info)
        elif opened is None:
            with open_library(reader, file) as source:
                tensor = source.get_tensor(name)
        else:
            tensor = opened.get_tensor(name)
        if "copied" in reader:
            tensor = tensor.clone()
        total ^= int(tensor.view(torch.int64).sum())
        del tensor
    return {"seconds": time.perf_counter() - start, "peak": (resident_set("peak") or 0) - before, "sum": total}


def open_library(reader: str, file: Path) -> safetensors.safe_open:
    options = {"backend": "pread"} if "pread" in reader else {}  # from safetensors 0.8 on
    return safetensors.safe_open(file, "pt", **options)


if __name__ == "__main__":
    main()
