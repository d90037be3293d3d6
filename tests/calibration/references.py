"""An independent computation of what the room measures: the plain float64 model, hooks on named modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import tiny_models
import torch
import transformers
from safetensors.torch import load_file, save_file

from kquant_cli.calibration import InputStatistics, collect
from kquant_cli.checkpoint import open_checkpoint, select_matrices

SEED = 5


def measure(folder: Path, include: tuple[str, ...] = (), stats: str = "random", tokens: int = 1024) -> InputStatistics:
    """What the room says of the matrices that a user would encode."""
    checkpoint = open_checkpoint(folder)
    names = [matrix.name for matrix in select_matrices(checkpoint, include=include).matrices]
    return collect(checkpoint, names, stats, seed=SEED, device="cpu", tokens=tokens)


def random_ids(length: int = 64, tokens: int = 1024, special: frozenset[int] = frozenset((0, 1, 2))) -> torch.Tensor:
    """The documented random tokens: uniform over the 128 ids but the special ones, in windows (windows, length)."""
    allowed = np.array([token for token in range(tiny_models.VOCABULARY) if token not in special])
    ids = allowed[np.random.RandomState(SEED).randint(0, len(allowed), size=tokens)]
    count = -(-tokens // length)
    return torch.from_numpy(ids[: tokens // count * count]).reshape(count, -1)


def moments(model: transformers.PreTrainedModel, modules: Iterable[str], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """E[y_j^2] of the first input of each of `modules`, with the whole model in float64."""
    model = model.double().eval()
    model.set_experts_implementation("eager")  # the grouped product has no float64
    seen: dict[str, list[torch.Tensor]] = {}
    for name in modules:

        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...], name: str = name) -> None:
            seen.setdefault(name, []).append(args[0].flatten(0, -2))

        model.get_submodule(name).register_forward_pre_hook(hook)
    with torch.no_grad():
        model(input_ids=ids)
    return {name: torch.cat(inputs).square().mean(0) for name, inputs in seen.items()}


def by_member(statistics: InputStatistics) -> dict[str, torch.Tensor]:
    """The moments of each matrix by its name."""
    return {name: group.second_moments for group in statistics.groups for name in group.members}


def rename(folder: Path, change: Callable[[str], str | None]) -> None:
    """Give the tensors of a folder other names on disk; None drops one."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({new: t for name, t in tensors.items() if (new := change(name))}, file, metadata={"format": "pt"})
