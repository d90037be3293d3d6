"""Safetensors files written as a stream, so that one tensor at a time is in memory; the writer needs no state dict."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from kquant_cli.files.atomic import whole_file, write_all
from kquant_cli.files.safetensors_format import NAMES, TensorInfo
from kquant_cli.files.tensor_bytes import tensor_bytes

PYTORCH_METADATA = MappingProxyType({"format": "pt"})  # transformers refuses a file without it

TensorEntry = tuple[str, torch.dtype, tuple[int, ...]]  # name, dtype, shape


@contextmanager
def tensor_file(
    path: Path,
    entries: Sequence[TensorEntry],
    metadata: Mapping[str, str] = PYTORCH_METADATA,
    *,
    durable: bool = True,
) -> Iterator[TensorWriter]:
    """A safetensors file whose tensors arrive one at a time, in any order; equal input gives equal bytes.

    with tensor_file(path, [("a.weight", torch.float16, (4, 3))]) as file:
        file.write("a.weight", tensor)

    The file is there when all its tensors are, and not before (`atomic.whole_file`). The data are ordered by element
    size, descending, then by name: so each tensor is aligned to its elements. `durable` as in `atomic.whole_file`.

    Raises ValueError for `entries` that do not fit together and for entries never written; OSError (no space left)
    passes through.
    """
    header, infos = _layout(path, entries, metadata)
    with whole_file(path, durable=durable) as file:
        write_all(file, header)
        writer = TensorWriter(file, header, infos)
        yield writer
        if writer.missing:
            raise ValueError(f"{len(writer.missing)} entries were never written, {min(writer.missing)!r} among them")


class TensorWriter:
    """Puts tensors into their places in a file; `missing`: the names of those to come; `order`: as they lie there."""

    def __init__(self, file: FileIO, header: bytes, infos: Mapping[str, TensorInfo]) -> None:
        self._file, self._infos = file, infos
        self._digest, self._hashed = sha256(header), len(header)
        self.missing = set(infos)
        self.order = tuple(sorted(infos, key=lambda name: (infos[name].begin, infos[name].end)))

    @property
    def sha256(self) -> str:
        """Of the whole file, taken while it was written. Raises ValueError unless all was, in `order`."""
        end = max((info.end for info in self._infos.values()), default=self._hashed)
        if self.missing or self._hashed != end:
            raise ValueError("the SHA-256 is known where all tensors were written in the order in which they lie")
        return self._digest.hexdigest()

    def write(self, name: str, tensor: Tensor) -> None:
        """Write the tensor of entry `name`, which must have the entry's dtype and shape; each entry once.

        Raises ValueError for anything else; OSError passes through.
        """
        info = self._infos.get(name)
        if info is None or name not in self.missing:
            raise ValueError(f"{name!r} is {'not an entry' if info is None else 'already written'} of this file")
        if tensor.dtype != info.dtype or tuple(tensor.shape) != info.shape:
            raise ValueError(
                f"{name!r} should be {info.dtype} of shape {info.shape}, got {tensor.dtype} {tuple(tensor.shape)}"
            )
        data = tensor_bytes(tensor)
        self._file.seek(info.begin)
        write_all(self._file, data)
        if info.begin == self._hashed:
            self._digest.update(data)
            self._hashed = info.end
        self.missing.remove(name)


def _layout(
    path: Path, entries: Sequence[TensorEntry], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, TensorInfo]]:
    """The file's first bytes (length and header, padded to eight), and where each entry's data go."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, dtype, shape in sorted(entries, key=lambda entry: (-entry[1].itemsize, entry[0])):
        if name in header:
            raise ValueError(f"the name {name!r} is given twice, or reserved")
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    infos = {}
    for name, dtype, shape in entries:
        begin, end = (8 + len(text) + offset for offset in header[name]["data_offsets"])
        infos[name] = TensorInfo(name, dtype, tuple(shape), path, begin, end)
    return struct.pack("<Q", len(text)) + text, infos
