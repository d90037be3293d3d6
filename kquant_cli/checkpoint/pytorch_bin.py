"""PyTorch's own files (pytorch_model.bin), never trusted with more than tensors: `weights_only=True`.

Each read opens the file anew through a memory map and copies one tensor out of it, so that only that tensor's pages
are resident, and only while it is copied. Files in the form from before PyTorch 1.6 cannot be read by parts: what they
hold stays in memory as long as its `PickledTensor`.
"""

from __future__ import annotations

import math
import pickle
import struct
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from kquant_cli.errors import KQuantError
from kquant_cli.files.safetensors_format import NAMES

DAMAGE = (  # what torch's readers raise for bytes that are cut or garbled, found by garbling them
    *(RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError, struct.error),
)


@dataclass(frozen=True)
class PickledTensor:
    """A tensor of a .bin file; `held` is the tensor itself where the file cannot be read by parts."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    held: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.numel * self.dtype.itemsize

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_pickled_header(path: Path) -> tuple[dict[str, PickledTensor], list[list[str]]]:
    """The tensors of a .bin file in its order, and the groups of names that are one and the same tensor.

    Raises KQuantError, naming the file, when it is damaged or holds anything but named tensors.
    """
    state = _load(path)
    by_parts = _is_zip(path)
    tensors: dict[str, PickledTensor] = {}
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise KQuantError(f"{path} holds {name!r}, which is no tensor: expected the state dict of a model")
        if tensor.layout != torch.strided or tensor.dtype not in NAMES:
            kind = f"{tensor.layout} and {tensor.dtype}".replace("torch.", "")
            raise KQuantError(f"{path} holds {name!r} as {kind}, which safetensors cannot hold: save the model anew")
        held = None if by_parts else tensor.detach()
        tensors[name] = PickledTensor(name, tensor.dtype, tuple(tensor.shape), path, held)
        if tensor.numel():
            place = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
            groups.setdefault((*place, tensor.dtype, tensor.shape, tensor.stride()), []).append(name)
    return tensors, [names for names in groups.values() if len(names) > 1]


def read_pickled(info: PickledTensor) -> Tensor:
    """The tensor `info` points to, contiguous, in memory of its own. Raises KQuantError when the file has changed."""
    tensor = info.held if info.held is not None else _load(info.file).get(info.name)
    if not isinstance(tensor, Tensor) or tuple(tensor.shape) != info.shape or tensor.dtype != info.dtype:
        raise KQuantError(
            f"cannot read tensor {info.name!r} from {info.file}: the file has changed since it was opened"
        )
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _load(path: Path) -> dict[str, object]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except OSError as error:
        raise KQuantError(f"cannot read {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise KQuantError(
            f"{path} is damaged, or needs more than tensors (kquant runs no code from a checkpoint): download it "
            f"again, or save the model as safetensors"
        ) from error
    except DAMAGE as error:
        raise KQuantError(f"{path} is truncated or not a PyTorch file: download it again") from error
    if not isinstance(state, dict):
        raise KQuantError(f"{path} holds a {type(state).__name__}: expected the state dict of a model")
    return state


def _is_zip(path: Path) -> bool:
    """Whether torch takes the file for one of the form that it can map; it looks at no more than this."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
