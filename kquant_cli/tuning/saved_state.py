"""What Adam knows in the course of a tuning, kept in a file, so that an interrupted run goes on.

With `key`, which is of all that the tuning depends on, and a digest of everything: a file that is damaged, or of
another tuning, is not used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kquant_cli.errors import KQuantError
from kquant_cli.files.safetensors_reader import read_header, read_tensor
from kquant_cli.files.safetensors_writer import tensor_file
from kquant_cli.files.tensor_bytes import tensor_bytes

MOMENTS = ("exp_avg", "exp_avg_sq")
PARTS = ("value", *MOMENTS)


def save_state(
    path: Path, optimizer: torch.optim.Adam, parameters: Sequence[nn.Parameter], step: int, total: int, key: str
) -> None:
    """Write parameters and moments after `step` of `total` steps of the tuning `key`."""
    tensors: dict[str, Tensor] = {}
    for number, parameter in enumerate(parameters):
        tensors[f"{number}.value"] = parameter.detach().cpu()
        for part in MOMENTS:
            known = optimizer.state.get(parameter, {}).get(part)  # none of a parameter that has had no gradient
            tensors[f"{number}.{part}"] = torch.zeros_like(tensors[f"{number}.value"]) if known is None else known.cpu()
    entries = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    metadata = {"step": str(step), "total": str(total), "key": key}
    with tensor_file(path, entries, {**metadata, "digest": _digest(metadata, tensors)}, durable=False) as file:
        for name in file.order:
            file.write(name, tensors[name])


def load_state(
    path: Path, optimizer: torch.optim.Adam, parameters: Sequence[nn.Parameter], key: str
) -> tuple[int, int] | None:
    """Take up what was saved for these parameters: (step, total); None, and nothing changed, where nothing fits."""
    with suppress(OSError, KQuantError, SafetensorError, LookupError, TypeError, ValueError):
        infos = read_header(path)
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
        step, total = int(metadata["step"]), int(metadata["total"])
        saved = [{part: read_tensor(infos[f"{n}.{part}"]) for part in PARTS} for n in range(len(parameters))]
        tensors = {f"{n}.{part}": tensor for n, one in enumerate(saved) for part, tensor in one.items()}
        if metadata["key"] != key or metadata.pop("digest") != _digest(metadata, tensors):
            return None
        fitting = all(
            tensor.shape == parameter.shape and tensor.dtype == parameter.dtype and bool(torch.isfinite(tensor).all())
            for one, parameter in zip(saved, parameters, strict=True)
            for tensor in one.values()
        )
        if not fitting or not 0 < step <= total:
            return None
        for one, parameter in zip(saved, parameters, strict=True):
            parameter.data.copy_(one["value"])
            moments = {part: one[part].to(parameter.device) for part in MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
        return step, total
    return None


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
