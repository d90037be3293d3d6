"""What a checkpoint contains, as one number."""

from __future__ import annotations

import json
from hashlib import sha256

import torch

from kquant_cli.checkpoint.opening import Checkpoint


def content_hash(checkpoint: Checkpoint) -> str:
    """SHA-256 over config and tensors (name, dtype, shape, bytes), however the source's files are cut."""
    digest = sha256(json.dumps(checkpoint.config, sort_keys=True).encode())
    for name in sorted(checkpoint.tensors):
        tensor = checkpoint.read(name)
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    for file in checkpoint.other_files:
        digest.update(f"\n{file}\n".encode() + (checkpoint.path / file).read_bytes())
    return digest.hexdigest()
