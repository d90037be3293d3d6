"""What the measuring scripts share: the machine's description, and where results go (scripts/results/*.json)."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

import kquant_cli

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """CPU or GPU, cores, and the versions that matter."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "kashin-quant": kquant_cli.__version__,
    }


def append_row(path: Path | None, part: str, **values: Any) -> None:
    """Append a JSON object to the file of rows, if there is one: in one write, so that several processes may."""
    if path is not None:
        with path.open("ab", buffering=0) as file:
            file.write(json.dumps({"part": part, **values}).encode() + b"\n")


def write_results(path: Path | None, values: dict[str, Any]) -> None:
    """Write JSON to `path`, if there is one."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
