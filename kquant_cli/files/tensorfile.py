"""Safetensors files, read by ranges and written as a stream, so that one tensor at a time is in memory.

The format (https://github.com/huggingface/safetensors): eight bytes with the header's length (little endian), the
header (JSON: name -> dtype, shape, data_offsets), then the data without holes. The safetensors library maps the whole
file into memory, and pages read through a map count as resident; plain reads do not. The writer needs no state dict.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import torch
from torch import Tensor

from kquant_cli.errors import KQuantError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
PYTORCH_METADATA = MappingProxyType({"format": "pt"})  # transformers refuses a file without it
GIT_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: bytes `begin` to `end` of `file`, counted from the file's start."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return self.end - self.begin

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file in the order of their data, after checking that the file is whole.

    Raises KQuantError, naming the file, when it is no safetensors file, truncated, too long, or inconsistent.
    """
    size, text = _header_text(path)
    infos = sorted(_parse(path, text), key=lambda info: (info.begin, info.end))
    end = 8 + len(text)
    for info in infos:
        if info.begin != end:
            raise _invalid(path, f"the data of tensor {info.name!r} begin at byte {info.begin} instead of {end}")
        end = info.end
    if size < end:
        raise _truncated(path, str(end), size)
    if size > end:
        raise _invalid(path, f"it has {size} bytes where its header describes {end}")
    return {info.name: info for info in infos}


def _header_text(path: Path) -> tuple[int, bytes]:
    """The size of the file and its header, unparsed."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(GIT_LFS_POINTER))
            if start == GIT_LFS_POINTER:
                raise KQuantError(f"{path} is a Git LFS pointer, not the weights: fetch the file with `git lfs pull`")
            if size < 8:
                raise _truncated(path, "at least 8", size)
            (length,) = struct.unpack("<Q", start[:8])
            if length > LONGEST_HEADER:
                raise _invalid(path, f"its header would be {length} bytes long")
            if 8 + length > size:
                raise _truncated(path, f"more than {8 + length}", size)
            file.seek(8)
            return size, file.read(length)
    except OSError as error:
        raise KQuantError(f"cannot read {path}: {error.strerror or error}") from error


def _parse(path: Path, text: bytes) -> Iterator[TensorInfo]:
    """The header's entries, each checked for itself."""
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _invalid(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _invalid(path, "its header is not a JSON object")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
            raise _invalid(path, f"tensor {name!r} lacks its dtype, shape or data_offsets")
        if entry["dtype"] not in NAMES.values():
            raise KQuantError(
                f"{path}: tensor {name!r} has the data type {entry['dtype']!r}, which kquant does not read; "
                f"convert the checkpoint to float32, float16 or bfloat16"
            )
        dtype, shape, offsets = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if not (_is_sizes(shape) and _is_sizes(offsets) and len(offsets) == 2):
            raise _invalid(path, f"tensor {name!r} has the shape {shape!r} and the data_offsets {offsets!r}")
        if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
            raise _invalid(path, f"tensor {name!r} of shape {shape} and type {entry['dtype']} spans bytes {offsets}")
        begin = 8 + len(text)
        yield TensorInfo(name, dtype, tuple(shape), path, begin + offsets[0], begin + offsets[1])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError when it names a key twice, since readers differ in which of the two counts."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _is_sizes(value: object) -> bool:
    """Whether `value` is a list of sizes or offsets; beyond 2^48 no file system goes, and torch's own sums overflow."""
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 1 << 48 for number in value)


def _truncated(path: Path, expected: str, size: int) -> KQuantError:
    return KQuantError(f"{path} is truncated: it should have {expected} bytes and has {size}; download it again")


def _invalid(path: Path, why: str) -> KQuantError:
    return KQuantError(f"{path} is not a valid safetensors file: {why}; download it again or save it anew")


def read_tensor(info: TensorInfo) -> Tensor:
    """The tensor `info` points to, in memory of its own; reads exactly its bytes.

    Raises KQuantError, naming file and tensor, when the bytes cannot be read (the file is gone, or was cut since).
    """
    data = torch.empty(info.nbytes, dtype=torch.uint8)
    with _open_at(info) as file:
        _fill(file, data.numpy().data, info)
    return data.view(info.dtype).reshape(info.shape)


def read_chunks(info: TensorInfo, size: int = 1 << 24) -> Iterator[bytearray]:
    """The bytes of a tensor, `size` at a time (the last chunk may be shorter). Raises as `read_tensor` does."""
    with _open_at(info) as file:
        for begin in range(info.begin, info.end, size):
            chunk = bytearray(min(size, info.end - begin))
            _fill(file, memoryview(chunk), info)
            yield chunk


@contextmanager
def _open_at(info: TensorInfo) -> Iterator[FileIO]:
    try:
        with info.file.open("rb", buffering=0) as file:
            file.seek(info.begin)
            yield file
    except OSError as error:
        raise KQuantError(f"cannot read tensor {info.name!r} from {info.file}: {error.strerror or error}") from error


def _fill(file: FileIO, view: memoryview, info: TensorInfo) -> None:
    """Read until `view` is full: one read gives less than asked beyond 2 GB, or on a signal."""
    while view:
        count = file.readinto(view)
        if not count:
            raise KQuantError(
                f"cannot read tensor {info.name!r} from {info.file}: the file ends before byte {info.end}; "
                f"download it again"
            )
        view = view[count:]


class TensorFileWriter:
    """A safetensors file whose tensors arrive one at a time, in any order; equal input gives equal bytes.

    with TensorFileWriter(path, [("a.weight", torch.float16, (4, 3))]) as file:
        file.write("a.weight", tensor)

    The header is written at once. The data are ordered by element size, descending, then by name: so each tensor is
    aligned to its elements. Raises ValueError for calls that do not fit `entries`; OSError (no space left) passes
    through. The file's handle is closed whatever happens; what an error leaves behind is the caller's to remove.
    """

    def __init__(
        self,
        path: Path,
        entries: Sequence[tuple[str, torch.dtype, tuple[int, ...]]],
        metadata: Mapping[str, str] = PYTORCH_METADATA,
    ) -> None:
        header, self._infos = _layout(path, entries, metadata)
        self._missing = set(self._infos)
        self._file = path.open("wb", buffering=0)
        try:
            self._put(memoryview(header))
        except BaseException:
            self._file.close()
            raise

    def write(self, name: str, tensor: Tensor) -> None:
        """Write the tensor of entry `name`, which must have the entry's dtype and shape; each entry once."""
        info = self._infos.get(name)
        if info is None or name not in self._missing:
            raise ValueError(f"{name!r} is {'not an entry' if info is None else 'already written'} of this file")
        if tensor.dtype != info.dtype or tuple(tensor.shape) != info.shape:
            raise ValueError(
                f"{name!r} should be {info.dtype} of shape {info.shape}, got {tensor.dtype} {tuple(tensor.shape)}"
            )
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self._file.seek(info.begin)
        self._put(data.numpy().data)
        self._missing.remove(name)

    def close(self) -> None:
        """Make the file durable and close it; ValueError when an entry was never written."""
        if self._file.closed:
            return
        try:
            if self._missing:
                raise ValueError(f"{len(self._missing)} entries were never written, {min(self._missing)!r} among them")
            os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def _put(self, view: memoryview) -> None:
        """Write all of it: a raw write may take less than it is given (more than 2 GB, or a signal)."""
        while view:
            view = view[self._file.write(view) :]

    def __enter__(self) -> TensorFileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


def _layout(
    path: Path, entries: Sequence[tuple[str, torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
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
