#!/usr/bin/env python3
"""What a machine has for scripts/gpu_check.sh: Python, packages, the GPU.

The exit code is 0 where all is there, 1 where packages are missing, 2 where nothing can be checked: without torch or a
GPU.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.metadata import PackageNotFoundError, version

PACKAGES = {
    "torch": ("torch", "everything"),
    "triton": ("triton", "the kernels"),
    "numpy": ("numpy", "the bases"),
    "pydantic": ("pydantic", "the encoders: kquant_cli.config is a schema of it"),
    "PyYAML": ("yaml", "the encoders: kquant_cli.config reads YAML"),
    "transformers": ("transformers", "tests with models, and compressing one"),
    "tokenizers": ("tokenizers", "tests with models"),
    "safetensors": ("safetensors", "tests with bundles"),
    "typer": ("typer", "the command line"),
    "rich": ("rich", "the command line"),
    "pytest": ("pytest", "the tests"),
}


def main() -> int:
    print(f"Python {sys.version.split()[0]} ({sys.executable}), {os.cpu_count()} processors")
    missing = [package for package, (module, _) in PACKAGES.items() if not importlib.util.find_spec(module)]
    for package, (_, use) in PACKAGES.items():
        try:
            found = "MISSING" if package in missing else version(package)
        except PackageNotFoundError:
            found = "there"
        print(f"  {package:<14} {found:<16} for {use}")
    if "torch" in missing:
        print("There is no torch in this Python, so nothing can run: install it, or name another one, PYTHON=... .")
        return 2
    import torch

    if not torch.cuda.is_available():
        print("This machine has no GPU that torch can use, so nothing was checked.")
        return 2
    device = torch.cuda.get_device_properties(0)
    print(
        f"{device.name}: {device.total_memory / 2**30:.0f} GiB, {device.multi_processor_count} multiprocessors, "
        f"CUDA {torch.version.cuda}"
    )
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
