#!/usr/bin/env python3
"""Registers, spills and instructions of the CUDA kernels, as nvcc compiles them; no GPU is needed.

    python scripts/cuda_report.py [--architecture sm_90 ...] [--only LETTERS]

Instructions are counted where there is a disassembler: nvdisasm of CUDA, or the one that comes with Triton.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from kquant_cli.native.nvrtc import SOURCES, STANDARD
from kquant_cli.runtime.products.look_up import TABLE

KINDS = {0: "16 levels", 1: "16 levels, paired", 2: "4 levels", 3: "8 levels"}
KINDS |= {TABLE + bits: f"{2**bits} levels, table" for bits in range(1, 9)}
TOKENS = (1, 2, 4, 8)
COUNTED = ("PRMT", "IMMA", "HMMA", "LDS", "LOP3", "SHF")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)")


def kernels() -> Iterator[tuple[str, str, dict[str, int]]]:
    """The name for people, the source and what it is compiled with."""
    yield "outputs", "outputs.cu", {}
    for split, side in enumerate(("", ", split")):
        yield f"activations{side}", "activations.cu", {"THE_SPLIT": split}
        for kind, levels in KINDS.items():
            for tokens in TOKENS:
                defines = {"THE_KIND": kind, "TOKENS": tokens, "THE_SPLIT": split}
                yield f"product, {levels}, {tokens} tokens{side}", "product.cu", defines


def compiled(source: str, defines: dict[str, int], architecture: str, cubin: Path) -> tuple[int, int]:
    """Registers of a thread, and bytes of spills stored and loaded."""
    options = [STANDARD, f"-arch={architecture}", "-Xptxas", "-v", *(f"-D{k}={v}" for k, v in defines.items())]
    command = ["nvcc", "-cubin", *options, "-o", str(cubin), str(SOURCES / source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    said = done.stdout + done.stderr
    spills = sum(int(number) for number in re.findall(r"(\d+) bytes spill", said))
    return int(re.findall(r"Used (\d+) registers", said)[0]), spills


def disassembler() -> str | None:
    """The path of an nvdisasm."""
    if found := shutil.which("nvdisasm"):
        return found
    triton = find_spec("triton")
    inside = Path(triton.origin).parent / "backends/nvidia/bin/nvdisasm" if triton and triton.origin else None
    return str(inside) if inside and inside.exists() else None


def instructions(tool: str, cubin: Path) -> Counter[str] | None:
    """How often each instruction stands in the code; None where the disassembler does not know the architecture."""
    done = subprocess.run([tool, str(cubin)], capture_output=True, text=True, check=False)
    return Counter(INSTRUCTION.findall(done.stdout)) if done.returncode == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", nargs="+", default=["sm_90"])
    parser.add_argument("--only", default="", help="kernels whose names have these letters")
    args = parser.parse_args()
    if not shutil.which("nvcc"):
        parser.error("there is no nvcc on the path, which comes with CUDA's toolkit")
    tool = disassembler()
    for architecture in args.architecture:
        print(f"{architecture:<42} registers  spills  instructions  {'  '.join(COUNTED)}")
        for name, source, defines in (kernel for kernel in kernels() if args.only in kernel[0]):
            with tempfile.TemporaryDirectory() as folder:
                cubin = Path(folder) / "kernel.cubin"
                registers, spills = compiled(source, defines, architecture, cubin)
                counts = instructions(tool, cubin) if tool else None
            numbers = "" if counts is None else f"{counts.total():>12}  "
            numbers += "" if counts is None else "  ".join(f"{counts[i]:>{len(i)}}" for i in COUNTED)
            print(f"{name:<42} {registers:>9}  {spills:>6}  {numbers}", flush=True)


if __name__ == "__main__":
    main()
