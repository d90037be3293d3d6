"""What the room knows of a stored tensor, whichever kind of file it is in."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch


class TensorLike(Protocol):
    """A tensor on disk: `files.TensorInfo` or `pytorch_bin.PickledTensor`."""

    @property
    def name(self) -> str:
        """Its name on disk."""

    @property
    def dtype(self) -> torch.dtype:
        """Its data type on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape on disk."""

    @property
    def file(self) -> Path:
        """The file that holds it."""

    @property
    def numel(self) -> int:
        """Number of elements."""

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
