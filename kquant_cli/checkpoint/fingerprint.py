"""What a checkpoint contains, as one number."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kquant_cli.checkpoint.checkpoint import Checkpoint
from kquant_cli.errors import KQuantError
from kquant_cli.files.digests import add_file
from kquant_cli.files.tensor_bytes import tensor_bytes
from kquant_cli.overlap import ahead

ENDING = ".weight"


def content_hash(checkpoint: Checkpoint) -> str:
    """SHA-256 over config and tensors (name, dtype, shape, bytes), however the source's files are cut, and other files.

    Raises KQuantError, naming it, when a file cannot be read, or a tensor holds what is no number. Infinities are an
    error in a `*.weight`; anything else that has some (masks, a bias that forbids tokens) is noted in
    `checkpoint.infinite`.
    """
    digest = sha256(json.dumps(checkpoint.config, sort_keys=True).encode())
    with ahead(_data(checkpoint)) as parts:  # some MB are read while others are hashed
        for part in parts:
            digest.update(part)
    for file in checkpoint.other_files:
        digest.update(b"\n" + os.fsencode(file) + b"\n")  # a name need not be UTF-8
        _add_file(digest, checkpoint.path / file)
    return digest.hexdigest()


def _data(checkpoint: Checkpoint) -> Iterator[bytes | memoryview]:
    """Name, dtype, shape and then the bytes of each tensor, some MB at a time."""
    for name in sorted(checkpoint.tensors):
        info = checkpoint.tensors[name]
        yield f"\n{name} {info.dtype} {tuple(info.shape)}\n".encode()
        for piece in checkpoint.pieces(name):
            if piece.is_floating_point() and not (extremes := _extremes(piece)).isfinite().all():
                if name.endswith(ENDING) or extremes.isnan().any():
                    raise KQuantError(
                        f"{checkpoint.name}: tensor {name!r} has entries that are not finite; mend the checkpoint"
                    )
                checkpoint.infinite.add(name)
            yield tensor_bytes(piece)


def _extremes(values: Tensor) -> Tensor:
    """The least and the greatest, both NaN where one value is; thirty times as fast as to ask each of them."""
    wide = values.float() if values.element_size() == 1 else values
    return torch.stack(torch.aminmax(wide)) if values.numel() else torch.zeros(2)


def _add_file(digest: Any, path: Path) -> None:
    try:
        add_file(digest, path)
    except OSError as error:
        raise KQuantError(f"cannot read {path}: {error.strerror or error}") from error
