"""What a checkpoint contains, as one number."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from kquant_cli.checkpoint.checkpoint import Checkpoint
from kquant_cli.errors import KQuantError
from kquant_cli.files.digests import add_file
from kquant_cli.files.tensor_bytes import tensor_bytes


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
        digest.update(tensor_bytes(tensor))
    for file in checkpoint.other_files:
        digest.update(b"\n" + os.fsencode(file) + b"\n")  # a name need not be UTF-8
        _add_file(digest, checkpoint.path / file)
    return digest.hexdigest()


def _add_file(digest: Any, path: Path) -> None:
    try:
        add_file(digest, path)
    except OSError as error:
        raise KQuantError(f"cannot read {path}: {error.strerror or error}") from error
