"""What Adam knows in the course of a tuning, kept in a file, so that an interrupted run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kquant_cli.errors import KQuantError
from kquant_cli.files.safetensors_reader import read_header, read_tensor
from kquant_cli.files.safetensors_writer import tensor_file

MOMENTS = ("exp_avg", "exp_avg_sq")


def save_state(
    path: Path, optimizer: torch.optim.Adam, parameters: Sequence[nn.Parameter], step: int, total: int
) -> None:
    """Write parameters and moments after `step` of `total` steps."""
    tensors: dict[str, Tensor] = {}
    for number, parameter in enumerate(parameters):
        tensors[f"{number}.value"] = parameter.detach().cpu()
        for key in MOMENTS:
            known = optimizer.state.get(parameter, {}).get(key)  # none of a parameter that has had no gradient
            tensors[f"{number}.{key}"] = torch.zeros_like(tensors[f"{number}.value"]) if known is None else known.cpu()
    entries = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    with tensor_file(path, entries, {"step": str(step), "total": str(total)}, durable=False) as file:
        for name in file.order:
            file.write(name, tensors[name])


def load_state(path: Path, optimizer: torch.optim.Adam, parameters: Sequence[nn.Parameter]) -> tuple[int, int] | None:
    """Take up what was saved for these parameters: (step, total); None, and nothing changed, where nothing fits."""
    with suppress(OSError, KQuantError, SafetensorError, LookupError, TypeError, ValueError):
        infos = read_header(path)
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
        step, total = int(metadata["step"]), int(metadata["total"])
        saved = [{key: read_tensor(infos[f"{n}.{key}"]) for key in ("value", *MOMENTS)} for n in range(len(parameters))]
        if any(one["value"].shape != p.shape for one, p in zip(saved, parameters, strict=True)):
            return None
        if not all(bool(torch.isfinite(tensor).all()) for one in saved for tensor in one.values()):
            return None
        for one, parameter in zip(saved, parameters, strict=True):
            parameter.data.copy_(one["value"])
            moments = {key: one[key].to(parameter.device) for key in MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
        return step, total
    return None
