"""How much memory a calibration on text needs, how much this process may have, and how much of that is free now.

Whether a model is calibrated at all must not hang on what else the machine is doing, or two runs of the same settings
would give other bytes: so that is decided by what the process may have (`memory_limit`). Where the rest is in use, that
is an error (`require_free`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil
import torch

from kquant_cli.checkpoint import Checkpoint
from kquant_cli.errors import MemoryShortage

ROOM: Final = 3  # times the model's float32 weights: gradients, moments and the text's hidden states beside them
GROUPS: Final = Path("/sys/fs/cgroup")


def memory_needed(checkpoint: Checkpoint) -> int:
    """About how many bytes a calibration on text takes."""
    return ROOM * 4 * sum(info.numel for info in checkpoint.tensors.values())


def memory_limit(device: torch.device) -> int:
    """Bytes that this process may have: of the GPU, or of the machine within the limits of the process."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return min([psutil.virtual_memory().total, *_group_limits(), *_process_limits()])


def require_free(checkpoint: Checkpoint, device: torch.device) -> None:
    """MemoryShortage where a calibration needs more than is free at this time."""
    needed = memory_needed(checkpoint)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise MemoryShortage(
            f"{checkpoint.name} needs about {needed / 1e9:.1f} GB of memory to be calibrated, and {free / 1e9:.1f} GB "
            f"are free: end other programs, or give --calibration random or none"
        )


def _process_limits() -> list[int]:
    """Those of `ulimit -v` and `ulimit -d`."""
    if sys.platform == "win32":
        return []
    import resource  # noqa: PLC0415 (not on Windows)

    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return [limit for limit in limits if limit != resource.RLIM_INFINITY]


def _group_limits() -> list[int]:
    """Those of the control groups that the process is in, as containers set them; of version 2, or 1."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [limit for file in _group_files(lines) if (limit := _number(file)) is not None]


def _group_files(lines: list[str]) -> Iterator[Path]:
    """Where the limits stand, from the group itself up; a container may see its own group as the root."""
    for line in lines:
        kinds, _, path = line.partition(":")[2].partition(":")
        named = {"": "memory.max", "memory": "memory.limit_in_bytes"}.get(kinds)
        if named is not None:
            root = GROUPS / kinds if kinds else GROUPS
            group = root / path.strip("/")
            for place in (group, *group.parents):
                if place.is_relative_to(root):
                    yield place / named


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # none there, or "max"
        return None
