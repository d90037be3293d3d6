"""The file beside a bundle that keeps its statistics, so that a run that goes on need not measure them again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import torch

from kquant_cli.calibration.collect_moments import collect, named_matrices
from kquant_cli.calibration.moments import InputStatistics, load_with_fingerprint
from kquant_cli.calibration.text_source import measuring_threads, open_source
from kquant_cli.checkpoint import Checkpoint
from kquant_cli.devices import resolve_device
from kquant_cli.errors import KQuantError
from kquant_cli.files.plain_files import is_there

ENDING = ".stats.safetensors"
METHOD = 1  # to be raised when the same settings come to give other numbers


def statistics_path(out: Path) -> Path:
    """The file of the bundle `out`: `<name>.stats.safetensors` beside it."""
    return out.with_name(out.name + ENDING)


def load_or_collect(
    checkpoint: Checkpoint,
    names: Sequence[str],
    stats: str,
    *,
    seed: int,
    device: torch.device | str,
    file: Path,
    fingerprint: str,
    tokens: int = 4096,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> InputStatistics:
    """The statistics in `file`, if they were measured with these very settings; else measured now, and kept there.

    `fingerprint` is the content hash of the checkpoint. What is in the file's way is replaced, with a word to `say`.
    Raises as `collect` does, and KQuantError when the file cannot be written.
    """
    device = resolve_device(device)
    where = [device.type, measuring_threads(device)]
    settings = [METHOD, fingerprint, open_source(stats).description, seed, tokens, *where, sorted(names)]
    wanted = sha256(json.dumps(settings).encode()).hexdigest()
    if is_there(file):
        try:
            found, made_with = load_with_fingerprint(file)
            if made_with == wanted and _fits(found, checkpoint, names):
                return found
            say(f"the statistics in {file} are of other settings or weights, and are measured again")
        except KQuantError as error:
            say(f"the statistics are measured again: {error}")
    statistics = collect(checkpoint, names, stats, seed=seed, device=device, tokens=tokens, progress=progress)
    checkpoint.require_unchanged()  # or they would be kept as those of the source that was hashed
    try:
        statistics.save(file, wanted)
    except OSError as error:
        raise KQuantError(f"{file} cannot be written ({error.strerror or error}): choose another --output") from error
    return statistics


def _fits(found: InputStatistics, checkpoint: Checkpoint, names: Sequence[str]) -> bool:
    """Whether these are moments of inputs as wide as the matrices of those names have them."""
    widths = {matrix.name: matrix.shape[1] for matrix in named_matrices(checkpoint, names)}
    return all(
        widths.get(name) == len(group.second_moments) for group in found.groups for name in group.members
    ) and sorted([*found.missing, *(name for group in found.groups for name in group.members)]) == sorted(set(names))
