"""What a checkpoint contains, as one number."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import torch

from kquant_cli.checkpoint.checkpoint import Checkpoint
from kquant_cli.errors import KQuantError

PIECE = 1 << 20  # bytes of a file in memory at a time


def content_hash(checkpoint: Checkpoint) -> str:
    """SHA-256 over config and tensors (name, dtype, shape, bytes), however the source's files are cut, and other files.

    Raises KQuantError, naming it, when a file cannot be read or a tensor is not finite.
    """
    digest = sha256(json.dumps(checkpoint.config, sort_keys=True).encode())
    for name in sorted(checkpoint.tensors):
        tensor = checkpoint.read(name)
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise KQuantError(
                f"{checkpoint.name}: tensor {name!r} has entries that are not finite; mend the checkpoint"
            )
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    for file in checkpoint.other_files:
        digest.update(b"\n" + os.fsencode(file) + b"\n")  # a name need not be UTF-8
        for piece in _pieces(checkpoint.path / file):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
    except OSError as error:
        raise KQuantError(f"cannot read {path}: {error.strerror or error}") from error
